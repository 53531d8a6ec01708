"""Training of one model on several workers, by DDP or FSDP2, and with less memory for activations."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.decoder.model import DecoderBlock
from models.hourglass.model import HourglassBlock
from models.vae import layers as vae_layers

# What FSDP gathers and frees one at a time. A layer of the VAE's decoder is none: its keys and values of latents are
# computed outside of it.
SHARDED = (DecoderBlock, HourglassBlock, vae_layers.EncoderBlock)
RECOMPUTED = (*SHARDED, vae_layers.DecoderBlock)


def recompute_layers(model: nn.Module) -> None:
    """Keep only the inputs of each layer in training, and compute the layer again in the backward pass.

    Random numbers are drawn again as they were, so gradients keep their bits. Source: Chen et al. 2016.
    """
    for layer in _modules_of(model, RECOMPUTED):
        layer.forward = partial(_recomputed, layer, layer.forward)


def _recomputed(layer: nn.Module, forward: Callable[..., Any], *args: Any) -> Any:
    if layer.training and torch.is_grad_enabled():
        return checkpoint(forward, *args, use_reentrant=False)
    return forward(*args)


def _modules_of(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, kinds)]


def for_workers(model: nn.Module, kind: Literal["ddp", "fsdp"], device: torch.device) -> nn.Module:
    """Return a model whose gradients are averaged over the workers of the default process group.

    Args:
        kind: "ddp": every worker holds all weights; the model is wrapped (Li et al. 2020). "fsdp": each holds a
            part of each tensor of weights, gradients and averages, and gathers a layer where it computes; the model
            itself changes (`fully_shard`, Zhao et al. 2023). Build the optimizer afterwards.
        device: of this worker.
    """
    if kind == "ddp":
        device_ids = [device] if device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=device_ids)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # Of logits that are a view of a matrix; nothing here writes into them.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module", UserWarning)
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for layer in _modules_of(model, SHARDED):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def whole(tensor: Tensor, is_kept: bool = True) -> Tensor | None:
    """Return all of a tensor that workers may share in parts, contiguous; every worker has to call this.

    Args:
        is_kept: whether this worker wants it; otherwise None is returned.
    """
    parts: Any = tensor.detach()
    if hasattr(parts, "full_tensor"):  # gathered one by one: only one of them is whole on the device of each worker
        parts = parts.full_tensor().cpu() if is_kept else parts.full_tensor()
    return parts.contiguous() if is_kept else None


def placed_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Return this worker's part of a tensor that all workers hold, cut as `like` is and on its device."""
    tensor = tensor.to(like.device)
    if not hasattr(like, "placements"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    shared: Any = like
    return distribute_tensor(tensor, shared.device_mesh, shared.placements, src_data_rank=None)
