"""Self-attention, its positions and its key/value cache, and the feed-forward part, for all models.

Shape letters at the end of tensor names, in this and all other files of `models/`:
B batch, T time of the queries, J time of the keys, D d_model, H heads, K d_head, V vocabulary, F token fields,
L layers, M rows of a relative table, R rows of it in use; in grammar tables S is a state and C a slot.
A trailing 1 marks an axis that broadcasts.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.block_attention import attend_in_blocks, distance_scores
from models.compiling import uncompiled

UNEQUAL_ROWS = 1.25  # keys of the longest row for each over keys that rows have, from which on rows go one by one
Map = Callable[[Tensor], Tensor]
ACTIVATIONS: dict[str, Map] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
}


class TokenModel(nn.Module):
    """The part that all models share.

    Args:
        vocab_size: number of ids, padding included.
        pad_id: the id of padding.
    """

    def __init__(self, config: Any, vocab_size: int, pad_id: int = 0) -> None:
        super().__init__()
        if not 0 <= pad_id < vocab_size:
            raise ValueError(f"pad_id={pad_id} is outside 0-{vocab_size - 1}, the ids of vocab_size={vocab_size}")
        self.config = config
        self.vocab_size = vocab_size
        self.pad_id = pad_id

    @property
    def n_parameters(self) -> int:
        """Number of trained parameters; tied ones count once."""
        return sum(parameter.numel() for parameter in self.parameters())


@dataclass(slots=True, eq=False)
class KVCache:
    """Keys and values of the tokens seen so far; `length_B` of them are valid in each row.

    Entries after a row's length are masked, and its next tokens overwrite them. Each token's key and value are
    contiguous in memory, because a step with many tokens before it spends most of its time on reading them.
    """

    keys_LBHJK: Tensor
    values_LBHJK: Tensor
    length_B: Tensor

    @classmethod
    def empty(
        cls, shape_LBHJK: tuple[int, int, int, int, int], like: Tensor, dtype: torch.dtype | None = None
    ) -> "KVCache":
        """Return a cache of no tokens, on the device of `like` and by default of its dtype; J is the room of a row."""
        # Zeros, not uninitialised memory: a masked key has weight 0, and 0 times a leftover NaN is NaN.
        length_B = torch.zeros(shape_LBHJK[1], dtype=torch.long, device=like.device)
        keys, values = (like.new_zeros(shape_LBHJK, dtype=dtype or like.dtype) for _ in range(2))
        return cls(keys, values, length_B)

    @property
    def max_length(self) -> int:
        """Number of keys that a row can hold."""
        return self.keys_LBHJK.shape[3]

    @property
    def batch_size(self) -> int:
        """Number of rows."""
        return self.keys_LBHJK.shape[1]

    def rows(self, start: int, end: int) -> "KVCache":
        """Return rows `start` to `end` (excluded) as a cache that shares its memory with this one."""
        return KVCache(self.keys_LBHJK[:, start:end], self.values_LBHJK[:, start:end], self.length_B[start:end])

    def layer(self, index: int, plan: "CachePlan | None") -> "LayerCache":
        """Return the memory of layer `index`; `plan` is None while the cache is empty."""
        return LayerCache(self.keys_LBHJK[index].mT, self.values_LBHJK[index], plan)

    def start_row(self, row: int, piece: int) -> None:
        """Empty a row for another piece; caches that hold something for each piece need to know which."""
        self.length_B[row] = 0

    def copy_row(self, source: int, target: int) -> None:
        """Overwrite row `target` with row `source`."""
        n = int(self.length_B[source])
        self.keys_LBHJK[:, target, :, :n] = self.keys_LBHJK[:, source, :, :n]
        self.values_LBHJK[:, target, :, :n] = self.values_LBHJK[:, source, :, :n]
        self.length_B[target] = n


def check_room(length_B: Tensor, max_length: int, tokens_BT: Tensor) -> None:
    """Raise ValueError where a cache has another number of rows than the batch, or no room for its tokens."""
    B, T = tokens_BT.shape
    if len(length_B) != B:
        raise ValueError(f"the cache has {len(length_B)} rows, the batch {B}")
    longest = int(length_B.max()) if B else 0
    if longest + T > max_length:
        raise ValueError(f"{longest} cached tokens and {T} new ones exceed the cache's max_length={max_length}")


@dataclass(slots=True, eq=False)
class CachePlan:
    """What every layer needs to know about one call with a cache that already holds tokens.

    Attributes:
        position_BT: place of each new token in its row.
        n_keys: keys that the call looks at, old and new.
        n_distances: rows of a relative table, from its end, that the call needs.
        start: the place of the first new token, where it is the same in all rows; otherwise None.
        relative_index_BTJ: which of these rows belongs to each pair; None: one token in each row and the same
            distances in all, so that the last key has the last row, and so on backwards.
        bias_B1TJ: 0 where a query sees a key, -inf elsewhere; None: each sees all.
        row_keys: the keys of each row, where rows are so unequal that each is attended to alone; otherwise None.
    """

    position_BT: Tensor
    n_keys: int
    n_distances: int
    start: int | None
    relative_index_BTJ: Tensor | None
    bias_B1TJ: Tensor | None
    row_keys: list[int] | None = None

    @property
    def is_one_step(self) -> bool:
        """Whether the call adds one token to each row, at the same place in all."""
        return self.relative_index_BTJ is None and self.row_keys is None

    @classmethod
    def of(cls, length_B: Tensor, n_new: int, max_relative_distance: int, dtype: torch.dtype) -> "CachePlan":
        """Plan a call that adds `n_new` tokens to rows that hold `length_B`."""
        position_BT = length_B[:, None] + torch.arange(n_new, device=length_B.device)
        shortest, longest = torch.stack(length_B.aminmax()).tolist()
        n_keys = longest + n_new
        n_distances = min(max_relative_distance, n_keys)
        start = longest if shortest == longest else None
        if start is not None and n_new == 1:
            return cls(position_BT, n_keys, n_distances, start, None, None)
        # On a CPU a step is as long as the memory it reads; an accelerator prefers one large kernel.
        if n_new == 1 and length_B.device.type == "cpu":
            row_keys = (length_B + 1).tolist()
            if n_keys * len(row_keys) > UNEQUAL_ROWS * sum(row_keys):
                return cls(position_BT, n_keys, n_distances, None, None, None, row_keys)
        return cls.masked(position_BT, n_keys, n_distances, start, dtype)

    @classmethod
    def masked(
        cls, position_BT: Tensor, n_keys: int, n_distances: int, start: int | None, dtype: torch.dtype
    ) -> "CachePlan":
        """Plan a call whose tokens stand at `position_BT`, whatever the places of their rows."""
        distance_BTJ = position_BT[:, :, None] - torch.arange(n_keys, device=position_BT.device)
        bias_BTJ = torch.zeros(distance_BTJ.shape, dtype=dtype, device=position_BT.device)
        bias_BTJ.masked_fill_(distance_BTJ < 0, -math.inf)
        relative_index_BTJ = n_distances - 1 - distance_BTJ.clamp(0, n_distances - 1)
        return cls(position_BT, n_keys, n_distances, start, relative_index_BTJ, bias_BTJ[:, None])


@dataclass(slots=True, eq=False)
class LayerCache:
    """One layer's share of a `KVCache` during one call."""

    keys_BHKJ: Tensor
    values_BHJK: Tensor
    plan: CachePlan | None

    def append(self, k_BHKT: Tensor, v_BHTK: Tensor) -> tuple[Tensor, Tensor]:
        """Add the keys and values of new tokens; return k_BHKJ and v_BHJK of all tokens so far."""
        start, n_keys = (0, k_BHKT.shape[-1]) if self.plan is None else (self.plan.start, self.plan.n_keys)
        if start is None:
            assert self.plan is not None
            position_BT = self.plan.position_BT
            row_B1 = torch.arange(len(position_BT), device=position_BT.device)[:, None]
            self.keys_BHKJ[row_B1, :, :, position_BT] = k_BHKT.permute(0, 3, 1, 2)
            self.values_BHJK[row_B1, :, position_BT] = v_BHTK.transpose(1, 2)
        else:
            self.keys_BHKJ[..., start:n_keys] = k_BHKT
            self.values_BHJK[:, :, start:n_keys] = v_BHTK
        return self.keys_BHKJ[..., :n_keys], self.values_BHJK[:, :, :n_keys]


