"""A tokenizer's grammar as tensors: which ids may come next in each row of a batch. Shape letters: see layers.py."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor


class GrammarArrays(Protocol):
    """The numpy tables that a tokenizer offers: a state machine over ids, and slots that ids open and close."""

    @property
    def next_state_SV(self) -> np.ndarray[Any, Any]:
        """The state after id V in state S, below 0 where the id is forbidden."""
        ...

    @property
    def opens_V(self) -> np.ndarray[Any, Any]:
        """The slot that an id opens, below 0 for none."""
        ...

    @property
    def closes_V(self) -> np.ndarray[Any, Any]:
        """The slot that an id closes, below 0 for none."""
        ...

    @property
    def needs_all_closed_V(self) -> np.ndarray[Any, Any]:
        """Whether an id is allowed only while no slot is open."""
        ...

    @property
    def time_V(self) -> np.ndarray[Any, Any]:
        """How much time an id takes."""
        ...

    @property
    def n_slots(self) -> int:
        """Number of slots, each a note that can be open."""
        ...

    @property
    def start_state(self) -> int:
        """The state before the first id."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class GrammarTables:
    """A grammar on the device of a model.

    Attributes:
        next_state_SV: state after each id, -1 where the id is not allowed.
        opens_V: slot that an id opens; `n_slots`, a column that is never open, for ids that open none.
        closes_V: slot that an id closes; `n_slots + 1`, a column that is always open, for ids that close none.
        needs_all_closed_V: True for ids that are allowed only while no slot is open.
        time_V: units by which an id moves the clock.
        max_open: units after which an open slot must be closed before anything else comes; 0: never.
        clock_from: index of the id of a prompt from which on its slots grow old; None: only after the prompt.
    """

    next_state_SV: Tensor
    opens_V: Tensor
    closes_V: Tensor
    needs_all_closed_V: Tensor
    time_V: Tensor
    n_slots: int
    start_state: int
    max_open: int = 0
    clock_from: int | None = None

    @classmethod
    def from_numpy(
        cls,
        grammar: GrammarArrays,
        device: torch.device | str = "cpu",
        max_open: int = 0,
        clock_from: int | None = None,
    ) -> "GrammarTables":
        """Copy a grammar's numpy tables to `device`.

        Args:
            max_open, clock_from: see the class; in the grammar's units of time.

        Raises:
            ValueError: the tables disagree in size, or name a state or a slot that does not exist.
        """
        n_states, vocab_size = grammar.next_state_SV.shape
        n_slots = int(grammar.n_slots)
        opens_V, closes_V = np.asarray(grammar.opens_V), np.asarray(grammar.closes_V)
        needs_all_closed_V = np.asarray(grammar.needs_all_closed_V, dtype=bool)
        time_V = np.asarray(grammar.time_V)
        tables = {"opens_V": opens_V, "closes_V": closes_V, "needs_all_closed_V": needs_all_closed_V, "time_V": time_V}
        for name, table_V in tables.items():
            if table_V.shape != (vocab_size,):
                raise ValueError(f"{name} has shape {table_V.shape}, next_state_SV has {vocab_size} ids")
        highest_state = max(int(grammar.next_state_SV.max()), int(grammar.start_state))
        if highest_state >= n_states:
            raise ValueError(f"the grammar names state {highest_state}, but has states 0-{n_states - 1}")
        highest_slot = max(int(opens_V.max()), int(closes_V.max()))
        if highest_slot >= n_slots:
            raise ValueError(f"the grammar names slot {highest_slot}, but has n_slots={n_slots}")
        return cls(
            next_state_SV=torch.as_tensor(grammar.next_state_SV.astype(np.int64), device=device),
            opens_V=torch.as_tensor(np.where(opens_V < 0, n_slots, opens_V).astype(np.int64), device=device),
            closes_V=torch.as_tensor(np.where(closes_V < 0, n_slots + 1, closes_V).astype(np.int64), device=device),
            needs_all_closed_V=torch.as_tensor(needs_all_closed_V, device=device),
            time_V=torch.as_tensor(time_V.astype(np.int64), device=device),
            n_slots=n_slots,
            start_state=int(grammar.start_state),
            max_open=max_open,
            clock_from=clock_from,
        )

    def to(self, device: torch.device | str) -> "GrammarTables":
        """Return the same grammar on another device."""
        names = ("next_state_SV", "opens_V", "closes_V", "needs_all_closed_V", "time_V")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return self.next_state_SV.shape[1]

    def follow(self, ids: Sequence[int], where: str = "") -> tuple[int, set[int]]:
        """Return the state and the open slots after `ids`.

        Raises:
            ValueError: an id that the grammar does not allow there; `where` opens the message.
        """
        next_state_SV = self.next_state_SV.cpu().numpy()
        opens_V, closes_V = self.opens_V.cpu().numpy(), self.closes_V.cpu().numpy()
        needs_all_closed_V = self.needs_all_closed_V.cpu().numpy()
        state, open_slots = self.start_state, set[int]()
        for position, token in enumerate(ids):
            follower = int(next_state_SV[state, token])
            opened, closed = int(opens_V[token]), int(closes_V[token])
            is_closed = closed < self.n_slots and closed not in open_slots
            if follower < 0 or opened in open_slots or is_closed or (needs_all_closed_V[token] and open_slots):
                raise ValueError(f"{where}the grammar forbids id {token} at position {position}")
            state = follower
            open_slots.discard(closed)
            if opened < self.n_slots:
                open_slots.add(opened)
        return state, open_slots


