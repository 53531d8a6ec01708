"""The decoder: counts of parameters, causality, padding on both sides, and the cache against the full pass."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.config import DecoderConfig
from models.decoder import Decoder
from models.registry import build_model

TINY = DecoderConfig(d_model=24, n_heads=4, n_layers=2, d_ff=40, max_relative_distance=10)
SINUSOIDAL = replace(TINY, absolute_positions="sinusoidal")
VOCAB_SIZE = 30


def build_decoder(config: DecoderConfig = TINY) -> Decoder:
    torch.manual_seed(0)
    decoder = Decoder(config, VOCAB_SIZE).eval()
    for name, parameter in decoder.named_parameters():
        if name.endswith("relative_MD"):
            torch.nn.init.normal_(parameter)  # large, so that a wrong distance shows
    return decoder


def random_tokens(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(1, VOCAB_SIZE, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("config", "n_parameters"),
    [
        (DecoderConfig(), 1_095_200),
        (DecoderConfig(d_model=256, n_layers=6, d_ff=1024), 6_525_344),
        (DecoderConfig(absolute_positions="sinusoidal"), 1_095_200),
    ],
)
def test_parameters_are_as_many_as_published(config: DecoderConfig, n_parameters: int) -> None:
    decoder = build_model(config, 416)
    assert decoder.n_parameters == n_parameters
    assert sum(parameter.numel() for parameter in decoder.parameters()) == n_parameters


def test_layers_start_out_different() -> None:
    first, second = build_decoder().blocks
    for name, parameter in first.named_parameters():
        if parameter.ndim == 2:
            assert not torch.equal(parameter, second.get_parameter(name)), name


def test_the_same_seed_builds_the_same_weights() -> None:
    first, second = build_decoder().state_dict(), build_decoder().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("config", [TINY, SINUSOIDAL])
@torch.no_grad()
def test_a_later_token_moves_no_earlier_logit(config: DecoderConfig) -> None:
    decoder, tokens_BT = build_decoder(config), random_tokens(2, 80)
    changed_BT = tokens_BT.clone()
    changed_BT[:, 50] = changed_BT[:, 50] % (VOCAB_SIZE - 1) + 1
    before_BTV, after_BTV = decoder(tokens_BT), decoder(changed_BT)
    assert torch.equal(before_BTV[:, :50], after_BTV[:, :50])
    assert not torch.allclose(before_BTV[:, 50:], after_BTV[:, 50:])


@pytest.mark.parametrize("config", [TINY, SINUSOIDAL])
@torch.no_grad()
def test_padding_on_either_side_moves_no_logit(config: DecoderConfig) -> None:
    decoder, tokens_BT = build_decoder(config), random_tokens(2, 70)
    expected_BTV = decoder(tokens_BT)
    right_BTV = decoder(torch.nn.functional.pad(tokens_BT, (0, 9)))[:, :70]
    left_BTV = decoder(torch.nn.functional.pad(tokens_BT, (9, 0)))[:, 9:]
    torch.testing.assert_close(right_BTV, expected_BTV, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(left_BTV, expected_BTV, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_nothing_is_nan_where_all_is_padding() -> None:
    assert build_decoder()(torch.zeros(2, 5, dtype=torch.long)).isfinite().all()


def test_padding_gets_no_gradient_from_other_tokens() -> None:
    decoder = build_decoder()
    decoder(torch.tensor([[0, 0, 3, 4, 0, 5]]))[:, [2, 3, 5]].sum().backward()
    assert decoder.embed.weight.grad is not None
    assert decoder.embed.weight.grad[0].abs().max() == 0
    assert decoder.embed.weight.grad[3].abs().max() > 0


@pytest.mark.parametrize("config", [TINY, SINUSOIDAL, replace(TINY, max_relative_distance=200)])
@torch.no_grad()
def test_steps_with_a_cache_equal_the_full_pass(config: DecoderConfig) -> None:
    decoder, tokens_BT = build_decoder(config), random_tokens(3, 90)
    cache = decoder.new_cache(3, 90)
    parts = [decoder(tokens_BT[:, :20], cache)]
    parts += [decoder(tokens_BT[:, t : t + 1], cache) for t in range(20, 60)]
    parts.append(decoder(tokens_BT[:, 60:], cache))  # many at once, behind others
    torch.testing.assert_close(torch.cat(parts, dim=1), decoder(tokens_BT), atol=1e-4, rtol=1e-4)
    assert cache.length_B.tolist() == [90] * 3


@pytest.mark.parametrize("config", [TINY, SINUSOIDAL])
@torch.no_grad()
def test_prompts_of_different_lengths_share_a_cache(config: DecoderConfig) -> None:
    decoder, tokens_BT = build_decoder(config), random_tokens(4, 60)
    lengths = [1, 30, 7, 12]
    prompts_BT = tokens_BT[:, :30].clone()
    for row, length in enumerate(lengths):
        prompts_BT[row, length:] = 0
    cache = decoder.new_cache(4, 60)
    prefill_BTV = decoder(prompts_BT, cache)
    assert cache.length_B.tolist() == lengths
    expected_BTV = decoder(tokens_BT)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(prefill_BTV[row, :length], expected_BTV[row, :length], atol=1e-4, rtol=1e-4)
    for step in range(30):
        at_B = torch.tensor(lengths) + step
        logits_BTV = decoder(tokens_BT[torch.arange(4), at_B][:, None], cache)
        torch.testing.assert_close(logits_BTV[:, 0], expected_BTV[torch.arange(4), at_B], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_row_that_was_used_before_starts_afresh() -> None:
    decoder, tokens_BT = build_decoder(), random_tokens(2, 20)
    cache = decoder.new_cache(2, 40)
    decoder(random_tokens(2, 40, seed=2), cache)
    cache.length_B[:] = torch.tensor([0, 40])
    logits_BTV = decoder(tokens_BT[:1, :10], cache.rows(0, 1))
    last_BTV = decoder(tokens_BT[:1, 10:11], cache.rows(0, 1))
    expected_BTV = decoder(tokens_BT[:1, :11])
    torch.testing.assert_close(torch.cat((logits_BTV, last_BTV), dim=1), expected_BTV, atol=1e-4, rtol=1e-4)


def test_a_cache_takes_the_dtype_of_the_weights() -> None:
    assert build_decoder().double().new_cache(1, 4).keys_LBHKJ.dtype == torch.float64


@torch.no_grad()
def test_misuse_of_a_cache_is_refused() -> None:
    decoder = build_decoder()
    with pytest.raises(ValueError, match="2 rows, the batch 3"):
        decoder(random_tokens(3, 2), decoder.new_cache(2, 4))
    cache = decoder.new_cache(1, 4)
    decoder(random_tokens(1, 3), cache)
    with pytest.raises(ValueError, match="3 cached tokens and 2 new ones exceed the cache's max_length=4"):
        decoder(random_tokens(1, 2), cache)
    with pytest.raises(ValueError, match="only stand at the end"):
        decoder(torch.tensor([[0, 5]]), decoder.new_cache(1, 4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_model": 100}, "d_model=100 is not a multiple of n_heads=8"),
        ({"n_layers": 0}, "n_layers=0 is below 1"),
        ({"max_relative_distance": 0}, "max_relative_distance=0"),
        ({"dropout": 1.0}, "dropout=1.0 is outside"),
        ({"absolute_positions": "learned"}, "'learned'"),
    ],
)
def test_impossible_sizes_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecoderConfig(**change)  # type: ignore[arg-type]


def test_a_pad_id_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="pad_id=30 is outside 0-29"):
        Decoder(TINY, VOCAB_SIZE, pad_id=VOCAB_SIZE)
