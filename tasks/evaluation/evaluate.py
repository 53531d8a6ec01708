"""Evaluation of a model: held-out likelihood that compares across encodings, and samples against real music."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from models.config import SamplingConfig
from models.registry import has_latents
from models.sampling.sample import sample
from tasks.checkpoints import LoadedModel
from tasks.config.evaluation import EvaluateConfig
from tasks.copying.index import copy_index
from tasks.dataset.versions import DatasetVersion
from tasks.errors import CheckpointError, DatasetError, Diverged, HomeError
from tasks.evaluation.continuations import ContinuationTest, continue_pieces
from tasks.evaluation.held_out import held_out_statistics, pieces_of_rows
from tasks.evaluation.likelihood import frequency_baseline, score_held_out, score_latents, scoring_stride
from tasks.music.metrics.judgement import judge_pieces
from tasks.music.metrics.piece_metrics import piece_statistics
from tasks.music.score import Score
from tasks.music.tokenizers.token_ids import TokenIdsTokenizer
from tasks.runtime.cluster import n_cpus
from tasks.runtime.progress import Progress
from tasks.sampling.latents import FROM_PRIOR, with_latents
from tasks.sampling.sample_ids import opening_ids, window_of
from tasks.sampling.timing import Clock
from tasks.storage.parquet import check_shards
from tasks.training.token_dataset import TokenDataset

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Figures of one model on one split of one dataset version."""

    metrics: dict[str, float]
    statistics: dict[str, tuple[float, float]]  # name -> (mean over held-out pieces, mean over samples)
    least_context: int  # tokens before each predicted one, if the piece has as many; 0: blocks in sequence
    n_held_out: int
    n_samples: int
    piece_nats: tuple[float, ...] = ()  # of each held-out piece; none for a model with latents, which are drawn
    judgement: dict[str, Any] | None = None  # of the samples; see `tasks.music.metrics.judgement`
    values: dict[str, tuple[list[float], list[float]]] = field(default_factory=dict)  # of each held-out piece, sample
    copying: dict[str, Any] | None = None  # what samples share with train; see `copying_of`
    about: dict[str, Any] = field(default_factory=dict)  # the model and what it was trained on
    continuations: ContinuationTest | None = field(default=None, compare=False)  # its times differ
    tokens_per_second: float = field(default=0.0, compare=False)  # sampled, as measured
    seconds: dict[str, float] = field(default_factory=dict, compare=False)  # of each stage


def check_fits(loaded: LoadedModel, dataset: DatasetVersion) -> None:
    """Raise CheckpointError where a model was trained on another encoding than that of a dataset."""
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
    show: Callable[[str, int, str], Progress] = Progress,
) -> Evaluation:
    """Score a model on a split, compare free samples with it, and continue some of its pieces.

    Args:
        show: makes the progress of a stage, of its label, total and unit.
    Raises:
        CheckpointError: the model was trained on another encoding.
        DatasetError: there is nothing to score in the split.
        Diverged: the model's likelihood is no finite number.
    """
    check_fits(loaded, dataset)
    if isinstance(loaded.tokenizer, TokenIdsTokenizer):  # its ids represent no music that samples could be judged by
        config = replace(config, n_samples=0, n_continuations=0)
    _require_contents(loaded, dataset, config.split)
    check_shards([*dataset.token_shards(config.split), *dataset.token_shards("train")], n_cpus())
    clock = Clock()
    store = TokenDataset(dataset.token_shards(config.split), dataset.flat_tokens)
    facts = dataset.manifest["splits"][config.split]
    pieces: dict[str, int] = {}
    piece_of_row = [pieces.setdefault(piece, len(pieces)) for piece in pieces_of_rows(dataset, config.split)]
    piece_nats = np.zeros(0)
    model = loaded.model
    window = (model.config.block,) * 2 if has_latents(model) else scoring_stride(model, store, config)
    with show("scoring", store.n_sequential_windows(*window), "windows") as progress:
        if has_latents(model):
            metrics, least_context = score_latents(loaded, store, facts, config, progress.advance), 0
        else:
            metrics, row_nats = score_held_out(loaded, store, facts, config, progress.advance)
            piece_nats, least_context = np.bincount(piece_of_row, weights=row_nats), window[1]
    if not math.isfinite(metrics["nll_per_token"]):
        raise Diverged(
            f"model {loaded.folder}: its likelihood on {dataset.reference}/{config.split} is"
            f" {metrics['nll_per_token']} nats per token; it has diverged or its weights are damaged"
        )
    metrics |= frequency_baseline(store, TokenDataset(dataset.token_shards("train"), dataset.flat_tokens))
    clock.stop("scoring")
    samples, test = list[np.ndarray](), None
    if config.n_samples:
        n_tokens = config.n_samples * (window_of(loaded.model, config.sample_tokens) - 1)
        with show("sampling", n_tokens, "tokens") as progress:
            samples = sample_freely(loaded, config, progress.advance)
    clock.stop("sampling")
    if config.n_continuations:
        with show("continuing pieces", config.n_continuations * config.sample_tokens, "tokens") as progress:
            test = continue_pieces(loaded, dataset, store, config, progress.advance)
    clock.stop("continuing")
    n_drawn, seconds = sum(len(ids) - 1 for ids in samples), clock.seconds["sampling"]
    evaluation = Evaluation(
        metrics=metrics | (test.metrics if test else {}),
        statistics={},
        least_context=least_context,
        n_held_out=len(pieces),
        n_samples=len(samples),
        piece_nats=tuple(piece_nats.round(6).tolist()),
        about=_about(loaded) | {"sample_tokens": window_of(loaded.model, config.sample_tokens)},
        continuations=test,
        tokens_per_second=round(n_drawn / seconds, 1) if seconds else 0.0,
    )
    if samples:
        with Progress("judging"):
            evaluation = _with_samples(evaluation, loaded, dataset, config, samples)
    clock.stop("judging")
    return replace(evaluation, seconds=clock.seconds)


