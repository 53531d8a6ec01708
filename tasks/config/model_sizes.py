"""The size of each preset: system, encoding, vocabulary and number of parameters."""

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from models.registry import Model, build_model, has_latents
from tasks.config.presets import PRESETS, build_preset, system_of
from tasks.config.serialization import to_json
from tasks.config.training import TrainConfig
from tasks.music.tokenizers.registry import build_tokenizer, needs_vocabulary

# Of an encoding that learns its vocabulary from the data, as many words or characters as the published sizes are of.
PUBLISHED_VOCABULARY = {"mmm": 320, "optimus_txt": 256}


def preset_rows() -> list[dict[str, Any]]:
    """Return one row for each preset; parameters are counted on shapes alone, without memory for them.

    Where the vocabulary is learned from the data, both sizes depend on it; here: `PUBLISHED_VOCABULARY`.
    """
    return [_row(name)[0] for name in PRESETS]


def preset_facts(name: str) -> dict[str, Any]:
    """Return all about one preset: its row, what it is, its settings, and the shapes of a model with latents.

    Raises:
        ConfigError: no preset has that name.
    """
    config = build_preset(name)
    row, model = _row(name)
    facts = row | {"about": PRESETS[name].__doc__, "settings": to_json(config)}
    return facts | ({"shapes": model.summary()} if has_latents(model) else {})


def _row(name: str) -> tuple[dict[str, Any], Model]:
    config = build_preset(name)
    encoding = config.dataset.encoding
    tokenizer = build_tokenizer(encoding)
    learns = needs_vocabulary(encoding)
    vocab_size = PUBLISHED_VOCABULARY[encoding.name] if learns else tokenizer.vocab_size
    with torch.device("meta"):
        model = build_model(config.train.model, vocab_size, tokenizer.pad_id)
    row = {
        "name": name,
        "system": system_of(name),
        "encoding": tokenizer.name,
        "vocab_size": vocab_size,
        "n_parameters": model.n_parameters,
    }
    return row, model


def forward_flops(config: TrainConfig, vocab_size: int) -> float:
    """Return the floating-point operations of one forward pass over a whole window, per token; a product counts as 2.

    Training costs about three times as much. Attention counts as what it computes, here about half of all pairs.
    """
    model = build_model(config.model, vocab_size).eval()
    tokens = torch.ones(1, config.seq_len + 1, dtype=torch.int64)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(tokens if has_latents(model) else tokens[:, :-1])
    return counter.get_total_flops() / config.seq_len
