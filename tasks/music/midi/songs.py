"""Pieces from the events of MIDI files, in compiled code: the second half of reading.

Notes of all tracks are merged by time. Each gets the program in force on its channel, its part, and its times in
seconds through the tempo map. Sustain pedals become spans of the parts that they hold.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.music.arrays import offsets_of, spread_ranges
from tasks.music.compiled import njit
from tasks.music.midi.events import (
    CODE,
    DEFAULT_TEMPO,
    DRUM_SIGNS,
    KEY_SIGNATURE,
    LIMIT,
    OK,
    TEMPO,
    TICK_MAX,
    TICK_OVERFLOW,
    TICKS_PER_QUARTER,
    TIME_SIGNATURE,
    UNENDED,
    UNKNOWN_PROGRAM,
    VALUE,
    EventBatch,
)
from tasks.music.midi.modes import DRUM_CHANNEL, DRUMS, PEDAL_BREAK, PROGRAM, are_drums_elsewhere, mark_drums
from tasks.music.notes import COLUMNS, NoteBatch, kind_of, seconds_of

TOO_MANY_PARTS, TOO_MANY_PEDALS, TOO_LONG = 101, 102, 103  # further values of CODE
PARTS_MAX = 0xFFFF
_SLOTS = 16 << 8  # channel, then program with or without DRUMS


class Songs(NamedTuple):
    """F files as pieces; a refused file has a code in `facts`, and no notes or pedals.

    Of several tempos or signatures at one tick only the last is kept. The part of a note is one program of one channel
    of one track chunk.
    """

    notes: NoteBatch
    facts: NDArray[np.int64]  # [F, N_FACTS]
    programs: NDArray[np.bool_]  # [F, 128], which ones pitched notes use


def arrange_songs(events: EventBatch, max_seconds: float, max_pedals: int) -> Songs:
    """Turn events into songs.

    Args:
        max_seconds: of one file, to the end of its last note; above, it is refused.
        max_pedals: pedal spans of one file, those of a channel counted for each part on it; above, it is refused.
    """
    n_files, n_notes = len(events.facts), int(events.offsets[-1, 0])
    facts = events.facts.copy()
    (tempo_offsets, tempos), (meter_offsets, meters), (key_offsets, keys) = (
        _sorted_metas(events, facts, kind) for kind in (TEMPO, TIME_SIGNATURE, KEY_SIGNATURE)
    )
    n_parts, programs = np.zeros(n_files, np.int64), np.zeros((n_files, 128), np.bool_)
    offsets, part_offsets = np.zeros((2, n_files + 1), np.int64)
    part_keys = np.empty(n_notes, np.int32)
    columns = tuple(np.empty(n_notes, kind_of(name)) for name in COLUMNS[""])
    per_file = (n_parts, programs, offsets, part_offsets)
    _arrange_notes(facts, events, (tempo_offsets, tempos[0], tempos[1]), max_seconds, per_file, part_keys, columns)
    pedal_offsets, *spans, part = _hold_pedals(facts, events, part_offsets, part_keys, max_pedals)
    owner = np.repeat(np.arange(n_files), np.diff(pedal_offsets))
    tempo_map = tempo_offsets, tempos[0], tempos[1], facts[:, TICKS_PER_QUARTER]
    seconds = [seconds_of(ticks, owner, *tempo_map) for ticks in spans]
    notes = NoteBatch.of(
        {name: column[: offsets[-1]] for name, column in zip(COLUMNS[""], columns, strict=True)}
        | dict(zip(COLUMNS["pedal_"], (*spans, *seconds, part), strict=True))
        | dict(zip(COLUMNS["tempo_"], tempos[:2], strict=True))
        | dict(zip(COLUMNS["time_signature_"], meters, strict=True))
        | dict(zip(COLUMNS["key_signature_"], keys, strict=True))
        | {
            "offsets": offsets,
            "pedal_offsets": pedal_offsets,
            "tempo_offsets": tempo_offsets,
            "time_signature_offsets": meter_offsets,
            "key_signature_offsets": key_offsets,
            "ticks_per_quarter": facts[:, TICKS_PER_QUARTER],
            "n_tracks": n_parts,
        }
    )
    return Songs(notes, facts, programs)


def _sorted_metas(
    events: EventBatch, facts: NDArray[np.int64], kind: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the borders of the files, and rows of ticks, first and second values."""
    offsets = np.zeros(len(facts) + 1, np.int64)
    changes = np.empty((3, int(events.offsets[-1, 3]) + len(facts)), np.int64)
    _sort_metas(facts, events, kind, offsets, changes)
    return offsets, changes[:, : offsets[-1]]


