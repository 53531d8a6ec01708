"""What errors of others say in one line, and what lies inside of those that Ray Train raises."""

import pytest

from tasks.errors import CheckpointError, cause_of, words_of

TRACEBACK = "\x1b[36mray::work()\x1b[39m\nTraceback (most recent call last):\n  File x\nValueError: 3 is not above 4\n"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("one\ntwo"), "one"),
        (RuntimeError("Training failed due to controller error:\nno node has 8 cores"),
         "Training failed due to controller error: no node has 8 cores"),
        (RuntimeError(TRACEBACK), "ValueError: 3 is not above 4"),
        (MemoryError(), "out of memory"),
        (KeyError(), "KeyError"),
    ],
)  # fmt: skip
def test_an_error_is_one_line(error: Exception, said: str) -> None:
    assert words_of(error) == said


def test_the_cause_of_a_failed_worker_group_is_found_ours_first() -> None:
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError
    from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

    full, damaged = OSError(28, "No space left on device"), CheckpointError("damaged")
    failures = {0: UserExceptionWithTraceback(full, TRACEBACK), 1: UserExceptionWithTraceback(damaged, TRACEBACK)}
    assert cause_of(WorkerGroupError("two failed", failures)) is damaged
    assert cause_of(WorkerGroupError("one failed", {0: failures[0]})) is full
    unhealthy = WorkerHealthCheckFailedError("unhealthy", RuntimeError("its process died"))
    assert words_of(cause_of(ControllerError(WorkerGroupError("gone", {0: unhealthy})))) == "its process died"
    assert words_of(cause_of(ControllerError(RuntimeError(TRACEBACK)))) == "ValueError: 3 is not above 4"
    assert cause_of(full) is full
