"""Grammars of encodings as small tables, shared by a checker in numpy and a sampler on a GPU."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Grammar:
    """A state machine with on/off slots; S states, V ids of the vocabulary.

    Args:
        next_state_SV: int16[S, V] or int32, the state after an id, or -1 where the id is not allowed.
        opens_V: int16[V], the slot that an id opens, or -1; an open slot cannot be opened again.
        closes_V: int16[V], the slot that an id closes, or -1; a closed slot cannot be closed.
        needs_all_closed_V: bool[V], the id is allowed only while no slot is open.
        time_V: int16[V], the units of time that pass with an id, for limits on how long a slot stays open.
        n_slots: number of slots, such as 128 sounding pitches.
        start_state: the state before the first id.
    """

    next_state_SV: NDArray[np.int16] | NDArray[np.int32]
    opens_V: NDArray[np.int16]
    closes_V: NDArray[np.int16]
    needs_all_closed_V: NDArray[np.bool_]
    time_V: NDArray[np.int16]
    n_slots: int
    start_state: int = 0

    @classmethod
    def without_slots(
        cls, next_state: NDArray[np.int16] | NDArray[np.int32], time: NDArray[np.int16] | None = None
    ) -> "Grammar":
        """Return a grammar of states alone, by default without time."""
        none, nothing = np.full(next_state.shape[1], -1, np.int16), np.zeros(next_state.shape[1], np.int16)
        return cls(next_state, none, none, nothing.astype(np.bool_), nothing if time is None else time, n_slots=0)

    def first_violation(self, ids: Iterable[int]) -> int | None:
        """Return the index of the first id that the grammar forbids, None where all are allowed."""
        return next(self._violations(ids), None)

    def n_violations(self, ids: Iterable[int]) -> int:
        """Count forbidden ids; each is skipped, and the walk continues from the state before it."""
        return sum(1 for _ in self._violations(ids))

    def _violations(self, ids: Iterable[int]) -> Iterator[int]:
        # Plain lists: a walk touches single items, and numpy scalars are ten times slower there.
        next_state, opens, closes = self.next_state_SV.tolist(), self.opens_V.tolist(), self.closes_V.tolist()
        needs_all_closed = self.needs_all_closed_V.tolist()
        n_ids = len(opens)
        state, open_slots = self.start_state, set[int]()
        for index, token in enumerate(np.asarray(ids).tolist()):
            follower = next_state[state][token] if 0 <= token < n_ids else -1
            opened, closed = (opens[token], closes[token]) if follower >= 0 else (-1, -1)
            is_wrong_slot = opened in open_slots or (closed >= 0 and closed not in open_slots)
            if follower < 0 or is_wrong_slot or (needs_all_closed[token] and open_slots):
                yield index
            else:
                state = follower
                open_slots.discard(closed)
                if opened >= 0:
                    open_slots.add(opened)
