# pyright: reportCallIssue=false, reportAssignmentType=false
"""What sampling on a CPU does for each id, as loops that Numba compiles; `models/` runs without Numba too, but slower.

Every number of a row is computed by itself and in one order, whatever rows stand beside it. Shape letters: see
layers.py; N is the width of what a linear map gives, P a place in a row, and X the rows of a table of distances.
"""

import math
from typing import Any, NamedTuple

import numpy as np

try:
    from llvmlite import ir
    from numba import njit, types
    from numba.core import cgutils
    from numba.extending import intrinsic
except ImportError:
    ARE_COMPILED = False

    def njit(**_: Any) -> Any:
        """Leave a function as it is; nothing calls it."""
        return intrinsic

    def intrinsic(function: Any) -> Any:
        """Leave a function as it is; nothing calls it."""
        return function
else:
    ARE_COMPILED = True

F = np.float32
LOG2_E = F(1.4426950408889634)
LEAST_EXPONENT = F(-126.0)
# 2**r for r within half of 0: its Taylor series, to an error of 1e-6.
C1, C2, C3, C4, C5, C6 = (F(math.log(2.0) ** n / math.factorial(n)) for n in range(1, 7))
LAYER_NORM, RMS_NORM = 0, 1
RELU, GELU, SILU = 0, 1, 2
HALF_MAX = F(65504.0)
ROWS_AHEAD, KEYS_AHEAD = 4, 32  # how long before they are needed memory is asked for rows of weights and keys

OPTIONS = {"fastmath": True, "nogil": True, "cache": True, "error_model": "numpy"}


@intrinsic
def number(_, stored):
    """Return a stored number as float32: float32 itself, the bits of a float16 as uint16, or int8."""

    def generate(_, builder, signature, args):
        if signature.args[0] == types.uint16:
            return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())
        if signature.args[0] == types.int8:
            return builder.sitofp(args[0], ir.FloatType())
        return args[0]

    return types.float32(stored), generate


@intrinsic
def power_of_two(_, n):
    """Return 2**n for an int32 from -126 to 127."""

    def generate(_, builder, signature, args):
        int32 = ir.IntType(32)
        exponent = builder.add(args[0], ir.Constant(int32, 127))
        return builder.bitcast(builder.shl(exponent, ir.Constant(int32, 23)), ir.FloatType())

    return types.float32(types.int32), generate


@intrinsic
def prefetch(_, matrix, j):
    """Ask for the memory of row `j` of a matrix, which need not exist; the processor's own guess ends at a page."""

    def generate(context, builder, signature, args):
        array = context.make_array(signature.args[0])(context, builder, args[0])
        int32, int64, bytes_ = ir.IntType(32), ir.IntType(64), ir.IntType(8).as_pointer()
        row_bytes = builder.extract_value(array.strides, 0)
        start = builder.add(builder.ptrtoint(array.data, int64), builder.mul(args[1], row_bytes))
        kind = ir.FunctionType(ir.VoidType(), [bytes_, int32, int32, int32])
        ask = builder.module.declare_intrinsic("llvm.prefetch", [bytes_], kind)
        line = ir.Constant(int64, 64)
        with cgutils.for_range_slice(builder, ir.Constant(int64, 0), row_bytes, line, inc=True) as (offset, _):
            arguments = [ir.Constant(int32, value) for value in (0, 3, 1)]
            builder.call(ask, [builder.inttoptr(builder.add(start, offset), bytes_), *arguments])
        return context.get_dummy_value()

    return types.void(matrix, types.int64), generate


@njit(inline="always", **OPTIONS)
def exp_below_0(x):
    """Return e**x for x up to 0; math.exp would be called for one number at a time."""
    t = max(x * LOG2_E, LEAST_EXPONENT)
    n = np.int32(t - F(0.5))
    r = t - F(n)
    return (F(1) + r * (C1 + r * (C2 + r * (C3 + r * (C4 + r * (C5 + r * C6)))))) * power_of_two(n)


@intrinsic
def stored(_, x, like):
    """Return a float32 as `like` is stored: as it is, or as the bits of the nearest float16."""

    def generate(_, builder, signature, args):
        if signature.args[1] == types.uint16:
            return builder.bitcast(builder.fptrunc(args[0], ir.HalfType()), ir.IntType(16))
        return args[0]

    return like(types.float32, like), generate


@njit(**OPTIONS)
def normalise(x_D, kind, weight_D, bias_D, eps, y_D):
    """Write the layer norm or RMS norm of x_D into y_D."""
    n = len(x_D)
    mean, squares = F(0), F(0)
    if kind == LAYER_NORM:
        for c in range(n):
            mean += x_D[c]
        mean /= F(n)
    for c in range(n):
        squares += (x_D[c] - mean) * (x_D[c] - mean)
    factor = F(1) / F(math.sqrt(squares / F(n) + eps))
    for c in range(n):
        y_D[c] = (x_D[c] - mean) * factor * weight_D[c] + bias_D[c]