def causal_bias(hidden_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the additive mask of a full pass: 0 where query i sees key j, -inf elsewhere.

    Args:
        hidden_BT: True where a token is padding. Such a token is not a key for the others but sees itself, so that no
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


_are_rows_trusted = ContextVar("are rows trusted", default=False)


@contextmanager
def trusted_rows() -> Iterator[None]:
    """Let models take for granted that rows fit and are padded at their ends alone: a look waits for the GPU."""
    token = _are_rows_trusted.set(True)
    try:
        yield
    finally:
        _are_rows_trusted.reset(token)


@uncompiled  # a context variable
def are_rows_trusted() -> bool:
    """Return whether the caller is within `trusted_rows`."""
    return _are_rows_trusted.get()


@uncompiled  # a branch on data
def padding_before_token(hidden_BT: Tensor) -> bool:
    """Return whether any row has padding before a token; padding after all tokens needs no mask but the causal one."""
    if _are_rows_trusted.get():
        return False
    return hidden_BT.shape[1] > 1 and bool((hidden_BT[:, :-1] & ~hidden_BT[:, 1:]).any())


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


def rotation(position_BT: Tensor, d_head: int, dtype: torch.dtype) -> Tensor:
    """Return cosines and sines for `rotate`, of shape (2, B, 1, T, K / 2).

    Source: Su et al. 2021, section 3.2.2.
    """
    column = torch.arange(0, d_head, 2, dtype=torch.float64, device=position_BT.device)
    angle = position_BT[:, None, :, None].to(torch.float64) * torch.exp(column * (-math.log(10000.0) / d_head))
    return torch.stack((angle.cos(), angle.sin())).to(dtype)


def rotate(x_BHTK: Tensor, rotation: Tensor) -> Tensor:
    """Turn each pair of entries, one of the first and one of the second half, by the angle of its position.

    The product of a query and a key turned so depends on the distance of the two alone.
    """
    cos, sin = rotation
    first, second = x_BHTK.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x_BHTK.dtype)


