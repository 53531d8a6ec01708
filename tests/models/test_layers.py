"""Relative attention against the formula written as loops, its cache, and the small functions around it."""

import math

import pytest
import torch
from torch import Tensor

from models.block_attention import CPU_QUERY_BLOCK
from models.layers import (
    CachePlan,
    FeedForward,
    KVCache,
    LayerCache,
    RelativeAttention,
    SelfAttention,
    causal_bias,
    padding_before_token,
    positions_after_padding,
    rotate,
    rotation,
    sinusoids,
)

NOTHING_HIDDEN = torch.zeros(1, 1, dtype=torch.bool)


def build_attention(max_relative_distance: int, shared: bool = False) -> RelativeAttention:
    torch.manual_seed(0)
    attention = RelativeAttention(12, 3, max_relative_distance, shared=shared).double()
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
            columns = slice(None) if attention.shared else head
            logits = [
                q_TD[i, head] @ (k_TD[j, head] + attention.relative_MD[M - 1 - min(i - j, M - 1), columns])
                for j in range(i + 1)
            ]
            heads.append((torch.stack(logits) / math.sqrt(K)).softmax(0) @ v_TD[: i + 1, head])
        rows.append(torch.cat(heads))
    return attention.to_out(torch.stack(rows))


def bias_for(T: int) -> Tensor:
    return causal_bias(NOTHING_HIDDEN.expand(1, T), torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    ("T", "max_relative_distance"),
    [(1, 1), (7, 1), (7, 3), (7, 6), (7, 7), (7, 8), (7, 50), (CPU_QUERY_BLOCK, 5), (CPU_QUERY_BLOCK + 3, 200)],
)
def test_attention_is_the_formula(T: int, max_relative_distance: int, shared: bool) -> None:
    attention = build_attention(max_relative_distance, shared)
    x_BTD = torch.randn(2, T, 12, dtype=torch.float64)
    expected_BTD = torch.stack([attend_by_loops(attention, x_TD) for x_TD in x_BTD])
    torch.testing.assert_close(attention(x_BTD, bias_for(T)), expected_BTD)
    torch.testing.assert_close(attention(x_BTD), expected_BTD)


@pytest.mark.parametrize("shared", [False, True])
@torch.no_grad()
def test_a_long_piece_in_float32_is_the_formula(shared: bool) -> None:
    T, M, K = 1024, 1000, 64
    torch.manual_seed(0)
    attention = RelativeAttention(2 * K, 2, M, shared=shared)
    x_BTD = torch.randn(1, T, 2 * K)
    attention.to_out = torch.nn.Linear(2 * K, 2 * K, bias=False)
    torch.nn.init.eye_(attention.to_out.weight)
    found_TD = attention(x_BTD)[0]
    q_THK, k_THK, v_THK = attention.to_qkv(x_BTD)[0].unflatten(-1, (3, 2, K)).double().unbind(1)
    table_MHK = attention.relative_MD.double().view(M, -1, K).expand(-1, 2, -1)
    for i in range(T):  # one query at a time, each key's vector looked up by its distance
        distance_J = (i - torch.arange(i + 1)).clamp_max(M - 1)
        for h in range(2):
            logits_J = (k_THK[: i + 1, h] + table_MHK[M - 1 - distance_J, h]) @ q_THK[i, h] / math.sqrt(K)
            expected_K = logits_J.softmax(0) @ v_THK[: i + 1, h]
            assert (found_TD[i, h * K : (h + 1) * K] - expected_K).abs().max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("shared", [False, True])
def test_gradients_are_those_of_the_formula(shared: bool) -> None:
    attention = build_attention(20, shared)
    x_BTD = torch.randn(1, CPU_QUERY_BLOCK + 9, 12, dtype=torch.float64)
    weight_TD = torch.randn(x_BTD.shape[1:], dtype=torch.float64)
    parameters = list(attention.parameters())
    expected = torch.autograd.grad((attend_by_loops(attention, x_BTD[0]) * weight_TD).sum(), parameters)
    found = torch.autograd.grad((attention(x_BTD) * weight_TD).sum(), parameters)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("max_relative_distance", [1, 4, 100])
