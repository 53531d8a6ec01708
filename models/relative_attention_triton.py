"""Causal attention with relative positions as Triton kernels for CUDA. Shape letters: see layers.py.

Needs triton; import it only where it runs. Memory is linear in the length: the forward pass keeps the logarithm of each
query's sum of weights, and the backward pass computes the weights again.

Queries, keys and distances are cut into blocks of N. With query block i and key block j = i - m, the distance between
row r of one and row c of the other is `m * N + r - c`: distance block m where c <= r, and block m - 1 where c > r. In
both its place within the block is `(r - c) % N`. So the scores per distance become scores per key by one gather along
the rows, which also turns them back:

    by_distance[r, s] = (query @ block[m if s <= r else m - 1].T)[r, s]
    by_key[r, c] = by_distance[r, (r - c) % N]

Neighbouring key blocks share a distance block, whose product with the queries is therefore computed once. Each output
is written by one program, which adds in a fixed order: results are repeatable, and there are no atomic operations. For
the gradient of the table the slopes by distance of some queries at a time are written out and multiplied as a matrix.
Distances of `far` and more share the first row of the table, and key blocks that only have such need no others.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E = math.log2(math.e)
MAX_D_HEAD = 128
SMALLEST_PRODUCT = 16  # of `tl.dot`
SIZES = ("H", "T", "last", "far", "first", "seed")  # of which no value is worth code of its own
SLOPES_BYTES = 2**29  # of slopes by distance at once; they are all pairs of some queries and distances


@triton.jit
def load_rows(base, first, n_rows, stride, K: tl.constexpr, WIDTH: tl.constexpr, N: tl.constexpr):
    """Return rows `first` to `first + N` of a matrix of K columns, with zeros beyond its ends."""
    row = first + tl.arange(0, N)
    column = tl.arange(0, WIDTH)
    is_inside = (row[:, None] >= 0) & (row[:, None] < n_rows) & (column[None, :] < K)
    return tl.load(base + row[:, None] * stride + column[None, :], mask=is_inside, other=0.0)


@triton.jit
def store_rows(base, x, first, n_rows, stride, K: tl.constexpr, WIDTH: tl.constexpr, N: tl.constexpr):
    """Write rows `first` to `first + N` of a matrix of K columns, those beyond its end excluded."""
    row = first + tl.arange(0, N)
    column = tl.arange(0, WIDTH)
    is_inside = (row[:, None] < n_rows) & (column[None, :] < K)
    tl.store(base + row[:, None] * stride + column[None, :], x.to(base.dtype.element_ty), mask=is_inside)


@triton.jit
def load_distances(table, m, last, stride, K: tl.constexpr, WIDTH: tl.constexpr, N: tl.constexpr):
    """Return the vectors of distance block m; zeros for distances below 0."""
    row = last - (m * N + tl.arange(0, N))
    column = tl.arange(0, WIDTH)
    is_inside = (row[:, None] <= last) & (column[None, :] < K)
    return tl.load(table + tl.maximum(row, 0)[:, None] * stride + column[None, :], mask=is_inside, other=0.0)


@triton.jit
def head_of(base, b, h, stride_b, stride_h):
    """Return where the matrix of one row and head begins."""
    return base + b.to(tl.int64) * stride_b + h.to(tl.int64) * stride_h


@triton.jit
def are_kept(seed, i, j, T, dropout, N: tl.constexpr):
    """Return which weights of a pair of blocks dropout leaves; the same ones in all kernels."""
    place = (i * N + tl.arange(0, N))[:, None] * T + (j * N + tl.arange(0, N))[None, :]
    return tl.rand(seed + tl.program_id(1), place) >= dropout


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    q, k, v, table, y, lse,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, y_b, y_h, y_t, table_h, table_r,
    H, T, last, far, scale, dropout, seed,
    K: tl.constexpr, WIDTH: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr, DROPS: tl.constexpr,
):  # fmt: skip
    """One block of queries of one row and head; longest blocks first."""
    i = tl.num_programs(0) - 1 - tl.program_id(0)
    b, h = tl.program_id(1) // H, tl.program_id(1) % H
    q, k = head_of(q, b, h, q_b, q_h), head_of(k, b, h, k_b, k_h)
    v, y = head_of(v, b, h, v_b, v_h), head_of(y, b, h, y_b, y_h)
    table = table + h * table_h
    r, c = tl.arange(0, N)[:, None], tl.arange(0, N)[None, :]
    is_near_part, turned = c <= r, (r - c) & (N - 1)
    query = load_rows(q, i * N, T, q_t, K, WIDTH, N)
    highest = tl.full([N], -float("inf"), tl.float32)
    total = tl.zeros([N], tl.float32)
    acc = tl.zeros([N, WIDTH], tl.float32)
    n_far = tl.maximum(i + 1 - (far + N - 1 + N - 1) // N, 0)

    if n_far > 0:
        oldest = tl.load(table + tl.arange(0, WIDTH), mask=tl.arange(0, WIDTH) < K, other=0.0)
        added = tl.sum(query.to(tl.float32) * oldest[None, :].to(tl.float32), 1)[:, None]
        for j in range(0, n_far):
            key = load_rows(k, j * N, T, k_t, K, WIDTH, N)
            scores = (tl.dot(query, tl.trans(key), input_precision=PRECISION) + added) * scale
            risen = tl.maximum(highest, tl.max(scores, 1))
            weights = tl.exp2(scores - risen[:, None])
            shrink = tl.exp2(highest - risen)
            total = total * shrink + tl.sum(weights, 1)
            if DROPS:
                weights = tl.where(are_kept(seed, i, j, T, dropout, N), weights, 0.0)
            value = load_rows(v, j * N, T, v_t, K, WIDTH, N)
            acc = tl.dot(weights.to(value.dtype), value, acc * shrink[:, None], input_precision=PRECISION)
            highest = risen

    vectors = load_distances(table, i - n_far, last, table_r, K, WIDTH, N)
    upper = tl.dot(query, tl.trans(vectors), input_precision=PRECISION)
    for j in range(n_far, i + 1):
        key = load_rows(k, j * N, T, k_t, K, WIDTH, N)
        vectors = load_distances(table, i - j - 1, last, table_r, K, WIDTH, N)
        lower = tl.dot(query, tl.trans(vectors), input_precision=PRECISION)
        added = tl.gather(tl.where(is_near_part, upper, lower), turned, 1)
        upper = lower
        scores = (tl.dot(query, tl.trans(key), input_precision=PRECISION) + added) * scale
        scores = tl.where(is_near_part | (j < i), scores, -float("inf"))
        risen = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp2(scores - risen[:, None])
        shrink = tl.exp2(highest - risen)
        total = total * shrink + tl.sum(weights, 1)
        if DROPS:
            weights = tl.where(are_kept(seed, i, j, T, dropout, N), weights, 0.0)
        value = load_rows(v, j * N, T, v_t, K, WIDTH, N)
        acc = tl.dot(weights.to(value.dtype), value, acc * shrink[:, None], input_precision=PRECISION)
        highest = risen

    store_rows(y, acc / (total * (1 - dropout))[:, None], i * N, T, y_t, K, WIDTH, N)
    row = i * N + tl.arange(0, N)
    tl.store(lse + tl.program_id(1).to(tl.int64) * T + row, highest + tl.log2(total), mask=row < T)


@triton.jit(do_not_specialize=SIZES)
def query_kernel(
    q, k, v, table, y, grad_y, lse, grad_q, delta, far_sums, by_distances,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, y_b, y_h, y_t, g_b, g_h, g_t, d_b, d_h, d_t, table_h, table_r,
    s_b, s_h, s_t, H, T, last, far, scale, factor, dropout, seed, first,
    K: tl.constexpr, WIDTH: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr, DROPS: tl.constexpr,
):  # fmt: skip
    """Gradients of one block of queries, `first` or later.

    Also `delta`, and the slopes of the scores: by distance below `far`, and for each query the sum of the others.
    """
    place = tl.num_programs(0) - 1 - tl.program_id(0)
    i = first + place
    b, h = tl.program_id(1) // H, tl.program_id(1) % H
    q, k = head_of(q, b, h, q_b, q_h), head_of(k, b, h, k_b, k_h)
    v, y = head_of(v, b, h, v_b, v_h), head_of(y, b, h, y_b, y_h)
    grad_y, grad_q = head_of(grad_y, b, h, g_b, g_h), head_of(grad_q, b, h, d_b, d_h)
    by_distances = head_of(by_distances, b, h, s_b, s_h)
    table = table + h * table_h
    r, c = tl.arange(0, N)[:, None], tl.arange(0, N)[None, :]
    is_near_part, turned = c <= r, (r - c) & (N - 1)
    row = i * N + tl.arange(0, N)
    in_head = tl.program_id(1).to(tl.int64) * T + row
    query = load_rows(q, i * N, T, q_t, K, WIDTH, N)
    grad = load_rows(grad_y, i * N, T, g_t, K, WIDTH, N)
    result = load_rows(y, i * N, T, y_t, K, WIDTH, N)
    mean = tl.sum(grad.to(tl.float32) * result.to(tl.float32), 1)
    tl.store(delta + in_head, mean, mask=row < T)
    log_sum = tl.load(lse + in_head, mask=row < T, other=0.0)[:, None]
    acc = tl.zeros([N, WIDTH], tl.float32)
    far_sum = tl.zeros([N], tl.float32)
    n_far = tl.maximum(i + 1 - (far + N - 1 + N - 1) // N, 0)

    if n_far > 0:
        oldest = tl.load(table + tl.arange(0, WIDTH), mask=tl.arange(0, WIDTH) < K, other=0.0).to(tl.float32)
        added = tl.sum(query.to(tl.float32) * oldest[None, :], 1)[:, None]
        for j in range(0, n_far):
            key = load_rows(k, j * N, T, k_t, K, WIDTH, N)
            value = load_rows(v, j * N, T, v_t, K, WIDTH, N)
            scores = (tl.dot(query, tl.trans(key), input_precision=PRECISION) + added) * scale
            slopes = tl.dot(grad, tl.trans(value), input_precision=PRECISION)
            if DROPS:
                slopes = tl.where(are_kept(seed, i, j, T, dropout, N), slopes / (1 - dropout), 0.0)
            slopes = tl.exp2(scores - log_sum) * (slopes - mean[:, None])
            acc = tl.dot(slopes.to(key.dtype), key, acc, input_precision=PRECISION)
            far_sum += tl.sum(slopes, 1)
        acc += far_sum[:, None] * oldest[None, :]

    above = tl.zeros([N, N], tl.float32)  # by distance, of the key block before
    vectors = load_distances(table, i - n_far, last, table_r, K, WIDTH, N)
    upper = tl.dot(query, tl.trans(vectors), input_precision=PRECISION)
    for j in range(n_far, i + 1):
        key = load_rows(k, j * N, T, k_t, K, WIDTH, N)
        value = load_rows(v, j * N, T, v_t, K, WIDTH, N)
        vectors = load_distances(table, i - j - 1, last, table_r, K, WIDTH, N)
        lower = tl.dot(query, tl.trans(vectors), input_precision=PRECISION)
        added = tl.gather(tl.where(is_near_part, upper, lower), turned, 1)
        upper = lower
        scores = (tl.dot(query, tl.trans(key), input_precision=PRECISION) + added) * scale
        slopes = tl.dot(grad, tl.trans(value), input_precision=PRECISION)
        if DROPS:
            slopes = tl.where(are_kept(seed, i, j, T, dropout, N), slopes / (1 - dropout), 0.0)
        slopes = tl.where(is_near_part | (j < i), tl.exp2(scores - log_sum) * (slopes - mean[:, None]), 0.0)
        acc = tl.dot(slopes.to(key.dtype), key, acc, input_precision=PRECISION)
        far_sum += tl.sum(tl.where((i - j) * N + r - c >= far, slopes, 0.0), 1)
        by_distance = tl.gather(slopes, turned, 1)
        whole = tl.where(is_near_part, by_distance, above).to(query.dtype)
        above = by_distance
        vectors = load_distances(table, i - j, last, table_r, K, WIDTH, N)
        acc = tl.dot(whole, vectors, acc, input_precision=PRECISION)
        tl.store(by_distances + (place * N + r) * s_t + (i - j) * N + c, whole)

    store_rows(grad_q, acc * factor, i * N, T, d_t, K, WIDTH, N)
    tl.store(far_sums + in_head, far_sum * factor, mask=row < T)


@triton.jit(do_not_specialize=SIZES)
def key_kernel(
    q, k, v, table, grad_y, lse, delta, grad_k, grad_v,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, g_b, g_h, g_t, d_b, d_h, d_t, table_h, table_r,
    H, T, last, far, scale, factor, dropout, seed,
    K: tl.constexpr, WIDTH: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr, DROPS: tl.constexpr,
):  # fmt: skip
    """Gradients of one block of keys and values; longest blocks first."""
    j = tl.program_id(0)
    b, h = tl.program_id(1) // H, tl.program_id(1) % H
    q, k = head_of(q, b, h, q_b, q_h), head_of(k, b, h, k_b, k_h)
    v, grad_y = head_of(v, b, h, v_b, v_h), head_of(grad_y, b, h, g_b, g_h)
    grad_k, grad_v = head_of(grad_k, b, h, d_b, d_h), head_of(grad_v, b, h, d_b, d_h)
    table = table + h * table_h
    lse, delta = lse + tl.program_id(1).to(tl.int64) * T, delta + tl.program_id(1).to(tl.int64) * T
    r, c = tl.arange(0, N)[:, None], tl.arange(0, N)[None, :]
    is_near_part, turned = c <= r, (r - c) & (N - 1)
    key = load_rows(k, j * N, T, k_t, K, WIDTH, N)
    value = load_rows(v, j * N, T, v_t, K, WIDTH, N)
    key_acc, value_acc = tl.zeros([N, WIDTH], tl.float32), tl.zeros([N, WIDTH], tl.float32)
    first_far = tl.minimum(j + (far + N - 1 + N - 1) // N, tl.num_programs(0))

    for i in range(j, first_far):
        row = i * N + tl.arange(0, N)
        query = load_rows(q, i * N, T, q_t, K, WIDTH, N)
        grad = load_rows(grad_y, i * N, T, g_t, K, WIDTH, N)
        log_sum = tl.load(lse + row, mask=row < T, other=0.0)[:, None]
        mean = tl.load(delta + row, mask=row < T, other=0.0)[:, None]
        vectors = load_distances(table, i - j, last, table_r, K, WIDTH, N)
        upper = tl.dot(query, tl.trans(vectors), input_precision=PRECISION)
        vectors = load_distances(table, i - j - 1, last, table_r, K, WIDTH, N)
        lower = tl.dot(query, tl.trans(vectors), input_precision=PRECISION)
        added = tl.gather(tl.where(is_near_part, upper, lower), turned, 1)
        scores = (tl.dot(query, tl.trans(key), input_precision=PRECISION) + added) * scale
        weights = tl.where(is_near_part | (j < i), tl.exp2(scores - log_sum), 0.0)
        slopes = tl.dot(grad, tl.trans(value), input_precision=PRECISION)
        dropped = weights
        if DROPS:
            is_kept = are_kept(seed, i, j, T, dropout, N)
            slopes = tl.where(is_kept, slopes / (1 - dropout), 0.0)
            dropped = tl.where(is_kept, weights / (1 - dropout), 0.0)
        slopes = weights * (slopes - mean)
        value_acc = tl.dot(tl.trans(dropped.to(grad.dtype)), grad, value_acc, input_precision=PRECISION)
        key_acc = tl.dot(tl.trans(slopes.to(query.dtype)), query, key_acc, input_precision=PRECISION)

    if first_far < tl.num_programs(0):
        oldest = tl.load(table + tl.arange(0, WIDTH), mask=tl.arange(0, WIDTH) < K, other=0.0).to(tl.float32)
        for i in range(first_far, tl.num_programs(0)):
            row = i * N + tl.arange(0, N)
            query = load_rows(q, i * N, T, q_t, K, WIDTH, N)
            grad = load_rows(grad_y, i * N, T, g_t, K, WIDTH, N)
            log_sum = tl.load(lse + row, mask=row < T, other=0.0)[:, None]
            mean = tl.load(delta + row, mask=row < T, other=0.0)[:, None]
            added = tl.sum(query.to(tl.float32) * oldest[None, :], 1)[:, None]
            scores = (tl.dot(query, tl.trans(key), input_precision=PRECISION) + added) * scale
            weights = tl.exp2(scores - log_sum)
            slopes = tl.dot(grad, tl.trans(value), input_precision=PRECISION)
            dropped = weights
            if DROPS:
                is_kept = are_kept(seed, i, j, T, dropout, N)
                slopes = tl.where(is_kept, slopes / (1 - dropout), 0.0)
                dropped = tl.where(is_kept, weights / (1 - dropout), 0.0)
            slopes = weights * (slopes - mean)
            value_acc = tl.dot(tl.trans(dropped.to(grad.dtype)), grad, value_acc, input_precision=PRECISION)
            key_acc = tl.dot(tl.trans(slopes.to(query.dtype)), query, key_acc, input_precision=PRECISION)

    store_rows(grad_k, key_acc * factor, j * N, T, d_t, K, WIDTH, N)
    store_rows(grad_v, value_acc, j * N, T, d_t, K, WIDTH, N)


def empty_heads(like_BHTK: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return an uninitialised tensor of shape BHTK, time before heads in memory, as the next layer reads it."""
    B, H, T, K = like_BHTK.shape
    return like_BHTK.new_empty(B, T, H, K, dtype=dtype).transpose(1, 2)


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Run one program of a kernel for each cell of a grid, on the device of the first argument."""
    with torch.cuda.device_of(arguments[0]):
        kernel[grid](*arguments, **constants)


def rows_at_once(n_heads: int, n_distances: int, itemsize: int, block: int, T: int) -> int:
    """Return for how many queries slopes by distance are held at once, a multiple of `block`.

    By the shapes alone, so that the order of the sum, and with it the result, is the same on every card.
    """
    n_blocks = SLOPES_BYTES // (n_heads * n_distances * itemsize * block)
    return block * min(max(n_blocks, 1), -(-T // block))


def _sizes(T: int, table: Tensor, scale: float) -> tuple[int, int, int, float]:
    """Return T, the last row of the table, the first distance that is far, and the scale of scores to base 2."""
    R = table.shape[-2]
    return T, R - 1, R - 1 if T > R else T, scale * LOG2_E


def n_warps(block: int, is_forward: bool) -> int:
    """Return the warps of a program; in the backward pass four of them cannot hold large blocks in registers."""
    return 4 if is_forward or block < 64 else 8


def _constants(q_BHTK: Tensor, block: int, dropout: float, is_forward: bool) -> dict[str, Any]:
    K = q_BHTK.shape[-1]
    precision = "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    return {
        "K": K,
        "WIDTH": max(triton.next_power_of_2(K), SMALLEST_PRODUCT),
        "N": block,
        "PRECISION": precision,
        "DROPS": dropout > 0,
        "num_warps": n_warps(block, is_forward),
        "num_stages": 2,  # three exceed the shared memory of an H100 with block=64 and K=128
    }


def _table_strides(table: Tensor) -> tuple[int, int]:
    return (table.stride(0), table.stride(1)) if table.ndim == 3 else (0, table.stride(0))


def _usable(x_BHTK: Tensor) -> Tensor:
    return x_BHTK if x_BHTK.stride(-1) == 1 else x_BHTK.contiguous()


@torch.library.custom_op("orchestrion::relative_attention", mutates_args=())
def relative_attention(
    q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, table: Tensor, scale: float, block: int, dropout: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Return y_BHTK and, to base 2, the logarithms of the sums of weights, float32 of shape (B, H, T).

    Args:
        q_BHTK, k_BHTK, v_BHTK: of one dtype, float32, float16 or bfloat16; K is 128 at most.
        table: vectors of the distances R - 1 to 0, of shape (H, R, K) or (R, K); further distances share the first.
        scale: what the scores are multiplied by.
        block: queries, keys and distances in a block, a power of 2 from 16 on.
        dropout: share of the weights that are set to 0.
        seed: of dropout, 2**32 or more, which makes it an integer of 64 bits for the kernels.
    """
    q, k, v = _usable(q_BHTK), _usable(k_BHTK), _usable(v_BHTK)
    rows = _usable(table.to(q.dtype))
    B, H, T, _ = q.shape
    y_BHTK = empty_heads(q)
    lse_BHT = torch.empty(B, H, T, dtype=torch.float32, device=q.device)
    n_blocks = -(-T // block)
    launch(
        forward_kernel, (n_blocks, B * H),
        q, k, v, rows, y_BHTK, lse_BHT,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *y_BHTK.stride()[:3], *_table_strides(rows),
        H, *_sizes(T, rows, scale), dropout, seed, **_constants(q, block, dropout, is_forward=True),
    )  # fmt: skip
    return y_BHTK, lse_BHT


@relative_attention.register_fake
def _(
    q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, table: Tensor, scale: float, block: int, dropout: float, seed: int
) -> tuple[Tensor, Tensor]:
    return empty_heads(q_BHTK), q_BHTK.new_empty(q_BHTK.shape[:3], dtype=torch.float32)


@torch.library.custom_op("orchestrion::relative_attention_backward", mutates_args=())
def relative_attention_backward(
    grad_BHTK: Tensor,
    q_BHTK: Tensor,
    k_BHTK: Tensor,
    v_BHTK: Tensor,
    table: Tensor,
    y_BHTK: Tensor,
    lse_BHT: Tensor,
    scale: float,
    block: int,
    dropout: float,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of queries, keys, values and table."""
    grad, q, k, v = _usable(grad_BHTK), _usable(q_BHTK), _usable(k_BHTK), _usable(v_BHTK)
    rows = _usable(table.to(q.dtype))
    B, H, T, K = q.shape
    grad_q, grad_k, grad_v = empty_heads(q), empty_heads(q), empty_heads(q)
    delta_BHT, far_BHT = torch.empty_like(lse_BHT), torch.empty_like(lse_BHT)
    _, last, far, _ = sizes = _sizes(T, rows, scale)
    constants = _constants(q, block, dropout, is_forward=False)
    of_qkv = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3])
    of_grads = (*grad.stride()[:3], *grad_q.stride()[:3], *_table_strides(rows))
    n_blocks = -(-T // block)
    W = block * min((far + 2 * block - 2) // block, n_blocks)  # distances of all blocks that are not far as a whole
    n_rows = rows_at_once(B * H, W, q.element_size(), block, T)
    # A query writes the distances that it has, which are those of the query before it in the same place and more.
    slopes_HBTW = q.new_zeros(H, B, n_rows, W)
    below_far = torch.zeros(*table.shape[:-2], min(far, last + 1), K, dtype=torch.float32, device=q.device)
    for first in range(0, n_blocks, n_rows // block):
        launch(
            query_kernel, (min(n_rows // block, n_blocks - first), B * H),
            q, k, v, rows, y_BHTK, grad, lse_BHT, grad_q, delta_BHT, far_BHT, slopes_HBTW, *of_qkv,
            *y_BHTK.stride()[:3], *of_grads, slopes_HBTW.stride(1), slopes_HBTW.stride(0), W, H, *sizes, scale,
            dropout, seed, first, **constants,
        )  # fmt: skip
        query_HBTK = q.new_zeros(H, B, n_rows, K)  # zeros: after the last query there are slopes of earlier ones
        some_BHTK = q[:, :, first * block : first * block + n_rows]
        query_HBTK[:, :, : some_BHTK.shape[2]] = some_BHTK.transpose(0, 1)
        folded = table.ndim - 2
        by_distance = slopes_HBTW.flatten(folded, 2).mT @ query_HBTK.flatten(folded, 2)
        below_far += by_distance[..., : below_far.shape[-2], :]
    launch(
        key_kernel, (n_blocks, B * H),
        q, k, v, rows, grad, lse_BHT, delta_BHT, grad_k, grad_v, *of_qkv, *of_grads, H, *sizes, scale, dropout, seed,
        **constants,
    )  # fmt: skip
    grad_table = torch.zeros(table.shape, dtype=torch.float32, device=q.device)
    grad_table[..., last + 1 - below_far.shape[-2] :, :] = below_far.flip(-2) * scale
    if far < T:
        oldest = torch.einsum("bht,bhtk->hk", far_BHT, q.float())
        grad_table[..., 0, :] += oldest if table.ndim == 3 else oldest.sum(0)
    return grad_q, grad_k, grad_v, grad_table.to(table.dtype)


@relative_attention_backward.register_fake
def _(
    grad_BHTK: Tensor,
    q_BHTK: Tensor,
    k_BHTK: Tensor,
    v_BHTK: Tensor,
    table: Tensor,
    y_BHTK: Tensor,
    lse_BHT: Tensor,
    scale: float,
    block: int,
    dropout: float,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return empty_heads(q_BHTK), empty_heads(q_BHTK), empty_heads(q_BHTK), table.new_empty(table.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, table, *ctx.options = inputs
    ctx.save_for_backward(q, k, v, table, *output)


def _backward(ctx: Any, grad_BHTK: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return (*relative_attention_backward(grad_BHTK, *ctx.saved_tensors, *ctx.options), None, None, None, None)


relative_attention.register_autograd(_backward, setup_context=_keep)
