"""What each preset amounts to: system, encoding, vocabulary and number of parameters."""

from typing import Any

import torch

from models.registry import build_model
from tasks.music.tokenizers.registry import build_tokenizer
from tasks.presets import PRESETS, SYSTEMS


def preset_rows() -> list[dict[str, Any]]:
    """Return one row for each preset; parameters are counted on shapes alone, without memory for them."""
    rows = []
    for name, preset in PRESETS.items():
        config = preset()
        tokenizer = build_tokenizer(config.dataset.encoding)
        with torch.device("meta"):
            model = build_model(config.train.model, tokenizer.vocab_size, tokenizer.pad_id)
        rows.append(
            {
                "name": name,
                "system": SYSTEMS[name],
                "encoding": tokenizer.name,
                "vocab_size": tokenizer.vocab_size,
                "n_parameters": model.n_parameters,
            }
        )
    return rows
