"""Channel mode messages, bank selects and resets of MIDI files, in compiled code: the ends of notes, and drums.

The model is an instrument of 16 channels on each port, as General MIDI has it: channel 10 plays drums until a message
says otherwise. Every message of a channel counts, whichever track it is on. Messages of one tick act in the order
of the bytes, with one exception: the format gives tracks no order within a tick, so a message on another track does not
end a note that begins at its tick. `docs/data-format.md` has the table of all messages.

Source: MIDI 1.0 Detailed Specification (channel mode messages), RP-015 (Reset All Controllers), General MIDI 1 and 2,
Yamaha XG Specifications, Roland SC-55 and SC-88 MIDI implementations (GS).
"""

import numpy as np

from tasks.music.compiled import njit

# Kinds of controls: what is kept of a file besides notes, pedals and meta events.
BANK, PROGRAM, NOTES_OFF, RESET, RHYTHM = range(5)
NO_CONTROL = -1

BANK_SELECT, SUSTAIN, ALL_SOUND_OFF, RESET_ALL_CONTROLLERS, LOCAL_CONTROL = 0, 64, 120, 121, 122  # controllers
PEDAL_BREAK = 0xFF  # among the values of a sustain pedal: All Sound Off, which ends what rings and lifts nothing
DRUM_CHANNEL = 9
DRUMS = 0x80  # is set in the program of a note that is a drum

GENERAL_MIDI, GS, XG = range(3)  # modes, the values of RESET

_CHANNEL_OF_PART = np.array([9, 0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 15])  # GS counts channel 10 as part 0
DRUM_BANKS, _MELODY_BANK = (120, 126, 127), 121  # GM2, XG, XG; GM2
_SIGN, _SIGN_OF_XG, _SIGN_OF_BANK = 1, 2, 4  # bits: a sign alone, and two that mean something together
_TICK_BITS = 31


@njit(cache=True, nogil=True, inline="always")
def is_kept(controller):
    """Return whether a controller, besides the sustain pedal, changes the notes that sound or are drums."""
    return controller == BANK_SELECT or controller >= ALL_SOUND_OFF


@njit(cache=True, nogil=True)
def pedal_move(controller):
    """Return what a channel mode message does to the sustain pedal: its new value, PEDAL_BREAK, or -1 for nothing."""
    if controller == ALL_SOUND_OFF:
        return PEDAL_BREAK
    return 0 if controller == RESET_ALL_CONTROLLERS else -1


@njit(cache=True, nogil=True, inline="always")
def kind_of(controller):
    """Return the kind of control that a controller is, or NO_CONTROL."""
    if controller == BANK_SELECT:
        return BANK
    return NOTES_OFF if controller == ALL_SOUND_OFF or controller > LOCAL_CONTROL else NO_CONTROL


@njit(cache=True, nogil=True)
def drum_signs(kind, channel, value):
    """Return what a control lets expect of the drums of its file, as bits for `are_drums_elsewhere`."""
    if kind == RESET:
        return _SIGN_OF_XG if value == XG else 0
    if kind == RHYTHM:
        return _SIGN if (value > 0) != (channel == DRUM_CHANNEL) else 0
    if kind != BANK:
        return 0
    if channel == DRUM_CHANNEL and value not in DRUM_BANKS:
        return _SIGN if value == _MELODY_BANK else _SIGN_OF_BANK
    return _SIGN if channel != DRUM_CHANNEL and value in DRUM_BANKS else 0


@njit(cache=True, nogil=True)
def are_drums_elsewhere(signs):
    """Return whether other channels than 10 may have drums, by the signs of all controls of a file."""
    return signs & _SIGN > 0 or signs == _SIGN_OF_XG | _SIGN_OF_BANK


