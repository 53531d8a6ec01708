"""Pieces longer than a model's context: where a full context starts again. Shape letters: see layers.py.

A piece's context begins at its first id. When one more id does not fit, it begins again with the last ids of the piece,
from the first place on where, by the grammar, the piece could end soonest: between two notes or groups. That depends on
the ids of the piece alone. Without a grammar exactly the wanted number is kept.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.config import SamplingConfig
from models.sampling.grammar_mask import GrammarTables

NEVER = np.iinfo(np.int32).max


@dataclass(frozen=True, slots=True)
class Place:
    """Where a context begins: an index into the ids of a piece, and the state of the grammar before that id."""

    index: int = 0
    state: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class SlidingContext:
    """The rule of one model and its settings.

    Attributes:
        limit: most ids in a context.
        kept: ids that stay when it is full; up to half of them are given up for a better place.
        next_state_SV: of the grammar, -1 where an id is not allowed; None: no grammar.
        to_end_S: how many ids, the end id included, lead from a state to the end of a piece at least.
    """

    limit: int
    kept: int
    next_state_SV: NDArray[np.int64] | None = None
    to_end_S: NDArray[np.int32] | None = None
    first: Place = Place()

    @classmethod
    def of(
        cls, config: SamplingConfig, max_length: int | None, grammar: GrammarTables | None, end_id: int
    ) -> "SlidingContext":
        """Return the rule for a model that takes `max_length` tokens at most; None: any number.

        Raises:
            ValueError: the settings ask for a longer context than the model has, or keep all of it.
        """
        wanted = config.context_tokens
        if wanted is not None and max_length is not None and wanted > max_length:
            raise ValueError(f"context_tokens={wanted}, but the model takes at most {max_length}")
        limit = min(length for length in (wanted, max_length, config.max_tokens) if length is not None)
        if limit == config.max_tokens:
            return cls(limit, limit)  # never full
        if config.kept_tokens is not None and config.kept_tokens >= limit:
            raise ValueError(f"kept_tokens={config.kept_tokens} is not below the {limit} tokens of the model's context")
        kept = config.kept_tokens or max(limit // 2, 1)
        if grammar is None:
            return cls(limit, kept)
        next_state_SV = grammar.next_state_SV.cpu().numpy()
        return cls(limit, kept, next_state_SV, ids_to_end(next_state_SV, end_id), Place(0, grammar.start_state))

    def after_prompt(self, ids: NDArray[np.int64]) -> Place:
        """Return where the context of a piece begins that has been written up to here."""
        place = self.first
        while self.is_full(len(ids), place):
            place = self.moved(ids[: place.index + self.limit + 1], place)
        return place

    def is_full(self, length: int, place: Place) -> bool:
        """Return whether `length` ids of a piece do not fit any more."""
        return length - place.index > self.limit

    def moved(self, ids: NDArray[np.int64], place: Place) -> Place:
        """Return the next place after `place` for a piece with these ids, one more than fit."""
        cut = len(ids) - self.kept
        if self.next_state_SV is None or self.to_end_S is None:
            return Place(cut)
        state, states = place.state, []
        for token in ids[place.index : cut + self.kept // 2].tolist():
            states.append(state)
            state = int(self.next_state_SV[state, token])
        states = np.array([*states, state])[cut - place.index :]
        best = int(self.to_end_S[states].argmin())  # the first of equals
        return Place(cut + best, int(states[best]))


def ids_to_end(next_state_SV: NDArray[np.int64], end_id: int) -> NDArray[np.int32]:
    """Return for each state the least number of ids that end a piece from there; slots do not count."""
    n_states = len(next_state_SV)
    to_end_S = np.full(n_states, NEVER, np.int32)
    if not 0 <= end_id < next_state_SV.shape[1]:
        return to_end_S
    # Backwards along steps from state to state, far fewer than ids in states.
    is_allowed_SV = next_state_SV >= 0
    steps = np.unique(is_allowed_SV.nonzero()[0] * n_states + next_state_SV[is_allowed_SV])
    from_state, to_state = np.divmod(steps, n_states)
    reached_S, distance = is_allowed_SV[:, end_id], 1
    while reached_S.any():
        to_end_S[reached_S] = distance
        before_S = np.zeros(n_states, dtype=bool)
        before_S[from_state[reached_S[to_state]]] = True
        reached_S, distance = before_S & (to_end_S == NEVER), distance + 1
    return to_end_S