@njit(cache=True, nogil=True)
def _sort_metas(facts, events, kind, offsets, changes):
    """Write the events of one kind by tick; of several at one tick the last in the file counts."""
    n_written = 0
    for index in range(len(facts)):
        if facts[index, CODE] == OK:
            first, last, is_sorted, before = events.offsets[index, 3], events.offsets[index + 1, 3], True, 0
            if kind == TEMPO:
                changes[0, n_written], changes[1, n_written], changes[2, n_written] = 0, DEFAULT_TEMPO, 0
                n_written += 1
            for place in range(first, last):
                if events.meta_kind[place] == kind:
                    is_sorted = is_sorted and events.meta_tick[place] >= before
                    before = events.meta_tick[place]
            order = np.arange(0) if is_sorted else np.argsort(events.meta_tick[first:last], kind="mergesort")
            for place in range(first, last):
                meta = place if is_sorted else first + order[place - first]
                if events.meta_kind[meta] != kind:
                    continue
                if n_written > offsets[index] and changes[0, n_written - 1] == events.meta_tick[meta]:
                    n_written -= 1
                changes[0, n_written] = events.meta_tick[meta]
                changes[1, n_written], changes[2, n_written] = events.meta_values[meta, 0], events.meta_values[meta, 1]
                n_written += 1
        offsets[index + 1] = n_written


@njit(cache=True, nogil=True)
def _arrange_notes(facts, events, tempos, max_seconds, per_file, part_keys, columns):
    n_parts, programs_used, note_offsets, part_offsets = per_file
    tempo_offsets, tempo_tick, tempo = tempos
    largest = 0
    for index in range(len(facts)):
        largest = max(largest, events.offsets[index + 1, 0] - events.offsets[index, 0])
    keys, order = np.empty(largest, np.int64), np.empty(largest, np.int32)
    other_keys, other_order = np.empty(largest, np.int64), np.empty(largest, np.int32)
    programs, part_programs = np.empty(largest, np.uint8), np.empty(largest, np.uint8)
    part_of, stamp = np.empty(_SLOTS, np.int32), np.full(_SLOTS, -1, np.int64)
    serial, written, n_part_keys = 0, 0, 0
    for index in range(len(facts)):
        begin, end = events.offsets[index, 0], events.offsets[index + 1, 0]
        if facts[index, CODE] == OK:
            _find_programs(events, index, begin, end, programs)
            is_elsewhere = are_drums_elsewhere(facts[index, DRUM_SIGNS])
            if is_elsewhere:
                mark_drums(events, events.offsets[index, 2], events.offsets[index + 1, 2], begin, end, programs)
            parts = part_keys[n_part_keys:]
            n, n_parts[index], serial = _key_notes(
                events, begin, end, programs, keys, order, parts, part_programs, part_of, stamp, serial
            )
            if not is_elsewhere:  # as in most files
                for part in range(n_parts[index]):
                    if parts[part] & 15 == DRUM_CHANNEL:
                        part_programs[part] |= DRUMS
            if n_parts[index] > PARTS_MAX:
                facts[index, CODE], facts[index, VALUE], facts[index, LIMIT] = TOO_MANY_PARTS, n_parts[index], PARTS_MAX
            else:
                _merge_runs(keys, order, other_keys, other_order, n)
                of_file = slice(tempo_offsets[index], tempo_offsets[index + 1])
                last_tick, seconds = _write_notes(
                    events, begin, keys, order, n, parts, part_programs, tempo_tick[of_file], tempo[of_file],
                    facts[index, TICKS_PER_QUARTER] * 1e6, columns, written,
                )  # fmt: skip
                if last_tick > TICK_MAX:
                    facts[index, CODE], facts[index, VALUE], facts[index, LIMIT] = TICK_OVERFLOW, last_tick, TICK_MAX
                elif seconds > max_seconds:
                    facts[index, CODE], facts[index, VALUE], facts[index, LIMIT] = TOO_LONG, seconds, max_seconds
                else:
                    for part in range(n_parts[index]):
                        if part_programs[part] < DRUMS:
                            programs_used[index, part_programs[part]] = True
                    written += n
                    n_part_keys += n_parts[index]
        note_offsets[index + 1], part_offsets[index + 1] = written, n_part_keys


