"""Scores in ticks: one piece of music as arrays, with its times in seconds."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.music.arrays import BoolArray, ByteArray, FloatArray, IntArray, TrackArray

DEFAULT_TEMPO = 500_000  # microseconds per quarter where a file says nothing: 120 beats a minute


@dataclass(frozen=True, slots=True, eq=False)
class Notes:
    """N notes sorted by (onset, pitch, track, duration); times in ticks, and in seconds through the tempo map.

    Pitch and program 0-127, velocity 1-127, duration at least 1; `track` is the index of the source part.
    """

    onset: IntArray
    duration: IntArray
    pitch: ByteArray
    velocity: ByteArray
    program: ByteArray
    is_drum: BoolArray
    track: TrackArray
    onset_seconds: FloatArray
    end_seconds: FloatArray


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


@dataclass(frozen=True, slots=True, eq=False)
class Pedals:
    """Spans of the sustain pedal (controller 64 at 64 or above), sorted by (track, onset); none overlap in a track."""

    onset: IntArray
    end: IntArray
    track: TrackArray
    onset_seconds: FloatArray
    end_seconds: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class Score:
    """One piece of music.

    Args:
        n_tracks: number of parts; a part has one program, and all its notes carry its index as `track`.
        dropped: what the reader left out or repaired, by reason; see `tasks.music.midi.reader.LOSSES`.
    """

    ticks_per_quarter: int
    notes: Notes
    tempos: Tempos
    time_signatures: TimeSignatures
    key_signatures: KeySignatures
    pedals: Pedals
    n_tracks: int
    dropped: dict[str, int] = field(default_factory=dict)


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
    notes: dict[str, NDArray[Any]],
    *,
    tempos: Tempos | None = None,
    time_signatures: TimeSignatures | None = None,
    key_signatures: KeySignatures | None = None,
    pedals: dict[str, NDArray[Any]] | None = None,
    n_tracks: int = 1,
    dropped: dict[str, int] | None = None,
) -> Score:
    """Return a score with its notes and pedal spans sorted and their seconds worked out.

    Args:
        notes: onset, duration, pitch, velocity, program, is_drum, track: arrays of one length, in any order.
        tempos: rising ticks from 0 on; 120 beats a minute by default.
        pedals: onset, end, track: arrays of one length, in any order; spans of one track must not overlap.
    """
    tempos = tempos or Tempos(np.zeros(1, np.int64), np.array([DEFAULT_TEMPO]))
    spans = pedals or {"onset": _NO_TICKS, "end": _NO_TICKS, "track": _NO_TICKS}
    order, span_order = _note_order(notes), np.lexsort([spans["onset"], spans["track"]])
    onset, duration = notes["onset"][order].astype(np.int64), notes["duration"][order].astype(np.int64)
    pedal_onset, pedal_end = spans["onset"][span_order].astype(np.int64), spans["end"][span_order].astype(np.int64)
    ticks = [onset, onset + duration, pedal_onset, pedal_end]
    seconds = seconds_at(tempos, ticks_per_quarter, np.concatenate(ticks))
    onset_seconds, end_seconds, pedal_onset_seconds, pedal_end_seconds = np.split(
        seconds, np.cumsum([len(part) for part in ticks[:-1]])
    )
    return Score(
        ticks_per_quarter=ticks_per_quarter,
        notes=Notes(
            onset=onset,
            duration=duration,
            pitch=notes["pitch"][order].astype(np.uint8),
            velocity=notes["velocity"][order].astype(np.uint8),
            program=notes["program"][order].astype(np.uint8),
            is_drum=notes["is_drum"][order].astype(np.bool_),
            track=notes["track"][order].astype(np.uint16),
            onset_seconds=onset_seconds,
            end_seconds=end_seconds,
        ),
        tempos=tempos,
        time_signatures=time_signatures or NO_TIME_SIGNATURES,
        key_signatures=key_signatures or NO_KEY_SIGNATURES,
        pedals=Pedals(
            onset=pedal_onset,
            end=pedal_end,
            track=spans["track"][span_order].astype(np.uint16),
            onset_seconds=pedal_onset_seconds,
            end_seconds=pedal_end_seconds,
        ),
        n_tracks=n_tracks,
        dropped=dropped or {},
    )


_NO_TICKS = np.zeros(0, dtype=np.int64)
NO_TIME_SIGNATURES = TimeSignatures(_NO_TICKS, _NO_TICKS, _NO_TICKS)
NO_KEY_SIGNATURES = KeySignatures(_NO_TICKS, _NO_TICKS, _NO_TICKS.astype(np.bool_))


def _note_order(notes: dict[str, NDArray[Any]]) -> IntArray:
    """Order by onset, pitch, track, duration and velocity; the first three fit into one integer and mostly decide."""
    onset, pitch, track = (notes[name].astype(np.int64) for name in ("onset", "pitch", "track"))
    keys = (onset << 7 | pitch) << 16 | track
    order = np.argsort(keys, kind="stable")
    keys_in_order = keys[order]
    if np.any(keys_in_order[1:] == keys_in_order[:-1]):
        order = np.lexsort([notes["velocity"], notes["duration"], keys])
    return order
