"""`remi` ids of the sorted notes, time signatures and tempos of a piece, in order of time, in compiled code."""

import numpy as np

from tasks.music.tokenizers.remi.tables import (
    DRUM_SLOT,
    DURATION_BIT,
    DURATION_MASK,
    N_CLOCK,
    PITCH_BIT,
    PITCH_MASK,
    RANK_BIT,
    RANK_MASK,
    TICK_BIT,
    VELOCITY_MASK,
    inner_njit,
)
from tasks.music.tokenizers.remi.vocabulary import Kind

# Places in the clock, which says how far the tokens of a piece have come.
PREVIOUS, NOTE_END, BAR, BAR_TICK, METER_BAR, METER_TICK, BAR_TICKS, LEVEL, METER = range(N_CLOCK)
_NEVER = 1 << 62


@inner_njit
def tokens_at_most(n, n_tempos, n_sections, tables, work):
    """Return how many tokens a piece has at most."""
    last = work.section_tick[n_sections - 1]
    if n:
        last = max(last, work.keys[n - 1] >> TICK_BIT)
    if n_tempos:
        last = max(last, work.tempo_tick[n_tempos - 1])
    room = 7 * n + 2 * n_tempos + n_sections
    for section in range(n_sections):
        end = work.section_tick[section + 1] if section + 1 < n_sections else last
        bar_ticks = (tables.steps << work.section_level[section]) * tables.numerator[work.section_meter[section]]
        room += 2 * ((end - work.section_tick[section]) // bar_ticks + 1)
    if tables.has_rests:
        # Behind the longest rests, each of which takes its ticks, no silence needs more than four.
        room += 4 * (n + n_tempos + n_sections) + last // tables.rest_ticks[0, -1]
    return room


@inner_njit
def write_piece(n, n_tempos, n_sections, tables, work, ids, at):
    """Write the ids of one piece into `ids` from index `at` on, and return the index after them."""
    clock, first, keys, ends = work.clock, tables.first, work.keys, work.ends
    slots, chords, rests = work.slot_of, work.chord_of, tables.rest_ticks
    writes_meters, has_rests, has_velocities = tables.writes_meters, tables.has_rests, tables.has_velocities
    clock[PREVIOUS], clock[BAR] = -1, -1
    clock[NOTE_END], clock[BAR_TICK], clock[METER_BAR], clock[METER_TICK] = 0, 0, 0, 0
    _set_meter(0, clock, tables, work)
    tempo, section, next_change = 0, 0, 0
    for note in range(n + 1):
        now = keys[note] >> TICK_BIT if note < n else _NEVER
        if now >= next_change:
            at, tempo, section, next_change = _write_changes(
                now, tempo, n_tempos, section, n_sections, tables, work, ids, at
            )
        if note == n:
            break
        if now != clock[PREVIOUS]:
            at = _move_to(now, False, clock, writes_meters, has_rests, first, rests, ids, at)
        slot = slots[keys[note] >> RANK_BIT & RANK_MASK]
        program = first[Kind.PROGRAM] + slot
        if chords[note] >= 0:
            ids[at], ids[at + 1] = program, first[Kind.CHORD] + chords[note]
            at += 2
        base = tables.drum_base if slot == DRUM_SLOT else tables.pitch_base
        ids[at], ids[at + 1] = program, base + (keys[note] >> PITCH_BIT & PITCH_MASK)
        at += 2
        if has_velocities:
            ids[at] = first[Kind.VELOCITY] + (keys[note] & VELOCITY_MASK)
            at += 1
        ids[at] = first[Kind.DURATION] + (keys[note] >> DURATION_BIT & DURATION_MASK)
        at += 1
        clock[NOTE_END] = max(clock[NOTE_END], ends[note])
    return at


@inner_njit
def _write_changes(until, tempo, n_tempos, section, n_sections, tables, work, ids, at):
    """Write the time signatures and tempos up to a tick; at one tick the time signature comes first.

    Returns:
        how far ids, tempos and sections have come, and the tick of the next change.
    """
    clock, first, rests = work.clock, tables.first, tables.rest_ticks
    writes_meters, has_rests = tables.writes_meters, tables.has_rests
    if not writes_meters:
        section = n_sections
    while True:
        meter_tick = work.section_tick[section] if section < n_sections else _NEVER + 1
        tempo_tick = work.tempo_tick[tempo] if tempo < n_tempos else _NEVER + 1
        now = min(meter_tick, tempo_tick)
        if now > until:
            return at, tempo, section, now
        is_meter = meter_tick == now
        if now != clock[PREVIOUS]:
            at = _move_to(now, is_meter, clock, writes_meters, has_rests, first, rests, ids, at)
        if is_meter:
            clock[METER_BAR] += (now - clock[METER_TICK]) // clock[BAR_TICKS]
            _set_meter(section, clock, tables, work)
            clock[PREVIOUS] = now - 1  # so that a position follows
            ids[at] = first[Kind.METER] + clock[METER]
            section += 1
        else:
            ids[at] = first[Kind.TEMPO] + work.tempo_level[tempo]
            tempo += 1
        at += 1
        clock[NOTE_END] = max(clock[NOTE_END], now)


@inner_njit
def _set_meter(section, clock, tables, work):
    meter = work.section_meter[section]
    clock[METER_TICK], clock[METER], clock[LEVEL] = work.section_tick[section], meter, work.section_level[section]
    clock[BAR_TICKS] = (tables.steps << clock[LEVEL]) * tables.numerator[meter]


@inner_njit
def _move_to(now, is_meter, clock, writes_meters, has_rests, first, rests, ids, at):
    """Write the rests, bars and position that lead to a tick."""
    # Few arguments, and no tuple of arrays: this runs once for every moment of the music.
    if has_rests and now - clock[NOTE_END] >= rests[clock[LEVEL], 0]:
        at = _write_rests(now, clock, first, rests, ids, at)
    n_bars = clock[METER_BAR] + (now - clock[METER_TICK]) // clock[BAR_TICKS] - clock[BAR]
    for bar in range(n_bars):
        ids[at] = first[Kind.BAR]
        at += 1
        if writes_meters and not (is_meter and bar + 1 == n_bars):
            ids[at] = first[Kind.METER] + clock[METER]
            at += 1
    if n_bars > 0:
        clock[BAR] += n_bars
        clock[BAR_TICK] = clock[METER_TICK] + (clock[BAR] - clock[METER_BAR]) * clock[BAR_TICKS]
    if not is_meter:
        ids[at] = first[Kind.POSITION] + ((now - clock[BAR_TICK]) >> clock[LEVEL])
        at += 1
    clock[PREVIOUS] = now
    return at


@inner_njit
def _write_rests(now, clock, first, rests, ids, at):
    """Write a silence as rests, the longest first; bars that begin in it get no token."""
    lengths = rests[clock[LEVEL]]
    reached = max(clock[NOTE_END], clock[PREVIOUS])
    while now - reached >= lengths[0]:
        rest = np.searchsorted(lengths, now - reached, side="right") - 1
        ids[at] = first[Kind.REST] + rest
        at += 1
        reached += lengths[rest]
    bar = clock[METER_BAR] + (reached - clock[METER_TICK]) // clock[BAR_TICKS]
    if bar > clock[BAR]:
        clock[BAR] = max(clock[BAR], 0)  # a piece that begins with a rest
        clock[BAR_TICK] += (bar - clock[BAR]) * clock[BAR_TICKS]
        clock[BAR] = bar
    return at
