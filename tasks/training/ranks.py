"""Values summed over all workers of a training run, and requests that they agree on."""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed


def sum_over_ranks(values: np.ndarray, world_size: int) -> np.ndarray:
    """Return the sums of what all workers give; every one of them has to ask."""
    if world_size == 1:
        return values
    tensor = torch.from_numpy(values).to("cuda" if torch.distributed.get_backend() == "nccl" else "cpu")
    torch.distributed.all_reduce(tensor)
    return tensor.cpu().numpy()


class Asked(NamedTuple):
    """What is to be done after a step: save and end the run, or save and go on."""

    stop: bool = False
    save: bool = False


class Requests:
    """Asks whether a run is to stop or to save, at steps that all workers agree on: about once a second.

    So few steps wait for another worker, and none for a look at a file of a shared disk. One worker alone asks for a
    stop after each step.

    Args:
        is_requested: whether to stop; asked on rank 0.

    Attributes:
        is_preempted: whether a node is about to be taken away, the same on all ranks; asked on all of them. A run saves
            at the first such notice.
    """

    SECONDS = 1.0
    MOST_STEPS = 100

    def __init__(self, is_requested: Callable[[], bool], rank: int, world_size: int) -> None:
        self.is_requested, self.rank, self.world_size = is_requested, rank, world_size
        self.is_preempted: Callable[[], bool] | None = None
        self.last_step, self.next_step, self.last_time = 0, 0, time.monotonic()

    def ask(self, step: int) -> Asked:
        """Return what to do after a step; all workers have to ask after the same steps."""
        stop = self.world_size == 1 and self.is_requested()
        if step < self.next_step:
            return Asked(stop)
        # Rank 0 says for all when they ask next: their clocks differ.
        now = time.monotonic()
        pace = (now - self.last_time) / max(step - self.last_step, 1)
        n_steps = float(min(max(int(self.SECONDS / max(pace, 1e-9)), 1), self.MOST_STEPS))
        if self.world_size > 1:
            said = np.array([float(self.is_requested()), n_steps] if self.rank == 0 else [0.0, 0.0])
            requested, n_steps = sum_over_ranks(said, self.world_size).tolist()
            stop = bool(requested)
        self.last_step, self.next_step, self.last_time = step, step + int(n_steps), now
        if self.is_preempted is None or not self.is_preempted():
            return Asked(stop)
        self.is_preempted = None  # one save: the node is taken away, and the others begin from there
        return Asked(stop, save=True)
