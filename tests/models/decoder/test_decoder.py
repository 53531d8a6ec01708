"""The decoder with all its options: parameters, causality, padding on both sides, the cache against the full pass."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from models.config import DecoderConfig
from models.decoder.model import Decoder
from models.layers import RelativeAttention
from models.registry import build_model
from tasks.config.presets import build_preset
from tests.budget import examples

CONFIGS: list[Any] = [build_preset(name).train.model for name in ("rga", "char_gpt")]
RGA, CHAR_GPT = CONFIGS
TINY = DecoderConfig(d_model=24, n_heads=4, n_layers=2, d_ff=40, max_relative_distance=10)
MODERN = DecoderConfig(
    feed_forward="gated",
    activation="silu",
    bias=False,
    qk_norm=True,
    relative_positions="rotary",
    head="tied",
    initialisation="scaled",
)


def shrunk(config: Any, **changes: object) -> DecoderConfig:
    return replace(config, d_model=24, n_heads=4, n_layers=2, d_ff=40, max_relative_distance=10, **changes)  # type: ignore[arg-type]


OPTIONS = {
    "music_transformer": TINY,
    "sinusoidal": replace(TINY, absolute_positions="sinusoidal"),
    "long_table": replace(TINY, max_relative_distance=200),
    "rga": shrunk(RGA, max_positions=100),
    "char_gpt": shrunk(CHAR_GPT, max_positions=100),
    "modern": shrunk(MODERN),
    "modern_with_table": shrunk(MODERN, relative_positions="per_head", norm="rms"),
    "no_positions": shrunk(MODERN, relative_positions="none", norm="rms", attention_dropout=0.1),
}
every_option = pytest.mark.parametrize("config", OPTIONS.values(), ids=OPTIONS.keys())
VOCAB_SIZE = 30


def build_decoder(config: DecoderConfig = TINY) -> Decoder:
    torch.manual_seed(0)
    decoder = Decoder(config, VOCAB_SIZE).eval()
    for name, parameter in decoder.named_parameters():
        if name.endswith("relative_MD") or parameter.ndim == 1 or "position" in name:
            torch.nn.init.normal_(parameter)  # large, so that a wrong distance, position or bias shows
        elif "embed" not in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return decoder


def random_tokens(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(1, VOCAB_SIZE, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("config", "vocab_size", "n_parameters"),
    [
        (DecoderConfig(), 416, 1_095_200),
        (DecoderConfig(d_model=256, n_layers=6, d_ff=1024), 416, 6_525_344),
        (DecoderConfig(absolute_positions="sinusoidal"), 416, 1_095_200),
        (RGA, 390, 10_785_792),
        (CHAR_GPT, 1, 19_177_472 + 1024),
        (CHAR_GPT, 100, 19_177_472 + 1024 * 100),
        (CHAR_GPT, 5000, 19_177_472 + 1024 * 5000),
    ],
)
def test_parameters_are_as_many_as_published(config: DecoderConfig, vocab_size: int, n_parameters: int) -> None:
    with torch.device("meta"):
        decoder = build_model(config, vocab_size)
    assert decoder.n_parameters == n_parameters
    assert sum(parameter.numel() for parameter in decoder.parameters()) == n_parameters


def test_the_weights_of_rga_fill_43_megabytes() -> None:
    decoder = Decoder(RGA, 390)
    assert 43.1e6 < len(save(decoder.state_dict())) < 43.2e6


def test_the_music_transformer_keeps_its_names() -> None:
    names = {
        name.replace("blocks.0.", "") for name in Decoder(TINY, VOCAB_SIZE).state_dict() if "blocks.1." not in name
    }
    linears = ("attention.to_qkv", "attention.to_out", "feed_forward.to_hidden", "feed_forward.to_out", "head")
    norms = ("attention_norm", "feed_forward_norm", "norm")
    expected = {f"{module}.{kind}" for module in linears + norms for kind in ("weight", "bias")}
    assert names == expected | {"embed.weight", "attention.relative_MD"}


@every_option
def test_layers_start_out_different(config: DecoderConfig) -> None:
    first, second = Decoder(config, VOCAB_SIZE).blocks
    for name, parameter in first.named_parameters():
        if parameter.ndim == 2:
            assert not torch.equal(parameter, second.get_parameter(name)), name


def test_weights_start_as_published() -> None:
    torch.manual_seed(0)
    rga, gpt = (Decoder(replace(config, d_ff=512, n_layers=2), 400) for config in (RGA, CHAR_GPT))
    for decoder in (rga, gpt):
        assert decoder.embed_position is not None
        assert decoder.embed_position.weight.eq(0).all()
        assert decoder.embed.weight.std().item() == pytest.approx(0.02, rel=0.05)
        for name, parameter in decoder.named_parameters():
            if name.endswith("bias"):
                assert parameter.eq(0).all(), name
            elif parameter.ndim == 1:
                assert parameter.eq(1).all(), name
            elif "to_out" in name or "to_hidden" in name or "head" in name:
                assert parameter.std().item() == pytest.approx(0.02, rel=0.05), name
    assert gpt.get_parameter("blocks.1.attention.to_qkv.weight").std().item() == pytest.approx(0.02, rel=0.05)
    xavier = rga.get_parameter("blocks.1.attention.to_qkv.weight")
    assert xavier.abs().max().item() == pytest.approx(math.sqrt(6 / (512 + 3 * 512)), rel=0.01)
    table_MD = rga.get_parameter("blocks.1.attention.relative_MD")
    assert table_MD.shape == (1024, 64)
    assert 0 <= table_MD.min() < 0.01
    assert 0.99 < table_MD.max() < 1
    assert table_MD.mean().item() == pytest.approx(0.5, abs=0.01)


def test_scaled_maps_keep_the_size_of_what_they_get() -> None:
    torch.manual_seed(0)
    decoder = Decoder(replace(MODERN, d_model=256, d_ff=512, n_layers=8), 400)
    for name, module in decoder.named_modules():
        if isinstance(module, torch.nn.Linear):
            gain = module.weight.std().item() * math.sqrt(module.in_features)
            assert gain == pytest.approx(0.25 if name.endswith("to_out") else 1.0, rel=0.05), name
    tokens_BT, targets_BT = torch.randint(1, 400, (2, 4, 64))
    loss = torch.nn.functional.cross_entropy(decoder(tokens_BT).flatten(0, 1), targets_BT.flatten())
    assert loss.item() == pytest.approx(math.log(400), rel=0.05)


def test_a_tied_head_is_the_embedding() -> None:
    decoder = build_decoder(OPTIONS["modern"])
    untied = build_decoder(replace(OPTIONS["modern"], head="unbiased"))
    assert untied.n_parameters - decoder.n_parameters == VOCAB_SIZE * 24
    assert not [name for name in decoder.state_dict() if "head" in name]
    tokens_BT = random_tokens(2, 9)
    states: list[Tensor] = []
    decoder.norm.register_forward_hook(lambda *given: states.append(given[2]))
    torch.testing.assert_close(decoder(tokens_BT), states[0] @ decoder.embed.weight.T)


def test_the_same_seed_builds_the_same_weights() -> None:
    first, second = build_decoder().state_dict(), build_decoder().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def random_configs() -> st.SearchStrategy[DecoderConfig]:
    return st.builds(
        DecoderConfig,
        d_model=st.just(24),
        n_heads=st.sampled_from([1, 2, 4, 6]),
        n_layers=st.integers(1, 2),
        d_ff=st.integers(1, 40),
        feed_forward=st.sampled_from(["plain", "gated"]),
        activation=st.sampled_from(["relu", "gelu", "silu"]),
        bias=st.booleans(),
        norm=st.sampled_from(["layer", "rms"]),
        qk_norm=st.booleans(),
        relative_positions=st.sampled_from(["none", "per_head", "shared", "rotary"]),
        max_relative_distance=st.sampled_from([1, 5, 200]),
        absolute_positions=st.sampled_from(["none", "sinusoidal", "learned"]),
        embedding_scale=st.booleans(),
        head=st.sampled_from(["biased", "unbiased", "tied"]),
        initialisation=st.sampled_from(["music_transformer", "gpt", "rga", "scaled"]),
    )


@pytest.mark.slow
@given(config=random_configs(), T=st.integers(1, 150), at=st.integers(0, 149), row=st.integers(0, 1))
@examples(30)
@torch.no_grad()
def test_a_token_moves_no_logit_before_it_and_none_of_another_row(
    config: DecoderConfig, T: int, at: int, row: int
) -> None:
    at %= T
    decoder, tokens_BT = build_decoder(config), random_tokens(2, T)
    changed_BT = tokens_BT.clone()
    changed_BT[row, at:] = changed_BT[row, at:] % (VOCAB_SIZE - 1) + 1
    before_BTV, after_BTV = decoder(tokens_BT), decoder(changed_BT)
    assert torch.equal(before_BTV[row, :at], after_BTV[row, :at])
    assert torch.equal(before_BTV[1 - row], after_BTV[1 - row])
    assert not torch.allclose(before_BTV[row, at:], after_BTV[row, at:])


@every_option
@torch.no_grad()
def test_logits_of_a_beginning_do_not_depend_on_the_rest(config: DecoderConfig) -> None:
    decoder, tokens_BT = build_decoder(config), random_tokens(2, 90)
    expected_BTV = decoder(tokens_BT)
    for n in (1, 7, 64, 89):
        torch.testing.assert_close(decoder(tokens_BT[:, :n]), expected_BTV[:, :n], atol=1e-4, rtol=1e-4)


@every_option
@torch.no_grad()
def test_order_counts(config: DecoderConfig) -> None:
    decoder, tokens_BT = build_decoder(config), random_tokens(1, 30)
    swapped_BT = tokens_BT.clone()
    swapped_BT[0, [4, 20]] = swapped_BT[0, [20, 4]]
    moved = (decoder(tokens_BT)[0, -1] - decoder(swapped_BT)[0, -1]).abs().max()
    assert moved > 1e-3 or config is OPTIONS["no_positions"]


@every_option
@torch.no_grad()
def test_padding_on_either_side_moves_no_logit(config: DecoderConfig) -> None:
    decoder, tokens_BT = build_decoder(config), random_tokens(2, 70)
    expected_BTV = decoder(tokens_BT)
    right_BTV = decoder(torch.nn.functional.pad(tokens_BT, (0, 9)))[:, :70]
    left_BTV = decoder(torch.nn.functional.pad(tokens_BT, (9, 0)))[:, 9:]
    torch.testing.assert_close(right_BTV, expected_BTV, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(left_BTV, expected_BTV, atol=1e-4, rtol=1e-4)
    both_BT = torch.nn.functional.pad(tokens_BT, (3, 5))
    both_BT[1, :3] = random_tokens(3)  # one row without padding in front beside one with it
    torch.testing.assert_close(decoder(both_BT)[0, 3:-5], expected_BTV[0], atol=1e-4, rtol=1e-4)


@every_option
@torch.no_grad()
def test_nothing_is_nan_where_padding_is(config: DecoderConfig) -> None:
    decoder = build_decoder(config)
    assert decoder(torch.zeros(2, 5, dtype=torch.long)).isfinite().all()
    assert decoder(torch.tensor([[0, 0, 3, 0, 4], [3, 4, 5, 0, 0]])).isfinite().all()


@pytest.mark.parametrize("config", [config for config in OPTIONS.values() if config.head != "tied"])
def test_padding_gets_no_gradient_from_other_tokens(config: DecoderConfig) -> None:
    decoder = build_decoder(config)
    decoder(torch.tensor([[0, 0, 3, 4, 0, 5]]))[:, [2, 3, 5]].sum().backward()
    assert decoder.embed.weight.grad is not None
    assert decoder.embed.weight.grad[0].abs().max() == 0
    assert decoder.embed.weight.grad[3].abs().max() > 0


@every_option
@torch.no_grad()
def test_steps_with_a_cache_equal_the_full_pass(config: DecoderConfig) -> None:
    decoder, tokens_BT = build_decoder(config), random_tokens(3, 90)
    cache = decoder.new_cache(3, 90)
    parts = [decoder(tokens_BT[:, :20], cache)]
    parts += [decoder(tokens_BT[:, t : t + 1], cache) for t in range(20, 60)]
    parts.append(decoder(tokens_BT[:, 60:], cache))  # many at once, behind others
    torch.testing.assert_close(torch.cat(parts, dim=1), decoder(tokens_BT), atol=1e-4, rtol=1e-4)
    assert cache.length_B.tolist() == [90] * 3


@pytest.mark.parametrize("config", [RGA, CHAR_GPT], ids=["rga", "char_gpt"])
@torch.no_grad()
def test_a_cached_step_does_less_than_a_fifth_of_the_work_of_a_pass(config: DecoderConfig) -> None:
    decoder = Decoder(replace(config, n_layers=2), 390).eval()
    tokens_BT, cache = torch.randint(1, 390, (1, 512)), decoder.new_cache(1, 512)
    decoder(tokens_BT[:, :-1], cache)
    whole = n_operations(lambda: decoder(tokens_BT))
    assert 0 < 5 * n_operations(lambda: decoder(tokens_BT[:, -1:], cache)) < whole


def n_operations(work: Callable[[], object]) -> int:
    """Return the floating-point operations of the matrix products of some work."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@every_option
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
    assert build_decoder().double().new_cache(1, 4).keys_LBHJK.dtype == torch.float64


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


