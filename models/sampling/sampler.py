"""The rows of a batch of pieces at work: their ids, their cache and their place in the grammar.

Shape letters: see layers.py.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models import loops
from models.config import Precision
from models.decoder.model import Decoder
from models.decoder.step import DecoderStep, rounded_weights
from models.registry import SampledModel
from models.sampling.choice import Chooser, Penalty
from models.sampling.grammar_mask import GrammarRows, GrammarTables
from models.sampling.sliding_context import Place, SlidingContext

UNIFORMS_AT_ONCE = 1024  # a multiple of 4
PREFILL_TOKENS = 8192  # in one pass over several prompts
TOO_EARLY = -100.0  # added to the logit of an end that is not wanted yet; where nothing else is allowed, it is drawn


def piece_uniforms(seed: int, piece_index: int, n: int, first: int = 0) -> NDArray[np.float64]:
    """Return `n` numbers, 0 to below 1, from number `first` on of the stream that belongs to one piece of one seed.

    The number at index i decides the id at index i of the piece. So a piece cut anywhere and given back as its own
    prompt ends as before, unless its grammar limits how long slots stay open: a prompt's clocks begin after it.

    Args:
        seed, piece_index: 0 to 2**64 - 1; each pair has a stream of its own.
        first: a multiple of 4.
    Source: Philox4x64 of Salmon et al. 2011. Its raw output is used, for numpy keeps that stable across versions.
    """
    for name, value in (("seed", seed), ("piece_index", piece_index)):
        if not 0 <= value < 2**64:
            raise ValueError(f"{name}={value} is outside 0 to 2**64 - 1")
    if first % 4:
        raise ValueError(f"first={first} is not a multiple of 4")
    philox = np.random.Philox(key=np.array([seed, piece_index], dtype=np.uint64)).advance(first // 4)
    return (philox.random_raw(n) >> np.uint64(11)).astype(np.float64) * 2.0**-53


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """What all rows of a batch have in common."""

    chooser: Chooser
    penalty: Penalty | None
    bias_V: Tensor | None
    grammar: GrammarTables | None
    context: SlidingContext
    seed: int
    max_tokens: int
    min_new_tokens: int
    end_id: int
    pad_id: int
    with_entropies: bool
    precision: Precision
    n_threads: int


class Sampler:
    """The rows of a running batch, those in use at the front; what belongs to a row has its number everywhere.

    Ids and all that is counted stay on the CPU: a step moves only its last ids, uniforms and choices.

    Args:
        model: in evaluation mode.
    """

    def __init__(self, model: SampledModel, request: Request, batch_size: int) -> None:
        self.request = request
        self.device = model.embed.weight.device
        room = min(request.context.limit, request.max_tokens)
        self.model, self.cache, self.next_logits = prepared(model, request, batch_size, room)
        self.grammar = None if request.grammar is None else GrammarRows(request.grammar, batch_size)
        self.pad_V = torch.arange(model.vocab_size, device=self.device) == request.pad_id
        # Memory that is not written to costs nothing yet.
        self.ids_BJ = torch.empty((batch_size, request.max_tokens), dtype=torch.long)
        self.entropy_BJ = torch.empty(self.ids_BJ.shape if request.with_entropies else (batch_size, 0))
        self.uniform_BJ = torch.zeros((batch_size, UNIFORMS_AT_ONCE), dtype=torch.float64)
        self.length_B = np.zeros(batch_size, dtype=np.int64)
        self.n_prompt_B = np.zeros(batch_size, dtype=np.int64)
        self.key_B = [0] * batch_size
        self.place_B = [Place()] * batch_size
        self.is_waiting_B = np.zeros(batch_size, dtype=bool)
        self.piece_of_row: list[int] = []

    def start(self, row: int, piece: int, piece_index: int, prompt: Tensor) -> None:
        """Put a piece into a row that is free or the next unused one."""
        if row == len(self.piece_of_row):
            self.piece_of_row.append(piece)
        self.piece_of_row[row] = piece
        self.ids_BJ[row, : len(prompt)] = prompt
        self.length_B[row], self.n_prompt_B[row], self.key_B[row] = len(prompt), len(prompt), piece_index
        self.read_uniforms(row)
        if self.grammar is not None:
            self.grammar.walk(row, prompt.tolist())
        self.begin_context(row, self.request.context.after_prompt(prompt.numpy()))

    def begin_context(self, row: int, place: Place) -> None:
        """Empty the cache of a row, to be filled from another place on."""
        self.place_B[row] = place
        self.is_waiting_B[row] = True
        self.cache.start_row(row, self.piece_of_row[row])

    def read_uniforms(self, row: int) -> None:
        """Draw the next uniforms in 0-1 of the piece in `row`, from its own random stream."""
        first = int(self.length_B[row]) // UNIFORMS_AT_ONCE * UNIFORMS_AT_ONCE
        uniforms = piece_uniforms(self.request.seed, self.key_B[row], UNIFORMS_AT_ONCE, first)
        self.uniform_BJ[row] = torch.from_numpy(uniforms)

    def context_ids(self, row: int) -> Tensor:
        """Return the ids of `row` that the model looks back on."""
        return self.ids_BJ[row, self.place_B[row].index : int(self.length_B[row])]

    def fill_caches(self) -> None:
        """Give the rows that wait for it all ids of their contexts but the last.

        The last one is the first of `step`, so a row's state is the same at every step.
        """
        for first, end in runs(self.is_waiting_B[: len(self.piece_of_row)]):
            contexts = [self.context_ids(row)[:-1] for row in range(first, end)]
            longest = max(map(len, contexts))
            n_rows = max(PREFILL_TOKENS // max(longest, 1), 1)
            for start in range(0, end - first, n_rows):
                some = contexts[start : start + n_rows]
                tokens_BT = torch.full((len(some), max(map(len, some))), self.model.pad_id)
                for tokens_T, ids in zip(tokens_BT, some, strict=True):
                    tokens_T[: len(ids)] = ids
                if tokens_BT.shape[1]:
                    rows = self.cache.rows(first + start, first + start + len(some))
                    self.model(tokens_BT.to(self.device), rows)
        self.is_waiting_B[:] = False

    def prepare(self) -> None:
        """Give each row room in its cache and a uniform for one more id."""
        n = len(self.piece_of_row)
        context = self.request.context
        for row in range(n):
            length = int(self.length_B[row])
            if length % UNIFORMS_AT_ONCE == 0:
                self.read_uniforms(row)
            if context.is_full(length, self.place_B[row]):
                self.begin_context(row, context.moved(self.ids_BJ[row, :length].numpy(), self.place_B[row]))
        if self.is_waiting_B[:n].any():
            self.fill_caches()

    def step(self) -> list[int]:
        """Add one id to every row in use; return the rows whose pieces are complete."""
        self.prepare()
        n = len(self.piece_of_row)
        row_B, length_B = torch.arange(n), torch.from_numpy(self.length_B[:n].copy())
        last_B = self.ids_BJ[row_B, length_B - 1].to(self.device)
        logits_BV = self.next_logits(last_B, self.cache.rows(0, n)).double()
        if self.request.with_entropies:
            self.entropy_BJ[row_B, length_B] = entropy(logits_BV).float().cpu()
        added_BV = self.added(length_B)
        if added_BV is not None:
            logits_BV = logits_BV + added_BV
        chosen_B = self.choose(logits_BV)
        if self.grammar is not None:
            self.grammar.advance(chosen_B)
        ids_B = chosen_B.cpu()
        self.ids_BJ[row_B, length_B] = ids_B
        self.length_B[:n] += 1
        is_complete_B = (ids_B == self.request.end_id) | (length_B + 1 >= self.request.max_tokens)
        return is_complete_B.nonzero()[:, 0].tolist()

    def added(self, length_B: Tensor) -> Tensor | None:
        """Return what is added to the logits of each row, float64, if anything."""
        penalty, bias_V = self.request.penalty, self.request.bias_V
        added_BV = None if bias_V is None else bias_V.expand(len(length_B), -1)
        if penalty is not None:
            penalty_BV = penalty.on(self.ids_BJ[: len(length_B)], length_B, len(self.pad_V)).to(self.device)
            added_BV = -penalty_BV if added_BV is None else added_BV - penalty_BV
        n_drawn_B = self.length_B[: len(length_B)] - self.n_prompt_B[: len(length_B)]
        is_early_B = n_drawn_B < self.request.min_new_tokens
        if is_early_B.any() and 0 <= self.request.end_id < len(self.pad_V):
            shape_BV, on = (len(length_B), len(self.pad_V)), {"dtype": torch.float64, "device": self.device}
            added_BV = torch.zeros(shape_BV, **on) if added_BV is None else added_BV.clone()
            added_BV[torch.from_numpy(is_early_B).to(self.device), self.request.end_id] += TOO_EARLY
        return added_BV

    def choose(self, logits_BV: Tensor) -> Tensor:
        """Return an id for each row."""
        n = len(logits_BV)
        lengths = self.length_B[:n]
        uniform_B = self.uniform_BJ[torch.arange(n), torch.from_numpy(lengths % UNIFORMS_AT_ONCE)].to(self.device)
        forbidden_BV = self.pad_V[None] if self.grammar is None else self.grammar.forbidden(n) | self.pad_V
        masked_BV = logits_BV.masked_fill(forbidden_BV, -math.inf)
        self.check_finite(masked_BV)
        return self.request.chooser.choose(masked_BV, lengths, uniform_B)

    def check_finite(self, logits_BV: Tensor) -> None:
        """Raise ValueError where a row has nothing to choose from."""
        is_dead_B = ~logits_BV.amax(dim=-1).isfinite()
        if not bool(is_dead_B.any()):
            return
        row = int(is_dead_B.nonzero()[0, 0])
        where = f"piece {self.piece_of_row[row]}, position {int(self.length_B[row])}"
        if bool((logits_BV[row] == -math.inf).all()):
            raise ValueError(f"the grammar allows no id here ({where})")
        raise ValueError(f"the model's logits are not finite; its weights are damaged or it has diverged ({where})")

    def piece(self, row: int) -> Tensor:
        """Return a copy of the ids of one row so far."""
        return self.ids_BJ[row, : int(self.length_B[row])].clone()

    def entropies(self, row: int, n_prompt: int) -> NDArray[np.float32]:
        """Return a copy of the entropies of one row after its prompt."""
        return self.entropy_BJ[row, n_prompt : int(self.length_B[row])].numpy().copy()

    def drop(self, row: int) -> None:
        """Free a row by moving the last row in use into its place."""
        last = len(self.piece_of_row) - 1
        piece = self.piece_of_row.pop()
        if row == last:
            return
        self.piece_of_row[row] = piece
        length = int(self.length_B[last])
        for table in (self.ids_BJ, self.entropy_BJ):
            table[row, :length] = table[last, :length]
        self.uniform_BJ[row] = self.uniform_BJ[last]
        self.length_B[row], self.n_prompt_B[row] = length, self.n_prompt_B[last]
        self.is_waiting_B[row] = self.is_waiting_B[last]
        self.key_B[row], self.place_B[row] = self.key_B[last], self.place_B[last]
        self.cache.copy_row(last, row)
        if self.grammar is not None:
            self.grammar.copy_row(last, row)


def prepared(
    model: SampledModel, request: Request, batch_size: int, room: int
) -> tuple[SampledModel, Any, Callable[[Tensor, Any], Tensor]]:
    """Return the model that reads prompts, an empty cache, and a function from last ids to logits, (B) to (B, V)."""
    if not (isinstance(model, Decoder) and DecoderStep.fits(model)):
        return model, model.new_cache(batch_size, room), lambda ids_B, cache: model(ids_B[:, None], cache)[:, 0]
    model = rounded_weights(model, request.precision)
    step = DecoderStep(model, request.precision, room, request.n_threads)
    return model, model.new_cache(batch_size, room, step.cache_dtype), step


def entropy(logits_BV: Tensor) -> Tensor:
    """Return the entropy of each row in nats."""
    if loops.ARE_COMPILED and logits_BV.device.type == "cpu":
        entropy_B = torch.empty(len(logits_BV), dtype=torch.float64)
        loops.write_entropies(logits_BV.numpy(), entropy_B.numpy())
        return entropy_B
    log_share_BV = logits_BV.log_softmax(-1)
    return -(log_share_BV.exp() * log_share_BV).sum(dim=-1)


def runs(is_in_B: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Yield the first row of each run of True and the one after its last."""
    edges = np.flatnonzero(np.diff(is_in_B, prepend=False, append=False)).tolist()
    return zip(edges[::2], edges[1::2], strict=True)
