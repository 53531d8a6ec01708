"""The decoder's step of static shapes against its full pass, for every option."""

import pytest
import torch

from models.config import DecoderConfig
from models.decoder.model import Decoder
from models.decoder.static_step import decoder_in_16_bits, static_step
from tests.models.decoder.test_decoder import TINY, VOCAB_SIZE, build_decoder, every_option, random_tokens


@every_option
@pytest.mark.parametrize("starts", [[0], [20, 3, 0, 41]])
@torch.inference_mode()
def test_steps_of_uneven_rows_equal_the_full_pass(config: DecoderConfig, starts: list[int]) -> None:
    decoder, n_steps, room = build_decoder(config).double(), 12, 60
    tokens_BT = random_tokens(len(starts), room)
    cache = decoder.new_cache(len(starts), room)
    for row, start in enumerate(starts):
        if start:
            decoder(tokens_BT[row : row + 1, :start], cache.rows(row, row + 1))
    place_B, row_B = torch.tensor(starts), torch.arange(len(starts))
    whole_BTV = decoder(tokens_BT)
    for t in range(n_steps):
        n_keys = (room, max(starts) + t + 1)[t % 2]  # more keys than a row has are masked
        logits_BV = static_step(decoder, tokens_BT[row_B, place_B + t], cache, n_keys)
        torch.testing.assert_close(logits_BV, whole_BTV[row_B, place_B + t], atol=1e-12, rtol=1e-10)
    assert cache.length_B.tolist() == [start + n_steps for start in starts]


@torch.inference_mode()
def test_a_row_without_room_disturbs_no_other() -> None:
    decoder = build_decoder().double()
    tokens_BT = random_tokens(2, 20)
    cache = decoder.new_cache(2, 8)
    cache.length_B[0] = 8
    whole_TV = decoder(tokens_BT[1:])[0]
    for t in range(6):
        torch.testing.assert_close(static_step(decoder, tokens_BT[:, t], cache, 8)[1], whole_TV[t])


def test_a_decoder_on_an_accelerator_has_16_bits_unless_all_are_wanted() -> None:
    with torch.device("meta"):
        decoder = Decoder(TINY, VOCAB_SIZE)
    for precision in ("float16", "int8"):
        assert {weight.dtype for weight in decoder_in_16_bits(decoder, precision).parameters()} == {torch.bfloat16}
    assert {weight.dtype for weight in decoder.parameters()} == {torch.float32}
    assert decoder_in_16_bits(decoder, "float32") is decoder
    on_cpu = build_decoder()
    assert decoder_in_16_bits(on_cpu, "int8") is on_cpu


@torch.inference_mode()
def test_steps_in_16_bits_are_near_those_of_all_bits() -> None:
    tokens_BT = random_tokens(3, 30)
    logits = []
    for decoder in (build_decoder(), build_decoder().to(torch.bfloat16)):
        cache = decoder.new_cache(3, 30)
        decoder(tokens_BT[:, :20], cache)
        logits.append(torch.stack([static_step(decoder, tokens_BT[:, t], cache, 30) for t in range(20, 30)]))
    assert logits[1].dtype == torch.bfloat16
    assert (logits[0] - logits[1]).abs().mean() < 0.02 * logits[0].std()
