"""The event vocabulary of the Music Transformer: note-on, note-off, time shift and velocity.

Source: Oore et al. 2018, "This Time with Feeling"; the ids are those of the Music Transformer by spectraldoy.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from tasks.errors import ConfigError
from tasks.music.grammar import Grammar
from tasks.music.notes import BoolArray, FloatArray, IntArray, NoteBatch, offsets_of, order_by_voice
from tasks.music.score import Score, build_score
from tasks.music.tokenizers.base import BLOCK_NOTES, TokenArray, TokenBatch, digest_of, until_end
from tasks.music.transforms import apply_sustain

UNITS_PER_SECOND = 125  # one unit is 8 ms
SHIFT_MAX = 125  # units in the longest time shift
PAD, NOTE_ON, NOTE_OFF, TIME_SHIFT, SET_VELOCITY, START, END = 0, 1, 129, 257, 382, 414, 415
VOCAB_SIZE = 416


@dataclass(frozen=True, kw_only=True, slots=True)
class OoreConfig:
    """Settings of the tokenizer.

    Args:
        sustain: let notes ring under the sustain pedal before they are encoded.
        drums: drop drum notes, keep them among the others, or keep them in pieces that hold nothing else.
    """

    name: Literal["oore"] = "oore"
    sustain: bool = True
    drums: Literal["drop", "keep", "if_alone"] = "if_alone"


class OoreTokenizer:
    """Turns notes into the 416 events and back; time runs in units of 8 ms, velocity in 32 bins of 4."""

    name = "oore"
    vocab_size = VOCAB_SIZE
    pad_id = PAD
    start_id = START
    end_id = END
    units_per_second = UNITS_PER_SECOND

    def __init__(self, config: OoreConfig = OoreConfig()) -> None:
        self.config = config
        self.grammar = _build_grammar()
        self.digest = digest_of(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Return everything that decides what the ids mean, ready for JSON."""
        return {**asdict(self.config), "vocab_size": VOCAB_SIZE, "units_per_second": UNITS_PER_SECOND, "revision": 1}

    def token_name(self, token: int) -> str:
        """Return the name of an id, such as `note_on_60`; `time_shift_59` moves by 60 units."""
        if not 0 <= token < VOCAB_SIZE:
            raise ValueError(f"token {token} outside 0-{VOCAB_SIZE - 1}")
        return _NAMES[token]

    def token_id(self, name: str) -> int:
        """Return the id of a name."""
        if name not in _IDS:
            raise ValueError(f"no token is named {name!r}")
        return _IDS[name]

    def encode(self, batch: NoteBatch) -> TokenBatch:
        """Encode whole pieces, each from <start> to <end>.

        Times are rounded to units one by one, so no error adds up and every event is within 4 ms. Of two notes that
        begin in one unit on one pitch, the louder velocity and the later end are kept. Silence before the first note
        is encoded, silence after the last event is not.
        """
        return TokenBatch.joined(self._encode_block(block) for block in batch.blocks(BLOCK_NOTES))

    def _encode_block(self, batch: NoteBatch) -> TokenBatch:
        if self.config.sustain:
            batch = apply_sustain(batch)
        is_kept = _kept(batch, self.config.drums)
        piece = batch.piece_of_note
        dropped = {"drums": np.bincount(piece[~is_kept], minlength=batch.n_pieces)}
        notes = _Notes(
            piece[is_kept],
            batch.pitch[is_kept].astype(np.int64),
            batch.velocity[is_kept].astype(np.int64) >> 2,
            to_units(batch.onset_seconds[is_kept]),
            to_units(batch.end_seconds[is_kept]),
        )
        n_offered = np.bincount(notes.piece, minlength=batch.n_pieces)
        notes, is_cut = _one_note_per_pitch(notes)
        n_notes = np.bincount(notes.piece, minlength=batch.n_pieces)
        dropped["unison_merged"] = n_offered - n_notes
        dropped["restrike_shortened"] = np.bincount(notes.piece[is_cut], minlength=batch.n_pieces)
        offsets, ids, last_unit = _write_events(notes, batch.n_pieces)
        return TokenBatch(offsets, ids, n_notes, last_unit / UNITS_PER_SECOND, dropped)

    def decode(self, ids: ArrayLike) -> Score:
        """Return the music of one piece of tokens, up to the first <end>; a tick is 1 ms.

        Forgiving with what a model may write: a note-off of a silent pitch is ignored, a pitch struck again ends the
        note before, and what still sounds at the end of the tokens ends there. Velocity is 4 × bin, and 2 for bin 0.

        Raises:
            ValueError: an id outside 0-415.
        """
        tokens = until_end(ids, VOCAB_SIZE, END)
        is_shift = (tokens >= TIME_SHIFT) & (tokens < SET_VELOCITY)
        time = np.cumsum(np.where(is_shift, tokens - (TIME_SHIFT - 1), 0))
        is_velocity = (tokens >= SET_VELOCITY) & (tokens < START)
        velocity = _latest(np.where(is_velocity, np.maximum((tokens - SET_VELOCITY) * 4, 2), 64), is_velocity)
        places = np.flatnonzero((tokens >= NOTE_ON) & (tokens < TIME_SHIFT))
        pitch = (tokens[places] - NOTE_ON) % 128
        order = np.argsort(pitch, kind="stable")  # by pitch, and in time within a pitch: each event ends the one before
        places, pitch = places[order], pitch[order]
        end_time = np.full(len(places), time[-1] if len(time) else 0)
        is_followed = np.flatnonzero(np.diff(pitch) == 0)
        end_time[is_followed] = time[places[is_followed + 1]]
        is_on = tokens[places] < NOTE_OFF
        places, pitch = places[is_on], pitch[is_on]
        onset = time[places] * (1000 // UNITS_PER_SECOND)
        notes = {
            "onset": onset,
            "duration": np.maximum(end_time[is_on] * (1000 // UNITS_PER_SECOND) - onset, 1),
            "pitch": pitch,
            "velocity": velocity[places],
            "program": np.zeros(len(places), dtype=np.uint8),
            "is_drum": np.zeros(len(places), dtype=np.bool_),
            "track": np.zeros(len(places), dtype=np.uint16),
        }
        return build_score(500, notes)

    def transpose_ids(self, ids: ArrayLike, semitones: int) -> TokenArray | None:
        """Move every note event by `semitones`; None where one would leave 0-127.

        It moves all notes: a piece of drums, which has no key, should not be given to it.
        """
        tokens = np.asarray(ids).astype(np.int64)
        is_note = (tokens >= NOTE_ON) & (tokens < TIME_SHIFT)
        pitch = (tokens[is_note] - NOTE_ON) % 128
        if len(pitch) and not 0 <= pitch.min() + semitones <= pitch.max() + semitones <= 127:
            return None
        return (tokens + np.where(is_note, semitones, 0)).astype(np.uint16)


def to_units(seconds: FloatArray) -> IntArray:
    """Round times in seconds to units of 8 ms, halves up."""
    # A tick on the half is stored a hair off it; a nanosecond of grace keeps 4 ms at 1 unit for every tempo.
    return np.floor(seconds * UNITS_PER_SECOND + (0.5 + 1e-9 * UNITS_PER_SECOND)).astype(np.int64)


def cut_shift(milliseconds: int) -> list[int]:
    """Return the lengths in units of the time shifts that stand for a silence: 125s and a rest."""
    n_full, rest = divmod((milliseconds + 4) // 8, SHIFT_MAX)
    return [SHIFT_MAX] * n_full + [rest] * (rest > 0)


@dataclass(frozen=True, slots=True)
class _Notes:
    piece: IntArray
    pitch: IntArray
    velocity_bin: IntArray
    onset: IntArray  # units
    end: IntArray

    def __getitem__(self, chosen: IntArray | BoolArray) -> "_Notes":
        return _Notes(
            self.piece[chosen], self.pitch[chosen], self.velocity_bin[chosen], self.onset[chosen], self.end[chosen]
        )


def _kept(batch: NoteBatch, drums: str) -> BoolArray:
    if drums == "keep" or not batch.is_drum.any():
        return np.ones(batch.n_notes, dtype=np.bool_)
    if drums == "drop":
        return ~batch.is_drum
    piece = batch.piece_of_note
    has_pitched = np.bincount(piece[~batch.is_drum], minlength=batch.n_pieces) > 0
    return ~batch.is_drum | ~has_pitched[piece]


def _one_note_per_pitch(notes: _Notes) -> tuple[_Notes, BoolArray]:
    """Merge notes that share piece, pitch and unit, and end each note where its pitch is struck again.

    Returns:
        notes sorted by (piece, pitch, onset), and which of them were cut by the next one.
    """
    voice = notes.piece << 7 | notes.pitch
    order = order_by_voice(voice, notes.onset)
    notes, voice = notes[order], voice[order]
    is_first = np.ones(len(voice), dtype=np.bool_)
    is_first[1:] = (voice[1:] != voice[:-1]) | (notes.onset[1:] != notes.onset[:-1])
    if not is_first.all():
        first = np.flatnonzero(is_first)
        loudest, latest = np.maximum.reduceat(notes.velocity_bin, first), np.maximum.reduceat(notes.end, first)
        notes, voice = _Notes(notes.piece[first], notes.pitch[first], loudest, notes.onset[first], latest), voice[first]
    is_cut = np.zeros(len(voice), dtype=np.bool_)
    is_cut[:-1] = (voice[1:] == voice[:-1]) & (notes.onset[1:] < notes.end[:-1])
    ends = notes.end.copy()
    ends[:-1][is_cut[:-1]] = notes.onset[1:][is_cut[:-1]]
    return _Notes(notes.piece, notes.pitch, notes.velocity_bin, notes.onset, ends), is_cut


def _write_events(notes: _Notes, n_pieces: int) -> tuple[IntArray, TokenArray, IntArray]:
    """Return token offsets, ids, and the unit of the last event of each piece."""
    keys, unit_bits = _event_keys(notes, n_pieces)
    n_events = 2 * np.bincount(notes.piece, minlength=n_pieces)
    has_events = np.flatnonzero(n_events)
    last = (np.cumsum(n_events) - 1)[has_events]
    first = last - n_events[has_events] + 1
    moment = keys >> _MOMENT_BIT
    shift = np.diff(moment, prepend=0)
    shift[first] = moment[first] & ((1 << unit_bits) - 1)
    n_shifts = (shift + (SHIFT_MAX - 1)) // SHIFT_MAX
    is_on = (keys & _ON_KEY) != 0
    n_tokens = n_shifts + 1 + is_on
    # <start> and <end> of every piece so far stand before the first event of a piece; so the sum runs over them too.
    n_tokens[first] += np.diff(2 * has_events + 1, prepend=0)
    ends = np.cumsum(n_tokens)  # place behind the last token of each event
    lengths = np.full(n_pieces, 2)
    starts = np.append(0, ends[last[:-1]]) + np.diff(2 * has_events + 1, prepend=0) if len(first) else first
    lengths[has_events] += ends[last] - starts
    offsets = offsets_of(lengths)
    ids = np.full(int(offsets[-1]), TIME_SHIFT + SHIFT_MAX - 1, dtype=np.uint16)
    ids[offsets[:-1]], ids[offsets[1:] - 1] = START, END
    ids[ends - 1] = (keys >> _PITCH_BIT & 127) + np.where(is_on, NOTE_ON, NOTE_OFF)
    ids[ends[is_on] - 2] = (keys[is_on] & 31) + SET_VELOCITY
    moved = np.flatnonzero(n_shifts)
    rest = shift[moved] - (n_shifts[moved] - 1) * SHIFT_MAX
    ids[ends[moved] - 2 - is_on[moved]] = rest + (TIME_SHIFT - 1)
    last_unit = np.zeros(n_pieces, dtype=np.int64)
    last_unit[has_events] = moment[last] & ((1 << unit_bits) - 1)
    return offsets, ids, last_unit


# A note event as one integer, from its highest bits down: piece, unit, kind, pitch, velocity bin. Sorted, the integers
# are the events in order. Kind 0 ends an earlier note, 1 begins a note, 2 ends a note of no length.
_MOMENT_BIT, _KIND_BIT, _PITCH_BIT = 14, 12, 5
_ON_KEY = 1 << _KIND_BIT


def _event_keys(notes: _Notes, n_pieces: int) -> tuple[IntArray, int]:
    """Return the sorted events, and how many bits of them the unit takes."""
    unit_bits = int(notes.end.max(initial=0)).bit_length()
    if n_pieces.bit_length() + unit_bits + _MOMENT_BIT > 63:
        raise ConfigError(f"{n_pieces} pieces of up to {notes.end.max()} units of 8 ms do not fit into one sort key")
    piece, pitch = notes.piece << unit_bits, notes.pitch << _PITCH_BIT
    off_kind = (notes.end == notes.onset).astype(np.int64) << (_KIND_BIT + 1)
    n_notes = len(pitch)
    keys = np.empty(2 * n_notes, dtype=np.int64)
    keys[:n_notes] = (piece | notes.onset) << _MOMENT_BIT | pitch | notes.velocity_bin | _ON_KEY
    keys[n_notes:] = (piece | notes.end) << _MOMENT_BIT | pitch | off_kind
    keys.sort()
    return keys, unit_bits


def _latest(values: IntArray, is_set: BoolArray) -> IntArray:
    """For every place, the value at the last set place up to it; the value of place 0 before the first."""
    return values[np.maximum.accumulate(np.where(is_set, np.arange(len(values)), 0))] if len(values) else values


def _build_grammar() -> Grammar:
    """States: 0 before <start>, 1 between events, 2 after set_velocity (a note-on must follow), 3 after <end>."""
    next_state = np.full((4, VOCAB_SIZE), -1, dtype=np.int16)
    next_state[0, START] = 1
    next_state[1, NOTE_OFF:SET_VELOCITY] = 1
    next_state[1, SET_VELOCITY:START] = 2
    next_state[1, END] = 3
    next_state[2, NOTE_ON:NOTE_OFF] = 1
    next_state[3, PAD] = 3
    opens, closes = np.full((2, VOCAB_SIZE), -1, dtype=np.int16)
    opens[NOTE_ON:NOTE_OFF] = closes[NOTE_OFF:TIME_SHIFT] = np.arange(128)
    needs_all_closed = np.zeros(VOCAB_SIZE, dtype=np.bool_)
    needs_all_closed[END] = True
    units = np.zeros(VOCAB_SIZE, dtype=np.int16)
    units[TIME_SHIFT:SET_VELOCITY] = np.arange(1, SHIFT_MAX + 1)
    return Grammar(next_state, opens, closes, needs_all_closed, units, n_slots=128)


_NAMES = [
    "<pad>",
    *(f"note_on_{pitch}" for pitch in range(128)),
    *(f"note_off_{pitch}" for pitch in range(128)),
    *(f"time_shift_{units}" for units in range(SHIFT_MAX)),
    *(f"set_velocity_{velocity}" for velocity in range(32)),
    "<start>",
    "<end>",
]
_IDS = {name: token for token, name in enumerate(_NAMES)}
