"""A decoder's step: one token more for each row of a batch, on a CPU by compiled loops where Numba is installed.

With few rows a step takes about as long as reading all weights once, so all of it is one compiled call. With many rows
the products are torch's, and the loops do what lies between: keys and values, and attention, which reads of each row
what it has and no more. Weights are rounded once, to float16 or to 8 bits with a scale for each output, and everything
else is computed in float32, so both ways and the prompts' pass have the same weights.
"""

import copy
import math
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models import loops
from models.config import Precision
from models.decoder.model import Decoder
from models.layers import KVCache, RelativeAttention, SelfAttention, rotation, sinusoids

FEW_ROWS = 8  # up to which one call for all is at least as fast as torch's products
KEYS_OF_A_THREAD = 4096  # in fewer, another thread is not worth waking


def rounded_weights(decoder: Decoder, precision: Precision) -> Decoder:
    """Return a decoder in evaluation mode, whose linear maps have weights that `precision` can represent, in float32.

    Args:
        precision: float32 returns `decoder` itself where it is in evaluation mode.
    """
    if precision == "float32" and not decoder.training:
        return decoder
    decoder = copy.deepcopy(decoder).eval()
    for module in decoder.modules():
        if isinstance(module, nn.Linear) and precision != "float32":
            stored, scale = stored_weight(module.weight.detach(), precision)
            module.weight.data = stored.to(scale.dtype) * scale[:, None]
    return decoder


def stored_weight(weight_ND: Tensor, precision: Precision) -> tuple[Tensor, Tensor]:
    """Return weights as they are stored, and the scale of each output: of int8 the largest is 127 times it."""
    ones_N = torch.ones_like(weight_ND[:, 0])
    if precision == "float32":
        return weight_ND, ones_N
    if precision == "float16":
        return weight_ND.clamp(-65504.0, 65504.0).half(), ones_N
    scale_N = weight_ND.abs().amax(dim=1).clamp_min(1e-30) / 127
    return (weight_ND / scale_N[:, None]).round().clamp(-127, 127).to(torch.int8), scale_N


