"""The rows of a batch of pieces at work: their ids, their cache and their place in the grammar.

All of it lies on the model's device, and a step is a function of tensors alone. On CUDA a decoder takes several steps
between two looks at what came of them, and repeats them as graphs. Shape letters: see layers.py.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models import loops
from models.config import Precision
from models.decoder.model import Decoder
from models.decoder.static_step import Graphs, decoder_in_16_bits, static_step
from models.decoder.step import DecoderStep, rounded_weights
from models.registry import SampledModel
from models.sampling.choice import Chooser, Penalty
from models.sampling.grammar_mask import GrammarRows, GrammarTables
from models.sampling.sliding_context import Place, SlidingContext

LOOK_EVERY = 16  # steps of static shapes between two looks of the host
KEYS_AT_ONCE = 256  # steps of static shapes look at a multiple of so many keys
UNIFORMS_AT_ONCE = 1024  # a multiple of 4, above LOOK_EVERY
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

    The host knows `length_B` and `piece_of_row` as of its last look.

    Args:
        model: in evaluation mode.
    """

    def __init__(self, model: SampledModel, request: Request, batch_size: int) -> None:
        self.request = request
        self.device = model.embed.weight.device
        room = min(request.context.limit, request.max_tokens)
        self.is_static = is_static(model)
        self.model, self.cache, self.next_logits = prepared(model, request, batch_size, room)
        self.graphs = Graphs(self.device if self.is_static else torch.device("cpu"))
        self.grammar = None if request.grammar is None else GrammarRows(request.grammar, batch_size)
        self.pad_V = torch.arange(model.vocab_size, device=self.device) == request.pad_id
        # Memory that is not written to costs nothing yet. A complete row goes on writing into the column after its end.
        width, device = request.max_tokens + 1, self.device
        self.ids_BJ = torch.empty((batch_size, width), dtype=torch.long, device=device)
        self.entropy_BJ = torch.empty((batch_size, width if request.with_entropies else 0), device=device)
        self.uniform_BJ = torch.empty((batch_size, width), dtype=torch.float64, device=device)
        self.n_ids_B = torch.ones(batch_size, dtype=torch.long, device=device)
        self.n_prompt_B = torch.zeros(batch_size, dtype=torch.long, device=device)
        self.is_going_B = torch.zeros(batch_size, dtype=torch.bool, device=device)
        # The highest logit of a row's last step.
        self.top_B = torch.zeros(batch_size, dtype=torch.float64, device=device)
        self.length_B = np.zeros(batch_size, dtype=np.int64)
        self.n_uniforms_B = np.zeros(batch_size, dtype=np.int64)
        self.key_B = [0] * batch_size
        self.place_B = [Place()] * batch_size
        self.is_waiting_B = np.zeros(batch_size, dtype=bool)
        self.piece_of_row: list[int] = []

    def start(self, row: int, piece: int, piece_index: int, prompt: Tensor) -> None:
        """Put a piece into a row that is free or the next unused one."""
        if row == len(self.piece_of_row):
            self.piece_of_row.append(piece)
        self.piece_of_row[row] = piece
        n = len(prompt)
        self.ids_BJ[row, :n] = prompt.to(self.device)
        self.n_ids_B[row], self.n_prompt_B[row], self.is_going_B[row] = n, n, True
        self.length_B[row], self.key_B[row], self.n_uniforms_B[row] = n, piece_index, n // 4 * 4
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
        first = int(self.n_uniforms_B[row])
        end = min(first + UNIFORMS_AT_ONCE, self.request.max_tokens)
        uniforms = piece_uniforms(self.request.seed, self.key_B[row], end - first, first)
        self.uniform_BJ[row, first:end] = torch.from_numpy(uniforms).to(self.device)
        self.n_uniforms_B[row] = end

    def fill_caches(self) -> None:
        """Give the rows that wait for it all ids of their contexts but the last.

        The last one is the first of `advance`, so a row's state is the same at every step.
        """
        for first, end in runs(self.is_waiting_B[: len(self.piece_of_row)]):
            contexts = [
                self.ids_BJ[row, self.place_B[row].index : int(self.length_B[row]) - 1] for row in range(first, end)
            ]
            longest = max(map(len, contexts))
            n_rows = max(PREFILL_TOKENS // max(longest, 1), 1)
            for start in range(0, end - first, n_rows):
                some = contexts[start : start + n_rows]
                shape_BT = len(some), max(map(len, some))
                tokens_BT = torch.full(shape_BT, self.model.pad_id, device=self.device)
                for tokens_T, ids in zip(tokens_BT, some, strict=True):
                    tokens_T[: len(ids)] = ids
                if tokens_BT.shape[1]:
                    self.model(tokens_BT, self.cache.rows(first + start, first + start + len(some)))
        self.is_waiting_B[:] = False

    def prepare(self) -> tuple[int, int]:
        """Give each row uniforms and room in its cache; return for how many steps, and the keys that they look at."""
        n, limit = len(self.piece_of_row), self.request.context.limit
        needed_B = np.minimum(self.length_B[:n] + LOOK_EVERY, self.request.max_tokens)
        for row in (self.n_uniforms_B[:n] < needed_B).nonzero()[0].tolist():
            self.read_uniforms(row)
        for row in (self.context_lengths() > limit).nonzero()[0].tolist():
            self.begin_context(row, self.request.context.moved(self.piece(row).numpy(), self.place_B[row]))
        if self.is_waiting_B[:n].any():
            self.fill_caches()
        if not self.is_static:
            return 1, self.cache.max_length
        longest = int(self.context_lengths().max())
        n_steps = min(LOOK_EVERY, limit - longest + 1)
        n_keys = -(-(longest + n_steps - 1) // KEYS_AT_ONCE) * KEYS_AT_ONCE
        return n_steps, min(n_keys, self.cache.max_length)

    def context_lengths(self) -> NDArray[np.int64]:
        """Return how many ids of each row in use the model looks back on."""
        n = len(self.piece_of_row)
        return self.length_B[:n] - np.array([place.index for place in self.place_B[:n]])

    def step(self) -> list[int]:
        """Add ids to every row in use, one or some; return the rows whose pieces are complete."""
        n_steps, n_keys = self.prepare()
        # Rows that are not in use take part where shapes are static.
        n_rows = self.cache.batch_size if self.is_static else len(self.piece_of_row)
        for _ in range(n_steps):
            self.graphs.run(self.advance, n_rows, n_keys)
        return self.look()

    def advance(self, n_rows: int, n_keys: int) -> None:
        """Add one id to each of the first rows that is not complete.

        Only the shapes of tensors decide what is done here, so that it can be repeated as a graph. Rows that are
        complete take part, and what they write is never read.
        """
        request = self.request
        length_B, is_going_B, top_B = self.n_ids_B[:n_rows], self.is_going_B[:n_rows], self.top_B[:n_rows]
        ids_BJ, length_B1 = self.ids_BJ[:n_rows], length_B[:, None]
        last_B = ids_BJ.gather(1, length_B1 - 1)[:, 0]
        logits_BV = self.next_logits(last_B, self.cache.rows(0, n_rows), n_keys).double()
        if request.with_entropies:
            self.entropy_BJ[:n_rows].scatter_(1, length_B1, entropy(logits_BV).float()[:, None])
        logits_BV = self.wanted(logits_BV, n_rows)
        uniform_B = self.uniform_BJ[:n_rows].gather(1, length_B1)[:, 0]
        chosen_B = request.chooser.choose(logits_BV, length_B, uniform_B)
        if self.grammar is not None:
            self.grammar.advance(chosen_B)
        ids_BJ.scatter_(1, length_B1, chosen_B[:, None])
        torch.where(is_going_B, logits_BV.amax(dim=-1), top_B, out=top_B)
        is_going_B &= top_B.abs() < math.inf  # false for NaN
        length_B += is_going_B
        is_going_B &= (chosen_B != request.end_id) & (length_B < request.max_tokens)

    def wanted(self, logits_BV: Tensor, n_rows: int) -> Tensor:
        """Return the logits with what the request adds and takes off, -inf for ids that may not come."""
        request, length_B = self.request, self.n_ids_B[:n_rows]
        if request.bias_V is not None:
            logits_BV = logits_BV + request.bias_V
        if request.penalty is not None:
            logits_BV = logits_BV - request.penalty.on(self.ids_BJ[:n_rows], length_B, len(self.pad_V))
        if request.min_new_tokens and 0 <= request.end_id < len(self.pad_V):
            is_early_B = length_B - self.n_prompt_B[:n_rows] < request.min_new_tokens
            logits_BV[:, request.end_id] += TOO_EARLY * is_early_B
        forbidden_BV = self.pad_V[None] if self.grammar is None else self.grammar.forbidden(n_rows) | self.pad_V
        return logits_BV.masked_fill(forbidden_BV, -math.inf)

    def look(self) -> list[int]:
        """Read how far the rows in use are, return those whose pieces are complete.

        Raises:
            ValueError: a row has nothing to choose from.
        """
        n = len(self.piece_of_row)
        seen_3B = torch.stack((self.n_ids_B.double(), self.is_going_B.double(), self.top_B))
        length_B, is_going_B, top_B = seen_3B.cpu().numpy()[:, :n]
        self.length_B[:n] = length_B
        for row in (~np.isfinite(top_B)).nonzero()[0].tolist():
            where = f"piece {self.piece_of_row[row]}, position {self.length_B[row]}"
            if top_B[row] == -math.inf:
                raise ValueError(f"the grammar allows no id here ({where})")
            raise ValueError(f"the model's logits are not finite; its weights are damaged or it has diverged ({where})")
        return (is_going_B == 0).nonzero()[0].tolist()

    def piece(self, row: int) -> Tensor:
        """Return a copy of the ids of one row so far, on the CPU."""
        return self.ids_BJ[row, : int(self.length_B[row])].clone().cpu()

    def entropies(self, row: int, n_prompt: int) -> NDArray[np.float32]:
        """Return a copy of the entropies of one row after its prompt."""
        return self.entropy_BJ[row, n_prompt : int(self.length_B[row])].clone().cpu().numpy()

    def drop(self, row: int) -> None:
        """Free a row by moving the last row in use into its place."""
        last = len(self.piece_of_row) - 1
        piece = self.piece_of_row.pop()
        if row != last:
            self.piece_of_row[row] = piece
            length, n_uniforms = int(self.length_B[last]), int(self.n_uniforms_B[last])
            for table, end in ((self.ids_BJ, length), (self.entropy_BJ, length), (self.uniform_BJ, n_uniforms)):
                table[row, :end] = table[last, :end]
            for vector in (self.n_ids_B, self.n_prompt_B, self.is_going_B, self.top_B):
                vector[row] = vector[last]
            self.length_B[row], self.n_uniforms_B[row] = length, n_uniforms
            self.is_waiting_B[row] = self.is_waiting_B[last]
            self.key_B[row], self.place_B[row] = self.key_B[last], self.place_B[last]
            self.cache.copy_row(last, row)
            if self.grammar is not None:
                self.grammar.copy_row(last, row)
        self.is_going_B[last] = False


def is_static(model: SampledModel) -> bool:
    """Return whether a model's steps have static shapes: those of a decoder on an accelerator."""
    return isinstance(model, Decoder) and model.embed.weight.device.type != "cpu"


def prepared(
    model: SampledModel, request: Request, batch_size: int, room: int
) -> tuple[SampledModel, Any, Callable[[Tensor, Any, int], Tensor]]:
    """Return the model that reads prompts, an empty cache, and its step.

    The step takes the last ids, (B), their cache, and how many keys at most it looks at; it returns logits, (B, V).
    """
    if is_static(model):
        assert isinstance(model, Decoder)
        model = decoder_in_16_bits(model, request.precision)
        return model, model.new_cache(batch_size, room), partial(static_step, model)
    if isinstance(model, Decoder) and DecoderStep.fits(model):
        model = rounded_weights(model, request.precision)
        step = DecoderStep(model, request.precision, room, request.n_threads)
        return model, model.new_cache(batch_size, room, step.cache_dtype), lambda ids_B, cache, _: step(ids_B, cache)
    cache = model.new_cache(batch_size, room)
    return model, cache, lambda ids_B, cache, _: model(ids_B[:, None], cache)[:, 0]


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
