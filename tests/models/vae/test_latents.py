"""Latents at work: cached steps against whole passes, the sampler, the arc between two latents, and their use."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.config import SamplingConfig, VaeConfig
from models.sampling.sample import sample
from models.vae.latents import ConditionedDecoder, interpolate, latent_use, slerp
from models.vae.model import Vae
from tests.models.vae.small_vae import ENCODER, END, FAMILIES, PAD, START, TINY, VOCAB_SIZE, build_vae, latents, rows

GENERATION = replace(TINY, row_mode="generation")
ALL = pytest.mark.parametrize(
    "config", [TINY, ENCODER, GENERATION], ids=lambda config: f"{config.family}-{config.row_mode}"
)


def build_conditioned(config: VaeConfig = TINY, n: int = 4) -> ConditionedDecoder:
    model = build_vae(config)
    return ConditionedDecoder(model, latents(model, n))


def write(conditioned: ConditionedDecoder, n: int, batch_size: int, **settings: object) -> list[list[int]]:
    given = {"max_tokens": 20} | settings
    pieces = sample(
        conditioned,  # type: ignore[arg-type]
        [torch.tensor([START, 7, 9][: 1 + i % 3]) for i in range(n)],
        piece_indices=list(range(n)),
        seed=3,
        config=SamplingConfig(**given),  # type: ignore[arg-type]
        end_id=END,
        pad_id=PAD,
        batch_size=batch_size,
    )
    return [piece.tolist() for piece in pieces]


# Caches


@ALL
@torch.no_grad()
def test_cached_steps_equal_the_whole_pass(config: VaeConfig) -> None:
    conditioned, tokens_BT = build_conditioned(config, 3), rows(24, 24, 24)
    cache = conditioned.new_cache(3, 25)
    parts = [conditioned(tokens_BT[:, :9], cache)]
    parts += [conditioned(tokens_BT[:, t : t + 1], cache) for t in range(9, 15)]
    parts.append(conditioned(tokens_BT[:, 15:], cache))
    torch.testing.assert_close(torch.cat(parts, dim=1), conditioned(tokens_BT), atol=1e-4, rtol=1e-4)
    assert cache.length_B.tolist() == [24] * 3


@ALL
@torch.no_grad()
def test_prompts_of_different_lengths_share_a_cache(config: VaeConfig) -> None:
    conditioned, tokens_BT, lengths = build_conditioned(config), rows(24, 24, 24, 24), [1, 9, 7, 3]
    prompts_BT = tokens_BT[:, :9].masked_fill(torch.arange(9) >= torch.tensor(lengths)[:, None], PAD)
    cache = conditioned.new_cache(4, 24)
    prefill_BTV, expected_BTV = conditioned(prompts_BT, cache), conditioned(tokens_BT)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(prefill_BTV[row, :length], expected_BTV[row, :length], atol=1e-4, rtol=1e-4)
    for step in range(10):
        at_B = torch.tensor(lengths) + step
        logits_BTV = conditioned(tokens_BT[torch.arange(4), at_B][:, None], cache)
        torch.testing.assert_close(logits_BTV[:, 0], expected_BTV[torch.arange(4), at_B], atol=1e-4, rtol=1e-4)


@FAMILIES
@torch.no_grad()
def test_a_row_takes_its_latent_along_and_starts_with_another(config: VaeConfig) -> None:
    conditioned, tokens_BT = build_conditioned(config), rows(10, 10)
    expected_BTV = conditioned(torch.cat((tokens_BT, tokens_BT)))
    cache = conditioned.new_cache(2, 24)
    conditioned(tokens_BT[:, :6], cache)
    cache.copy_row(1, 0)
    last_BTV = conditioned(tokens_BT[1:, 6:], cache.rows(0, 1))
    torch.testing.assert_close(last_BTV[0], expected_BTV[1, 6:], atol=1e-4, rtol=1e-4)
    cache.start_row(0, 2)
    assert cache.length_B.tolist() == [0, 6]
    again_BTV = conditioned(tokens_BT[:1], cache.rows(0, 1))
    torch.testing.assert_close(again_BTV[0], expected_BTV[2], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_without_latents_of_its_own_a_cache_holds_those_of_the_prior() -> None:
    model, tokens_BT = build_vae(), rows(8, 8)
    logits_BTV = model(tokens_BT, model.new_cache(2, 24))
    torch.testing.assert_close(logits_BTV, model.logits(tokens_BT, model.prior_latents(0, [0, 1])), atol=1e-4, rtol=0)


@torch.no_grad()
def test_misuse_is_refused() -> None:
    conditioned = build_conditioned()
    with pytest.raises(ValueError, match="2 rows, the batch 3"):
        conditioned(rows(2, 2, 2), conditioned.new_cache(2, 4))
    cache = conditioned.new_cache(1, 4)
    conditioned(rows(3), cache)
    with pytest.raises(ValueError, match="3 cached tokens and 2 new ones exceed the cache's max_length=4"):
        conditioned(rows(2), cache)
    with pytest.raises(ValueError, match="only stand at the end"):
        conditioned(torch.tensor([[PAD, 5]]), conditioned.new_cache(1, 4))
    with pytest.raises(ValueError, match="a cache for 26 tokens, but block=24 and a start token"):
        conditioned.new_cache(1, 26)
    with pytest.raises(ValueError, match="piece 4, but only 4 latents"):
        cache.start_row(0, 4)
    with pytest.raises(ValueError, match=r"latents of shape \(8, 5\), the model's have \(8, 6\)"):
        ConditionedDecoder(build_vae(), torch.zeros(2, 8, 5))


# The sampler


@ALL
def test_pieces_are_the_same_in_any_batch(config: VaeConfig) -> None:
    conditioned = build_conditioned(config, 9)
    alone = write(conditioned, 9, batch_size=1)
    assert alone == write(conditioned, 9, batch_size=4) == write(conditioned, 9, batch_size=9)
    assert len({tuple(piece[-3:]) for piece in alone}) > 1
    assert len({len(piece) for piece in alone}) > 1  # rows were dropped and refilled at different times


@ALL
def test_the_likeliest_piece_is_that_of_whole_passes(config: VaeConfig) -> None:
    conditioned = build_conditioned(config, 3)
    expected = []
    whole = ConditionedDecoder(conditioned.model.double(), conditioned.latents_NZ)
    for row in range(3):
        ids = [START, 7, 9][: 1 + row]
        while ids[-1] != END and len(ids) < 20:
            with torch.no_grad():
                logits_V = whole(torch.tensor([ids] * 3))[row, -1]
            logits_V[PAD] = -math.inf
            ids.append(int(logits_V.argmax()))
        expected.append(ids)
    assert write(whole, 3, batch_size=3, greedy=True) == expected


def test_the_longest_piece_fills_the_block() -> None:
    conditioned = build_conditioned(ENCODER, 2)
    conditioned.model.embed.weight.data[END] = 0
    assert max(len(piece) for piece in write(conditioned, 2, batch_size=2, max_tokens=25)) == 25


@torch.no_grad()
def test_a_piece_can_be_written_from_another_one() -> None:
    model, tokens_BT = build_vae(), rows(20, 12)
    conditioned = ConditionedDecoder(model, model.latent(tokens_BT))
    torch.testing.assert_close(conditioned(tokens_BT[:, :-1]), model(tokens_BT))


# The arc


def random_latents(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 3, 5, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_arc_from_a_latent_to_itself_is_that_latent(share: float) -> None:
    (z,) = random_latents(1)
    assert torch.equal(slerp(z, z, share), z)
    assert torch.equal(slerp(torch.zeros(3, 5), torch.zeros(3, 5), share), torch.zeros(3, 5))
    for other in (-z, 1e-20 * z, torch.zeros(3, 5), z + 1e-9):
        assert slerp(z, other, share).isfinite().all()


def test_the_arc_is_the_published_formula() -> None:
    one, other = random_latents(2)
    angle = torch.arccos((one * other).sum() / one.norm() / other.norm())
    for share in (0.2, 0.5, 0.9):
        expected = ((1 - share) * angle).sin() / angle.sin() * one + (share * angle).sin() / angle.sin() * other
        torch.testing.assert_close(slerp(one, other, share), expected)
    right_angle = slerp(torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0]), 0.5)
    torch.testing.assert_close(right_angle, torch.tensor([2.0, 2.0]) / math.sqrt(2))


def test_a_path_has_exact_ends_and_even_steps() -> None:
    one, other = random_latents(2)
    path = interpolate(one, other * one.norm() / other.norm(), 6)
    assert path.shape == (6, 3, 5)
    assert torch.equal(path[0], one)
    assert torch.equal(interpolate(one, other, 4)[-1], other)
    steps = (path[1:] - path[:-1]).flatten(1).norm(dim=1)
    torch.testing.assert_close(steps, steps[:1].expand(5))
    torch.testing.assert_close(path.flatten(1).norm(dim=1), one.norm().expand(6))


def test_impossible_paths_are_refused() -> None:
    one, other = random_latents(2)
    with pytest.raises(ValueError, match="n_steps=1 is below 2"):
        interpolate(one, other, 1)
    with pytest.raises(ValueError, match=r"\(3, 5\) and \(3, 4\)"):
        interpolate(one, other[:, :4], 3)


# Use


def test_latents_of_one_piece_are_worth_nothing_to_itself() -> None:
    model, tokens_BT = build_vae().train(), rows(20)
    use = latent_use(model, tokens_BT.expand(4, -1))
    assert use.gain == pytest.approx(0, abs=1e-5)
    assert use.n_active == 0
    assert use.n_numbers == 8 * 6
    assert model.training


def test_use_is_measured_in_nats_per_token() -> None:
    model, tokens_BT = build_vae(), rows(20, 12, 7)
    use, loss = latent_use(model, tokens_BT), model.loss_parts(tokens_BT)
    assert use.own_nll == pytest.approx(float(loss.nll_sum.detach()) / loss.n_targets)
    assert use.other_nll != use.own_nll
    assert 0 < use.n_active < use.n_numbers
    swapped = latent_use(model, tokens_BT.flip(0)[[1, 0, 2]])  # each row still gets that of the one before it
    assert swapped.own_nll == pytest.approx(use.own_nll)


def test_a_model_that_ignores_latents_is_found_out() -> None:
    model = build_vae(replace(TINY, bottleneck="cnn"))
    for stage in model.bottleneck.up.parameters():  # type: ignore[union-attr]
        torch.nn.init.zeros_(stage)
    for batch_size in (1, 2):
        assert latent_use(model, rows(20, 12, 7), batch_size).gain == pytest.approx(0, abs=1e-5)
    assert latent_use(model, rows(20, 12, 7)).gain == pytest.approx(0, abs=1e-5)


def test_one_row_has_no_other() -> None:
    with pytest.raises(ValueError, match="1 rows"):
        latent_use(build_vae(), rows(20))


def test_vocabulary_and_padding_are_the_models() -> None:
    conditioned = build_conditioned()
    assert isinstance(conditioned.model, Vae)
    assert (conditioned.vocab_size, conditioned.pad_id, conditioned.max_length) == (VOCAB_SIZE, PAD, 25)
    assert conditioned.n_parameters == conditioned.model.n_parameters