@njit(cache=True, nogil=True)
def read_exclusive(data, body, end):
    """Return (kind, value, channel) of a system exclusive message whose bytes go from `body` to `end`.

    Device numbers and check sums are not looked at. Messages that are sent in several parts are not put together.
    """
    if body < end and data[body] == 0xF0:  # inside an escape (F7)
        body += 1
    size = end - body
    if size < 4:
        return NO_CONTROL, 0, 0
    if data[body] == 0x7E and data[body + 2] == 0x09 and 1 <= data[body + 3] <= 3:  # GM on, GM off, GM2 on
        return RESET, GENERAL_MIDI, 0
    if size < 7:
        return NO_CONTROL, 0, 0
    high, middle, low = data[body + 3], data[body + 4], data[body + 5]
    if data[body] == 0x43 and data[body + 1] & 0xF0 == 0x10 and data[body + 2] == 0x4C:  # XG parameter change
        if high == 0 and middle == 0 and (low == 0x7E or low == 0x7F):  # noqa: PLR1714  compiled
            return RESET, XG, 0
        if high == 0x08 and middle < 16 and low == 0x07:  # part mode
            return RHYTHM, int(data[body + 6] > 0), int(middle)
    if size >= 8 and data[body] == 0x41 and data[body + 2] == 0x42 and data[body + 3] == 0x12:  # GS data set
        high, middle, low, value = data[body + 4], data[body + 5], data[body + 6], data[body + 7]
        if low == 0x7F and middle == 0 and (high == 0x40 or high == 0):  # noqa: PLR1714
            return RESET, GENERAL_MIDI if value == 0x7F else GS, 0
        if high == 0x40 and middle & 0xF0 == 0x10 and low <= 0x15:  # one message may set several addresses in a row
            place = body + 7 + 0x15 - low
            if place < end and data[place] <= 2:
                return RHYTHM, int(data[place] > 0), _CHANNEL_OF_PART[middle & 15]
    return NO_CONTROL, 0, 0


@njit(cache=True, nogil=True)
def sort_endings(batch, first, last):
    """Return (keys, places) of the controls that end notes: a key holds channel or port, then the tick, and rises."""
    n_endings = 0
    for place in range(first, last):
        n_endings += batch.control_kind[place] == NOTES_OFF or batch.control_kind[place] == RESET
    keys, places = np.empty(n_endings, np.int64), np.empty(n_endings, np.int64)
    at = 0
    for place in range(first, last):
        is_reset = batch.control_kind[place] == RESET
        if is_reset or batch.control_kind[place] == NOTES_OFF:
            group = np.int64(batch.control_key[place]) << 1 | int(is_reset)
            keys[at], places[at] = group << _TICK_BITS | batch.control_tick[place], place
            at += 1
    order = np.argsort(keys, kind="mergesort")
    return keys[order], places[order]


@njit(cache=True, nogil=True)
def ending_of(batch, note, keys, places):
    """Return the tick of the first message after the start of a note that ends it, or -1."""
    onset, track, channel = np.int64(batch.onset[note]), batch.track[note], np.int64(batch.key[note])
    found = np.int64(-1)
    for is_reset in range(2):
        group = (channel >> 4 << 4 if is_reset else channel) << 1 | is_reset
        wanted = group << _TICK_BITS | onset
        stop = np.searchsorted(keys, wanted, side="right")
        low, high = np.searchsorted(keys, wanted, side="left"), stop
        while low < high:  # of the messages at its tick, those after it in the file
            middle = (low + high) // 2
            if batch.control_note[places[middle]] > note:
                high = middle
            else:
                low = middle + 1
        tick = np.int64(-1)
        if low < stop and batch.control_track[places[low]] == track:
            tick = onset
        elif stop < len(keys) and keys[stop] >> _TICK_BITS == group:
            tick = keys[stop] & ((1 << _TICK_BITS) - 1)
        if tick >= 0 and (found < 0 or tick < found):
            found = tick
    return found


