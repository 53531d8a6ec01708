"""Held-out scores against a hand-written loop, every token once; samples counted by their grammar errors."""

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tasks.checkpoints import LoadedModel, load_model
from tasks.config.evaluation import EvaluateConfig
from tasks.dataset.versions import DatasetVersion
from tasks.errors import CheckpointError, DatasetError, Diverged
from tasks.evaluation import evaluate as evaluation
from tasks.evaluation import likelihood
from tasks.evaluation.card import report_markdown
from tasks.evaluation.evaluate import check_fits, evaluate_model, sample_freely
from tasks.evaluation.likelihood import score_held_out
from tasks.music.metrics.piece_metrics import piece_statistics
from tasks.music.tokenizers.oore import OoreConfig
from tasks.runtime.progress import Progress
from tasks.storage.home import Home
from tasks.training.token_dataset import TokenDataset
from tests.samples import small_corpus, small_dataset, small_model

Setup = tuple[DatasetVersion, LoadedModel]
SHORT = EvaluateConfig(seq_len=64, n_samples=3, sample_tokens=24)


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    folder = tmp_path_factory.mktemp("evaluate")
    home = Home.at(folder / "home")
    dataset = small_dataset(home, small_corpus(folder / "midi"))
    return dataset, load_model(small_model(home, dataset))


def rows_of(dataset: DatasetVersion, split: str) -> list[np.ndarray]:
    store = TokenDataset(dataset.token_shards(split))
    return [store.tokens[a:b] for a, b in zip(store.offsets[:-1], store.offsets[1:], strict=True)]


