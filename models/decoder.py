"""Decoder-only transformer with relative attention (Huang et al. 2019). Shape letters: see layers.py."""

import math

from torch import Tensor, nn

from models.config import DecoderConfig
from models.layers import (
    CachePlan,
    FeedForward,
    KVCache,
    LayerCache,
    RelativeAttention,
    causal_bias,
    positions_after_padding,
    sinusoids,
)


class DecoderBlock(nn.Module):
    """One layer: normalise, transform, drop out, add; first attention, then feed-forward."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.attention = RelativeAttention(config.d_model, config.n_heads, config.max_relative_distance)
        self.feed_forward_norm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.feed_forward = FeedForward(config.d_model, config.d_ff)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, bias_B1TJ: Tensor, cache: LayerCache | None = None) -> Tensor:
        x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD), bias_B1TJ, cache))
        return x_BTD + self.dropout(self.feed_forward(self.feed_forward_norm(x_BTD)))


class Decoder(nn.Module):
    """Token ids to logits of the next id.

    Args:
        vocab_size: number of ids, padding included.
        pad_id: this id is no key for other positions, so padding on either side leaves all other logits unchanged.
    """

    def __init__(self, config: DecoderConfig, vocab_size: int, pad_id: int = 0) -> None:
        super().__init__()
        if not 0 <= pad_id < vocab_size:
            raise ValueError(f"pad_id={pad_id} is outside 0-{vocab_size - 1}, the ids of vocab_size={vocab_size}")
        self.config = config
        self.vocab_size = vocab_size
        self.pad_id = pad_id
        self.embed = nn.Embedding(vocab_size, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.n_layers))
        self.norm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.head = nn.Linear(config.d_model, vocab_size)
        # Times sqrt(d_model) in `forward`, this gives entries of about 0.2: small beside what the layers add, so that
        # these are heard from the start. The original's entries of about 11 drown them.
        nn.init.normal_(self.embed.weight, std=0.2 * config.d_model**-0.5)

    @property
    def n_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def new_cache(self, batch_size: int, max_length: int) -> KVCache:
        """Return an empty cache for `forward`, with room for `max_length` tokens a row."""
        config = self.config
        shape_LBHJK = (config.n_layers, batch_size, config.n_heads, max_length, config.d_head)
        return KVCache.empty(shape_LBHJK, like=self.embed.weight)

    def forward(self, tokens_BT: Tensor, cache: KVCache | None = None) -> Tensor:
        """Return logits of shape (B, T, V) for the id after each of `tokens_BT`.

        Args:
            tokens_BT: int64 ids; right or left padding, right padding only with a cache.
            cache: what came before `tokens_BT` in each row; the call appends to it in place. Rows may hold different
                numbers of tokens, and padding at a row's end is not counted, so its next token takes that place.
        Raises:
            ValueError: the cache has no room, another batch size, or a row with padding before a token.
        """
        hidden_BT = tokens_BT == self.pad_id
        if cache is not None:
            self.check_cache(hidden_BT, cache)
        plan = None
        if cache is None or not cache.length_B.any():
            bias_B1TJ = causal_bias(hidden_BT, self.embed.weight.dtype)
        else:
            plan = CachePlan.of(
                cache.length_B, tokens_BT.shape[1], self.config.max_relative_distance, self.embed.weight.dtype
            )
            bias_B1TJ = plan.bias_B1TJ

        x_BTD = self.embed(tokens_BT) * math.sqrt(self.config.d_model)
        if self.config.absolute_positions == "sinusoidal":
            position_BT = positions_after_padding(hidden_BT) if plan is None else plan.position_BT
            x_BTD = x_BTD + sinusoids(position_BT, self.config.d_model, x_BTD.dtype)
        x_BTD = self.dropout(x_BTD)
        for i, block in enumerate(self.blocks):
            x_BTD = block(x_BTD, bias_B1TJ, None if cache is None else cache.layer(i, plan))
        if cache is not None:
            cache.length_B += (~hidden_BT).sum(dim=1)
        return self.head(self.norm(x_BTD))

    def check_cache(self, hidden_BT: Tensor, cache: KVCache) -> None:
        B, T = hidden_BT.shape
        if cache.batch_size != B:
            raise ValueError(f"the cache has {cache.batch_size} rows, the batch {B}")
        longest = int(cache.length_B.max()) if B else 0
        if longest + T > cache.max_length:
            raise ValueError(
                f"{longest} cached tokens and {T} new ones exceed the cache's max_length={cache.max_length}"
            )
        if T > 1 and bool((hidden_BT[:, :-1] & ~hidden_BT[:, 1:]).any()):
            raise ValueError("with a cache, padding may only stand at the end of a row")