@pytest.mark.parametrize(
    ("lengths", "n_new", "goes_row_by_row"), [([2, 7, 0], 4, False), ([2, 7, 0], 1, True), ([6, 7, 5], 1, False)]
)
def test_ragged_steps_with_a_cache_are_the_formula(
    lengths: list[int], n_new: int, goes_row_by_row: bool, max_relative_distance: int, shared: bool
) -> None:
    attention = build_attention(max_relative_distance, shared)
    B, T = 3, 11
    x_BTD = torch.randn(B, T, 12, dtype=torch.float64)
    stale_BHJK = torch.full((B, 3, T, 4), 99.0, dtype=torch.float64)
    cache = LayerCache(stale_BHJK.transpose(-1, -2).contiguous(), stale_BHJK, None)
    for row, length in enumerate(lengths):
        if length:
            own = LayerCache(cache.keys_BHKJ[row : row + 1], cache.values_BHJK[row : row + 1], None)
            attention(x_BTD[row : row + 1, :length], bias_for(length), own)
    cache.plan = CachePlan.of(torch.tensor(lengths), n_new, max_relative_distance, torch.float64)
    assert (cache.plan.row_keys is not None) == goes_row_by_row
    new_BTD = torch.stack([x_BTD[row, length : length + n_new] for row, length in enumerate(lengths)])
    y_BTD = attention(new_BTD, cache.plan.bias_B1TJ, cache)
    for row, length in enumerate(lengths):
        expected_TD = attend_by_loops(attention, x_BTD[row, : length + n_new])[length:]
        torch.testing.assert_close(y_BTD[row], expected_TD)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_attention_without_a_table_is_that_of_pytorch(dropout: float) -> None:
    torch.manual_seed(0)
    ours = SelfAttention(12, 3, dropout=dropout).eval()
    theirs = torch.nn.MultiheadAttention(12, 3, batch_first=True)
    theirs.in_proj_weight, theirs.in_proj_bias = ours.to_qkv.weight, ours.to_qkv.bias
    theirs.out_proj.load_state_dict(ours.to_out.state_dict())
    x_BTD = torch.randn(2, 9, 12)
    later_TJ = torch.ones(9, 9, dtype=torch.bool).triu(1)
    expected_BTD = theirs(x_BTD, x_BTD, x_BTD, attn_mask=later_TJ, need_weights=False)[0]
    torch.testing.assert_close(ours(x_BTD), expected_BTD)
    bias_B1TJ = causal_bias(NOTHING_HIDDEN.expand(1, 9), torch.float32)
    torch.testing.assert_close(ours(x_BTD, bias_B1TJ), expected_BTD)
    if dropout:
        assert not torch.allclose(ours.train()(x_BTD), expected_BTD)


def test_normalised_queries_and_keys_have_no_scale() -> None:
    torch.manual_seed(0)
    attention = SelfAttention(12, 3, bias=False, qk_norm=True)
    x_BTD = torch.randn(2, 9, 12)
    expected_BTD = attention(x_BTD)
    with torch.no_grad():
        attention.to_qkv.weight[:24] *= 50.0  # those of queries and keys
    torch.testing.assert_close(attention(x_BTD), expected_BTD, atol=1e-3, rtol=1e-3)
    with torch.no_grad():
        attention.q_norm.weight *= 3.0
    assert not torch.allclose(attention(x_BTD), expected_BTD, atol=1e-3)


