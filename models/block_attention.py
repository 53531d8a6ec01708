"""Causal attention with relative positions, one block of queries at a time. Shape letters: see layers.py.

Each block of queries meets only the keys up to its own end, which skips most of the masked half. On a CPU few rows and
heads go at once, so that the scores stay in its cache. The backward pass is written out: the one that autograd derives
fills a zero tensor as long as the whole sequence for every slice of every block.
"""

import math
from typing import Any

import torch
from torch import Tensor

from models.compiling import uncompiled
from models.dropout import keep_mask

CPU_QUERY_BLOCK = 64
# A product in bfloat16 first copies the keys: a quarter of the sequence at once, within limits, does so less often and
# still skips most of the masked half.
CPU_BFLOAT16_QUERY_BLOCKS = (64, 256)
CPU_SCORES_AT_ONCE = 2**21
# An accelerator prefers few large kernels.
ACCELERATOR_QUERY_BLOCK = 512

softmax_backward = torch.ops.aten._softmax_backward_data


@uncompiled  # the compiler fails at overlapping views, or undoes the loops over blocks
def attend_in_blocks(
    q_BHTK: Tensor,
    k_BHTK: Tensor,
    v_BHTK: Tensor,
    table: Tensor | None = None,
    bias_B1TJ: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Return `softmax(q k + q table[distance] + bias) v` of shape (B, H, T, K); no query sees a later key.

    Args:
        q_BHTK: divided by `sqrt(d_head)` already.
        table: a vector for each of the distances T - 1 to 0, of shape (H, T, K), or (T, K) for one that all heads
            share.
        bias_B1TJ: what to add to the scores, with -inf for later keys too; None: only these are masked.
        dropout: share of the weights that are set to 0.
    """
    # An in-place sum of two dtypes is ten times slower than a cast before it.
    table = None if table is None else table.to(q_BHTK.dtype)
    bias_B1TJ = None if bias_B1TJ is None else bias_B1TJ.to(q_BHTK.dtype)
    B, H, T, _ = q_BHTK.shape
    n_rows = B
    if q_BHTK.device.type == "cpu":
        n_scores = H * T * min(query_block(q_BHTK), T)
        n_rows = min(max(CPU_SCORES_AT_ONCE // max(n_scores, 1), 1), B)
    if n_rows == B:
        return attend_at_once(q_BHTK, k_BHTK, v_BHTK, table, bias_B1TJ, dropout)
    biases = [bias_B1TJ] * -(-B // n_rows) if bias_B1TJ is None else bias_B1TJ.expand(B, -1, -1, -1).split(n_rows)
    parts = zip(*(x_BHTK.split(n_rows) for x_BHTK in (q_BHTK, k_BHTK, v_BHTK)), biases, strict=True)
    return torch.cat([attend_at_once(q, k, v, table, bias, dropout) for q, k, v, bias in parts])


def attend_at_once(
    q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, table: Tensor | None, bias_B1TJ: Tensor | None, dropout: float
) -> Tensor:
    """Return y_BHTK, causal attention of all rows and heads in one call; `table` and `bias_B1TJ` may be None."""
    # Heads first: what concerns all rows of one head is then one matrix.
    q_HBTK, k_HBTK, v_HBTK = (x_BHTK.transpose(0, 1).contiguous() for x_BHTK in (q_BHTK, k_BHTK, v_BHTK))
    bias_1BTJ = None if bias_B1TJ is None else bias_B1TJ.transpose(0, 1)
    needs_grad = torch.is_grad_enabled()
    return BlockAttention.apply(q_HBTK, k_HBTK, v_HBTK, table, bias_1BTJ, dropout, needs_grad).transpose(0, 1)


class BlockAttention(torch.autograd.Function):
    """`attend_in_blocks`, and its gradients for queries, keys, values and table."""

    @staticmethod
    def forward(
        ctx: Any,
        q_HBTK: Tensor,
        k_HBTK: Tensor,
        v_HBTK: Tensor,
        table: Tensor | None,
        bias_1BTJ: Tensor | None,
        dropout: float,
        needs_grad: bool,
    ) -> Tensor:
        """Return y_HBTK, block by block; `backward` needs the weights of each block, which `needs_grad` keeps."""
        H, B, T, K = q_HBTK.shape
        # Time before heads in memory, as the next layer reads it.
        y_HBTK = q_HBTK.new_empty(B, T, H, K).permute(2, 0, 1, 3)
        weights, masks = [], []
        with torch.autocast(q_HBTK.device.type, enabled=False):
            for start, end in blocks_of(q_HBTK):
                weights_HBTJ = attention_weights(q_HBTK, k_HBTK, table, bias_1BTJ, start, end)
                weights += [weights_HBTJ] if needs_grad else []
                if dropout:
                    mask_HBTJ = keep_mask(weights_HBTJ, dropout)
                    masks += [mask_HBTJ] if needs_grad else []
                    weights_HBTJ = weights_HBTJ * mask_HBTJ
                y_HBTK[:, :, start:end] = weights_HBTJ @ v_HBTK[:, :, :end]
        ctx.save_for_backward(q_HBTK, k_HBTK, v_HBTK, table, *weights, *masks)
        ctx.dropout = dropout
        return y_HBTK.div_(1 - dropout) if dropout else y_HBTK

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of q, k, v and the relative table, and None for the other arguments."""
        q_HBTK, k_HBTK, v_HBTK, table, *saved = ctx.saved_tensors
        blocks = blocks_of(q_HBTK)
        weights, masks = saved[: len(blocks)], saved[len(blocks) :]
        grad_y_HBTK = grads[0] / (1 - ctx.dropout) if masks else grads[0]
        exact = torch.promote_types(q_HBTK.dtype, torch.float32)  # sums over many blocks, each of which would round
        grad_q_HBTK = torch.empty_like(q_HBTK)
        grad_k_HBTK, grad_v_HBTK = torch.zeros_like(k_HBTK, dtype=exact), torch.zeros_like(v_HBTK, dtype=exact)
        grad_table = torch.zeros(() if table is None else table.shape, dtype=exact, device=q_HBTK.device)
        with torch.autocast(q_HBTK.device.type, enabled=False):
            for i, (start, end) in enumerate(blocks):
                query_HBTK = q_HBTK[:, :, start:end].contiguous()
                grad_HBTK = grad_y_HBTK[:, :, start:end].contiguous()
                dropped_HBTJ = weights[i]
                grad_weights_HBTJ = grad_HBTK @ v_HBTK[:, :, :end].mT
                if masks:
                    dropped_HBTJ = dropped_HBTJ * masks[i]
                    grad_weights_HBTJ.mul_(masks[i])
                grad_v_HBTK[:, :, :end] += dropped_HBTJ.mT @ grad_HBTK
                grad_scores_HBTJ = softmax_backward(grad_weights_HBTJ, weights[i], -1, weights[i].dtype)
                grad_k_HBTK[:, :, :end] += grad_scores_HBTJ.mT @ query_HBTK
                grad_query_HBTK = grad_scores_HBTJ @ k_HBTK[:, :, :end]
                if table is not None:
                    rows, folded = slice(table.shape[-2] - end, None), table.ndim - 2
                    grad_distances = unskew(grad_scores_HBTJ).flatten(folded, 2)
                    grad_query_HBTK += (grad_distances @ table[..., rows, :]).view_as(query_HBTK)
                    grad_table[..., rows, :] += grad_distances.mT @ query_HBTK.flatten(folded, 2)
                grad_q_HBTK[:, :, start:end] = grad_query_HBTK
        return (
            grad_q_HBTK,
            grad_k_HBTK.to(k_HBTK.dtype),
            grad_v_HBTK.to(v_HBTK.dtype),
            None if table is None else grad_table.to(table.dtype),
            *(None, None, None),
        )


def query_block(q: Tensor) -> int:
    """Return the number of queries in a block; the time is the second axis from the end."""
    if q.device.type != "cpu":
        return ACCELERATOR_QUERY_BLOCK
    if q.dtype != torch.bfloat16:
        return CPU_QUERY_BLOCK
    smallest, largest = CPU_BFLOAT16_QUERY_BLOCKS
    return min(max(q.shape[-2] // 4, smallest), largest)


def blocks_of(q_HBTK: Tensor) -> list[tuple[int, int]]:
    """Return the first query of each block and the one after its last."""
    T, size = q_HBTK.shape[2], query_block(q_HBTK)
    return [(start, min(start + size, T)) for start in range(0, T, size)]


def attention_weights(
    q_HBTK: Tensor, k_HBTK: Tensor, table: Tensor | None, bias_1BTJ: Tensor | None, start: int, end: int
) -> Tensor:
    """Return how the queries from `start` to `end` (excluded) weigh the keys up to `end`."""
    query_HBTK = q_HBTK[:, :, start:end].contiguous()
    scores_HBTJ = query_HBTK @ k_HBTK[:, :, :end].mT
    if table is not None:
        scores_HBTJ.add_(skew(distance_scores(query_HBTK, table[..., table.shape[-2] - end :, :])))
    if bias_1BTJ is None:
        later_TJ = torch.full((end - start, end - start), -math.inf, dtype=q_HBTK.dtype, device=q_HBTK.device).triu_(1)
        scores_HBTJ[..., start:].add_(later_TJ)
    else:
        scores_HBTJ.add_(bias_1BTJ[:, :, start:end, :end])
    return scores_HBTJ.softmax(-1)


def distance_scores(q_HBTK: Tensor, table: Tensor) -> Tensor:
    """Return the product of each query with each vector of a table of shape (H, R, K) or (R, K)."""
    # All rows of the batch in one product: `matmul` would copy the whole table once for each of them.
    return (q_HBTK.flatten(table.ndim - 2, 2) @ table.mT).view(*q_HBTK.shape[:3], table.shape[-2])


def skew(relative_HBTJ: Tensor) -> Tensor:
    """Turn scores per distance into scores per key, without copying.

    Args:
        relative_HBTJ: contiguous; the last axis holds distances J - 1 to 0; query t is the one at position J - T + t.
    Returns:
        The same shape: element [t, j] is the score at the distance between query t and key j. Entries of keys after
        the query are meaningless and must be masked.
    Source: Huang et al. 2019, section 3.4.1; with a view whose rows overlap by one entry, nothing need be padded.
    """
    T, J = relative_HBTJ.shape[-2:]
    strides = (*relative_HBTJ.stride()[:-2], J - 1, 1)
    return relative_HBTJ.as_strided(relative_HBTJ.shape, strides, relative_HBTJ.storage_offset() + T - 1)


def unskew(scores_HBTJ: Tensor) -> Tensor:
    """Undo `skew` for scores that are 0 where a key is after its query."""
    T, J = scores_HBTJ.shape[-2:]
    relative_HBR = scores_HBTJ.new_empty(*scores_HBTJ.shape[:-2], T * J)
    relative_HBR[..., : T - 1] = 0
    relative_HBR[..., T - 1 : -1].unflatten(-1, (T, J - 1)).copy_(scores_HBTJ[..., :-1])
    relative_HBR[..., -1] = scores_HBTJ[..., -1, -1]
    return relative_HBR.unflatten(-1, (T, J))
