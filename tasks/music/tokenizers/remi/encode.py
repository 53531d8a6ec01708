"""Encoding of notes to `remi` ids, in compiled code: one piece after another, in the same work space.

The steps of a piece, each as MidiTok 3.1.0 takes it: time signatures decide how many ticks the grid has and where bars
begin; notes move to the grid, become one integer each and are sorted; duplicates are dropped, chords are found, and the
tokens are written in order of time.
"""

import numpy as np

from tasks.music.arrays import FloatArray, IntArray
from tasks.music.compiled import njit
from tasks.music.notes import NoteBatch
from tasks.music.tokenizers.base import TokenArray
from tasks.music.tokenizers.loops import sort_run
from tasks.music.tokenizers.remi.chords import find_chords
from tasks.music.tokenizers.remi.meters import (
    arrange_meters,
    arrange_tempos,
    count_other_meters,
    has_mixed_beats,
    nearest_tick,
    on_grid,
)
from tasks.music.tokenizers.remi.tables import (
    DRUM_SLOT,
    DURATION_BIT,
    DURATION_MASK,
    PITCH_BIT,
    RANK_BIT,
    TICK_BIT,
    TICK_MAX,
    VELOCITY_MASK,
    EncodeTables,
    inner_njit,
    note_columns,
    work_space,
)
from tasks.music.tokenizers.remi.vocabulary import N_PROGRAMS, Kind
from tasks.music.tokenizers.remi.writer import tokens_at_most, write_piece

OUT_OF_RANGE, DUPLICATES, CLAMPED, OTHER_METER, N_NOTES, LAST_TICK, N_COUNTS = range(7)  # columns of what is counted
_START, _END = 1, 2  # among the special ids


def encode_notes(batch: NoteBatch, tables: EncodeTables) -> tuple[TokenArray, IntArray, IntArray, FloatArray]:
    """Encode whole pieces.

    Returns:
        ids, their offsets int64[P + 1], counts int64[P, N_COUNTS], and the end of the last note in seconds float64[P].

    Raises:
        ValueError: a piece is too long for the grid.
    """
    columns = note_columns(batch)
    counts = np.zeros((batch.n_pieces, N_COUNTS), np.int64)
    offsets, seconds = np.zeros(batch.n_pieces + 1, np.int64), np.zeros(batch.n_pieces)
    ids = _encode_pieces(columns, tables, work_space(columns), offsets, counts, seconds)
    late = np.flatnonzero(counts[:, LAST_TICK] > TICK_MAX)
    if len(late):
        raise ValueError(f"tick {counts[late[0], LAST_TICK]} of the grid above {TICK_MAX} (piece {late[0]})")
    return ids, offsets, counts, seconds


@njit(cache=True, nogil=True)
def _encode_pieces(notes, tables, work, offsets, counts, seconds):
    ids, at = np.empty(6 * len(notes.onset) + 16 * len(counts), np.uint16), 0
    for piece in range(len(counts)):
        first, last = notes.offsets[piece], notes.offsets[piece + 1]
        n_sections, scale = arrange_meters(notes, piece, tables, work)
        n_tempos = arrange_tempos(notes, piece, scale, n_sections, tables, work)
        n_programs = _rank_programs(notes, first, last, work)
        n_keys = _key_notes(notes, first, last, scale, n_sections, tables, work, counts[piece])
        counts[piece, OTHER_METER] = count_other_meters(notes, piece, tables)
        if counts[piece, LAST_TICK] > TICK_MAX:
            break
        _sort_moments(work.keys, n_keys)
        n_kept = _drop_duplicates(n_keys, n_sections, tables, work)
        counts[piece, DUPLICATES], counts[piece, N_NOTES] = n_keys - n_kept, n_kept
        work.chord_of[:n_kept] = -1
        if tables.chords:
            find_chords(n_kept, n_programs, n_sections, tables, work)
        room = 2 + tokens_at_most(n_kept, n_tempos, n_sections, tables, work)
        if at + room > len(ids):
            grown = np.empty(max(at + room, 2 * len(ids)), np.uint16)
            grown[:at] = ids[:at]
            ids = grown
        ids[at] = tables.first[Kind.SPECIAL] + _START
        at = write_piece(n_kept, n_tempos, n_sections, tables, work, ids, at + 1)
        ids[at] = tables.first[Kind.SPECIAL] + _END
        at += 1
        offsets[piece + 1] = at
        for note in range(first, last):
            seconds[piece] = max(seconds[piece], notes.end_seconds[note])
    return ids[:at]


