"""Training: a run that was stopped or killed ends with the same bits as one that was not, on Ray and off it."""

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from torch import Tensor, nn

from models.config import ConstantSchedule, NoamSchedule, OptimizerConfig, WarmupCosineSchedule
from tasks.checkpoints import CheckpointFolder, load_model, read_state
from tasks.config.serialization import to_json
from tasks.config.training import TrainConfig
from tasks.dataset.versions import DatasetVersion
from tasks.errors import CheckpointError, ConfigError, Diverged, Interrupted
from tasks.runtime import cluster
from tasks.storage.files import write_atomically
from tasks.storage.home import Home
from tasks.training import trainer, worker
from tasks.training.job import TrainJob, make_job, run_dir_of
from tasks.training.metrics_log import MetricsTail, read_points
from tasks.training.token_dataset import TokenDataset
from tasks.training.trainer import read_progress
from tasks.training.worker import run_steps
from tests.conftest import REPOSITORY, shared_ray
from tests.samples import SMALL_MODEL, short_training

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def undisturbed(dataset: DatasetVersion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of 12 steps that nothing disturbed."""
    job = make_job(short_training(), dataset, tmp_path_factory.mktemp("undisturbed"))
    run_steps(job)
    return job.run_dir


class Stumbled(BaseException):
    """Stands for a kill: nothing is saved after it."""


def at_step(step: int, action: Callable[[], object], seen: list[int] | None = None) -> Callable[[nn.Module], nn.Module]:
    """Return a `wrap` for `run_steps` that acts during the forward pass of the `step`-th step from now."""
    n_steps = 0

    def on_forward(module: nn.Module, *_: object) -> None:
        nonlocal n_steps
        if module.training:
            n_steps += 1
            if seen is not None:
                seen.append(n_steps)
            if n_steps == step:
                action()

    def wrap(model: nn.Module) -> nn.Module:
        model.register_forward_hook(on_forward)
        return model

    return wrap


def stumble() -> None:
    raise Stumbled


def bytes_of(run_dir: Path, *names: str) -> dict[str, str]:
    """Return a digest of every file of the checkpoints that `best` and `last` name."""
    folder = CheckpointFolder(run_dir / "checkpoints")
    found = {}
    for which in names or ("best", "last"):
        checkpoint = folder.find(which)
        assert checkpoint is not None
        for path in sorted(checkpoint.iterdir()):
            found[f"{which}/{checkpoint.name}/{path.name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def curves(run_dir: Path) -> list[dict[str, float]]:
    points = read_points(run_dir / "metrics.jsonl")
    return [{key: value for key, value in point.items() if key != "train/tokens_per_second"} for point in points]


def assert_same_run(run_dir: Path, other: Path) -> None:
    assert curves(run_dir) == curves(other)
    assert bytes_of(run_dir) == bytes_of(other)


@pytest.mark.parametrize("stops", [(1,), (3,), (4,), (5,), (6,), (11,), (1, 1, 5), (5, 6)])
def test_a_run_stopped_and_taken_up_again_ends_with_the_same_bits(
    dataset: DatasetVersion, undisturbed: Path, tmp_path: Path, stops: tuple[int, ...]
) -> None:
    job = make_job(short_training(), dataset, tmp_path)
    done = 0
    for n_steps in stops:
        run_steps(job, wrap=at_step(n_steps, job.stop_request.touch))
        done += n_steps
        assert read_progress(tmp_path)["step"] == done
        job.stop_request.unlink()
    run_steps(job)
    assert_same_run(tmp_path, undisturbed)


@pytest.mark.parametrize(("kills", "saved"), [((3,), 0), ((5,), 4), ((7,), 6), ((10,), 8), ((5, 3, 2), 6)])
def test_a_run_killed_and_taken_up_again_ends_with_the_same_bits(
    dataset: DatasetVersion, undisturbed: Path, tmp_path: Path, kills: tuple[int, ...], saved: int
) -> None:
    job = make_job(short_training(), dataset, tmp_path)
    for n_steps in kills:
        with pytest.raises(Stumbled):
            run_steps(job, wrap=at_step(n_steps, stumble))
    assert read_progress(tmp_path)["step"] == saved
    run_steps(job)
    assert_same_run(tmp_path, undisturbed)


@pytest.mark.parametrize(
    "settings",
    [{"compile": True}, pytest.param({"compile": True, "bf16": True}, marks=pytest.mark.nightly), {"bf16": True}],
    ids=str,
)
def test_however_a_run_was_computed_its_checkpoint_loads(
    dataset: DatasetVersion, undisturbed: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    run_steps(make_job(short_training(**settings), dataset, tmp_path))
    losses = [[point["val/loss"] for point in curves(path) if "val/loss" in point] for path in (tmp_path, undisturbed)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)
    names = [load_model(last_of(path)).model.state_dict().keys() for path in (tmp_path, undisturbed)]
    assert names[0] == names[1]
    run_steps(make_job(short_training(n_steps=14), dataset, tmp_path))  # goes on without these settings
    assert read_progress(tmp_path)["step"] == 14


def last_of(run_dir: Path) -> Path:
    last = CheckpointFolder(run_dir / "checkpoints").find("last")
    assert last is not None
    return last


@pytest.mark.parametrize("n_parts", [2, 3, 4])
def test_a_batch_in_parts_is_the_same_batch(dataset: DatasetVersion, tmp_path: Path, n_parts: int) -> None:
    model = replace(SMALL_MODEL, dropout=0.0)
    runs = [tmp_path / "whole", tmp_path / "parts"]
    for run_dir, changes in zip(runs, ({}, {"grad_accumulation_steps": n_parts}), strict=True):
        run_steps(make_job(short_training(model=model, n_steps=4, **changes), dataset, run_dir))
    points = [[point["train/loss"] for point in curves(run_dir) if "train/loss" in point] for run_dir in runs]
    assert points[0] == pytest.approx(points[1], rel=1e-4)


def test_another_seed_is_another_run(dataset: DatasetVersion, undisturbed: Path, tmp_path: Path) -> None:
    run_steps(make_job(short_training(seed=1), dataset, tmp_path))
    assert curves(tmp_path) != curves(undisturbed)
    assert set(bytes_of(tmp_path, "last").values()).isdisjoint(bytes_of(undisturbed, "last").values())


def test_a_finished_run_is_left_as_it_is(dataset: DatasetVersion, tmp_path: Path) -> None:
    job = make_job(short_training(n_steps=3), dataset, tmp_path)
    run_steps(job)
    before = bytes_of(tmp_path), curves(tmp_path)
    run_steps(job, wrap=at_step(1, stumble))
    assert (bytes_of(tmp_path), curves(tmp_path)) == before


def test_a_stop_request_saves_and_stops_at_the_step_it_meets(dataset: DatasetVersion, tmp_path: Path) -> None:
    job = make_job(short_training(), dataset, tmp_path)
    seen: list[int] = []
    run_steps(job, wrap=at_step(5, job.stop_request.touch, seen))
    assert seen == [1, 2, 3, 4, 5]
    last = CheckpointFolder(tmp_path / "checkpoints").find("last")
    assert last is not None
    assert read_state(last)["step"] == 5


def test_the_loss_falls(dataset: DatasetVersion, tmp_path: Path) -> None:
    config = short_training(
        model=replace(SMALL_MODEL, dropout=0.0), n_steps=60, batch_size=8, log_interval=5, eval_interval=30
    )
    run_steps(make_job(config, dataset, tmp_path))
    points = read_points(tmp_path / "metrics.jsonl")
    train_loss = [point["train/loss"] for point in points if "train/loss" in point]
    val_loss = [point["val/loss"] for point in points if "val/loss" in point]
    assert train_loss[0] > 5.5  # log 416 = 6.03 for a model that knows nothing
    assert train_loss[-1] < train_loss[0] - 1.2
    assert val_loss[-1] < val_loss[0] < 5.5


def test_curves_have_a_point_for_each_interval(dataset: DatasetVersion, tmp_path: Path) -> None:
    run_steps(make_job(short_training(n_steps=7, log_interval=3, eval_interval=5), dataset, tmp_path))
    points = read_points(tmp_path / "metrics.jsonl")
    assert [(point["step"], "val/loss" in point) for point in points] == [
        (3, False), (5, True), (6, False), (7, False), (7, True),
    ]  # fmt: skip
    assert set(points[0]) == {"step", *(f"train/{name}" for name in (
        "loss", "accuracy", "learning_rate", "grad_norm", "tokens_per_second", "skipped_steps", "tokens_out_of_reach",
    ))}  # fmt: skip
    assert all(np.isfinite(list(point.values())).all() for point in points)


def test_best_is_the_checkpoint_of_the_lowest_validation_loss(dataset: DatasetVersion, tmp_path: Path) -> None:
    # A rate this high soon makes matters worse.
    config = short_training(schedule=NoamSchedule(warmup_steps=0, scale=300.0), eval_interval=1, n_steps=8)
    whole, stopped = tmp_path / "whole", make_job(config, dataset, tmp_path / "stopped")
    run_steps(make_job(config, dataset, whole))
    losses = {point["step"]: point["val/loss"] for point in read_points(whole / "metrics.jsonl") if "val/loss" in point}
    assert len(losses) == 8
    best = CheckpointFolder(whole / "checkpoints").find("best")
    assert best is not None
    state = read_state(best)
    assert state["step"] == min(losses, key=lambda step: losses[step]) < 8
    assert state["best_loss"] == state["metrics"]["val/loss"] == min(losses.values())
    run_steps(stopped, wrap=at_step(state["step"] + 1, stopped.stop_request.touch))
    stopped.stop_request.unlink()
    run_steps(stopped)
    assert_same_run(stopped.run_dir, whole)


def test_the_most_accurate_checkpoint_is_kept_beside_the_best(dataset: DatasetVersion, tmp_path: Path) -> None:
    config = short_training(schedule=NoamSchedule(warmup_steps=0, scale=300.0), eval_interval=1, n_steps=8)
    run_steps(make_job(config, dataset, tmp_path))
    points = read_points(tmp_path / "metrics.jsonl")
    accuracies = {point["step"]: point["val/accuracy"] for point in points if "val/loss" in point}
    most_accurate = CheckpointFolder(tmp_path / "checkpoints").find("best_accuracy")
    assert most_accurate is not None
    state = read_state(most_accurate)
    assert state["step"] == max(accuracies, key=lambda step: accuracies[step])
    assert state["best_accuracy"] == max(accuracies.values())


def test_intervals_may_be_epochs(dataset: DatasetVersion, tmp_path: Path) -> None:
    config = short_training(windows="whole", interval_unit="epochs", eval_interval=1, checkpoint_interval=2)
    job = make_job(config, dataset, tmp_path)
    n_steps = -(-TokenDataset(job.train_shards, job.flat_tokens).n_rows // config.batch_size)
    job = replace(job, config=replace(config, n_steps=3 * n_steps + 1))
    run_steps(job)
    validated = [point["step"] for point in read_points(job.metrics) if "val/loss" in point]
    assert validated == [n_steps, 2 * n_steps, 3 * n_steps, 3 * n_steps + 1]


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
def test_a_run_ends_after_validations_without_a_gain_stopped_or_not(
    dataset: DatasetVersion, tmp_path: Path, metric: Any
) -> None:
    config = short_training(
        schedule=ConstantSchedule(rate=1e-30), n_steps=60, eval_interval=3, log_interval=4,
        early_stopping_patience=2, early_stopping_metric=metric,
    )  # fmt: skip
    run_steps(make_job(config, dataset, tmp_path / "whole"))
    assert [point["step"] for point in curves(tmp_path / "whole")] == [3, 4, 6, 8, 9, 9]
    stopped = make_job(config, dataset, tmp_path / "stopped")
    run_steps(stopped, wrap=at_step(7, stopped.stop_request.touch))
    stopped.stop_request.unlink()
    run_steps(stopped)
    run_steps(stopped)  # it has ended
    assert_same_run(stopped.run_dir, tmp_path / "whole")


def test_the_state_holds_what_a_reader_needs(undisturbed: Path) -> None:
    last = CheckpointFolder(undisturbed / "checkpoints").find("last")
    assert last is not None
    state = read_state(last)
    assert state["config"] == to_json(short_training())
    assert state["dataset"]["name"] == "small"
    assert state["tokenizer"]["name"] == "oore"
    assert state["step"] == 12
    assert "train/tokens_per_second" not in state["metrics"]  # it would make the bytes depend on the machine
    assert read_progress(undisturbed) == {key: state[key] for key in state} | {"step": 12}


# Which runs are the same run


OTHER_SETTINGS: dict[str, Any] = {
    "windows": "start", "compile": True, "grad_accumulation_steps": 2,
    "preset": "other", "model": replace(SMALL_MODEL, n_layers=3), "schedule": NoamSchedule(),
    "optimizer": OptimizerConfig(eps=1e-6), "n_steps": 13, "batch_size": 8, "seq_len": 33, "seed": 1,
    "bf16": True, "validation_windows": 5, "eval_interval": 7, "checkpoint_interval": 5,
    "interval_unit": "epochs", "early_stopping_patience": 3, "early_stopping_metric": "accuracy",
}  # fmt: skip
WITHOUT_EFFECT = {"n_workers": 2, "cpus_per_worker": 2, "max_failures": 0, "keep_last_n": 3, "log_interval": 3}


# Divergence


def without_numbers(steps: set[int]) -> Callable[[nn.Module], nn.Module]:
    """Return a `wrap` for `run_steps` that makes the loss of some steps, counted from now, no number."""
    seen: list[int] = []

    def wrap(model: nn.Module) -> nn.Module:
        def spoil(module: nn.Module, _: object, logits: Tensor) -> Tensor:
            if module.training:
                seen.append(1)
            return logits * math.nan if module.training and len(seen) in steps else logits

        model.register_forward_hook(spoil)
        return model

    return wrap


def test_a_run_without_a_finite_gradient_gives_up_half_way(dataset: DatasetVersion, tmp_path: Path) -> None:
    job = make_job(short_training(), dataset, tmp_path)
    with pytest.raises(Diverged, match="diverged at step 6 of 12: 6 steps in a row had no finite gradient"):
        run_steps(job, wrap=without_numbers(set(range(1, 99))))
    assert read_progress(tmp_path)["step"] < 6
    assert Diverged.exit_code == 1


def test_a_long_run_without_a_finite_gradient_gives_up_after_so_many_steps(
    dataset: DatasetVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "MOST_SKIPPED", 3)
    job = make_job(short_training(), dataset, tmp_path / "stopped")
    with pytest.raises(Diverged, match="step 8 of 12: 3 steps in a row"):
        run_steps(job, wrap=without_numbers({1, 2, 4, 6, 7, 8}))
    # Skipped steps before a stop count too.
    job = make_job(short_training(checkpoint_interval=1), dataset, tmp_path / "killed")
    with pytest.raises(Stumbled):
        run_steps(job, wrap=lambda model: at_step(4, stumble)(without_numbers({2, 3})(model)))
    with pytest.raises(Diverged, match="step 4 of 12: 3 steps in a row"):
        run_steps(job, wrap=without_numbers({1}))


def test_single_steps_without_a_finite_gradient_are_skipped(dataset: DatasetVersion, tmp_path: Path) -> None:
    job = make_job(short_training(), dataset, tmp_path)
    run_steps(job, wrap=without_numbers({2, 7, 9}))
    assert sum(point.get("train/skipped_steps", 0) for point in read_points(job.metrics)) == 3
    assert math.isfinite(read_progress(tmp_path)["metrics"]["val/loss"])


def test_a_run_that_explodes_is_no_result_and_says_so_again(
    dataset: DatasetVersion, tmp_path: Path, without_ray: None
) -> None:
    settings = {"schedule": ConstantSchedule(rate=1e30), "eval_interval": 2, "checkpoint_interval": 1}
    job = make_job(short_training(**settings), dataset, tmp_path / "run")
    for _ in range(2):
        with pytest.raises(Diverged, match=r"diverged at step \d+ of 12"):
            trainer.fit(job, lambda _: None)
        assert CheckpointFolder(job.run_dir / "checkpoints").find("best") is None
        assert read_progress(job.run_dir)["step"] < 12
    assert job.divergence.read_text().startswith("training diverged")
    shutil.rmtree(job.run_dir / "checkpoints")
    trainer.fit(replace(job, config=short_training()), lambda _: None)  # as if the cause had been mended
    assert not job.divergence.exists()


def test_a_last_validation_that_is_no_number_is_no_result(
    dataset: DatasetVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = iter([3.0, math.inf, math.nan])
    monkeypatch.setattr(worker, "_validate", lambda *_: {"val/loss": next(figures), "val/accuracy": 0.0})
    job = make_job(short_training(eval_interval=4), dataset, tmp_path)
    with pytest.raises(Diverged, match="step 12 of 12: the last validation loss is nan"):
        run_steps(job)
    best = CheckpointFolder(tmp_path / "checkpoints").find("best")
    assert best is not None
    assert read_state(best)["step"] == 4
    assert read_progress(tmp_path)["step"] < 12


def test_the_rate_is_that_of_training_alone(
    dataset: DatasetVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]

    def slow(function: Callable[..., Any], seconds: Callable[[], float]) -> Callable[..., Any]:
        def slowed(*args: Any, **settings: Any) -> Any:
            now[0] += seconds()
            return function(*args, **settings)

        return slowed

    first = iter([100.0])  # the first step compiles
    monkeypatch.setattr(worker.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(worker, "train_step", slow(worker.train_step, lambda: next(first, 2.0)))
    monkeypatch.setattr(worker, "_validate", slow(worker._validate, lambda: 1000.0))
    monkeypatch.setattr(CheckpointFolder, "save", slow(CheckpointFolder.save, lambda: 1000.0))
    job = make_job(short_training(eval_interval=2, log_interval=3), dataset, tmp_path)
    run_steps(job)
    store = TokenDataset(job.train_shards, job.flat_tokens)

    def n_tokens(step: int) -> int:
        config = job.config
        batch = store.batch(config.seed, step, config.batch_size, config.seq_len, 0, config.windows)
        return int((batch != 0).sum())

    rates = [p["train/tokens_per_second"] for p in read_points(job.metrics) if "train/loss" in p]
    expected = [(2, 3), (4, 5, 6), (7, 8, 9), (10, 11, 12)]
    assert rates == pytest.approx([sum(map(n_tokens, steps)) / len(steps) / 2.0 for steps in expected])


def test_every_setting_was_thought_of() -> None:
    assert {field.name for field in fields(TrainConfig)} == OTHER_SETTINGS.keys() | WITHOUT_EFFECT.keys()


@pytest.mark.parametrize("name", OTHER_SETTINGS)
def test_another_setting_is_another_run(home: Home, dataset: DatasetVersion, name: str) -> None:
    config = short_training()
    other = replace(config, **{name: OTHER_SETTINGS[name]})
    assert run_dir_of(home, other, dataset) != run_dir_of(home, config, dataset)


@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_what_only_changes_the_speed_is_the_same_run(home: Home, dataset: DatasetVersion, name: str) -> None:
    config = short_training()
    assert run_dir_of(home, replace(config, **{name: WITHOUT_EFFECT[name]}), dataset) == run_dir_of(
        home, config, dataset
    )


def test_another_dataset_version_is_another_run(home: Home, dataset: DatasetVersion) -> None:
    config = short_training()
    for changes in ({"version": "0123456789abcdef"}, {"name": "other"}):
        assert run_dir_of(home, config, replace(dataset, **changes)) != run_dir_of(home, config, dataset)


@pytest.mark.parametrize(
    ("n_workers", "cpus_per_worker", "said"), [(3, 0, "n_workers=3 x 1"), (1, 4, "n_workers=1 x 4")]
)
def test_more_workers_than_cores_are_refused(
    dataset: DatasetVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_workers: int, cpus_per_worker: int,
    said: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("ORCHESTRION_CPUS", "2")
    config = short_training(n_workers=n_workers, cpus_per_worker=cpus_per_worker, batch_size=6)
    with pytest.raises(ConfigError, match=rf"{said} cores each are more than the 2 cores"):
        make_job(config, dataset, tmp_path)


def test_cores_are_shared_among_the_workers(
    dataset: DatasetVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRION_CPUS", "7")
    config = short_training(cpus_per_worker=0, batch_size=6)
    assert [make_job(replace(config, n_workers=n), dataset, tmp_path).n_threads for n in (1, 2, 3, 6)] == [7, 3, 2, 1]


# `fit` around a training that runs in this process


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `fit` run the steps itself, each at least 30 ms long, where it would ask Ray Train."""

    def fit_in_thread(job: TrainJob, failure: list[BaseException]) -> None:
        def wrap(model: nn.Module) -> nn.Module:
            model.register_forward_hook(lambda *_: time.sleep(0.03))
            return model

        try:
            run_steps(job, wrap=wrap)
        except BaseException as error:
            failure.append(error)

    monkeypatch.setattr(cluster, "connect", lambda: None)
    monkeypatch.setattr(trainer, "_fit_in_thread", fit_in_thread)


def test_fit_hands_on_every_point_once_and_in_order(
    dataset: DatasetVersion, undisturbed: Path, tmp_path: Path, without_ray: None
) -> None:
    points: list[dict[str, float]] = []
    result = trainer.fit(make_job(short_training(), dataset, tmp_path / "run"), points.extend)
    assert points == read_points(tmp_path / "run" / "metrics.jsonl")
    assert_same_run(tmp_path / "run", undisturbed)
    assert (result.step, result.run_dir) == (12, tmp_path / "run")
    assert result.checkpoint == CheckpointFolder(tmp_path / "run" / "checkpoints").find("best")
    assert result.metrics["val/loss"] == points[-1]["val/loss"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_stops_and_is_said(
    dataset: DatasetVersion, undisturbed: Path, tmp_path: Path, without_ray: None, number: signal.Signals
) -> None:
    job = make_job(short_training(), dataset, tmp_path / "run")
    passed_on: list[int] = []
    before = signal.signal(number, lambda received, _: passed_on.append(received))

    def kill_at_first_point(points: list[dict[str, float]]) -> None:
        if points and not job.stop_request.exists():
            os.kill(os.getpid(), number)

    try:
        with pytest.raises(Interrupted, match=rf"stopped by {number.name} at step \d+ of 12; saved"):
            trainer.fit(job, kill_at_first_point)
        assert passed_on == ([signal.SIGTERM] if number == signal.SIGTERM else [])  # Prefect learns of a cancel
        assert 0 < read_progress(job.run_dir)["step"] < 12
        os.kill(os.getpid(), number)
        assert passed_on[-1] == number  # the handler is back
    finally:
        signal.signal(number, before)
    trainer.fit(job, lambda _: None)
    assert_same_run(job.run_dir, undisturbed)


def test_a_second_signal_stops_at_once(
    dataset: DatasetVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()

    def work(job: TrainJob, _: object) -> None:
        job.begun.touch()
        release.wait(60)

    monkeypatch.setattr(cluster, "connect", lambda: None)
    monkeypatch.setattr(trainer, "_fit_in_thread", work)
    try:
        with pytest.raises(KeyboardInterrupt):
            trainer.fit(make_job(short_training(), dataset, tmp_path), lambda _: os.kill(os.getpid(), signal.SIGINT))
    finally:
        release.set()


def test_a_signal_before_the_first_step_waits_for_nothing(
    dataset: DatasetVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    monkeypatch.setattr(cluster, "connect", lambda: None)
    monkeypatch.setattr(trainer, "_fit_in_thread", lambda *_: release.wait(60))
    given: list[object] = []

    def interrupt_once(points: object) -> None:
        given.append(points)
        if len(given) == 1:
            os.kill(os.getpid(), signal.SIGINT)

    try:
        with pytest.raises(Interrupted, match="SIGINT before there was a step to save"):
            trainer.fit(make_job(short_training(), dataset, tmp_path), interrupt_once)
        assert "ray-train" in [thread.name for thread in threading.enumerate()]  # nobody waited for it
    finally:
        release.set()


def test_fit_leaves_no_training_behind_when_the_tracker_fails(
    dataset: DatasetVersion, undisturbed: Path, tmp_path: Path, without_ray: None
) -> None:
    job = make_job(short_training(), dataset, tmp_path / "run")

    def fail(points: list[dict[str, float]]) -> None:
        if points:
            raise OSError("tracking server went away")

    with pytest.raises(OSError, match="went away"):
        trainer.fit(job, fail)
    assert "ray-train" not in [thread.name for thread in threading.enumerate()]
    trainer.fit(job, lambda _: None)
    assert_same_run(job.run_dir, undisturbed)


def test_what_the_training_raises_comes_out_of_fit(dataset: DatasetVersion, tmp_path: Path, without_ray: None) -> None:
    job = make_job(short_training(n_steps=4), dataset, tmp_path)
    run_steps(job)
    (tmp_path / "checkpoints" / "last.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"last\.json is damaged"):
        trainer.fit(job, lambda _: None)


def test_the_tail_of_a_rewritten_file_gives_each_point_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = MetricsTail(path)
    assert tail.new_points() == []

    def point(step: int, rate: float) -> str:
        return json.dumps({"step": step, "train/tokens_per_second": rate}) + "\n"

    path.write_text(point(1, 10.5) + point(2, 10.5) + point(3, 10.5)[:9])
    assert [p["step"] for p in tail.new_points()] == [1, 2]
    with path.open("a") as handle:
        handle.write(point(3, 10.5)[9:])
    assert [p["step"] for p in tail.new_points()] == [3]
    # A worker went on from step 1, and was past the old end of the file before anybody looked.
    write_atomically(path, point(1, 10.5).encode())
    with path.open("a") as handle:
        handle.write("".join(point(step, 1234.125) for step in (2, 3, 4)))
    assert [p["step"] for p in tail.new_points()] == [4]
    assert tail.new_points() == []


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_points(path) == []
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert read_points(path) == [{"step": 1}, {"step": 2}]


# On Ray Train


def long_training(**settings: object) -> TrainConfig:
    """Return settings of a run of some seconds, long enough to be hit in the middle."""
    given = {"n_steps": 80, "batch_size": 8, "seq_len": 96, "eval_interval": 40, "log_interval": 1}
    return short_training(**given | settings)


@pytest.fixture(scope="module")
def long_undisturbed(dataset: DatasetVersion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    job = make_job(long_training(), dataset, tmp_path_factory.mktemp("long"))
    run_steps(job)
    return job.run_dir


@pytest.mark.nightly  # what a stopped run on Ray ends with is compared below, a killed worker too
def test_one_worker_on_ray_gives_the_bits_of_no_ray_at_all_though_it_is_killed(
    dataset: DatasetVersion, long_undisturbed: Path, tmp_path: Path, ray: None
) -> None:
    killed: list[int] = []
    points: list[dict[str, float]] = []

    def kill_once(fresh: list[dict[str, float]]) -> None:
        points.extend(fresh)
        if not killed and points and points[-1]["step"] >= 5:
            killed.extend(kill_training_worker())

    result = trainer.fit(make_job(long_training(), dataset, tmp_path / "run"), kill_once)
    assert len(killed) == 1
    assert_same_run(tmp_path / "run", long_undisturbed)
    assert result.step == 80
    steps = [(point["step"], "val/loss" in point) for point in points]
    assert len(steps) == len(set(steps)) == 82
    assert not (tmp_path / "run" / "ray").exists()


def descendants(part: str) -> list[psutil.Process]:
    """Return the processes below this one whose command line has a part; what has just ended has none."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if part in " ".join(process.cmdline()):
                found.append(process)
    return found


def kill_training_worker() -> list[int]:
    """SIGKILL one training worker among this process's own descendants; return its id."""
    for process in descendants("RayTrainWorker")[:1]:
        process.kill()
        return [process.pid]
    return []


def test_two_workers_give_the_losses_of_one_though_one_is_killed(
    dataset: DatasetVersion, tmp_path: Path, ray: None
) -> None:
    config = long_training(
        model=replace(SMALL_MODEL, dropout=0.0),  # dropout is drawn for each worker
        schedule=WarmupCosineSchedule(max_lr=1e-3, warmup_steps=4), validation_windows=5, n_steps=40, log_interval=3,
    )  # fmt: skip
    alone = make_job(config, dataset, tmp_path / "alone")
    run_steps(alone)
    together = make_job(replace(config, n_workers=2), dataset, tmp_path / "together")
    killed: list[int] = []

    def kill_once(fresh: list[dict[str, float]]) -> None:
        if not killed and fresh and fresh[-1]["step"] >= 6:
            killed.extend(kill_training_worker())

    assert trainer.fit(together, kill_once).step == 40
    assert len(killed) == 1
    one, two = curves(alone.run_dir), curves(together.run_dir)
    assert len(one) == len(two) == 15
    for mine, theirs in zip(one, two, strict=True):
        assert theirs == pytest.approx(mine, rel=1e-5, abs=1e-5)


def test_an_error_of_ours_in_a_worker_comes_back_as_itself(dataset: DatasetVersion, tmp_path: Path, ray: None) -> None:
    job = make_job(short_training(max_failures=0), dataset, tmp_path)
    run_steps(job, wrap=at_step(4, job.stop_request.touch))
    os.truncate(tmp_path / "checkpoints" / "step-000004" / "model.safetensors", 100)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged") as error:
        trainer.fit(job, lambda _: None)
    assert "\n" not in str(error.value)


CHILD = """
import sys
from pathlib import Path
from flows.services import environment
from tasks.dataset.versions import resolve_dataset
from tasks.errors import Interrupted
from tasks.storage.home import Home

home = Home.at(sys.argv[1])
environment.prepare(Home.at(sys.argv[2]))
from tasks.training import job as jobs, trainer
from tests.tasks.training.test_train import long_training

def say(points):
    for point in points:
        print(int(point["step"]), flush=True)

job = jobs.make_job(long_training(), resolve_dataset(home), Path(sys.argv[2]) / "run")
for _ in range(int(sys.argv[3])):
    try:
        trainer.fit(job, say)
    except Interrupted as error:
        code = error.exit_code
        print(error, flush=True)
sys.exit(code)
"""


@pytest.mark.parametrize(
    "numbers",
    [(signal.SIGINT,), pytest.param((signal.SIGINT, signal.SIGTERM), marks=pytest.mark.nightly)],
    ids=lambda numbers: "-".join(number.name for number in numbers),
)
def test_a_process_that_trains_saves_and_stops_at_signals(
    dataset: DatasetVersion, long_undisturbed: Path, tmp_path: Path, numbers: tuple[signal.Signals, ...]
) -> None:
    home = dataset.folder.parents[1]
    stops: list[int] = []
    with (tmp_path / "stderr").open("w") as stderr:
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(home), str(tmp_path), str(len(numbers))],
            cwd=REPOSITORY, env=os.environ | shared_ray(), text=True, stdout=subprocess.PIPE, stderr=stderr,
        )  # fmt: skip
    try:
        assert child.stdout is not None
        for number in numbers:
            step = stops[-1] if stops else 0
            next(line for line in child.stdout if int(line) > step + 2)
            child.send_signal(number)
            line = next(line for line in child.stdout if not line.strip().isdigit())
            stopped = re.fullmatch(rf"training stopped by {number.name} at step (\d+) of 80; saved\n", line)
            assert stopped is not None
            stops.append(int(stopped[1]))
        assert child.wait(timeout=120) == Interrupted.exit_code == 130
    finally:
        child.kill()
        child.wait()
    assert 2 < stops[0] <= stops[-1] < 80
    assert len(set(stops)) == len(numbers)
    assert read_progress(tmp_path / "run")["step"] == stops[-1]
    assert "***" not in (tmp_path / "stderr").read_text()  # Ray's own handler would abort three seconds later
    job = make_job(long_training(), dataset, tmp_path / "run")
    job.stop_request.unlink()  # as `fit` does
    run_steps(job)
    assert_same_run(tmp_path / "run", long_undisturbed)