def target_nll(loaded: LoadedModel, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for each id but the first its cost in nats given all before it, and whether it was the likeliest."""
    tokens = torch.from_numpy(ids.astype(np.int64))
    with torch.no_grad():
        log_p = torch.log_softmax(loaded.model(tokens[None, :-1])[0].double(), dim=-1)
    targets = tokens[1:]
    return -log_p[torch.arange(len(targets)), targets].numpy(), (log_p.argmax(dim=-1) == targets).numpy()


def score(setup: Setup, split: str = "validation", **settings: Any) -> dict[str, float]:
    dataset, loaded = setup
    config = EvaluateConfig(split=split, **settings)  # type: ignore[arg-type]
    store = TokenDataset(dataset.token_shards(split))
    figures, nats = score_held_out(loaded, store, dataset.manifest["splits"][split], config)
    assert nats.sum() / figures["n_tokens"] == pytest.approx(figures["nll_per_token"])
    return figures


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "validation"])
def test_whole_pieces_in_one_window_score_as_a_plain_loop_says(setup: Setup, split: str) -> None:
    dataset, loaded = setup
    facts = dataset.manifest["splits"][split]
    costs, hits = zip(*(target_nll(loaded, row) for row in rows_of(dataset, split)), strict=True)
    nll, n_tokens = float(np.concatenate(costs).sum()), sum(map(len, costs))
    assert score(setup, split, seq_len=facts["max_tokens"], batch_size=2) == pytest.approx(
        {
            "nll_per_token": nll / n_tokens,
            "accuracy": np.concatenate(hits).mean(),
            "perplexity": math.exp(nll / n_tokens),
            "bits_per_note": nll / math.log(2) / facts["n_notes"],
            "bits_per_second": nll / math.log(2) / facts["seconds"],
            "n_tokens": n_tokens,
        },
        rel=1e-5,
    )


@pytest.mark.parametrize("batch_size", [2, 5])
def test_each_piece_has_its_own_nats(setup: Setup, batch_size: int) -> None:
    dataset, loaded = setup
    facts, store = dataset.manifest["splits"]["test"], TokenDataset(dataset.token_shards("test"))
    config = EvaluateConfig(seq_len=facts["max_tokens"], batch_size=batch_size)
    _, nats = score_held_out(loaded, store, facts, config)
    assert nats.tolist() == pytest.approx(
        [target_nll(loaded, row)[0].sum() for row in rows_of(dataset, "test")], rel=1e-4
    )


@pytest.mark.parametrize("seq_len", [64, 201])
def test_overlapping_windows_score_as_a_plain_loop_says(setup: Setup, seq_len: int) -> None:
    dataset, loaded = setup
    costs = []
    for row in rows_of(dataset, "test"):
        n_done = 1
        for start in range(0, len(row), seq_len // 2):
            window = row[start : start + seq_len + 1]
            cost, _ = target_nll(loaded, window)
            costs.append(cost[n_done - start - 1 :])
            n_done = start + len(window)
            if n_done == len(row):
                break
    everything = np.concatenate(costs)
    found = score(setup, "test", seq_len=seq_len)
    assert found["n_tokens"] == len(everything) == sum(len(row) - 1 for row in rows_of(dataset, "test"))
    assert found["nll_per_token"] == pytest.approx(everything.mean(), rel=1e-5)


def test_the_number_of_tokens_is_exact_and_the_batch_makes_no_difference(setup: Setup) -> None:
    dataset, _ = setup
    n_targets = sum(len(row) - 1 for row in rows_of(dataset, "validation"))
    facts = dataset.manifest["splits"]["validation"]
    assert n_targets == facts["n_tokens"] - facts["n_rows"]
    for seq_len in (32, 77, 900):
        first = score(setup, seq_len=seq_len, batch_size=1)
        assert first["n_tokens"] == n_targets
        for batch_size in (3, 64):
            assert score(setup, seq_len=seq_len, batch_size=batch_size) == pytest.approx(first, rel=1e-5)


def test_the_baseline_is_what_counting_says(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood, "COUNTED_AT_ONCE", 1000)
    train, held_out = (rows_of(setup[0], split) for split in ("train", "test"))
    seen = np.bincount(np.concatenate([row[1:] for row in train]), minlength=416)
    targets = np.concatenate([row[1:] for row in held_out])
    stores = [TokenDataset(setup[0].token_shards(split)) for split in ("test", "train")]
    found = evaluation.frequency_baseline(*stores)
    assert found["baseline/accuracy"] == pytest.approx(np.mean(targets == seen.argmax()))
    shares = np.maximum(seen, 1) / np.maximum(seen, 1).sum()
    assert found["baseline/nll_per_token"] == pytest.approx(-np.log(shares[targets]).mean(), rel=1e-3)


def test_progress_counts_every_window(setup: Setup) -> None:
    dataset, loaded = setup
    seen: list[int] = []
    store = TokenDataset(dataset.token_shards("validation"))
    config = EvaluateConfig(seq_len=64, batch_size=5)
    score_held_out(loaded, store, dataset.manifest["splits"]["validation"], config, seen.append)
    assert sum(seen) == sum(1 + max(0, -(-(len(row) - 65) // 32)) for row in rows_of(dataset, "validation"))


def test_progress_counts_tokens_of_samples_and_continuations(setup: Setup) -> None:
    dataset, loaded = setup
    shown: list[Progress] = []

    def show(label: str, total: int, unit: str) -> Progress:
        shown.append(Progress(label, total, unit))
        return shown[-1]

    config = replace(SHORT, n_samples=2, n_continuations=1)
    result = evaluate_model(loaded, dataset, config, show=show)
    assert [(stage.label, stage.unit) for stage in shown] == [
        ("scoring", "windows"), ("sampling", "tokens"), ("continuing pieces", "tokens"),
    ]  # fmt: skip
    scoring, sampling, continuing = shown
    assert scoring.done == scoring.total
    assert sampling.done == sum(len(ids) - 1 for ids in sample_freely(loaded, config))
    assert result.continuations is not None
    assert continuing.done == sum(piece.row["generated_length"] for piece in result.continuations.pieces)
    assert sampling.done <= sampling.total
    assert continuing.done <= continuing.total


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_model_without_a_finite_likelihood_has_no_figures(setup: Setup, value: float) -> None:
    dataset, loaded = setup
    broken = replace(loaded, model=copy.deepcopy(loaded.model))
    with torch.no_grad():
        broken.model.head.bias[20] = value  # type: ignore[union-attr]
    with pytest.raises(Diverged, match=f"its likelihood on {dataset.reference}/test is nan nats per token"):
        evaluate_model(broken, dataset, SHORT)
    assert Diverged.exit_code == 1


@pytest.mark.parametrize("name", ["n_tokens", "n_notes", "seconds"])
def test_a_split_without_music_is_said_to_have_none(setup: Setup, name: str) -> None:
    dataset, loaded = setup
    splits = dataset.manifest["splits"]
    empty = replace(dataset, manifest=dataset.manifest | {"splits": splits | {"test": splits["test"] | {name: 0}}})
    with pytest.raises(DatasetError, match=f"nothing to score in split test: {name}=0"):
        evaluate_model(loaded, empty, SHORT)


def test_a_split_of_one_piece_has_finite_figures(tmp_path: Path) -> None:
    dataset = small_dataset(Home.at(tmp_path / "home"), small_corpus(tmp_path / "midi", n_pieces=3))
    loaded = load_model(small_model(Home.at(tmp_path / "home"), dataset, n_steps=2))
    result = evaluate_model(loaded, dataset, replace(SHORT, n_samples=1, n_continuations=1))
    assert (result.n_held_out, len(result.piece_nats)) == (1, 1)
    assert all(math.isfinite(value) for value in result.metrics.values())


def test_a_model_of_another_encoding_is_turned_down(setup: Setup, home: Home, tmp_path: Path) -> None:
    dataset, loaded = setup
    check_fits(loaded, dataset)
    other = small_dataset(home, small_corpus(tmp_path / "midi", 6), encoding=OoreConfig(drums="drop"))
    with pytest.raises(CheckpointError) as error:
        evaluate_model(loaded, other, SHORT)
    for said in (loaded.tokenizer.digest[:12], other.manifest["encoder"]["digest"][:12], other.reference):
        assert said in str(error.value)


def test_grammar_errors_are_counted_per_token_drawn(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, loaded = setup
    start, end, velocity, on, off, shift = 414, 415, 400, 61, 189, 300
    well_formed = [start, velocity, on, shift, off, end]
    # a note-on without a velocity, a note-off of a silent pitch, an end while a note sounds
    faulty = [start, on, velocity, on, off, off, velocity, on, end]
    for pieces, rate in (([well_formed], 0.0), ([faulty], 3 / 8), ([well_formed, faulty, well_formed], 3 / 18)):
        drawn = [np.array(piece) for piece in pieces]
        monkeypatch.setattr(evaluation, "sample_freely", lambda *_, drawn=drawn: drawn)
        result = evaluate_model(loaded, dataset, SHORT)
        assert result.metrics["grammar_error_rate"] == pytest.approx(rate)
        assert result.n_samples == len(pieces)


def test_an_evaluation_is_the_same_for_the_same_seed(setup: Setup) -> None:
    dataset, loaded = setup
    first, again = evaluate_model(loaded, dataset, SHORT), evaluate_model(loaded, dataset, SHORT)
    assert first == again
    assert 0 < first.metrics["grammar_error_rate"] <= 1  # a model this young makes mistakes
    other = evaluate_model(loaded, dataset, replace(SHORT, seed=1))
    assert other.metrics["nll_per_token"] == first.metrics["nll_per_token"]
    assert other.metrics["samples/pitch_mean"] != first.metrics["samples/pitch_mean"]


def test_samples_are_free_and_as_long_as_asked(setup: Setup) -> None:
    _, loaded = setup
    samples = sample_freely(loaded, SHORT)
    assert len(samples) == 3
    assert all(ids[0] == 414 and len(ids) <= 24 for ids in samples)
    assert len({ids.tobytes() for ids in samples}) == 3
    assert sample_freely(loaded, replace(SHORT, n_samples=0)) == []


def test_statistics_are_means_over_pieces(setup: Setup) -> None:
    dataset, loaded = setup
    result = evaluate_model(loaded, dataset, replace(SHORT, split="validation"))
    excerpts = [row[: SHORT.sample_tokens] for row in rows_of(dataset, "validation")]
    held_out = [piece_statistics(loaded.tokenizer.decode(row)) for row in excerpts]
    sampled = [piece_statistics(loaded.tokenizer.decode(ids)) for ids in sample_freely(loaded, SHORT)]
    assert result.statistics.keys() == held_out[0].keys()
    for name, (real, ours) in result.statistics.items():
        assert real == pytest.approx(np.mean([piece[name] for piece in held_out]))
        assert ours == pytest.approx(np.mean([piece[name] for piece in sampled]))
        assert (result.metrics[f"held_out/{name}"], result.metrics[f"samples/{name}"]) == (real, ours)
    assert (result.n_held_out, result.n_samples) == (len(held_out), 3)


def test_the_report_shows_the_figures(setup: Setup) -> None:
    dataset, loaded = setup
    result = evaluate_model(loaded, dataset, SHORT)
    report = report_markdown(result, "small-small@1", dataset, SHORT)
    assert f"# small-small@1 on {dataset.reference}, test" in report
    assert f"| bits per note | {result.metrics['bits_per_note']:.3f} |" in report
    assert "| n_notes | " in report
    without = evaluate_model(loaded, dataset, replace(SHORT, n_samples=0))
    assert without.statistics == {}
    assert "grammar_error_rate" not in without.metrics
    assert "grammar" not in report_markdown(without, "small-small@1", dataset, SHORT)