@njit(**OPTIONS)
def apply_linear(x_BD, weight_ND, scale_N, bias_N, y_BN):
    """Write the linear map of each row; its weights are read once for all rows."""
    for n in range(len(weight_ND)):
        prefetch(weight_ND, n + ROWS_AHEAD)
        for b in range(len(x_BD)):
            total = F(0)
            for c in range(weight_ND.shape[1]):
                total += number(weight_ND[n, c]) * x_BD[b, c]
            y_BN[b, n] = total * scale_N[n] + bias_N[n]


@njit(**OPTIONS)
def activate(hidden_BN, kind, is_gated, y_BN):
    """Write the activation of hidden_BN, times its second half where it is gated."""
    n = y_BN.shape[1]
    for b in range(len(y_BN)):
        for c in range(n):
            x = hidden_BN[b, c]
            if kind == RELU:
                y = max(x, F(0))
            elif kind == GELU:
                y = F(0.5) * x * (F(1) + F(math.erf(x * F(0.7071067811865476))))
            else:
                e = exp_below_0(-abs(x))
                y = x / (F(1) + e) if x > 0 else x * e / (F(1) + e)
            y_BN[b, c] = y * hidden_BN[b, n + c] if is_gated else y


@njit(**OPTIONS)
def remember(qkv_BD, n_heads, norms_2K, rotation_PK, place_B, keys_BHJK, values_BHJK):
    """Normalise and rotate queries and keys in place, and write the keys and values into the cache.

    Args:
        norms_2K: weights of the norms of queries and keys; without rows, there are none.
        rotation_PK: cosines and then sines of each place; without rows, nothing turns.
        place_B: of each row's new token.
    """
    d_head = qkv_BD.shape[1] // (3 * n_heads)
    half, like = d_head // 2, keys_BHJK[0, 0, 0, 0]
    zeros_K = np.zeros(d_head, F)
    for b in range(len(qkv_BD)):
        p = place_B[b]
        parts_HK = qkv_BD[b].reshape(3 * n_heads, d_head)
        for h in range(2 * n_heads):
            x_K = parts_HK[h]
            if len(norms_2K):
                normalise(x_K, LAYER_NORM, norms_2K[h // n_heads], zeros_K, F(1e-5), x_K)
            if len(rotation_PK):
                for c in range(half):
                    first, second = x_K[c], x_K[half + c]
                    cos, sin = rotation_PK[p, c], rotation_PK[p, half + c]
                    x_K[c], x_K[half + c] = first * cos - second * sin, second * cos + first * sin
        for h in range(n_heads):
            for c in range(d_head):
                # Numbers beyond the range of float16 become its largest.
                k, v = parts_HK[n_heads + h, c], parts_HK[2 * n_heads + h, c]
                keys_BHJK[b, h, p, c] = stored(min(max(k, -HALF_MAX), HALF_MAX), like)
                values_BHJK[b, h, p, c] = stored(min(max(v, -HALF_MAX), HALF_MAX), like)


@njit(**OPTIONS)
def attend(qkv_BD, n_heads, keys_BHJK, values_BHJK, table_HXK, place_B, first, end, y_BD):
    """Write what the new tokens of rows `first` to `end` (excluded) attend to, their own keys included.

    Args:
        qkv_BD: of which only the queries are read.
        table_HXK: a vector for each distance, the last one for 0, of each head or of all; without rows, none is added.
    """
    d_head, n_distances = keys_BHJK.shape[3], table_HXK.shape[1]
    scale, scores_J = F(1) / F(math.sqrt(d_head)), np.empty(keys_BHJK.shape[2], F)
    for b in range(first, end):
        n_keys = place_B[b] + 1
        for h in range(n_heads):
            q_K, keys_JK, values_JK = qkv_BD[b, h * d_head : (h + 1) * d_head], keys_BHJK[b, h], values_BHJK[b, h]
            highest = F(-np.inf)
            for j in range(n_keys):
                prefetch(keys_JK, j + KEYS_AHEAD)
                score = F(0)
                if n_distances:
                    distance_K = table_HXK[h % len(table_HXK), max(n_distances - n_keys + j, 0)]
                    for c in range(d_head):
                        score += q_K[c] * (number(keys_JK[j, c]) + distance_K[c])
                else:
                    for c in range(d_head):
                        score += q_K[c] * number(keys_JK[j, c])
                scores_J[j] = score * scale
                highest = max(highest, scores_J[j])
            total = F(0)
            for j in range(n_keys):
                scores_J[j] = exp_below_0(scores_J[j] - highest)
                total += scores_J[j]
            y_K = y_BD[b, h * d_head : (h + 1) * d_head]
            y_K[:] = F(0)
            for j in range(0, n_keys - 3, 4):
                for more in range(4):
                    prefetch(values_JK, j + more + KEYS_AHEAD)
                p0, p1, p2, p3 = scores_J[j], scores_J[j + 1], scores_J[j + 2], scores_J[j + 3]
                for c in range(d_head):
                    y_K[c] += (
                        p0 * number(values_JK[j, c])
                        + p1 * number(values_JK[j + 1, c])
                        + p2 * number(values_JK[j + 2, c])
                        + p3 * number(values_JK[j + 3, c])
                    )
            for j in range(n_keys - n_keys % 4, n_keys):
                for c in range(d_head):
                    y_K[c] += scores_J[j] * number(values_JK[j, c])
            for c in range(d_head):
                y_K[c] /= total


class LinearMaps(NamedTuple):
    """A linear map of each layer: weights as they are stored, their scale for each output, and biases."""

    weight_LND: Any
    scale_LN: Any
    bias_LN: Any


class Layers(NamedTuple):
    """The weights of a decoder's layers, of its last norm (row `L` of the norms) and of its head (one layer)."""

    attention_norm_2LD: Any  # weights and biases
    feed_forward_norm_2LD: Any
    to_qkv: LinearMaps
    to_out: LinearMaps
    to_hidden: LinearMaps
    from_hidden: LinearMaps
    head: LinearMaps
    qk_norm_L2K: Any
    table_LHXK: Any
    rotation_PK: Any


@njit(**OPTIONS)
def run_layers(x_BD, n_heads, norm, eps, activation, is_gated, layers, place_B, keys_LBHJK, values_LBHJK, logits_BV):
    """Write the logits of the id after each row's new token; x_BD, its embedding, is overwritten."""
    n_rows, d_model = x_BD.shape
    n_layers, d_ff = len(layers.to_out.weight_LND), layers.from_hidden.weight_LND.shape[2]
    h_BD, y_BD = np.empty((n_rows, d_model), F), np.empty((n_rows, d_model), F)
    qkv_BD = np.empty((n_rows, 3 * d_model), F)
    hidden_BN, active_BN = np.empty((n_rows, layers.to_hidden.weight_LND.shape[1]), F), np.empty((n_rows, d_ff), F)
    for layer in range(n_layers):
        for b in range(n_rows):
            weight_2D = layers.attention_norm_2LD[:, layer]
            normalise(x_BD[b], norm, weight_2D[0], weight_2D[1], eps, h_BD[b])
        maps = layers.to_qkv
        apply_linear(h_BD, maps.weight_LND[layer], maps.scale_LN[layer], maps.bias_LN[layer], qkv_BD)
        keys_BHJK, values_BHJK = keys_LBHJK[layer], values_LBHJK[layer]
        remember(qkv_BD, n_heads, layers.qk_norm_L2K[layer], layers.rotation_PK, place_B, keys_BHJK, values_BHJK)
        attend(qkv_BD, n_heads, keys_BHJK, values_BHJK, layers.table_LHXK[layer], place_B, 0, n_rows, h_BD)
        maps = layers.to_out
        apply_linear(h_BD, maps.weight_LND[layer], maps.scale_LN[layer], maps.bias_LN[layer], y_BD)
        for b in range(n_rows):
            for c in range(d_model):
                x_BD[b, c] += y_BD[b, c]
            weight_2D = layers.feed_forward_norm_2LD[:, layer]
            normalise(x_BD[b], norm, weight_2D[0], weight_2D[1], eps, h_BD[b])
        maps = layers.to_hidden
        apply_linear(h_BD, maps.weight_LND[layer], maps.scale_LN[layer], maps.bias_LN[layer], hidden_BN)
        activate(hidden_BN, activation, is_gated, active_BN)
        maps = layers.from_hidden
        apply_linear(active_BN, maps.weight_LND[layer], maps.scale_LN[layer], maps.bias_LN[layer], y_BD)
        for b in range(n_rows):
            for c in range(d_model):
                x_BD[b, c] += y_BD[b, c]
    for b in range(n_rows):
        weight_2D = layers.attention_norm_2LD[:, n_layers]
        normalise(x_BD[b], norm, weight_2D[0], weight_2D[1], eps, h_BD[b])
    apply_linear(h_BD, layers.head.weight_LND[0], layers.head.scale_LN[0], layers.head.bias_LN[0], logits_BV)


@njit(nogil=True, cache=True, error_model="numpy")
def draw_ids(logits_BV, uniform_B, ids_B):
    """Write for each row the id at which the running sum of probabilities, in order of ids, passes `uniform_B`."""
    n = logits_BV.shape[1]
    running_V = np.empty(n)
    for b in range(len(ids_B)):
        highest = logits_BV[b].max()
        total = 0.0
        for v in range(n):
            total += math.exp(logits_BV[b, v] - highest)
            running_V[v] = total
        # The product may round up to the total itself, which no id passes.
        threshold = min(uniform_B[b] * total, np.nextafter(total, 0.0))
        ids_B[b] = min(np.searchsorted(running_V, threshold, side="right"), n - 1)


@njit(nogil=True, cache=True, error_model="numpy")
def write_entropies(logits_BV, entropy_B):
    """Write the entropy of each row in nats."""
    for b in range(len(entropy_B)):
        highest = logits_BV[b].max()
        total, weighted = 0.0, 0.0
        for v in range(logits_BV.shape[1]):
            below = logits_BV[b, v] - highest
            weight = math.exp(below)
            total += weight
            weighted += weight * below
        entropy_B[b] = math.log(total) - weighted / total
