"""Attention in blocks against the formula written as loops: values, gradients, dropout, bfloat16, pieces of a batch."""

import math

import pytest
import torch
from torch import Tensor

from models import block_attention
from models.block_attention import CPU_QUERY_BLOCK, attend_in_blocks, skew, unskew

Inputs = tuple[Tensor, Tensor, Tensor, Tensor | None]


def random_inputs(B: int, H: int, T: int, table: str, K: int = 4, dtype: torch.dtype = torch.float64) -> Inputs:
    torch.manual_seed(0)
    q_BHTK, k_BHTK, v_BHTK = (torch.randn(B, H, T, K, dtype=dtype, requires_grad=True) for _ in range(3))
    shapes = {"per_head": (H, T, K), "shared": (T, K)}
    drawn = torch.randn(shapes[table], dtype=dtype, requires_grad=True) if table in shapes else None
    return q_BHTK, k_BHTK, v_BHTK, drawn


def attend_by_loops(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, table: Tensor | None) -> Tensor:
    B, H, T, _ = q_BHTK.shape
    rows = []
    for b in range(B):
        for h in range(H):
            vectors_RK = table[h] if table is not None and table.ndim == 3 else table
            for i in range(T):
                logits = [q_BHTK[b, h, i] @ k_BHTK[b, h, j] for j in range(i + 1)]
                if vectors_RK is not None:
                    logits = [logit + q_BHTK[b, h, i] @ vectors_RK[T - 1 - (i - j)] for j, logit in enumerate(logits)]
                rows.append(torch.stack(logits).softmax(0) @ v_BHTK[b, h, : i + 1])
    return torch.stack(rows).view(q_BHTK.shape)


@pytest.mark.slow
@pytest.mark.parametrize("table", ["none", "per_head", "shared"])
@pytest.mark.parametrize(("B", "T"), [(1, 1), (2, 7), (1, CPU_QUERY_BLOCK), (1, CPU_QUERY_BLOCK + 3)])
def test_values_and_gradients_are_those_of_the_formula(table: str, B: int, T: int) -> None:
    inputs = random_inputs(B, 2, T, table)
    leaves = [x for x in inputs if x is not None]
    weight_BHTK = torch.randn(B, 2, T, 4, dtype=torch.float64)
    expected_BHTK, found_BHTK = attend_by_loops(*inputs), attend_in_blocks(*inputs)
    torch.testing.assert_close(found_BHTK, expected_BHTK)
    expected = torch.autograd.grad((expected_BHTK * weight_BHTK).sum(), leaves)
    torch.testing.assert_close(torch.autograd.grad((found_BHTK * weight_BHTK).sum(), leaves), expected)


