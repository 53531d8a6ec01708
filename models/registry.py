"""Architectures by name."""

from collections.abc import Callable
from typing import TypeGuard

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
