"""What is waited for is said after a while of silence, and taken back with the first sign of life."""

import threading

import pytest

from tasks.runtime import progress, silence
from tasks.runtime.progress import Progress
from tasks.runtime.silence import Silence

HANG_SECONDS = 60


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(silence.time, "monotonic", lambda: now[0])
    return now


def test_it_is_said_after_a_while_and_taken_back(clock: list[float]) -> None:
    with Progress("parsing", 5, "files") as stage:
        watch = Silence(lambda: "waiting for 3 pieces of work on 1 nodes; gone: 10.0.0.7")
        clock[0] += silence.SECONDS - 1
        watch.look()
        assert watch._asking is None
        clock[0] += 1
        watch.look()
        assert watch._asking
        watch._asking.join(HANG_SECONDS)
        assert stage.standing().endswith("so far, waiting for 3 pieces of work on 1 nodes; gone: 10.0.0.7")
        watch.heard()
        assert stage.note == ""


def test_a_cluster_that_does_not_answer_is_said_to_be_silent(clock: list[float]) -> None:
    answer = threading.Event()

    def describe() -> str:
        answer.wait(HANG_SECONDS)
        return "late"

    with Progress("parsing", 5, "files") as stage:
        watch = Silence(describe)
        for _ in range(2):
            clock[0] += silence.SECONDS
            watch.look()
        assert stage.note == "waiting for the cluster, whose head does not answer"
        watch.heard()
        answer.set()
        assert watch._asking
        watch._asking.join(HANG_SECONDS)
        assert stage.note == ""  # what it says late is no longer true


def test_nothing_is_said_where_no_stage_is_open() -> None:
    progress.note("nowhere")
    assert progress._voice.stages == []
