"""Every architecture by name."""

from models.config import DecoderConfig, ModelConfig
from models.decoder import Decoder

Model = Decoder

MODELS: dict[type, type[Model]] = {DecoderConfig: Decoder}


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