@njit(cache=True, nogil=True)
def _key_notes(events, begin, end, programs, keys, order, parts, part_programs, part_of, stamp, serial):
    """Number the parts of a file and write a key for each of its ended notes: onset, pitch and part in one integer."""
    onset, duration, pitch, track, channel = events.onset, events.duration, events.pitch, events.track, events.key
    n, n_parts, track_before, run = 0, 0, -1, 0
    for note in range(begin, end):
        if track[note] != track_before:
            track_before, serial = track[note], serial + 1
            _insertion_sort(keys, order, run, n)
            run = n
            n_parts = _number_parts(
                events, begin, note, end, programs, parts, part_programs, n_parts, part_of, stamp, serial
            )
        if duration[note] == UNENDED:
            continue
        slot = (channel[note] & 15) << 8 | programs[note - begin]
        keys[n] = (int(onset[note]) << 7 | int(pitch[note])) << 16 | part_of[slot] & 0xFFFF
        order[n] = note - begin
        n += 1
    _insertion_sort(keys, order, run, n)
    return n, n_parts, serial


@njit(cache=True, nogil=True)
def _number_parts(events, begin, first, end, programs, parts, part_programs, n_parts, part_of, stamp, serial):
    """Number the parts of one chunk in order of channel, pitched or drums, and program; return the next number."""
    duration, track, channel = events.duration, events.track, events.key
    n_before = n_parts
    for note in range(first, end):
        if track[note] != track[first]:
            break
        slot = (channel[note] & 15) << 8 | programs[note - begin]
        if duration[note] == UNENDED or stamp[slot] == serial:
            continue
        stamp[slot], place = serial, n_parts
        while place > n_before and ((parts[place - 1] & 15) << 8 | part_programs[place - 1]) > slot:
            parts[place], part_programs[place] = parts[place - 1], part_programs[place - 1]
            place -= 1
        parts[place], part_programs[place] = channel[note], programs[note - begin]
        n_parts += 1
    for place in range(n_before, n_parts):
        part_of[(parts[place] & 15) << 8 | part_programs[place]] = place
    return n_parts


@njit(cache=True, nogil=True)
def _write_notes(events, begin, keys, order, n, parts, part_programs, changes, tempo, per_second, columns, at):
    """Write the notes of a file in the order of their keys; return the last tick and the last second."""
    onset, duration, onset_seconds, end_seconds, pitch, velocity, program, is_drum, part = columns  # of a NoteBatch
    event_duration, event_velocity = events.duration[begin:], events.velocity[begin:]
    _settle_ties(event_duration, event_velocity, keys, order, n)
    passed = _elapsed(changes, tempo)
    last_tick, seconds, place, last = 0, 0.0, 0, len(changes) - 1
    for note in range(n):
        key, number, length = keys[note], keys[note] & 0xFFFF, event_duration[order[note]]
        begins = key >> 23
        ends = begins + length
        onset[at], duration[at] = begins, length
        pitch[at], velocity[at] = key >> 16 & 0x7F, event_velocity[order[note]]
        program[at], part[at] = part_programs[number] & 0x7F, number
        is_drum[at] = part_programs[number] >= DRUMS
        while place < last and begins >= changes[place + 1]:
            place += 1
        onset_seconds[at] = (passed[place] + (begins - changes[place]) * tempo[place]) / per_second
        later = place
        if later < last and ends >= changes[later + 1]:
            later = np.searchsorted(changes, ends, side="right") - 1
        end_seconds[at] = (passed[later] + (ends - changes[later]) * tempo[later]) / per_second
        last_tick, seconds = max(last_tick, ends), max(seconds, end_seconds[at])
        at += 1
    return last_tick, seconds


