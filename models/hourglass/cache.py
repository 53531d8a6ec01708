"""The cache of an hourglass between calls, and the positions of its vectors. Shape letters: see layers.py.

T and J count vectors of whichever scale is meant; G is the place within a group. Scale 0 is that of the tokens.
Vector i of the next one represents `factor` vectors, the last of which is number `i * factor`: it exists as soon as
that one does, so n vectors make `ceil(n / factor)`.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from models.config import HourglassConfig
from models.layers import CachePlan, KVCache, LayerCache


@dataclass(slots=True, eq=False)
class LevelMemory:
    """What two neighbouring scales hand over in later calls.

    Attributes:
        tail_BGD: the last `factor - 1` vectors that went into the longer one of the two scales.
        last_B1D: the last vector that came out of the shorter one.
    """

    tail_BGD: Tensor
    last_B1D: Tensor

    def rows(self, start: int, end: int) -> "LevelMemory":
        """Return rows `start` to `end`, without `end`, as views."""
        return LevelMemory(self.tail_BGD[start:end], self.last_B1D[start:end])

    def copy_row(self, source: int, target: int) -> None:
        """Copy row `source` onto row `target` in place."""
        self.tail_BGD[target] = self.tail_BGD[source]
        self.last_B1D[target] = self.last_B1D[source]


@dataclass(slots=True, eq=False)
class HourglassCache:
    """One `KVCache` for each scale, and the memory of each level; rows may hold different numbers of tokens.

    The lengths of the shorter scales follow from those of the tokens: only `length_B` counts.
    """

    scales: list[KVCache]
    levels: list[LevelMemory]

    @classmethod
    def empty(cls, config: HourglassConfig, batch_size: int, max_length: int, like: Tensor) -> "HourglassCache":
        """Return a cache of no tokens, of the dtype and on the device of `like`, with room for `max_length` a row."""
        # One place more at each shorter scale: in a call with rows of different lengths, those with nothing new at a
        # scale write beside their end.
        lengths = [max_length]
        for factor in config.factors:
            lengths.append(-(-max_length // factor) + 1)
            max_length = lengths[-1]
        scales = [
            KVCache.empty((n_layers, batch_size, config.n_heads, length, config.d_head), like)
            for n_layers, length in zip(n_cached_layers(config), lengths, strict=True)
        ]
        levels = [
            LevelMemory(
                like.new_zeros(batch_size, factor - 1, config.d_model), like.new_zeros(batch_size, 1, config.d_model)
            )
            for factor in config.factors
        ]
        return cls(scales, levels)

    @property
    def length_B(self) -> Tensor:
        """Number of tokens that each row holds."""
        return self.scales[0].length_B

    @property
    def max_length(self) -> int:
        """Number of tokens that a row can hold."""
        return self.scales[0].max_length

    @property
    def batch_size(self) -> int:
        """Number of rows."""
        return self.scales[0].batch_size

    def rows(self, start: int, end: int) -> "HourglassCache":
        """Return rows `start` to `end` (excluded) as a cache that shares its memory with this one."""
        return HourglassCache(
            [scale.rows(start, end) for scale in self.scales], [level.rows(start, end) for level in self.levels]
        )

    def start_row(self, row: int, piece: int) -> None:
        """Empty a row for another piece."""
        self.length_B[row] = 0

    def copy_row(self, source: int, target: int) -> None:
        """Overwrite row `target` with row `source`."""
        for part in (*self.scales, *self.levels):
            part.copy_row(source, target)

    def advance(self, scales: "list[Scale]") -> None:
        """Count the new vectors of a call."""
        for memory, scale in zip(self.scales, scales, strict=True):
            memory.length_B.copy_(scale.length_B + scale.n_real_B)


def n_cached_layers(config: HourglassConfig) -> list[int]:
    """Return for each scale how many layers attend to its keys, those between two scales included."""
    middle = config.n_levels
    depths = [config.depths[k] + config.depths[-1 - k] for k in range(middle)] + [config.depths[middle]]
    if config.attention_resampling:
        # The way down looks at the keys of the longer scale, the way up at those of the shorter one.
        depths = [depth + (k < middle) + (k > 0) for k, depth in enumerate(depths)]
    return depths


@dataclass(slots=True, eq=False)
class Scale:
    """One scale during one call.

    Attributes:
        position_BT: place of each new vector; B is 1 in a pass without a cache.
        n_keys: vectors that may be looked at, old and new.
        bias_B1TJ: 0 where a new vector sees another one of this scale, -inf elsewhere; None: it sees all up to itself.
        length_B, n_real_B: vectors before the call, and how many of the new ones count; without a cache, all do.
        plan: None while the cache is empty.
        handover: memory of the level between this scale and the next longer one.
    """

    position_BT: Tensor
    n_keys: int
    bias_B1TJ: Tensor | None
    length_B: Tensor
    n_real_B: Tensor
    plan: CachePlan | None = None
    cache: KVCache | None = None
    handover: LevelMemory | None = None

    @property
    def n_new(self) -> int:
        """Number of new vectors a row in this call."""
        return self.position_BT.shape[1]

    def layer(self, index: int) -> LayerCache | None:
        """Return the cache of one layer at this scale, or None without a cache."""
        return None if self.cache is None else self.cache.layer(index, self.plan)


def fresh_scales(config: HourglassConfig, n_tokens: int, device: torch.device) -> list[Scale]:
    """Return the scales of a call with `n_tokens` for each row and nothing before them."""
    scales = []
    n_new = n_tokens
    for factor in (1, *config.factors):
        n_new = -(-n_new // factor)
        position_T = torch.arange(n_new, device=device)
        scales.append(Scale(position_T[None], n_new, None, position_T.new_zeros(1), position_T.new_full((1,), n_new)))
    return scales


def cached_scales(config: HourglassConfig, n_tokens: int, n_real_B: Tensor, cache: HourglassCache) -> list[Scale]:
    """Return the scales of a call with `n_tokens` more for each row, of which the first `n_real_B` count."""
    dtype = cache.scales[0].values_LBHJK.dtype
    length_B = cache.length_B.clone()
    end_B = length_B + n_real_B
    is_empty = not bool(length_B.any())
    scales = fresh_scales(config, n_tokens, length_B.device) if is_empty else []
    for k, factor in enumerate((1, *config.factors)):
        length_B, end_B = shortened(length_B, factor), shortened(end_B, factor)
        n_real_B = end_B - length_B
        if not is_empty:
            plan = CachePlan.of(length_B, int(n_real_B.max()) if k else n_tokens, config.max_relative_distance, dtype)
            scales.append(Scale(plan.position_BT, plan.n_keys, plan.bias_B1TJ, length_B, n_real_B, plan))
        scales[k].length_B, scales[k].n_real_B, scales[k].cache = length_B, n_real_B, cache.scales[k]
        scales[k].handover = cache.levels[k - 1] if k else None
    return scales


def shortened(length_B: Tensor, factor: int) -> Tensor:
    """Return how many shortened vectors exist for `length_B` vectors: the quotient by `factor`, rounded up."""
    return (length_B + factor - 1) // factor


def visible(time_BT: Tensor, key_time_J: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask to add, of shape (B, 1, T, J): 0 where a key's time is not after the query's, -inf elsewhere."""
    later_BTJ = key_time_J > time_BT[:, :, None]
    return torch.zeros(later_BTJ.shape, dtype=dtype, device=time_BT.device).masked_fill_(later_BTJ, -math.inf)[:, None]
