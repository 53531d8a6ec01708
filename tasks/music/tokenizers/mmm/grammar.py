"""The grammar of `mmm`: the words that may follow each word, and the rest of the bar after it."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.music.tokenizers.grammar import Grammar
from tasks.music.tokenizers.mmm.vocabulary import END, PAD, START, UNKNOWN, Kind, Vocabulary, bar_units

StateArray = NDArray[np.int16]

# States outside of bars; the three of the header come before its first, second and third word.
_AT_START, _AT_HEADER, _BETWEEN_TRACKS, _AT_INSTRUMENT, _AT_DENSITY = 0, 1, 4, 5, 6
_AT_FIRST_BAR, BETWEEN_BARS, _AT_PIECE_END, _AT_END, N_OUTSIDE = 7, 8, 9, 10, 11
# States inside of a bar: three for each number of units that are left of it.
_OPENING, _MOVED, _STRUCK, _N_INSIDE = 0, 1, 2, 3


def build_grammar(vocabulary: Vocabulary, units_per_quarter: int, longest_bar: int) -> Grammar:
    """Return the tables for a vocabulary.

    Inside of a bar a state knows the units that are left, so that no TIME_DELTA leads out of the bar and no note begins
    at its end. It also knows what came last: BAR_START or a TIE (notes may be tied or begin), a TIME_DELTA (notes end
    and begin), or a NOTE_ON (more notes begin, and none ends at the moment it began). The slots are the 128 pitches; a
    bar ends when all are closed. A track has at least one bar.
    """
    next_state = np.full((N_OUTSIDE + _N_INSIDE * (longest_bar + 1), vocabulary.size), -1, dtype=np.int16)
    _link_frame(next_state, vocabulary)
    _link_bars(next_state, vocabulary, units_per_quarter, longest_bar)
    opens, closes = np.full((2, vocabulary.size), -1, dtype=np.int16)
    for kind, slots in ((Kind.NOTE_ON, opens), (Kind.TIE, opens), (Kind.NOTE_OFF, closes)):
        ids = vocabulary.of_kind(kind)
        slots[ids] = vocabulary.value[ids]
    units = np.where(vocabulary.kind == Kind.TIME_DELTA, vocabulary.value, 0).astype(np.int16)
    return Grammar(next_state, opens, closes, vocabulary.kind == Kind.BAR_END, units, n_slots=128)


def with_tracks(grammar: Grammar, vocabulary: Vocabulary, n_tracks: int) -> Grammar:
    """Return the grammar of pieces of just so many tracks: a copy of all states for each number of tracks so far."""
    n_states, n_ids = grammar.next_state_SV.shape
    tables = np.full((n_tracks + 1, n_states, n_ids), -1, dtype=np.int32)
    for n_done, table in enumerate(tables):
        table[:] = np.where(grammar.next_state_SV < 0, -1, grammar.next_state_SV + n_done * n_states)
        ends = vocabulary.of_kind(Kind.TRACK_END)
        table[:, ends] += np.where(table[:, ends] < 0, 0, n_states)
        if n_done < n_tracks:
            table[:, [*vocabulary.of_kind(Kind.PIECE_END), END]] = -1
        else:
            table[:, vocabulary.of_kind(Kind.TRACK_START)] = -1
    # Where all tracks are done no further one ends: its states are reached by nothing, and lead nowhere.
    tables[tables >= (n_tracks + 1) * n_states] = -1
    return replace(grammar, next_state_SV=tables.reshape(-1, n_ids))


def _link_frame(next_state: StateArray, vocabulary: Vocabulary) -> None:
    header = [ids for kind in (Kind.PIECE_START, Kind.STYLE, Kind.GENRE) if len(ids := vocabulary.of_kind(kind))]
    states = [*range(_AT_HEADER, _AT_HEADER + len(header)), _BETWEEN_TRACKS]
    next_state[_AT_START, START] = states[0]
    for place, ids in enumerate(header):
        next_state[states[place], ids] = states[place + 1]
    piece_end, density = vocabulary.of_kind(Kind.PIECE_END), vocabulary.of_kind(Kind.DENSITY)
    next_state[_BETWEEN_TRACKS, vocabulary.of_kind(Kind.TRACK_START)] = _AT_INSTRUMENT
    next_state[_BETWEEN_TRACKS, piece_end] = _AT_PIECE_END
    next_state[_AT_PIECE_END if len(piece_end) else _BETWEEN_TRACKS, END] = _AT_END
    next_state[_AT_END, PAD] = _AT_END
    after_instrument = _AT_DENSITY if len(density) else _AT_FIRST_BAR
    next_state[_AT_INSTRUMENT, vocabulary.of_kind(Kind.INST)] = after_instrument
    next_state[_AT_INSTRUMENT, UNKNOWN] = after_instrument
    next_state[_AT_DENSITY, density] = _AT_FIRST_BAR
    next_state[BETWEEN_BARS, vocabulary.of_kind(Kind.TRACK_END)] = _BETWEEN_TRACKS


def _link_bars(next_state: StateArray, vocabulary: Vocabulary, units_per_quarter: int, longest_bar: int) -> None:
    starts = vocabulary.of_kind(Kind.BAR_START)
    lengths = np.array([bar_units(int(meter), units_per_quarter) for meter in vocabulary.value[starts]], dtype=np.int64)
    for state in (_AT_FIRST_BAR, BETWEEN_BARS):
        next_state[state, starts] = _inside(_OPENING, lengths)
    left = np.arange(longest_bar + 1)
    may_end = (_OPENING, _MOVED)
    for last in range(_N_INSIDE):
        states: NDArray[Any] = _inside(last, left)
        next_state[states, UNKNOWN] = states  # a note that the vocabulary lacks
        for place in np.flatnonzero(vocabulary.kind == Kind.TIME_DELTA):
            units = int(vocabulary.value[place])
            next_state[states[units:], place] = _inside(_MOVED, left[: len(left) - units])
        next_state[np.ix_(states[1:], vocabulary.of_kind(Kind.NOTE_ON))] = _inside(_STRUCK, left[1:])[:, None]
        if last in may_end:
            next_state[np.ix_(states, vocabulary.of_kind(Kind.BAR_END))] = BETWEEN_BARS
    opening, moved = _inside(_OPENING, left), _inside(_MOVED, left)
    next_state[np.ix_(opening, vocabulary.of_kind(Kind.TIE))] = opening[:, None]
    next_state[np.ix_(moved, vocabulary.of_kind(Kind.NOTE_OFF))] = moved[:, None]


def _inside(last: int, left: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the states in a bar with `left` units to go."""
    return N_OUTSIDE + _N_INSIDE * left + last