@inner_njit
def _rank_programs(notes, first, last, work):
    """Order the programs by the first track that has them, and return their number."""
    nowhere = 1 << 16
    work.first_track[:] = nowhere
    for note in range(first, last):
        slot = DRUM_SLOT if notes.is_drum[note] else np.int64(notes.program[note])
        work.first_track[slot] = min(work.first_track[slot], notes.track[note])
    n = 0
    for slot in range(N_PROGRAMS):
        if work.first_track[slot] < nowhere:
            place = n
            while place and work.first_track[work.slot_of[place - 1]] > work.first_track[slot]:
                work.slot_of[place] = work.slot_of[place - 1]
                place -= 1
            work.slot_of[place] = slot
            n += 1
    for rank in range(n):
        work.rank_of[work.slot_of[rank]] = rank
    return n


@inner_njit
def _key_notes(notes, first, last, scale, n_sections, tables, work, counts):
    """Write a key for each note within the range of pitches; return their number."""
    n, section, place, is_mixed = 0, 0, 0, has_mixed_beats(n_sections, work)
    low, high, drum_low, drum_high = tables.ranges
    longest = len(tables.duration_ticks[0]) - 1
    for note in range(first, last):
        pitch, is_drum = np.int64(notes.pitch[note]), notes.is_drum[note]
        if pitch < (drum_low if is_drum else low) or pitch > (drum_high if is_drum else high):
            counts[OUT_OF_RANGE] += 1
            continue
        tick = nearest_tick(notes.onset[note] * scale)
        while section + 1 < n_sections and tick >= work.section_tick[section + 1]:
            section += 1
        if is_mixed:
            tick = on_grid(tick, section, work)
        while place + 1 < n_sections and tick >= work.section_tick[place + 1]:
            place += 1
        level, ticks = work.section_level[place], max(nearest_tick(notes.duration[note] * scale), 1)
        duration = tables.duration_of[level, min(ticks, tables.duration_of.shape[1] - 1)]
        counts[CLAMPED] += ticks > tables.duration_ticks[level, longest]
        counts[LAST_TICK] = max(counts[LAST_TICK], tick)
        velocity = tables.velocity_bin[notes.velocity[note]]
        if tables.keeps_longest:
            duration, velocity = longest - duration, 127 - velocity
        rank = work.rank_of[DRUM_SLOT if is_drum else np.int64(notes.program[note])]
        work.keys[n] = tick << TICK_BIT | rank << RANK_BIT | pitch << PITCH_BIT | duration << DURATION_BIT | velocity
        n += 1
    return n


@inner_njit
def _sort_moments(keys, n):
    """Sort the keys, whose ticks rise already."""
    begin = 0
    while begin < n:
        end = begin + 1
        while end < n and keys[end] >> TICK_BIT == keys[begin] >> TICK_BIT:
            end += 1
        if end - begin > 1:
            sort_run(keys, begin, end)
        begin = end


@inner_njit
def _drop_duplicates(n, n_sections, tables, work):
    """Keep the first of the notes that share tick, program and pitch, and find where each ends; return how many."""
    keys, longest = work.keys, len(tables.duration_ticks[0]) - 1
    kept, voice_before, section = 0, -1, 0
    for note in range(n):
        key = keys[note]
        if key >> PITCH_BIT == voice_before:
            continue
        voice_before, tick = key >> PITCH_BIT, key >> TICK_BIT
        if tables.keeps_longest:  # back to the duration and velocity themselves
            duration, velocity = longest - (key >> DURATION_BIT & DURATION_MASK), 127 - (key & VELOCITY_MASK)
            key = voice_before << PITCH_BIT | duration << DURATION_BIT | velocity
        while section + 1 < n_sections and tick >= work.section_tick[section + 1]:
            section += 1
        keys[kept] = key
        work.ends[kept] = tick + tables.duration_ticks[work.section_level[section], key >> DURATION_BIT & DURATION_MASK]
        kept += 1
    return kept
