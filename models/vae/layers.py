"""Encoder and decoder stacks of the VAE: full attention, and causal attention with cross-attention to a latent.

Source: Vaswani et al. 2017, with the norms before each part and the initialisation of Radford et al. 2019.
Shape letters: see layers.py; here J is also the block, the number of vectors that a latent represents, and X represents
any axes.
"""

import math
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.config import VaeConfig
from models.dropout import Dropout
from models.layers import FeedForward

GPT2_STD, GPT2_D_MODEL = 0.02, 768


class Attention(nn.Module):
    """Scaled dot-product attention of one sequence to another or to itself."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.dropout = config.dropout
        self.to_q = nn.Linear(config.d_model, config.d_model, bias=config.bias)
        self.to_kv = nn.Linear(config.d_model, 2 * config.d_model, bias=config.bias)
        self.to_out = nn.Linear(config.d_model, config.d_model, bias=config.bias)

    def keys_values(self, x_BJD: Tensor) -> Tensor:
        """Return keys and values of the attended vectors, of shape (B, 2, H, J, K)."""
        return self.to_kv(x_BJD).unflatten(-1, (2, self.n_heads, -1)).permute(0, 2, 3, 1, 4)

    def forward(
        self, x_BTD: Tensor, kv_B2HJK: Tensor, mask_BHTJ: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Return what each vector of `x_BTD` finds at the keys.

        Args:
            mask_BHTJ: True where a key is seen, or what is added to its score; None: all are seen alike.
        """
        q_BHTK = self.to_q(x_BTD).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
        if mask_BHTJ is not None and mask_BHTJ.is_floating_point():
            mask_BHTJ = mask_BHTJ.to(q_BHTK.dtype)
        y_BHTK = functional.scaled_dot_product_attention(
            q_BHTK,
            kv_B2HJK[:, 0],
            kv_B2HJK[:, 1],
            attn_mask=mask_BHTJ,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=is_causal,
        )
        return self.to_out(y_BHTK.transpose(1, 2).flatten(2))


class EncoderBlock(nn.Module):
    """One layer in which every position sees all others."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.attention_norm = build_norm(config)
        self.attention = Attention(config)
        self.feed_forward_norm = build_norm(config)
        self.feed_forward = build_feed_forward(config)
        self.dropout = Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, visible_B11J: Tensor | None = None) -> Tensor:
        """Return x_BTD after full attention and feed-forward; `visible_B11J` is False at padding."""
        y_BTD = self.attention_norm(x_BTD)
        x_BTD = x_BTD + self.dropout(self.attention(y_BTD, self.attention.keys_values(y_BTD), visible_B11J))
        return x_BTD + self.dropout(self.feed_forward(self.feed_forward_norm(x_BTD)))


class DecoderBlock(nn.Module):
    """One layer in which a position sees those before it, itself, and all of what the latent represents."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.attention_norm = build_norm(config)
        self.attention = Attention(config)
        self.n_unread = config.n_given - 1
        self.cross_norm = build_norm(config)
        self.cross = Attention(config)
        self.feed_forward_norm = build_norm(config)
        self.feed_forward = build_feed_forward(config)
        self.dropout = Dropout(config.dropout)

    def forward(
        self,
        x_BTD: Tensor,
        position_BT: Tensor,
        nearness_BHTJ: Tensor,
        latent_B2HJK: Tensor,
        tokens_B2HJK: Tensor | None,
    ) -> Tensor:
        """Return the vectors after this layer.

        Args:
            nearness_BHTJ: what is added to the scores of the vectors that the latent represents.
            latent_B2HJK: their keys and values.
            tokens_B2HJK: memory of the tokens before `x_BTD`, whose own are added to it; None: there are none before.
        """
        y_BTD = self.attention_norm(x_BTD)
        kv_B2HTK = self.attention.keys_values(y_BTD)
        if tokens_B2HJK is None:
            y_BTD = self.attention(y_BTD, kv_B2HTK, is_causal=True)
        else:
            row_B1 = torch.arange(len(x_BTD), device=x_BTD.device)[:, None]
            tokens_B2HJK[row_B1, :, :, position_BT] = kv_B2HTK.permute(0, 3, 1, 2, 4).to(tokens_B2HJK.dtype)
            key_J = torch.arange(tokens_B2HJK.shape[3], device=x_BTD.device)
            seen_BTJ = key_J <= position_BT[:, :, None]
            if self.n_unread:  # which see themselves alone, for the softmax over nothing is NaN
                seen_BTJ &= (key_J >= self.n_unread) | (key_J == position_BT[:, :, None])
            y_BTD = self.attention(y_BTD, tokens_B2HJK, seen_BTJ[:, None])
        x_BTD = x_BTD + self.dropout(y_BTD)
        x_BTD = x_BTD + self.dropout(self.cross(self.cross_norm(x_BTD), latent_B2HJK, nearness_BHTJ))
        return x_BTD + self.dropout(self.feed_forward(self.feed_forward_norm(x_BTD)))


