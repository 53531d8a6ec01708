"""The integer encoding of Optimus VIRTUOSO: a group of numbers for each note, all of them in one range of ids.

A group is time since the note before, duration and pitch, with instruments also channel and velocity, and a separator.
Source: Optimus VIRTUOSO (2021), Relative Global Attention edition; ids and groups are its own, but every note stands
once, is timed from the note before, and no gap is lost.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from tasks.music.arrays import BoolArray, IntArray, offsets_of
from tasks.music.compiled import njit
from tasks.music.midi.writer import DRUM_CHANNEL
from tasks.music.notes import NoteBatch
from tasks.music.score import Score
from tasks.music.tokenizers.base import TokenArray, TokenBatch, Tokenizer, require_ids, until_end
from tasks.music.tokenizers.grammar import Grammar
from tasks.music.tokenizers.optimus.rows import (
    OFFSET,
    RowRules,
    Rows,
    arrange_rows,
    build_rows_score,
    check_settings,
    fields_of,
    programs_of_channels,
)
from tasks.music.tokenizers.optimus.value_states import ValueStates, looked_up

START, SEPARATOR, END, PAD = 0, 10, 388, 389
VOCAB_SIZE = 390
_SPECIAL = {START: "<start>", SEPARATOR: "<separator>", END: "<end>", PAD: "<pad>"}
LONGEST = END - 1 - OFFSET  # units: the highest value, 354
MAX_REPEATS = 16  # a file of notes that last for hours must not become a thousand times its size

_REASONS = ("drums", "program_changed", "channels_shared", "long_notes_clamped", "long_notes_split")


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimusIntConfig:
    """Settings of the tokenizer.

    Args:
        instruments: give each note its channel and velocity: 6 ids in place of 4. Without, all notes are a piano's.
        unit_milliseconds: 1-1000, of times and durations.
        long_notes: what becomes of notes of more than 354 units: "clamp" shortens them; "split" writes 354 units, and
            what is left as a group of the same pitch where that one ends. A group of 354 units is never the end of a
            note then: one of just 354 goes on for 0. What is longer than 16 such groups is shortened.
        sustain: let notes ring under the sustain pedal before they are encoded.
        drums: drop drum notes, keep them, or keep them where they do not turn into a piano: in pieces that hold
            nothing else and, on a channel of their own, with `instruments`.
        channels_by: the channel of a pitched note. "families": of the patch that stands for its program's family;
            "order": the first 15 parts of a piece have one each, further parts share the last. The channel decides
            on the program when decoding.
        velocity: 1-127, of decoded notes without `instruments`.
    """

    name: Literal["optimus_int"] = "optimus_int"
    instruments: bool = False
    unit_milliseconds: int = 10
    long_notes: Literal["clamp", "split"] = "clamp"
    sustain: bool = True
    drums: Literal["drop", "keep", "if_alone"] = "if_alone"
    channels_by: Literal["families", "order"] = "families"
    velocity: int = 90

    def __post_init__(self) -> None:
        check_settings(self.unit_milliseconds, self.velocity)


class OptimusIntTokenizer(Tokenizer):
    """Turns notes into groups of integers and back; the id of a value is value + 33, and 10 ends a group.

    Ids have names such as `value_60`; no encoding writes the ids named `unused_...`.

    Attributes:
        value_states: where ids are pitches and programs.
        together_id: says that a note begins with the one before, and nothing else but a pitch of 0; None: no id does.
    """

    name = "optimus_int"
    names = tuple(
        _SPECIAL.get(token) or (f"value_{token - OFFSET}" if token >= OFFSET else f"unused_{token}")
        for token in range(VOCAB_SIZE)
    )
    vocab_size = VOCAB_SIZE
    pad_id = PAD
    start_id = START
    end_id = END

    def __init__(self, config: OptimusIntConfig = OptimusIntConfig()) -> None:
        self.config = config
        self.knows_drums = config.instruments
        self.units_per_second = 1000 / config.unit_milliseconds
        self.grammar, self.value_states = _build_grammar(config)
        self.together_id = None if config.instruments or config.long_notes == "split" else OFFSET
        self._width = _WIDTH_OF_INSTRUMENTS if config.instruments else _WIDTH_OF_PIANO
        self._rules = RowRules(
            unit_milliseconds=config.unit_milliseconds,
            velocities=config.instruments,
            channels=config.instruments,
            channels_by=config.channels_by,
            drums=config.drums,
            sustain=config.sustain,
            max_duration=LONGEST,
            max_repeats=MAX_REPEATS if config.long_notes == "split" else 0,
        )

    def to_json(self) -> dict[str, Any]:
        """Return everything that decides what the ids mean, ready for JSON."""
        return super().to_json() | {"units_per_second": self.units_per_second}

    def encode_block(self, batch: NoteBatch) -> TokenBatch:
        """Encode whole pieces, each from <start> to <end>.

        Onsets and ends are rounded to units one by one, so no error adds up. Notes are in order of onset, at one onset
        from the highest pitch down, drums last. A gap of more than 354 units begins with groups of nothing but a time;
        notes after such a gap are counted as `long_gaps_split`, though nothing of them is lost.
        """
        rows = arrange_rows(batch, self._rules)
        offsets, ids, n_gaps = _write_groups(rows, self.config.instruments)
        dropped = {reason: rows.counts[reason] for reason in _REASONS} | {"long_gaps_split": n_gaps}
        return TokenBatch(offsets, ids, rows.n_notes, rows.seconds, dropped)

    def decode(self, ids: ArrayLike) -> Score:
        """Return the music of one piece of tokens, up to the first <end>; a tick is 1 ms.

        Forgiving with what a model may write: groups of another length are left out with their time, notes with a
        pitch or channel that does not exist leave only their time; the score counts both in `dropped`.

        Raises:
            ValueError: an id outside 0-389.
        """
        tokens = until_end(ids, VOCAB_SIZE, END)
        groups = _find_groups(tokens, self._width)
        onset = np.cumsum(groups.delta)[groups.is_note]
        values = tokens[groups.places] - OFFSET
        if self.config.instruments:
            _, duration, channel, pitch, velocity = values.T
        else:
            _, duration, pitch = values.T
            channel, velocity = np.zeros_like(pitch), np.full_like(pitch, self.config.velocity)
        if self.config.long_notes == "split":
            duration, is_whole = _tie(onset, duration, pitch << 18 | channel << 9 | velocity)
            notes = (onset, duration, pitch, velocity, channel)
            onset, duration, pitch, velocity, channel = (column[is_whole] for column in notes)
        dropped = {"malformed_groups": groups.n_malformed}
        return build_rows_score(onset, duration, pitch, velocity, channel, self.config.unit_milliseconds, dropped)

    def transpose_ids(self, ids: ArrayLike, semitones: int) -> TokenArray | None:
        """Move the pitch of every note but the drums on their channel; None where one would leave 0-127.

        Without `instruments`, drums that were kept look like all others: a piece with some should not be given to it.
        """
        tokens = require_ids(ids, VOCAB_SIZE)
        places = _find_groups(tokens, self._width).places
        if self.config.instruments:
            places = places[tokens[places[:, 2]] != DRUM_CHANNEL + OFFSET]
        places = places[:, 3 if self.config.instruments else 2]
        pitch = tokens[places] - OFFSET
        if len(pitch) and not 0 <= pitch.min() + semitones <= pitch.max() + semitones <= 127:
            return None
        tokens[places] += semitones
        return tokens.astype(np.uint16)


@dataclass(frozen=True, slots=True, eq=False)
class _Groups:
    """The well-formed groups among ids, in order: notes, and rests of nothing but a time.

    Args:
        delta: int64[G], units.
        is_note: bool[G].
        places: int64[N, width], places of the values of the notes.
        n_malformed: groups of another length.
    """

    delta: IntArray
    is_note: BoolArray
    places: IntArray
    n_malformed: int


def _find_groups(tokens: IntArray, width: int) -> _Groups:
    group = np.cumsum(tokens == SEPARATOR)
    places = np.flatnonzero((tokens >= OFFSET) & (tokens < END))
    sizes = np.bincount(group[places])
    size = sizes[group[places]]
    is_head = np.diff(group[places], prepend=-1) != 0
    heads = is_head & ((size == width) | (size == 1))
    return _Groups(
        delta=tokens[places[heads]] - OFFSET,
        is_note=size[heads] == width,
        places=places[size == width].reshape(-1, width),
        n_malformed=int(np.count_nonzero((sizes != 0) & (sizes != 1) & (sizes != width))),
    )


def _tie(onset: IntArray, duration: IntArray, voice: IntArray) -> tuple[IntArray, BoolArray]:
    """Lengthen each note of 354 units by the note of its voice that begins where it ends.

    Returns:
        durations, and which notes are not the rest of another one.
    """
    key = voice << 32 | onset
    order = np.argsort(key, kind="stable")
    key, tied = key[order], duration[order]
    is_whole = np.ones(len(order), np.bool_)
    long = np.flatnonzero(tied == LONGEST)
    # Of several that end at one time, the first goes on with the first that begins there, and so on.
    rank = np.arange(len(long)) - np.searchsorted(key[long], key[long])
    rest = np.searchsorted(key, key[long] + LONGEST) + rank
    goes_on = rest < len(key)
    goes_on[goes_on] = key[rest[goes_on]] == key[long[goes_on]] + LONGEST
    for place, following in zip(long[goes_on][::-1].tolist(), rest[goes_on][::-1].tolist(), strict=True):
        tied[place] += tied[following]
        is_whole[order[following]] = False
    durations = np.empty_like(duration)
    durations[order] = tied
    return durations, is_whole


def _write_groups(rows: Rows, instruments: bool) -> tuple[IntArray, TokenArray, IntArray]:
    """Return token offsets, ids, and the number of notes of each piece that come after a rest."""
    rests = np.maximum(rows.delta - 1, 0) // LONGEST
    n_rests, n_gaps = (np.diff(offsets_of(counts)[rows.offsets]) for counts in (rests, (rests > 0).astype(np.int64)))
    head = _HEAD_OF_INSTRUMENTS if instruments else _HEAD_OF_PIANO
    width = _WIDTH_OF_INSTRUMENTS if instruments else _WIDTH_OF_PIANO
    offsets = offsets_of(len(head) + np.diff(rows.offsets) * (width + 1) + 2 * n_rests + 1)
    ids = np.empty(offsets[-1], np.uint16)
    _fill_groups(rows.offsets, rows.delta, rows.key, instruments, head, offsets, ids)
    return offsets, ids, n_gaps


_WIDTH_OF_PIANO, _WIDTH_OF_INSTRUMENTS = 3, 5  # values in a group
_HEAD_OF_PIANO = np.array([START], np.uint16)
_HEAD_OF_INSTRUMENTS = np.array([START, 0, 0, 0, 0, SEPARATOR], np.uint16)


@njit(cache=True, nogil=True)
def _fill_groups(row_offsets: Any, delta: Any, key: Any, instruments: bool, head: Any, offsets: Any, ids: Any) -> None:
    for piece in range(len(offsets) - 1):
        at = offsets[piece]
        for token in head:
            ids[at] = token
            at += 1
        for row in range(row_offsets[piece], row_offsets[piece + 1]):
            gap = delta[row]
            while gap > LONGEST:
                ids[at], ids[at + 1] = LONGEST + OFFSET, SEPARATOR
                gap -= LONGEST
                at += 2
            duration, pitch, velocity, channel = fields_of(key[row])
            ids[at], ids[at + 1] = gap + OFFSET, duration + OFFSET
            at += 2
            if instruments:
                ids[at] = channel + OFFSET
                at += 1
            ids[at] = pitch + OFFSET
            at += 1
            if instruments:
                ids[at] = velocity + OFFSET
                at += 1
            ids[at] = SEPARATOR
            at += 1
        ids[at] = END


def _build_grammar(config: OptimusIntConfig) -> tuple[Grammar, tuple[ValueStates, ...]]:
    """States: before <start>, between groups, after a rest, after <end>, after a delta of 354, then a state a field.

    The last state, where there are instruments, is that before the pitch of a drum.
    """
    before, between, rested, after, paused, first_field = range(6)
    shortest = 0 if config.long_notes == "split" else 1
    pitch, channel, velocity = (0, 127), (0, 15), (1, 127)
    fields = [(shortest, LONGEST), *([channel, pitch, velocity] if config.instruments else [pitch])]
    closing = first_field + len(fields)
    head = _HEAD_OF_INSTRUMENTS if config.instruments else _HEAD_OF_PIANO
    next_state = np.full((closing + len(head) + config.instruments, VOCAB_SIZE), -1, np.int16)
    for state in (between, rested):
        next_state[state, OFFSET:END] = first_field
        next_state[state, LONGEST + OFFSET] = paused
    next_state[rested, OFFSET] = -1  # a rest is written only where time is left after it
    for place, (low, high) in enumerate(fields):
        next_state[first_field + place, OFFSET + low : OFFSET + high + 1] = first_field + place + 1
    next_state[paused] = next_state[first_field]
    next_state[paused, SEPARATOR] = rested
    next_state[closing, SEPARATOR] = between
    next_state[between, END] = next_state[after, PAD] = after
    states = [before, *range(closing + 1, closing + len(head)), between]
    for place, token in enumerate(head.tolist()):
        next_state[states[place], token] = states[place + 1]
    values, before_pitch = np.arange(VOCAB_SIZE) - OFFSET, first_field + fields.index(pitch)
    value_states = [ValueStates("pitch", (before_pitch,), looked_up(values, np.arange(128)))]
    if config.instruments:
        before_channel, before_drum = first_field + fields.index(channel), len(next_state) - 1
        next_state[before_drum] = next_state[before_pitch]
        next_state[before_channel, DRUM_CHANNEL + OFFSET] = before_drum
        value_states.append(ValueStates("program", (before_channel,), looked_up(values, programs_of_channels())))
    return Grammar.without_slots(next_state), tuple(value_states)
