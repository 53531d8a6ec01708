"""A decoder's one-token step for each row: the arithmetic of `Decoder.forward` without its modules.

With few rows a step takes about as long as reading all weights once. Each product leaves the processor's caches full of
weights, so what a module does around its product is read again from memory: with 10.8 million parameters that is a
seventh of the step. Here every layer's weights are at hand, and one product follows the other.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.decoder.model import Decoder, DecoderBlock
from models.layers import CachePlan, KVCache, LayerCache, Map, SelfAttention, feed_forward


@dataclass(frozen=True, slots=True, eq=False)
class LayerStep:
    """One layer of the decoder as functions."""

    attention_norm: Map
    to_qkv: Map
    attention: SelfAttention
    to_out: Map
    feed_forward_norm: Map
    feed_forward: Map

    @classmethod
    def of(cls, block: DecoderBlock) -> "LayerStep":
        """Take the weights and settings of one decoder block as plain functions."""
        layer = block.feed_forward
        maps = plain(layer.to_hidden), layer.activate, plain(layer.to_out), layer.gated
        return cls(
            attention_norm=plain(block.attention_norm),
            to_qkv=plain(block.attention.to_qkv),
            attention=block.attention,
            to_out=plain(block.attention.to_out),
            feed_forward_norm=plain(block.feed_forward_norm),
            feed_forward=lambda x_BD: feed_forward(x_BD, *maps),
        )

    def __call__(self, x_BD: Tensor, cache: LayerCache, plan: CachePlan, rotation: Tensor | None) -> Tensor:
        """Return x_BD after the layer; the new key and value of each row go into `cache`."""
        qkv_BD = self.to_qkv(self.attention_norm(x_BD))
        x_BD = x_BD + self.to_out(self.attention.attend_one(qkv_BD, cache, plan, rotation))
        return x_BD + self.feed_forward(self.feed_forward_norm(x_BD))


class DecoderStep:
    """Represents a decoder in evaluation mode whose weights stay the same tensors."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.layers = [LayerStep.of(block) for block in decoder.blocks if isinstance(block, DecoderBlock)]

    def __call__(self, tokens_BT: Tensor, cache: KVCache) -> Tensor:
        """Return what `Decoder.forward` does; faster where one token is added to each row, at the same place in all."""
        start = self.decoder.begin(tokens_BT, cache)
        if start.plan is None or not start.plan.is_one_step:
            return self.decoder.end(self.decoder.run_blocks(start, cache), start, cache)
        x_BD = start.x_BTD[:, 0]
        for i, layer in enumerate(self.layers):
            x_BD = layer(x_BD, cache.layer(i, start.plan), start.plan, start.rotation)
        return self.decoder.end(x_BD[:, None], start, cache)


def plain(module: nn.Module) -> Map:
    """Return what a module computes: of linear maps and layer norms a function that has the weights at hand."""
    if isinstance(module, nn.Linear):
        return partial(functional.linear, weight=module.weight, bias=module.bias)
    if isinstance(module, nn.LayerNorm):
        shape, weight, bias, eps = list(module.normalized_shape), module.weight, module.bias, module.eps
        return lambda x: torch.layer_norm(x, shape, weight, bias, eps)
    return module
