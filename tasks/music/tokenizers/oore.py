"""The event vocabulary of the Music Transformer: note-on, note-off, time shift and velocity.

Source: Oore et al. 2018, "This Time with Feeling"; the ids are those of the Music Transformer by spectraldoy.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from tasks.errors import ConfigError
from tasks.music.arrays import BoolArray, IntArray, offsets_of
from tasks.music.compiled import njit
from tasks.music.notes import NoteBatch
from tasks.music.score import Score, build_score
from tasks.music.tokenizers.base import TokenArray, TokenBatch, Tokenizer, until_end
from tasks.music.tokenizers.grammar import Grammar
from tasks.music.tokenizers.loops import to_unit
from tasks.music.transforms import apply_sustain

SHIFT_MAX = 125  # units in the longest time shift
PAD, NOTE_ON, NOTE_OFF, TIME_SHIFT, SET_VELOCITY, START, END = 0, 1, 129, 257, 382, 414, 415
VOCAB_SIZE = 416


@dataclass(frozen=True, kw_only=True, slots=True)
class OoreConfig:
    """Settings of the tokenizer.

    Args:
        sustain: let notes ring under the sustain pedal before they are encoded.
        drums: drop drum notes, keep them among the others, or keep them in pieces that hold nothing else.
        units_per_second: of the time shifts; 125 are 8 ms each, more are finer and make long silences longer.
    """

    name: Literal["oore"] = "oore"
    sustain: bool = True
    drums: Literal["drop", "keep", "if_alone"] = "if_alone"
    units_per_second: Literal[125, 250, 500, 1000] = 125


class OoreTokenizer(Tokenizer):
    """Turns notes into the 416 events and back; time runs in units of mostly 8 ms, velocity in 32 bins of 4.

    Ids have names such as `note_on_60`; `time_shift_59` moves by 60 units.
    """

    name = "oore"
    names = (
        "<pad>",
        *(f"note_on_{pitch}" for pitch in range(128)),
        *(f"note_off_{pitch}" for pitch in range(128)),
        *(f"time_shift_{units}" for units in range(SHIFT_MAX)),
        *(f"set_velocity_{velocity}" for velocity in range(32)),
        "<start>",
        "<end>",
    )
    vocab_size = VOCAB_SIZE
    pad_id = PAD
    start_id = START
    end_id = END
    knows_drums = False

    def __init__(self, config: OoreConfig = OoreConfig()) -> None:
        self.config = config
        self.units_per_second = float(config.units_per_second)
        self.grammar = _build_grammar()

    def encode_block(self, batch: NoteBatch) -> TokenBatch:
        """Encode whole pieces, each from <start> to <end>.

        Times are rounded to units one by one, so no error adds up and every event is within half a unit. Of two notes
        that begin in one unit on one pitch, the louder velocity and the later end are kept. Silence before the first
        note is encoded, silence after the last event is not.

        Counted in `dropped`, in notes: drums, left out; program_changed, of another instrument than a piano, kept drums
        included; unison_merged; restrike_shortened, ended where the pitch is struck again.
        """
        if self.config.sustain:
            batch = apply_sustain(batch)
        units = self.config.units_per_second
        unit_bits = int(batch.end_seconds.max(initial=0.0) * units + 1).bit_length()
        if batch.n_pieces.bit_length() + unit_bits + _MOMENT_BIT > 63:
            longest = batch.end_seconds.max()
            raise ConfigError(f"{batch.n_pieces} pieces of up to {longest:g} s do not fit into one sort key of 63 bits")
        keys, counts = np.empty(2 * batch.n_notes, np.int64), np.zeros((batch.n_pieces, 4), np.int64)
        n_keys = _write_keys(
            batch.offsets, batch.onset_seconds, batch.end_seconds, batch.pitch, batch.velocity, batch.is_drum,
            _DRUMS.index(self.config.drums), units, unit_bits, keys, counts,
        )  # fmt: skip
        keys = np.sort(keys[:n_keys])
        n_notes, drums, merged, shortened = counts.T
        n_tokens, last_unit = np.empty((2, batch.n_pieces), np.int64)
        _count_tokens(keys, n_notes, unit_bits, n_tokens, last_unit)
        offsets = offsets_of(n_tokens)
        ids = np.empty(int(offsets[-1]), np.uint16)
        _write_tokens(keys, n_notes, unit_bits, ids)
        others = np.cumsum((batch.program != 0) | batch.is_drum)  # all comes back as a piano
        changed = np.diff(np.append(0, others)[batch.offsets]) - drums
        dropped = {
            "drums": drums, "program_changed": changed, "unison_merged": merged, "restrike_shortened": shortened,
        }  # fmt: skip
        return TokenBatch(offsets, ids, n_notes, last_unit / units, dropped)

    def decode(self, ids: ArrayLike) -> Score:
        """Return the music of one piece of tokens, up to the first <end>; a tick is 1 ms.

        Forgiving with what a model may write: a note-off of a silent pitch is ignored, a pitch struck again ends the
        note before, and what still sounds at the end of the tokens ends there. Velocity is 4 × bin, and 2 for bin 0.

        Raises:
            ValueError: an id outside 0-415.
        """
        tokens = until_end(ids, VOCAB_SIZE, END)
        milliseconds = 1000 // self.config.units_per_second
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
        onset = time[places] * milliseconds
        notes = {
            "onset": onset,
            "duration": np.maximum(end_time[is_on] * milliseconds - onset, 1),
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
        tokens = np.ascontiguousarray(ids, np.uint16)
        moved = np.empty_like(tokens)
        return moved if _move_notes(tokens, semitones, moved) else None


# A note event as one integer, from its highest bits down: piece, unit, kind, pitch, velocity bin. Sorted, the integers
# are the events in order. Kind 0 ends an earlier note, 1 begins a note, 2 ends a note of no length.
_MOMENT_BIT, _KIND_BIT, _PITCH_BIT = 14, 12, 5
_ON_KEY = 1 << _KIND_BIT
_DRUMS = ("keep", "drop", "if_alone")


@njit(cache=True, nogil=True)
def _write_keys(offsets, onset, end, pitch, velocity, is_drum, drums, units_per_second, unit_bits, keys, counts):
    """Write two events for each note and return their number; notes of a piece come in order of onset.

    Notes that share pitch and unit become one, and a note ends where its pitch is struck again.

    Args:
        counts: int64[P, 4], gets notes kept, drums left out, notes merged into another, notes shortened.
    """
    place_of, onset_of, end_of = np.empty(128, np.int64), np.empty(128, np.int64), np.empty(128, np.int64)
    n_keys = 0
    for piece in range(len(offsets) - 1):
        first, last = offsets[piece], offsets[piece + 1]
        drops_drums = drums == 1 or (drums == 2 and not is_drum[first:last].all())
        place_of[:] = -1
        for note in range(first, last):
            if drops_drums and is_drum[note]:
                counts[piece, 1] += 1
                continue
            begins, ends = to_unit(onset[note], units_per_second), to_unit(end[note], units_per_second)
            key, loudness, place = np.int64(pitch[note]), np.int64(velocity[note] >> 2), place_of[pitch[note]]
            if place >= 0 and onset_of[key] == begins:
                counts[piece, 2] += 1
                loudness = max(loudness, keys[place] & 31)
                ends = max(ends, end_of[key])
            else:
                if place >= 0 and end_of[key] > begins:
                    counts[piece, 3] += 1
                    keys[place + 1] = (piece << unit_bits | begins) << _MOMENT_BIT | key << _PITCH_BIT
                counts[piece, 0] += 1
                place, n_keys = n_keys, n_keys + 2
            place_of[key], onset_of[key], end_of[key] = place, begins, ends
            off_kind = 2 if ends == begins else 0
            keys[place] = (piece << unit_bits | begins) << _MOMENT_BIT | _ON_KEY | key << _PITCH_BIT | loudness
            keys[place + 1] = (piece << unit_bits | ends) << _MOMENT_BIT | off_kind << _KIND_BIT | key << _PITCH_BIT
    return n_keys


@njit(cache=True, nogil=True)
def _count_tokens(keys, n_notes, unit_bits, n_tokens, last_unit):
    """Write the tokens that each piece takes, and the unit of its last event."""
    mask, at = (1 << unit_bits) - 1, 0
    for piece in range(len(n_notes)):
        now, n = 0, 2
        for _ in range(2 * n_notes[piece]):
            unit = keys[at] >> _MOMENT_BIT & mask
            n += (unit - now + (SHIFT_MAX - 1)) // SHIFT_MAX + 1 + (keys[at] >> _KIND_BIT & 1)
            now = unit
            at += 1
        n_tokens[piece], last_unit[piece] = n, now


@njit(cache=True, nogil=True)
def _write_tokens(keys, n_notes, unit_bits, ids):
    mask, at, n = (1 << unit_bits) - 1, 0, 0
    for piece in range(len(n_notes)):
        ids[n] = START
        n += 1
        now = 0
        for _ in range(2 * n_notes[piece]):
            key = keys[at]
            unit = key >> _MOMENT_BIT & mask
            while unit - now > SHIFT_MAX:
                ids[n] = TIME_SHIFT + SHIFT_MAX - 1
                n += 1
                now += SHIFT_MAX
            if unit > now:
                ids[n] = unit - now + (TIME_SHIFT - 1)
                n += 1
                now = unit
            if key & _ON_KEY:
                ids[n], ids[n + 1] = SET_VELOCITY + (key & 31), NOTE_ON + (key >> _PITCH_BIT & 127)
                n += 2
            else:
                ids[n] = NOTE_OFF + (key >> _PITCH_BIT & 127)
                n += 1
            at += 1
        ids[n] = END
        n += 1


@njit(cache=True, nogil=True)
def _move_notes(ids, semitones, moved):
    """Write the tokens with every note moved; tell whether all of them stay within 0-127."""
    fits = True
    for place in range(len(ids)):
        token = int(ids[place])
        is_note = (token >= NOTE_ON) & (token < TIME_SHIFT)
        pitch = ((token - NOTE_ON) & 127) + semitones
        fits &= ~is_note | ((pitch >= 0) & (pitch <= 127))
        moved[place] = token + semitones * is_note
    return fits


def _latest(values: IntArray, is_set: BoolArray) -> IntArray:
    """Return for each place the value at the last set place up to it; before the first, that of place 0."""
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
