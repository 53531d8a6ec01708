"""Long pieces from a model with latents: windows along a path of latents, joined on bar lines."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.registry import has_latents
from models.sampling.grammar_mask import GrammarTables
from models.sampling.sample import sample
from models.vae.latents import ConditionedDecoder, interpolate, slerp
from tasks.checkpoints import LoadedModel
from tasks.config.generation import GenerateConfig
from tasks.errors import ConfigError, plural
from tasks.music.tokenizers.grammar import Grammar
from tasks.music.tokenizers.mmm.joining import Track, bar_start_of, filled_up, piece_of, tracks_of, window_grammar
from tasks.music.tokenizers.mmm.tokenizer import MmmTokenizer
from tasks.sampling.constraints import token_bias
from tasks.sampling.latents import LatentPlan, latent_of, with_latents
from tasks.sampling.sample_ids import WrittenIds, longest_open, longest_piece, opening_ids

# Random streams of a chain's windows and of their drafts, above the numbers of pieces and attempts.
WINDOW_STREAMS, DRAFT_STREAM = 1 << 44, 1 << 43


@dataclass(frozen=True, slots=True)
class ChainShape:
    """How many windows of how many bars a chain has, and the bars from one's beginning to the next one's."""

    n_bars: int
    window_bars: int
    hop_bars: int

    @property
    def n_windows(self) -> int:
        return 1 + math.ceil((self.n_bars - self.window_bars) / self.hop_bars)

    @property
    def joins(self) -> list[int]:
        """The bars, from 0 on, that are the first new ones of a window."""
        return [self.window_bars + place * self.hop_bars for place in range(self.n_windows - 1)]


def chain_shape(loaded: LoadedModel, config: GenerateConfig) -> ChainShape:
    """Return the shape of the chains that the settings ask for.

    Raises:
        ConfigError: a model that writes no windows of bars, or windows that the chain does not fit.
    """
    setting = f"chain_bars={config.chain_bars}"
    if not has_latents(loaded.model):
        raise ConfigError(f"{setting}, but a {loaded.model.config.name!r} model has no latents to chain")
    if not isinstance(loaded.tokenizer, MmmTokenizer):
        raise ConfigError(f"{setting}: windows are joined in encoding mmm, but this model's is {loaded.tokenizer.name}")
    window = int(loaded.state["dataset"].get("window_bars", 0))
    if not window:
        raise ConfigError(f"{setting}: the model was trained on whole pieces, not on windows of bars")
    if config.chain_bars <= window:
        raise ConfigError(f"{setting} is no more than one window of {plural(window, 'bar')}; leave it at 0")
    hop = config.chain_hop_bars or max(window // 2, 1)
    if hop > window:
        raise ConfigError(f"chain_hop_bars={hop} is above {window}, the bars of a window")
    return ChainShape(config.chain_bars, window, hop)


def chain_latents(
    loaded: LoadedModel, plan: LatentPlan, config: GenerateConfig, n_windows: int, index: int, stream: int
) -> Tensor:
    """Return a latent for each window of a piece: even steps along the path, or a walk.

    A walk begins where a single window would. Each step goes by the share `chain_step` towards a latent drawn for it.
    """
    model = loaded.model
    assert has_latents(model)
    with torch.no_grad():
        if plan.kind == "path":
            start, end = (latent_of(model, source.ids) for source in plan.sources)
            return interpolate(start, end, n_windows)
        begin = with_latents(model, plan, config.seed, [index], [stream])
        assert isinstance(begin, ConditionedDecoder)
        latents = [begin.latents_NZ[0]]
        for drawn in model.prior_latents(config.seed, [stream + WINDOW_STREAMS * k for k in range(1, n_windows)]):
            latents.append(slerp(latents[-1], drawn, config.chain_step))
        return torch.stack(latents)


def write_chains(
    loaded: LoadedModel,
    indices: Sequence[int],
    attempts: Sequence[int],
    plan: LatentPlan,
    config: GenerateConfig,
    on_piece: Callable[[WrittenIds], None],
    on_tokens: Callable[[int], None],
) -> None:
    """Write some pieces of a batch and hand over each as soon as it is complete; `on_tokens` gets their new ids."""
    shape = chain_shape(loaded, config)
    for place, (index, attempt) in enumerate(zip(indices, attempts, strict=True)):
        stream, started = index + (attempt << 32), time.perf_counter()
        latents = chain_latents(loaded, plan, config, shape.n_windows, index, stream)
        sources = plan.sources_of(index)
        chain = _write_chain(loaded, latents, shape, config, stream, sources[0].ids if sources else (), on_tokens)
        on_piece(WrittenIds(place, *chain[:2], time.perf_counter() - started, chain=chain[2]))


def _write_chain(
    loaded: LoadedModel, latents: Tensor, shape: ChainShape, config: GenerateConfig, stream: int,
    source: Sequence[int], on_tokens: Callable[[int], None],
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:  # fmt: skip
    """Return the ids of a piece, the entropies of the drawn ones, and the facts about its windows."""
    words, model = loaded.tokenizer.words, loaded.model
    assert has_latents(model)
    bar_start = bar_start_of(source, words)
    tracks, entropies, windows, n_empty, n_counted = list[Track](), list[np.ndarray](), list[list[int]](), 0, 0

    def write(latent: Tensor, given: Sequence[Track], number: int) -> tuple[list[Track], np.ndarray, list[int]]:
        """Return a window of whole bars that begins with given ones, its entropies, and each track's missing bars."""
        grammar = window_grammar(loaded.tokenizer, shape.window_bars, bar_start, given, config.n_tracks)
        ids, found = _write_window(loaded, latent, grammar, config, number)
        written = tracks_of(ids, words)
        # A window without room for all tracks that it was given keeps the missing ones.
        window, n_missing = filled_up(written + list(given[len(written) :]), shape.window_bars, bar_start, words)
        return window, found, n_missing

    for k in range(shape.n_windows):
        if k and not tracks:
            break  # the first window had no room for one bar
        kept, number, latent = shape.window_bars - shape.hop_bars if k else 0, stream + WINDOW_STREAMS * k, latents[k]
        given = [replace(track, bars=track.bars[len(track.bars) - kept :]) for track in tracks]
        if kept:  # a latent that agrees with the given bars: that of them and of new ones from the path
            draft, _, _ = write(latent, [replace(track, bars=()) for track in tracks], number + DRAFT_STREAM)
            both = [replace(old, bars=old.bars + new.bars[kept:]) for old, new in zip(given, draft, strict=True)]
            with torch.no_grad():
                latent = latent_of(model, piece_of(both, words)[: model.max_length].tolist())
        window, found, n_missing = write(latent, given, number)
        new = [replace(track, bars=track.bars[kept:]) for track in window]
        tracks = [replace(old, bars=old.bars + more.bars) for old, more in zip(tracks, new, strict=True)] if k else new
        windows.append(piece_of(window, words).tolist())
        n_new_bars, n_beyond = shape.window_bars - kept, max(len(tracks[0].bars) - shape.n_bars, 0) if tracks else 0
        n_empty += sum(max(min(n, n_new_bars) - n_beyond, 0) for n in n_missing)  # bars beyond the piece are cut off
        entropies.append(found)
        n_new = sum(len(bar) for track in new for bar in track.bars)
        on_tokens(n_new)
        n_counted += n_new
    tracks = [replace(track, bars=track.bars[: shape.n_bars]) for track in tracks]
    facts = {
        "window_bars": shape.window_bars,
        "hop_bars": shape.hop_bars,
        "joins": shape.joins,
        "n_empty_bars": n_empty,
        "windows": windows,
    }
    ids = piece_of(tracks, words)
    on_tokens(len(ids) - len(opening_ids(loaded)) - n_counted)
    return ids, np.concatenate(entropies), facts


def _write_window(
    loaded: LoadedModel, latent: Tensor, grammar: Grammar, config: GenerateConfig, stream: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids of a window, as far as the model's room reaches, and the entropies where several could follow."""
    tokenizer, model = loaded.tokenizer, loaded.model
    assert has_latents(model)
    bias, entropies = token_bias(tokenizer, config), list[np.ndarray]()
    (ids,) = sample(
        ConditionedDecoder(model, latent[None]),
        [torch.tensor(opening_ids(loaded))],
        piece_indices=[stream],
        seed=config.seed,
        config=replace(config.sampling, max_tokens=longest_piece(model, config)),
        grammar=GrammarTables.from_numpy(grammar, max_open=longest_open(tokenizer, config.max_note_seconds)),
        batch_size=1,
        bias_V=None if bias is None else torch.from_numpy(bias),
        entropies=entropies,
        end_id=tokenizer.end_id,
        pad_id=tokenizer.pad_id,
    )
    state, is_open = grammar.start_state, list[bool]()
    for token in ids.tolist():
        is_open.append(int((grammar.next_state_SV[state] >= 0).sum()) > 1)
        state = grammar.next_state_SV[state, token]
    return ids.numpy(), entropies[0][is_open[len(opening_ids(loaded)) :]]
