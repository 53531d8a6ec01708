"""How surprising are the joins of a chain of windows to a decoder, beside the bar lines of held-out music?

    PYTHONPATH=. python bench/bench_chain.py --home HOME --vae mine-mmm_vae_tiny --judge mine-orchestrion_small_tiny

Both models are of the home, in `mmm`, and of one dataset with windows of four bars. The surprisal of a bar line is that
of the bar after it in all tracks, in nats per token, after two bars before it. Chains go between pairs of held-out
windows, with windows that overlap by half and with windows that do not, or stay at the latent of one.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import report

# isort: split
import numpy as np
import torch
from bench_evidence import PACKAGES

from flows.cli.registry import find_model
from models.config import SamplingConfig
from models.training import row_losses
from tasks.checkpoints import LoadedModel, load_model
from tasks.config.generation import GenerateConfig
from tasks.dataset.encode import grid_of
from tasks.dataset.versions import resolve_dataset
from tasks.music.tokenizers.mmm.joining import Track, piece_of, tracks_of
from tasks.music.tokenizers.mmm.vocabulary import Kind
from tasks.music.windows import cut_windows
from tasks.sampling.chain import write_chains
from tasks.sampling.latents import LatentPlan, LatentSource
from tasks.sampling.sample_ids import WrittenIds
from tasks.storage.home import Home
from tasks.training.token_dataset import TokenDataset

N_BARS, WINDOW, BEFORE = 16, 4, 2
Ids = np.ndarray


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--home", type=Path, required=True)
    options.add_argument("--vae", required=True, help="model with latents")
    options.add_argument("--judge", required=True, help="decoder of the same dataset")
    options.add_argument("--pieces", type=int, default=24, help="chains of each kind")
    options.add_argument("--temperature", type=float, default=0.5, help="of the chains")
    options.add_argument("--results", type=Path, default=report.RESULTS, help="folder for the JSON file")
    given = options.parse_args()
    home = Home.at(given.home)
    vae, judge = (load_model(home.root / find_model(home, name).checkpoint) for name in (given.vae, given.judge))
    dataset = resolve_dataset(home, "{name}@{version}".format(**vae.state["dataset"]))
    shards = [path for split in ("validation", "test") for path in dataset.token_shards(split)]
    store = TokenDataset(shards)
    rows = [store.tokens[a:b].astype(np.int64) for a, b in zip(store.offsets[:-1], store.offsets[1:], strict=True)]
    rows = [row for row in rows if all(len(track.bars) == WINDOW for track in tracks_of(row, vae.tokenizer.words))]
    lines = {"held-out": surprisals(judge, rows), "held-out, other piece": surprisals(judge, swapped(vae, rows))}
    for name, hop, n_ends in (("still", WINDOW // 2, 1), ("overlap", WINDOW // 2, 2), ("no overlap", WINDOW, 2)):
        joins, inside = excerpts(vae, chains(vae, rows, hop, n_ends, given.pieces, given.temperature), hop)
        lines[f"{name}, joins"] = surprisals(judge, joins)
        lines[f"{name}, inside"] = surprisals(judge, inside)
    figures = {kind: figures_of(values) for kind, values in lines.items() if len(values)}
    for kind, figure in figures.items():
        print(f"{kind:>22}  {figure}")
    means = {
        "ratio": figures["overlap, joins"]["mean"] / figures["held-out"]["mean"],
        "ratio_means": "nats per token at the joins of a path / at bar lines of held-out music",
    }
    report.save(
        "chain", f"{given.vae} by {given.judge} at {given.temperature:g}", means | figures, given.results, PACKAGES
    )


def surprisals(judge: LoadedModel, rows: Sequence[Ids]) -> np.ndarray:
    """Return the nats per token of the bars that follow the line after `BEFORE` bars, of each row that has any."""
    words, found = judge.tokenizer.words, list[float]()
    for row in rows:
        kinds, bar = words.kind[row], -1
        is_counted = np.zeros(len(row), np.bool_)
        for place, kind in enumerate(kinds.tolist()):
            bar = -1 if kind == Kind.TRACK_START else bar + (kind == Kind.BAR_START)
            is_counted[place] = bar == BEFORE and kind != Kind.TRACK_END
        nats, n_targets, _ = row_losses(
            judge.model,
            torch.from_numpy(row)[None],
            pad_id=judge.tokenizer.pad_id,
            mask_BT=torch.from_numpy(is_counted)[None],
        )
        if n_targets:
            found.append(float(nats[0]) / n_targets)
    return np.array(found)


def swapped(loaded: LoadedModel, rows: Sequence[Ids]) -> list[Ids]:
    """Return windows of held-out music whose last bars are those of another one with the same tracks."""
    words, by_heads = loaded.tokenizer.words, dict[Any, list[list[Track]]]()
    for row in rows:
        tracks = tracks_of(row, words)
        by_heads.setdefault(tuple(track.head for track in tracks), []).append(tracks)
    return [
        piece_of([Track(a.head, a.bars[:BEFORE] + b.bars[BEFORE:]) for a, b in zip(one, other, strict=True)], words)
        for alike in by_heads.values()
        for one, other in zip(alike, alike[len(alike) // 2 :] + alike[: len(alike) // 2], strict=True)
        if one is not other
    ]


def chains(
    loaded: LoadedModel, rows: Sequence[Ids], hop: int, n_ends: int, n: int, temperature: float
) -> list[WrittenIds]:
    """Return chains, each between two held-out windows or at one."""
    pieces, room = list[WrittenIds](), loaded.model.max_length
    sampling = SamplingConfig(max_tokens=room or 0, temperature=temperature)
    config = GenerateConfig(chain_bars=N_BARS, chain_hop_bars=hop, chain_step=0.0, sampling=sampling)
    order = np.random.default_rng(0).permutation(len(rows))
    for place in range(n):
        ends = (rows[order[(2 * place + k) % len(rows)]][:room].tolist() for k in range(n_ends))
        plan = LatentPlan(("prompt", "path")[n_ends - 1], tuple(LatentSource("", "", tuple(ids), 0) for ids in ends), 1)
        write_chains(loaded, [place], [0], plan, config, pieces.append, lambda n_tokens: None)
    return pieces


def excerpts(loaded: LoadedModel, pieces: Sequence[WrittenIds], hop: int) -> tuple[list[Ids], list[Ids]]:
    """Return the windows around the joins of chains, and around other bar lines."""
    joins, inside = list[Ids](), list[Ids]()
    for piece in pieces:
        windows, _, _ = cut_windows(
            loaded.tokenizer.decode(piece.ids).notes, WINDOW, BEFORE, grid_of(loaded.tokenizer.config)
        )
        tokens = loaded.tokenizer.encode(windows)
        if windows.n_pieces != (N_BARS - WINDOW) // BEFORE + 1:
            continue  # a window without notes is left out, and the places of the others are unknown
        for place in range(windows.n_pieces):
            ids = tokens.ids[tokens.offsets[place] : tokens.offsets[place + 1]].astype(np.int64)
            line = place * BEFORE + BEFORE
            (joins if line >= WINDOW and (line - WINDOW) % hop == 0 else inside).append(ids)
    return joins, inside


def figures_of(values: np.ndarray) -> dict[str, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return {
        "n_lines": len(values),
        "mean": round(float(values.mean()), 4),
        "median": round(float(np.median(values)), 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
    }


if __name__ == "__main__":
    main()
