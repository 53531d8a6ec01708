"""A tiny model with latents, rows for it, and both of its families, for several tests."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from models.config import VaeConfig
from models.vae.model import Vae

PAD, START, END, VOCAB_SIZE = 1, 2, 3, 30
TINY = VaeConfig(block=24, d_model=16, n_heads=2, n_layers=2, bias=True, channels=(12, 8), free_bits=0.0)
ENCODER = replace(TINY, family="encoder")
FAMILIES = pytest.mark.parametrize("config", [TINY, ENCODER], ids=lambda config: config.family)


def build_vae(config: VaeConfig = TINY) -> Vae:
    torch.manual_seed(0)
    model = Vae(config, VOCAB_SIZE, PAD).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)  # biases too, and decided opinions, so that what is forgotten shows
    return model


def rows(*lengths: int, seed: int = 1) -> Tensor:
    """Return rows from START to END with padding behind them."""
    tokens_BT = torch.randint(
        5, VOCAB_SIZE, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(seed)
    )
    tokens_BT[:, 0] = START
    for row, length in enumerate(lengths):
        tokens_BT[row, length - 1] = END
        tokens_BT[row, length:] = PAD
    return tokens_BT


def latents(model: Vae, n: int, seed: int = 0) -> Tensor:
    return model.prior_latents(seed, range(n))
