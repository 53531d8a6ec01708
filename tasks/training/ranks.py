"""Values summed over all workers of a training run, and requests that they agree on."""

import time
from collections.abc import Callable

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


class Requests:
    """Asks whether a run is to stop, at steps that all workers agree on: about once a second.

    So few steps wait for another worker, and none for a look at a file of a shared disk. One worker alone asks after
    each step.

    Args:
        is_requested: asked on rank 0.
    """

    SECONDS = 1.0
    MOST_STEPS = 100

    def __init__(self, is_requested: Callable[[], bool], rank: int, world_size: int) -> None:
        self.is_requested, self.rank, self.world_size = is_requested, rank, world_size
        self.last_step, self.next_step, self.last_time = 0, 0, time.monotonic()

    def ask(self, step: int) -> bool:
        """Return whether to stop after a step; all workers have to ask after the same steps."""
        if self.world_size == 1:
            return self.is_requested()
        if step < self.next_step:
            return False
        # Rank 0 says for all when they ask next: their clocks differ.
        now = time.monotonic()
        pace = (now - self.last_time) / max(step - self.last_step, 1)
        n_steps = min(max(int(self.SECONDS / max(pace, 1e-9)), 1), self.MOST_STEPS)
        said = np.array([float(self.is_requested()), n_steps] if self.rank == 0 else [0.0, 0.0])
        is_requested, n_steps = sum_over_ranks(said, self.world_size).tolist()
        self.last_step, self.next_step, self.last_time = step, step + int(n_steps), now
        return bool(is_requested)
