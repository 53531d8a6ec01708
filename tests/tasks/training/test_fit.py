"""The driver's side of a training run: its points, its signals, its workers on Ray."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import fields, replace
from pathlib import Path

import psutil
import pytest
import torch

from models.config import WarmupCosineSchedule
from tasks.checkpoints import CheckpointFolder
from tasks.config.training import TrainConfig
from tasks.dataset.versions import DatasetVersion
from tasks.errors import CheckpointError, Interrupted, OutOfMemory
from tasks.runtime import cluster
from tasks.storage.files import write_atomically
from tasks.training import trainer
from tasks.training.job import TrainJob, make_job
from tasks.training.metrics_log import MetricsTail, read_points
from tasks.training.trainer import read_progress
from tasks.training.worker import run_steps
from tests.conftest import REPOSITORY, shared_ray
from tests.samples import SMALL_MODEL, short_training
from tests.tasks.training.test_train import assert_same_run, at_step, curves

pytestmark = pytest.mark.slow


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


def test_ray_knows_figures_and_the_address_of_the_last_checkpoint(
    dataset: DatasetVersion, tmp_path: Path, ray: None
) -> None:
    job = make_job(short_training(), dataset, tmp_path / "run")
    job.prepare()
    result = trainer.torch_trainer(job, tmp_path / "ray").fit()
    last = CheckpointFolder(job.run_dir / "checkpoints").find("last")
    assert last is not None
    assert result.metrics["step"] == 12
    assert result.metrics["val/loss"] == read_progress(job.run_dir)["metrics"]["val/loss"]
    with result.checkpoint.as_directory() as pointer:
        address = json.loads((Path(pointer) / "pointer.json").read_text())["uri"]
    assert address == result.metrics["checkpoint"] == last.as_uri()


def test_an_error_of_ours_in_a_worker_comes_back_as_itself(dataset: DatasetVersion, tmp_path: Path, ray: None) -> None:
    job = make_job(short_training(max_failures=0), dataset, tmp_path)
    run_steps(job, wrap=at_step(4, job.stop_request.touch))
    os.truncate(tmp_path / "checkpoints" / "step-000004" / "model.safetensors", 100)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged") as error:
        trainer.fit(job, lambda _: None)
    assert "\n" not in str(error.value)


def test_a_gpu_out_of_memory_ends_the_run_at_once_with_what_helps(
    dataset: DatasetVersion, tmp_path: Path, ray: None
) -> None:
    driver, tries = os.getpid(), tmp_path / "tries"

    class Greedy(TrainJob):  # made here, it travels by value
        @property
        def stop_request(self) -> Path:  # a worker asks for it between steps
            if os.getpid() != driver:
                with tries.open("a") as handle:
                    handle.write("x")
                raise torch.OutOfMemoryError(
                    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity"
                )
            return self.run_dir / "stop"

    job = make_job(short_training(), dataset, tmp_path / "run")
    greedy = Greedy(**{field.name: getattr(job, field.name) for field in fields(job)})
    with pytest.raises(OutOfMemory) as error:
        trainer.fit(greedy, lambda _: None)
    assert str(error.value) == (
        "the GPU is out of memory: CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity;"
        " lower train.batch_size=4, raise train.grad_accumulation_steps=1, or set train.activation_checkpointing=true"
    )
    assert tries.read_text() == "x"
    assert trainer.fit(job, lambda _: None).step == 12  # as if nothing had been


@pytest.mark.nightly
def test_a_worker_killed_in_the_last_save_leaves_the_run_that_nothing_disturbed(
    dataset: DatasetVersion, undisturbed: Path, tmp_path: Path, ray: None
) -> None:
    killed: list[int] = []

    def kill_at_last_point(fresh: list[dict[str, float]]) -> None:  # it is written just before the save
        if not killed and fresh and fresh[-1]["step"] == 12:
            killed.extend(kill_training_worker())

    trainer.fit(make_job(short_training(), dataset, tmp_path / "run"), kill_at_last_point)
    assert_same_run(tmp_path / "run", undisturbed)


def test_a_worker_lost_after_the_last_save_has_failed_nothing(
    dataset: DatasetVersion, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(job: TrainJob, failure: list[BaseException]) -> None:
        run_steps(job)
        failure.append(ConnectionError("the worker is gone"))

    monkeypatch.setattr(cluster, "connect", lambda: None)
    monkeypatch.setattr(trainer, "_fit_in_thread", work)
    assert trainer.fit(make_job(short_training(), dataset, tmp_path / "run"), lambda _: None).step == 12
    assert_same_run(tmp_path / "run", undisturbed)


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
from tests.tasks.training.test_fit import long_training

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


@pytest.mark.nightly  # commands that train on Ray are stopped by signals in `test_signals.py`
def test_a_process_that_trains_saves_and_stops_at_signals(
    dataset: DatasetVersion, long_undisturbed: Path, tmp_path: Path
) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM)
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
