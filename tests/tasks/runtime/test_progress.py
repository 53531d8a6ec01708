"""Progress: what its lines say, that no stage is silent, and that neither start-up nor earlier work is in the rate."""

import logging
import queue
import re
import time
from collections.abc import Iterator

import pytest
from prefect.artifacts import ProgressArtifact

from tasks.runtime import prefect_tasks, progress
from tasks.runtime.progress import Progress

HANG_SECONDS = 60


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator["queue.Queue[str]"]:
    """What is said, a hundred times as often as to people."""
    said: queue.Queue[str] = queue.Queue()

    class ToQueue(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.put(record.getMessage())

    handler, level = ToQueue(), progress.logger.level
    progress.logger.addHandler(handler)
    progress.logger.setLevel(logging.INFO)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.05)
    yield said
    progress.logger.removeHandler(handler)
    progress.logger.setLevel(level)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still unless a test moves it."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def await_line(lines: "queue.Queue[str]", pattern: str) -> str:
    while True:
        line = lines.get(timeout=HANG_SECONDS)
        if re.search(pattern, line):
            return line


def test_a_stage_that_counts_nothing_is_not_silent(lines: "queue.Queue[str]") -> None:
    with Progress("starting Ray"):
        first = await_line(lines, "starting Ray")
        assert re.fullmatch(r"starting Ray: \d+ s so far", first)
        await_line(lines, "so far")
    await_line(lines, r"^starting Ray: done in \d+\.\d s$")


def test_the_silence_of_the_imports_counts(lines: "queue.Queue[str]", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 1000.0)
    monkeypatch.setattr(progress.psutil.Process, "create_time", lambda _: time.time() - 2000)
    monkeypatch.setattr(progress._voice, "has_spoken", False)
    with Progress("rebuild"):
        progress.count_from_process_start()
        assert re.fullmatch(r"rebuild: \d+ s so far", await_line(lines, "rebuild"))


def test_the_innermost_stage_speaks_and_the_outer_one_between_them(lines: "queue.Queue[str]") -> None:
    with Progress("rebuild") as whole:
        whole.note = "starting Prefect"
        await_line(lines, r"^rebuild: \d+ s so far, starting Prefect$")
        with Progress("parsing", 7, "files"):
            await_line(lines, r"^parsing: 0 of 7 files, \d+ s so far$")
            progress.note("waiting for node a")
            await_line(lines, "waiting for node a")
        await_line(lines, r"^rebuild: \d+ s so far, after parsing$")


def test_the_thread_ends_with_the_outermost_stage(lines: "queue.Queue[str]") -> None:
    with Progress("a"), Progress("b"):
        await_line(lines, "b")
    assert progress._voice._all_closed.is_set()
    assert progress._voice.stages == []
    with Progress("c"):
        await_line(lines, "c")


def test_a_failed_stage_is_closed_and_claims_nothing(lines: "queue.Queue[str]") -> None:
    def fail() -> None:
        with Progress("d", 2, "files") as stage:
            stage.advance()
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert progress._voice.stages == []
    assert [line for line in lines.queue if " in " in line] == []


def test_rate_and_time_left_leave_the_start_up_out(clock: list[float]) -> None:
    stage = Progress("composing", 100, "tokens")
    clock[0] += 60  # of starting
    stage.advance(10)
    assert stage.standing().startswith("composing: 10 of 100 tokens, 0.17 tokens/s")  # nothing better is known
    clock[0] += 10
    stage.advance(20)
    assert stage.standing() == "composing: 30 of 100 tokens, 2.00 tokens/s, 35 s left"


def test_a_start_up_of_known_end_leaves_no_unit_out(clock: list[float]) -> None:
    stage = Progress("parsing", 100, "files")
    clock[0] += 60
    stage.begin()
    clock[0] += 10
    stage.advance(20)
    assert stage.standing() == "parsing: 20 of 100 files, 2.00 files/s, 40 s left"


def test_units_that_come_at_once_after_the_start_up_are_no_rate(clock: list[float]) -> None:
    """Two workers that started together end their first shards together."""
    stage = Progress("encoding", 120, "pieces")
    clock[0] += 10
    stage.advance(10)
    clock[0] += 0.1
    stage.advance(10)
    assert stage.standing() == "encoding: 20 of 120 pieces, 1.98 pieces/s"
    clock[0] += 9.9
    stage.advance(10)
    assert stage.standing() == "encoding: 30 of 120 pieces, 2.00 pieces/s, 45 s left"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        ((41.0, 2.5), "training: 36 steps in 43.5 s (0.83 steps/s)"),
        ((40.0, 3.5), "training: 36 steps in 43.5 s (10 steps/s after a start-up of 40.0 s)"),
        ((0.1, 20.0), "training: 36 steps in 20.1 s (1.79 steps/s)"),
    ],
)
def test_the_last_rate_is_the_count_over_the_time_or_says_what_it_leaves_out(
    lines: "queue.Queue[str]", clock: list[float], seconds: tuple[float, float], said: str
) -> None:
    with Progress("training", 36, "steps") as stage:
        clock[0] += seconds[0]
        stage.advance(1)
        clock[0] += seconds[1]
        stage.advance(35)
    assert await_line(lines, "training: 36") == said


def test_one_unit_is_singular(lines: "queue.Queue[str]", clock: list[float]) -> None:
    with Progress("parsing", 1, "files") as stage:
        clock[0] += 2
        stage.advance(1)
    assert await_line(lines, "parsing: 1 ") == "parsing: 1 file in 2.0 s (0.50 files/s)"


def test_after_a_resume_only_this_session_is_in_the_rate(clock: list[float]) -> None:
    shares: list[float] = []
    stage = Progress("training", 120, "steps", shares.append, done=41)
    clock[0] += 30
    assert stage.standing() == "training: 41 of 120 steps, 30 s so far"
    stage.advance(1, "loss 3.200")
    clock[0] += 20
    stage.advance(10)
    assert stage.standing() == "training: 52 of 120 steps, 0.50 steps/s, 136 s left, loss 3.200"
    assert shares == [42 / 120, 52 / 120]


def test_a_stage_that_stands_still_says_since_when(clock: list[float]) -> None:
    stage = Progress("scanning", 0, "files")
    stage.advance(5)
    clock[0] += 40
    assert stage.standing() == "scanning: 5 files, 0.12 files/s, the last of them 40 s ago"


@pytest.mark.parametrize("label", ["scanning", "continuing pieces", "Größe  9"])
def test_prefect_takes_the_key_of_a_stage_whatever_its_label_is(label: str) -> None:
    assert ProgressArtifact(key=prefect_tasks.artifact_key("progress", label), progress=0.0).key
