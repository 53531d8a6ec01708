"""Time signatures and tempos of a piece on the grid of the `remi` encoding, in compiled code."""

import numpy as np

from tasks.music.tokenizers.loops import power_of_two
from tasks.music.tokenizers.remi.tables import inner_njit


@inner_njit
def nearest_tick(tick):
    """Round to a whole tick, halves up; exact where adding a half would not be."""
    below = np.floor(tick)
    return np.int64(below) + (tick - below >= 0.5)


@inner_njit
def _meter_index(notes, place, tables):
    """Return the place of a time signature among the meters, -1 where it has none."""
    numerator, denominator = notes.time_signature_numerator[place], notes.time_signature_denominator[place]
    log = power_of_two(denominator)
    if not 0 <= log < len(tables.meter_of) or not 0 <= numerator < 256:
        return -1
    return tables.meter_of[log, numerator]


@inner_njit
def arrange_meters(notes, piece, tables, work):
    """Write the sections of a piece, each of one time signature from the beginning of a bar on.

    Returns:
        how many there are, and how many ticks of the grid a tick of the piece has.
    """
    first, last = notes.time_signature_offsets[piece], notes.time_signature_offsets[piece + 1]
    tick, meter = work.section_tick, work.section_meter
    n = 0
    if tables.writes_meters:
        for place in range(first, last):
            index = _meter_index(notes, place, tables)
            if index >= 0:
                if n == 0 and notes.time_signature_tick[place] > 0:
                    tick[0], meter[0], n = 0, tables.common_time, 1
                tick[n], meter[n] = notes.time_signature_tick[place], index
                n += 1
    if n == 0:
        tick[0], meter[0], n = 0, tables.common_time, 1
    top = 0
    for section in range(n):
        top = max(top, tables.denominator_log[meter[section]])
    # The finest beat has `steps` ticks, even if its time signature turns out to be left out below.
    scale = ((tables.steps << top) >> 2) / notes.ticks_per_quarter[piece]
    for section in range(n):
        tick[section] = np.int64(tick[section] * scale)
    return _settle_meters(n, top, tables, work), scale


@inner_njit
def _settle_meters(n, top, tables, work):
    """Delay each time signature to the next bar, and leave out those that change nothing; return how many stay."""
    tick, meter, level = work.section_tick, work.section_meter, work.section_level
    kept, bar_begin, bar_ticks = 0, 0, 1
    for section in range(n):
        if kept and meter[section] == meter[kept - 1]:
            continue
        now = max(tick[section], bar_begin)
        now += -(now - bar_begin) % bar_ticks
        if kept and now == tick[kept - 1]:
            kept -= 1
        if kept == 0 or meter[section] != meter[kept - 1]:
            tick[kept], meter[kept] = now, meter[section]
            level[kept] = top - tables.denominator_log[meter[section]]
            kept += 1
        bar_begin = tick[kept - 1]
        bar_ticks = (tables.steps << level[kept - 1]) * tables.numerator[meter[kept - 1]]
    for section in range(kept):
        goes_on = section and level[section] == level[section - 1]
        work.grid_start[section] = work.grid_start[section - 1] if goes_on else tick[section]
    return kept


@inner_njit
def count_other_meters(notes, piece, tables):
    """Count the notes that begin under a time signature without an id."""
    place, last = notes.time_signature_offsets[piece], notes.time_signature_offsets[piece + 1]
    is_other, n_notes = False, 0
    for note in range(notes.offsets[piece], notes.offsets[piece + 1]):
        while place < last and notes.time_signature_tick[place] <= notes.onset[note]:
            is_other = _meter_index(notes, place, tables) < 0
            place += 1
        n_notes += is_other
    return n_notes


@inner_njit
def on_grid(tick, section, work):
    """Round a tick to the beats of its section, halves to even."""
    level, begin = work.section_level[section], work.grid_start[section]
    steps, rest = (tick - begin) >> level, (tick - begin) & ((1 << level) - 1)
    half = (1 << level) >> 1
    if level and (rest > half or (rest == half and steps & 1)):
        steps += 1
    return begin + (steps << level)


@inner_njit
def has_mixed_beats(n_sections, work):
    """Return whether beats of different sizes occur; only then are ticks rounded to them."""
    n_other = 0
    for section in range(1, n_sections):
        n_other += work.section_level[section] != work.section_level[0]
    return n_other > 0


@inner_njit
def arrange_tempos(notes, piece, scale, n_sections, tables, work):
    """Write the tempo changes of a piece as ticks and levels, the last of each tick; return their number."""
    if not tables.has_tempos:
        return 0
    tick, level, levels = work.tempo_tick, work.tempo_level, tables.tempo_microseconds
    n, section, is_mixed = 0, 0, has_mixed_beats(n_sections, work)
    for place in range(notes.tempo_offsets[piece], notes.tempo_offsets[piece + 1]):
        now, tempo = nearest_tick(notes.tempo_tick[place] * scale), notes.tempo_microseconds_per_quarter[place]
        while section + 1 < n_sections and now >= work.section_tick[section + 1]:
            section += 1
        if is_mixed:
            now = on_grid(now, section, work)
        slower = min(np.searchsorted(levels, tempo), len(levels) - 1)
        if slower and abs(tempo - levels[slower - 1]) < abs(tempo - levels[slower]):
            slower -= 1
        if n and tick[n - 1] == now:
            n -= 1
        tick[n], level[n] = now, len(levels) - 1 - slower
        n += 1
    if not tables.repeats_tempos:
        kept = 0
        for place in range(n):
            if kept == 0 or level[place] != level[kept - 1]:
                tick[kept], level[kept] = tick[place], level[place]
                kept += 1
        n = kept
    return n