class Encoder(nn.Module):
    """Layers in which all positions see each other, and the norm after them."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(EncoderBlock(config) for _ in range(config.n_layers))
        self.norm = build_norm(config)
        init_stack(self, config)

    def forward(self, x_BTD: Tensor, hidden_BT: Tensor | None = None) -> Tensor:
        """Return a vector for each position; where `hidden_BT` is True a position is invisible to the others."""
        visible_B11J = None
        if hidden_BT is not None:
            # A row of padding alone sees its first token, for the softmax over nothing is NaN.
            is_empty_B1 = hidden_BT.all(dim=1, keepdim=True)
            visible_BJ = torch.cat((~hidden_BT[:, :1] | is_empty_B1, ~hidden_BT[:, 1:]), dim=1)
            visible_B11J = visible_BJ[:, None, None]
        for block in self.blocks:
            x_BTD = block(x_BTD, visible_B11J)
        return self.norm(x_BTD)


class CausalStack(nn.Module):
    """Layers in which each position sees those before it and what the latent represents, and the norm after them."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.n_layers))
        self.norm = build_norm(config)
        init_stack(self, config)

    def look_up(self, memory_BJD: Tensor) -> Tensor:
        """Return keys and values of a memory for each layer, of shape (B, L, 2, H, J, K)."""
        blocks = cast(Iterable[DecoderBlock], self.blocks)
        return torch.stack([block.cross.keys_values(memory_BJD) for block in blocks], dim=1)

    def forward(
        self, x_BTD: Tensor, position_BT: Tensor, latent_BL2HJK: Tensor, tokens_BL2HJK: Tensor | None = None
    ) -> Tensor:
        """Return x_BTD after all blocks: causal attention, beside attention to the latent's keys and values."""
        n_heads, J = latent_BL2HJK.shape[3:5]
        nearness_BHTJ = nearness(position_BT, n_heads, J, x_BTD.dtype)
        for i, block in enumerate(self.blocks):
            tokens_B2HJK = None if tokens_BL2HJK is None else tokens_BL2HJK[:, i]
            x_BTD = block(x_BTD, position_BT, nearness_BHTJ, latent_BL2HJK[:, i], tokens_B2HJK)
        return self.norm(x_BTD)


def nearness(position_BT: Tensor, n_heads: int, n_keys: int, dtype: torch.dtype) -> Tensor:
    """Return what is added to the scores of keys for their distance from a position, 0 or less, (B, H, T, J).

    Vector t of what a latent represents belongs to the token that is written from position t. The original leaves that
    to be learned, and by then its decoder has learned to do without the latent. Source of the slopes: Press et al.
    2022, section 3.
    """
    slope_H11 = 2.0 ** (-8 / n_heads * torch.arange(1, n_heads + 1, device=position_BT.device))[:, None, None]
    distance_BTJ = (position_BT[:, :, None] - torch.arange(n_keys, device=position_BT.device)).abs()
    return -(slope_H11 * distance_BTJ[:, None]).to(dtype)


def build_norm(config: VaeConfig) -> nn.LayerNorm:
    """Build a layer norm over D."""
    return nn.LayerNorm(config.d_model, bias=config.bias)


def build_feed_forward(config: VaeConfig) -> FeedForward:
    """Build a feed-forward part four times as wide as D, with GELU."""
    return FeedForward(config.d_model, 4 * config.d_model, activation="gelu", bias=config.bias)


def init_std(d_model: int) -> float:
    """Return the spread of weights that gives a layer's output the size that it has in GPT-2, which is wider.

    With GPT-2's own 0.02, as in the original, a narrow model's attention is all but even at first: after 200 steps on
    chorales its loss was 1.57 nats per token with d_model=64, with this spread 1.41.
    """
    return GPT2_STD * math.sqrt(GPT2_D_MODEL / d_model)


def init_stack(stack: nn.Module, config: VaeConfig) -> None:
    """Draw the weights of a stack, smaller ones where a layer adds to the stream: Radford et al. 2019, section 2.3."""
    std = init_std(config.d_model)
    for name, module in stack.named_modules():
        if isinstance(module, nn.Linear):
            is_adding = name.endswith("to_out")
            nn.init.normal_(module.weight, std=std / math.sqrt(2 * config.n_layers) if is_adding else std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def build_table(n_rows: int, d_model: int) -> nn.Embedding:
    """Build an embedding of `n_rows` vectors, normally distributed with the standard deviation for `d_model`."""
    table = nn.Embedding(n_rows, d_model)
    nn.init.normal_(table.weight, std=init_std(d_model))
    return table
