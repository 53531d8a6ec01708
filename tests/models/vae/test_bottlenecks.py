"""Bottlenecks: shapes and counts as published, padding that says nothing, the divergence, and latents of the prior."""

from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from models.config import BottleneckKind
from models.vae.bottlenecks import Bottleneck, Latent, build_bottleneck, compression_ratio, prior_latents

BLOCK, D_MODEL = 16, 6
TINY_CHANNELS = {"cnn": (5, 4), "linear_2d": (5, 2), "linear_1d": (20, 7), "none": ()}
KINDS = get_args(BottleneckKind)


def build_tiny(kind: str, block: int = BLOCK) -> Bottleneck:
    torch.manual_seed(0)
    bottleneck = build_bottleneck(kind, D_MODEL, block, TINY_CHANNELS[kind.removeprefix("variational_")])
    for name, parameter in bottleneck.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)  # so that a bias where padding is would show
    return bottleneck.double()


def vectors(n_rows: int = 3, block: int = BLOCK, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n_rows, block, D_MODEL, generator=generator, dtype=torch.float64)


def hide_behind(*lengths: int, block: int = BLOCK) -> Tensor:
    return torch.arange(block) >= torch.tensor(lengths)[:, None]


@pytest.mark.parametrize(
    ("kind", "channels", "latent_shape", "ratio", "n_parameters"),
    [
        ("variational_cnn", (128, 256), (256, 128), 0.5, 656_266),
        ("cnn", (128, 256), (256, 128), 0.5, 492_170),
        ("variational_linear_2d", (64, 16, 2), (512, 2), 0.015625, 18_820),
        ("linear_2d", (64, 16, 2), (512, 2), 0.015625, 18_786),
        ("variational_linear_1d", (1024, 128), (128,), 0.001953125, 134_678_784),
        ("linear_1d", (1024, 128), (128,), 0.001953125, 134_547_584),
        ("none", (), (512, 128), 1.0, 0),
    ],
)
def test_shapes_and_counts_are_as_published(
    kind: str, channels: tuple[int, ...], latent_shape: tuple[int, ...], ratio: float, n_parameters: int
) -> None:
    with torch.device("meta"):  # without half a gigabyte of weights
        bottleneck = build_bottleneck(kind, 128, 512, channels)
    assert bottleneck.latent_shape == latent_shape
    assert compression_ratio(bottleneck) == ratio
    assert sum(tensor.numel() for tensor in (*bottleneck.parameters(), *bottleneck.buffers())) == n_parameters


def test_stages_are_told_from_the_way_in_to_the_way_out() -> None:
    assert build_bottleneck("cnn", 8, 16, (6, 4)).stage_shapes == [(8, 16), (6, 8), (4, 4), (6, 8), (8, 16)]
    assert build_bottleneck("linear_2d", 8, 16, (6, 4)).stage_shapes == [(16, 8), (16, 6), (16, 4), (16, 6), (16, 8)]
    assert build_bottleneck("linear_1d", 8, 16, (6, 4)).stage_shapes == [
        (16, 8), (128,), (6,), (4,), (6,), (128,), (16, 8),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_what_goes_in_and_comes_out_has_the_told_shapes(kind: str) -> None:
    bottleneck = build_tiny(kind)
    latent = bottleneck.posterior(vectors(), hide_behind(16, 9, 1))
    z_BZ = latent.sample()
    assert latent.mu_BZ.shape == z_BZ.shape == (3, *bottleneck.latent_shape)
    assert (latent.logvar_BZ is not None) == bottleneck.is_variational == kind.startswith("variational")
    assert bottleneck.release(z_BZ).shape == (3, BLOCK, D_MODEL)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_padding_says_nothing(kind: str) -> None:
    bottleneck, hidden_BT = build_tiny(kind), hide_behind(16, 9, 1)
    x_BTD = vectors()
    other_BTD = torch.where(hidden_BT[:, :, None], 100.0, x_BTD)
    ours, theirs = bottleneck.posterior(x_BTD, hidden_BT), bottleneck.posterior(other_BTD, hidden_BT)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["variational_cnn", "variational_linear_2d"])
