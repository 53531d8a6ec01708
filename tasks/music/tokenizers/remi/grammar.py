"""The grammar of `remi`: one state for each place in a bar and each part of a note."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.music.tokenizers.grammar import Grammar
from tasks.music.tokenizers.remi.vocabulary import DRUMS, Kind, RemiVocabulary

BEGIN, FINISHED, BODY, AFTER_BAR, N_FIXED = range(5)
# States of each length of bar: before its first position, and after a rest.
OPEN, RESTED, N_OF_BAR = range(3)
# States of each position of each length of bar. AT waits for an event there; HELD has one and may go on or end.
AT, HELD, PROGRAM, DRUM, CHORD, VOICED, PITCHED, STRUCK, N_OF_POSITION = range(9)
_MAX_STATES = 1 << 15


def build_grammar(vocabulary: RemiVocabulary) -> Grammar:
    """Return the grammar of all that encoding writes, and of no position before the current one.

    A piece may end after a whole note, a tempo or a bar, a chord is followed by a note, and positions stay within the
    time signature. No slot is ever open. A bar counts as 4 quarters of time and a rest as its length in 4/4; a
    position is no distance, so it counts nothing.

    Raises:
        ValueError: the bars have so many positions that states would not fit.
    """
    lengths = np.array([vocabulary.steps * numerator for numerator, _ in vocabulary.meters], np.int64)
    distinct = np.unique(lengths)
    sizes = N_OF_BAR + N_OF_POSITION * distinct
    begins = N_FIXED + np.append(0, np.cumsum(sizes))
    if begins[-1] > _MAX_STATES:
        raise ValueError(f"a grammar of {begins[-1]} states, limit {_MAX_STATES}: fewer meters or steps are needed")
    table = np.full((int(begins[-1]), len(vocabulary)), -1, np.int16)
    begin_of = dict(zip(distinct.tolist(), begins.tolist(), strict=False))
    opened = np.array([begin_of[length] + OPEN for length in lengths.tolist()])  # by meter
    common = begin_of[int(lengths[vocabulary.common_time])]
    _fill_fixed(table, vocabulary, opened, common)
    for length in distinct.tolist():
        _fill_bar(table, vocabulary, begin_of[length], length, opened)
    return Grammar.without_slots(table, _time(vocabulary))


def _ids(vocabulary: RemiVocabulary, kind: Kind) -> NDArray[np.intp]:
    return np.flatnonzero(vocabulary.kind_V == kind)


def _fill_fixed(table: NDArray[np.int16], vocabulary: RemiVocabulary, opened: NDArray[Any], common: int) -> None:
    config = vocabulary.config
    pad, start, end = (vocabulary.ids[name] for name in ("PAD_None", "BOS_None", "EOS_None"))
    table[BEGIN, start], table[FINISHED, pad] = BODY, FINISHED
    table[BODY, _ids(vocabulary, Kind.BAR)] = AFTER_BAR if config.time_signatures else common + OPEN
    table[AFTER_BAR, _ids(vocabulary, Kind.METER)] = opened[: len(_ids(vocabulary, Kind.METER))]
    if not config.time_signatures and not config.tempos:  # no piece needs anything at its beginning
        table[BODY, end] = FINISHED
        table[BODY, _ids(vocabulary, Kind.REST)] = common + RESTED


def _fill_bar(
    table: NDArray[np.int16], vocabulary: RemiVocabulary, begin: int, length: int, opened: NDArray[Any]
) -> None:
    """Fill the states of all bars of `length` positions."""
    ids = {kind: _ids(vocabulary, kind) for kind in Kind}
    end = vocabulary.ids["EOS_None"]
    drums = vocabulary.ids[f"Program_{DRUMS}"]
    pitched = ids[Kind.PROGRAM][ids[Kind.PROGRAM] != drums]
    held = begin + N_OF_BAR + N_OF_POSITION * np.arange(length)  # first state of each position
    positions = ids[Kind.POSITION][:length]
    after_bar = AFTER_BAR if vocabulary.config.time_signatures else begin + OPEN
    for state in (begin + OPEN, begin + RESTED):
        table[state, positions] = held + AT
        table[state, ids[Kind.BAR]] = after_bar
        table[state, ids[Kind.REST]] = begin + RESTED
    table[begin + OPEN, end] = FINISHED
    table[begin + RESTED, ids[Kind.METER]] = opened[: len(ids[Kind.METER])]
    with_velocity = len(ids[Kind.VELOCITY]) > 0
    drum_pitches = ids[Kind.DRUM_PITCH] if len(ids[Kind.DRUM_PITCH]) else ids[Kind.PITCH]
    for position, first in enumerate(held.tolist()):
        for state in (first + AT, first + HELD):
            table[state, pitched], table[state, drums] = first + PROGRAM, first + DRUM
        table[first + AT, ids[Kind.TEMPO]] = first + HELD
        table[first + HELD, positions[position:]] = held[position:] + AT
        table[first + HELD, ids[Kind.BAR]] = after_bar
        table[first + HELD, ids[Kind.REST]] = begin + RESTED
        table[first + HELD, end] = FINISHED
        table[first + PROGRAM, ids[Kind.CHORD]] = first + CHORD
        table[first + CHORD, pitched] = first + VOICED
        table[first + PROGRAM, ids[Kind.PITCH]] = table[first + VOICED, ids[Kind.PITCH]] = first + PITCHED
        table[first + DRUM, drum_pitches] = first + PITCHED
        table[first + PITCHED, ids[Kind.VELOCITY]] = first + STRUCK
        table[first + (STRUCK if with_velocity else PITCHED), ids[Kind.DURATION]] = first + HELD


def _time(vocabulary: RemiVocabulary) -> NDArray[np.int16]:
    time = np.zeros(len(vocabulary), np.int64)
    time[_ids(vocabulary, Kind.BAR)] = 4 * vocabulary.steps
    beats = [(beat * steps + step) / steps for beat, step, steps in vocabulary.rests]
    time[_ids(vocabulary, Kind.REST)] = np.ceil(np.array(beats) * vocabulary.steps)
    return np.minimum(time, np.iinfo(np.int16).max).astype(np.int16)