@uncompiled  # times at first use
def attend_by_fastest(
    q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, table: Tensor | None, scale: float, dropout: float
) -> Tensor:
    """Return what `attend_on_cuda` returns, which is imported only now."""
    from models.cuda_attention import attend_on_cuda

    return attend_on_cuda(q_BHTK, k_BHTK, v_BHTK, table, scale, dropout)


class SelfAttention(nn.Module):
    """Causal self-attention with several heads: `logit[i, j] = q_i . k_j / sqrt(d_head)` for j up to i.

    Args:
        bias: whether the linear maps have one.
        qk_norm: normalise queries and keys in each head, so that no logit grows without bound. Source: Dehghani et al.
            2023, section 2.
        dropout: share of the weights that are set to 0 in training.
    """

    max_relative_distance = 0  # rows of a relative table

    def __init__(
        self, d_model: int, n_heads: int, *, bias: bool = True, qk_norm: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.d_head = d_model // n_heads
        self.scale = self.d_head**-0.5
        self.dropout = dropout
        self.to_qkv = nn.Linear(d_model, 3 * d_model, bias=bias)
        self.to_out = nn.Linear(d_model, d_model, bias=bias)
        self.q_norm = nn.LayerNorm(self.d_head, bias=False) if qk_norm else None
        self.k_norm = nn.LayerNorm(self.d_head, bias=False) if qk_norm else None

    def forward(
        self,
        x_BTD: Tensor,
        bias_B1TJ: Tensor | None = None,
        cache: LayerCache | None = None,
        rotation: Tensor | None = None,
    ) -> Tensor:
        """Attend within `x_BTD`, and with a cache also to what came before; new keys and values are added to it.

        Args:
            bias_B1TJ: what to add to the logits, -inf for later keys included; None: only these are hidden.
            rotation: how to `rotate` queries and keys.
        """
        qkv_BTD = self.to_qkv(x_BTD)
        if cache is not None and cache.plan is not None and cache.plan.is_one_step:
            return self.to_out(self.attend_one(qkv_BTD[:, 0], cache, cache.plan, rotation))[:, None]
        q_BHTK, k_BHTK, v_BHTK = self.split_heads(qkv_BTD)
        if self.q_norm is not None and self.k_norm is not None:
            q_BHTK, k_BHTK = self.q_norm(q_BHTK), self.k_norm(k_BHTK)
        if rotation is not None:
            q_BHTK, k_BHTK = rotate(q_BHTK, rotation), rotate(k_BHTK, rotation)
        if cache is None:
            y_BHTK = self.attend_without_cache(q_BHTK, k_BHTK, v_BHTK, bias_B1TJ)
        else:
            k_BHKJ, v_BHJK = cache.append(k_BHTK.transpose(-1, -2), v_BHTK)
            if cache.plan is None:
                y_BHTK = self.attend(q_BHTK, k_BHTK, v_BHTK, bias_B1TJ)
            else:
                y_BHTK = self.attend_to_cache(q_BHTK, k_BHKJ, v_BHJK, cache.plan)
        return self.to_out(y_BHTK.transpose(1, 2).flatten(2))

    def split_heads(self, qkv_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return q_BHTK, k_BHTK and v_BHTK from their concatenation of width 3 * D."""
        B, T, _ = qkv_BTD.shape
        q, k, v = qkv_BTD.view(B, T, 3, self.n_heads, self.d_head).permute(2, 0, 3, 1, 4).unbind()
        return q, k, v

    def relative_rows(self, n_rows: int) -> Tensor | None:
        """Return a vector for each of the distances `n_rows - 1` to 0, of shape (H, R, K) or (R, K), if any."""
        return None

    def attend_without_cache(self, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, bias_B1TJ: Tensor | None) -> Tensor:
        """Return y_BHTK as `attend` does, on CUDA by the form that is fastest there.

        What is sampled must not depend on what was fast on a day, so passes that fill a cache do not come here.
        """
        dropout = self.dropout if self.training else 0.0
        # Without a table there is little to gain, and a choice would break the graph of a compiled model.
        is_plain = not self.max_relative_distance and (dropout > 0 or torch.compiler.is_compiling())
        if q_BHTK.device.type != "cuda" or bias_B1TJ is not None or is_plain:
            return self.attend(q_BHTK, k_BHTK, v_BHTK, bias_B1TJ)
        table = self.relative_rows(min(q_BHTK.shape[2], self.max_relative_distance))
        return attend_by_fastest(q_BHTK, k_BHTK, v_BHTK, table, self.scale, dropout)

    def attend(self, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, bias_B1TJ: Tensor | None) -> Tensor:
        """Return y_BHTK: causal attention to new keys alone; `bias_B1TJ` hides padding."""
        q_BHTK = q_BHTK * self.scale
        dropout = self.dropout if self.training else 0.0
        table = self.relative_rows(q_BHTK.shape[2])
        # PyTorch's own attention has no table, and on a CPU with dropout it is 5 times slower.
        if table is None and not (dropout and q_BHTK.device.type == "cpu"):
            bias_B1TJ = None if bias_B1TJ is None else bias_B1TJ.to(q_BHTK.dtype)
            return functional.scaled_dot_product_attention(
                q_BHTK, k_BHTK, v_BHTK, bias_B1TJ, dropout_p=dropout, is_causal=bias_B1TJ is None, scale=1.0
            )
        return attend_in_blocks(q_BHTK, k_BHTK, v_BHTK, table, bias_B1TJ, dropout)

    def attend_one(self, qkv_BD: Tensor, cache: LayerCache, plan: CachePlan, rotation: Tensor | None) -> Tensor:
        """Attend from one new token a row, at the same place in all, in few calls: with few rows each one counts."""
        B, H, J = qkv_BD.shape[0], self.n_heads, plan.n_keys
        q_BHK, k_BHK, v_BHK = qkv_BD.view(B, 3, H, self.d_head).unbind(1)
        if self.q_norm is not None and self.k_norm is not None:
            q_BHK, k_BHK = self.q_norm(q_BHK), self.k_norm(k_BHK)
        if rotation is not None:
            q_BHK, k_BHK = rotate(q_BHK, rotation[..., 0, :]), rotate(k_BHK, rotation[..., 0, :])
        cache.keys_BHKJ[..., J - 1] = k_BHK
        cache.values_BHJK[:, :, J - 1] = v_BHK
        q_X1K = q_BHK.reshape(B * H, 1, self.d_head)  # X: heads of all rows
        k_XKJ, v_XJK = cache.keys_BHKJ[..., :J].flatten(0, 1), cache.values_BHJK[:, :, :J].flatten(0, 1)
        table = self.relative_rows(plan.n_distances)
        if table is None:
            scores_X1J = torch.bmm(q_X1K * self.scale, k_XKJ)
        else:
            if table.ndim == 2:
                added_X1J = (q_X1K[:, 0] @ table.mT)[:, None]
            else:
                added_X1J = (q_BHK.transpose(0, 1) @ table.mT).transpose(0, 1).reshape(B * H, 1, plan.n_distances)
            if plan.n_distances < J:
                oldest_X1J = added_X1J[..., :1].expand(-1, -1, J - plan.n_distances)
                added_X1J = torch.cat((oldest_X1J, added_X1J), dim=-1)
            scores_X1J = torch.baddbmm(added_X1J, q_X1K, k_XKJ, beta=self.scale, alpha=self.scale)
        return torch.bmm(scores_X1J.softmax(-1), v_XJK).view(B, H * self.d_head)

    def attend_to_cache(self, q_BHTK: Tensor, k_BHKJ: Tensor, v_BHJK: Tensor, plan: CachePlan) -> Tensor:
        """Return y_BHTK: new queries attend to all keys of the cache, at the distances that `plan` holds."""
        if plan.row_keys is not None:
            return self.attend_row_by_row(q_BHTK * self.scale, k_BHKJ, v_BHJK, plan.row_keys)
        assert plan.relative_index_BTJ is not None
        assert plan.bias_B1TJ is not None
        table = self.relative_rows(plan.n_distances)
        if table is None:
            scores_BHTJ = q_BHTK * self.scale @ k_BHKJ
        else:
            index_BHTJ = plan.relative_index_BTJ[:, None].expand(-1, self.n_heads, -1, -1)
            added_BHTJ = distance_scores(q_BHTK.transpose(0, 1), table).transpose(0, 1).gather(-1, index_BHTJ)
            q_XTK, k_XKJ = q_BHTK.flatten(0, 1), k_BHKJ.flatten(0, 1)  # X: heads of all rows
            scores_XTJ = torch.baddbmm(added_BHTJ.flatten(0, 1), q_XTK, k_XKJ, beta=self.scale, alpha=self.scale)
            scores_BHTJ = scores_XTJ.unflatten(0, q_BHTK.shape[:2])
        scores_BHTJ += plan.bias_B1TJ
        return scores_BHTJ.softmax(-1) @ v_BHJK

    def attend_row_by_row(self, q_BHTK: Tensor, k_BHKJ: Tensor, v_BHJK: Tensor, row_keys: list[int]) -> Tensor:
        """Attend to the keys that each row has, and read no others."""
        rows = []
        table = self.relative_rows(k_BHKJ.shape[-1])
        relative_HBTJ = None if table is None else distance_scores(q_BHTK.transpose(0, 1), table)
        for row, n_keys in enumerate(row_keys):
            scores_HTJ = q_BHTK[row] @ k_BHKJ[row, ..., :n_keys]
            if relative_HBTJ is not None:
                scores_HTJ += relative_HBTJ[:, row, :, -n_keys:]
            rows.append(scores_HTJ.softmax(-1) @ v_BHJK[row, :, :n_keys])
        return torch.stack(rows)


class RelativeAttention(SelfAttention):
    """Causal self-attention with a learned vector for each distance, one per head or one that the heads share.

    `logit[i, j] = (q_i . k_j + q_i . E[M - 1 - min(i - j, M - 1)]) / sqrt(d_head)`: the last row of the table is
    distance 0, the first one every distance of `max_relative_distance - 1` and more.
    Source: Huang et al. 2019; Shaw et al. 2018 for the clipped distance and the shared table.
    """

    def __init__(
        self, d_model: int, n_heads: int, max_relative_distance: int, *, shared: bool = False, **options: Any
    ) -> None:
        super().__init__(d_model, n_heads, **options)
        self.max_relative_distance = max_relative_distance
        self.shared = shared
        # A row holds the vectors of all heads, or the one of all.
        self.relative_MD = nn.Parameter(torch.empty(max_relative_distance, self.d_head if shared else d_model))
        # Each head starts with sharp and random preferences among distances. Adam moves an entry by no more than about
        # the learning rate in a step, so a table that starts near 0 needs hundreds of steps to prefer anything.
        nn.init.normal_(self.relative_MD, std=1.0)

    def relative_rows(self, n_rows: int) -> Tensor:
        """Return the vectors of distances `n_rows - 1` to 0; the oldest row repeats as needed."""
        table_RD = self.relative_MD[max(self.max_relative_distance - n_rows, 0) :]
        if n_rows > self.max_relative_distance:
            oldest_RD = self.relative_MD[:1].expand(n_rows - self.max_relative_distance, -1)
            table_RD = torch.cat((oldest_RD, table_RD))
        return table_RD if self.shared else table_RD.unflatten(-1, (self.n_heads, self.d_head)).transpose(0, 1)


class FeedForward(nn.Module):
    """Two linear layers with a non-linearity between them.

    Args:
        gated: multiply what the non-linearity gives with a second linear map of the input. Source: Shazeer 2020.
    """

    def __init__(
        self, d_model: int, d_ff: int, *, activation: str = "relu", gated: bool = False, bias: bool = True
    ) -> None:
        super().__init__()
        self.activate = ACTIVATIONS[activation]
        self.gated = gated
        self.to_hidden = nn.Linear(d_model, 2 * d_ff if gated else d_ff, bias=bias)
        self.to_out = nn.Linear(d_ff, d_model, bias=bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return y_BTD: up to `d_ff`, the activation, and back to D, at each position alone."""
        return feed_forward(x_BTD, self.to_hidden, self.activate, self.to_out, self.gated)


def feed_forward(x_BTD: Tensor, to_hidden: Map, activate: Map, to_out: Map, gated: bool) -> Tensor:
    """Return what `FeedForward` computes with these parts."""
    hidden = to_hidden(x_BTD)
    if not gated:
        return to_out(activate(hidden))
    gate, hidden = hidden.chunk(2, dim=-1)
    return to_out(activate(gate) * hidden)
