"""The notes that one score has beyond another, as a score."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from tasks.music.arrays import BoolArray, IntArray
from tasks.music.score import KeySignatures, Score, Tempos, TimeSignatures, build_score

_COMPARED = ("onset", "duration", "pitch", "velocity", "program", "is_drum")
_COLUMNS = (*_COMPARED, "track")


def added_notes(before: Score, after: Score) -> Score:
    """Return what `after` has and `before` has not, moved so that its first note begins at once.

    Tempo, time and key signature are those in force there. Both scores have the same ticks per quarter; parts may be
    numbered differently.
    """
    added = is_added(before, after)
    columns = {name: getattr(after.notes, name)[added] for name in _COLUMNS}
    begin = int(columns["onset"].min(initial=after.notes.onset.max(initial=0)))
    columns["onset"] = columns["onset"] - begin
    tempos, meters, keys = after.tempos, after.time_signatures, after.key_signatures
    of_tempos, of_meters, of_keys = (_in_force(changes.tick, begin) for changes in (tempos, meters, keys))
    return build_score(
        after.ticks_per_quarter,
        columns,
        tempos=Tempos(_moved(tempos.tick[of_tempos], begin), tempos.microseconds_per_quarter[of_tempos]),
        time_signatures=TimeSignatures(
            _moved(meters.tick[of_meters], begin), meters.numerator[of_meters], meters.denominator[of_meters]
        ),
        key_signatures=KeySignatures(_moved(keys.tick[of_keys], begin), keys.key[of_keys], keys.is_minor[of_keys]),
        n_tracks=after.n_tracks,
    )


def is_added(before: Score, after: Score, compared: Sequence[str] = _COMPARED) -> BoolArray:
    """Return which notes of `after` are not in `before`; notes with the same values in the compared columns match."""
    one, other = (zip(*(getattr(s.notes, name).tolist() for name in compared), strict=True) for s in (before, after))
    known = Counter(one)
    added = np.zeros(len(after.notes.pitch), np.bool_)
    for place, row in enumerate(other):
        if known[row]:
            known[row] -= 1
        else:
            added[place] = True
    return added


def _in_force(tick: IntArray, begin: int) -> BoolArray:
    """Tell which changes count from `begin` on: the last one up to there, and all later ones."""
    return np.append(tick[1:] > begin, True)[: len(tick)]


def _moved(tick: IntArray, begin: int) -> IntArray:
    return np.maximum(tick - begin, 0)
