"""Work on Ray: results in order, errors as what they were, lost workers replaced or reported, nothing left behind."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tasks.errors import BadScore, CheckpointError, ConfigError
from tasks.runtime import cluster
from tasks.runtime.cluster import lost_worker_errors, n_cpus, run_over
from tests.conftest import REPOSITORY

# Functions for Ray are made inside of functions here: those travel by value, so a worker need not find this file.


def test_the_number_of_cores_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORCHESTRION_CPUS", raising=False)
    assert n_cpus() == len(os.sched_getaffinity(0))
    monkeypatch.setenv("ORCHESTRION_CPUS", "5")
    assert n_cpus() == 5


def test_an_error_of_ours_is_no_lost_worker() -> None:
    for kind in (BadScore, CheckpointError, ConfigError, OSError):
        assert not issubclass(kind, lost_worker_errors())


def noting(path: Path, then: Callable[[int], int]) -> Callable[[int], int]:
    """Return a function that appends a line to `path` each time it runs, then does `then`."""

    def function(chunk: int) -> int:
        with path.open("a") as handle:
            handle.write(f"{chunk}\n")
        return then(chunk)

    return function


def same() -> Callable[[int], int]:
    return lambda chunk: chunk


def lines_of(path: Path) -> list[str]:
    return path.read_text().split()


@pytest.mark.slow
def test_results_come_in_the_order_of_the_chunks(ray: None) -> None:
    def slower_first(chunk: int) -> int:
        time.sleep(0.2 if chunk % 3 == 0 else 0)
        return chunk * chunk

    arrived: list[int] = []
    assert run_over(slower_first, range(12), arrived.append) == [n * n for n in range(12)]
    assert sorted(arrived) == [n * n for n in range(12)]


@pytest.mark.slow
def test_no_chunks_give_no_results(ray: None) -> None:
    assert run_over(same(), []) == []


@pytest.mark.slow
def test_chunks_are_handed_out_as_they_are_needed(ray: None) -> None:
    drawn: list[int] = []
    drawn_at_result: list[int] = []

    def chunks() -> Iterator[int]:
        for chunk in range(40):
            drawn.append(chunk)
            yield chunk

    run_over(same(), chunks(), lambda _: drawn_at_result.append(len(drawn)), max_in_flight=2)
    limit = max(2, cluster.n_cpus())
    assert [n for index, n in enumerate(drawn_at_result) if n > index + limit] == []


@pytest.mark.slow
def test_an_error_comes_back_as_what_it_was(ray: None) -> None:
    def fail(chunk: int) -> int:
        if chunk == 2:
            raise BadScore("no_notes", "a.mid holds no note")
        return chunk

    with pytest.raises(BadScore) as error:
        run_over(fail, range(4))
    assert type(error.value) is BadScore
    assert (error.value.reason, error.value.detail) == ("no_notes", "a.mid holds no note")
    assert str(error.value) == "no_notes: a.mid holds no note"


@pytest.mark.slow
def test_what_is_wrong_is_tried_once_and_nothing_works_on_behind_its_back(ray: None, tmp_path: Path) -> None:
    tried, finished = tmp_path / "tried", tmp_path / "finished"

    def fail_or_dawdle(chunk: int) -> int:
        if chunk == 0:
            raise CheckpointError("damaged")
        for _ in range(40):
            time.sleep(0.05)
        with finished.open("a") as handle:
            handle.write(f"{chunk}\n")
        return chunk

    with pytest.raises(CheckpointError, match="damaged"):
        run_over(noting(tried, fail_or_dawdle), range(6))
    assert lines_of(tried).count("0") == 1
    n_tried = len(lines_of(tried))
    time.sleep(2.5)
    assert len(lines_of(tried)) == n_tried < 6
    assert not finished.exists()


@pytest.mark.slow
def test_faults_of_storage_are_tried_again(ray: None, tmp_path: Path) -> None:
    tried = tmp_path / "tried"

    def heal(chunk: int) -> int:
        if len(lines_of(tried)) < 3:
            raise OSError(5, "Input/output error")
        return chunk

    assert run_over(noting(tried, heal), [7]) == [7]
    assert len(lines_of(tried)) == 3

    def never_heal(chunk: int) -> int:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left") as error:
        run_over(noting(tried, never_heal), [8])
    assert error.value.errno == 28
    assert lines_of(tried).count("8") == 3


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced_or_in_the_end_reported(ray: None, tmp_path: Path) -> None:
    once, always = tmp_path / "once", tmp_path / "always"

    def die_once(chunk: int) -> int:
        if len(lines_of(once)) == 1:
            os._exit(1)
        return chunk + 1

    assert run_over(noting(once, die_once), [1]) == [2]
    assert len(lines_of(once)) == 2

    def die(chunk: int) -> int:
        os._exit(1)

    started = time.monotonic()
    with pytest.raises(lost_worker_errors()):
        run_over(noting(always, die), [1])
    assert len(lines_of(always)) == 3
    assert time.monotonic() - started < 60


CHILD = """
import os, signal, sys, time
from flows.services import environment
from tasks.storage.home import Home
environment.prepare(Home.at(sys.argv[1]))
from tasks.runtime import cluster
import ray

received = []
def handler(number, frame):
    received.append(number)
signal.signal(signal.SIGTERM, handler)
cluster.connect()
cluster.connect()
assert ray.is_initialized()
assert ray.cluster_resources()["CPU"] == 1
assert signal.getsignal(signal.SIGTERM) is handler
os.kill(os.getpid(), signal.SIGTERM)
deadline = time.monotonic() + 4  # Ray's own handler would abort the process after three seconds
while time.monotonic() < deadline:
    time.sleep(0.1)
assert received == [signal.SIGTERM]
cluster.disconnect()
cluster.disconnect()
assert not ray.is_initialized()
"""


@pytest.mark.slow
def test_ray_leaves_the_handler_of_a_termination_alone(tmp_path: Path) -> None:
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path)],
        cwd=REPOSITORY, env={**os.environ, "ORCHESTRION_CPUS": "1"},
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    assert "***" not in child.stderr