@torch.no_grad()
def test_latents_that_see_padding_alone_are_the_prior(kind: str) -> None:
    bottleneck = build_tiny(kind)
    mu_BZ, logvar_BZ = bottleneck.posterior(vectors(), hide_behind(16, 9, 0))
    assert logvar_BZ is not None
    length_axis = 2 if kind.endswith("cnn") else 1
    # Two stages of windows of 5: latent j sees tokens 4j - 6 to 4j + 6.
    n_seen = {"variational_cnn": 4, "variational_linear_2d": 9}[kind]
    for tensor in (mu_BZ, logvar_BZ):
        along = tensor.movedim(length_axis, 1)
        assert (along[0] != 0).all()
        assert (along[1, :n_seen] != 0).all()
        assert (along[1, n_seen:] == 0).all()
        assert (along[2] == 0).all()
    assert Latent(mu_BZ, logvar_BZ).kl()[2] == 0


@torch.no_grad()
def test_a_row_has_the_same_latents_in_a_longer_block() -> None:
    x_BTD = vectors(n_rows=1, block=32)
    ours = build_tiny("variational_cnn").posterior(x_BTD[:, :16], hide_behind(9)).mu_BZ
    theirs = build_tiny("variational_cnn", block=32).posterior(x_BTD, hide_behind(9, block=32)).mu_BZ
    torch.testing.assert_close(theirs, nn.functional.pad(ours, (0, 4)))


def test_the_divergence_is_the_closed_form() -> None:
    assert Latent(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4)).kl().tolist() == [0.0, 0.0]
    generator = torch.Generator().manual_seed(0)
    mu_BZ, logvar_BZ = torch.randn(2, 5, 3, 4, generator=generator, dtype=torch.float64)
    expected_BZ = kl_divergence(Normal(mu_BZ, (0.5 * logvar_BZ).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(Latent(mu_BZ, logvar_BZ).kl(), expected_BZ.sum(dim=(1, 2)), atol=1e-6, rtol=0)
    assert Latent(mu_BZ, None).kl().tolist() == [0.0] * 5


def test_latents_are_drawn_as_told() -> None:
    mu_BZ, logvar_BZ = torch.full((40_000, 2), 3.0), torch.tensor([[0.0, -2.0]]).expand(40_000, 2)
    z_BZ = Latent(mu_BZ, logvar_BZ).sample(torch.Generator().manual_seed(0))
    assert z_BZ.mean(dim=0).tolist() == pytest.approx([3.0, 3.0], abs=0.02)
    assert z_BZ.std(dim=0).tolist() == pytest.approx([1.0, 0.3679], rel=0.02)
    assert torch.equal(z_BZ, Latent(mu_BZ, logvar_BZ).sample(torch.Generator().manual_seed(0)))
    assert Latent(mu_BZ, None).sample() is mu_BZ


def test_a_piece_has_its_latent_of_the_prior_in_any_company() -> None:
    many = prior_latents((4, 3), seed=7, pieces=range(9))
    assert torch.equal(many[[8, 2]], prior_latents((4, 3), seed=7, pieces=[8, 2]))
    assert not torch.equal(many, prior_latents((4, 3), seed=8, pieces=range(9)))
    assert len(many.flatten().unique()) == many.numel()


def test_latents_of_the_prior_are_standard_normal() -> None:
    z = prior_latents((500, 100), seed=0, pieces=[2**64 - 1]).flatten()
    assert float(z.mean()) == pytest.approx(0, abs=0.02)
    assert float(z.var()) == pytest.approx(1, abs=0.02)
    assert float((z.abs() < 1).double().mean()) == pytest.approx(0.6827, abs=0.01)


def test_unknown_names_are_refused() -> None:
    for kind in ("rnn", "variational_none", "variational_"):
        with pytest.raises(ValueError, match=f"bottleneck='{kind}' is neither"):
            build_bottleneck(kind, 8, 16, (4,))
