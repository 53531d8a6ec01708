"""Dropout with random numbers that are cheap on a CPU. Shape letters: see layers.py."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.compiling import uncompiled


@uncompiled  # a draw of bits, seen as bytes; compiled it would be another stream of random numbers
def keep_mask(like: Tensor, dropout: float) -> Tensor:
    """Return a tensor of zeros, with probability `dropout` each, and ones; shape, dtype and device are those of `like`.

    On a CPU one draw of 64 bits decides eight entries: 8 times as fast as `bernoulli_`, which otherwise takes more than
    half of a training step with dropout on the weights of attention. Eight bits tell 256 levels apart; the level
    between two of which `dropout` lies is one or the other at random, so that the probability of an entry is exact.
    """
    if like.device.type != "cpu":
        return torch.empty_like(like).bernoulli_(1 - dropout)
    bits = torch.empty(-(-like.numel() // 8), dtype=torch.int64).random_(-(2**63), None).view(torch.int8)
    level = min(int(dropout * 256 + float(torch.rand(()))), 255)
    mask = torch.empty(like.shape, dtype=like.dtype)
    return torch.ge(bits[: like.numel()].view(like.shape), level - 128, out=mask)


class Dropout(nn.Module):
    """In training, set a random share of the entries to 0 and divide the others by the share that is kept."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` with entries set to 0 by chance and the others scaled; unchanged outside training."""
        if not self.training or not self.dropout:
            return x
        if x.device.type != "cpu":
            return functional.dropout(x, self.dropout)
        # Not in bfloat16, which would round the factor.
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        return (exact * keep_mask(exact, self.dropout).mul_(1 / (1 - self.dropout))).to(x.dtype)
