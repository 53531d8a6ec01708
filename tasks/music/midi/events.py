"""Events of many MIDI files as flat arrays, in compiled code: the first half of reading.

One call reads a whole batch; Python does nothing for each note, event or file. Each index is checked against the end of
its file before it is used. A file that breaks a rule gets a code, the position of the fault and the value found there;
the other files of the batch are read as usual.

If a file contradicts itself, the reader keeps the music and counts the repair. Running status survives meta and system
exclusive events. A chunk with a wrong size ends at its End of Track. Bytes after an early End of Track are read if they
are events up to the end of the chunk. Data bytes over 127 become 127.

Source: MIDI 1.0 Detailed Specification, Standard MIDI Files 1.0 (chunks, variable-length numbers, running status).
"""

from typing import Any, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from tasks.music.compiled import njit
from tasks.music.midi import modes
from tasks.music.midi.chunks import is_chunk_type, is_tag, read_big, unwrap_riff

TICK_MAX = 2**31 - 1
UNKNOWN_PROGRAM = 255  # no program change came before the note on its own track
UNENDED = -1  # duration of a note that no note-off ended

# Columns of EventBatch.facts, one row a file.
(
    CODE, POSITION, VALUE, LIMIT, FORMAT, TICKS_PER_QUARTER, N_TRACKS, N_STATED, N_NOTE_ONS, LENGTH, UNENDED_NOTES,
    ZERO_LENGTH_NOTES, SANITIZED, MISSING_TRACKS, TRAILING_BYTES, BAD_TEMPO, BAD_TIME_SIGNATURE, BAD_KEY_SIGNATURE,
    MENDED_CHUNKS, EARLY_ENDS, BYTES_AFTER_END, N_ENDINGS, DRUM_SIGNS, N_FACTS,
) = range(24)  # fmt: skip

# Values of CODE.
(
    OK, EMPTY, NOT_MIDI, RIFF_WITHOUT_DATA, HEADER_CUT, HEADER_LENGTH, BAD_FORMAT, SMPTE, ZERO_DIVISION, CHUNK_CUT,
    BAD_CHUNK, TOO_MANY_TRACKS, NO_TRACKS, NO_STATUS, BAD_STATUS, EVENT_CUT, BAD_LENGTH, TICK_OVERFLOW,
    TOO_MANY_NOTES, NO_NOTES, ALL_UNENDED,
) = range(21)  # fmt: skip

TEMPO, TIME_SIGNATURE, KEY_SIGNATURE = KEPT_METAS = 0x51, 0x58, 0x59  # meta events that are kept
DEFAULT_TEMPO = 500_000  # microseconds per quarter where a file says nothing: 120 beats a minute
TEMPO_MIN = 1_000  # microseconds per quarter; only broken files are below: 60,000 beats a minute
_END_OF_TRACK, _PORT = 0x2F, 0x21
MAX_STEPS = 64  # notes of one channel and pitch, begun on other ports, that a note-off skips
_NO_KIND = -1

_NOTES, _SUSTAINS, _CONTROLS, _METAS = range(4)  # places in `counts`


class EventBatch(NamedTuple):
    """Events of F files, file after file and track after track, in the order of the bytes.

    `key` tells channels apart: sequence (of a format 2 file) × 2048 + port × 16 + channel. Controls are what
    `modes` is about; a reset has the key of the first channel of its port.
    """

    facts: NDArray[np.int64]  # [F, N_FACTS]
    offsets: NDArray[np.int64]  # [F + 1, 4]: where the notes, sustains, controls and metas of each file begin
    onset: NDArray[np.int32]  # ticks
    duration: NDArray[np.int32]  # ticks; UNENDED where no note-off came
    pitch: NDArray[np.uint8]
    velocity: NDArray[np.uint8]
    program: NDArray[np.uint8]  # or UNKNOWN_PROGRAM
    key: NDArray[np.int32]
    track: NDArray[np.int32]  # index of the chunk in its file
    next_open: NDArray[np.int32]  # work space: the next note that sounds on the same channel and pitch
    sustain_tick: NDArray[np.int32]
    sustain_key: NDArray[np.int32]  # or -1 - port of a reset, which lifts the pedals of its 16 channels
    sustain_value: NDArray[np.uint8]  # or modes.PEDAL_BREAK
    control_tick: NDArray[np.int32]
    control_key: NDArray[np.int32]
    control_kind: NDArray[np.uint8]
    control_value: NDArray[np.uint8]
    control_note: NDArray[np.int32]  # index of the first note after it in the file
    control_track: NDArray[np.int32]
    meta_tick: NDArray[np.int32]
    meta_kind: NDArray[np.uint8]
    meta_values: NDArray[np.int32]  # [·, 2]


