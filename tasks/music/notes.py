"""Notes of many pieces as flat arrays, the form that transforms and tokenizers use."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.music.arrays import BoolArray, ByteArray, FloatArray, IntArray, TrackArray, offsets_of
from tasks.music.score import Score


@dataclass(frozen=True, slots=True, eq=False)
class NoteBatch:
    """P pieces with N notes and Q pedal spans in all; piece i owns notes `offsets[i]:offsets[i + 1]`.

    Notes of a piece are in the order of (onset, pitch, track, duration, velocity), as in `tasks.music.score.Notes`.
    Pitch and program are 0-127, velocity 1-127; `track` is the index of the source part inside its piece, and the pedal
    spans of the same track apply to it. Pedal spans of one track do not overlap and hold sustain from
    `pedal_onset_seconds` to `pedal_end_seconds`.

    Times stand in seconds and in ticks; a quarter note of piece i has `ticks_per_quarter[i]` ticks. Tempos and time
    signatures of a piece stand at rising ticks, the first tempo at tick 0; without a time signature a piece is in 4/4.
    """

    offsets: IntArray
    onset: IntArray  # ticks
    duration: IntArray  # ticks, at least 1
    onset_seconds: FloatArray
    end_seconds: FloatArray
    pitch: ByteArray
    velocity: ByteArray
    program: ByteArray
    is_drum: BoolArray
    track: TrackArray
    pedal_offsets: IntArray
    pedal_onset_seconds: FloatArray
    pedal_end_seconds: FloatArray
    pedal_track: TrackArray
    ticks_per_quarter: IntArray  # [P]
    tempo_offsets: IntArray  # [P + 1]
    tempo_tick: IntArray
    tempo_microseconds_per_quarter: FloatArray  # whole numbers until time is stretched
    time_signature_offsets: IntArray  # [P + 1]
    time_signature_tick: IntArray
    time_signature_numerator: IntArray
    time_signature_denominator: IntArray

    @property
    def n_pieces(self) -> int:
        return len(self.offsets) - 1

    @property
    def n_notes(self) -> int:
        return len(self.pitch)

    @property
    def piece_of_note(self) -> IntArray:
        """Index of the piece of each note, int64[N]."""
        return np.repeat(np.arange(self.n_pieces), np.diff(self.offsets))

    @classmethod
    def from_scores(cls, scores: Sequence[Score]) -> "NoteBatch":
        """Lay the notes and pedal spans of `scores` end to end, one piece for each score."""
        notes, pedals = [score.notes for score in scores], [score.pedals for score in scores]
        tempos, meters = [score.tempos for score in scores], [score.time_signatures for score in scores]
        return cls(
            offsets=offsets_of([len(part.pitch) for part in notes]),
            onset=_joined([part.onset for part in notes], np.int64),
            duration=_joined([part.duration for part in notes], np.int64),
            onset_seconds=_joined([part.onset_seconds for part in notes], np.float64),
            end_seconds=_joined([part.end_seconds for part in notes], np.float64),
            pitch=_joined([part.pitch for part in notes], np.uint8),
            velocity=_joined([part.velocity for part in notes], np.uint8),
            program=_joined([part.program for part in notes], np.uint8),
            is_drum=_joined([part.is_drum for part in notes], np.bool_),
            track=_joined([part.track for part in notes], np.uint16),
            pedal_offsets=offsets_of([len(part.track) for part in pedals]),
            pedal_onset_seconds=_joined([part.onset_seconds for part in pedals], np.float64),
            pedal_end_seconds=_joined([part.end_seconds for part in pedals], np.float64),
            pedal_track=_joined([part.track for part in pedals], np.uint16),
            ticks_per_quarter=np.array([score.ticks_per_quarter for score in scores], np.int64),
            tempo_offsets=offsets_of([len(part.tick) for part in tempos]),
            tempo_tick=_joined([part.tick for part in tempos], np.int64),
            tempo_microseconds_per_quarter=_joined([part.microseconds_per_quarter for part in tempos], np.float64),
            time_signature_offsets=offsets_of([len(part.tick) for part in meters]),
            time_signature_tick=_joined([part.tick for part in meters], np.int64),
            time_signature_numerator=_joined([part.numerator for part in meters], np.int64),
            time_signature_denominator=_joined([part.denominator for part in meters], np.int64),
        )

    def pieces(self, first: int, last: int) -> "NoteBatch":
        """Return pieces `first` (included) to `last` (excluded) as a batch of views, without a copy of the notes."""
        parts: dict[str, Any] = {"ticks_per_quarter": self.ticks_per_quarter[first:last]}
        for owner in ("", *_OWNERS):
            borders = getattr(self, f"{owner}offsets")[first : last + 1]
            parts[f"{owner}offsets"] = borders - borders[0]
            for name in self._columns_of(owner):
                parts[name] = getattr(self, name)[borders[0] : borders[-1]]
        return NoteBatch(**parts)

    def blocks(self, n_notes: int) -> Iterator["NoteBatch"]:
        """Yield ranges of whole pieces with about `n_notes` notes each, at least one range."""
        if not self.n_pieces:
            yield self
            return
        block = self.offsets[:-1] // n_notes
        borders = [0, *(np.flatnonzero(np.diff(block)) + 1).tolist(), self.n_pieces]
        for first, last in pairwise(borders):
            yield self.pieces(first, last)

    def take(self, pieces: IntArray) -> "NoteBatch":
        """Return some pieces, by their indices, as a batch of its own."""
        if len(pieces) == self.n_pieces and np.array_equal(pieces, np.arange(self.n_pieces)):
            return self
        parts: dict[str, Any] = {"ticks_per_quarter": self.ticks_per_quarter[pieces]}
        for owner in ("", *_OWNERS):
            borders = getattr(self, f"{owner}offsets")
            lengths = np.diff(borders)[pieces]
            parts[f"{owner}offsets"] = offsets_of(lengths)
            places = np.repeat(borders[pieces] - parts[f"{owner}offsets"][:-1], lengths) + np.arange(lengths.sum())
            for name in self._columns_of(owner):
                parts[name] = getattr(self, name)[places]
        return NoteBatch(**parts)

    @classmethod
    def _columns_of(cls, owner: str) -> list[str]:
        names = [f.name for f in fields(cls) if not f.name.endswith("offsets") and f.name != "ticks_per_quarter"]
        return [name for name in names if (name.startswith(owner) if owner else not name.startswith(_OWNERS))]

    def where(self, stays: BoolArray) -> "NoteBatch":
        """Return the batch with only the notes of the mask bool[N]; pieces, pedals, tempos and meters stay."""
        n_left = np.add.reduceat(np.append(stays, False), self.offsets[:-1], dtype=np.int64) if self.n_pieces else []
        n_left = np.where(np.diff(self.offsets) > 0, n_left, 0)
        return replace(
            self, offsets=offsets_of(n_left), **{name: getattr(self, name)[stays] for name in self._columns_of("")}
        )


_OWNERS = ("pedal_", "tempo_", "time_signature_")  # prefixes of the columns that have offsets of their own


def _joined(parts: Sequence[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    return np.concatenate(parts).astype(dtype, copy=False) if parts else np.zeros(0, dtype)
