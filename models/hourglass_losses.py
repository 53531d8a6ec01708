"""Losses that push the hidden states of an hourglass apart. Shape letters: see layers.py.

T and J count vectors of a hidden state's own scale, of which those that stand for padding alone are left out.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class HiddenLevel(NamedTuple):
    """Where one hidden state comes from: tokens for each of its vectors, and the factor of its level."""

    n_tokens: int
    factor: int


def hidden_levels(factors: tuple[int, ...], with_upsampled: bool) -> list[HiddenLevel]:
    """Return the levels of the states that an `Hourglass` returns, in their order."""
    down, up, n_tokens = [], [], 1
    for factor in factors:
        up.append(HiddenLevel(n_tokens, factor))
        n_tokens *= factor
        down.append(HiddenLevel(n_tokens, factor))
    return down + up[::-1] if with_upsampled else down


def hidden_loss(
    kind: Literal["none", "cosine", "exp_cosine"], hidden: list[Tensor], levels: list[HiddenLevel], n_real_B: Tensor
) -> Tensor:
    """Return the mean of the loss over the hidden states.

    Args:
        kind: the cross entropy alone ("none": 0), `cosine_loss` or `exp_cosine_loss`.
        hidden: one state of shape (B, T, D) for each of `levels`.
        n_real_B: tokens of each row, padding left out.
    """
    total = torch.zeros((), device=n_real_B.device)
    if kind == "none" or not hidden:
        return total
    for state_BTD, level in zip(hidden, levels, strict=True):
        x_BTD = state_BTD.to(torch.promote_types(state_BTD.dtype, torch.float32))
        n_vectors_B = (n_real_B + level.n_tokens - 1) // level.n_tokens
        real_BT = torch.arange(x_BTD.shape[1], device=x_BTD.device) < n_vectors_B[:, None]
        loss = cosine_loss(x_BTD, real_BT, level.factor) if kind == "cosine" else exp_cosine_loss(x_BTD, real_BT)
        total = total + loss
    return total / len(hidden)


def cosine_loss(x_BTD: Tensor, real_BT: Tensor, group_size: int) -> Tensor:
    """Return the mean cosine of neighbours within groups of `group_size`: pairs (0, 1), (2, 3), ... for 2.

    The mean is over all pairs of the batch whose members both count; 0 where there are none.
    """
    cosine_BT = functional.cosine_similarity(x_BTD[:, :-1], x_BTD[:, 1:], dim=-1)
    same_group_T = (torch.arange(cosine_BT.shape[1], device=x_BTD.device) + 1) % group_size != 0
    counts_BT = real_BT[:, :-1] & real_BT[:, 1:] & same_group_T
    return (cosine_BT * counts_BT).sum() / counts_BT.sum().clamp_min(1)


def exp_cosine_loss(x_BTD: Tensor, real_BT: Tensor) -> Tensor:
    """Return the sum of exp(-cos(x_i, x_j)) over all ordered pairs i != j of a row, as a mean over the rows.

    A sum, as published: it grows with the square of the length, so a weight (1e-6 for 256 vectors) goes with a length.
    Rows of padding alone do not count.
    """
    unit_BTD = functional.normalize(x_BTD, dim=-1)
    cosine_BTJ = unit_BTD @ unit_BTD.transpose(1, 2)
    itself_TJ = torch.eye(x_BTD.shape[1], dtype=torch.bool, device=x_BTD.device)
    counts_BTJ = real_BT[:, :, None] & real_BT[:, None, :] & ~itself_TJ
    return ((-cosine_BTJ).exp() * counts_BTJ).sum() / real_BT.any(dim=1).sum().clamp_min(1)
