"""The number of CPU threads for a step of sampling.

A step is a chain of small products. With few rows, waking other threads for each of them can take longer than they
save, all the more where other programs use the cores; with many rows or a large model it cannot. Which holds is not
known beforehand, so it is tried: ids do not depend on it (precision.py).
"""

import statistics
from collections.abc import Iterator
from contextlib import contextmanager

import torch

STEPS_OF_A_TRIAL = 5  # for each number of threads; the median counts
STEPS_BETWEEN_TRIALS = 250  # rows grow longer and fewer, and other programs come and go


class ThreadCount:
    """The number of threads that was fastest lately: half of them and twice as many are tried now and then.

    Args:
        most: 1 or more; it is begun with.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.best = most
        self.seconds: dict[int, list[float]] = {}  # of the trial under way
        self.to_try: list[int] = []
        self.n_rests = 0
        self._start_trial()

    def use(self) -> int:
        """Set torch's number of threads for the next step, and return it."""
        count = self.to_try[-1] if self.to_try else self.best
        if self.most > 1 and count != torch.get_num_threads():
            torch.set_num_threads(count)
        return count

    def observe(self, seconds: float) -> None:
        """Take in how long that step took."""
        if self.to_try:
            self.seconds.setdefault(self.to_try.pop(), []).append(seconds)
            if not self.to_try:
                self._end_trial()
        elif self.most > 1:
            self.n_rests -= 1
            if self.n_rests <= 0:
                self._start_trial()

    def _start_trial(self) -> None:
        counts = {max(self.best // 2, 1), self.best, min(2 * self.best, self.most)}
        self.seconds = {}
        self.to_try = sorted(counts) * STEPS_OF_A_TRIAL if len(counts) > 1 else []

    def _end_trial(self) -> None:
        before = self.best
        self.best = min(self.seconds, key=lambda count: statistics.median(self.seconds[count]))
        self.n_rests = STEPS_BETWEEN_TRIALS
        if self.best != before:
            self._start_trial()


@contextmanager
def tuned_threads(device: torch.device) -> Iterator[ThreadCount]:
    """Yield a count for steps on `device`; at the end torch has as many threads as before.

    Meanwhile oneDNN is off: the plan that it makes for each call of an activation takes several times as long as the
    call, and no step has what needs it, products in half precision or convolutions. Both are settings of the whole
    process, so only one of its threads may sample at a time, or oneDNN may stay off.
    """
    n_threads, has_onednn = torch.get_num_threads(), torch.backends.mkldnn.enabled
    try:
        if not torch.is_autocast_enabled("cpu"):
            torch.backends.mkldnn.enabled = False
        yield ThreadCount(n_threads if device.type == "cpu" else 1)
    finally:
        torch.backends.mkldnn.enabled = has_onednn
        torch.set_num_threads(n_threads)
