"""Batched sampling with a key/value cache: settings of the choice, a grammar, and pieces of any length.

Steps run in float32, and each id is nevertheless the one that float64 gives for the piece alone: see
precision.py. Pieces longer than a model's context: see sliding_context.py. Shape letters: see layers.py.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.config import SamplingConfig
from models.decoder.model import Decoder
from models.decoder.step import DecoderStep
from models.registry import SampledModel
from models.sampling.choice import Chooser, Penalty
from models.sampling.grammar_mask import GrammarArrays, GrammarRows, GrammarTables
from models.sampling.precision import CheckSchedule, ErrorGauge, ExactLogits, PrecisionLostError, evaluated_in, rounded
from models.sampling.sliding_context import Place, SlidingContext
from models.sampling.threads import ThreadCount, tuned_threads

UNIFORMS_AT_ONCE = 1024  # a multiple of 4
PREFILL_TOKENS = 8192  # in one pass over several prompts
TOO_EARLY = -100.0  # added to the logit of an end that is not wanted yet; where nothing else is allowed, it is drawn
FULL_EVERY = 64  # ids of a piece between two questions whether it is full


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


class Sampler:
    """The rows of a running batch, those in use at the front; what belongs to a row has its number everywhere.

    Ids and all that is counted stay on the CPU: a step moves only its last ids, uniforms and choices.

    Args:
        is_exact: run in float64 from the start.
    """

    def __init__(self, model: SampledModel, request: Request, batch_size: int, is_exact: bool) -> None:
        self.request = request
        self.device = model.embed.weight.device
        self.model = evaluated_in(torch.float64 if is_exact else torch.float32, model)
        self.next_logits: Callable[[Tensor, Any], Tensor] = self.model
        if isinstance(self.model, Decoder):
            self.next_logits = DecoderStep(self.model)
        self.gauge = None if is_exact else ErrorGauge()
        self.schedule = CheckSchedule()
        room = min(request.context.limit, request.max_tokens)
        self.exact = None if is_exact else ExactLogits(model, room)
        self.cache = self.model.new_cache(batch_size, room)
        self.grammar = None if request.grammar is None else GrammarRows(request.grammar, batch_size)
        self.added_BV: Tensor | None = None  # to the logits of the step at hand
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
        last_B1 = self.ids_BJ[row_B, length_B - 1][:, None].to(self.device)
        logits_BV = self.next_logits(last_B1, self.cache.rows(0, n))[:, 0].double()
        if self.gauge is None:
            logits_BV = rounded(logits_BV)
        if self.request.with_entropies:
            self.entropy_BJ[row_B, length_B] = entropy(logits_BV).float().cpu()
        self.added_BV = self.added(length_B)
        if self.added_BV is not None:
            logits_BV = logits_BV + self.added_BV
        chosen_B = self.choose(logits_BV)
        if self.grammar is not None:
            self.grammar.advance(chosen_B)
        ids_B = chosen_B.cpu()
        self.ids_BJ[row_B, length_B] = ids_B
        self.length_B[:n] += 1
        is_complete_B = (ids_B == self.request.end_id) | (length_B + 1 >= self.request.max_tokens)
        return is_complete_B.nonzero()[:, 0].tolist()

    def added(self, length_B: Tensor) -> Tensor | None:
        """Return what is added to the logits of each row, exactly known, so it leaves the margin as it is."""
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
        """Return an id for each row, by exact logits where these are too close."""
        n = len(logits_BV)
        lengths = self.length_B[:n]
        uniform_B = self.uniform_BJ[torch.arange(n), torch.from_numpy(lengths % UNIFORMS_AT_ONCE)].to(self.device)
        forbidden_BV = self.pad_V[None] if self.grammar is None else self.grammar.forbidden(n) | self.pad_V
        masked_BV = logits_BV.masked_fill(forbidden_BV, -math.inf)
        margin = None
        if self.gauge is not None:
            if self.schedule.is_due():
                self.check_finite(masked_BV)
                self.gauge.observe(logits_BV[0], self.exact_logits(0))
            margin = self.gauge.margin
        ids_B, is_sure_B = self.request.chooser.choose(masked_BV, lengths, uniform_B, margin)
        is_good_B = is_sure_B & masked_BV.amax(dim=-1).isfinite()
        if bool(is_good_B.all()):
            return ids_B
        self.check_finite(masked_BV)
        for row in (~is_sure_B).nonzero()[:, 0].tolist():
            ids_B[row] = self.choose_exactly(row, logits_BV[row], forbidden_BV.expand(n, -1)[row], uniform_B)
        return ids_B

    def choose_exactly(self, row: int, fast_V: Tensor, forbidden_V: Tensor, uniform_B: Tensor) -> Tensor:
        """Return the id that float64 logits of the row alone give, and measure the error of the fast ones."""
        assert self.gauge is not None
        exact_V = self.exact_logits(row)
        self.gauge.observe(fast_V, exact_V)
        masked_1V = exact_V.masked_fill(forbidden_V, -math.inf)[None]
        one = slice(row, row + 1)
        return self.request.chooser.choose(masked_1V, self.length_B[one], uniform_B[one]).ids_B[0]

    def exact_logits(self, row: int) -> Tensor:
        """Return logits_V in float64, by a pass over the row's own context."""
        assert self.exact is not None
        logits_V = self.exact.of(self.piece_of_row[row], self.context_ids(row))
        return logits_V if self.added_BV is None else logits_V + self.added_BV[row]

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