@njit(cache=True, nogil=True)
def _find_programs(events, index, begin, end, programs):
    """Give each note its program; without a change on its own track, the one another track set on its channel."""
    event_program, event_key, event_onset = events.program, events.key, events.onset
    first, last, is_sorted = events.offsets[index, 2], events.offsets[index + 1, 2], False
    changes, place_of = np.empty(0, np.int64), np.empty(0, np.int64)
    for note in range(begin, end):
        programs[note - begin] = event_program[note]
        if event_program[note] != UNKNOWN_PROGRAM:
            continue
        programs[note - begin] = 0
        if first == last:
            continue
        if not is_sorted:
            place_of = first + np.flatnonzero(events.control_kind[first:last] == PROGRAM)
            changes = events.control_key[place_of].astype(np.int64) << 31 | events.control_tick[place_of]
            order = np.argsort(changes, kind="mergesort")
            changes, place_of, is_sorted = changes[order], place_of[order], True
        wanted = np.int64(event_key[note]) << 31 | event_onset[note]
        place = np.searchsorted(changes, wanted, side="right") - 1
        if place >= 0 and changes[place] >> 31 == event_key[note]:
            programs[note - begin] = events.control_value[place_of[place]]


@njit(cache=True, nogil=True)
def _insertion_sort(keys, order, begin, end):
    """Sort what is nearly sorted, such as the chords of one track; gives up after some moves, and runs remain."""
    moves_left = 64 + 8 * (end - begin)
    for place in range(begin + 1, end):
        key, note, at = keys[place], order[place], place
        while at > begin and keys[at - 1] > key:
            keys[at], order[at] = keys[at - 1], order[at - 1]
            at -= 1
        keys[at], order[at] = key, note
        moves_left -= place - at
        if moves_left < 0:
            return


@njit(cache=True, nogil=True)
def _merge_runs(keys, order, other_keys, other_order, n):
    """Natural merge sort, stable: runs that rise already are merged in pairs until one is left."""
    starts = [0]
    for place in range(1, n):
        if keys[place] < keys[place - 1]:
            starts.append(place)
    if len(starts) == 1:
        return
    starts.append(n)
    here, here_order, there, there_order, is_swapped = keys, order, other_keys, other_order, False
    while len(starts) > 2:
        merged = [0]
        for run in range(0, len(starts) - 1, 2):
            low, middle = starts[run], starts[run + 1]
            high = starts[run + 2] if run + 2 < len(starts) else middle
            left, right = low, middle
            for at in range(low, high):
                if right >= high or (left < middle and here[left] <= here[right]):
                    there[at], there_order[at] = here[left], here_order[left]
                    left += 1
                else:
                    there[at], there_order[at] = here[right], here_order[right]
                    right += 1
            merged.append(high)
        starts = merged
        here, here_order, there, there_order = there, there_order, here, here_order
        is_swapped = not is_swapped
    if is_swapped:
        keys[:n], order[:n] = here[:n], here_order[:n]


@njit(cache=True, nogil=True)
def _settle_ties(durations, velocities, keys, order, n):
    """Order notes of one onset, pitch and part by duration and velocity."""
    place = 0
    while place < n:
        stop = place + 1
        while stop < n and keys[stop] == keys[place]:
            stop += 1
        if stop - place > 1:
            tied = order[place:stop].copy()
            ranks = np.empty(len(tied), np.int64)
            for at in range(len(tied)):
                ranks[at] = int(durations[tied[at]]) << 7 | int(velocities[tied[at]])
            order[place:stop] = tied[np.argsort(ranks, kind="mergesort")]
        place = stop


@njit(cache=True, nogil=True)
def _elapsed(changes, tempos):
    """Return the microseconds × ticks per quarter before each tempo."""
    passed = np.zeros(len(changes), np.int64)
    for change in range(1, len(changes)):
        passed[change] = passed[change - 1] + (changes[change] - changes[change - 1]) * tempos[change - 1]
    return passed