def test_rotation_is_a_complex_product() -> None:
    position_BT = torch.tensor([[0, 1, 5, 4000]])
    x_BHTK = torch.randn(1, 2, 4, 6, dtype=torch.float64)
    found_BHTK = rotate(x_BHTK, rotation(position_BT, 6, torch.float64))
    for column in range(3):
        angle_T = position_BT[0].double() / 10000 ** (2 * column / 6)
        turned = torch.complex(x_BHTK[..., column], x_BHTK[..., column + 3]) * torch.polar(
            torch.ones(4).double(), angle_T
        )
        torch.testing.assert_close(found_BHTK[..., column], turned.real)
        torch.testing.assert_close(found_BHTK[..., column + 3], turned.imag)


def test_the_product_of_rotated_vectors_depends_on_their_distance() -> None:
    q_BHTK, k_BHTK = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64).unbind()
    products = []
    for i, j in ((7, 3), (1007, 1003)):
        q_turned = rotate(q_BHTK, rotation(torch.tensor([[i]]), 8, torch.float64))
        k_turned = rotate(k_BHTK, rotation(torch.tensor([[j]]), 8, torch.float64))
        products.append((q_turned * k_turned).sum())
    torch.testing.assert_close(products[0], products[1])
    assert not torch.isclose(products[0], (q_BHTK * k_BHTK).sum())


def test_causal_bias_hides_padding_from_all_but_itself() -> None:
    assert causal_bias(NOTHING_HIDDEN.expand(4, 3), torch.float32).shape == (1, 1, 3, 3)
    seen_TJ = causal_bias(torch.tensor([[True, False, True, False]]), torch.float32)[0, 0] == 0
    assert seen_TJ.int().tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 0, 1]]


@pytest.mark.parametrize(
    ("hidden", "expected"),
    [([0, 0, 0], False), ([0, 1, 1], False), ([1, 1, 1], False), ([1, 0, 0], True), ([0, 1, 0], True), ([1], False)],
)
def test_padding_before_a_token_is_seen(hidden: list[int], expected: bool) -> None:
    hidden_BT = torch.tensor([[0] * len(hidden), hidden], dtype=torch.bool)
    assert padding_before_token(hidden_BT) is expected


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
    assert (cache.batch_size, cache.max_length, cache.keys_LBHJK.dtype) == (3, 5, torch.float64)
    row = cache.rows(1, 2)
    row.keys_LBHJK += 1.0
    row.length_B += 2
    assert cache.length_B.tolist() == [0, 2, 0]
    cache.copy_row(1, 2)
    assert cache.length_B.tolist() == [0, 2, 2]
    assert cache.keys_LBHJK[:, 2, :, :2].eq(1).all()
    assert cache.keys_LBHJK[:, 0].eq(0).all()


def test_feed_forward_clips_below_zero() -> None:
    layer = FeedForward(2, 2)
    for linear in (layer.to_hidden, layer.to_out):
        torch.nn.init.eye_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
    assert layer(torch.tensor([[-3.0, 2.0]])).tolist() == [[0.0, 2.0]]


@pytest.mark.parametrize(("activation", "expected"), [("relu", 2.0), ("gelu", 1.9545), ("silu", 1.7616)])
def test_feed_forward_applies_its_activation(activation: str, expected: float) -> None:
    layer = FeedForward(1, 1, activation=activation, bias=False)
    torch.nn.init.ones_(layer.to_hidden.weight)
    torch.nn.init.ones_(layer.to_out.weight)
    assert layer(torch.tensor([[2.0]])).item() == pytest.approx(expected, abs=1e-4)


def test_a_gated_feed_forward_multiplies_two_maps() -> None:
    layer = FeedForward(2, 3, activation="silu", gated=True)
    x_BTD = torch.randn(4, 5, 2)
    gate, value = layer.to_hidden.weight.split(3)
    gate_bias, value_bias = layer.to_hidden.bias.split(3)
    hidden = torch.nn.functional.silu(x_BTD @ gate.T + gate_bias) * (x_BTD @ value.T + value_bias)
    torch.testing.assert_close(layer(x_BTD), layer.to_out(hidden))
