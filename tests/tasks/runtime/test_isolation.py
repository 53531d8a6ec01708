"""Isolated work: what a crash, a hang or a hunger for memory does, and that nothing else suffers."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.runtime.isolation import Death, Host, WorkError, WorkLimits, find_culprits

BEHAVE = "tests.tasks.runtime.hostile_work:behave"
SHORT = WorkLimits(seconds=1.0, memory_bytes=512 * 2**20)
LONG = WorkLimits(seconds=600.0, memory_bytes=512 * 2**20)  # where another verdict is waited for


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    host = Host()
    yield host
    host.close()


def test_work_is_done_and_what_it_prints_is_no_answer(host: Host) -> None:
    assert host.run(BEHAVE, b"print it") == b"PRINT IT"
    large = bytes(3_000_000)
    assert host.run(BEHAVE, large) == large


@pytest.mark.slow
@pytest.mark.parametrize(
    ("payload", "reason", "said"),
    [
        (b"crash", "crashed", "signal 11 (SIGSEGV)"),
        (b"abort", "crashed", "signal 6 (SIGABRT)"),
        (b"exit", "crashed", "exit status 3"),
        (b"hang", "timed_out", "1 s of CPU time"),
        (b"sleep", "timed_out", "1 s of waiting without CPU time"),
        (b"memory", "out_of_memory", "512 MiB"),
    ],
)
def test_a_death_is_told_and_the_next_work_is_done(host: Host, payload: bytes, reason: str, said: str) -> None:
    death = host.run(BEHAVE, payload, SHORT if reason == "timed_out" else LONG)
    assert isinstance(death, Death)
    assert death.reason == reason
    assert said in death.detail
    assert host.run(BEHAVE, b"next") == b"NEXT"


@pytest.mark.slow
def test_waiting_for_a_core_is_not_counted(host: Host) -> None:
    """A child that is stopped for longer than its limit, as on a machine that has no core for it, is not late."""
    stopped: list[int] = []

    def stop_child() -> None:
        while not stopped:
            children = Path(f"/proc/{host._process.pid}/task/{host._process.pid}/children")  # type: ignore[union-attr]
            stopped.extend(map(int, children.read_text().split()))
        os.kill(stopped[0], signal.SIGSTOP)
        time.sleep(2.5 * SHORT.seconds)  # the clock is what is tried here
        os.kill(stopped[0], signal.SIGCONT)

    assert host.run(BEHAVE, b"a") == b"A"
    thread = threading.Thread(target=stop_child)
    thread.start()
    answer = host.run(BEHAVE, b"work a little", SHORT)
    thread.join()
    assert answer == b"WORK A LITTLE"


def test_an_exception_is_no_death(host: Host) -> None:
    with pytest.raises(WorkError, match="ValueError: as asked"):
        host.run(BEHAVE, b"raise")
    with pytest.raises(WorkError, match="ModuleNotFoundError"):
        host.run("no.such:function", b"")


def test_a_killed_host_is_a_death_and_another_starts() -> None:
    host = Host()
    assert host.run(BEHAVE, b"a") == b"A"
    assert host._process is not None
    host._process.kill()
    host._process.wait()
    assert host.run(BEHAVE, b"b") == b"B"
    host.close()


@pytest.mark.parametrize("bad", [set(), {0}, {99}, {3, 4}, {0, 50, 99}, set(range(8))])
def test_halving_finds_every_culprit(bad: set[int]) -> None:
    n_attempts = 0

    def attempt(items: range) -> Death | None:
        nonlocal n_attempts
        n_attempts += 1
        return Death("crashed", "") if bad & set(items) else None

    assert {item for item, _ in find_culprits(range(100), attempt)} == bad  # type: ignore[arg-type]
    assert n_attempts <= 1 + 16 * len(bad)