class DecoderStep:
    """A decoder in evaluation mode on a CPU, whose weights stay the same tensors.

    Args:
        decoder: of `rounded_weights` with the same precision.
        max_length: tokens of a row at most.
        n_threads: torch's number of threads.
    """

    def __init__(self, decoder: Decoder, precision: Precision, max_length: int, n_threads: int = 1) -> None:
        config = decoder.config
        self.decoder, self.config = decoder, config
        self.embed_VD = array(decoder.embed.weight) * np.float32(
            math.sqrt(config.d_model) if config.embedding_scale else 1.0
        )
        self.place_PD = self.place_vectors(max_length)
        self.norm = loops.RMS_NORM if config.norm == "rms" else loops.LAYER_NORM
        self.activation = {"relu": loops.RELU, "gelu": loops.GELU, "silu": loops.SILU}[config.activation]
        self.layers = self.layer_arrays(precision, max_length)
        self.threads = ThreadPoolExecutor(n_threads - 1) if n_threads > 1 else None
        self.n_threads = n_threads
        self.cache_dtype = torch.float32 if precision == "float32" else torch.float16

    @staticmethod
    def fits(decoder: Decoder) -> bool:
        """Return whether the compiled loops are there for a decoder: float32 weights on a CPU."""
        weight = decoder.embed.weight
        return loops.ARE_COMPILED and weight.device.type == "cpu" and weight.dtype == torch.float32

    def place_vectors(self, n_places: int) -> NDArray[np.float32] | None:
        """Return what is added to an embedding at each place, (P, D), if anything."""
        if self.config.absolute_positions == "none":
            return None
        if self.decoder.embed_position is not None:
            return array(self.decoder.embed_position.weight)
        return array(sinusoids(torch.arange(n_places)[None], self.config.d_model, torch.float32)[0])

    def layer_arrays(self, precision: Precision, max_length: int) -> Any:
        """Return all weights but the embeddings as the compiled loops read them."""
        decoder, config = self.decoder, self.config
        blocks: list[Any] = list(decoder.blocks)
        attentions: list[SelfAttention] = [block.attention for block in blocks]
        head = decoder.head
        if head is None:
            head = nn.Linear(config.d_model, decoder.vocab_size, bias=False)
            head.weight = decoder.embed.weight
        tables = [
            attention.relative_MD.detach().unflatten(-1, (-1, config.d_head)).transpose(0, 1)
            for attention in attentions
            if isinstance(attention, RelativeAttention)
        ]
        norms = [
            torch.stack((attention.q_norm.weight, attention.k_norm.weight))
            for attention in attentions
            if attention.q_norm is not None and attention.k_norm is not None
        ]
        turns = torch.zeros(0, config.d_head)
        if config.relative_positions == "rotary":
            turns = torch.cat(tuple(rotation(torch.arange(max_length)[None], config.d_head, torch.float32)[:, 0, 0]), 1)
        return loops.Layers(
            attention_norm_2LD=norm_arrays([*(block.attention_norm for block in blocks), decoder.norm]),
            feed_forward_norm_2LD=norm_arrays([block.feed_forward_norm for block in blocks]),
            to_qkv=map_arrays([attention.to_qkv for attention in attentions], precision),
            to_out=map_arrays([attention.to_out for attention in attentions], precision),
            to_hidden=map_arrays([block.feed_forward.to_hidden for block in blocks], precision),
            from_hidden=map_arrays([block.feed_forward.to_out for block in blocks], precision),
            head=map_arrays([head], "float32" if decoder.head is None else precision),
            qk_norm_L2K=array(torch.stack(norms) if norms else torch.zeros(len(blocks), 0, config.d_head)),
            table_LHXK=array(torch.stack(tables) if tables else torch.zeros(len(blocks), 1, 0, config.d_head)),
            rotation_PK=array(turns),
        )

    def __call__(self, ids_B: Tensor, cache: KVCache) -> Tensor:
        """Return the logits of the id after `ids_B`, float32 (B, V); each row's cache holds one token more afterwards.

        Raises:
            ValueError: a row has no room.
        """
        place_B = cache.length_B.numpy()
        if len(place_B) and int(place_B.max()) >= cache.max_length:
            raise ValueError(f"{int(place_B.max())} cached tokens are the cache's max_length={cache.max_length}")
        x_BD = self.embed_VD[ids_B.numpy()]
        if self.place_PD is not None:
            x_BD += self.place_PD[place_B]
        keys_LBHJK, values_LBHJK = stored_numbers(cache.keys_LBHJK), stored_numbers(cache.values_LBHJK)
        if len(place_B) <= FEW_ROWS:
            logits_BV = np.empty((len(place_B), self.decoder.vocab_size), np.float32)
            config = self.config
            loops.run_layers(
                x_BD, config.n_heads, self.norm, np.float32(config.norm_eps), self.activation,
                config.feed_forward == "gated", self.layers, place_B, keys_LBHJK, values_LBHJK, logits_BV,
            )  # fmt: skip
            logits = torch.from_numpy(logits_BV)
        else:
            logits = self.many_rows(torch.from_numpy(x_BD), place_B, keys_LBHJK, values_LBHJK)
        cache.length_B += 1
        return logits

    def many_rows(
        self, x_BD: Tensor, place_B: NDArray[np.int64], keys_LBHJK: NDArray[Any], values_LBHJK: NDArray[Any]
    ) -> Tensor:
        """Return the logits by torch's products and compiled attention."""
        decoder, layers, n_heads = self.decoder, self.layers, self.config.n_heads
        blocks: list[Any] = list(decoder.blocks)
        for i, block in enumerate(blocks):
            qkv_BD = block.attention.to_qkv(block.attention_norm(x_BD)).numpy()
            keys_BHJK, values_BHJK, y_BD = keys_LBHJK[i], values_LBHJK[i], np.empty(x_BD.shape, np.float32)
            loops.remember(qkv_BD, n_heads, layers.qk_norm_L2K[i], layers.rotation_PK, place_B, keys_BHJK, values_BHJK)
            self.spread(place_B, y_BD, qkv_BD, n_heads, keys_BHJK, values_BHJK, layers.table_LHXK[i], place_B)
            x_BD = x_BD + block.attention.to_out(torch.from_numpy(y_BD))
            layer = block.feed_forward
            x_BD = x_BD + layer(block.feed_forward_norm(x_BD))
        x_BD = decoder.norm(x_BD)
        return nn.functional.linear(x_BD, decoder.embed.weight) if decoder.head is None else decoder.head(x_BD)

    def spread(self, place_B: NDArray[np.int64], y_BD: NDArray[np.float32], *arguments: Any) -> None:
        """Let each thread attend for some rows, with about as many keys as the others have, and write into y_BD."""
        n_keys_B = np.cumsum(place_B + 1)
        n_parts = max(min(self.n_threads, int(n_keys_B[-1]) // KEYS_OF_A_THREAD), 1)
        edges = [int(np.searchsorted(n_keys_B, n_keys_B[-1] * part / n_parts)) for part in range(n_parts)]
        edges.append(len(place_B))
        attend: Any = loops.attend
        parts = [(*arguments, first, end, y_BD) for first, end in pairwise(edges)]
        others = [self.threads.submit(attend, *part) for part in parts[1:]] if self.threads else []
        attend(*parts[0])
        for other in others:
            other.result()


def array(tensor: Tensor) -> NDArray[np.float32]:
    """Return a tensor as a contiguous array."""
    return np.ascontiguousarray(tensor.detach().float().numpy())


def stored_numbers(cache: Tensor) -> NDArray[Any]:
    """Return a cache as the compiled loops read it: float16 as uint16."""
    return cache.view(torch.uint16).numpy() if cache.dtype == torch.float16 else cache.numpy()


def norm_arrays(norms: list[Any]) -> NDArray[np.float32]:
    """Return the weights and biases of norms, (2, L, D)."""
    weights = [norm.weight for norm in norms]
    biases = [torch.zeros_like(norm.weight) if getattr(norm, "bias", None) is None else norm.bias for norm in norms]
    return array(torch.stack((torch.stack(weights), torch.stack(biases))))


def map_arrays(maps: list[nn.Linear], precision: Precision) -> Any:
    """Return the weights of one linear map of each layer, as they are stored."""
    stored = [stored_weight(one.weight.detach(), precision) for one in maps]
    weights_LND = torch.stack([weight_ND for weight_ND, _ in stored]).contiguous()
    biases = [one.weight.new_zeros(one.out_features) if one.bias is None else one.bias for one in maps]
    return loops.LinearMaps(
        stored_numbers(weights_LND.detach()),
        array(torch.stack([scale_N for _, scale_N in stored])),
        array(torch.stack(biases)),
    )
