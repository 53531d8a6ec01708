"""The second half of reading MIDI files, in compiled code: their events to pieces.

Notes of all tracks are merged by time, get the program that was in force on their channel, the part they belong to and
their times in seconds through the tempo map; sustain pedals become spans of the parts they hold.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

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
from tasks.music.notes import COLUMNS, NoteBatch, kind_of

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
    offsets, part_offsets, pedal_offsets = np.zeros((3, n_files + 1), np.int64)
    part_keys = np.empty(n_notes, np.int32)
    columns = tuple(np.empty(n_notes, kind_of(name)) for name in COLUMNS[""])
    per_file = (n_parts, programs, offsets, part_offsets)
    _arrange_notes(facts, events, (tempo_offsets, tempos[0], tempos[1]), max_seconds, per_file, part_keys, columns)
    order = _sustain_order(events)
    nothing = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.uint16))
    _hold_pedals(facts, events, order, part_offsets, part_keys, max_pedals, pedal_offsets, *nothing)  # counts
    spans = tuple(np.empty(pedal_offsets[-1], kind_of(name)) for name in ("pedal_onset", "pedal_end", "pedal_track"))
    _hold_pedals(facts, events, order, part_offsets, part_keys, max_pedals, pedal_offsets, *spans)
    seconds = np.empty((2, pedal_offsets[-1]), np.float64)
    for ticks, row in zip(spans[:2], seconds, strict=True):
        _to_seconds(ticks, pedal_offsets, facts[:, TICKS_PER_QUARTER], tempo_offsets, tempos[0], tempos[1], row)
    notes = NoteBatch.of(
        {name: column[: offsets[-1]] for name, column in zip(COLUMNS[""], columns, strict=True)}
        | dict(zip(COLUMNS["pedal_"], (*spans[:2], *seconds, spans[2]), strict=True))
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
def _to_seconds(ticks, offsets, ticks_per_quarter, tempo_offsets, tempo_tick, tempo, seconds):
    """Write the time of each tick: exact sums in integers, rounded once."""
    for index in range(len(offsets) - 1):
        if offsets[index] == offsets[index + 1]:
            continue
        of_file = slice(tempo_offsets[index], tempo_offsets[index + 1])
        changes, tempos = tempo_tick[of_file], tempo[of_file]
        passed, place, last = _elapsed(changes, tempos), 0, len(changes) - 1
        for at in range(offsets[index], offsets[index + 1]):
            tick = ticks[at]
            if tick < changes[place] or (place < last and tick >= changes[place + 1]):
                place = np.searchsorted(changes, tick, side="right") - 1
            passed_here = passed[place] + (tick - changes[place]) * tempos[place]
            seconds[at] = passed_here / (ticks_per_quarter[index] * 1e6)


@njit(cache=True, nogil=True)
def _elapsed(changes, tempos):
    """Return the microseconds × ticks per quarter before each tempo."""
    passed = np.zeros(len(changes), np.int64)
    for change in range(1, len(changes)):
        passed[change] = passed[change - 1] + (changes[change] - changes[change - 1]) * tempos[change - 1]
    return passed


def _sustain_order(events):
    """Return the pedal moves ordered by file, channel and tick, moves at one tick as in the file."""
    n_moves = int(events.offsets[-1, 1])
    files = np.repeat(np.arange(len(events.facts)), np.diff(events.offsets[:, 1]))
    keys, ticks = events.sustain_key[:n_moves].astype(np.int64), events.sustain_tick[:n_moves].astype(np.int64)
    is_sorted = (np.diff(files) > 0) | (np.diff(keys) > 0) | ((np.diff(keys) == 0) & (np.diff(ticks) >= 0))
    if np.all(is_sorted):
        return np.arange(n_moves)
    return np.lexsort([ticks, keys, files])


@njit(cache=True, nogil=True)
def _hold_pedals(facts, events, order, part_offsets, part_keys, max_pedals, offsets, onset, end, part):
    """Give every part the pedal spans of its channel, whichever track the pedal stands on; without room, only count."""
    is_counting, written = len(onset) == 0, 0
    key_of, first_of, n_of = np.empty(2048, np.int64), np.empty(2048, np.int64), np.empty(2048, np.int64)
    for index in range(len(facts)):
        begin = written
        if facts[index, CODE] == OK and events.offsets[index, 1] < events.offsets[index + 1, 1]:
            key_of[:] = -1
            at_note, music_end, sequence = events.offsets[index, 0], 0, -1
            for a_part in range(part_offsets[index], part_offsets[index + 1]):
                key = part_keys[a_part]
                slot = key & 2047
                if key_of[slot] == key:  # the channel's spans are known from another part
                    if not is_counting:
                        known = slice(first_of[slot], first_of[slot] + n_of[slot])
                        onset[written : written + n_of[slot]] = onset[known]
                        end[written : written + n_of[slot]] = end[known]
                else:
                    n_spans, down = _span_channel(events, order, index, key, is_counting, onset, end, written)
                    if down >= 0 and key >> 11 != sequence:
                        sequence = key >> 11
                        at_note, music_end = _last_key_up(events, at_note, events.offsets[index + 1, 0], sequence)
                    if 0 <= down < music_end:  # never lifted: down to the end of the music
                        if not is_counting:
                            onset[written + n_spans], end[written + n_spans] = down, music_end
                        n_spans += 1
                    key_of[slot], first_of[slot], n_of[slot] = key, written, n_spans
                if not is_counting:
                    part[written : written + n_of[slot]] = a_part - part_offsets[index]
                written += n_of[slot]
                if written - begin > max_pedals:
                    break
        if written - begin > max_pedals:
            facts[index, CODE], facts[index, VALUE], facts[index, LIMIT] = TOO_MANY_PEDALS, written - begin, max_pedals
            written = begin
        offsets[index + 1] = written


@njit(cache=True, nogil=True)
def _last_key_up(events, note, last_note, sequence):
    """Return (first note behind a sequence, tick of its last key up); `note` is not behind its first one."""
    keys, onsets, durations, music_end = events.key, events.onset, events.duration, 0
    while note < last_note and keys[note] >> 11 <= sequence:
        if keys[note] >> 11 == sequence and durations[note] != UNENDED:
            music_end = max(music_end, np.int64(onsets[note]) + durations[note])
        note += 1
    return note, music_end


@njit(cache=True, nogil=True)
def _span_channel(events, order, index, key, is_counting, onset, end, written):
    """Write the pedal spans of one channel; return how many, and since when the pedal is down behind them or -1."""
    first, last = events.offsets[index, 1], events.offsets[index + 1, 1]
    ticks, values = events.sustain_tick, events.sustain_value
    low, high = _moves_of(events.sustain_key, order, first, last, key)
    places = order[low:high]
    low, high = _moves_of(events.sustain_key, order, first, last, -1 - (key >> 4))
    if low < high:  # resets of the port lift its pedals
        places = _merge_moves(places, order[low:high], ticks)
    n_spans, down = 0, -1
    for place in places:
        tick, value = np.int64(ticks[place]), values[place]
        if value >= 64 and down < 0:
            down = -1 if value == PEDAL_BREAK else tick
        elif down >= 0 and (value < 64 or value == PEDAL_BREAK):
            if tick > down:
                if not is_counting:
                    onset[written + n_spans], end[written + n_spans] = down, tick
                n_spans += 1
            down = tick if value == PEDAL_BREAK else -1
    return n_spans, down


@njit(cache=True, nogil=True)
def _merge_moves(moves, resets, ticks):
    """Return the moves of a channel and the resets of its port by tick, those of one tick as in the file."""
    merged, reset = np.empty(len(moves) + len(resets), np.int64), 0
    for at in range(len(moves)):
        move = moves[at]
        while reset < len(resets) and (
            ticks[resets[reset]] < ticks[move] or (ticks[resets[reset]] == ticks[move] and resets[reset] < move)
        ):
            merged[at + reset] = resets[reset]
            reset += 1
        merged[at + reset] = move
    merged[len(moves) + reset :] = resets[reset:]
    return merged


@njit(cache=True, nogil=True)
def _moves_of(keys, order, first, last, key):
    """Return the range of `order` with the moves of one channel of one file."""
    low, high = first, last
    while low < high:
        middle = (low + high) // 2
        if keys[order[middle]] < key:
            low = middle + 1
        else:
            high = middle
    stop = low
    while stop < last and keys[order[stop]] == key:
        stop += 1
    return low, stop
