"""Signals to all processes of a command, at several moments: work is kept, exit 130 in time, nothing runs on."""

import json
import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tasks.storage.home import Home
from tests.flows.marked import HANG_SECONDS, Marked
from tests.samples import small_corpus, small_dataset

IN_TIME = 30.0  # promised; the command ends itself after 25 s
TRAIN = [
    "train", "--set", "train.n_steps=100000", "--set", "train.checkpoint_interval=50000",
    "--set", "train.log_interval=1",
    "--set", "train.batch_size=2", "--set", "train.seq_len=64", "--set", "train.validation_windows=2",
    "--set", "train.model.d_model=32", "--set", "train.model.n_layers=1", "--set", "train.model.d_ff=32",
    "--set", "train.eval_interval=50000",
]  # fmt: skip


class Command(Marked):
    """A command with one core, a Ray and a Prefect server of its own."""

    def __init__(self, home: Path, folder: Path, *arguments: str) -> None:
        super().__init__(home, folder, list(arguments), {"ORCHESTRION_CPUS": "1"})

    def wait_for_process(self, part: str) -> None:
        self.wait_until(lambda: any(part in line for _, line in self.processes()))

    def end(self) -> float:
        """Wait for the end and return the seconds it took."""
        started = time.monotonic()
        self.process.wait(HANG_SECONDS)
        return time.monotonic() - started

    def see_good_end(self, seconds: float) -> None:
        """See that it said so in one line, in time, left nothing running, and closed its runs in MLflow."""
        assert self.process.returncode == 130, self.errors[-3000:]
        assert len(self.complaints) == 1, self.errors
        assert "Traceback" not in self.errors
        assert seconds < IN_TIME
        hung = self.home / "logs" / "hung.txt"
        assert not hung.exists(), hung.read_text()  # it was not ended by force
        deadline = time.monotonic() + HANG_SECONDS
        while left := self.processes():  # killed, a process still takes its time to go
            assert time.monotonic() < deadline, left
            time.sleep(0.05)
        assert "RUNNING" not in statuses(self.home)


def statuses(home: Path) -> list[str]:
    database = home / "mlflow" / "mlflow.db"
    if not database.exists():
        return []
    with sqlite3.connect(database) as connection:
        try:
            return [row[0] for row in connection.execute("select status from runs")]
        except sqlite3.OperationalError:  # no tables yet
            return []


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A home with a dataset, and its source."""
    folder = tmp_path_factory.mktemp("signals")
    source = small_corpus(folder / "midi", 12)
    small_dataset(Home.at(folder / "home"), source)
    return folder / "home", source


Begin = Callable[..., Command]


@pytest.fixture
def begin(prepared: tuple[Path, Path], tmp_path: Path) -> Iterator[Begin]:
    commands: list[Command] = []

    def start(*arguments: str) -> Command:
        commands.append(Command(prepared[0], tmp_path, *arguments))
        return commands[-1]

    yield start
    for command in commands:
        for pid, _ in command.processes():
            os.kill(pid, signal.SIGKILL)
        command.process.wait()


def runs_of(home: Path) -> list[Path]:
    return [path.parent for path in (home / "runs").glob("*/metrics.jsonl") if path.stat().st_size]


@pytest.mark.slow
@pytest.mark.parametrize(
    "to_all",
    [
        pytest.param(False, marks=pytest.mark.nightly, id="group"),
        pytest.param(True, id="service"),
    ],
)
def test_signals_in_training_save(begin: Begin, prepared: tuple[Path, Path], to_all: bool) -> None:
    """As timeout(1) and a batch system send them: to the process and to its group.

    And as systemd sends them: to Ray's and Prefect's servers and to the workers too, then SIGHUP, as it can be told to.
    """
    before, ended = set(runs_of(prepared[0])), statuses(prepared[0])
    command = begin(*TRAIN, "--set", f"train.seed={1 + to_all}")
    command.wait_until(lambda: set(runs_of(prepared[0])) - before)
    if to_all:
        for number in (signal.SIGTERM, signal.SIGHUP):
            for pid, _ in command.processes():
                os.kill(pid, number)
    else:
        os.kill(command.process.pid, signal.SIGTERM)
        os.killpg(command.process.pid, signal.SIGTERM)
    command.see_good_end(command.end())
    (run,) = set(runs_of(prepared[0])) - before
    n_steps = len((run / "metrics.jsonl").read_text().splitlines())
    last = json.loads((run / "checkpoints" / "last.json").read_text())
    state = json.loads((run / "checkpoints" / last["checkpoint"] / "state.json").read_text())
    assert state["step"] == n_steps > 0
    assert sorted(statuses(prepared[0])) == sorted([*ended, "KILLED"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("gcs_server", signal.SIGTERM),
        pytest.param("ray::RayTrainWorker", signal.SIGHUP, marks=pytest.mark.nightly),
    ],
)
def test_a_signal_to_the_group_before_the_first_step_waits_for_nothing(
    begin: Begin, prepared: tuple[Path, Path], moment: str, number: int
) -> None:
    before = set(prepared[0].glob("runs/*/checkpoints/*"))
    command = begin(*TRAIN, "--set", "train.seed=3")
    command.wait_for_process(moment)
    os.killpg(command.process.pid, number)
    command.see_good_end(command.end())
    assert set(prepared[0].glob("runs/*/checkpoints/*")) == before
    assert not list(prepared[0].glob("runs/*/begun"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "number"),
    [
        pytest.param("gcs_server", signal.SIGTERM, marks=pytest.mark.nightly),
        ("ray::train_trial", signal.SIGHUP),
    ],
)
def test_a_signal_to_the_group_before_the_first_step_of_a_sweep_waits_for_nothing(
    begin: Begin, prepared: tuple[Path, Path], moment: str, number: int
) -> None:
    before = set(prepared[0].glob("runs/*/checkpoints/*"))
    command = begin("sweep", "--grid", f"train.seed={number}1,{number}2", *TRAIN[1:])
    command.wait_for_process(moment)
    os.killpg(command.process.pid, number)
    command.see_good_end(command.end())
    assert set(prepared[0].glob("runs/*/checkpoints/*")) == before
    assert not list(prepared[0].glob("runs/*/begun"))
    (results,) = prepared[0].glob("sweeps/*/results.json")
    assert {row["status"] for row in json.loads(results.read_text())["rows"]} <= {"waiting", "interrupted"}
    shutil.rmtree(results.parent)


@pytest.mark.slow
def test_a_signal_to_the_group_in_a_rebuild_ends_in_time(begin: Begin, prepared: tuple[Path, Path]) -> None:
    command = begin("rebuild", "--source", str(prepared[1]), "--name", "again")
    command.wait_for_process("tasks.runtime.isolation")
    os.killpg(command.process.pid, signal.SIGHUP)
    command.see_good_end(command.end())
