"""Note boundaries: where a sequence of ids can be cut without cutting a note, by the grammar of the encoding."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.music.arrays import BoolArray, IntArray
from tasks.music.tokenizers.grammar import Grammar


def walk(grammar: Grammar, ids: Sequence[int]) -> tuple[IntArray, IntArray]:
    """Return the state and the number of open slots at each place, int64[T + 1]; place i is before id i.

    Raises:
        ValueError: the grammar forbids an id.
    """
    wrong = grammar.first_violation(ids)
    if wrong is not None:
        raise ValueError(f"the grammar forbids id {ids[wrong]} at position {wrong}")
    states = np.empty(len(ids) + 1, np.int64)
    states[0] = grammar.start_state
    for place, token in enumerate(ids):
        states[place + 1] = grammar.next_state_SV[states[place], token]
    tokens = np.asarray(ids, np.int64)
    changes = (grammar.opens_V[tokens] >= 0).astype(np.int64) - (grammar.closes_V[tokens] >= 0)
    return states, np.append(0, np.cumsum(changes))


def boundary_places(grammar: Grammar, ids: Sequence[int], end_id: int) -> IntArray:
    """Return the places, counted in ids before them, at which no note is begun and not ended.

    No slot is open there, and either the piece might end, or the id before ends a note or a bar.

    Raises:
        ValueError: the grammar forbids an id.
    """
    (states, n_open), tokens = walk(grammar, ids), np.asarray(ids, np.int64)
    ends_something = (grammar.closes_V >= 0) | grammar.needs_all_closed_V
    is_boundary = grammar.next_state_SV[states, end_id] >= 0
    is_boundary[1:] |= ends_something[tokens] & (tokens != end_id)
    return np.flatnonzero(is_boundary & (n_open == 0))


def beginning_of(grammar: Grammar, ids: Sequence[int], n_ids: int, end_id: int) -> list[int]:
    """Return the first ids of a piece up to a note boundary: `n_ids` at most, and more than half of them if it can.

    Where there is no such boundary, the notes that sound at the cut are ended there. Only where the encoding cannot say
    that, as within a bar, the beginning goes on to the next boundary.

    Raises:
        ValueError: the grammar forbids an id.
    """
    places = boundary_places(grammar, ids, end_id)
    within, beyond = places[places <= n_ids], places[places > n_ids]
    if len(within) and (within[-1] > n_ids // 2 or not len(beyond)):
        return list(ids[: int(within[-1])])
    for place in range(min(n_ids, len(ids)), n_ids // 2, -1):
        ending = _ending(grammar, ids[:place])
        found = [*ids[:place], *ending]
        if ending and len(found) <= n_ids and boundary_places(grammar, found, end_id)[-1] == len(found):
            return found
    return list(ids[: int(beyond[0])]) if len(beyond) else list(ids)


def _ending(grammar: Grammar, ids: Sequence[int]) -> list[int]:
    """Return ids that end the notes that sound after some ids, in order of slots; none where they cannot all end."""
    tokens = np.asarray(ids, np.int64)
    opened, closed = grammar.opens_V[tokens], grammar.closes_V[tokens]
    n_open = np.bincount(opened[opened >= 0], minlength=grammar.n_slots)
    n_open -= np.bincount(closed[closed >= 0], minlength=grammar.n_slots)
    state, ending = int(walk(grammar, ids)[0][-1]), list[int]()
    for slot in np.flatnonzero(n_open).tolist():
        closing = np.flatnonzero((grammar.closes_V == slot) & (grammar.next_state_SV[state] >= 0))
        if not len(closing):
            return []
        ending.append(int(closing[0]))
        state = int(grammar.next_state_SV[state, closing[0]])
    return ending


def without_ending(grammar: Grammar, ids: Sequence[int], end_id: int, pad_id: int) -> list[int]:
    """Return ids without those at their end after which nothing but `end_id` may come."""
    goes_on = _goes_on(grammar, end_id, pad_id)[walk(grammar, ids)[0]]
    return list(ids[: int(np.flatnonzero(goes_on)[-1])])


def _goes_on(grammar: Grammar, end_id: int, pad_id: int) -> BoolArray:
    """Return from which states a piece may continue without end."""
    table = grammar.next_state_SV.astype(np.int32)
    table[:, [end_id, pad_id]] = -1
    is_alive: BoolArray = np.ones(len(table), np.bool_)
    while True:
        still: BoolArray = np.any((table >= 0) & is_alive[table], axis=1)
        if np.array_equal(still, is_alive):
            return is_alive
        is_alive = still


def random_ids(
    grammar: Grammar, rng: np.random.Generator, n_ids: int, end_id: int, pad_id: int, first: Sequence[int] = ()
) -> list[int]:
    """Return a random walk of about `n_ids` ids through a grammar, up to where no note is begun and not ended.

    Each id is drawn evenly from those that are allowed, half of the time from those that end a note; from `n_ids` on,
    always from these if there are any.

    Args:
        first: ids after which the walk begins, for an encoding with a header of any length.

    Raises:
        ValueError: the grammar leads nowhere.
    """
    ids, is_open = list(first), np.zeros(grammar.n_slots + 1, np.bool_)
    state = int(walk(grammar, ids)[0][-1])
    ends_something = (grammar.closes_V >= 0) | grammar.needs_all_closed_V
    goes_on = _goes_on(grammar, end_id, pad_id)
    while len(ids) < 4 * n_ids + 4096:
        allowed = _allowed(grammar, state, is_open)
        is_silent = not is_open.any()
        may_stop = is_silent and (allowed[end_id] or (len(ids) > 0 and ends_something[ids[-1]]))
        if len(ids) >= n_ids and may_stop:
            return ids
        allowed &= goes_on[grammar.next_state_SV[state]]
        allowed[[end_id, pad_id]] = False
        closing = np.flatnonzero(allowed & (grammar.closes_V >= 0))
        others = np.flatnonzero(allowed & (grammar.closes_V < 0))
        prefers_closing = len(ids) >= n_ids or bool(rng.integers(2))
        choices = closing if len(closing) and (prefers_closing or not len(others)) else others
        if not len(choices):
            raise ValueError(f"the grammar allows no id after {len(ids)} random ones")
        token = int(rng.choice(choices))
        state = int(grammar.next_state_SV[state, token])
        if grammar.opens_V[token] >= 0:
            is_open[grammar.opens_V[token]] = True
        if grammar.closes_V[token] >= 0:
            is_open[grammar.closes_V[token]] = False
        ids.append(token)
    raise ValueError(f"no note boundary among {len(ids)} random ids")


def _allowed(grammar: Grammar, state: int, is_open: BoolArray) -> NDArray[Any]:
    opens, closes = grammar.opens_V, grammar.closes_V
    allowed = np.asarray(grammar.next_state_SV[state] >= 0)
    allowed &= (opens < 0) | ~is_open[opens]
    allowed &= (closes < 0) | is_open[closes]
    return allowed & ~(grammar.needs_all_closed_V & is_open.any())
