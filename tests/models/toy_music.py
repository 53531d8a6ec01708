"""A toy of music for tests of the sampler: a grammar with slots, a tiny decoder with decided opinions, and prompts."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.config import DecoderConfig
from models.decoder.model import Decoder

# A toy of music: 0 pads, 1 starts, 2 ends, 14 with 3-6 behind it opens slots 0-3, 7-10 close them, 11-13 are free.
PAD, START, END, VOCAB_SIZE = 0, 1, 2, 15
TINY = DecoderConfig(d_model=16, n_heads=4, n_layers=2, d_ff=32, max_relative_distance=12)


def build_grammar(**changes: Any) -> Any:
    next_state_SV = np.full((4, VOCAB_SIZE), -1, np.int16)  # before the start, body, behind 14, behind the end
    next_state_SV[0, START] = 1
    next_state_SV[1, 7:14] = 1
    next_state_SV[1, 14] = 2
    next_state_SV[1, END] = 3
    next_state_SV[2, 3:7] = next_state_SV[2, 13] = 1
    next_state_SV[3, PAD] = 3
    opens_V, closes_V = np.full(VOCAB_SIZE, -1, np.int16), np.full(VOCAB_SIZE, -1, np.int16)
    opens_V[3:7] = closes_V[7:11] = np.arange(4)
    tables = {
        "next_state_SV": next_state_SV,
        "opens_V": opens_V,
        "closes_V": closes_V,
        "needs_all_closed_V": np.arange(VOCAB_SIZE) == END,
        "time_V": np.where((np.arange(VOCAB_SIZE) >= 11) & (np.arange(VOCAB_SIZE) < 13), np.arange(VOCAB_SIZE) - 10, 0),
        "n_slots": 4,
        "start_state": 0,
    }
    return SimpleNamespace(**{**tables, **changes})


def allowed_ids(grammar: SimpleNamespace, ids: list[int]) -> list[int]:
    """The ids that may follow `ids`, by the rules themselves rather than by masks."""
    state, open_slots = grammar.start_state, set[int]()
    for token in ids:
        state = int(grammar.next_state_SV[state, token])
        assert state >= 0, f"id {token} in {ids}"
        open_slots.discard(int(grammar.closes_V[token]))
        if grammar.opens_V[token] >= 0:
            open_slots.add(int(grammar.opens_V[token]))
    return [
        token
        for token in range(len(grammar.opens_V))
        if grammar.next_state_SV[state, token] >= 0
        and int(grammar.opens_V[token]) not in open_slots
        and (grammar.closes_V[token] < 0 or int(grammar.closes_V[token]) in open_slots)
        and not (grammar.needs_all_closed_V[token] and open_slots)
    ]


def build_decoder(config: DecoderConfig = TINY, vocab_size: int = VOCAB_SIZE) -> Decoder:
    torch.manual_seed(0)
    decoder = Decoder(config, vocab_size)
    torch.nn.init.normal_(decoder.embed.weight, std=0.3)
    torch.nn.init.normal_(decoder.head.weight)  # decided opinions, so that a wrong position or distance shows
    torch.nn.init.constant_(decoder.head.bias[END], -2.0)  # pieces of many lengths, some longer than the limits here
    for name, parameter in decoder.named_parameters():
        if name.endswith("relative_MD"):
            torch.nn.init.normal_(parameter)
    return decoder


def build_prompts(n: int) -> list[Tensor]:
    """Prompts of 1 to 7 ids that the toy grammar allows."""
    return [torch.tensor([START, 11, 14, 3, 12, 7, 13][: 1 + 3 * i % 7]) for i in range(n)]