def entropy(logits_BV: Tensor) -> Tensor:
    """Return the entropy of each row in nats."""
    log_share_BV = logits_BV.log_softmax(-1)
    return -(log_share_BV.exp() * log_share_BV).sum(dim=-1)


def runs(is_in_B: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Yield the first row of each run of True and the one after its last."""
    edges = np.flatnonzero(np.diff(is_in_B, prepend=False, append=False)).tolist()
    return zip(edges[::2], edges[1::2], strict=True)


@dataclass(frozen=True, slots=True, eq=False)
class Written:
    """A piece, complete or as far as it is.

    Attributes:
        place: of its prompt among all prompts.
        entropies: as for `sample`; empty where they are not wanted.
        seconds: its share of the time of the steps that it took part in.
    """

    place: int
    ids: Tensor
    entropies: NDArray[np.float32]
    seconds: float


@dataclass(frozen=True, slots=True)
class Hooks:
    """Callbacks of `sample`."""

    on_step: Callable[[int], bool | None] | None
    on_piece: Callable[[Written], None] | None
    on_partial: Callable[[Written], None] | None
    is_full: Callable[[int, Tensor], bool] | None


@torch.inference_mode()
def sample(
    model: SampledModel,
    prompts: Sequence[Tensor],
    piece_indices: Sequence[int],
    seed: int,
    config: SamplingConfig,
    grammar: GrammarTables | GrammarArrays | None = None,
    *,
    end_id: int,
    pad_id: int = 0,
    batch_size: int = 8,
    temperature: Callable[[int], float] | None = None,
    top_k: Callable[[int], int | None] | None = None,
    on_step: Callable[[int], bool | None] | None = None,
    on_piece: Callable[[Written], None] | None = None,
    on_partial: Callable[[Written], None] | None = None,
    on_void: Callable[[], None] | None = None,
    is_full: Callable[[int, Tensor], bool] | None = None,
    bias_V: Tensor | None = None,
    entropies: list[NDArray[np.float32]] | None = None,
) -> list[Tensor]:
    """Continue each prompt until `end_id`, `config.max_tokens` or until it is full.

    A piece depends on the weights, its prompt, the settings, `seed` and its piece index alone, not on `batch_size` or
    on the pieces beside it: every id is the one that the model gives in float64.

    Args:
        model: runs in evaluation mode on the device of its weights; these stay as they are.
        prompts: int64 vectors of at least one id, shorter than `max_tokens`, without `pad_id` and `end_id`.
        piece_indices: keys of the pieces' random streams, one for each prompt.
        grammar: masks ids that would break it; prompts must obey it. None: every id but padding may come. Tables
            that are on the model's device already are not copied.
        end_id, pad_id: the id after the last one, and the one that is never drawn.
        batch_size: rows in work at once; a row whose piece is complete takes the next prompt.
        temperature, top_k: functions of the number of ids so far, in place of the settings in `config`.
        on_step: called after each step with the number of ids drawn so far, in all pieces; True stops, and pieces
            are returned as far as they are. The number may once begin again: see precision.py.
        on_piece: called with each piece that is complete, in any order.
        on_partial: called with each piece at work, as far as it is, before an interrupt leaves this function.
        on_void: called when all pieces are begun again, before the first step: those that came already come again, and
            with other ids perhaps.
        is_full: asked with the place of a prompt and the ids of its piece at each `FULL_EVERY` ids drawn; True ends it.
        bias_V: is added to the logits of every step, before the settings change them; float64, one for each id.
        entropies: is filled, in the order of `prompts`, with float32 vectors: for each id drawn the entropy in nats of
            the model's distribution over all ids, before the grammar and the settings change it.
    Returns:
        int64 vectors on the CPU in the order of `prompts`, the prompt and a drawn `end_id` included.
    Raises:
        ValueError: a prompt that is empty, complete, too long or forbidden; a grammar without a way on; a context
            that the model does not have; a model whose logits are not finite.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} is below 1")
    if len(prompts) != len(piece_indices):
        raise ValueError(f"{len(prompts)} prompts, but {len(piece_indices)} piece indices")
    tables = None if grammar is None else tables_for(model, grammar)
    for i, prompt in enumerate(prompts):  # all of them now, not when their turn comes
        check_prompt(prompt, f"prompt {i}", config.max_tokens, model.vocab_size)
        check_absent(prompt, f"prompt {i}", {"end": end_id, "padding": pad_id})
        if tables is not None:
            tables.follow(prompt.tolist(), f"prompt {i}: ")
    request = Request(
        chooser=Chooser.of(config, model.vocab_size, temperature=temperature, top_k=top_k),
        penalty=Penalty.of(config),
        bias_V=None if bias_V is None else bias_V.to(model.embed.weight.device, torch.float64),
        grammar=tables,
        context=context_of(model, config, tables, end_id),
        seed=seed,
        max_tokens=config.max_tokens,
        min_new_tokens=config.min_new_tokens,
        end_id=end_id,
        pad_id=pad_id,
        with_entropies=entropies is not None,
    )
    prompts = [prompt.cpu() for prompt in prompts]
    n_rows = min(batch_size, max(len(prompts), 1))
    hooks, written = Hooks(on_step, on_piece, on_partial, is_full), None
    with tuned_threads(model.embed.weight.device) as threads:
        if model.embed.weight.dtype != torch.float64:
            with suppress(PrecisionLostError):  # which also frees the memory of the first attempt
                written = write(Sampler(model, request, n_rows, is_exact=False), threads, prompts, piece_indices, hooks)
            if written is None and on_void is not None:
                on_void()
        if written is None:
            written = write(Sampler(model, request, n_rows, is_exact=True), threads, prompts, piece_indices, hooks)
    if entropies is not None:
        entropies[:] = [piece.entropies for piece in written]
    return [piece.ids for piece in written]


