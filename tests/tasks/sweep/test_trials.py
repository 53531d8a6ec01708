"""Many training runs on a real Ray: the same bits as `run_steps` alone, failures that stay with one run, ASHA."""

import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from models.config import WarmupCosineSchedule
from tasks.checkpoints import CheckpointFolder
from tasks.config.training import TrainConfig
from tasks.dataset.versions import DatasetVersion
from tasks.errors import ConfigError
from tasks.runtime import cluster
from tasks.sweep.trials import Event, run_trials, share_cores
from tasks.training.job import TrainJob, make_job
from tasks.training.metrics_log import read_points
from tasks.training.trainer import read_progress
from tasks.training.worker import run_steps
from tests.samples import short_training
from tests.tasks.training.test_fit import descendants
from tests.tasks.training.test_train import assert_same_run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray")]


def with_peak(max_lr: float, **settings: Any) -> TrainConfig:
    return short_training(schedule=WarmupCosineSchedule(max_lr=max_lr, warmup_steps=4), eval_interval=2, **settings)


def outcomes(events: list[Event]) -> dict[int, tuple[str, str]]:
    return {event.index: (event.outcome, event.reason) for event in events if event.outcome}


def test_two_at_once_have_the_bits_of_runs_alone_and_a_failure_stays_with_its_run(
    dataset: DatasetVersion, tmp_path: Path
) -> None:
    configs = {1: with_peak(1e-2), 3: with_peak(1e-3)}
    jobs = {number: make_job(config, dataset, tmp_path / str(number)) for number, config in configs.items()}
    broken = make_job(with_peak(1e-2), dataset, tmp_path / "2")
    (broken.run_dir / "checkpoints").mkdir(parents=True)
    (broken.run_dir / "checkpoints" / "last.json").write_text("{")
    events = list(run_trials({1: jobs[1], 2: broken, 3: jobs[3]}, concurrent=2))
    ended = outcomes(events)
    assert {number: outcome for number, (outcome, _) in ended.items()} == {1: "trained", 2: "failed", 3: "trained"}
    assert "last.json is damaged" in ended[2][1]
    for number in (1, 3):
        alone = make_job(configs[number], dataset, tmp_path / f"alone-{number}")
        run_steps(alone)
        assert_same_run(jobs[number].run_dir, alone.run_dir)
        told = [point for event in events if event.index == number for point in event.points]
        assert told == read_points(jobs[number].metrics)
    assert not (tmp_path / ".tune").exists()


def test_what_falls_behind_the_earlier_points_is_stopped(dataset: DatasetVersion, tmp_path: Path) -> None:
    good = make_job(with_peak(1e-2), dataset, tmp_path / "good")
    run_steps(good)
    behind = make_job(with_peak(1e-6), dataset, tmp_path / "behind")
    events = list(run_trials({2: behind}, concurrent=1, past={1: good.run_dir}))
    assert outcomes(events) == {2: ("stopped", "")}
    assert read_points(behind.metrics)[-1]["step"] == 2
    run_steps(behind)  # a later run with these settings goes on from what was saved
    assert read_progress(behind.run_dir)["step"] == 12


def test_a_signal_saves_every_run_and_begins_no_other(dataset: DatasetVersion, tmp_path: Path) -> None:
    jobs = {n: make_job(with_peak(1e-2, seed=n, n_steps=100_000), dataset, tmp_path / str(n)) for n in (1, 2, 3)}
    started = threading.Event()

    def interrupt() -> None:
        started.wait(60)
        signal.raise_signal(signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    events = []
    for event in run_trials(jobs, concurrent=2):
        events.append(event)
        if {event.index for event in events if event.points} == {1, 2}:
            started.set()
    assert outcomes(events) == {1: ("interrupted", ""), 2: ("interrupted", "")}
    for number in (1, 2):
        last = CheckpointFolder(jobs[number].run_dir / "checkpoints").find("last")
        assert last is not None
        step = read_progress(jobs[number].run_dir)["step"]
        evaluated = [point["step"] for point in read_points(jobs[number].metrics) if "val/loss" in point]
        assert evaluated[-1] == step - step % 2 > 0
    assert not jobs[3].run_dir.exists()


@pytest.mark.parametrize(("max_failures", "outcome"), [(1, "trained"), (0, "failed")])
def test_a_killed_process_is_begun_again_as_often_as_settings_allow(
    dataset: DatasetVersion, tmp_path: Path, max_failures: int, outcome: str
) -> None:
    job = make_job(with_peak(1e-2, n_steps=200, max_failures=max_failures), dataset, tmp_path)
    killed: list[int] = []
    events = []
    for event in run_trials({1: job}, concurrent=1):
        events.append(event)
        if event.points and not killed:
            trials = descendants("train_trial")
            killed += [process.pid for process in trials]
            for process in trials:
                process.kill()
    assert len(killed) == 1
    assert [event.outcome for event in events if event.outcome] == [outcome]
    assert "its process died" in events[-1].reason or outcome == "trained"
    steps = [point["step"] for event in events for point in event.points if "val/loss" in point]
    assert steps == list(range(2, int(steps[-1]) + 1, 2))
    assert (read_progress(tmp_path)["step"] == 200) == (outcome == "trained")


def test_a_reader_that_gives_up_leaves_nothing_at_work(dataset: DatasetVersion, tmp_path: Path) -> None:
    job = make_job(with_peak(1e-2, n_steps=100_000), dataset, tmp_path)
    events = run_trials({1: job}, concurrent=1)
    while not next(events).points:
        pass
    events.close()
    step = read_progress(tmp_path)["step"]
    assert step > 0
    time.sleep(0.5)
    assert read_progress(tmp_path)["step"] == step


def job_of(config: TrainConfig) -> TrainJob:
    return TrainJob(config, {}, {}, [], [], Path("/nowhere"), Path("/nowhere"), 1)


@pytest.mark.parametrize(("concurrent", "n_threads"), [(1, 8), (2, 4), (3, 2), (8, 1)])
def test_trials_share_the_cores(monkeypatch: pytest.MonkeyPatch, concurrent: int, n_threads: int) -> None:
    monkeypatch.setattr(cluster, "n_cluster_cpus", lambda: 8)
    shared = share_cores([job_of(short_training(cpus_per_worker=0))] * 2, concurrent)
    assert [job.n_threads for job in shared] == [n_threads] * 2
    assert [job.n_threads for job in share_cores([job_of(short_training(cpus_per_worker=1))], concurrent)] == [1]


@pytest.mark.parametrize(("cores_each", "concurrent"), [(0, 9), (4, 3)])
def test_more_cores_than_there_are_is_told(monkeypatch: pytest.MonkeyPatch, cores_each: int, concurrent: int) -> None:
    monkeypatch.setattr(cluster, "n_cluster_cpus", lambda: 8)
    with pytest.raises(ConfigError, match=f"concurrent={concurrent} points x .* more than the 8 cores"):
        share_cores([job_of(short_training(cpus_per_worker=cores_each))], concurrent)
