"""Batched sampling with a key/value cache: settings of the choice, a grammar, and pieces of any length.

Pieces longer than a model's context: see sliding_context.py. Shape letters: see layers.py.
"""

import copy
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.config import SamplingConfig
from models.registry import SampledModel
from models.sampling.choice import Chooser, Penalty
from models.sampling.grammar_mask import GrammarArrays, GrammarTables
from models.sampling.sampler import Request, Sampler
from models.sampling.sliding_context import SlidingContext

FULL_EVERY = 64  # ids of a piece between two questions whether it is full


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
    is_full: Callable[[int, Tensor], bool] | None = None,
    bias_V: Tensor | None = None,
    entropies: list[NDArray[np.float32]] | None = None,
) -> list[Tensor]:
    """Continue each prompt until `end_id`, `config.max_tokens` or until it is full.

    The pieces of a call depend on its arguments, and on the processor and the torch version: the last bits of a matrix
    product belong to its shape, so a piece may differ with `batch_size` and with the pieces beside it.

    Args:
        model: runs in evaluation mode on the device of its weights; these stay as they are.
        prompts: int64 vectors of at least one id, shorter than `max_tokens`, without `pad_id` and `end_id`.
        piece_indices: keys of the pieces' random streams, one for each prompt.
        grammar: masks ids that would break it; prompts must obey it. None: every id but padding may come. Tables
            that are on the model's device already are not copied.
        end_id, pad_id: the id after the last one, and the one that is never drawn.
        batch_size: rows in work at once; a row whose piece is complete takes the next prompt.
        temperature, top_k: functions of the number of ids so far, in place of the settings in `config`.
        on_step: called after each step, or up to `LOOK_EVERY` of them for a decoder on an accelerator, with the number
            of ids drawn so far, in all pieces; True stops, and pieces are returned as far as they are.
        on_piece: called with each piece that is complete, in any order.
        on_partial: called with each piece at work, as far as it is, before an interrupt leaves this function.
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
    on_host = None if tables is None else tables.to("cpu")
    for i, prompt in enumerate(prompts):  # all of them now, not when their turn comes
        check_prompt(prompt, f"prompt {i}", config.max_tokens, model.vocab_size)
        check_absent(prompt, f"prompt {i}", {"end": end_id, "padding": pad_id})
        if on_host is not None:
            on_host.follow(prompt.tolist(), f"prompt {i}: ")
    device = model.embed.weight.device
    request = Request(
        chooser=Chooser.of(config, model.vocab_size, device, temperature=temperature, top_k=top_k),
        penalty=Penalty.of(config),
        bias_V=None if bias_V is None else bias_V.to(device, torch.float64),
        grammar=tables,
        context=context_of(model, config, on_host, end_id),
        seed=seed,
        max_tokens=config.max_tokens,
        min_new_tokens=config.min_new_tokens,
        end_id=end_id,
        pad_id=pad_id,
        with_entropies=entropies is not None,
        precision=config.precision,
        n_threads=config.threads,
    )
    prompts = [prompt.cpu() for prompt in prompts]
    n_rows = min(batch_size, max(len(prompts), 1))
    hooks = Hooks(on_step, on_piece, on_partial, is_full)
    with sampling_threads(config.threads):
        written = write(Sampler(evaluated(model), request, n_rows), prompts, piece_indices, hooks)
    if entropies is not None:
        entropies[:] = [piece.entropies for piece in written]
    return [piece.ids for piece in written]


def write(sampler: Sampler, prompts: Sequence[Tensor], piece_indices: Sequence[int], hooks: Hooks) -> list[Written]:
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

    def is_full(row: int, n_new: int) -> bool:
        """Ask where the last `n_new` ids reached a multiple of FULL_EVERY drawn ones; a full piece ends there."""
        piece = sampler.piece_of_row[row]
        n_after = (int(sampler.length_B[row]) - len(prompts[piece])) % FULL_EVERY
        if hooks.is_full is None or n_after >= n_new:
            return False
        asked = int(sampler.length_B[row]) - n_after
        if hooks.is_full(piece, sampler.piece(row)[:asked]):
            sampler.length_B[row] = asked
            return True
        return False

    for row in range(min(sampler.cache.batch_size, len(prompts))):
        start_next(row)
    n_drawn = 0
    try:
        while sampler.piece_of_row:
            before_B = sampler.length_B[: len(sampler.piece_of_row)].copy()
            started = time.perf_counter()
            is_complete = sampler.step()
            took = time.perf_counter() - started
            new_B = sampler.length_B[: len(before_B)] - before_B
            n_drawn += int(new_B.sum())
            seconds[sampler.piece_of_row] += took * new_B / new_B.sum()
            full = [row for row, n_new in enumerate(new_B.tolist()) if is_full(row, n_new)]
            # From the last row down: the row that `drop` moves is then never one that is complete itself.
            for row in sorted({*is_complete, *full}, reverse=True):
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


@contextmanager
def sampling_threads(n_threads: int) -> Iterator[None]:
    """Let torch use so many threads for a while; afterwards it has as many as before.

    Meanwhile oneDNN is off: the plan that it makes for each call of an activation takes several times as long as the
    call. Both are settings of the whole process, so only one of its threads may sample at a time.
    """
    before, has_onednn = torch.get_num_threads(), torch.backends.mkldnn.enabled
    try:
        torch.set_num_threads(n_threads)
        torch.backends.mkldnn.enabled = False
        yield
    finally:
        torch.backends.mkldnn.enabled = has_onednn
        torch.set_num_threads(before)


def evaluated(model: SampledModel) -> SampledModel:
    """Return the model in evaluation mode: itself, or a copy where it is in training."""
    return copy.deepcopy(model).eval() if model.training else model


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