@pytest.mark.parametrize("name", ["rga", "char_gpt"])
@torch.no_grad()
def test_a_piece_longer_than_the_learned_positions_is_refused(name: str) -> None:
    decoder = build_decoder(replace(OPTIONS[name], max_positions=8))
    assert decoder.max_length == 8
    eight_BTV = decoder(random_tokens(2, 8))
    padded_BT = torch.nn.functional.pad(random_tokens(2, 8), (2, 3))  # only tokens need a position
    torch.testing.assert_close(decoder(padded_BT)[:, 2:10], eight_BTV, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="a row of 9 tokens, but the model has max_positions=8"):
        decoder(random_tokens(2, 9))
    with pytest.raises(ValueError, match="a cache for 9 tokens, but the model has max_positions=8"):
        decoder.new_cache(1, 9)
    cache = decoder.new_cache(1, 8)
    decoder(random_tokens(1, 8), cache)
    with pytest.raises(ValueError, match="8 cached tokens and 1 new ones exceed"):
        decoder(random_tokens(1, 1), cache)


def test_other_positions_have_no_longest_piece() -> None:
    assert all(Decoder(OPTIONS[name], VOCAB_SIZE).max_length is None for name in ("music_transformer", "modern"))


@every_option
@torch.no_grad()
def test_dropout_acts_in_training_alone(config: DecoderConfig) -> None:
    tokens_BT = random_tokens(2, 70)
    plain = build_decoder(replace(config, dropout=0.0, attention_dropout=0.0))
    expected_BTV = plain(tokens_BT)
    for change in ({"dropout": 0.2, "attention_dropout": 0.0}, {"dropout": 0.0, "attention_dropout": 0.2}):
        decoder = build_decoder(replace(config, **change))
        assert torch.equal(decoder(tokens_BT), expected_BTV)
        decoder.train()
        first_BTV, second_BTV = decoder(tokens_BT), decoder(tokens_BT)
        assert not torch.allclose(first_BTV, expected_BTV)
        assert not torch.allclose(first_BTV, second_BTV)
    # All the same in training too, but for rounding: PyTorch's own attention keeps other sums for gradients.
    torch.testing.assert_close(plain.train()(tokens_BT), expected_BTV)


