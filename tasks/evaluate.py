"""How good a model is: held-out likelihood that compares across encodings, and its samples against real music."""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from models.config import SamplingConfig
from models.latents import latent_use
from models.registry import Model
from models.sampling import sample
from models.training import row_losses
from models.vae import Vae
from tasks.batches import TokenStore
from tasks.checkpoints import LoadedModel
from tasks.config import EvaluateConfig
from tasks.copying import copy_index
from tasks.datasets import DatasetVersion
from tasks.errors import CheckpointError, DatasetError, HomeError
from tasks.held_out import held_out_statistics
from tasks.latent_pieces import FROM_PRIOR, with_latents
from tasks.music.judgement import judge_pieces
from tasks.music.metrics import piece_statistics
from tasks.music.notes import FloatArray
from tasks.music.score import Score

logger = logging.getLogger(__name__)

LATENT_ROWS = 1024  # on which the use of latents is measured
COUNTED_AT_ONCE = 2**20


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Figures of one model on one split of one dataset version."""

    metrics: dict[str, float]
    statistics: dict[str, tuple[float, float]]  # name -> (mean over held-out pieces, mean over samples)
    least_context: int  # tokens before each predicted one, if the piece has as many; 0: blocks one after the other
    n_held_out: int
    n_samples: int
    piece_nats: tuple[float, ...] = ()  # of each held-out piece; none for a model with latents, which are drawn
    judgement: dict[str, Any] | None = None  # of the samples; see `tasks.music.judgement`
    tokens_per_second: float = field(default=0.0, compare=False)  # sampled, as measured


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
    facts = dataset.manifest["splits"][config.split]
    piece_nats = np.zeros(0)
    if isinstance(loaded.model, Vae):
        metrics, least_context = score_latents(loaded, store, facts, config, on_windows), 0
    else:
        metrics, piece_nats = score_held_out(loaded, store, facts, config, on_windows)
        least_context = scoring_stride(loaded.model, store, config)[1]
    metrics |= frequency_baseline(store, TokenStore(dataset.token_shards("train"), dataset.flat_tokens))
    started = time.perf_counter()
    samples = sample_freely(loaded, config)
    n_drawn = sum(len(ids) - 1 for ids in samples)
    evaluation = Evaluation(
        metrics=metrics,
        statistics={},
        least_context=least_context,
        n_held_out=len(store.offsets) - 1,
        n_samples=len(samples),
        piece_nats=tuple(piece_nats.round(6).tolist()),
        tokens_per_second=round(n_drawn / (time.perf_counter() - started), 1),
    )
    return _with_samples(evaluation, loaded, dataset, config, samples) if samples else evaluation


def _with_samples(
    evaluation: Evaluation,
    loaded: LoadedModel,
    dataset: DatasetVersion,
    config: EvaluateConfig,
    samples: Sequence[np.ndarray],
) -> Evaluation:
    """Return an evaluation with what free samples show: mistakes, statistics beside held-out excerpts, copies."""
    scores = [loaded.tokenizer.decode(ids) for ids in samples]
    ours = [piece_statistics(score) for score in scores]
    real = held_out_statistics(loaded.tokenizer, dataset, [config.split], window_of(loaded.model, config.sample_tokens))
    judgement = judge_pieces(ours, real)
    n_wrong = sum(loaded.tokenizer.grammar.n_violations(ids) for ids in samples)
    means = {name: (_mean(real, name), _mean(ours, name)) for name in real[0]}
    metrics = evaluation.metrics | {
        "grammar_error_rate": n_wrong / max(1, sum(len(ids) - 1 for ids in samples)),
        "samples/typicality": judgement["typicality"]["generated"]["value"],
        **_copying(dataset, scores),
        **{f"{side}/{name}": mean[i] for name, mean in means.items() for i, side in enumerate(("held_out", "samples"))},
    }
    if judgement["fd_feat"]["value"] is not None:
        metrics["samples/fd_feat"] = judgement["fd_feat"]["value"]
    return replace(evaluation, metrics=metrics, statistics=means, judgement=judgement)


def _copying(dataset: DatasetVersion, scores: Sequence[Score]) -> dict[str, float]:
    """Return what samples share with train; nothing where the index cannot be made, which is only side information."""
    try:
        index = copy_index(dataset)
    except (DatasetError, HomeError) as error:
        logger.warning("samples are not compared with the training split: %s", error)
        return {}
    checks = [index.check(score) for score in scores]
    verdict = index.judge(checks)
    longest = {"samples/longest_copied_run": float(max(check.n_run_notes for check in checks))}
    return longest | ({"samples/share_beyond_human_copying": verdict.share_beyond} if verdict.n_judged else {})


def score_held_out(
    loaded: LoadedModel,
    store: TokenStore,
    facts: dict[str, Any],
    config: EvaluateConfig,
    on_windows: Callable[[int], None] | None = None,
) -> tuple[dict[str, float], FloatArray]:
    """Return likelihood figures over all tokens of a split, each predicted once, and the nats of each piece.

    Windows of `window_tokens` overlap by half, so every token but a piece's first ones has at least half a window of
    context. The figures are nats per token, accuracy, perplexity, bits per note (all tokens' bits over the number of
    notes) and bits per second of music.
    """
    device = next(loaded.model.parameters()).device
    window_tokens, stride = scoring_stride(loaded.model, store, config)
    pad_id, rows = loaded.tokenizer.pad_id, store.rows_of_windows(window_tokens, stride)
    piece_nats, n_targets, n_correct, n_seen = np.zeros(len(store.offsets) - 1), 0, 0, 0
    for tokens, mask in store.sequential_windows(window_tokens, stride, config.batch_size, pad_id):
        batch, counted = torch.from_numpy(tokens).to(device), torch.from_numpy(mask).to(device)
        nats, n_new, n_hit = row_losses(loaded.model, batch, pad_id=pad_id, mask_BT=counted)
        np.add.at(piece_nats, rows[n_seen : n_seen + len(tokens)], nats.cpu().numpy())
        n_targets, n_correct, n_seen = n_targets + n_new, n_correct + n_hit, n_seen + len(tokens)
        if on_windows:
            on_windows(len(tokens))
    return likelihood_figures(float(piece_nats.sum()), n_targets, n_correct, facts), piece_nats


def window_of(model: Model, wanted: int) -> int:
    """Return as many tokens of a window as are wanted and as a model can read."""
    limit = getattr(model, "max_length", None)
    return wanted if limit is None else min(wanted, limit)


def scoring_stride(model: Model, store: TokenStore, config: EvaluateConfig) -> tuple[int, int]:
    """Return the tokens of a window that a model can read and a piece can fill, and how far windows are apart."""
    window_tokens = max(min(window_of(model, config.window_tokens), store.longest_row), 2)
    return window_tokens, window_tokens // 2


def likelihood_figures(nll: float, n_targets: float, n_correct: float, facts: dict[str, Any]) -> dict[str, float]:
    bits = nll / math.log(2)
    return {
        "nll_per_token": nll / n_targets,
        "accuracy": n_correct / n_targets,
        "perplexity": math.exp(min(nll / n_targets, 700.0)),  # e**710 is no float any more
        "bits_per_note": bits / facts["n_notes"],
        "bits_per_second": bits / facts["seconds"],
        "n_tokens": n_targets,
    }


def score_latents(
    loaded: LoadedModel,
    store: TokenStore,
    facts: dict[str, Any],
    config: EvaluateConfig,
    on_windows: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """Return figures of a model with latents over all tokens of a split, in blocks one after the other.

    The likelihood is the evidence lower bound, with one latent drawn for each block: the loss of writing the block
    from it, and what the latent diverges from the prior. So it compares with the likelihood of other models; what only
    the writing costs is `reconstruction`. `latent/gain` is what a block's own latent saves over that of a block half a
    split away, in nats per token, and `latent/n_active` counts numbers that vary; both over `LATENT_ROWS` blocks at
    most.
    """
    model = loaded.model
    assert isinstance(model, Vae)
    block, pad_id = model.config.block, loaded.tokenizer.pad_id
    generator = torch.Generator(model.embed.weight.device).manual_seed(config.seed)
    sums, kept = np.zeros(4), list[np.ndarray]()
    every = -(-store.n_sequential_windows(block, block) // LATENT_ROWS)
    n_seen = 0
    for tokens, mask in store.sequential_windows(block, block, config.batch_size, pad_id):
        batch = torch.from_numpy(tokens).to(generator.device)
        with torch.no_grad():
            parts = model.loss_parts(
                batch, sample=True, generator=generator, mask_BT=torch.from_numpy(mask).to(generator.device)
            )
        sums += np.array([float(parts.nll_sum), parts.n_targets, parts.n_correct, float(parts.kl_sum)])
        kept.append(tokens[(np.arange(n_seen, n_seen + len(tokens)) % every) == 0])
        n_seen += len(tokens)
        if on_windows:
            on_windows(len(tokens))
    nll, n_targets, n_correct, kl = sums.tolist()
    figures = likelihood_figures(nll + kl, n_targets, n_correct, facts)
    figures |= {"reconstruction": nll / n_targets, "kl": kl / n_targets}
    rows = np.concatenate(kept)
    if len(rows) < 2:
        return figures
    use = latent_use(model, torch.from_numpy(rows).to(generator.device))
    names = ("gain", "own_nll", "other_nll", "n_active", "n_numbers")
    return figures | {f"latent/{name}": float(getattr(use, name)) for name in names}


def frequency_baseline(store: TokenStore, train: TokenStore) -> dict[str, float]:
    """Return how often the training split's most frequent token is right, and the loss of its frequencies in nats.

    What a model is worth that has learned nothing but how frequent each token is; ids that the training split lacks
    count as if seen once.
    """
    is_target = np.ones(store.n_tokens, np.bool_)
    is_target[store.offsets[:-1]] = False
    targets = store.tokens[is_target]
    n_ids = int(targets.max(initial=0)) + 1
    seen = np.zeros(max(n_ids, 1 + np.iinfo(np.uint16).max))
    for begin in range(0, train.n_tokens, COUNTED_AT_ONCE):  # counting makes wide integers of them
        seen += np.bincount(train.tokens[begin : begin + COUNTED_AT_ONCE], minlength=len(seen))
    seen = seen[: max(n_ids, int(seen.nonzero()[0].max(initial=0)) + 1)]
    seen[train.tokens[train.offsets[0]]] = 0  # <start> is no target
    held_out = np.bincount(targets, minlength=len(seen))
    shares = np.maximum(seen, 1) / np.maximum(seen, 1).sum()
    return {
        "baseline/accuracy": float(held_out[seen.argmax()] / len(targets)),
        "baseline/nll_per_token": float(-(held_out * np.log(shares)).sum() / len(targets)),
    }


def sample_freely(loaded: LoadedModel, config: EvaluateConfig) -> list[np.ndarray]:
    """Return samples drawn without the grammar, so that the model's own mistakes show."""
    if not config.n_samples:
        return []
    tokenizer = loaded.tokenizer
    pieces = range(config.n_samples)
    sampled = sample(
        with_latents(loaded.model, FROM_PRIOR, config.seed, pieces),
        [torch.tensor([tokenizer.start_id])] * config.n_samples,
        piece_indices=list(pieces),
        seed=config.seed,
        config=SamplingConfig(max_tokens=window_of(loaded.model, config.sample_tokens)),
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
        f"{int(m['n_tokens'])} tokens of {evaluation.n_held_out} pieces of the split, each predicted once,"
        + (
            f" with at least {evaluation.least_context} tokens before it."
            if evaluation.least_context
            else " in blocks."
        ),
        "",
        "| figure | value |",
        "|---|---:|",
        f"| nats per token | {m['nll_per_token']:.4f} |",
        f"| perplexity | {m['perplexity']:.3f} |",
        f"| accuracy | {m['accuracy']:.4f} |",
        f"| accuracy of the most frequent token | {m['baseline/accuracy']:.4f} |",
        f"| nats per token by frequency alone | {m['baseline/nll_per_token']:.4f} |",
        f"| bits per note | {m['bits_per_note']:.3f} |",
        f"| bits per second of music | {m['bits_per_second']:.2f} |",
    ]
    if "latent/gain" in m:
        lines += [
            f"| of the nats per token: writing from the latent | {m['reconstruction']:.4f} |",
            f"| of the nats per token: divergence of the latent | {m['kl']:.4f} |",
            f"| nats per token that another block's latent costs | {m['latent/gain']:.4f} |",
            f"| active numbers of the latent | {m['latent/n_active']:.0f} of {m['latent/n_numbers']:.0f} |",
        ]
    if evaluation.n_samples:
        lines += [
            f"| grammar errors per token, sampled freely | {m['grammar_error_rate']:.5f} |",
            f"| how typical the samples are, 0 to 1 | {m['samples/typicality']:.3f} |",
            *(
                f"| longest run of notes that a sample shares with train | {m[name]:.0f} |"
                for name in ("samples/longest_copied_run",)
                if name in m
            ),
            f"| tokens sampled per second | {evaluation.tokens_per_second:,.0f} |",
            "",
            f"Means over {evaluation.n_samples} free samples of at most {config.sample_tokens} tokens and over as long"
            " beginnings of pieces of the split; the overlap of their densities, 0 to 1, with its 95 % interval:",
            "",
            f"| statistic | {config.split} | samples | overlap |",
            "|---|---:|---:|---:|",
        ]
        lines += [
            f"| {name} | {real:.3f} | {ours:.3f} | {_overlap(evaluation.judgement, name)} |"
            for name, (real, ours) in evaluation.statistics.items()
        ]
    return "\n".join(lines) + "\n"


def _overlap(judgement: Mapping[str, Any] | None, name: str) -> str:
    figure = judgement["metrics"][name]["overlap"] if judgement else {}
    if figure.get("value") is None:
        return ""
    return f"{figure['value']:.2f} ({figure['low']:.2f} to {figure['high']:.2f})"


def _mean(pieces: Sequence[Mapping[str, float]], name: str) -> float:
    return float(np.mean([piece[name] for piece in pieces]))
