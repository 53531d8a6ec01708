"""Values summed over all workers of a training run."""

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


def any_rank(flag: bool, world_size: int) -> bool:
    """Return whether `flag` is set on any worker; every worker has to call this."""
    return bool(sum_over_ranks(np.array([float(flag)]), world_size)[0])