@pytest.mark.parametrize("table", ["none", "per_head", "shared"])
def test_a_batch_may_go_in_parts(table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = random_inputs(5, 3, 9, table)
    leaves = [x for x in inputs if x is not None]
    hidden_BT = torch.rand(5, 9) < 0.3
    blocked = torch.ones(9, 9, dtype=torch.bool).triu(1) | (hidden_BT[:, None, None, :] & ~torch.eye(9).bool())
    bias_B1TJ = torch.zeros(5, 1, 9, 9).masked_fill(blocked, -math.inf)
    for bias in (None, bias_B1TJ, bias_B1TJ[:1]):
        monkeypatch.setattr(block_attention, "CPU_SCORES_AT_ONCE", 2**21)
        at_once_BHTK = attend_in_blocks(*inputs, bias)
        monkeypatch.setattr(block_attention, "CPU_SCORES_AT_ONCE", 2 * 3 * 9 * 9)
        parts_BHTK = attend_in_blocks(*inputs, bias)
        torch.testing.assert_close(parts_BHTK, at_once_BHTK)
        torch.testing.assert_close(
            torch.autograd.grad(parts_BHTK.square().sum(), leaves),
            torch.autograd.grad(at_once_BHTK.square().sum(), leaves),
        )


@pytest.mark.parametrize("table", ["none", "per_head", "shared"])
def test_gradients_with_dropout_are_the_slopes(table: str) -> None:
    inputs = [x for x in random_inputs(1, 2, CPU_QUERY_BLOCK + 2, table, K=2) if x is not None]
    weight_BHTK = torch.randn_like(inputs[0])

    def loss(*given: Tensor) -> Tensor:
        torch.manual_seed(3)  # the same entries are dropped each time
        q_BHTK, k_BHTK, v_BHTK, *tables = given
        y_BHTK = attend_in_blocks(q_BHTK, k_BHTK, v_BHTK, tables[0] if tables else None, dropout=0.3)
        return (y_BHTK * weight_BHTK).sum()

    slopes = torch.autograd.grad(loss(*inputs), inputs)
    for i, slope in enumerate(slopes):
        direction, step = torch.randn_like(inputs[i]), 1e-5
        moved = [[x + sign * step * direction if j == i else x for j, x in enumerate(inputs)] for sign in (1, -1)]
        rise = (loss(*moved[0]) - loss(*moved[1])) / (2 * step)
        torch.testing.assert_close((slope * direction).sum(), rise, rtol=1e-6, atol=1e-8)


@torch.no_grad()
def test_dropout_leaves_the_mean_as_it_is() -> None:
    q_BHTK, k_BHTK, v_BHTK, table = random_inputs(1, 2, 6, "shared", dtype=torch.float32)
    expected_BHTK = attend_in_blocks(q_BHTK, k_BHTK, v_BHTK, table)
    many = [x.detach().expand(20_000, -1, -1, -1) for x in (q_BHTK, k_BHTK, v_BHTK)]
    found_BHTK = attend_in_blocks(*many, table, dropout=0.1)
    torch.testing.assert_close(found_BHTK.mean(dim=0, keepdim=True), expected_BHTK, atol=0.02, rtol=0)
    # The first query sees one key: its value is dropped or is divided by the share that is kept.
    first_BK = found_BHTK[:, 0, 0]
    kept_B = first_BK.abs().amax(dim=1) > 0
    assert 0.87 < kept_B.float().mean() < 0.93
    torch.testing.assert_close(first_BK[kept_B][:1] * 0.9, v_BHTK[:, 0, 0], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("table", ["none", "per_head", "shared"])
def test_bfloat16_is_near(table: str) -> None:
    exact = random_inputs(2, 2, 300, table, K=8, dtype=torch.float32)
    rough = [None if x is None else x.detach().bfloat16().requires_grad_() for x in exact]
    exact_BHTK, rough_BHTK = attend_in_blocks(*exact), attend_in_blocks(*rough)  # type: ignore[arg-type]
    assert rough_BHTK.dtype == torch.bfloat16
    torch.testing.assert_close(rough_BHTK.float(), exact_BHTK, atol=0.1, rtol=0)
    leaves = [x for x in exact if x is not None]
    expected = torch.autograd.grad(exact_BHTK.square().sum(), leaves)
    found = torch.autograd.grad(rough_BHTK.square().sum(), [x for x in rough if x is not None])
    for gradient, rough_gradient in zip(expected, found, strict=True):
        assert rough_gradient.dtype == torch.bfloat16
        assert (rough_gradient.float() - gradient).norm() < 0.03 * gradient.norm()


def test_skew_picks_the_distance_and_copies_nothing() -> None:
    T, J = 3, 5  # the last 3 of 5 positions
    distances_HBTJ = torch.arange(J - 1, -1, -1.0).expand(2, 1, T, J).contiguous()
    skewed_HBTJ = skew(distances_HBTJ)
    for i in range(T):
        for j in range(J - T + i + 1):
            assert skewed_HBTJ[1, 0, i, j] == (J - T + i) - j
    assert skewed_HBTJ.untyped_storage().data_ptr() == distances_HBTJ.untyped_storage().data_ptr()


@pytest.mark.parametrize(("T", "J"), [(1, 1), (1, 4), (3, 3), (3, 5)])
def test_unskew_undoes_skew(T: int, J: int) -> None:
    scores_HBTJ = torch.randn(2, 3, T, J).tril(J - T)
    relative_HBTJ = unskew(scores_HBTJ)
    assert torch.equal(skew(relative_HBTJ).tril(J - T), scores_HBTJ)
    torch.testing.assert_close(relative_HBTJ.sum((-1, -2)), scores_HBTJ.sum((-1, -2)))  # nothing else is in it
