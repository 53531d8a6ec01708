"""Losses that push the hidden states of an hourglass apart. Shape letters: see layers.py.

T and J count vectors of a hidden state's own scale, of which those that represent padding alone are left out.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

HiddenLossKind = Literal["none", "cosine", "exp_cosine"]


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
    kind: HiddenLossKind,
    hidden: list[Tensor],
    levels: list[HiddenLevel],
    n_real_B: Tensor,
    counts: Sequence[float] | None = None,
) -> Tensor:
    """Return the mean of the loss over the hidden states.

    Args:
        kind: the cross entropy alone ("none": 0), the mean of `cosine_sum` over the pairs, or of `exp_cosine_sum` over
            the rows that are not padding alone.
        hidden: one state of shape (B, T, D) for each of `levels`.
        n_real_B: tokens of each row, padding left out.
        counts: what the sum of each state is divided by; None: `hidden_counts` of these rows. For a part of a batch
            those of the whole batch, so that the losses of the parts add up to the loss of the batch.
    """
    total = torch.zeros((), device=n_real_B.device)
    if kind == "none" or not hidden:
        return total
    counts = hidden_counts(kind, levels, n_real_B) if counts is None else counts
    for state_BTD, level, count in zip(hidden, levels, counts, strict=True):
        x_BTD = state_BTD.to(torch.promote_types(state_BTD.dtype, torch.float32))
        real_BT = torch.arange(x_BTD.shape[1], device=x_BTD.device) < _n_vectors(level, n_real_B)[:, None]
        loss = cosine_sum(x_BTD, real_BT, level.factor) if kind == "cosine" else exp_cosine_sum(x_BTD, real_BT)
        total = total + loss / (count or 1)
    return total / len(hidden)


def hidden_counts(kind: HiddenLossKind, levels: list[HiddenLevel], n_real_B: Tensor) -> list[int]:
    """Return for each level what makes a mean of the sum of its loss: pairs of neighbours, or rows for "exp_cosine".

    Args:
        n_real_B: tokens of each row, padding left out.
    """
    if kind == "exp_cosine":
        return [int((n_real_B > 0).sum())] * len(levels)
    counts = []
    for level in levels:
        n_vectors_B = _n_vectors(level, n_real_B)
        # Every group of n neighbours has n - 1 pairs, the last one perhaps fewer.
        n_groups_B = (n_vectors_B + level.factor - 1) // level.factor
        counts.append(int((n_vectors_B - n_groups_B).sum()))
    return counts


def _n_vectors(level: HiddenLevel, n_real_B: Tensor) -> Tensor:
    return (n_real_B + level.n_tokens - 1) // level.n_tokens


def cosine_sum(x_BTD: Tensor, real_BT: Tensor, group_size: int) -> Tensor:
    """Return the cosines of neighbours within groups of `group_size`: pairs (0, 1), (2, 3), ... for 2; summed.

    A pair counts where both of its members do.
    """
    cosine_BT = functional.cosine_similarity(x_BTD[:, :-1], x_BTD[:, 1:], dim=-1)
    same_group_T = (torch.arange(real_BT.shape[1] - 1, device=real_BT.device) + 1) % group_size != 0
    return (cosine_BT * (real_BT[:, :-1] & real_BT[:, 1:] & same_group_T)).sum()


def exp_cosine_sum(x_BTD: Tensor, real_BT: Tensor) -> Tensor:
    """Return exp(-cos(x_i, x_j)) summed over all ordered pairs i != j of each row, and over the rows.

    As published: the sum of a row grows with the square of its length, so a weight (1e-6 for 256 vectors) belongs to a
    length.
    """
    unit_BTD = functional.normalize(x_BTD, dim=-1)
    cosine_BTJ = unit_BTD @ unit_BTD.transpose(1, 2)
    itself_TJ = torch.eye(x_BTD.shape[1], dtype=torch.bool, device=x_BTD.device)
    counts_BTJ = real_BT[:, :, None] & real_BT[:, None, :] & ~itself_TJ
    return ((-cosine_BTJ).exp() * counts_BTJ).sum()
