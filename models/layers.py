"""Attention with relative positions, its key/value cache, and the feed-forward part, for every model here.

Shape letters at the end of tensor names, in this and all other files of `models/`:
B batch, T time of the queries, J time of the keys, D d_model, H heads, K d_head, V vocabulary, F token fields,
L layers, M rows of a relative table, R rows of it in use; in grammar tables S is a state and C a slot.
A trailing 1 marks an axis that broadcasts.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

# Queries are handled in blocks and each block meets only the keys up to its own end, which skips most of the masked
# half and keeps the score matrix in the CPU's cache: 4 to 6 times faster than one T x T matrix at T = 512. An
# accelerator prefers few large kernels.
CPU_QUERY_BLOCK = 64
ACCELERATOR_QUERY_BLOCK = 512


@dataclass(slots=True, eq=False)
class KVCache:
    """Keys and values of the tokens seen so far; `length_B` of them are valid in each row.

    Whatever lies behind a row's length is masked and is overwritten by that row's next tokens. Keys lie with time
    innermost, so that a step reads them in order: reading memory is most of a step with many tokens behind it.
    """

    keys_LBHKJ: Tensor
    values_LBHJK: Tensor
    length_B: Tensor

    @classmethod
    def empty(cls, shape_LBHJK: tuple[int, int, int, int, int], like: Tensor) -> "KVCache":
        """Return a cache of no tokens, of the dtype and on the device of `like`; J is the room of each row."""
        # Zeros, not uninitialised memory: a masked key has weight 0, and 0 times a leftover NaN is NaN.
        length_B = torch.zeros(shape_LBHJK[1], dtype=torch.long, device=like.device)
        n_layers, batch_size, n_heads, max_length, d_head = shape_LBHJK
        keys_LBHKJ = like.new_zeros(n_layers, batch_size, n_heads, d_head, max_length)
        return cls(keys_LBHKJ, like.new_zeros(shape_LBHJK), length_B)

    @property
    def max_length(self) -> int:
        return self.keys_LBHKJ.shape[4]

    @property
    def batch_size(self) -> int:
        return self.keys_LBHKJ.shape[1]

    def rows(self, start: int, end: int) -> "KVCache":
        """Return rows `start` to `end` (excluded) as a cache that shares its memory with this one."""
        return KVCache(self.keys_LBHKJ[:, start:end], self.values_LBHJK[:, start:end], self.length_B[start:end])

    def layer(self, index: int, plan: "CachePlan | None") -> "LayerCache":
        """Return the memory of layer `index`; `plan` is None while the cache is empty."""
        return LayerCache(self.keys_LBHKJ[index], self.values_LBHJK[index], plan)

    def copy_row(self, source: int, target: int) -> None:
        """Overwrite row `target` with row `source`."""
        n = int(self.length_B[source])
        self.keys_LBHKJ[:, target, ..., :n] = self.keys_LBHKJ[:, source, ..., :n]
        self.values_LBHJK[:, target, :, :n] = self.values_LBHJK[:, source, :, :n]
        self.length_B[target] = n


@dataclass(slots=True, eq=False)
class CachePlan:
    """What every layer needs to know about one call with a cache that already holds tokens.

    Attributes:
        position_BT: where each new token stands in its row.
        n_keys: keys that the call looks at, old and new.
        relative_index_BTJ: row of the last `min(M, n_keys)` rows of a relative table for each pair.
        bias_B1TJ: 0 where a query sees a key, -inf elsewhere.
    """

    position_BT: Tensor
    n_keys: int
    relative_index_BTJ: Tensor
    bias_B1TJ: Tensor

    @classmethod
    def of(cls, length_B: Tensor, n_new: int, max_relative_distance: int, dtype: torch.dtype) -> "CachePlan":
        """Plan a call that adds `n_new` tokens to rows that hold `length_B`."""
        position_BT = length_B[:, None] + torch.arange(n_new, device=length_B.device)
        n_keys = int(length_B.max()) + n_new
        distance_BTJ = position_BT[:, :, None] - torch.arange(n_keys, device=length_B.device)
        furthest = min(max_relative_distance, n_keys) - 1
        bias_BTJ = torch.zeros(distance_BTJ.shape, dtype=dtype, device=length_B.device)
        bias_BTJ.masked_fill_(distance_BTJ < 0, -math.inf)
        return cls(position_BT, n_keys, furthest - distance_BTJ.clamp(0, furthest), bias_BTJ[:, None])


@dataclass(slots=True, eq=False)
class LayerCache:
    """One layer's share of a `KVCache` during one call."""

    keys_BHKJ: Tensor
    values_BHJK: Tensor
    plan: CachePlan | None


