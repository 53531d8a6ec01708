"""Losses on hidden states against their formulas written as loops."""

import math

import pytest
import torch
from torch import Tensor, nn

from models.hourglass.losses import HiddenLevel, HiddenLossKind, hidden_levels, hidden_loss


def cosine(a: Tensor, b: Tensor) -> float:
    return float((a @ b / a.norm() / b.norm()).detach())


def build_states() -> tuple[list[Tensor], Tensor]:
    """Two states of 4 rows, of 2 and 6 vectors; the rows have 6, 3, 5 and 0 tokens."""
    torch.manual_seed(3)
    states = [torch.randn(4, 2, 6).double().requires_grad_(), torch.randn(4, 6, 6).double().requires_grad_()]
    return states, torch.tensor([6, 3, 5, 0])


def lengths_of(n_tokens: int) -> list[int]:
    return [math.ceil(n / n_tokens) for n in (6, 3, 5, 0)]


def test_cosine_loss_is_the_formula() -> None:
    states, n_real_B = build_states()
    levels = hidden_levels((3,), with_upsampled=True)
    expected = []
    for state_BTD, level in zip(states, levels, strict=True):
        pairs = [
            cosine(row_TD[t], row_TD[t + 1])
            for row_TD, length in zip(state_BTD, lengths_of(level.n_tokens), strict=True)
            for t in range(length - 1)
            if t // 3 == (t + 1) // 3
        ]
        expected.append(sum(pairs) / len(pairs))
    loss = hidden_loss("cosine", states, levels, n_real_B)
    assert loss.item() == pytest.approx(sum(expected) / 2, abs=1e-12)
    check_gradients(loss, states, levels)


def test_exp_cosine_loss_is_the_formula() -> None:
    states, n_real_B = build_states()
    levels = hidden_levels((3,), with_upsampled=True)
    expected = []
    for state_BTD, level in zip(states, levels, strict=True):
        lengths = lengths_of(level.n_tokens)
        terms = [
            math.exp(-cosine(state_BTD[row, i], state_BTD[row, j]))
            for row, length in enumerate(lengths)
            for i in range(length)
            for j in range(length)
            if i != j
        ]
        expected.append(sum(terms) / 3)  # the fourth row has no token
    loss = hidden_loss("exp_cosine", states, levels, n_real_B)
    assert loss.item() == pytest.approx(sum(expected) / 2, abs=1e-12)
    check_gradients(loss, states, levels)


def check_gradients(loss: Tensor, states: list[Tensor], levels: list[HiddenLevel]) -> None:
    for grad_BTD, level in zip(torch.autograd.grad(loss, states), levels, strict=True):
        for row_TD, length in zip(grad_BTD, lengths_of(level.n_tokens), strict=True):
            assert length < 2 or row_TD[:length].abs().amax(dim=-1).min() > 0
            assert row_TD[length:].abs().sum() == 0


def loss_of(kind: HiddenLossKind, x_BTD: Tensor, lengths: list[int]) -> float:
    return float(hidden_loss(kind, [x_BTD], [HiddenLevel(1, 2)], torch.tensor(lengths)))


def test_pairs_are_disjoint_where_two_make_a_group() -> None:
    x_BTD = torch.randn(4, 2 * 3, 6)
    expected = nn.functional.cosine_similarity(x_BTD[:, ::2], x_BTD[:, 1::2], dim=-1).mean()
    assert loss_of("cosine", x_BTD, [6] * 4) == pytest.approx(float(expected))


def test_equal_vectors_have_the_largest_loss() -> None:
    equal_BTD = torch.ones(2, 4, 3)
    assert loss_of("cosine", equal_BTD, [4, 4]) == pytest.approx(1.0)
    assert loss_of("exp_cosine", equal_BTD, [4, 4]) == pytest.approx(4 * 3 * math.exp(-1))
    assert loss_of("cosine", equal_BTD, [1, 0]) == loss_of("exp_cosine", equal_BTD, [1, 0]) == 0.0


def test_levels_go_inwards_and_out_again() -> None:
    assert hidden_levels((2, 4), with_upsampled=True) == [(2, 2), (8, 4), (2, 4), (1, 2)]
    assert hidden_levels((2, 4), with_upsampled=False) == [(2, 2), (8, 4)]
