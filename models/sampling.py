"""Batched sampling with a key/value cache: temperature, top-k, top-p and a grammar mask. Shape letters: see layers.py.

Why float64: a piece must be the same, id for id, alone and in any batch. Matrix products of other shapes add in
another order, so logits of the same row differ in their last bits with the batch. Such a difference changes an id
only when its uniform number falls within the rounding error of a boundary between two ids: in float32 about once in
1e5 tokens, in float64 about once in 1e12. A step takes up to twice as long for it.
"""

import copy
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.config import SamplingConfig, check_temperature, check_top_k
from models.grammar_mask import GrammarArrays, GrammarRows, GrammarTables
from models.registry import Model

# Logits are rounded to this step before they are compared, so that ids which tie in exact arithmetic tie in every
# batch, and the lowest of them wins.
LOGIT_STEP = 2.0**-32


def piece_uniforms(seed: int, piece_index: int, n: int) -> NDArray[np.float64]:
    """Return the first `n` numbers, 0 to below 1, of the stream that belongs to one piece of one seed.

    The number at index i decides the id at index i of the piece. So a piece cut anywhere and given back as its own
    prompt ends as before.

    Args:
        seed, piece_index: 0 to 2**64 - 1; each pair has a stream of its own.
    Source: Philox4x64 of Salmon et al. 2011. Its raw output is used, for numpy keeps that stable across versions.
    """
    for name, value in (("seed", seed), ("piece_index", piece_index)):
        if not 0 <= value < 2**64:
            raise ValueError(f"{name}={value} is outside 0 to 2**64 - 1")
    philox = np.random.Philox(key=np.array([seed, piece_index], dtype=np.uint64))
    return (philox.random_raw(n) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def keep_likeliest(logits_BV: Tensor, top_k_B: Tensor | None, top_p: float | None) -> Tensor:
    """Return the logits with -inf for all ids outside the top k of each row, then for those outside its nucleus."""
    sorted_BV, order_BV = logits_BV.sort(dim=-1, descending=True, stable=True)  # stable: of equals, the lowest id first
    drop_BV = torch.zeros_like(sorted_BV, dtype=torch.bool)
    if top_k_B is not None:
        rank_V = torch.arange(logits_BV.shape[1], device=logits_BV.device)
        drop_BV = rank_V >= top_k_B[:, None]
        sorted_BV = sorted_BV.masked_fill(drop_BV, -math.inf)
    if top_p is not None:
        before_BV = sorted_BV.softmax(dim=-1).cumsum(dim=-1).roll(1, dims=-1)
        before_BV[:, 0] = 0.0  # the likeliest id always stays
        drop_BV = drop_BV | (before_BV >= top_p)
    return logits_BV.masked_fill(torch.zeros_like(drop_BV).scatter(1, order_BV, drop_BV), -math.inf)


def draw(logits_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """Return for each row the id at which the running sum of probabilities, in order of ids, passes `uniform_B`."""
    running_BV = (logits_BV - logits_BV.amax(dim=-1, keepdim=True)).exp().cumsum(dim=-1)
    total_B = running_BV[:, -1]
    # The product may round up to the total itself, which no id passes.
    threshold_B = torch.minimum(uniform_B * total_B, torch.nextafter(total_B, torch.zeros_like(total_B)))
    return torch.searchsorted(running_BV, threshold_B[:, None], right=True)[:, 0]


@dataclass(frozen=True, slots=True, eq=False)
class Chooser:
    """Logits and uniforms to ids, with settings that may depend on the length of a piece."""

    temperature_J: Tensor
    top_k_J: Tensor | None
    top_p: float | None
    greedy: bool

    @classmethod
    def of(
        cls,
        config: SamplingConfig,
        vocab_size: int,
        *,
        device: torch.device,
        temperature: Callable[[int], float] | None,
        top_k: Callable[[int], int | None] | None,
    ) -> "Chooser":
        # One value for each length, told beforehand; index 0 is never used, for a prompt has at least one id.
        lengths = range(1, config.max_tokens)
        temperatures, top_ks = [config.temperature] * config.max_tokens, [config.top_k] * config.max_tokens
        if temperature is not None:
            temperatures[1:] = [check_temperature(temperature(n), f" at length {n}") for n in lengths]
        if top_k is not None:
            top_ks[1:] = [check_top_k(top_k(n), f" at length {n}") for n in lengths]
        top_k_J = torch.tensor([min(k or vocab_size, vocab_size) for k in top_ks], device=device)
        return cls(
            temperature_J=torch.tensor(temperatures, dtype=torch.float64, device=device),
            top_k_J=top_k_J if bool((top_k_J < vocab_size).any()) else None,
            top_p=None if config.top_p == 1.0 else config.top_p,
            greedy=config.greedy,
        )

    def choose(self, logits_BV: Tensor, length_B: Tensor, uniform_B: Tensor) -> Tensor:
        """Return one id a row; -inf marks ids that are not allowed."""
        if self.greedy:
            return logits_BV.argmax(dim=-1)  # the first, so the lowest, of equals
        logits_BV = logits_BV / self.temperature_J[length_B, None]
        if self.top_k_J is not None or self.top_p is not None:
            top_k_B = None if self.top_k_J is None else self.top_k_J[length_B]
            logits_BV = keep_likeliest(logits_BV, top_k_B, self.top_p)
        return draw(logits_BV, uniform_B)


class Sampler:
    """The rows of a running batch; row `i` works on piece `piece_of_row[i]`, and rows in use stand at the front."""

    def __init__(
        self,
        model: Model,
        chooser: Chooser,
        grammar: GrammarTables | None,
        *,
        batch_size: int,
        max_tokens: int,
        end_id: int,
        pad_id: int,
    ) -> None:
        device = model.embed.weight.device
        self.model = model
        self.chooser = chooser
        self.grammar = None if grammar is None else GrammarRows(grammar, batch_size)
        self.max_tokens = max_tokens
        self.end_id = end_id
        self.pad_id = pad_id
        self.cache = model.new_cache(batch_size, max_tokens)
        self.ids_BJ = torch.full((batch_size, max_tokens), pad_id, dtype=torch.long, device=device)
        self.uniform_BJ = torch.zeros((batch_size, max_tokens), dtype=torch.float64, device=device)
        self.row_B = torch.arange(batch_size, device=device)
        self.piece_of_row: list[int] = []

    def start(self, row: int, piece: int, prompt: list[int], uniforms: NDArray[np.float64]) -> None:
        """Put a piece into a row that is free or the next unused one."""
        device = self.ids_BJ.device
        if row == len(self.piece_of_row):
            self.piece_of_row.append(piece)
        self.piece_of_row[row] = piece
        if self.grammar is not None:
            self.grammar.walk(row, prompt)
        self.ids_BJ[row, : len(prompt)] = torch.tensor(prompt, device=device)
        self.uniform_BJ[row] = torch.from_numpy(uniforms).to(device)
        self.cache.start_row(row, piece)
        # The last id of the prompt is the first one of `step`, so a row's state is the same at every step.
        if len(prompt) > 1:
            self.model(self.ids_BJ[row : row + 1, : len(prompt) - 1], self.cache.rows(row, row + 1))

    def step(self) -> list[int]:
        """Add one id to every row in use; return the rows whose pieces are complete."""
        n = len(self.piece_of_row)
        row_B, cache = self.row_B[:n], self.cache.rows(0, n)
        last_B = cache.length_B.clone()  # index of the last id; the model's call moves the cache's own lengths on
        logits_BV = self.model(self.ids_BJ[row_B, last_B][:, None], cache)[:, 0].double()
        logits_BV = (logits_BV / LOGIT_STEP).round_() * LOGIT_STEP
        logits_BV[:, self.pad_id] = -math.inf
        if self.grammar is not None:
            logits_BV.masked_fill_(self.grammar.forbidden(n), -math.inf)
        if not bool(logits_BV.amax(dim=-1).isfinite().all()):
            self.explain_dead_end(logits_BV)
        length_B = last_B + 1
        ids_B = self.chooser.choose(logits_BV, length_B, self.uniform_BJ[row_B, length_B])
        self.ids_BJ[row_B, length_B] = ids_B
        if self.grammar is not None:
            self.grammar.advance(ids_B)
        complete_B = (ids_B == self.end_id) | (length_B + 1 >= self.max_tokens)
        return complete_B.nonzero()[:, 0].tolist()

    def explain_dead_end(self, logits_BV: Tensor) -> None:
        row = int((~logits_BV.amax(dim=-1).isfinite()).nonzero()[0, 0])
        where = f"piece {self.piece_of_row[row]}, position {int(self.cache.length_B[row])}"
        if bool((logits_BV[row] == -math.inf).all()):
            raise ValueError(f"the grammar allows no id here ({where})")
        raise ValueError(f"the model's logits are not finite; its weights are damaged or it has diverged ({where})")

    def piece(self, row: int) -> Tensor:
        """Return a copy of the ids of one row so far, on the CPU."""
        return self.ids_BJ[row, : int(self.cache.length_B[row]) + 1].cpu().clone()

    def drop(self, row: int) -> None:
        """Free a row by moving the last row in use into its place."""
        last = len(self.piece_of_row) - 1
        piece = self.piece_of_row.pop()
        if row == last:
            return
        self.piece_of_row[row] = piece
        self.ids_BJ[row] = self.ids_BJ[last]
        self.uniform_BJ[row] = self.uniform_BJ[last]
        self.cache.copy_row(last, row)
        if self.grammar is not None:
            self.grammar.copy_row(last, row)


@torch.inference_mode()
def sample(
    model: Model,
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
) -> list[Tensor]:
    """Continue each prompt until `end_id` or `config.max_tokens`; each piece is the same for any `batch_size`.

    Args:
        model: in any dtype, on any device; it is copied to float64 and left as it is.
        prompts: one int64 vector of at least one id a piece; of any lengths.
        piece_indices: names the random stream of each piece; see `piece_uniforms`.
        grammar: only ids that it allows are drawn, and prompts must obey it; `pad_id` is never drawn.
        batch_size: rows in work at once; a row whose piece is complete takes the next prompt.
        temperature, top_k: functions of the number of ids so far, in place of the settings in `config`.
        on_step: called after each step with the number of ids drawn so far, in all pieces; True stops, and pieces
            are returned as far as they are.
    Returns:
        int64 vectors on the CPU in the order of `prompts`, the prompt and a drawn `end_id` included.
    Raises:
        ValueError: a prompt that is empty, complete, too long or forbidden; a grammar without a way on; a model whose
            logits are not finite.
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
    device = model.embed.weight.device
    pieces = [prompt.cpu().clone() for prompt in prompts]
    sampler = Sampler(
        copy.deepcopy(model).double().eval(),
        Chooser.of(config, model.vocab_size, device=device, temperature=temperature, top_k=top_k),
        tables,
        batch_size=min(batch_size, max(len(prompts), 1)),
        max_tokens=config.max_tokens,
        end_id=end_id,
        pad_id=pad_id,
    )
    waiting = deque(range(len(prompts)))

    def start_next(row: int) -> None:
        piece = waiting.popleft()
        uniforms = piece_uniforms(seed, piece_indices[piece], config.max_tokens)
        sampler.start(row, piece, pieces[piece].tolist(), uniforms)

    for row in range(sampler.cache.batch_size):
        if waiting:
            start_next(row)
    n_drawn = 0
    while sampler.piece_of_row:
        n_drawn += len(sampler.piece_of_row)
        # From the last row down: the row that `drop` moves is then never one that is complete itself.
        for row in reversed(sampler.step()):
            pieces[sampler.piece_of_row[row]] = sampler.piece(row)
            if waiting:
                start_next(row)
            else:
                sampler.drop(row)
        if on_step is not None and on_step(n_drawn):
            break
    for row, piece in enumerate(sampler.piece_of_row):
        pieces[piece] = sampler.piece(row)
    return pieces


def tables_for(model: Model, grammar: GrammarTables | GrammarArrays) -> GrammarTables:
    device = model.embed.weight.device
    tables = grammar.to(device) if isinstance(grammar, GrammarTables) else GrammarTables.from_numpy(grammar, device)
    if tables.vocab_size != model.vocab_size:
        raise ValueError(f"the grammar has {tables.vocab_size} ids, the model {model.vocab_size}")
    return tables


def check_absent(prompt: Tensor, where: str, ids: dict[str, int]) -> None:
    for name, token in ids.items():
        if bool((prompt == token).any()):
            raise ValueError(f"{where} holds the {name} id {token} at position {prompt.tolist().index(token)}")


def check_prompt(prompt: Tensor, where: str, max_tokens: int, vocab_size: int) -> None:
    if prompt.ndim != 1 or not len(prompt):
        raise ValueError(f"{where} has shape {tuple(prompt.shape)}; a prompt is a vector of at least one id")
    if len(prompt) >= max_tokens:
        raise ValueError(f"{where} has {len(prompt)} ids, which leaves none to draw of max_tokens={max_tokens}")
    lowest, highest = int(prompt.min()), int(prompt.max())
    if not 0 <= lowest <= highest < vocab_size:
        raise ValueError(f"{where} holds id {lowest if lowest < 0 else highest} outside 0-{vocab_size - 1}")
