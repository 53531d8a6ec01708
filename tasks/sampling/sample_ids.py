"""Sampling the ids of a batch: random draws or beam search, under the encoding's grammar and the controls."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.registry import Model, has_latents
from models.sampling.beam_search import beam_search
from models.sampling.sample import GrammarTables, Written, context_of, sample
from tasks.checkpoints import LoadedModel
from tasks.config.generation import GenerateConfig
from tasks.errors import ConfigError
from tasks.music.excerpt import Extent
from tasks.music.tokenizers.grammar import Grammar
from tasks.music.tokenizers.mmm.tokenizer import MmmTokenizer
from tasks.music.tokenizers.token_ids import TokenIdsTokenizer, refuse_music
from tasks.sampling.constraints import BoundTables, bind, token_bias
from tasks.sampling.latents import LatentPlan, check_latents, with_latents


def check_request(loaded: LoadedModel, config: GenerateConfig, n_prompts: int) -> None:
    """Raise ConfigError where a model does not support the settings of a batch with `n_prompts` prompts."""
    require_music(loaded)
    check_latents(loaded.model, config, n_prompts)
    check_controls(loaded.tokenizer, config)
    try:
        context_of(loaded.model, replace(config.sampling, max_tokens=longest_piece(loaded.model, config)), None, 0)
    except ValueError as error:
        raise ConfigError(f"generate.sampling: {error}") from None
    n_ranks = -(-config.n_pieces // max(n_prompts, 1))
    beams = config.sampling.beams
    draws_latents = has_latents(loaded.model) and (config.variation or config.latents == "prior")
    is_fixed = beams or (config.sampling.greedy and not draws_latents)
    if is_fixed and (config.best_of > 1 or config.reject_copies):
        raise ConfigError(
            "best_of and reject_copies choose among attempts, but beams and greedy make them all the same"
        )
    limits = [name for name in ("max_notes", "max_bars", "max_seconds") if getattr(config, name)]
    if limits and config.variation and not has_latents(loaded.model):
        raise ConfigError(f"{' and '.join(limits)} and variation: pieces are as long as their prompts; set one")
    if beams and limits:
        raise ConfigError(f"{' and '.join(limits)}: beam search ends at <end> and sampling.max_tokens alone")
    if beams and beams < n_ranks and not has_latents(loaded.model):
        raise ConfigError(
            f"sampling.beams={beams} give {beams} pieces for each prompt, but n_pieces={config.n_pieces}"
            f" are {n_ranks} for each"
        )


def opening_ids(loaded: LoadedModel) -> tuple[int, ...]:
    """Return the ids that a piece without a prompt begins with: those that the model never draws."""
    tokenizer = loaded.tokenizer
    if loaded.model.config.n_given == 1:
        return (tokenizer.start_id,)
    assert tokenizer.first_id is not None  # `check_model` of training refuses others
    return tokenizer.start_id, tokenizer.first_id


def require_music(loaded: LoadedModel) -> None:
    """Raise ConfigError where the ids of a model represent no music."""
    if isinstance(loaded.tokenizer, TokenIdsTokenizer):
        refuse_music()


def check_controls(tokenizer: Any, config: GenerateConfig) -> None:
    """Raise ConfigError where an encoding has no ids for the key, programs, tempo or density of the settings."""
    token_bias(tokenizer, config)
    bind(tokenizer, grammar_of(tokenizer, config), config)


def check_prompt_ids(loaded: LoadedModel, config: GenerateConfig, ids: Sequence[int], name: str) -> None:
    """Raise ConfigError where a prompt is too long, or does not obey the settings."""
    longest = longest_piece(loaded.model, config)
    if len(ids) >= longest:
        raise ConfigError(
            f"prompt {name}: its {len(ids)} tokens leave none to draw of {longest}, the longest piece by"
            f" sampling.max_tokens={config.sampling.max_tokens} and the model; {_way_out(config)}"
        )
    if config.n_tracks and isinstance(loaded.tokenizer, MmmTokenizer):
        n_tracks = list(ids).count(loaded.tokenizer.token_id("TRACK_START"))
        if n_tracks > config.n_tracks:
            raise ConfigError(
                f"prompt {name}: it has {n_tracks} tracks, but n_tracks={config.n_tracks}, which counts them too"
            )
    try:
        grammar_tables(loaded.tokenizer, config).follow(ids, f"prompt {name}: ")
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _way_out(config: GenerateConfig) -> str:
    """Return the advice for a shorter prompt; an infilling always has room."""
    limits = ("prompt_bars", "prompt_notes", "prompt_seconds")
    return "lower " + next((name for name in limits if getattr(config, name)), "prompt_tokens")


def longest_piece(model: Model, config: GenerateConfig) -> int:
    """Return the most tokens of a piece; where no context can slide, no more than the model reads."""
    limit = model.max_length
    if limit is None or not (config.sampling.beams or has_latents(model)):
        return config.sampling.max_tokens
    return min(config.sampling.max_tokens, limit)


def grammar_tables(tokenizer: Any, config: GenerateConfig) -> GrammarTables:
    """Return the tables of `grammar_of`, bound to the controls, with the longest time that a note may sound."""
    max_open, grammar = longest_open(tokenizer, config.max_note_seconds), grammar_of(tokenizer, config)
    bound = bind(tokenizer, grammar, config)
    if bound is not None:
        return BoundTables.from_numpy(bound, max_open=max_open)
    return GrammarTables.from_numpy(grammar, max_open=max_open)


def longest_open(tokenizer: Any, max_note_seconds: float) -> int:
    """Return the units of an encoding's time after which a note must end; 0: never."""
    units = max_note_seconds * tokenizer.units_per_second
    return max(round(units), 1) if units else 0