@every_option
def test_bfloat16_is_near_and_trains(config: DecoderConfig) -> None:
    decoder = build_decoder(config)
    tokens_BT = random_tokens(2, 90)
    tokens_BT[1, :5] = 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough_BTV = decoder(tokens_BT)
    exact_BTV = decoder(tokens_BT)
    assert (rough_BTV.float() - exact_BTV).norm() < 0.1 * exact_BTV.norm()
    decoder.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits_BTV = decoder(tokens_BT)
    torch.nn.functional.cross_entropy(logits_BTV.float().flatten(0, 1), tokens_BT.flatten()).backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_tables_are_shared_by_the_heads_of_a_layer_or_not() -> None:
    shapes = {}
    for kind in ("per_head", "shared"):
        attention = Decoder(replace(TINY, relative_positions=kind), VOCAB_SIZE).blocks[0].get_submodule("attention")
        assert isinstance(attention, RelativeAttention)
        shapes[kind] = tuple(attention.relative_MD.shape)
    assert shapes == {"per_head": (10, 24), "shared": (10, 6)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_model": 100}, "d_model=100 is not a multiple of n_heads=8"),
        ({"n_layers": 0}, "n_layers=0 is below 1"),
        ({"max_relative_distance": 0}, "max_relative_distance=0"),
        ({"max_positions": 0}, "max_positions=0"),
        ({"dropout": 1.0}, "dropout=1.0 is not below 1"),
        ({"attention_dropout": -0.1}, "attention_dropout=-0.1 is below 0"),
        ({"norm_eps": 0.0}, "norm_eps=0.0"),
        ({"absolute_positions": "alibi"}, "absolute_positions='alibi' is not one of 'none', 'sinusoidal', 'learned'"),
        ({"activation": "tanh"}, "activation='tanh' is not one of"),
        ({"head": True}, "head=True is not one of"),
        ({"relative_positions": "rotary", "d_model": 24}, "rotary' needs an even d_model / n_heads, not 24 / 8"),
    ],
)
def test_impossible_sizes_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecoderConfig(**change)  # type: ignore[arg-type]


def test_a_pad_id_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="pad_id=30 is outside 0-29"):
        Decoder(TINY, VOCAB_SIZE, pad_id=VOCAB_SIZE)
