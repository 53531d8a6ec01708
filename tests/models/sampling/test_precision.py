"""The sampler's two precisions: close choices, the margin that finds them, and the same ids whatever it is."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from models.config import DecoderConfig, HourglassConfig, SamplingConfig
from models.decoder.model import Decoder
from models.hourglass.model import Hourglass
from models.sampling import precision
from models.sampling.choice import Chooser
from models.sampling.precision import (
    LEAST_ERROR,
    CheckSchedule,
    ErrorGauge,
    ExactLogits,
    PrecisionLostError,
    logit_error,
)
from models.sampling.sample import sample
from models.vae.latents import ConditionedDecoder
from tests.budget import examples
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


@pytest.fixture
def exact_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The pieces for which exact logits were computed."""
    calls: list[int] = []
    compute = ExactLogits.of

    def counted(self: ExactLogits, piece: int, ids: Tensor) -> Tensor:
        calls.append(piece)
        return compute(self, piece, ids)

    monkeypatch.setattr(ExactLogits, "of", counted)
    return calls


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
def test_pieces_are_those_of_float64_in_any_batch(build: Any, settings: dict[str, Any]) -> None:
    model = build()
    expected = write(model.double(), **settings)
    model = build()
    for batch_size in (1, 4, 64):
        assert write(model, batch_size, **settings) == expected


@pytest.mark.slow
@FAMILIES
@pytest.mark.parametrize("settings", [{}, {"top_p": 0.9, "top_k": 8}, {"min_p": 0.05}, {"greedy": True}], ids=str)
def test_a_margin_that_most_choices_fail_changes_no_id(
    build: Any, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, exact_calls: list[int]
) -> None:
    expected = write(build(), **settings)
    n_before = len(exact_calls)
    monkeypatch.setattr(precision, "SLACK", 1e6)
    for batch_size in (1, 64):
        exact_calls.clear()
        assert write(build(), batch_size, **settings) == expected
        assert len(exact_calls) > 2 * n_before + N_PIECES
        assert len(set(exact_calls)) > N_PIECES // 2


def test_few_choices_need_float64(exact_calls: list[int]) -> None:
    pieces = write(build_decoder(), max_tokens=60)
    n_drawn = sum(map(len, pieces)) - sum(map(len, build_prompts(N_PIECES)))
    assert len(exact_calls) < 10 + n_drawn / 50


def test_where_float32_is_not_enough_all_is_written_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, n_calls = write(build_decoder()), []
    monkeypatch.setattr(precision, "GREATEST_ERROR", 0.0)
    monkeypatch.setattr(precision.ErrorGauge, "observe", counting(n_calls))
    assert write(build_decoder()) == expected
    assert len(n_calls) == 1  # at the first step; float64 is measured against nothing


def counting(calls: list[float]) -> Any:
    observe = ErrorGauge.observe

    def counted(self: ErrorGauge, fast_V: Tensor, exact_V: Tensor) -> None:
        calls.append(logit_error(fast_V, exact_V))
        observe(self, fast_V, exact_V)

    return counted


