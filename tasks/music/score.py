"""Scores: one piece of music, its tempo map and signatures, and its times in seconds."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tasks.music.arrays import BoolArray, FloatArray, IntArray, TrackArray
from tasks.music.notes import COLUMNS, NOTE_COLUMNS, NoteBatch

DEFAULT_TEMPO = 500_000  # microseconds per quarter where a file says nothing: 120 beats a minute


@dataclass(frozen=True, slots=True, eq=False)
class Tempos:
    """Tempo changes at rising ticks, the first at tick 0; microseconds per quarter 1,000 to 16,777,215."""

    tick: IntArray
    microseconds_per_quarter: IntArray


@dataclass(frozen=True, slots=True, eq=False)
class TimeSignatures:
    """Time signatures at rising ticks; numerator 1-255, denominator a power of two."""

    tick: IntArray
    numerator: IntArray
    denominator: IntArray


@dataclass(frozen=True, slots=True, eq=False)
class KeySignatures:
    """Key signatures at rising ticks; key -7 (seven flats) to 7 (seven sharps)."""

    tick: IntArray
    key: IntArray
    is_minor: BoolArray


Changes = TypeVar("Changes", Tempos, TimeSignatures, KeySignatures)


@dataclass(frozen=True, slots=True, eq=False)
class Pedals:
    """Spans of the sustain pedal, sorted by (track, onset); none overlap in a track."""

    onset: IntArray
    end: IntArray
    track: TrackArray
    onset_seconds: FloatArray
    end_seconds: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class Score:
    """One piece of music.

    Args:
        notes: a batch of this piece alone, its pedals, tempos and signatures included.
        dropped: what the reader left out or repaired, by reason; see `tasks.music.midi.reader.LOSSES`.
    """

    notes: NoteBatch
    dropped: dict[str, int] = field(default_factory=dict)

    @property
    def ticks_per_quarter(self) -> int:
        return int(self.notes.ticks_per_quarter[0])

    @property
    def n_tracks(self) -> int:
        """Number of parts; a part has one program, and all its notes carry its index as `track`."""
        return int(self.notes.n_tracks[0])

    @property
    def tempos(self) -> Tempos:
        return Tempos(self.notes.tempo_tick, self.notes.tempo_microseconds_per_quarter.astype(np.int64))

    @property
    def time_signatures(self) -> TimeSignatures:
        return TimeSignatures(*self._changes("time_signature_"))

    @property
    def key_signatures(self) -> KeySignatures:
        return KeySignatures(*self._changes("key_signature_"))

    @property
    def pedals(self) -> Pedals:
        notes = self.notes
        return Pedals(
            notes.pedal_onset, notes.pedal_end, notes.pedal_track, notes.pedal_onset_seconds, notes.pedal_end_seconds
        )

    def _changes(self, owner: str) -> tuple[Any, ...]:
        return tuple(getattr(self.notes, name) for name in COLUMNS[owner])


def seconds_at(tempos: Tempos, ticks_per_quarter: int, ticks: NDArray[np.integer]) -> FloatArray:
    """Return the time of each tick in seconds: exact sums in integers, rounded once."""
    if len(tempos.tick) == 1:
        return ticks * tempos.microseconds_per_quarter[0] / (ticks_per_quarter * 1e6)
    change, elapsed = _elapsed(tempos)
    place = np.searchsorted(tempos.tick, ticks, side="right") - 1
    microseconds = elapsed[place] + (ticks - tempos.tick[place]) * change[place]
    return microseconds / (ticks_per_quarter * 1e6)


def ticks_at(tempos: Tempos, ticks_per_quarter: int, seconds: NDArray[np.floating]) -> IntArray:
    """Return the nearest tick to each time in seconds; the inverse of `seconds_at`."""
    change, elapsed = _elapsed(tempos)
    microseconds = np.asarray(seconds, dtype=np.float64) * (ticks_per_quarter * 1e6)
    place = np.maximum(np.searchsorted(elapsed, microseconds, side="right") - 1, 0)
    shift = (microseconds - elapsed[place]) / change[place]
    return tempos.tick[place] + np.floor(shift + 0.5).astype(np.int64)


def _elapsed(tempos: Tempos) -> tuple[IntArray, IntArray]:
    """Tempo in force from each change on, and the microseconds × ticks per quarter that have passed before it."""
    passed = np.zeros(len(tempos.tick), dtype=np.int64)
    np.cumsum(np.diff(tempos.tick) * tempos.microseconds_per_quarter[:-1], out=passed[1:])  # < 2**31 × 2**24
    return tempos.microseconds_per_quarter, passed


def build_score(
    ticks_per_quarter: int,
    notes: Mapping[str, NDArray[Any]],
    *,
    tempos: Tempos | None = None,
    time_signatures: TimeSignatures | None = None,
    key_signatures: KeySignatures | None = None,
    pedals: Mapping[str, NDArray[Any]] | None = None,
    n_tracks: int = 1,
    dropped: dict[str, int] | None = None,
) -> Score:
    """Return a score with its notes and pedal spans sorted and their seconds worked out.

    Args:
        notes: the columns `NOTE_COLUMNS`: arrays of one length, in any order.
        tempos: rising ticks from 0 on; 120 beats a minute by default.
        pedals: onset, end, track: arrays of one length, in any order; spans of one track must not overlap.
    """
    tempos = tempos or Tempos(np.zeros(1, np.int64), np.array([DEFAULT_TEMPO]))
    meters, keys = time_signatures or NO_TIME_SIGNATURES, key_signatures or NO_KEY_SIGNATURES
    spans = pedals or {"onset": _NO_TICKS, "end": _NO_TICKS, "track": _NO_TICKS}
    order, span_order = _note_order(notes), np.lexsort([spans["onset"], spans["track"]])
    onset, duration = notes["onset"][order].astype(np.int64), notes["duration"][order].astype(np.int64)
    ticks = [onset, onset + duration, *(spans[name][span_order].astype(np.int64) for name in ("onset", "end"))]
    seconds = np.split(
        seconds_at(tempos, ticks_per_quarter, np.concatenate(ticks)), np.cumsum([len(part) for part in ticks[:-1]])
    )
    columns = {name: notes[name][order] for name in NOTE_COLUMNS} | {
        "onset_seconds": seconds[0],
        "end_seconds": seconds[1],
        "pedal_onset": ticks[2],
        "pedal_end": ticks[3],
        "pedal_onset_seconds": seconds[2],
        "pedal_end_seconds": seconds[3],
        "pedal_track": spans["track"][span_order],
        "tempo_tick": tempos.tick,
        "tempo_microseconds_per_quarter": tempos.microseconds_per_quarter,
        "time_signature_tick": meters.tick,
        "time_signature_numerator": meters.numerator,
        "time_signature_denominator": meters.denominator,
        "key_signature_tick": keys.tick,
        "key_signature_sharps": keys.key,
        "key_signature_is_minor": keys.is_minor,
        "ticks_per_quarter": [ticks_per_quarter],
        "n_tracks": [n_tracks],
    }
    offsets = {f"{owner}offsets": [0, len(columns[names[0]])] for owner, names in COLUMNS.items()}
    return Score(NoteBatch.of(columns | offsets), dropped or {})


_NO_TICKS = np.zeros(0, dtype=np.int64)
NO_TIME_SIGNATURES = TimeSignatures(_NO_TICKS, _NO_TICKS, _NO_TICKS)
NO_KEY_SIGNATURES = KeySignatures(_NO_TICKS, _NO_TICKS, _NO_TICKS.astype(np.bool_))


def _note_order(notes: Mapping[str, NDArray[Any]]) -> IntArray:
    """Order by onset, pitch, track, duration and velocity; the first three fit into one integer and mostly decide."""
    onset, pitch, track = (notes[name].astype(np.int64) for name in ("onset", "pitch", "track"))
    keys = (onset << 7 | pitch) << 16 | track
    order = np.argsort(keys, kind="stable")
    keys_in_order = keys[order]
    if np.any(keys_in_order[1:] == keys_in_order[:-1]):
        order = np.lexsort([notes["velocity"], notes["duration"], keys])
    return order


def edited(score: Score, notes: Mapping[str, NDArray[Any]], **changes: Any) -> Score:
    """Return a score with other notes, and with `changes` among the arguments of `build_score`; the rest stays."""
    same = {
        "tempos": score.tempos,
        "time_signatures": score.time_signatures,
        "key_signatures": score.key_signatures,
        "pedals": {name: getattr(score.pedals, name) for name in ("onset", "end", "track")},
        "n_tracks": score.n_tracks,
        "dropped": score.dropped,
    }
    return build_score(score.ticks_per_quarter, notes, **(same | changes))


def note_columns(score: Score, is_kept: BoolArray | slice = slice(None)) -> dict[str, NDArray[Any]]:
    """Return what `build_score` needs of the notes of a score, or of some of them."""
    return {name: getattr(score.notes, name)[is_kept] for name in NOTE_COLUMNS}


def changes_where(changes: Changes, is_kept: BoolArray) -> Changes:
    """Return some of the changes."""
    return type(changes)(*(getattr(changes, column.name)[is_kept] for column in fields(changes)))


def later_changes(changes: Changes, begin: int) -> Changes:
    """Return the change in force at tick `begin`, and all later ones, with their ticks counted from there."""
    tick = changes.tick
    kept = changes_where(changes, np.append(tick[1:] > begin, True)[: len(tick)])
    return replace(kept, tick=np.maximum(kept.tick - begin, 0))