def write(
    sampler: Sampler, threads: ThreadCount, prompts: Sequence[Tensor], piece_indices: Sequence[int], hooks: Hooks
) -> list[Written]:
    """Return the pieces that begin with `prompts`, in their order."""
    pieces = [Written(i, prompt.clone(), np.empty(0, np.float32), 0.0) for i, prompt in enumerate(prompts)]
    waiting = deque(range(len(prompts)))
    seconds = np.zeros(len(prompts))

    def start_next(row: int) -> None:
        piece = waiting.popleft()
        sampler.start(row, piece, piece_indices[piece], prompts[piece])

    def keep(row: int) -> Written:
        piece = sampler.piece_of_row[row]
        found = sampler.entropies(row, len(prompts[piece]))
        pieces[piece] = Written(piece, sampler.piece(row), found, float(seconds[piece]))
        return pieces[piece]

    def is_full(row: int) -> bool:
        piece = sampler.piece_of_row[row]
        n_drawn = int(sampler.length_B[row]) - len(prompts[piece])
        return hooks.is_full is not None and n_drawn % FULL_EVERY == 0 and hooks.is_full(piece, sampler.piece(row))

    for row in range(min(sampler.cache.batch_size, len(prompts))):
        start_next(row)
    n_drawn = 0
    try:
        while sampler.piece_of_row:
            n_rows = len(sampler.piece_of_row)
            n_drawn += n_rows
            threads.use()
            started = time.perf_counter()
            is_complete = sampler.step()
            took = time.perf_counter() - started
            threads.observe(took)
            seconds[sampler.piece_of_row] += took / n_rows
            # From the last row down: the row that `drop` moves is then never one that is complete itself.
            for row in sorted({*is_complete, *filter(is_full, range(n_rows))}, reverse=True):
                piece = keep(row)
                if hooks.on_piece is not None:
                    hooks.on_piece(piece)
                if waiting:
                    start_next(row)
                else:
                    sampler.drop(row)
            if hooks.on_step is not None and hooks.on_step(n_drawn):
                break
    except BaseException as error:
        if hooks.on_partial is not None and not isinstance(error, Exception):  # an interrupt
            for row in range(len(sampler.piece_of_row)):
                hooks.on_partial(keep(row))
        raise
    for row in range(len(sampler.piece_of_row)):
        keep(row)
    return pieces