def test_errors_that_grow_late_begin_all_pieces_again(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, n_steps = write(build_decoder()), []
    monkeypatch.setattr(precision, "LEAST_ERROR", 1e-12)
    monkeypatch.setattr(precision, "logit_error", lambda *_: 1e-12 if len(n_steps) < 5 else 1e-9)
    n_steps_at_void = []
    pieces = sample(
        build_decoder(), build_prompts(N_PIECES), range(N_PIECES), 3, SamplingConfig(max_tokens=25), end_id=2,
        on_step=n_steps.append, on_void=lambda: n_steps_at_void.append(len(n_steps)),
    )  # fmt: skip
    assert [piece.tolist() for piece in pieces] == expected
    anew = [place + 1 for place, (earlier, later) in enumerate(pairwise(n_steps)) if later < earlier]
    assert len(anew) == 1  # the count began anew
    assert n_steps_at_void == anew


def test_the_gauge_keeps_the_largest_error_and_refuses_a_jump() -> None:
    gauge, exact_V = ErrorGauge(), torch.randn(50, dtype=torch.float64)
    noise_V = torch.randn(50, dtype=torch.float64)
    gauge.observe(exact_V, exact_V)
    assert gauge.error == LEAST_ERROR
    gauge.observe(exact_V + 2 * LEAST_ERROR * noise_V, exact_V)
    assert LEAST_ERROR < gauge.error < 4 * LEAST_ERROR
    assert gauge.margin == precision.SLACK * gauge.error
    with pytest.raises(PrecisionLostError):
        gauge.observe(exact_V + 20 * LEAST_ERROR * noise_V, exact_V)
    with pytest.raises(PrecisionLostError):
        ErrorGauge().observe(exact_V + noise_V, exact_V)


def test_what_all_logits_have_in_common_is_no_error() -> None:
    exact_V = torch.randn(50, dtype=torch.float64)
    assert logit_error(exact_V + 3.0, exact_V) < 1e-12
    # One direction for the first half and the other for the second: the shares move more than by independent errors.
    together_V = 1e-6 * torch.cat((torch.ones(25), -torch.ones(25))).double()
    assert logit_error(exact_V + together_V, exact_V) > 1.5e-6


def test_rows_are_measured_at_rising_distances() -> None:
    schedule = CheckSchedule()
    assert [step for step in range(300) if schedule.is_due()] == [0, 16, 64, 256]


SETTINGS = st.builds(
    SamplingConfig,
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
    top_k=st.sampled_from([None, 1, 4, 10]),
    top_p=st.sampled_from([None, 0.3, 0.9, 1.0]),
    min_p=st.sampled_from([None, 0.05, 0.5]),
    greedy=st.booleans(),
)


@pytest.mark.slow
@examples(60)
@given(SETTINGS, st.integers(0, 10**6), st.sampled_from([1e-1, 1e-3, 1e-6]), st.booleans())
def test_a_sure_choice_survives_errors_within_the_margin(
    config: SamplingConfig, seed: int, error: float, is_masked: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits_BV = 2 * torch.randn(400, 12, dtype=torch.float64, generator=generator)
    if is_masked:
        logits_BV[:, 5:9] = -math.inf
    uniform_B = torch.rand(400, dtype=torch.float64, generator=generator)
    chooser, lengths = Chooser.of(config, 12), np.ones(400, dtype=np.int64)
    ids_B, is_sure_B = chooser.choose(logits_BV, lengths, uniform_B, margin=10 * error)
    for _ in range(5):
        noise_BV = error * torch.randn(400, 12, dtype=torch.float64, generator=generator)
        moved_B = chooser.choose(logits_BV + noise_BV, lengths, uniform_B).ids_B
        assert torch.equal(moved_B[is_sure_B], ids_B[is_sure_B])
    if error <= 1e-6:
        assert is_sure_B.double().mean() > 0.95


def test_what_lies_on_a_boundary_is_not_sure() -> None:
    logits_BV = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log().expand(4, -1)
    uniform_B = torch.tensor([0.5 - 1e-9, 0.5 + 1e-9, 0.4, 1e-12], dtype=torch.float64)
    lengths = np.ones(4, dtype=np.int64)
    choice = Chooser.of(SamplingConfig(), 3).choose(logits_BV, lengths, uniform_B, margin=1e-6)
    assert choice.is_sure_B.tolist() == [False, False, True, True]
    tied_BV = torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64).expand(4, -1)
    for config, sure in (
        (SamplingConfig(greedy=True), False),
        (SamplingConfig(top_k=1), False),
        (SamplingConfig(top_k=2), True),
        (SamplingConfig(top_p=0.3), False),
        (SamplingConfig(min_p=math.exp(-1.0)), False),
        (SamplingConfig(min_p=0.3), True),
    ):
        choice = Chooser.of(config, 3).choose(tied_BV, lengths, torch.full((4,), 0.1).double(), margin=1e-6)
        assert choice.is_sure_B.tolist() == [sure] * 4, config


def test_half_precision_weights_are_read_and_left_alone() -> None:
    model = build_decoder().bfloat16()
    expected = write(build_decoder().bfloat16().double())
    assert write(model) == expected
    assert model.embed.weight.dtype == torch.bfloat16


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
    model, found = build_decoder(), []
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