@njit(cache=True, nogil=True)
def drop_ended(batch, heads, tails, slot, key, tick, ending_keys, ending_places, max_steps):
    """End the open notes of a channel and pitch that a message up to `tick` ended; return how many have no length."""
    note, before, steps, n_zero = heads[slot], -1, 0, 0
    while note >= 0 and steps < max_steps:
        if batch.key[note] != key:  # begun on another port
            before, note, steps = note, batch.next_open[note], steps + 1
            continue
        ended = ending_of(batch, note, ending_keys, ending_places)
        if not 0 <= ended <= tick:
            break
        if before < 0:
            heads[slot] = batch.next_open[note]
        else:
            batch.next_open[before] = batch.next_open[note]
            if tails[slot] == note:
                tails[slot] = before
        batch.duration[note] = max(ended - batch.onset[note], 1)
        n_zero += ended == batch.onset[note]
        note = batch.next_open[note]
    return n_zero


@njit(cache=True, nogil=True)
def is_any_cut(batch, first_note, last_note, keys, places, unended):
    """Return whether a message ends any of the notes before its note-off does."""
    for note in range(first_note, last_note):
        tick = ending_of(batch, note, keys, places)
        if tick >= 0 and (batch.duration[note] == unended or tick < np.int64(batch.onset[note]) + batch.duration[note]):
            return True
    return False


@njit(cache=True, nogil=True)
def mark_drums(events, first, last, begin, end, programs):
    """Set `DRUMS` in the programs of the notes `begin` to `end` that are drums, by the controls `first` to `last`."""
    note_keys, control_keys = np.empty(end - begin, np.int64), np.empty(last - first, np.int64)
    for note in range(begin, end):
        note_keys[note - begin] = _order_of(events.key[note], events.onset[note])
    for place in range(first, last):
        control_keys[place - first] = _order_of(events.control_key[place], events.control_tick[place])
    kinds, values, channels = events.control_kind, events.control_value, events.control_key
    first_notes, note_channels = events.control_note, events.key
    note_order = np.argsort(note_keys, kind="mergesort")
    control_order = np.argsort(control_keys, kind="mergesort")
    bank, is_rhythm, is_drum = np.empty(16, np.int64), np.empty(16, np.bool_), np.empty(16, np.bool_)
    mode, port, at = GENERAL_MIDI, np.int64(-1), 0
    for number in note_order:
        note, key = begin + number, note_keys[number]
        if key >> _TICK_BITS != port:
            port, mode = key >> _TICK_BITS, _reset(bank, is_rhythm, is_drum, GENERAL_MIDI)
        while at < len(control_order):
            place, control_key = first + control_order[at], control_keys[control_order[at]]
            if control_key > key or (control_key == key and first_notes[place] > note):
                break
            at += 1
            if control_key >> _TICK_BITS != port:  # of a port without notes after it
                continue
            kind, value, channel = kinds[place], np.int64(values[place]), channels[place] & 15
            if kind == RESET:
                mode = _reset(bank, is_rhythm, is_drum, value)
            elif kind == RHYTHM:
                bank[channel], is_rhythm[channel], is_drum[channel] = -1, value > 0, value > 0
            elif kind == BANK:
                bank[channel] = value  # waits for the next program change
            elif kind == PROGRAM and bank[channel] >= 0:
                is_drum[channel] = _is_drum_bank(mode, bank[channel], is_rhythm[channel])
        if is_drum[note_channels[note] & 15]:
            programs[number] |= DRUMS


@njit(cache=True, nogil=True)
def _order_of(key, tick):
    return np.int64(key >> 4) << _TICK_BITS | tick


@njit(cache=True, nogil=True)
def _reset(bank, is_rhythm, is_drum, mode):
    for channel in range(16):
        bank[channel], is_rhythm[channel], is_drum[channel] = -1, channel == DRUM_CHANNEL, channel == DRUM_CHANNEL
    return mode


@njit(cache=True, nogil=True)
def _is_drum_bank(mode, bank, is_rhythm):
    if mode == GS:  # its banks are variations of one sound; 126 and 127 hold those of the CM-64
        return is_rhythm
    if bank in DRUM_BANKS:
        return True
    if mode == XG or bank == _MELODY_BANK:
        return False
    return is_rhythm