def context_of(
    model: SampledModel, config: SamplingConfig, grammar: GrammarTables | None, end_id: int
) -> SlidingContext:
    """Return how far the model looks back; raise ValueError where a model with latents would have to start again."""
    if not model.config.has_latents:
        return SlidingContext.of(config, model.max_length, grammar, end_id)
    # Its latent represents the tokens of one block, which cannot begin again.
    if config.context_tokens is not None and config.context_tokens < config.max_tokens:
        raise ValueError(
            f"context_tokens={config.context_tokens} is below max_tokens={config.max_tokens}, but a model with latents"
            " looks back on its whole block"
        )
    return SlidingContext(config.max_tokens, config.max_tokens)


def tables_for(model: SampledModel, grammar: GrammarTables | GrammarArrays) -> GrammarTables:
    """Return the grammar's tables on the model's device; raise ValueError where its number of ids is another."""
    device = model.embed.weight.device
    tables = grammar.to(device) if isinstance(grammar, GrammarTables) else GrammarTables.from_numpy(grammar, device)
    if tables.vocab_size != model.vocab_size:
        raise ValueError(f"the grammar has {tables.vocab_size} ids, the model {model.vocab_size}")
    return tables


def check_absent(prompt: Tensor, where: str, ids: dict[str, int]) -> None:
    """Raise ValueError where the prompt holds one of the named ids."""
    for name, token in ids.items():
        if bool((prompt == token).any()):
            raise ValueError(f"{where} holds the {name} id {token} at position {prompt.tolist().index(token)}")


def check_prompt(prompt: Tensor, where: str, max_tokens: int, vocab_size: int) -> None:
    """Raise ValueError unless the prompt is a vector of 1 to `max_tokens - 1` ids, each within the vocabulary."""
    if prompt.ndim != 1 or not len(prompt):
        raise ValueError(f"{where} has shape {tuple(prompt.shape)}; a prompt is a vector of at least one id")
    if len(prompt) >= max_tokens:
        raise ValueError(f"{where} has {len(prompt)} ids, which leaves none to draw of max_tokens={max_tokens}")
    lowest, highest = int(prompt.min()), int(prompt.max())
    if not 0 <= lowest <= highest < vocab_size:
        raise ValueError(f"{where} holds id {lowest if lowest < 0 else highest} outside 0-{vocab_size - 1}")
