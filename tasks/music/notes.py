"""Notes of many pieces at once as flat arrays: the form in which transforms and tokenizers see music."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tasks.music.score import Score  # for names only: a worker that reads note tables never loads symusic

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
ByteArray = NDArray[np.uint8]
TrackArray = NDArray[np.uint16]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class NoteBatch:
    """P pieces with N notes and Q pedal spans in all; piece i owns notes `offsets[i]:offsets[i + 1]`.

    Notes of a piece stand in order of onset. Pitch and program are 0-127, velocity 1-127; `track` is the index of
    the source part inside its piece, and the pedal spans of the same track apply to it. Pedal spans of one track do
    not overlap and hold sustain from `pedal_onset_seconds` to `pedal_end_seconds`.
    """

    offsets: IntArray
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

    @property
    def piece_of_pedal(self) -> IntArray:
        """Index of the piece of each pedal span, int64[Q]."""
        return np.repeat(np.arange(self.n_pieces), np.diff(self.pedal_offsets))

    @classmethod
    def from_scores(cls, scores: "Sequence[Score]") -> "NoteBatch":
        """Lay the notes and pedal spans of `scores` end to end, one piece for each score."""
        notes, pedals = [score.notes for score in scores], [score.pedals for score in scores]
        return cls(
            offsets=offsets_of([len(part.pitch) for part in notes]),
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
        )

    def pieces(self, first: int, last: int) -> "NoteBatch":
        """Return pieces `first` (included) to `last` (excluded) as a batch of views, without a copy of the notes."""
        notes = slice(int(self.offsets[first]), int(self.offsets[last]))
        pedals = slice(int(self.pedal_offsets[first]), int(self.pedal_offsets[last]))
        parts: dict[str, Any] = {}
        for field in fields(self):
            values = getattr(self, field.name)
            if field.name.endswith("offsets"):
                parts[field.name] = values[first : last + 1] - values[first]
            else:
                parts[field.name] = values[pedals if field.name.startswith("pedal") else notes]
        return NoteBatch(**parts)


def offsets_of(lengths: Sequence[int] | IntArray) -> IntArray:
    """Return the borders of runs of these lengths: int64[len + 1], starting with 0."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def order_by_voice(voice: IntArray, onset: NDArray[Any]) -> IntArray:
    """Return the order by (voice, onset); fast where the rows of a voice stand in order of onset already.

    Args:
        voice: int64[N], 0 or more, such as piece × 128 + pitch.
        onset: times of any kind.
    """
    is_small = len(voice) and voice.max() <= 0xFFFF
    order = np.argsort(voice.astype(np.uint16) if is_small else voice, kind="stable")  # 16 bits: in linear time
    in_order, voice = onset[order], voice[order]
    if np.any((in_order[1:] < in_order[:-1]) & (voice[1:] == voice[:-1])):
        order = order[np.lexsort([in_order, voice])]
    return order


def _joined(parts: Sequence[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    return np.concatenate(parts).astype(dtype, copy=False) if parts else np.zeros(0, dtype)
