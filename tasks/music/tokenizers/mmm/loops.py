"""The compiled loops of `mmm`: from notes in ticks to words, over flat arrays of many pieces."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.music.arrays import BoolArray, IntArray
from tasks.music.compiled import njit
from tasks.music.tokenizers.loops import power_of_two, sort_run

REASONS = (
    "unison_merged",
    "restrike_shortened",
    "lengthened",
    "cut_at_bar_line",
    "unknown_words",
    "beyond_max_bars",
    "beyond_max_tracks",
)
_MERGED, _RESTRUCK, _LENGTHENED, _CUT, _UNKNOWN, _BEYOND_BARS, _BEYOND_TRACKS = range(len(REASONS))

# An event of a bar as one integer, from its highest bits down: units since the bar began, kind, pitch. Sorted, the
# integers are the events in the order of the text. One bar of one track is a cell.
_TIME_BIT, _KIND_BIT = 9, 7
OFF, TIED, ON = 0, 1, 2

_INSTRUMENTS = 129


class Notes(NamedTuple):
    """N notes of P pieces on the grid; the loops mark what the text does not hold and shorten what it cuts."""

    offsets: IntArray  # [P + 1]
    pitch: NDArray[np.uint8]
    track: NDArray[np.int32]  # of all tracks of the batch, -1 where a piece has too many
    onset: IntArray  # units
    end: IntArray
    stays: BoolArray


class Tracks(NamedTuple):
    """K tracks of P pieces: one for each instrument of each source part."""

    offsets: IntArray  # [P + 1]
    instrument: IntArray  # [K]: 0-127, 128 for drums


class Bars(NamedTuple):
    """Bars of P pieces: piece i has `n[i]`, and the borders `offsets[i]` and the `n[i]` after it."""

    n: IntArray
    offsets: IntArray  # [P + 1]
    borders: IntArray  # units
    ids: IntArray  # BAR_START words, each at its bar's first border


class WordTables(NamedTuple):
    """Ids by what the words say, 0 ([UNK]) for what the vocabulary lacks."""

    events: IntArray  # [3, 128], NOTE_OFF, TIE and NOTE_ON by pitch
    instruments: IntArray  # [129], DRUMS last
    densities: IntArray  # by level
    meter_ids: IntArray  # [256, 5], by numerator and power of the denominator
    meter_units: IntArray  # [256, 5], length of the bar; 0 where there is no such word
    delta_offsets: IntArray  # [longest bar + 2], which of `delta_ids` make up each length
    delta_ids: IntArray
    head: IntArray  # what comes before the tracks of a piece
    foot: IntArray  # and after them
    track_start: int
    track_end: int
    bar_end: int


@njit(cache=True, nogil=True)
def find_tracks(offsets, source, program, is_drum, max_tracks):
    """Number the tracks of each piece in order of part and instrument; -1 for notes of tracks beyond `max_tracks`.

    Returns:
        track of each note, offsets of the tracks by piece, instrument of each track.
    """
    n_pieces = len(offsets) - 1
    n_parts = (np.int64(source.max()) + 1 if len(source) else 0) * _INSTRUMENTS
    place = np.full(n_parts, -1, np.int32)
    track, parts = np.empty(len(source), np.int32), np.empty(len(source), np.int64)
    track_offsets = np.zeros(n_pieces + 1, np.int64)
    n_tracks = 0
    for piece in range(n_pieces):
        first = n_tracks
        for note in range(offsets[piece], offsets[piece + 1]):
            part = _part(source[note], program[note], is_drum[note])
            if place[part] < 0:
                place[part] = 0
                parts[n_tracks] = part
                n_tracks += 1
        parts[first:n_tracks].sort()
        for index in range(first, n_tracks):
            place[parts[index]] = index if index < first + max_tracks else -1
        for note in range(offsets[piece], offsets[piece + 1]):
            track[note] = place[_part(source[note], program[note], is_drum[note])]
        for index in range(first, n_tracks):
            place[parts[index]] = -1
        n_tracks = min(n_tracks, first + max_tracks)
        track_offsets[piece + 1] = n_tracks
    return track, track_offsets, parts[:n_tracks] % _INSTRUMENTS


@njit(cache=True, nogil=True)
def _part(source, program, is_drum):
    return np.int64(source) * _INSTRUMENTS + (_INSTRUMENTS - 1 if is_drum else np.int64(program))


@njit(cache=True, nogil=True)
def hold_notes(notes, tracks, onset, duration, ticks_per_quarter, units_per_quarter, counts):
    """Put notes on the grid, at least one unit long, and no two of one pitch and track sounding at once."""
    most_tracks = 0
    for piece in range(len(ticks_per_quarter)):
        most_tracks = max(most_tracks, tracks.offsets[piece + 1] - tracks.offsets[piece])
    latest = np.full(max(most_tracks, 1) * 128, -1, np.int64)  # note that sounded last on each track and pitch
    for piece in range(len(ticks_per_quarter)):
        first, ticks = notes.offsets[piece], ticks_per_quarter[piece]
        n_merged, n_restruck, n_lengthened, n_beyond = 0, 0, 0, 0
        for note in range(first, notes.offsets[piece + 1]):
            start = _units(onset[note], ticks, units_per_quarter)
            rounded_end = _units(onset[note] + duration[note], ticks, units_per_quarter)
            end = max(rounded_end, start + 1)
            notes.onset[note], notes.end[note] = start, end
            if notes.track[note] < 0:
                notes.stays[note] = False
                n_beyond += 1
                continue
            voice = (notes.track[note] - tracks.offsets[piece]) << 7 | np.int64(notes.pitch[note])
            before = latest[voice]
            if before >= first and notes.onset[before] == start:
                notes.end[before] = max(notes.end[before], end)
                notes.stays[note] = False
                n_merged += 1
                continue
            if before >= first and notes.end[before] > start:
                notes.end[before] = start
                n_restruck += 1
            n_lengthened += end > rounded_end
            latest[voice] = note
        counts[_MERGED, piece], counts[_RESTRUCK, piece] = n_merged, n_restruck
        counts[_LENGTHENED, piece], counts[_BEYOND_TRACKS, piece] = n_lengthened, n_beyond


@njit(cache=True, nogil=True)
def last_units(notes, may_ring):
    """Return for each piece the unit up to which it needs bars; 0 without notes."""
    last = np.zeros(len(notes.offsets) - 1, np.int64)
    for piece in range(len(last)):
        for note in range(notes.offsets[piece + 1] - 1, notes.offsets[piece] - 1, -1):
            if notes.stays[note]:
                last[piece] = max(last[piece], notes.end[note] if may_ring else notes.onset[note] + 1)
                if not may_ring:  # notes are in order of onset
                    break
    return last


@njit(cache=True, nogil=True)
def lay_bars(meters, ticks_per_quarter, units_per_quarter, last_unit, max_bars, tables):
    """Lay bars over each piece, from unit 0 until they reach `last_unit` or are as many as allowed.

    Args:
        meters: offsets by piece, ticks, numerators, denominators.
    """
    n_bars = np.zeros(len(last_unit), np.int64)
    offsets = np.zeros(len(last_unit) + 1, np.int64)
    nothing = np.zeros(0, np.int64)
    for piece in range(len(last_unit)):
        scale = ticks_per_quarter[piece], units_per_quarter
        n_bars[piece] = _bars_of(piece, meters, scale, last_unit[piece], max_bars, tables, nothing, nothing)
        offsets[piece + 1] = offsets[piece] + n_bars[piece] + 1
    borders, ids = np.zeros(offsets[-1], np.int64), np.zeros(offsets[-1], np.int64)
    for piece in range(len(last_unit)):
        scale, span = (ticks_per_quarter[piece], units_per_quarter), slice(offsets[piece], offsets[piece + 1])
        _bars_of(piece, meters, scale, last_unit[piece], max_bars, tables, borders[span], ids[span])
    return n_bars, offsets, borders, ids


@njit(cache=True, nogil=True)
def _bars_of(piece, meters, scale, last_unit, max_bars, tables, borders, ids):
    """Write the bars of a piece where there is room for them; return their number.

    A meter takes effect at the first bar line from its tick on. One that has no word is passed over.
    """
    offsets, ticks, numerators, denominators = meters
    change, last_change = offsets[piece], offsets[piece + 1]
    row, power = 4, 2  # 4/4
    now, n_bars = 0, 0
    while now < last_unit and n_bars < max_bars:
        while change < last_change and _units(ticks[change], scale[0], scale[1]) <= now:
            stated = power_of_two(denominators[change])
            if _meter_length(tables.meter_units, numerators[change], stated):
                row, power = numerators[change], stated
            change += 1
        if len(borders):
            borders[n_bars], ids[n_bars] = now, tables.meter_ids[row, power]
        now += tables.meter_units[row, power]
        n_bars += 1
    if len(borders):
        borders[n_bars] = now
    return n_bars


@njit(cache=True, nogil=True)
def _meter_length(meter_units, numerator, power):
    is_inside = 0 <= numerator < meter_units.shape[0] and 0 <= power < meter_units.shape[1]
    return meter_units[numerator, power] if is_inside else 0


@njit(cache=True, nogil=True)
def place_notes(notes, bars, first_cell, may_ring, lacks_pitch, lacks_instrument, end_seconds, counts):
    """Give each note its bar, and cut what does not reach into the next.

    Args:
        first_cell: of each track, and the number of all cells.

    Returns:
        bar of each note, notes and last second of each piece, notes of each track, offsets of the events by cell.
    """
    n_pieces = len(bars.n)
    bar_of_note = np.zeros(len(notes.pitch), np.int64)
    n_notes, seconds = np.zeros(n_pieces, np.int64), np.zeros(n_pieces)
    notes_of_track = np.zeros(len(lacks_instrument), np.int64)
    event_offsets = np.zeros(first_cell[-1] + 1, np.int64)
    for piece in range(n_pieces):
        first, last = bars.offsets[piece], bars.offsets[piece + 1] - 1
        bar = first
        n_beyond, n_cut, n_unknown, n_lost, n_held, latest = 0, 0, 0, 0, 0, 0.0
        for note in range(notes.offsets[piece], notes.offsets[piece + 1]):
            if not notes.stays[note]:
                continue
            if notes.onset[note] >= bars.borders[last]:
                notes.stays[note] = False
                n_beyond += 1
                continue
            while bars.borders[bar + 1] <= notes.onset[note]:
                bar += 1
            bar_of_note[note] = bar
            limit = bars.borders[last if may_ring else bar + 1]
            if notes.end[note] > limit:
                notes.end[note] = limit
                n_cut += 1
            track = notes.track[note]
            end_bar, cell = bar, first_cell[track] + bar - first
            event_offsets[cell + 1] += 2
            while bars.borders[end_bar + 1] < notes.end[note]:
                end_bar, cell = end_bar + 1, cell + 1
                event_offsets[cell + 1] += 2
            is_lost = lacks_pitch[notes.pitch[note]]
            n_lost += is_lost
            n_unknown += is_lost or lacks_instrument[track]
            n_held += 1
            notes_of_track[track] += 1
            latest = max(latest, end_seconds[note])
        n_notes[piece], seconds[piece] = n_held - n_lost, latest
        counts[_CUT, piece], counts[_UNKNOWN, piece], counts[_BEYOND_BARS, piece] = n_cut, n_unknown, n_beyond
    for cell in range(first_cell[-1]):
        event_offsets[cell + 1] += event_offsets[cell]
    return bar_of_note, n_notes, seconds, notes_of_track, event_offsets


@njit(cache=True, nogil=True)
def fill_cells(notes, bars, bar_of_note, first_cell, event_offsets):
    """Return the events of all notes, cell by cell and in order."""
    events = np.empty(event_offsets[-1], np.int32)
    free = event_offsets[:-1].copy()
    for piece in range(len(bars.n)):
        for note in range(notes.offsets[piece], notes.offsets[piece + 1]):
            if not notes.stays[note]:
                continue
            pitch, bar = np.int64(notes.pitch[note]), bar_of_note[note]
            cell = first_cell[notes.track[note]] + bar - bars.offsets[piece]
            start = bars.borders[bar]
            events[free[cell]] = (notes.onset[note] - start) << _TIME_BIT | ON << _KIND_BIT | pitch
            while notes.end[note] > bars.borders[bar + 1]:
                events[free[cell] + 1] = (bars.borders[bar + 1] - start) << _TIME_BIT | OFF << _KIND_BIT | pitch
                free[cell] += 2
                bar, cell, start = bar + 1, cell + 1, bars.borders[bar + 1]
                events[free[cell]] = TIED << _KIND_BIT | pitch
            events[free[cell] + 1] = (notes.end[note] - start) << _TIME_BIT | OFF << _KIND_BIT | pitch
            free[cell] += 2
    for cell in range(len(event_offsets) - 1):
        sort_run(events, event_offsets[cell], event_offsets[cell + 1])
    return events


@njit(cache=True, nogil=True)
def write_words(events, event_offsets, tracks, first_cell, order, levels, bars, tables, room):
    """Return offsets and ids of all pieces.

    Args:
        events: of all cells, in order.
        order: the tracks in order of the text.
        levels: density of each track.
        room: tokens that there are at most.
    """
    offsets = np.zeros(len(bars.n) + 1, np.int64)
    ids = np.empty(room, np.uint16)
    at = 0
    for piece in range(len(bars.n)):
        at = _write_all(ids, at, tables.head)
        for place in range(tracks.offsets[piece], tracks.offsets[piece + 1]):
            track = order[place]
            ids[at], ids[at + 1] = tables.track_start, tables.instruments[tracks.instrument[track]]
            at += 2
            if len(tables.densities):
                ids[at] = tables.densities[levels[track]]
                at += 1
            for bar in range(bars.n[piece]):
                cell = first_cell[track] + bar
                ids[at] = bars.ids[bars.offsets[piece] + bar]
                at = _write_events(ids, at + 1, events, event_offsets[cell], event_offsets[cell + 1], tables)
                ids[at] = tables.bar_end
                at += 1
            ids[at] = tables.track_end
            at += 1
        at = _write_all(ids, at, tables.foot)
        offsets[piece + 1] = at
    return offsets, ids[:at].copy()


@njit(cache=True, nogil=True)
def _write_events(ids, at, events, first, last, tables):
    now = 0
    for index in range(first, last):
        event = events[index]
        time = event >> _TIME_BIT
        if time > now:
            for place in range(tables.delta_offsets[time - now], tables.delta_offsets[time - now + 1]):
                ids[at] = tables.delta_ids[place]
                at += 1
            now = time
        ids[at] = tables.events[event >> _KIND_BIT & 3, event & 127]
        at += 1
    return at


@njit(cache=True, nogil=True)
def _write_all(ids, at, words):
    for word in words:
        ids[at] = word
        at += 1
    return at


@njit(cache=True, nogil=True)
def _units(tick, ticks_per_quarter, units_per_quarter):
    """Round a tick of 0 or more to units, halves up."""
    dividend, divisor = 2 * tick * units_per_quarter + ticks_per_quarter, 2 * ticks_per_quarter
    quotient = np.int64(dividend / divisor)  # a division of floats is twice as fast, and at most 1 too high
    return quotient - (quotient * divisor > dividend)