def _require_contents(loaded: LoadedModel, dataset: DatasetVersion, split: str) -> None:
    facts, of_music = dataset.manifest["splits"][split], ("n_notes", "seconds")
    for name in ("n_tokens", *(() if isinstance(loaded.tokenizer, TokenIdsTokenizer) else of_music)):
        if not facts[name] > 0:
            raise DatasetError(
                f"dataset {dataset.reference} has nothing to score in split {split}: {name}={facts[name]}"
            )


def _about(loaded: LoadedModel) -> dict[str, Any]:
    state, tokenizer = loaded.state, loaded.tokenizer
    return {
        "architecture": loaded.model.config.name,
        "n_parameters": state["n_parameters"],
        "step": state["step"],
        "trained_on": "{name}@{version}".format(**state["dataset"]),
        "encoding": f"{tokenizer.name}-{tokenizer.digest[:12]}",
    }


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
    values = {name: ([piece[name] for piece in real], [piece[name] for piece in ours]) for name in real[0]}
    means = {name: (float(np.mean(sides[0])), float(np.mean(sides[1]))) for name, sides in values.items()}
    copying = copying_of(dataset, scores)
    metrics = evaluation.metrics | {
        "grammar_error_rate": n_wrong / max(1, sum(len(ids) - 1 for ids in samples)),
        "samples/typicality": judgement["typicality"]["generated"]["value"],
        "samples/fd_feat": judgement["fd_feat"]["value"],
        **_copying_figures(copying),
        **{f"{side}/{name}": mean[i] for name, mean in means.items() for i, side in enumerate(("held_out", "samples"))},
    }
    return replace(
        evaluation,
        metrics={name: value for name, value in metrics.items() if value is not None},
        statistics=means, judgement=judgement, values=values, copying=copying,
    )  # fmt: skip


def copying_of(dataset: DatasetVersion, scores: Sequence[Score]) -> dict[str, Any] | None:
    """Return what samples share with the training split, ready for JSON.

    Returns:
        `pieces`: the index's result for each sample; `verdict` on all of them; `human`: how long the runs are that
        held-out pieces share, by length. None where the index cannot be made, because it is only side information.
    """
    try:
        index = copy_index(dataset)
    except (DatasetError, HomeError) as error:
        logger.warning("samples are not compared with the training split: %s", error)
        return None
    checks = [index.check(score) for score in scores]
    return {
        "pieces": [check.as_json() for check in checks],
        "verdict": index.judge(checks).as_json(),
        "human": index.human.as_json(),
    }


def _copying_figures(copying: Mapping[str, Any] | None) -> dict[str, float]:
    if copying is None:
        return {}
    runs = [piece["match"]["n_notes"] if piece["match"] else 0 for piece in copying["pieces"]]
    figures, verdict = {"samples/longest_copied_run": float(max(runs))}, copying["verdict"]
    if verdict["n_judged"]:
        figures["samples/share_beyond_human_copying"] = verdict["share_beyond"]
    return figures


def sample_freely(
    loaded: LoadedModel, config: EvaluateConfig, on_tokens: Callable[[int], Any] | None = None
) -> list[np.ndarray]:
    """Return samples drawn without the grammar, so that the model's own mistakes show.

    `on_tokens` gets the number of tokens drawn after each step, below 0 for those that are void.
    """
    if not config.n_samples:
        return []
    tokenizer = loaded.tokenizer
    pieces, n_counted = range(config.n_samples), 0

    def count(n_drawn: int) -> None:
        nonlocal n_counted
        if on_tokens:
            on_tokens(n_drawn - n_counted)
        n_counted = n_drawn

    sampled = sample(
        with_latents(loaded.model, FROM_PRIOR, config.seed, pieces, pieces),
        [torch.tensor(opening_ids(loaded))] * config.n_samples,
        piece_indices=list(pieces),
        seed=config.seed,
        config=SamplingConfig(max_tokens=window_of(loaded.model, config.sample_tokens)),
        grammar=None,
        end_id=tokenizer.end_id,
        pad_id=tokenizer.pad_id,
        batch_size=config.n_samples,
        on_step=count,
    )
    return [ids.numpy() for ids in sampled]