def causal_bias(hidden_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the additive mask of a full pass: 0 where query i sees key j, -inf elsewhere.

    Args:
        hidden_BT: True where a token is padding. Such a token is no key for the others but sees itself, so that no
            row of scores is all -inf (the softmax of which is NaN).
    Returns:
        Shape (B, 1, T, T), or (1, 1, T, T) where nothing is hidden.
    """
    T = hidden_BT.shape[1]
    blocked_11TJ = torch.ones(T, T, dtype=torch.bool, device=hidden_BT.device).triu(1)[None, None]
    if bool(hidden_BT.any()):
        itself_TJ = torch.eye(T, dtype=torch.bool, device=hidden_BT.device)
        blocked_11TJ = blocked_11TJ | (hidden_BT[:, None, None, :] & ~itself_TJ)
    return torch.zeros(blocked_11TJ.shape, dtype=dtype, device=hidden_BT.device).masked_fill_(blocked_11TJ, -math.inf)


def skew(relative_BHTR: Tensor) -> Tensor:
    """Turn scores per distance into scores per key, without copying.

    Args:
        relative_BHTR: contiguous; the last axis holds distances J, J-1, ... 0, so R = J + 1; query t is the one at
            position J - T + t.
    Returns:
        Shape (B, H, T, J): element [i, j] is the score at the distance between query i and key j. Entries of keys
        behind the query are meaningless and must be masked.
    Source: Huang et al. 2019, section 3.4.1; here the extra column comes from the table, so nothing is padded.
    """
    T, R = relative_BHTR.shape[-2:]
    return relative_BHTR.flatten(-2)[..., T:].unflatten(-1, (T, R - 1))


def positions_after_padding(hidden_BT: Tensor) -> Tensor:
    """Return the place of each token in its row, 0 for the first that is not hidden and for those before it."""
    n_leading_B = hidden_BT.long().cumprod(dim=1).sum(dim=1)
    return (torch.arange(hidden_BT.shape[1], device=hidden_BT.device) - n_leading_B[:, None]).clamp_min(0)


def sinusoids(position_BT: Tensor, d_model: int, dtype: torch.dtype) -> Tensor:
    """Return absolute position vectors of shape (B, T, D): sines in even columns, cosines in odd ones.

    Source: Vaswani et al. 2017, section 3.5.
    """
    column = torch.arange(0, d_model, 2, dtype=torch.float64, device=position_BT.device)
    angle = position_BT[..., None].to(torch.float64) * torch.exp(column * (-math.log(10000.0) / d_model))
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-2)[..., :d_model].to(dtype)


class RelativeAttention(nn.Module):
    """Causal self-attention with one learned vector per head and distance.

    `logit[i, j] = (q_i . k_j + q_i . E[M - 1 - min(i - j, M - 1)]) / sqrt(d_head)`: the last row of the table is
    distance 0, the first one every distance of `max_relative_distance - 1` and more.
    Source: Huang et al. 2019; Shaw et al. 2018 for the clipped distance.
    """

    def __init__(self, d_model: int, n_heads: int, max_relative_distance: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.d_head = d_model // n_heads
        self.max_relative_distance = max_relative_distance
        self.to_qkv = nn.Linear(d_model, 3 * d_model)
        self.to_out = nn.Linear(d_model, d_model)
        self.relative_MD = nn.Parameter(torch.empty(max_relative_distance, d_model))
        # Each head starts with sharp and random preferences among distances. Adam moves an entry by no more than about
        # the learning rate in a step, so a table that starts near 0 needs hundreds of steps to prefer anything.
        nn.init.normal_(self.relative_MD, std=1.0)

    def forward(self, x_BTD: Tensor, bias_B1TJ: Tensor, cache: LayerCache | None = None) -> Tensor:
        """Attend within `x_BTD`, and with a cache also to what came before; new keys and values are added to it."""
        q_BHTK, k_BHTK, v_BHTK = self.split_heads(self.to_qkv(x_BTD))
        q_BHTK = q_BHTK * self.d_head**-0.5
        if cache is None:
            y_BHTK = self.attend(q_BHTK, k_BHTK, v_BHTK, bias_B1TJ)
        elif cache.plan is None:
            cache.keys_BHKJ[..., : x_BTD.shape[1]] = k_BHTK.transpose(-1, -2)
            cache.values_BHJK[:, :, : x_BTD.shape[1]] = v_BHTK
            y_BHTK = self.attend(q_BHTK, k_BHTK, v_BHTK, bias_B1TJ)
        else:
            row_B1 = torch.arange(x_BTD.shape[0], device=x_BTD.device)[:, None]
            cache.keys_BHKJ[row_B1, :, :, cache.plan.position_BT] = k_BHTK.transpose(1, 2)
            cache.values_BHJK[row_B1, :, cache.plan.position_BT] = v_BHTK.transpose(1, 2)
            n_keys = cache.plan.n_keys
            y_BHTK = self.attend_to_cache(
                q_BHTK, cache.keys_BHKJ[..., :n_keys], cache.values_BHJK[:, :, :n_keys], cache.plan
            )
        return self.to_out(y_BHTK.transpose(1, 2).flatten(2))

    def split_heads(self, qkv_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # Contiguous: every block of `attend` would otherwise copy its share of the keys again.
        q, k, v = qkv_BTD.unflatten(-1, (3, self.n_heads, self.d_head)).permute(2, 0, 3, 1, 4).contiguous().unbind(0)
        return q, k, v

    def relative_rows(self, n_rows: int) -> Tensor:
        """Return the table for distances `n_rows - 1` to 0, of shape (H, K, R); the oldest row repeats as needed."""
        table_RD = self.relative_MD[max(self.max_relative_distance - n_rows, 0) :]
        if n_rows > self.max_relative_distance:
            oldest_RD = self.relative_MD[:1].expand(n_rows - self.max_relative_distance, -1)
            table_RD = torch.cat((oldest_RD, table_RD))
        return table_RD.unflatten(-1, (self.n_heads, self.d_head)).permute(1, 2, 0)

    def attend(self, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, bias_B1TJ: Tensor) -> Tensor:
        T = q_BHTK.shape[2]
        table_HKR = self.relative_rows(T + 1)  # one distance more than there are: the spare column of `skew`
        block = CPU_QUERY_BLOCK if q_BHTK.device.type == "cpu" else ACCELERATOR_QUERY_BLOCK
        blocks = []
        for start in range(0, T, block):
            end = min(start + block, T)
            query_BHTK = q_BHTK[:, :, start:end]
            scores_BHTJ = query_BHTK @ k_BHTK[:, :, :end].transpose(-1, -2)
            # In place: the autograd graph needs neither the products nor the sums, only the softmax's own output.
            scores_BHTJ.add_(skew(query_BHTK @ table_HKR[..., T - end :])).add_(bias_B1TJ[:, :, start:end, :end])
            blocks.append(scores_BHTJ.softmax(-1) @ v_BHTK[:, :, :end])
        return torch.cat(blocks, dim=2)

    def attend_to_cache(self, q_BHTK: Tensor, k_BHKJ: Tensor, v_BHJK: Tensor, plan: CachePlan) -> Tensor:
        table_HKR = self.relative_rows(min(self.max_relative_distance, plan.n_keys))
        # All rows of the batch in one product: `matmul` would copy the whole table once for each of them.
        relative_HBTR = (q_BHTK.transpose(0, 1).flatten(1, 2) @ table_HKR).unflatten(1, q_BHTK.shape[::2])
        index_BHTJ = plan.relative_index_BTJ[:, None].expand(-1, self.n_heads, -1, -1)
        scores_BHTJ = relative_HBTR.transpose(0, 1).gather(-1, index_BHTJ)
        scores_BHTJ += q_BHTK @ k_BHKJ
        scores_BHTJ += plan.bias_B1TJ
        return scores_BHTJ.softmax(-1) @ v_BHJK


class FeedForward(nn.Module):
    """Two linear layers with a ReLU between them."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.to_hidden = nn.Linear(d_model, d_ff)
        self.to_out = nn.Linear(d_ff, d_model)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.to_out(functional.relu(self.to_hidden(x_BTD)))
