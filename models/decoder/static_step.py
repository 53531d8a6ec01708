"""A decoder's step as a function of tensors of fixed shapes, and CUDA graphs, which repeat such functions.

Shape letters: see layers.py.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from models.config import Precision
from models.decoder.model import Decoder, Start
from models.layers import CachePlan, KVCache, trusted_rows


def decoder_in_16_bits(decoder: Decoder, precision: Precision) -> Decoder:
    """Return a copy in bfloat16 of a decoder on an accelerator; with float32, or on a CPU, the decoder itself."""
    if precision == "float32" or decoder.embed.weight.device.type == "cpu":
        return decoder
    return copy.deepcopy(decoder).to(torch.bfloat16)


def static_step(decoder: Decoder, ids_B: Tensor, cache: KVCache, n_keys: int) -> Tensor:
    """Return the logits of the id after `ids_B`, (B, V); each row's cache holds one token more afterwards.

    The values of tensors decide neither a shape nor a branch, so the host never waits for the device.

    Args:
        n_keys: the first keys of each row are looked at, as many as any row holds afterwards; the logits of a row that
            holds more mean nothing.
    """
    place_B1 = cache.length_B[:, None].clamp_max(n_keys - 1)
    plan = CachePlan.masked(
        place_B1, n_keys, min(decoder.config.max_relative_distance, n_keys), None, decoder.embed.weight.dtype
    )
    tokens_B1 = ids_B[:, None]
    with trusted_rows():
        hidden_B1 = torch.zeros_like(tokens_B1, dtype=torch.bool)
        x_B1D = decoder.embed_tokens(tokens_B1, hidden_B1, plan)
        start = Start(x_B1D, hidden_B1, plan, plan.bias_B1TJ, decoder.rotation_for(tokens_B1, plan))
        logits_B1V = decoder.end(decoder.run_blocks(start, cache), start, cache)
    return logits_B1V[:, 0]


class Graphs:
    """Calls of a function of numbers that changes tensors; on CUDA a graph for each set of numbers repeats them."""

    def __init__(self, device: torch.device) -> None:
        self.graphs: dict[tuple[int, ...], torch.cuda.CUDAGraph] = {}
        self.captures = device.type == "cuda"
        # Graphs run one after the other and leave nothing behind, so they may share memory.
        self.pool = torch.cuda.graph_pool_handle() if self.captures else None

    def run(self, function: Callable[..., None], *numbers: int) -> None:
        """Call the function, or repeat what it did with these numbers.

        Args:
            function: the same in all calls, of tensors at fixed addresses. It is not kept: it may hold this object.
        """
        graph = self.graphs.get(numbers)
        if graph is not None:
            graph.replay()
            return
        function(*numbers)  # also sets up the libraries, which cannot be done during a capture
        if self.captures:
            self.graphs[numbers] = graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.pool):
                function(*numbers)  # recorded, not run
