"""Logits with a cache, batches of several model families, and entropies."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from models.config import DecoderConfig, HourglassConfig, SamplingConfig
from models.decoder.model import Decoder
from models.hourglass.model import Hourglass
from models.sampling.sample import sample
from models.vae.latents import ConditionedDecoder
from tests.models.toy_music import VOCAB_SIZE, build_decoder, build_grammar, build_prompts
from tests.models.vae import small_vae

RGA = DecoderConfig(
    d_model=32, n_heads=4, n_layers=2, d_ff=32, activation="gelu", relative_positions="shared",
    max_relative_distance=64, absolute_positions="learned", max_positions=64, embedding_scale=False, head="unbiased",
    initialisation="rga",
)  # fmt: skip
N_PIECES = 6


def build_hourglass() -> Hourglass:
    torch.manual_seed(0)
    config = HourglassConfig(d_model=16, n_heads=2, d_ff=24, depths=(1, 1, 1), max_relative_distance=6, dropout=0.0)
    model = Hourglass(config, VOCAB_SIZE).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(("relative_MD", "bias", "head.weight")):
            nn.init.normal_(parameter)
    return model


def build_rga() -> Decoder:
    torch.manual_seed(0)
    model = Decoder(RGA, VOCAB_SIZE).eval()
    assert model.head is not None
    nn.init.normal_(model.head.weight, std=0.5)
    return model


def build_conditioned() -> ConditionedDecoder:
    model = small_vae.build_vae()
    return ConditionedDecoder(model, small_vae.latents(model, N_PIECES)).eval()


FAMILIES = pytest.mark.parametrize("build", [build_decoder, build_rga, build_hourglass, build_conditioned])


def write(model: Any, batch_size: int = 8, **settings: Any) -> list[list[int]]:
    is_vae = isinstance(model, ConditionedDecoder)
    prompts = [torch.tensor([small_vae.START])] * N_PIECES if is_vae else build_prompts(N_PIECES)
    end_id, pad_id = (small_vae.END, small_vae.PAD) if is_vae else (2, 0)
    pieces = sample(
        model, prompts, range(N_PIECES), 3, SamplingConfig(**{"max_tokens": 25, **settings}), end_id=end_id,
        pad_id=pad_id, batch_size=batch_size,
    )  # fmt: skip
    return [piece.tolist() for piece in pieces]


@FAMILIES
@torch.no_grad()
def test_cached_logits_in_float32_equal_uncached_ones(build: Any) -> None:
    model = build().eval()
    lowest = 4  # neither padding nor an end
    tokens_BT = torch.randint(lowest, model.vocab_size, (3, 24), generator=torch.Generator().manual_seed(1))
    expected_BTV, cache = model(tokens_BT), model.new_cache(3, 24)
    parts = [model(tokens_BT[:, :9], cache), *(model(tokens_BT[:, t : t + 1], cache) for t in range(9, 24))]
    torch.testing.assert_close(torch.cat(parts, dim=1), expected_BTV, atol=1e-4, rtol=0)


@pytest.mark.slow
@FAMILIES
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7, "top_k": 6}, {"top_p": 0.9}, {"greedy": True}], ids=str)
def test_in_float64_a_piece_is_the_same_in_any_batch(build: Any, settings: dict[str, Any]) -> None:
    model = build().double()
    expected = write(model, 1, **settings)
    for batch_size in (4, 64):
        assert write(model, batch_size, **settings) == expected


@FAMILIES
def test_the_same_request_gives_the_same_pieces(build: Any) -> None:
    assert write(build(), 4) == write(build(), 4)


@pytest.mark.parametrize("lengths", [[9] * 6, [9, 4, 7, 9, 2, 5]])
def test_prompts_are_read_in_one_pass(lengths: list[int]) -> None:
    model, shapes = build_decoder(), []
    model.register_forward_hook(lambda copy, inputs, _: shapes.append((copy.embed.weight.dtype, *inputs[0].shape)))
    prompts = [torch.tensor([1, 11, 14, 3, 12, 7, 13, 11, 11][:length]) for length in lengths]
    sample(model, prompts, range(6), 0, SamplingConfig(max_tokens=12), end_id=-1, batch_size=6)
    assert [shape for shape in shapes if shape[0] == torch.float32 and shape[2] > 1] == [(torch.float32, 6, 8)]


# Entropies


@pytest.mark.parametrize("batch_size", [1, 6])
def test_entropies_are_those_of_the_whole_distribution(batch_size: int) -> None:
    model, found = build_decoder().double(), []
    prompts = build_prompts(6)
    pieces = sample(
        model, prompts, range(6), 3, SamplingConfig(max_tokens=30, temperature=0.5, top_k=4), build_grammar(),
        end_id=2, batch_size=batch_size, entropies=found,
    )  # fmt: skip
    for piece, prompt, entropies in zip(pieces, prompts, found, strict=True):
        with torch.no_grad():
            share_TV = build_decoder().double().eval()(piece[None])[0, len(prompt) - 1 : -1].softmax(-1)
        expected = -(share_TV * share_TV.log()).sum(dim=-1)
        assert entropies.dtype == np.float32
        np.testing.assert_allclose(entropies, expected.numpy(), atol=1e-5)
    assert len({len(entropies) for entropies in found}) > 1


def test_entropies_of_a_stopped_batch_are_as_long_as_its_pieces() -> None:
    prompts, found = build_prompts(5), [np.zeros(3, np.float32)]
    pieces = sample(
        build_decoder(), prompts, range(5), 3, SamplingConfig(max_tokens=30), end_id=2, batch_size=3,
        on_step=lambda n: n >= 12, entropies=found,
    )  # fmt: skip
    assert [len(e) for e in found] == [len(piece) - len(prompt) for piece, prompt in zip(pieces, prompts, strict=True)]
