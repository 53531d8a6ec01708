"""How good a model is: held-out likelihood that compares across encodings, and its samples against real music."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from models.config import SamplingConfig
from models.sampling import sample
from models.training import eval_step
from tasks.batches import TokenStore
from tasks.checkpoints import LoadedModel
from tasks.config import EvaluateConfig
from tasks.datasets import DatasetVersion
from tasks.errors import CheckpointError
from tasks.music.metrics import piece_statistics

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Figures of one model on one split of one dataset version."""

    metrics: dict[str, float]
    statistics: dict[str, tuple[float, float]]  # name -> (mean over held-out pieces, mean over samples)
    n_held_out: int
    n_samples: int


def check_fits(loaded: LoadedModel, dataset: DatasetVersion) -> None:
    """See that a model reads the token ids that a dataset holds.

    Raises:
        CheckpointError: it was trained on another encoding.
    """
    wanted, found = dataset.manifest["encoder"], loaded.tokenizer
    if wanted["digest"] != found.digest:
        raise CheckpointError(
            f"model {loaded.folder} reads encoding {found.name}-{found.digest[:12]},"
            f" dataset {dataset.name}@{dataset.version} holds {wanted['name']}-{wanted['digest'][:12]}"
        )


def evaluate_model(
    loaded: LoadedModel,
    dataset: DatasetVersion,
    config: EvaluateConfig,
    on_windows: Callable[[int], None] | None = None,
) -> Evaluation:
    """Score a model on a split and compare free samples with it."""
    check_fits(loaded, dataset)
    store = TokenStore(dataset.token_shards(config.split), dataset.flat_tokens)
    metrics = score_held_out(loaded, store, dataset.manifest["splits"][config.split], config, on_windows)
    held_out = [
        loaded.tokenizer.decode(store.tokens[a:b]) for a, b in zip(store.offsets[:-1], store.offsets[1:], strict=True)
    ]
    samples = sample_freely(loaded, config)
    statistics: dict[str, tuple[float, float]] = {}
    if samples:
        n_wrong = sum(loaded.tokenizer.grammar.n_violations(ids) for ids in samples)
        metrics["grammar_error_rate"] = n_wrong / max(1, sum(len(ids) - 1 for ids in samples))
        real = _mean_statistics([piece_statistics(score) for score in held_out])
        ours = _mean_statistics([piece_statistics(loaded.tokenizer.decode(ids)) for ids in samples])
        statistics = {name: (real[name], ours[name]) for name in real}
        for name, (real_mean, our_mean) in statistics.items():
            metrics[f"held_out/{name}"], metrics[f"samples/{name}"] = real_mean, our_mean
    return Evaluation(metrics, statistics, len(held_out), len(samples))


def score_held_out(
    loaded: LoadedModel,
    store: TokenStore,
    facts: dict[str, Any],
    config: EvaluateConfig,
    on_windows: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """Return likelihood figures over all tokens of a split, each predicted once.

    Windows of `window_tokens` overlap by half, so every token but a piece's first ones has at least half a window of
    context. Returns nats per token, accuracy, perplexity, bits per note (all tokens' bits over the number of notes) and
    bits per second of music.
    """
    device = next(loaded.model.parameters()).device
    sums = np.zeros(3)
    windows = store.sequential_windows(
        config.window_tokens, config.window_tokens // 2, config.batch_size, loaded.tokenizer.pad_id
    )
    for tokens, mask in windows:
        batch, counted = torch.from_numpy(tokens).to(device), torch.from_numpy(mask).to(device)
        sums += np.array(eval_step(loaded.model, batch, pad_id=loaded.tokenizer.pad_id, mask_BT=counted))
        if on_windows:
            on_windows(len(tokens))
    nll, n_targets, n_correct = sums
    bits = nll / math.log(2)
    return {
        "nll_per_token": nll / n_targets,
        "accuracy": n_correct / n_targets,
        "perplexity": math.exp(nll / n_targets),
        "bits_per_note": bits / facts["n_notes"],
        "bits_per_second": bits / facts["seconds"],
        "n_tokens": float(n_targets),
    }


def sample_freely(loaded: LoadedModel, config: EvaluateConfig) -> list[np.ndarray]:
    """Return samples drawn without the grammar, so that the model's own mistakes show."""
    if not config.n_samples:
        return []
    tokenizer = loaded.tokenizer
    sampled = sample(
        loaded.model,
        [torch.tensor([tokenizer.start_id])] * config.n_samples,
        piece_indices=list(range(config.n_samples)),
        seed=config.seed,
        config=SamplingConfig(max_tokens=config.sample_tokens),
        grammar=None,
        end_id=tokenizer.end_id,
        pad_id=tokenizer.pad_id,
        batch_size=config.n_samples,
    )
    return [ids.numpy() for ids in sampled]


def report_markdown(evaluation: Evaluation, model: str, dataset: DatasetVersion, config: EvaluateConfig) -> str:
    """Return the evaluation as a page of Markdown."""
    m = evaluation.metrics
    lines = [
        f"# {model} on {dataset.name}@{dataset.version}, {config.split}",
        "",
        f"{int(m['n_tokens'])} tokens of {evaluation.n_held_out} held-out pieces, each predicted once with at least"
        f" {config.window_tokens - config.window_tokens // 2} tokens before it.",
        "",
        "| figure | value |",
        "|---|---:|",
        f"| nats per token | {m['nll_per_token']:.4f} |",
        f"| perplexity | {m['perplexity']:.3f} |",
        f"| accuracy | {m['accuracy']:.4f} |",
        f"| bits per note | {m['bits_per_note']:.3f} |",
        f"| bits per second of music | {m['bits_per_second']:.2f} |",
    ]
    if evaluation.n_samples:
        lines += [
            f"| grammar errors per token, sampled freely | {m['grammar_error_rate']:.5f} |",
            "",
            f"Means over {evaluation.n_held_out} held-out pieces and {evaluation.n_samples} free samples:",
            "",
            "| statistic | held out | samples |",
            "|---|---:|---:|",
        ]
        lines += [f"| {name} | {real:.3f} | {ours:.3f} |" for name, (real, ours) in evaluation.statistics.items()]
    return "\n".join(lines) + "\n"


def _mean_statistics(pieces: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([piece[name] for piece in pieces])) for name in pieces[0]}
