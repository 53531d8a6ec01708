"""The size of each preset: system, encoding, vocabulary and number of parameters."""

from typing import Any

from models.config import VaeConfig
from tasks.config.presets import PRESETS, build_preset, system_of
from tasks.config.serialization import to_json

# Ids and trained parameters of each preset; a test counts those of the built models. Of an encoding that learns its
# vocabulary from the data, as many words (320) or characters (256) as the published sizes are of.
SIZES = {
    "music_transformer": (416, 1_095_200),
    "music_transformer_large": (416, 6_525_344),
    "music_transformer_tiny": (416, 437_664),
    "music_transformer_large_tiny": (416, 527_328),
    "rga": (390, 10_785_792),
    "rga_multi": (390, 10_785_792),
    "rga_tiny": (390, 456_192),
    "rga_multi_tiny": (390, 456_192),
    "char_gpt": (256, 19_439_616),
    "char_gpt_tiny": (256, 693_376),
    "mmm_vae": (320, 1_747_338),
    "mmm_encoder_vae": (320, 1_550_474),
    "mmm_vae_tiny": (320, 365_578),
    "mmm_encoder_vae_tiny": (320, 311_178),
    "hourglass": (484, 34_004_708),
    "hourglass_flat": (484, 58_256_356),
    "hourglass_tiny": (484, 1_093_988),
    "hourglass_flat_tiny": (484, 828_004),
    "orchestrion_small": (416, 26_125_824),
    "orchestrion_small_tiny": (416, 434_944),
}


def preset_rows() -> list[dict[str, Any]]:
    """Return one row for each preset."""
    return [_row(name) for name in PRESETS]


def preset_facts(name: str) -> dict[str, Any]:
    """Return all about one preset: its row, what it is, its settings, and the shapes of a model with latents.

    Raises:
        ConfigError: no preset has that name.
    """
    config = build_preset(name)
    row = _row(name)
    facts = row | {"about": PRESETS[name].__doc__, "settings": to_json(config)}
    if not isinstance(config.train.model, VaeConfig):
        return facts
    from models.registry import build_shapes

    model: Any = build_shapes(config.train.model, row["vocab_size"])
    return facts | {"shapes": model.summary()}


def _row(name: str) -> dict[str, Any]:
    vocab_size, n_parameters = SIZES[name]
    return {
        "name": name,
        "system": system_of(name),
        "encoding": build_preset(name).dataset.encoding.name,
        "vocab_size": vocab_size,
        "n_parameters": n_parameters,
    }
