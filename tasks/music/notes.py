"""The notes of pieces as flat arrays: the one form from the MIDI reader through transforms to the encodings."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any, get_args

import numpy as np

from tasks.music.arrays import BoolArray, ByteArray, FloatArray, IntArray, TrackArray, offsets_of


@dataclass(frozen=True, slots=True, eq=False)
class NoteBatch:
    """P pieces with N notes in all; piece i owns notes `offsets[i]:offsets[i + 1]`, and so on for pedals and changes.

    Notes of a piece are in the order of (onset, pitch, track, duration, velocity). Pitch and program are 0-127,
    velocity 1-127; `track` is the index of the part inside its piece, all drums or all pitched. Pedal spans (controller
    64 at 64 or above) hold the notes of their track; they are in the order of (track, onset), and those of one track do
    not overlap. Tempos and signatures are at rising ticks, the first tempo at tick 0; without a time signature a piece
    is in 4/4.

    Times are in ticks and in seconds; a quarter note of piece i has `ticks_per_quarter[i]` ticks.
    """

    offsets: IntArray
    onset: IntArray
    duration: IntArray  # at least 1
    onset_seconds: FloatArray
    end_seconds: FloatArray
    pitch: ByteArray
    velocity: ByteArray
    program: ByteArray
    is_drum: BoolArray
    track: TrackArray
    pedal_offsets: IntArray
    pedal_onset: IntArray
    pedal_end: IntArray
    pedal_onset_seconds: FloatArray
    pedal_end_seconds: FloatArray
    pedal_track: TrackArray
    tempo_offsets: IntArray
    tempo_tick: IntArray
    tempo_microseconds_per_quarter: FloatArray  # whole numbers 1,000 to 16,777,215 until time is stretched
    time_signature_offsets: IntArray
    time_signature_tick: IntArray
    time_signature_numerator: IntArray  # 1-255
    time_signature_denominator: IntArray  # a power of two
    key_signature_offsets: IntArray
    key_signature_tick: IntArray
    key_signature_sharps: IntArray  # 7 to -7 (seven flats)
    key_signature_is_minor: BoolArray
    ticks_per_quarter: IntArray  # [P]
    n_tracks: IntArray  # [P]

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
    def of(cls, columns: Mapping[str, Any]) -> "NoteBatch":
        """Return the batch of all these columns, each as the type that it has here."""
        return cls(**{name: np.asarray(columns[name], kind_of(name)) for name in ALL_COLUMNS})

    @classmethod
    def joined(cls, batches: "Iterable[NoteBatch]") -> "NoteBatch":
        """Lay the pieces of batches end to end."""
        parts = list(batches)
        columns = {}
        for name in ALL_COLUMNS:
            values = [getattr(part, name) for part in parts]
            if name.endswith("offsets"):
                columns[name] = offsets_of(np.concatenate([np.zeros(0, np.int64), *map(np.diff, values)]))
            else:
                columns[name] = np.concatenate([np.zeros(0, kind_of(name)), *values], dtype=kind_of(name))
        return cls(**columns)

    def pieces(self, first: int, last: int) -> "NoteBatch":
        """Return pieces `first` (included) to `last` (excluded) as a batch of views, without a copy of the notes."""
        parts: dict[str, Any] = {name: getattr(self, name)[first:last] for name in PIECE_COLUMNS}
        for owner, names in COLUMNS.items():
            borders = getattr(self, f"{owner}offsets")[first : last + 1]
            parts[f"{owner}offsets"] = borders - borders[0]
            for name in names:
                parts[name] = getattr(self, name)[borders[0] : borders[-1]]
        return NoteBatch(**parts)

    def blocks(self, n_notes: int) -> "Iterator[NoteBatch]":
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
        parts: dict[str, Any] = {name: getattr(self, name)[pieces] for name in PIECE_COLUMNS}
        for owner, names in COLUMNS.items():
            borders = getattr(self, f"{owner}offsets")
            lengths = np.diff(borders)[pieces]
            parts[f"{owner}offsets"] = offsets_of(lengths)
            places = np.repeat(borders[pieces] - parts[f"{owner}offsets"][:-1], lengths) + np.arange(lengths.sum())
            for name in names:
                parts[name] = getattr(self, name)[places]
        return NoteBatch(**parts)

    def where(self, stays: BoolArray) -> "NoteBatch":
        """Return the batch with only the notes of the mask bool[N]; pieces, pedals, tempos and meters stay."""
        n_left = np.bincount(self.piece_of_note[stays], minlength=self.n_pieces)
        return replace(self, offsets=offsets_of(n_left), **{name: getattr(self, name)[stays] for name in COLUMNS[""]})


OWNERS = ("pedal_", "tempo_", "time_signature_", "key_signature_", "")  # prefixes of columns with offsets of their own
PIECE_COLUMNS = ("ticks_per_quarter", "n_tracks")  # a value for each piece
ALL_COLUMNS = tuple(field.name for field in fields(NoteBatch))
_KINDS = {field.name: get_args(get_args(field.type)[1])[0] for field in fields(NoteBatch)}


def owner_of(column: str) -> str:
    """Return the prefix of the offsets that cut a column."""
    return next(owner for owner in OWNERS if column.startswith(owner))


COLUMNS = {
    owner: tuple(
        name
        for name in ALL_COLUMNS
        if owner_of(name) == owner and not name.endswith("offsets") and name not in PIECE_COLUMNS
    )
    for owner in OWNERS
}
NOTE_COLUMNS = ("onset", "duration", "pitch", "velocity", "program", "is_drum", "track")  # what decides the others


def kind_of(column: str) -> Any:
    """Return the NumPy type of a column."""
    return _KINDS[column]


def seconds_of(
    tick: IntArray,
    piece: IntArray,
    tempo_offsets: IntArray,
    tempo_tick: IntArray,
    tempo: IntArray | FloatArray,
    ticks_per_quarter: IntArray,
) -> FloatArray:
    """Return the time of each tick of some pieces; with whole tempos sums are exact, and rounded once.

    Args:
        tick: below 2**32.
        piece: whose tick it is, an index of `ticks_per_quarter`.
        tempo_offsets, tempo_tick, tempo: as in `NoteBatch`.
    """
    passed = np.zeros(len(tempo), tempo.dtype)
    passed[1:] = np.diff(tempo_tick) * tempo[:-1]
    passed[tempo_offsets[:-1][np.diff(tempo_offsets) > 0]] = 0
    passed = np.cumsum(passed)
    owner = np.repeat(np.arange(len(tempo_offsets) - 1), np.diff(tempo_offsets))
    place = np.searchsorted(owner << 32 | tempo_tick, piece << 32 | tick, side="right") - 1
    elapsed = passed[place] - passed[tempo_offsets[piece]] + (tick - tempo_tick[place]) * tempo[place]
    return elapsed / (ticks_per_quarter[piece] * 1e6)
