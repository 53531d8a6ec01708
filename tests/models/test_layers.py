"""Relative attention against the formula written as loops, its cache, and the small functions around it."""

import math

import pytest
import torch
from torch import Tensor

from models.layers import (
    CPU_QUERY_BLOCK,
    CachePlan,
    FeedForward,
    KVCache,
    LayerCache,
    RelativeAttention,
    causal_bias,
    positions_after_padding,
    sinusoids,
    skew,
)

NOTHING_HIDDEN = torch.zeros(1, 1, dtype=torch.bool)


def build_attention(max_relative_distance: int, d_model: int = 12, n_heads: int = 3) -> RelativeAttention:
    torch.manual_seed(0)
    attention = RelativeAttention(d_model, n_heads, max_relative_distance).double()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.5)  # biases and table too, so that a forgotten one shows
    return attention


def attend_by_loops(attention: RelativeAttention, x_TD: Tensor) -> Tensor:
    """The formula of the paper, one pair of positions at a time."""
    M, K = attention.max_relative_distance, attention.d_head
    T, D = x_TD.shape
    q_TD, k_TD, v_TD = attention.to_qkv(x_TD).split(D, dim=-1)
    rows = []
    for i in range(T):
        heads = []
        for h in range(attention.n_heads):
            head = slice(h * K, (h + 1) * K)
            logits = [
                (q_TD[i, head] @ k_TD[j, head] + q_TD[i, head] @ attention.relative_MD[M - 1 - min(i - j, M - 1), head])
                / math.sqrt(K)
                for j in range(i + 1)
            ]
            heads.append(torch.stack(logits).softmax(0) @ v_TD[: i + 1, head])
        rows.append(torch.cat(heads))
    return attention.to_out(torch.stack(rows))


def bias_for(T: int) -> Tensor:
    return causal_bias(NOTHING_HIDDEN.expand(1, T), torch.float64)


@pytest.mark.parametrize(
    ("T", "max_relative_distance"),
    [(1, 1), (7, 1), (7, 3), (7, 6), (7, 7), (7, 8), (7, 50), (CPU_QUERY_BLOCK, 5), (CPU_QUERY_BLOCK + 3, 200)],
)
def test_attention_is_the_formula(T: int, max_relative_distance: int) -> None:
    attention = build_attention(max_relative_distance)
    x_BTD = torch.randn(2, T, 12, dtype=torch.float64)
    expected_BTD = torch.stack([attend_by_loops(attention, x_TD) for x_TD in x_BTD])
    torch.testing.assert_close(attention(x_BTD, bias_for(T)), expected_BTD)


def test_gradients_are_those_of_the_formula() -> None:
    attention = build_attention(max_relative_distance=20)
    x_BTD = torch.randn(1, CPU_QUERY_BLOCK + 9, 12, dtype=torch.float64)
    weight_TD = torch.randn(x_BTD.shape[1:], dtype=torch.float64)
    expected = torch.autograd.grad(
        (attend_by_loops(attention, x_BTD[0]) * weight_TD).sum(), list(attention.parameters())
    )
    found = torch.autograd.grad(
        (attention(x_BTD, bias_for(x_BTD.shape[1])) * weight_TD).sum(), list(attention.parameters())
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("max_relative_distance", [1, 4, 100])
def test_ragged_steps_with_a_cache_are_the_formula(max_relative_distance: int) -> None:
    attention = build_attention(max_relative_distance)
    B, T, n_new = 3, 11, 4
    x_BTD = torch.randn(B, T, 12, dtype=torch.float64)
    lengths = [2, 7, 0]
    stale_BHJK = torch.full((B, 3, T, 4), 99.0, dtype=torch.float64)
    cache = LayerCache(stale_BHJK.transpose(-1, -2).contiguous(), stale_BHJK, None)
    for row, length in enumerate(lengths):
        if length:
            own = LayerCache(cache.keys_BHKJ[row : row + 1], cache.values_BHJK[row : row + 1], None)
            attention(x_BTD[row : row + 1, :length], bias_for(length), own)
    cache.plan = CachePlan.of(torch.tensor(lengths), n_new, max_relative_distance, torch.float64)
    new_BTD = torch.stack([x_BTD[row, length : length + n_new] for row, length in enumerate(lengths)])
    y_BTD = attention(new_BTD, cache.plan.bias_B1TJ, cache)
    for row, length in enumerate(lengths):
        expected_TD = attend_by_loops(attention, x_BTD[row, : length + n_new])[length:]
        torch.testing.assert_close(y_BTD[row], expected_TD)


def test_skew_picks_the_distance_and_copies_nothing() -> None:
    T, J = 3, 5  # the last 3 of 5 positions
    distances_BHTR = torch.arange(J, -1, -1.0).expand(1, 1, T, J + 1).contiguous()
    skewed_BHTJ = skew(distances_BHTR)
    for i in range(T):
        for j in range(J - T + i + 1):
            assert skewed_BHTJ[0, 0, i, j] == (J - T + i) - j
    assert skewed_BHTJ.untyped_storage().data_ptr() == distances_BHTR.untyped_storage().data_ptr()


def test_causal_bias_hides_padding_from_all_but_itself() -> None:
    assert causal_bias(NOTHING_HIDDEN.expand(4, 3), torch.float32).shape == (1, 1, 3, 3)
    seen_TJ = causal_bias(torch.tensor([[True, False, True, False]]), torch.float32)[0, 0] == 0
    assert seen_TJ.int().tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 0, 1]]


def test_positions_start_behind_the_padding() -> None:
    hidden_BT = torch.tensor([[True, True, False, True, False], [False, False, False, True, True]])
    assert positions_after_padding(hidden_BT).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 4]]


@pytest.mark.parametrize("d_model", [6, 7])
def test_sinusoids_are_the_formula(d_model: int) -> None:
    found_TD = sinusoids(torch.tensor([[0, 1, 20000]]), d_model, torch.float64)[0]
    for row, position in enumerate((0, 1, 20000)):
        for column in range(d_model):
            angle = position / 10000 ** (column // 2 * 2 / d_model)
            expected = math.cos(angle) if column % 2 else math.sin(angle)
            assert found_TD[row, column] == pytest.approx(expected, abs=1e-9)


def test_a_cache_row_can_be_viewed_and_copied() -> None:
    cache = KVCache.empty((2, 3, 1, 5, 4), like=torch.zeros(1, dtype=torch.float64))
    assert (cache.batch_size, cache.max_length, cache.keys_LBHKJ.dtype) == (3, 5, torch.float64)
    row = cache.rows(1, 2)
    row.keys_LBHKJ += 1.0
    row.length_B += 2
    assert cache.length_B.tolist() == [0, 2, 0]
    cache.copy_row(1, 2)
    assert cache.length_B.tolist() == [0, 2, 2]
    assert cache.keys_LBHKJ[:, 2, ..., :2].eq(1).all()
    assert cache.keys_LBHKJ[:, 0].eq(0).all()


def test_feed_forward_clips_below_zero() -> None:
    layer = FeedForward(2, 2)
    for linear in (layer.to_hidden, layer.to_out):
        torch.nn.init.eye_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
    assert layer(torch.tensor([[-3.0, 2.0]])).tolist() == [[0.0, 2.0]]
