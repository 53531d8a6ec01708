"""Chords of a `remi` piece, in compiled code: three to five notes that begin and end together."""

import numpy as np

from tasks.music.tokenizers.remi.tables import (
    DRUM_SLOT,
    PITCH_BIT,
    PITCH_MASK,
    RANK_BIT,
    RANK_MASK,
    TICK_BIT,
    chord_key,
    inner_njit,
)

_CHORD_NOTES = 10  # so many notes are looked at for one chord
_CHORD_SPAN = 24  # semitones

_chord_key = inner_njit(chord_key)


@inner_njit
def find_chords(n, n_programs, n_sections, tables, work):
    """Name the chords of each program but the drums."""
    ends = np.zeros(n_programs + 1, np.int64)  # of each program among the members
    for note in range(n):
        ends[(work.keys[note] >> RANK_BIT & RANK_MASK) + 1] += 1
    for rank in range(n_programs):
        ends[rank + 1] += ends[rank]
    for note in range(n):
        rank = work.keys[note] >> RANK_BIT & RANK_MASK
        work.members[ends[rank]] = note
        ends[rank] += 1
    begin = 0
    for rank in range(n_programs):
        if work.slot_of[rank] != DRUM_SLOT:
            _find_chords_in(work.members[begin : ends[rank]], n_sections, tables, work)
        begin = ends[rank]


@inner_njit
def _find_chords_in(members, n_sections, tables, work):
    keys, ends, n = work.keys, work.ends, len(members)
    place, previous, section = 0, -1, 0
    intervals = np.empty(_CHORD_NOTES, np.int64)
    while place < n:
        first = members[place]
        tick = keys[first] >> TICK_BIT
        if tick == previous:
            place += 1
            continue
        while section + 1 < n_sections and tick >= work.section_tick[section + 1]:
            section += 1
        beat = tables.steps << work.section_level[section]
        stop, is_ambiguous = place, False
        while stop < min(n, place + _CHORD_NOTES):
            if ((keys[members[stop]] >> TICK_BIT) - tick) * tables.chord_steps > beat:
                break
            is_ambiguous |= abs(ends[members[stop]] - ends[first]) > beat // 2
            stop += 1
        if not is_ambiguous:
            if ends[first] - tick <= beat // 2:  # of short notes, only those at the very same tick
                while keys[members[stop - 1]] >> TICK_BIT != tick:
                    stop -= 1
            previous = keys[members[stop - 1]] >> TICK_BIT
            root = keys[first] >> PITCH_BIT & PITCH_MASK
            for note in range(place, stop):
                intervals[note - place] = (keys[members[note]] >> PITCH_BIT & PITCH_MASK) - root
            if 3 <= stop - place <= 5 and intervals[stop - place - 1] <= _CHORD_SPAN:
                _name_chord(intervals[: stop - place], root, first, tables, work)
        place = stop


@inner_njit
def _name_chord(intervals, root, note, tables, work):
    """Put the chord, if these intervals are one, before the first note of its program and tick."""
    key = _chord_key(intervals)
    for kind in range(len(tables.chord_key)):
        if tables.chord_key[kind] == key:
            while note and work.keys[note - 1] >> RANK_BIT == work.keys[note] >> RANK_BIT:
                note -= 1
            work.chord_of[note] = kind if tables.chords == 1 else kind * tables.chords + root % 12
