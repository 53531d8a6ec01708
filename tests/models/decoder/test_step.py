"""The decoder's compiled step against its full pass, for every option, precision and number of rows."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.config import DecoderConfig, Precision
from models.decoder import step as step_module
from models.decoder.step import FEW_ROWS, DecoderStep, rounded_weights, stored_weight
from tests.budget import examples
from tests.models.decoder.test_decoder import (
    OPTIONS,
    VOCAB_SIZE,
    build_decoder,
    every_option,
    random_configs,
    random_tokens,
)

ERRORS: dict[Precision, float] = {"float32": 1e-4, "float16": 2e-2, "int8": 2e-2}  # of logits of about 1


def steps(config: DecoderConfig, precision: Precision, starts: list[int], n_steps: int) -> tuple[Tensor, Tensor]:
    """Return the logits of steps of rows that begin after prompts of some lengths, and those of the full pass."""
    decoder = rounded_weights(build_decoder(config), precision)
    tokens_BT = random_tokens(len(starts), max(starts) + n_steps)
    step = DecoderStep(decoder, precision, tokens_BT.shape[1], n_threads=2)
    cache = decoder.new_cache(len(starts), tokens_BT.shape[1], step.cache_dtype)
    for row, start in enumerate(starts):
        if start:
            decoder(tokens_BT[row : row + 1, :start], cache.rows(row, row + 1))
    place_B, row_B = torch.tensor(starts), torch.arange(len(starts))
    found = torch.stack([step(tokens_BT[row_B, place_B + t], cache) for t in range(n_steps)], dim=1)
    assert cache.length_B.tolist() == [start + n_steps for start in starts]
    whole_BTV = decoder(tokens_BT)
    expected = torch.stack([whole_BTV[row, start : start + n_steps] for row, start in enumerate(starts)])
    return found, expected


@every_option
@pytest.mark.parametrize("precision", ERRORS)
@torch.inference_mode()
def test_steps_of_uneven_rows_equal_the_full_pass(config: DecoderConfig, precision: Precision) -> None:
    for starts in ([0], [20, 3, 41], [7, 0, 33, 12, 58, 1, 4, 2, 9]):
        found, expected = steps(config, precision, starts, 20)
        torch.testing.assert_close(found, expected, atol=ERRORS[precision], rtol=1e-3)


@given(config=random_configs(), start=st.integers(0, 40), n_rows=st.sampled_from([1, 3, FEW_ROWS + 1]))
@examples(30)
@torch.inference_mode()
def test_steps_of_any_decoder_equal_the_full_pass(config: DecoderConfig, start: int, n_rows: int) -> None:
    found, expected = steps(config, "float32", [start] * n_rows, 3)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_threads_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_module, "KEYS_OF_A_THREAD", 8)
    decoder = build_decoder(OPTIONS["rga"])
    tokens_B = random_tokens(10)
    found = []
    for n_threads in (1, 2, 3):
        step, cache = DecoderStep(decoder, "float16", 60, n_threads), decoder.new_cache(10, 60, torch.float16)
        found.append(torch.stack([step((tokens_B + t) % (VOCAB_SIZE - 1) + 1, cache) for t in range(40)]))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_weights_are_rounded_to_what_is_stored() -> None:
    decoder = build_decoder()
    weight = decoder.blocks[0].attention.to_qkv.weight.detach()
    largest_N = weight.abs().amax(dim=1, keepdim=True)
    for precision, limit_N in (("float16", largest_N * 2.0**-11), ("int8", largest_N / 254 * 1.001)):
        rounded: Any = rounded_weights(decoder, precision)
        error = (rounded.blocks[0].attention.to_qkv.weight - weight).abs()
        assert (error <= limit_N).all()
        assert error.max() > 0
        again, _ = stored_weight(rounded.blocks[0].attention.to_qkv.weight.detach(), precision)
        assert torch.equal(again, stored_weight(weight, precision)[0])
    assert rounded_weights(decoder, "float32") is decoder


@torch.inference_mode()
def test_numbers_beyond_float16_become_its_largest() -> None:
    decoder = build_decoder()
    decoder.blocks[0].attention.to_qkv.weight.data *= 1e6
    step, cache = DecoderStep(decoder, "float16", 4), decoder.new_cache(1, 4, torch.float16)
    assert step(torch.tensor([3]), cache).isfinite().all()
    assert cache.keys_LBHJK.isfinite().all()


@torch.inference_mode()
def test_a_full_cache_is_an_error() -> None:
    decoder = build_decoder()
    step, cache = DecoderStep(decoder, "float32", 1), decoder.new_cache(1, 1)
    step(torch.tensor([3]), cache)
    with pytest.raises(ValueError, match="1 cached tokens are the cache's max_length=1"):
        step(torch.tensor([3]), cache)


WITHOUT_NUMBA = """
import sys
sys.modules["numba"] = None
import torch
from models.config import DecoderConfig, SamplingConfig
from models.decoder.model import Decoder
from models.decoder.step import DecoderStep
from models.sampling.sample import sample
decoder = Decoder(DecoderConfig(d_model=16, n_heads=2, n_layers=1, d_ff=16), vocab_size=8)
assert not DecoderStep.fits(decoder)
print(*map(len, sample(decoder, [torch.tensor([1])] * 2, range(2), 0, SamplingConfig(max_tokens=9), end_id=-1)))
"""


@pytest.mark.slow
def test_pieces_are_sampled_without_numba() -> None:
    found = subprocess.run([sys.executable, "-c", WITHOUT_NUMBA], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["9", "9"]