class GrammarRows:
    """The state of each row of a batch in a grammar."""

    def __init__(self, tables: GrammarTables, batch_size: int) -> None:
        device = tables.next_state_SV.device
        self.tables, self.tables_on_host = tables, tables.to("cpu")
        self.forbidden_SV = tables.next_state_SV < 0
        only_opens_S = (self.forbidden_SV | (tables.opens_V < tables.n_slots)).all(dim=1)
        # Ids after which a slot must be opened: a dead end where none is left.
        self.needs_a_slot_SV = only_opens_S[tables.next_state_SV.clamp_min(0)] & ~self.forbidden_SV
        self.state_B = torch.empty(batch_size, dtype=torch.long, device=device)
        self.open_BC = torch.empty((batch_size, tables.n_slots + 2), dtype=torch.bool, device=device)
        self.clock_B = torch.zeros(batch_size, dtype=torch.long, device=device)
        self.opened_at_BC = torch.zeros((batch_size, tables.n_slots + 2), dtype=torch.long, device=device)
        for row in range(batch_size):
            self.reset(row)

    def reset(self, row: int) -> None:
        """Put one row at the start, with all slots closed."""
        self.state_B[row] = self.tables.start_state
        self.open_BC[row] = False
        self.open_BC[row, -1] = True
        self.clock_B[row] = 0
        self.opened_at_BC[row] = 0

    def forbidden(self, n_rows: int) -> Tensor:
        """Return bool (B, V) for the first `n_rows` rows: True where an id may not come next."""
        tables, open_BC = self.tables, self.open_BC[:n_rows]
        forbidden_BV = self.forbidden_SV[self.state_B[:n_rows]]
        if tables.n_slots:
            forbidden_BV |= open_BC.index_select(1, tables.opens_V)
            forbidden_BV |= ~open_BC.index_select(1, tables.closes_V)
            is_full_B1 = open_BC[:, : tables.n_slots].all(dim=1, keepdim=True)
            forbidden_BV |= self.needs_a_slot_SV[self.state_B[:n_rows]] & is_full_B1
            forbidden_BV |= tables.needs_all_closed_V & open_BC[:, : tables.n_slots].any(dim=1, keepdim=True)
        if tables.max_open:
            forbidden_BV |= self._not_closing(n_rows, forbidden_BV)
        return forbidden_BV

    def _not_closing(self, n_rows: int, forbidden_BV: Tensor) -> Tensor:
        """Return True for ids that do not close an overdue slot, in rows where an allowed id does."""
        tables = self.tables
        age_BC = self.clock_B[:n_rows, None] - self.opened_at_BC[:n_rows]
        overdue_BC = self.open_BC[:n_rows] & (age_BC >= tables.max_open)
        overdue_BC[:, tables.n_slots :] = False
        closes_BV = overdue_BC.index_select(1, tables.closes_V)
        return ~closes_BV & (closes_BV & ~forbidden_BV).any(dim=1, keepdim=True)

    def advance(self, ids_B: Tensor) -> None:
        """Move the first rows on by one allowed id each."""
        tables, n_rows = self.tables, len(ids_B)
        self.state_B[:n_rows] = tables.next_state_SV[self.state_B[:n_rows], ids_B]
        if not tables.n_slots:
            return
        # Ids that open or close nothing write into the two spare columns what these hold anyway.
        closes_B1, opens_B1 = tables.closes_V[ids_B][:, None], tables.opens_V[ids_B][:, None]
        self.open_BC[:n_rows].scatter_(1, closes_B1, closes_B1 == tables.n_slots + 1)
        self.open_BC[:n_rows].scatter_(1, opens_B1, opens_B1 != tables.n_slots)
        if tables.max_open:
            self.opened_at_BC[:n_rows].scatter_(1, opens_B1, self.clock_B[:n_rows, None])
            self.clock_B[:n_rows] += tables.time_V[ids_B]

    def walk(self, row: int, ids: Sequence[int]) -> None:
        """Reset one row and move it along `ids`, all of which must be allowed; its clock starts as the tables say."""
        state, open_slots = self.tables_on_host.follow(ids)
        self.reset(row)
        self.state_B[row] = state
        for slot in open_slots:
            self.open_BC[row, slot] = True
        if self.tables.clock_from is not None and self.tables.max_open:
            self.run_clock(row, ids[self.tables.clock_from :])

    def run_clock(self, row: int, ids: Sequence[int]) -> None:
        """Let the slots of a row grow old along some ids."""
        tables, index = self.tables_on_host, torch.tensor(ids, dtype=torch.long)
        times, slots = tables.time_V[index], tables.opens_V[index]
        before = times.cumsum(0) - times
        for place in (slots < tables.n_slots).nonzero()[:, 0].tolist():
            self.opened_at_BC[row, int(slots[place])] = int(before[place])
        self.clock_B[row] = int(times.sum())

    def copy_row(self, source: int, target: int) -> None:
        """Overwrite row `target` with row `source`."""
        self.state_B[target] = self.state_B[source]
        self.open_BC[target] = self.open_BC[source]
        self.clock_B[target] = self.clock_B[source]
        self.opened_at_BC[target] = self.opened_at_BC[source]
