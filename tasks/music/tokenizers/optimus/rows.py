"""Notes as rows in the order in which the encodings of Optimus VIRTUOSO write them, in compiled code.

A row is one note: time since the row before, duration, pitch, velocity, channel. Within an onset the highest note comes
first, and drums last, so that moving all pitched notes alike leaves the order as it is.

Source: the encodings "INT" and "TXT" of Optimus VIRTUOSO (2021), with every note once and timed from the note before.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tasks.music.arrays import ByteArray, FloatArray, IntArray, offsets_of
from tasks.music.compiled import njit
from tasks.music.midi.writer import DRUM_CHANNEL, PITCHED_CHANNELS
from tasks.music.notes import NoteBatch
from tasks.music.score import Score, build_score
from tasks.music.tokenizers.loops import sort_run, to_unit
from tasks.music.transforms import apply_sustain

OFFSET = 33  # added to a value in both encodings
MAX_DURATION = (1 << 21) - 1  # units, in a row
MELODY_PITCH_MIN = 60  # a lower note is not a melody
MELODY_CHANNEL = 0
# Piano, guitar, bass, violin, cello, harp, trumpet, clarinet and flute; drums; then pianos.
PATCHES = np.array([0, 24, 32, 40, 42, 46, 56, 71, 73, 0, 0, 0, 0, 0, 0, 0], np.uint8)
# The channel of each family of eight programs of General MIDI; strings have several.
CHANNEL_OF_PROGRAM = np.repeat(np.array([0, 0, 0, 1, 2, 3, 3, 6, 7, 8, 8, 3, 0, 1, 0, 0], np.uint8), 8)
CHANNEL_OF_PROGRAM[[42, 43, 46, 47]] = 4, 4, 5, 2  # cello, contrabass, harp, timpani

_PITCHED = np.array(PITCHED_CHANNELS, np.uint8)
# Each pitched channel goes up by one to make room for the melody, and back.
_SHIFTED = np.array([*range(1, 9), 10, DRUM_CHANNEL, *range(11, 16), 15], np.uint8)
_UNSHIFTED = np.array([0, *range(8), DRUM_CHANNEL, 8, *range(10, 15)], np.uint8)

_COUNTS = ("drums", "program_changed", "long_notes_clamped", "long_notes_split", "long_gaps_clamped")
_DRUMS, _PROGRAM_CHANGED, _NOTES_CLAMPED, _NOTES_SPLIT, _GAPS_CLAMPED = range(len(_COUNTS))

# A row as one integer, from its highest bits down: is drum, 127 - pitch, channel, 127 - velocity, is new (0: the rest
# of a split note), MAX_DURATION - duration, and two bits for counting. Sorted, the integers are the rows of an onset in
# order.
_DRUM_BIT, _PITCH_BIT, _CHANNEL_BIT, _VELOCITY_BIT, _NEW_BIT, _DURATION_BIT = 42, 35, 31, 24, 23, 2
_IS_NEW = 1 << _NEW_BIT
_NO_PIANO_BIT, _CHANGED_BIT = 1, 0  # the program is not that of a piano; it comes back as another one


def programs_of_channels(marks_melody: bool = False) -> IntArray:
    """Return the program of each channel as it is written, int64[16]; -1 for that of drums."""
    channels = np.arange(16)
    programs = PATCHES[_UNSHIFTED if marks_melody else channels].astype(np.int64)
    return np.where(channels == DRUM_CHANNEL, -1, programs)


def check_settings(unit_milliseconds: int, velocity: int) -> None:
    """Raise ValueError for a setting out of range, of those that both encodings have."""
    if not 1 <= unit_milliseconds <= 1000:
        raise ValueError(f"unit_milliseconds={unit_milliseconds} is outside 1-1000")
    if not 1 <= velocity <= 127:
        raise ValueError(f"velocity={velocity} is outside 1-127")


@dataclass(frozen=True, kw_only=True, slots=True)
class RowRules:
    """How notes become rows.

    Args:
        velocities, channels: whether a row has them.
        channels_by, drums, sustain: see `OptimusIntConfig`.
        max_duration: units of the longest row.
        max_repeats: 0 shortens longer notes to `max_duration`. Above, they become rows of just that and a shorter one,
            at most so many times as long together.
        max_gap: units of the longest time between two rows; beyond it, time is lost.
        marks_melody: channel 0 for the highest note of each onset from C4 on, and for no other note.
    """

    unit_milliseconds: int
    velocities: bool
    channels: bool
    channels_by: Literal["families", "order"]
    drums: Literal["drop", "keep", "if_alone"]
    sustain: bool
    max_duration: int
    max_repeats: int = 0
    max_gap: int = 1 << 62
    marks_melody: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """R rows of P pieces; piece i owns `offsets[i]:offsets[i + 1]`.

    Args:
        delta: int64[R], units since the row before it, of the first since the start of the piece.
        key: int64[R], all else of a row in one integer: see `fields_of`.
        n_notes: int64[P].
        seconds: float64[P], end of the last row.
        counts: by reason, int64[P]: notes that are left out or held otherwise than they were.
    """

    offsets: IntArray
    delta: IntArray
    key: IntArray
    n_notes: IntArray
    seconds: FloatArray
    counts: dict[str, IntArray]


def arrange_rows(batch: NoteBatch, rules: RowRules) -> Rows:
    """Return the rows of whole pieces. Onsets and ends are rounded to units one by one; a note has at least one."""
    if rules.sustain:
        batch = apply_sustain(batch)
    n_pieces, n_notes = batch.n_pieces, batch.n_notes
    channel, n_shared = _channels(batch, rules)
    counts = np.zeros((n_pieces, len(_COUNTS)), np.int64)
    offsets, n_rows = np.zeros(n_pieces + 1, np.int64), np.zeros(n_pieces, np.int64)
    onset, duration, head = (np.empty(n_notes, np.int64) for _ in range(3))
    keeps_drums = rules.drums == "keep" or (rules.channels and rules.drums == "if_alone")
    _measure(
        batch.offsets,
        (batch.onset_seconds, batch.end_seconds),
        (batch.pitch, batch.velocity if rules.velocities else np.zeros_like(batch.velocity)),
        (batch.program, batch.is_drum, channel),
        (keeps_drums, rules.drums == "if_alone"),
        (1000 / rules.unit_milliseconds, rules.max_duration, rules.max_repeats),
        (onset, duration, head),
        offsets,
        n_rows,
        counts,
    )
    row_offsets = offsets_of(n_rows)
    delta, key = np.empty(row_offsets[-1], np.int64), np.empty(row_offsets[-1], np.int64)
    ends = np.zeros(n_pieces, np.int64)
    split_at = rules.max_duration if rules.max_repeats else MAX_DURATION + 1
    _order(offsets, onset, duration, head, split_at, rules.max_gap, row_offsets, delta, key, ends, counts)
    if rules.marks_melody:
        _mark_melody(row_offsets, delta, key, counts)
    seconds = np.multiply(ends, rules.unit_milliseconds / 1000, dtype=np.float64)
    named = {name: counts[:, place] for place, name in enumerate(_COUNTS)} | {"channels_shared": n_shared}
    return Rows(row_offsets, delta, key, np.diff(offsets), seconds, named)


@njit(cache=True, nogil=True)
def fields_of(key: Any) -> Any:
    """Return duration, pitch, velocity and channel."""
    return (
        duration_of(key),
        127 - (key >> _PITCH_BIT & 127),
        127 - (key >> _VELOCITY_BIT & 127),
        key >> _CHANNEL_BIT & 15,
    )


@njit(cache=True, nogil=True)
def duration_of(key: Any) -> Any:
    """Return units; 0 only where a split note ends with the row before."""
    return MAX_DURATION - (key >> _DURATION_BIT & MAX_DURATION)


def build_rows_score(
    onset: IntArray,
    duration: IntArray,
    pitch: IntArray,
    velocity: IntArray,
    channel: IntArray,
    unit_milliseconds: int,
    dropped: dict[str, int],
    marks_melody: bool = False,
) -> Score:
    """Return rows as a score of one part for each channel; a tick is 1 ms.

    Rows with a pitch or channel that does not exist are left out and counted in `dropped`.

    Args:
        onset, duration: units.
        dropped: what else was left out.
    """
    fits = (pitch >= 0) & (pitch <= 127) & (channel >= 0) & (channel <= 15) & (duration >= 0)
    used, track = np.unique(channel[fits], return_inverse=True)
    sounding = channel[fits]
    if marks_melody:
        sounding = _UNSHIFTED[sounding]
    notes = {
        "onset": onset[fits] * unit_milliseconds,
        "duration": np.maximum(duration[fits], 1) * unit_milliseconds,
        "pitch": pitch[fits],
        "velocity": np.clip(velocity[fits], 1, 127),
        "program": PATCHES[sounding],
        "is_drum": channel[fits] == DRUM_CHANNEL,
        "track": track,
    }
    n_outside = int(len(fits) - np.count_nonzero(fits))
    losses = {reason: n for reason, n in {**dropped, "impossible_notes": n_outside}.items() if n}
    return build_score(500, notes, n_tracks=max(len(used), 1), dropped=losses)


def _channels(batch: NoteBatch, rules: RowRules) -> tuple[ByteArray, IntArray]:
    """Return the channel of each note, and the notes of each piece that share the last one, as no other is free."""
    n_shared = np.zeros(batch.n_pieces, np.int64)
    if not rules.channels:
        return np.zeros(batch.n_notes, np.uint8), n_shared
    if rules.channels_by == "families":
        channel = CHANNEL_OF_PROGRAM[batch.program]
        channel[batch.is_drum] = DRUM_CHANNEL
        return channel, n_shared
    channel = np.empty(batch.n_notes, np.uint8)
    pitched = _PITCHED[:-1] if rules.marks_melody else _PITCHED
    _channels_in_order(batch.offsets, batch.track, batch.is_drum, pitched, channel, n_shared)
    return channel, n_shared


@njit(cache=True, nogil=True)
def _channels_in_order(offsets: Any, track: Any, is_drum: Any, pitched: Any, channel: Any, n_shared: Any) -> None:
    """Give each pitched part the next channel, in order of track; parts beyond the last channel share it."""
    is_part = np.zeros(1 << 16, np.bool_)
    rank = np.empty(1 << 16, np.int64)
    for piece in range(len(offsets) - 1):
        highest = -1
        for note in range(offsets[piece], offsets[piece + 1]):
            if not is_drum[note]:
                is_part[track[note]] = True
                highest = max(highest, np.int64(track[note]))
        n_parts = 0
        for part in range(highest + 1):
            rank[part] = n_parts
            n_parts += is_part[part]
            is_part[part] = False
        for note in range(offsets[piece], offsets[piece + 1]):
            if is_drum[note]:
                channel[note] = DRUM_CHANNEL
                continue
            channel[note] = pitched[min(rank[track[note]], len(pitched) - 1)]
            n_shared[piece] += rank[track[note]] >= len(pitched)


@njit(cache=True, nogil=True)
def _measure(
    offsets: Any, seconds: Any, tones: Any, sounds: Any, drums: Any, limits: Any, measured: Any, kept: Any,
    n_rows: Any, counts: Any,
) -> None:  # fmt: skip
    """Write onset, duration and key of the notes that stay, their borders into `kept`, and the rows of each piece."""
    onset_seconds, end_seconds = seconds
    pitch, velocity = tones
    program, is_drum, channel = sounds
    per_second, max_duration, max_repeats = limits
    onset, duration, head = measured
    longest = max_duration * max(max_repeats, 1)
    n = 0
    for piece in range(len(offsets) - 1):
        first, last = offsets[piece], offsets[piece + 1]
        keeps_drums = drums[0] or (drums[1] and is_drum[first:last].all())
        for note in range(first, last):
            if is_drum[note] and not keeps_drums:
                counts[piece, _DRUMS] += 1
                continue
            begins = to_unit(onset_seconds[note], per_second)
            length = max(to_unit(end_seconds[note], per_second) - begins, 1)
            if length > longest:
                length = longest
                counts[piece, _NOTES_CLAMPED] += 1
            if max_repeats and length >= max_duration:
                counts[piece, _NOTES_SPLIT] += 1
                n_rows[piece] += length // max_duration
            is_drums = channel[note] == DRUM_CHANNEL
            is_changed = is_drum[note] != is_drums or program[note] != PATCHES[channel[note]]
            counts[piece, _PROGRAM_CHANGED] += is_changed
            onset[n], duration[n] = begins, length
            head[n] = (
                np.int64(is_drums) << _DRUM_BIT
                | np.int64(127 - pitch[note]) << _PITCH_BIT
                | np.int64(channel[note]) << _CHANNEL_BIT
                | np.int64(127 - velocity[note]) << _VELOCITY_BIT
                | np.int64(program[note] != 0) << _NO_PIANO_BIT
                | np.int64(is_changed) << _CHANGED_BIT
            )
            n += 1
        kept[piece + 1] = n
        n_rows[piece] += n - kept[piece]


# Columns of what is left of split notes. Rows before it all last equally long, so it is due in the order it came.
_DUE, _HEAD, _LEFT = range(3)


@njit(cache=True, nogil=True)
def _order(
    offsets: Any, onset: Any, duration: Any, head: Any, split_at: Any, max_gap: Any, row_offsets: Any, delta: Any,
    key: Any, ends: Any, counts: Any,
) -> None:  # fmt: skip
    """Write the rows of each piece. What is left of a long note waits until the row before it ends."""
    most = 0
    for piece in range(len(offsets) - 1):
        most = max(most, row_offsets[piece + 1] - row_offsets[piece] - (offsets[piece + 1] - offsets[piece]))
    queue = np.empty((most, 3), np.int64)
    for piece in range(len(offsets) - 1):
        note, last, row = offsets[piece], offsets[piece + 1], row_offsets[piece]
        first_due, n_queued, before, written = 0, 0, 0, 0
        while note < last or first_due < n_queued:
            now = onset[note] if note < last else queue[first_due, _DUE]
            if first_due < n_queued:
                now = min(now, queue[first_due, _DUE])
            begin, stop = row, note
            while stop < last and onset[stop] == now:
                stop += 1
            for place in range(stop - 1, note - 1, -1):  # from the highest pitch down: nearly sorted
                n_queued = _put(key, row, head[place] | _IS_NEW, duration[place], now, split_at, queue, n_queued)
                row += 1
            note = stop
            while first_due < n_queued and queue[first_due, _DUE] == now:
                rest, part = queue[first_due, _HEAD], queue[first_due, _LEFT]
                n_queued = _put(key, row, rest, part, now, split_at, queue, n_queued)
                first_due += 1
                row += 1
            sort_run(key, begin, row)
            gap = min(now - before, max_gap)
            counts[piece, _GAPS_CLAMPED] += now - before > max_gap
            written += gap
            before = now
            for place in range(begin, row):
                delta[place] = gap if place == begin else 0
                ends[piece] = max(ends[piece], written + duration_of(key[place]))


@njit(cache=True, nogil=True)
def _put(key: Any, row: int, head: Any, length: Any, now: Any, split_at: Any, queue: Any, n_queued: int) -> int:
    """Write a row and queue what is left of its note; return the number of queued ones."""
    key[row] = head | (MAX_DURATION - min(length, split_at)) << _DURATION_BIT
    if length < split_at:
        return n_queued
    queue[n_queued, _DUE], queue[n_queued, _LEFT] = now + split_at, length - split_at
    queue[n_queued, _HEAD] = head & ~_IS_NEW
    return n_queued + 1


@njit(cache=True, nogil=True)
def _mark_melody(offsets: Any, delta: Any, key: Any, counts: Any) -> None:
    for piece in range(len(offsets) - 1):
        for row in range(offsets[piece], offsets[piece + 1]):
            is_first = row == offsets[piece] or delta[row] > 0
            _, pitch, _, channel = fields_of(key[row])
            written = _SHIFTED[channel]
            if is_first and channel != DRUM_CHANNEL and pitch >= MELODY_PITCH_MIN:
                written = MELODY_CHANNEL
                counts[piece, _PROGRAM_CHANGED] += (key[row] >> _NO_PIANO_BIT & 1) - (key[row] >> _CHANGED_BIT & 1)
            key[row] = (key[row] & ~(15 << _CHANNEL_BIT)) | np.int64(written) << _CHANNEL_BIT