def grammar_of(tokenizer: Any, config: GenerateConfig) -> Grammar:
    """Return the grammar of the pieces of a batch; ConfigError where the encoding has no such number of tracks."""
    if not config.n_tracks:
        return tokenizer.grammar
    if not isinstance(tokenizer, MmmTokenizer):
        raise ConfigError(f"n_tracks={config.n_tracks}: encoding {tokenizer.name} does not write track by track")
    try:
        return tokenizer.grammar_of_tracks(config.n_tracks)
    except ValueError as error:
        raise ConfigError(str(error)) from None


@dataclass(frozen=True, slots=True, eq=False)
class WrittenIds:
    """The ids of a piece.

    Args:
        place: among the requested pieces.
        entropies: float32, nats, of the model's distribution at each id drawn; empty where beam search found them.
        seconds: its share of the time.
        chain: the windows that it is joined of; None where it is one.
    """

    place: int
    ids: np.ndarray
    entropies: np.ndarray
    seconds: float
    chain: Mapping[str, Any] | None = None


def write_ids(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    indices: Sequence[int],
    attempts: Sequence[int],
    latents: LatentPlan,
    config: GenerateConfig,
    on_piece: Callable[[WrittenIds], None],
    is_full: Callable[[int, Tensor], bool] | None = None,
    on_tokens: Callable[[int], None] | None = None,
    on_partial: Callable[[WrittenIds], None] | None = None,
) -> None:
    """Write some pieces of a batch and hand over each as soon as it is complete.

    Args:
        prompts: what each piece begins with.
        indices: the pieces' places in the batch.
        attempts: at each of them, from 0 on; each has a random stream of its own.
        is_full: gets the place of a piece and its ids so far, and returns whether it ends there.
        on_partial: gets the pieces at work, as far as they are, where an interrupt ends the call; beams give none.
        on_tokens: called after each step with the number of ids drawn by it, below 0 where a beam found is shorter.
    """
    n_before, n_counted = 0, 0  # ids of searches that are over, and of the one at work

    def count(n_drawn: int) -> None:
        nonlocal n_counted
        if on_tokens is not None:
            on_tokens(n_before + n_drawn - n_counted)
        n_counted = n_before + n_drawn

    tokenizer = loaded.tokenizer
    streams = [index + (attempt << 32) for index, attempt in zip(indices, attempts, strict=True)]
    grammar = grammar_tables(tokenizer, config)
    ends = {"end_id": tokenizer.end_id, "pad_id": tokenizer.pad_id}
    max_tokens = longest_piece(loaded.model, config)
    if config.sampling.beams:
        for place, (prompt, index) in enumerate(zip(prompts, indices, strict=True)):
            started = time.perf_counter()
            ids = _of_rank(loaded, prompt, index, latents, config, max_tokens, grammar, ends, count)
            count(len(ids) - len(prompt))  # the piece that is taken may be shorter than others that were looked at
            n_before = n_counted
            on_piece(WrittenIds(place, ids, np.empty(0, np.float32), time.perf_counter() - started))
        return
    bias = token_bias(tokenizer, config)
    sample(
        with_latents(loaded.model, latents, config.seed, indices, streams),
        [torch.tensor(prompt) for prompt in prompts],
        piece_indices=streams,
        seed=config.seed,
        config=replace(config.sampling, max_tokens=max_tokens),
        grammar=grammar,
        batch_size=config.batch_size,
        on_piece=lambda piece: on_piece(_ids_of(piece)),
        on_partial=lambda piece: on_partial and on_partial(_ids_of(piece)),
        on_step=count,
        is_full=is_full,
        bias_V=None if bias is None else torch.from_numpy(bias),
        entropies=[],
        **ends,
    )


def _ids_of(piece: Written) -> WrittenIds:
    return WrittenIds(piece.place, piece.ids.numpy(), piece.entropies, piece.seconds)


def _of_rank(
    loaded: LoadedModel,
    prompt: Sequence[int],
    index: int,
    latents: LatentPlan,
    config: GenerateConfig,
    max_tokens: int,
    grammar: GrammarTables,
    ends: dict[str, int],
    on_step: Callable[[int], None],
) -> np.ndarray:
    """Return the likeliest continuation of a piece's prompt that no earlier piece of the batch has taken."""
    beams = config.sampling.beams
    # With latents, each piece has one of its own, and so a best continuation of its own.
    rank = 0 if has_latents(loaded.model) else index // len(latents.sources)
    model = with_latents(loaded.model, latents, config.seed, [index] * beams, [index] * beams)
    found = beam_search(model, torch.tensor(prompt), beams, max_tokens, grammar, on_step=on_step, **ends)
    return found[min(rank, len(found) - 1)].ids.numpy()


def piece_limit(config: GenerateConfig) -> Extent:
    """Return where pieces end if they have not ended before."""
    return Extent(config.max_notes, config.max_bars, config.max_seconds)


def window_of(model: Model, wanted: int) -> int:
    """Return as many tokens of a window as are wanted and as a model can read."""
    return wanted if model.max_length is None else min(wanted, model.max_length)
