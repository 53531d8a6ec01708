"""Decoder-only transformer: Music Transformer, RGA, GPT and a modern one, selected by `DecoderConfig`.

Sources: Huang et al. 2019 (relative attention), Radford et al. 2019 (GPT). Shape letters: see layers.py.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.config import DecoderConfig
from models.dropout import Dropout
from models.layers import (
    CachePlan,
    FeedForward,
    KVCache,
    LayerCache,
    RelativeAttention,
    SelfAttention,
    TokenModel,
    are_rows_trusted,
    causal_bias,
    check_room,
    padding_before_token,
    positions_after_padding,
    rotation,
    sinusoids,
)


class DecoderBlock(nn.Module):
    """One layer: normalise, transform, drop out, add; first attention, then feed-forward."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.attention_norm = build_norm(config)
        self.attention = build_attention(config)
        self.feed_forward_norm = build_norm(config)
        self.feed_forward = FeedForward(
            config.d_model,
            config.d_ff,
            activation=config.activation,
            gated=config.feed_forward == "gated",
            bias=config.bias,
        )
        self.dropout = Dropout(config.dropout)

    def forward(
        self, x_BTD: Tensor, bias_B1TJ: Tensor | None, cache: LayerCache | None, rotation: Tensor | None
    ) -> Tensor:
        """Return x_BTD after attention and feed-forward, each with its norm before and its residual."""
        x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD), bias_B1TJ, cache, rotation))
        return x_BTD + self.dropout(self.feed_forward(self.feed_forward_norm(x_BTD)))


def build_norm(config: DecoderConfig) -> nn.Module:
    """Build the norm that the config names: RMS norm or layer norm over D."""
    if config.norm == "rms":
        return nn.RMSNorm(config.d_model, eps=config.norm_eps)
    return nn.LayerNorm(config.d_model, eps=config.norm_eps, bias=config.bias)


def build_attention(config: DecoderConfig) -> SelfAttention:
    """Build the self-attention of one block, with a relative table where the config asks for one."""
    sizes = config.d_model, config.n_heads
    options: dict[str, Any] = {"bias": config.bias, "qk_norm": config.qk_norm, "dropout": config.attention_dropout}
    if config.relative_positions not in ("per_head", "shared"):
        return SelfAttention(*sizes, **options)
    is_shared = config.relative_positions == "shared"
    return RelativeAttention(*sizes, config.max_relative_distance, shared=is_shared, **options)


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """What all layers of one call get, `x_BTD` the first of them alone."""

    x_BTD: Tensor
    hidden_BT: Tensor
    plan: CachePlan | None
    bias_B1TJ: Tensor | None
    rotation: Tensor | None


