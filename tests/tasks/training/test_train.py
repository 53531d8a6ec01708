"""The steps of a training run: one that was stopped or killed ends with the same bits as one that was not."""

import hashlib
import math
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from models.config import ConstantSchedule, NoamSchedule, OptimizerConfig
from tasks.checkpoints import CheckpointFolder, load_model, read_state
from tasks.config.serialization import merged, to_json
from tasks.config.training import TrainConfig
from tasks.dataset.versions import DatasetVersion
from tasks.errors import ConfigError, Diverged
from tasks.storage.home import Home
from tasks.training import metrics_log, trainer, worker
from tasks.training.job import make_job, run_dir_of
from tasks.training.metrics_log import read_points
from tasks.training.ranks import Requests
from tasks.training.token_dataset import TokenDataset
from tasks.training.trainer import read_progress
from tasks.training.worker import run_steps
from tests.samples import SMALL_MODEL, short_training

pytestmark = pytest.mark.slow


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


def test_a_node_that_is_about_to_be_taken_away_saves_once_and_the_run_goes_on(
    dataset: DatasetVersion, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Requests, "SECONDS", 0.0)  # it is asked after each step
    seen: list[int] = []
    saved: list[tuple[float, bool]] = []
    run_steps(
        make_job(short_training(keep_last_n=9), dataset, tmp_path),
        wrap=at_step(99, stumble, seen),
        on_saved=lambda metrics, folder, is_last: saved.append((metrics["step"], is_last)),
        is_preempted=lambda: len(seen) >= 3,
    )
    assert saved == [(3, False), (4, False), (6, False), (8, False), (12, True)]
    assert read_state(tmp_path / "checkpoints" / "step-000003")["step"] == 3
    assert curves(tmp_path) == curves(undisturbed)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"n_workers": (2, 1)}, r"n_workers=\(2, 1\) is neither a number from 1 up nor a pair of rising ones"),
        ({"n_workers": 0}, "n_workers=0 is neither"),
        ({"n_workers": (1, 4), "grad_accumulation_steps": 2}, "above the 1 windows of one worker"),
    ],
)
def test_impossible_numbers_of_workers_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        short_training(**settings)


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
WITHOUT_EFFECT = {
    "activation_checkpointing": True, "parallel": "fsdp", "max_nonfinite_steps": 5,
    "n_workers": 2, "cpus_per_worker": 2, "max_failures": 0, "keep_last_n": 3, "log_interval": 3, "device": "cuda",
    "gpus_per_worker": 0.5, "accelerator_type": "H100",
}  # fmt: skip


# Divergence


def without_numbers(steps: set[int]) -> Callable[[nn.Module], nn.Module]:
    """Return a `wrap` for `run_steps` that makes the loss of some steps, counted from now, no number."""
    seen: list[int] = []

    def wrap(model: nn.Module) -> nn.Module:
        def spoil(module: nn.Module, _: object, output: Any) -> Any:
            if module.training:
                seen.append(1)
            if not module.training or len(seen) not in steps:
                return output
            return (output[0] * math.nan, *output[1:]) if isinstance(output, tuple) else output * math.nan

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
    dataset: DatasetVersion, tmp_path: Path
) -> None:
    job = make_job(short_training(max_nonfinite_steps=3, log_interval=100), dataset, tmp_path / "stopped")
    with pytest.raises(Diverged, match="step 8 of 12: 3 steps in a row"):
        run_steps(job, wrap=without_numbers({1, 2, 4, 6, 7, 8}))
    # Skipped steps before a stop count too.
    job = make_job(short_training(checkpoint_interval=1, max_nonfinite_steps=3), dataset, tmp_path / "killed")
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
    monkeypatch.setattr(worker._Worker, "validate", lambda _: {"val/loss": next(figures), "val/accuracy": 0.0})
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
    monkeypatch.setattr(metrics_log.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(worker, "train_step", slow(worker.train_step, lambda: next(first, 2.0)))
    monkeypatch.setattr(worker._Worker, "validate", slow(worker._Worker.validate, lambda: 1000.0))
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
    ("manifest", "settings", "said"),
    [
        (
            {}, {"seq_len": 100_000},
            r"train\.seq_len=100000 is more than every piece of the split train has; the longest has \d+ tokens",
        ),
        ({"splits": {"validation": {"n_rows": 0}}}, {}, "small@.* has no piece in its split validation"),
        (
            {"encoder": {"digest": "0" * 64}}, {},
            "small@.*: the vocabulary of its tokens is not that of its manifest",
        ),
    ],
    ids=["long windows", "no validation", "other vocabulary"],
)  # fmt: skip
def test_data_that_cannot_be_trained_on_is_refused_before_any_worker(
    dataset: DatasetVersion, tmp_path: Path, manifest: Any, settings: dict[str, Any], said: str
) -> None:
    other = replace(dataset, manifest=merged(dataset.manifest, manifest))
    with pytest.raises(ConfigError, match=said) as error:
        make_job(short_training(**settings), other, tmp_path)
    assert "\n" not in str(error.value)


def test_windows_that_need_no_long_piece_may_be_long(dataset: DatasetVersion, tmp_path: Path) -> None:
    for kind in ("whole", "packed"):
        make_job(short_training(seq_len=100_000, windows=kind), dataset, tmp_path)


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
