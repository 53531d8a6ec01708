"""The meaning of ids that represent several kinds of value: the grammar's state decides whether pitch or time."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from tasks.music.arrays import BoolArray, IntArray
from tasks.music.tokenizers.grammar import Grammar


@dataclass(frozen=True, slots=True, eq=False)
class ValueStates:
    """States of a grammar in which ids represent values of one kind.

    Args:
        kind: pitches, drums apart where the grammar can tell; or General MIDI programs.
        states: before such an id.
        values: int64[V], the value of each id in these states; -1: none.
    """

    kind: Literal["pitch", "program"]
    states: tuple[int, ...]
    values: IntArray


def looked_up(values: IntArray, table: IntArray) -> IntArray:
    """Return what a table has for each value, -1 for values that lie outside of it."""
    is_in = (values >= 0) & (values < len(table))
    return np.where(is_in, table[np.where(is_in, values, 0)], -1)


def bound_grammar(grammar: Grammar, bans: Iterable[tuple[ValueStates, BoolArray]]) -> Grammar:
    """Return a grammar with every state twice: first as they are, then a copy of them all in which some ids are banned.

    What begins in a state of the one half stays in it. A state and its copy lie as far apart as the grammar has states.

    Args:
        bans: for each kind bool[V], the ids that are banned in the states of that kind.
    """
    n_states = len(grammar.next_state_SV)
    free = grammar.next_state_SV.astype(np.int32)
    bound = np.where(free < 0, -1, free + n_states)
    for where, is_banned in bans:
        for state in where.states:
            bound[state, is_banned] = -1
    return replace(grammar, next_state_SV=np.concatenate([free, bound]))
