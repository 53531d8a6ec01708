"""Architectures by name."""

from collections.abc import Callable
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from models.config import DecoderConfig, HourglassConfig, ModelConfig, VaeConfig
from models.decoder.model import Decoder
from models.hourglass.model import Hourglass
from models.vae.latents import ConditionedDecoder
from models.vae.model import Vae

Model = Decoder | Hourglass | Vae
SampledModel = Model | ConditionedDecoder

MODELS: dict[type, Callable[..., Model]] = {DecoderConfig: Decoder, HourglassConfig: Hourglass, VaeConfig: Vae}


def has_latents(model: Model) -> TypeGuard[Vae]:
    """Return whether a model writes whole pieces from latents instead of continuing ids."""
    return model.config.has_latents


class _NoDraws(TorchFunctionMode):
    """Leaves weights as they are where a model would initialise them."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in (Tensor.normal_, Tensor.uniform_) or getattr(function, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


def build_shapes(config: ModelConfig, vocab_size: int, pad_id: int = 0) -> Model:
    """Return a model of shapes alone, without memory for weights; errors as in `build_model`.

    Nothing is drawn: random numbers on the meta device make torch import its compiler, which takes 1.2 s of CPU.
    """
    with torch.device("meta"), _NoDraws():
        return build_model(config, vocab_size, pad_id)


def build_model(config: ModelConfig, vocab_size: int, pad_id: int = 0) -> Model:
    """Return a freshly initialised model of the kind that `config` describes.

    The weights come from torch's global generator: seed it first where a run must be repeatable.

    Raises:
        ValueError: no architecture goes with this config.
    """
    model_class = MODELS.get(type(config))
    if model_class is None:
        raise ValueError(f"no model for {type(config).__name__}; known: {', '.join(c.__name__ for c in MODELS)}")
    return model_class(config, vocab_size, pad_id)