def _hold_pedals(
    facts: NDArray[np.int64],
    events: EventBatch,
    part_offsets: NDArray[np.int64],
    part_keys: NDArray[np.int32],
    max_pedals: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Give every part the pedal spans of its channel, whichever track the pedal is on.

    Returns:
        the borders of the files, and of each span its onset, its end and the number of the part in its file.
    """
    channels, onset, end = _channel_spans(events)
    n_parts = np.diff(part_offsets)
    file = np.repeat(np.arange(len(facts)), n_parts)
    part = np.arange(len(file)) - part_offsets[file]
    wanted = _channel_of(file, part_keys[: len(file)])
    first, last = np.searchsorted(channels, wanted), np.searchsorted(channels, wanted, side="right")
    n_spans = np.diff(offsets_of(last - first)[part_offsets])
    for index in np.flatnonzero(n_spans > max_pedals).tolist():
        facts[index, CODE], facts[index, VALUE], facts[index, LIMIT] = TOO_MANY_PEDALS, n_spans[index], max_pedals
    last = np.where(n_spans[file] > max_pedals, first, last)
    row, span = spread_ranges(first, last)
    return offsets_of(last - first)[part_offsets], onset[span], end[span], part[row]


def _channel_of(file: NDArray[np.int64], key: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return one number for each channel of each file, in their order."""
    return file << 32 | key.astype(np.int64)


def _channel_spans(events: EventBatch) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the channel, the onset and the end of all pedal spans, in the order of channels."""
    n_moves = int(events.offsets[-1, 1])
    file = np.repeat(np.arange(len(events.facts)), np.diff(events.offsets[:, 1]))
    key, tick, value = (column[:n_moves] for column in (events.sustain_key, events.sustain_tick, events.sustain_value))
    if n_moves and key.min() < 0:  # resets of a port lift the pedals of its 16 channels
        n_channels = np.where(key < 0, 16, 1)
        move = np.repeat(np.arange(n_moves), n_channels)
        place = np.arange(len(move)) - offsets_of(n_channels)[move]
        file, key, tick, value = file[move], key[move], tick[move], value[move]
        key = np.where(key < 0, ((-1 - key) << 4) + place, key)
    channel = _channel_of(file, key)
    order = np.argsort(channel, kind="stable")
    number = np.cumsum(np.diff(channel[order], prepend=-1) != 0)  # of the channel; with the tick it fits into 64 bits
    order = order[np.argsort(number << 32 | tick[order], kind="stable")]  # moves at one tick stay as in the file
    channel, tick, value = channel[order], tick[order], value[order]
    spans = np.empty((3, len(channel)), np.int64)
    spans = spans[:, : _find_spans(channel, tick, value, spans)]
    for span in np.flatnonzero(spans[2] < 0):
        spans[2, span] = _last_key_up(events, spans[0, span])
    return tuple(spans[:, spans[1] < spans[2]])


def _last_key_up(events: EventBatch, channel: np.int64) -> int:
    """Return the end of the music of a channel's sequence."""
    file, sequence = channel >> 32, (channel & 0xFFFFFFFF) >> 11
    notes = slice(events.offsets[file, 0], events.offsets[file + 1, 0])
    duration = events.duration[notes].astype(np.int64)
    is_own = (events.key[notes] >> 11 == sequence) & (duration != UNENDED)
    return int((events.onset[notes] + duration)[is_own].max(initial=0))


@njit(cache=True, nogil=True)
def _find_spans(channels, ticks, values, spans):
    """Write the channel, onset and end of pedal spans, -1 where the pedal is never lifted; return their number."""
    n, down, channel = 0, -1, -1
    for move in range(len(channels) + 1):
        if move == len(channels) or channels[move] != channel:
            if down >= 0:
                spans[0, n], spans[1, n], spans[2, n] = channel, down, -1
                n += 1
            if move == len(channels):
                break
            channel, down = channels[move], -1
        tick, value = np.int64(ticks[move]), values[move]
        if value >= 64 and down < 0:
            down = -1 if value == PEDAL_BREAK else tick
        elif down >= 0 and (value < 64 or value == PEDAL_BREAK):
            if tick > down:
                spans[0, n], spans[1, n], spans[2, n] = channel, down, tick
                n += 1
            down = tick if value == PEDAL_BREAK else -1
    return n