class Decoder(TokenModel):
    """Token ids to logits of the next id.

    Args:
        vocab_size: number of ids, padding included.
        pad_id: this id is not a key for other positions, so padding on either side leaves all other logits unchanged.
    """

    def __init__(self, config: DecoderConfig, vocab_size: int, pad_id: int = 0) -> None:
        super().__init__(config, vocab_size, pad_id)
        self.embed = nn.Embedding(vocab_size, config.d_model)
        is_learned = config.absolute_positions == "learned"
        self.embed_position = nn.Embedding(config.max_positions, config.d_model) if is_learned else None
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.n_layers))
        self.norm = build_norm(config)
        is_tied = config.head == "tied"
        self.head = None if is_tied else nn.Linear(config.d_model, vocab_size, bias=config.head == "biased")
        initialise(self)

    @property
    def max_length(self) -> int | None:
        """Most tokens that `forward` takes in a row, cached ones included; None: any number."""
        return None if self.embed_position is None else self.config.max_positions

    def new_cache(self, batch_size: int, max_length: int, dtype: torch.dtype | None = None) -> KVCache:
        """Return an empty cache for `forward`, with room for `max_length` tokens a row.

        Args:
            dtype: of keys and values; None: that of the weights.

        Raises:
            ValueError: the model has no positions for so many tokens.
        """
        config = self.config
        if self.max_length is not None and max_length > self.max_length:
            raise ValueError(f"a cache for {max_length} tokens, but the model has max_positions={self.max_length}")
        shape_LBHJK = (config.n_layers, batch_size, config.n_heads, max_length, config.d_head)
        return KVCache.empty(shape_LBHJK, self.embed.weight, dtype)

    def forward(self, tokens_BT: Tensor, cache: KVCache | None = None) -> Tensor:
        """Return logits of shape (B, T, V) for the id after each of `tokens_BT`.

        Args:
            tokens_BT: int64 ids; right or left padding, right padding only with a cache.
            cache: what came before `tokens_BT` in each row; the call appends to it in place. Rows may hold different
                numbers of tokens, and padding at a row's end is not counted, so its next token takes that place.
        Raises:
            ValueError: the cache has no room, another batch size, or a row with padding before a token; or a row is
                longer than `max_positions`.
        """
        start = self.begin(tokens_BT, cache)
        return self.end(self.run_blocks(start, cache), start, cache)

    def begin(self, tokens_BT: Tensor, cache: KVCache | None) -> Start:
        """Return what the first layer gets; see `forward`."""
        hidden_BT = tokens_BT == self.pad_id
        is_interrupted = padding_before_token(hidden_BT)
        if cache is not None:
            check_room(cache.length_B, cache.max_length, tokens_BT)
            if is_interrupted:
                raise ValueError("with a cache, padding may only stand at the end of a row")
        plan, bias_B1TJ = None, None
        if cache is not None and cache.length_B.any():
            plan = CachePlan.of(
                cache.length_B, tokens_BT.shape[1], self.config.max_relative_distance, self.embed.weight.dtype
            )
            bias_B1TJ = plan.bias_B1TJ
        elif is_interrupted:
            bias_B1TJ = causal_bias(hidden_BT, self.embed.weight.dtype)
        x_BTD = self.dropout(self.embed_tokens(tokens_BT, hidden_BT, plan))
        return Start(x_BTD, hidden_BT, plan, bias_B1TJ, self.rotation_for(tokens_BT, plan))

    def run_blocks(self, start: Start, cache: KVCache | None) -> Tensor:
        """Return x_BTD after all blocks; their new keys and values go into `cache`."""
        x_BTD = start.x_BTD
        for i, block in enumerate(self.blocks):
            of_layer = None if cache is None else cache.layer(i, start.plan)
            x_BTD = block(x_BTD, start.bias_B1TJ, of_layer, start.rotation)
        return x_BTD

    def end(self, x_BTD: Tensor, start: Start, cache: KVCache | None) -> Tensor:
        """Return the logits from what the last layer gives, and count the tokens in the cache."""
        if cache is not None:
            cache.length_B += (~start.hidden_BT).sum(dim=1)
        x_BTD = self.norm(x_BTD)
        return functional.linear(x_BTD, self.embed.weight) if self.head is None else self.head(x_BTD)

    def embed_tokens(self, tokens_BT: Tensor, hidden_BT: Tensor, plan: CachePlan | None) -> Tensor:
        """Return x_BTD: token embeddings plus absolute positions, where the config has any."""
        x_BTD = self.embed(tokens_BT)
        if self.config.embedding_scale:
            x_BTD = x_BTD * math.sqrt(self.config.d_model)
        if self.config.absolute_positions == "none":
            return x_BTD
        position_BT = positions_after_padding(hidden_BT) if plan is None else plan.position_BT
        if self.embed_position is None:
            return x_BTD + sinusoids(position_BT, self.config.d_model, x_BTD.dtype)
        return x_BTD + self.embed_position(self.checked_positions(position_BT, hidden_BT))

    def checked_positions(self, position_BT: Tensor, hidden_BT: Tensor) -> Tensor:
        """Return positions that all have a vector, those of padding clipped to the last one."""
        last = self.config.max_positions - 1
        if are_rows_trusted():
            return position_BT.clamp_max(last)
        longest = int(position_BT.masked_fill(hidden_BT, 0).max()) if position_BT.numel() else 0
        if longest > last:
            raise ValueError(f"a row of {longest + 1} tokens, but the model has max_positions={last + 1}")
        return position_BT.clamp_max(last)

    def rotation_for(self, tokens_BT: Tensor, plan: CachePlan | None) -> Tensor | None:
        """Return the rotation of queries and keys at the positions of `tokens_BT`, or None without rotary positions."""
        if self.config.relative_positions != "rotary":
            return None
        # Only distances count, so that padding in front of a row need not be told apart.
        every_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
        position_BT = every_T[None] if plan is None else plan.position_BT
        return rotation(position_BT, self.config.d_head, self.embed.weight.dtype)


def initialise(decoder: Decoder) -> None:
    """Initialise the weights by `config.initialisation`; layers that it does not name keep their defaults."""
    config = decoder.config
    if config.initialisation in ("music_transformer", "scaled"):
        # Times sqrt(d_model) in `forward`, this gives entries of about 0.2: small beside what the layers add, so that
        # these are heard from the start. The original's entries of about 11 drown them.
        nn.init.normal_(decoder.embed.weight, std=0.2 * config.d_model**-0.5)
    else:
        nn.init.normal_(decoder.embed.weight, std=0.02)
    if decoder.embed_position is not None:
        nn.init.zeros_(decoder.embed_position.weight)
    if config.initialisation == "scaled":
        fill_linear_maps(decoder, scaled=True)
    elif config.initialisation != "music_transformer":
        fill_linear_maps(decoder, scaled=False)
    if config.initialisation == "rga":
        for module in decoder.modules():
            if isinstance(module, SelfAttention):
                nn.init.xavier_uniform_(module.to_qkv.weight)
            if isinstance(module, RelativeAttention):
                nn.init.uniform_(module.relative_MD)


def fill_linear_maps(decoder: Decoder, scaled: bool) -> None:
    """Draw matrices from a normal distribution and set biases to 0; see `initialisation` of `DecoderConfig`."""
    for name, module in decoder.named_modules():
        if isinstance(module, nn.Linear):
            adds_to_stream = name.endswith("to_out")  # twice a layer
            narrowing = (2 * decoder.config.n_layers) ** -0.5 if adds_to_stream else 1.0
            nn.init.normal_(module.weight, std=narrowing * module.in_features**-0.5 if scaled else 0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
