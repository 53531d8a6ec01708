"""Notes that one score has and another lacks, and notes shortened where their pitch is struck again."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from tasks.music.arrays import BoolArray
from tasks.music.score import Score, edited, later_changes, note_columns

_COMPARED = ("onset", "duration", "pitch", "velocity", "program", "is_drum")


def added_notes(before: Score, after: Score) -> Score:
    """Return the notes of `after` that `before` lacks, moved so that the first begins at tick 0.

    Tempo, time and key signature are those in force there; pedals are left out. Both scores have the same ticks per
    quarter; parts may be numbered differently.
    """
    columns = note_columns(after, is_added(before, after))
    begin = int(columns["onset"].min(initial=after.notes.onset.max(initial=0)))
    return edited(
        after,
        columns | {"onset": columns["onset"] - begin},
        tempos=later_changes(after.tempos, begin),
        time_signatures=later_changes(after.time_signatures, begin),
        key_signatures=later_changes(after.key_signatures, begin),
        pedals=None,
        dropped=None,
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


def end_at_next(score: Score) -> tuple[Score, int]:
    """Return a score in which a note ends where its part strikes the same pitch again, as on a keyboard.

    No MIDI file can hold notes of one pitch that overlap within a part. Those that begin together stay as they are.

    Returns:
        the score, the same one where nothing overlaps, and the number of notes that are shorter than they were.
    """
    notes = score.notes
    lane = (notes.track.astype(np.int64) << 7) | notes.pitch
    order = np.lexsort([notes.onset, lane])
    place = (lane[order] << 40) | notes.onset[order]  # onsets are below 2**31
    following = np.searchsorted(place, place, side="right")
    has_next = following < len(place)
    has_next[has_next] = lane[order][following[has_next]] == lane[order][has_next]
    room = np.full(len(place), np.iinfo(np.int64).max)
    room[has_next] = notes.onset[order][following[has_next]] - notes.onset[order][has_next]
    most = np.empty_like(room)
    most[order] = room
    is_short = notes.duration > most
    if not is_short.any():
        return score, 0
    columns = note_columns(score) | {"duration": np.minimum(notes.duration, most)}
    return edited(score, columns), int(is_short.sum())