def read_events(data: NDArray[np.uint8], offsets: NDArray[np.int64], max_notes: int, max_tracks: int) -> EventBatch:
    """Read the events of a batch of files.

    Args:
        data: uint8[·], the files one after another.
        offsets: int64[F + 1], where each begins.
        max_notes, max_tracks: of one file; above, it is refused with a code.
    """
    n_files, n_bytes = len(offsets) - 1, len(data)
    room = {"control": n_bytes // 2 + 1, "meta": n_bytes // 4 + 1}  # by the fewest bytes that an event can take
    columns: dict[str, Any] = {}
    for name, hint in list(EventBatch.__annotations__.items())[2:]:
        n_rows = room.get(name.partition("_")[0], n_bytes // 3 + 1)
        columns[name] = np.empty((n_rows, 2) if name == "meta_values" else n_rows, get_args(get_args(hint)[1])[0])
    batch = EventBatch(np.zeros((n_files, N_FACTS), np.int64), np.zeros((n_files + 1, 4), np.int64), **columns)
    _read_files(data, offsets, max_notes, max_tracks, batch)
    return batch


@njit(cache=True, nogil=True)
def _read_files(data, offsets, max_notes, max_tracks, batch):
    counts = np.zeros(4, np.int64)
    heads, tails = np.empty(2048, np.int32), np.empty(2048, np.int32)
    no_endings = np.empty(0, np.int64)
    for index in range(len(offsets) - 1):
        for kind in range(4):
            batch.offsets[index, kind] = counts[kind]
        facts = batch.facts[index]
        begin, end = offsets[index], offsets[index + 1]
        _read_file(data, begin, end, max_notes, max_tracks, batch, facts, counts, heads, tails, no_endings)
        if facts[CODE] != OK:  # discard the events of a refused file
            facts[POSITION] -= offsets[index]
            for kind in range(4):
                counts[kind] = batch.offsets[index, kind]
    for kind in range(4):
        batch.offsets[len(offsets) - 1, kind] = counts[kind]


@njit(cache=True, nogil=True)
def _fail(facts, code, position, value, limit):
    facts[CODE], facts[POSITION], facts[VALUE], facts[LIMIT] = code, position, value, limit


@njit(cache=True, nogil=True)
def _read_file(data, begin, end, max_notes, max_tracks, batch, facts, counts, heads, tails, no_endings):
    if begin == end:
        return _fail(facts, EMPTY, begin, 0, 1)
    if (
        end - begin >= 12 and is_tag(data, begin, 82, 73, 70, 70) and is_tag(data, begin + 8, 82, 77, 73, 68)
    ):  # RIFF, RMID
        start = begin
        begin, end = unwrap_riff(data, begin, end)
        if begin < 0:
            return _fail(facts, RIFF_WITHOUT_DATA, start + 12, 0, 0)
    if end - begin < 4 or not is_tag(data, begin, 77, 84, 104, 100):  # MThd
        return _fail(facts, NOT_MIDI, begin, 0, 0)
    if end - begin < 14:
        return _fail(facts, HEADER_CUT, begin, end - begin, 14)
    header_length = read_big(data, begin + 4, 4)
    if not 6 <= header_length <= end - begin - 8:
        return _fail(facts, HEADER_LENGTH, begin + 4, header_length, end - begin)
    facts[FORMAT], facts[N_STATED] = read_big(data, begin + 8, 2), read_big(data, begin + 10, 2)
    facts[TICKS_PER_QUARTER] = read_big(data, begin + 12, 2)
    if facts[TICKS_PER_QUARTER] & 0x8000:
        return _fail(facts, SMPTE, begin + 12, facts[TICKS_PER_QUARTER], 0x7FFF)
    if facts[TICKS_PER_QUARTER] == 0:
        return _fail(facts, ZERO_DIVISION, begin + 12, 0, 1)
    if facts[FORMAT] > 2:
        return _fail(facts, BAD_FORMAT, begin + 8, facts[FORMAT], 2)
    position, before, at_header = begin + 8 + header_length, counts.copy(), facts.copy()
    endings = no_endings, no_endings
    _read_chunks(data, position, end, max_notes, max_tracks, batch, facts, counts, heads, tails, endings)
    if facts[CODE] == OK and facts[N_ENDINGS] > 0:
        endings = modes.sort_endings(batch, before[_CONTROLS], counts[_CONTROLS])
        if modes.is_any_cut(batch, before[_NOTES], counts[_NOTES], *endings, UNENDED):
            # Once more, now that it is known which messages of all tracks end notes: a note-off after such a message
            # ends nothing, or another note.
            counts[:], facts[:] = before, at_header
            _read_chunks(data, position, end, max_notes, max_tracks, batch, facts, counts, heads, tails, endings)
    if facts[CODE] != OK:
        return
    if facts[N_TRACKS] == 0:
        code = CHUNK_CUT if facts[N_STATED] else NO_TRACKS
        return _fail(facts, code, end - facts[TRAILING_BYTES], facts[N_STATED], 0)
    if facts[N_NOTE_ONS] == 0:
        return _fail(facts, NO_NOTES, end, facts[N_TRACKS], 0)
    if facts[UNENDED_NOTES] == facts[N_NOTE_ONS]:
        return _fail(facts, ALL_UNENDED, end, facts[N_NOTE_ONS], 0)


@njit(cache=True, nogil=True)
def _read_chunks(data, position, end, max_notes, max_tracks, batch, facts, counts, heads, tails, endings):
    """Read all track chunks from `position` on. A fault is left in `facts`."""
    first_note = counts[_NOTES]
    # A chunk of "MThd" begins a second file after the first: its bytes are counted, not read.
    while position + 8 <= end and not is_tag(data, position, 77, 84, 104, 100):
        size = read_big(data, position + 4, 4)
        is_track = is_tag(data, position, 77, 84, 114, 107)  # MTrk
        if not is_track and (not is_chunk_type(data, position) or position + 8 + size > end):
            if facts[N_TRACKS] >= facts[N_STATED] and facts[N_TRACKS] > 0:
                break  # junk after the last track, not a track that was cut
            return _fail(facts, BAD_CHUNK, position, size, end - position - 8)
        if not is_track:
            position += 8 + size
            continue
        if facts[N_TRACKS] >= max_tracks:
            return _fail(facts, TOO_MANY_TRACKS, position, max_tracks + 1, max_tracks)
        stop = _read_track(data, position + 8, position + 8 + size, end, batch, facts, counts, heads, tails, endings)
        if facts[CODE] != OK:
            return
        if counts[_NOTES] - first_note > max_notes:
            return _fail(facts, TOO_MANY_NOTES, position, counts[_NOTES] - first_note, max_notes)
        position = stop
        facts[N_TRACKS] += 1
    facts[TRAILING_BYTES] = end - position
    facts[MISSING_TRACKS] = max(facts[N_STATED] - facts[N_TRACKS], 0)


@njit(cache=True, nogil=True)
def _variable(data, position, end):
    """Return (number, place after it) of a variable-length number; the number is -1 where it is cut or over 4 bytes."""
    value = 0
    for place in range(position, min(position + 4, end)):
        byte = int(data[place])
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, place + 1
    return -1, position


@njit(cache=True, nogil=True, inline="always")
def next_event(data, position, end, running):
    """Return (code, ticks since the event before, status, meta type or _NO_KIND, body, place after the body)."""
    shift = 0
    if position < end and data[position] < 0x80:
        shift = int(data[position])
        position += 1
    else:
        shift, position = _variable(data, position, end)
        if shift < 0:
            return (EVENT_CUT if end - position < 4 else BAD_LENGTH), 0, 0, _NO_KIND, position, position
    if position >= end:
        return EVENT_CUT, 0, 0, _NO_KIND, position, position
    status = int(data[position])
    if status < 0x80:
        status = running
    else:
        position += 1
    if status < 0xF0:
        if status == 0:
            return NO_STATUS, shift, status, _NO_KIND, position, position
        stop = position + (1 if 0xC0 <= status < 0xE0 else 2)
        return (EVENT_CUT if stop > end else OK), shift, status, _NO_KIND, position, stop
    kind = _NO_KIND
    if status == 0xFF:
        if position >= end:
            return EVENT_CUT, shift, status, kind, position, position
        kind = int(data[position])
        position += 1
    if status == 0xFF or status == 0xF0 or status == 0xF7:  # noqa: PLR1714  compiled, this is the fast form
        size, position = _variable(data, position, end)
        if size < 0:
            return (EVENT_CUT if end - position < 4 else BAD_LENGTH), shift, status, kind, position, position
        return (EVENT_CUT if position + size > end else OK), shift, status, kind, position, position + size
    if status == 0xF4 or status == 0xF5:  # noqa: PLR1714
        return BAD_STATUS, shift, status, kind, position, position
    n_data = 2 if status == 0xF2 else 1 if status in (0xF1, 0xF3) else 0  # system messages have no place in a file
    return (EVENT_CUT if position + n_data > end else OK), shift, status, kind, position, position + n_data


@njit(cache=True, nogil=True)
def _is_clean(data, position, end, running):
    """Return whether all bytes up to `end` are whole events."""
    while position < end:
        code, _, status, _, _, position = next_event(data, position, end, running)
        if code != OK:
            return False
        if status < 0xF0:
            running = status
    return True


@njit(cache=True, nogil=True)
def _mended_end(data, position, stated_end, file_end, running):
    """Return the end of a track whose stated size is too small, or -1.

    It is after the End of Track, if only events are before it and no chunk begins at the stated end.
    """
    if stated_end + 4 > file_end or is_chunk_type(data, stated_end):
        return -1
    while position < file_end:
        code, _, status, kind, _, position = next_event(data, position, file_end, running)
        if code != OK:
            return -1
        if kind == _END_OF_TRACK:
            return position
        if status < 0xF0:
            running = status
    return -1


@njit(cache=True, nogil=True)
def _read_track(data, begin, stated_end, file_end, batch, facts, counts, heads, tails, endings):
    """Read one track chunk; return where the next chunk begins. A fault is left in `facts`.

    Args:
        endings: what `modes.sort_endings` found in all tracks; empty where no message ends a note.
    """
    heads[:] = -1
    programs = np.full(2048, UNKNOWN_PROGRAM, np.uint8)
    ending_keys, ending_places = endings
    has_endings = len(ending_keys) > 0
    track, first_note, tick, key_base = facts[N_TRACKS], counts[_NOTES], 0, 0
    if facts[FORMAT] == 2:  # each track is a piece of its own after the one before, and takes nothing over
        tick, key_base = facts[LENGTH], track << 11
        programs[:] = 0
        _keep_meta(batch, counts, tick, TEMPO, DEFAULT_TEMPO, 0)
    # Taken out of the tuple once: each look into it inside the loop would count references.
    onset, duration, pitch, velocity = batch.onset, batch.duration, batch.pitch, batch.velocity
    note_program, note_key, note_track, next_open = batch.program, batch.key, batch.track, batch.next_open
    sustain_tick, sustain_key, sustain_value = batch.sustain_tick, batch.sustain_key, batch.sustain_value
    n_notes, n_sustains = counts[_NOTES], counts[_SUSTAINS]
    end, position, running, has_end, is_early = min(stated_end, file_end), begin, 0, False, False
    if end == begin:
        end = max(_mended_end(data, begin, stated_end, file_end, running), end)
        facts[MENDED_CHUNKS] += end > begin
    while position < end:
        at = position
        code, shift, status, kind, body, position = next_event(data, at, end, running)
        if (code == EVENT_CUT or (position == end and kind != _END_OF_TRACK)) and end == stated_end:
            mended = _mended_end(data, at, stated_end, file_end, running)
            if mended > end:
                facts[MENDED_CHUNKS] += 1
                end, position = mended, at
                continue
        tick += shift
        if tick > TICK_MAX and code == OK and (status < 0xA0 or 0xB0 <= status < 0xD0 or kind in KEPT_METAS):
            code = TICK_OVERFLOW
        if code != OK:
            if code == EVENT_CUT and stated_end > file_end:
                _fail(facts, CHUNK_CUT, begin - 4, stated_end - begin, file_end - begin)
            else:
                _fail(facts, code, at, tick if code == TICK_OVERFLOW else int(data[min(body, end - 1)]), TICK_MAX)
            return end
        if status < 0xF0:
            running = status
            message, channel, first, second = status & 0xF0, status & 15, int(data[body]), 0
            if position - body == 2:
                second = int(data[body + 1])
            if first > 127 or second > 127:
                facts[SANITIZED] += (first > 127) + (second > 127)
                first, second = min(first, 127), min(second, 127)
            key, slot = key_base | channel, channel << 7 | first
            if message == 0x90 and second > 0:
                onset[n_notes], duration[n_notes], next_open[n_notes] = tick, UNENDED, -1
                pitch[n_notes], velocity[n_notes], note_program[n_notes] = first, second, programs[key & 2047]
                note_key[n_notes], note_track[n_notes] = key, track
                if heads[slot] < 0:
                    heads[slot] = n_notes
                else:
                    next_open[tails[slot]] = n_notes
                tails[slot] = n_notes
                n_notes += 1
            elif message <= 0x90:  # ends the note of this channel and pitch that began first, if any
                if has_endings:
                    facts[ZERO_LENGTH_NOTES] += modes.drop_ended(
                        batch, heads, tails, slot, key, tick, ending_keys, ending_places, MAX_STEPS
                    )
                note, before, steps = heads[slot], -1, 0
                while note >= 0 and note_key[note] != key and steps < MAX_STEPS:  # begun on another port
                    before, note, steps = note, next_open[note], steps + 1
                if note >= 0 and note_key[note] == key:
                    if before < 0:
                        heads[slot] = next_open[note]
                    else:
                        next_open[before] = next_open[note]
                        if tails[slot] == note:
                            tails[slot] = before
                    length = tick - onset[note]
                    duration[note] = max(length, 1)
                    facts[ZERO_LENGTH_NOTES] += length == 0
            elif message == 0xB0 and first == modes.SUSTAIN:
                sustain_tick[n_sustains], sustain_key[n_sustains], sustain_value[n_sustains] = tick, key, second
                n_sustains += 1
            elif message == 0xB0 and modes.is_kept(first):
                move = modes.pedal_move(first)
                if move >= 0:
                    sustain_tick[n_sustains], sustain_key[n_sustains], sustain_value[n_sustains] = tick, key, move
                    n_sustains += 1
                what = modes.kind_of(first)
                if what != modes.NO_CONTROL:
                    _keep_control(batch, counts, facts, tick, key, what, second, n_notes)
            elif message == 0xC0:
                programs[key & 2047] = first
                _keep_control(batch, counts, facts, tick, key, modes.PROGRAM, first, n_notes)
        elif kind in KEPT_METAS:
            _read_meta(data, body, position - body, kind, tick, batch, facts, counts)
        elif (status == 0xF0 or status == 0xF7) and tick <= TICK_MAX:  # noqa: PLR1714
            what, value, channel = modes.read_exclusive(data, body, position)
            if what != modes.NO_CONTROL:
                _keep_control(batch, counts, facts, tick, key_base | channel, what, value, n_notes)
            if what == modes.RESET:
                sustain_tick[n_sustains], sustain_key[n_sustains] = tick, -1 - (key_base >> 4)
                sustain_value[n_sustains] = 0
                n_sustains += 1
        elif kind == _PORT and position - body == 1:
            key_base = key_base >> 11 << 11 | (int(data[body]) & 0x7F) << 4
        elif kind == _END_OF_TRACK:
            has_end = True
            if position + 4 <= file_end and position != stated_end and is_tag(data, position, 77, 84, 114, 107):
                facts[MENDED_CHUNKS] += 1  # the next track begins here, whatever the size says
                end = position
            elif stated_end > file_end:
                facts[MENDED_CHUNKS] += 1  # the size goes beyond the end of the file
                end = position
            elif position < end and is_early:
                continue  # all that follows was looked at before
            elif position < end and _is_clean(data, position, end, running):
                facts[EARLY_ENDS] += 1
                is_early = True
            elif position < end:
                facts[BYTES_AFTER_END] += end - position
                break
    if stated_end > file_end and not has_end:
        _fail(facts, CHUNK_CUT, begin - 4, stated_end - begin, file_end - begin)
        return end
    facts[LENGTH] = min(max(facts[LENGTH], tick), TICK_MAX)
    facts[N_NOTE_ONS] += n_notes - first_note
    for note in range(first_note, n_notes):
        if duration[note] == UNENDED:
            ended = modes.ending_of(batch, note, ending_keys, ending_places) if has_endings else -1
            if ended >= 0:
                duration[note] = max(ended - onset[note], 1)
                facts[ZERO_LENGTH_NOTES] += ended == onset[note]
            else:
                facts[UNENDED_NOTES] += 1
    counts[_NOTES], counts[_SUSTAINS] = n_notes, n_sustains
    return end


@njit(cache=True, nogil=True)
def _keep_control(batch, counts, facts, tick, key, kind, value, note):
    place = counts[_CONTROLS]
    batch.control_tick[place], batch.control_key[place], batch.control_kind[place] = tick, key, kind
    batch.control_value[place], batch.control_note[place], batch.control_track[place] = value, note, facts[N_TRACKS]
    counts[_CONTROLS] += 1
    facts[N_ENDINGS] += kind in (modes.NOTES_OFF, modes.RESET)
    facts[DRUM_SIGNS] |= modes.drum_signs(kind, key & 15, value)


@njit(cache=True, nogil=True)
def _keep_meta(batch, counts, tick, kind, first, second):
    place = counts[_METAS]
    batch.meta_tick[place], batch.meta_kind[place] = tick, kind
    batch.meta_values[place, 0], batch.meta_values[place, 1] = first, second
    counts[_METAS] += 1


@njit(cache=True, nogil=True)
def _read_meta(data, body, size, kind, tick, batch, facts, counts):
    """Keep a valid tempo or signature; count an invalid one."""
    if kind == TEMPO:
        tempo = read_big(data, body, 3) if size == 3 else 0
        if tempo < TEMPO_MIN:
            facts[BAD_TEMPO] += 1
        else:
            _keep_meta(batch, counts, tick, kind, tempo, 0)
    elif kind == TIME_SIGNATURE:
        if size < 2 or data[body] == 0 or data[body + 1] > 7:
            facts[BAD_TIME_SIGNATURE] += 1
        else:
            _keep_meta(batch, counts, tick, kind, int(data[body]), 1 << int(data[body + 1]))
    else:
        sharps = int(data[body]) if size >= 2 else 128
        sharps = sharps - 256 if sharps > 127 else sharps
        if size < 2 or abs(sharps) > 7 or data[body + 1] > 1:
            facts[BAD_KEY_SIGNATURE] += 1
        else:
            _keep_meta(batch, counts, tick, kind, sharps, int(data[body + 1]))
