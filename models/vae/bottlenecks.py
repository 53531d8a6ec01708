"""Six bottlenecks: from the encoder's vectors to a latent of fixed shape and back.

Shape letters: see layers.py. Z represents all axes of a latent, which are one or two; T is the block here, the length
to which every row is filled up, because the shape of a latent goes with it.
"""

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

KERNEL = 5  # tokens, or latents of the stage before, that a convolution looks at; each one halves the length


class Latent(NamedTuple):
    """The encoder's result for each row: a normal distribution for each number of its latent.

    `logvar_BZ` is None for a bottleneck that is not variational; `mu_BZ` is then the latent itself.
    """

    mu_BZ: Tensor
    logvar_BZ: Tensor | None

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Return latents drawn from these distributions, in a way that lets gradients through."""
        if self.logvar_BZ is None:
            return self.mu_BZ
        noise_BZ = torch.empty_like(self.mu_BZ).normal_(generator=generator)
        return self.mu_BZ + (0.5 * self.logvar_BZ).exp() * noise_BZ

    def kl(self) -> Tensor:
        """Return the divergence from a standard normal distribution in nats, summed over each row's latent; (B,).

        Source: Kingma and Welling 2014, appendix B.
        """
        if self.logvar_BZ is None:
            return self.mu_BZ.new_zeros(len(self.mu_BZ))
        kl_BZ = 0.5 * (self.mu_BZ.square() + self.logvar_BZ.exp() - 1 - self.logvar_BZ)
        return kl_BZ.flatten(1).sum(dim=1)


def prior_latents(latent_shape: tuple[int, ...], seed: int, pieces: Sequence[int]) -> Tensor:
    """Return latents of standard normal numbers in float64, of shape (B, *latent_shape).

    Args:
        seed, pieces: 0 to 2**64 - 1; each pair of a seed and a piece has a latent of its own.
    Source: Philox4x64 of Salmon et al. 2011, turned by the normal quantile. The jump leads to other numbers than those
        that `sampling.piece_uniforms` draws tokens with.
    """
    n = math.prod(latent_shape)
    uniform_BN = np.empty((len(pieces), n))
    for row, piece in enumerate(pieces):
        philox = np.random.Philox(key=np.array([seed, piece], dtype=np.uint64)).jumped()
        # In the middle between two numbers of 52 bits, so never 0 or 1, of which the quantiles are infinite.
        uniform_BN[row] = ((philox.random_raw(n) >> np.uint64(12)) + 0.5) * 2.0**-52
    return torch.special.ndtri(torch.from_numpy(uniform_BN)).unflatten(1, latent_shape)


class Bottleneck(nn.Module):
    """Vectors to a latent and back; what the six have in common.

    Padding says nothing: its vectors count as 0, in every window of a convolution too, and a latent that looks at
    padding alone has mu 0 and logvar 0. That is the prior: no divergence, no information, and in training the decoder
    meets there what it meets in latents drawn from the prior. The original weighs such divergence down instead.

    Attributes:
        latent_shape: of one row.
        stage_shapes: of one row, from the vectors that go in to those that come out.
    """

    latent_shape: tuple[int, ...]
    stage_shapes: list[tuple[int, ...]]
    to_mu: nn.Module
    to_logvar: nn.Module | None

    @property
    def is_variational(self) -> bool:
        """Whether the latent is drawn from a distribution."""
        return self.to_logvar is not None

    def posterior(self, x_BTD: Tensor, hidden_BT: Tensor) -> Latent:
        """Return the latents of rows.

        Args:
            hidden_BT: True where a vector belongs to padding.
        """
        pressed_BZ, unseen_BZ = self.press(x_BTD.masked_fill(hidden_BT[:, :, None], 0.0), hidden_BT)
        # Under autocast the layers answer in bfloat16, in which sums over thousands of latents are worth little.
        mu_BZ = self.to_mu(pressed_BZ).to(torch.promote_types(x_BTD.dtype, torch.float32))
        if self.to_logvar is None:
            return Latent(mu_BZ.relu().masked_fill(unseen_BZ, 0.0), None)
        return Latent(
            mu_BZ.masked_fill(unseen_BZ, 0.0), self.to_logvar(pressed_BZ).to(mu_BZ.dtype).masked_fill(unseen_BZ, 0.0)
        )

    def press(self, x_BTD: Tensor, hidden_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Return what mu and logvar are made of, and a mask that is True where their latent sees padding alone."""
        raise NotImplementedError

    def release(self, z_BZ: Tensor) -> Tensor:
        """Return the vectors of shape (B, T, D) that latents represent."""
        raise NotImplementedError


class ConvolutionBottleneck(Bottleneck):
    """Each stage halves the length; a latent is a matrix of shape (channels, T / 2^stages)."""

    average: Tensor

    def __init__(self, d_model: int, block: int, channels: Sequence[int], is_variational: bool) -> None:
        super().__init__()
        sizes = [d_model, *channels]
        lengths = [block >> stage for stage in range(len(sizes))]
        matrices = list(zip(sizes, lengths, strict=True))
        self.latent_shape = matrices[-1]
        self.stage_shapes = [*matrices, *matrices[-2::-1]]
        self.down = nn.ModuleList(self.halve(a, b) for a, b in pairwise(sizes[:-1]))
        self.to_mu = self.halve(sizes[-2], sizes[-1])
        self.to_logvar = self.halve(sizes[-2], sizes[-1]) if is_variational else None
        self.up = nn.ModuleList(self.double_length(a, b) for a, b in pairwise(sizes[::-1]))
        # The average over a convolution's window: of a mask, above 0 where the window holds anything.
        self.register_buffer("average", torch.full((len(channels), 1, 1, KERNEL), 1 / KERNEL))

    @staticmethod
    def halve(n_in: int, n_out: int) -> nn.Module:
        """Build a convolution that halves the length, rounded up."""
        return nn.Conv1d(n_in, n_out, KERNEL, stride=2, padding=KERNEL // 2)

    @staticmethod
    def double_length(n_in: int, n_out: int) -> nn.Module:
        """Build a transposed convolution that doubles the length."""
        return nn.ConvTranspose1d(n_in, n_out, KERNEL, stride=2, padding=KERNEL // 2, output_padding=1)

    def press(self, x_BTD: Tensor, hidden_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Return vectors before the last halving, channels first, and which latent positions cover padding alone."""
        masks_B1J = self.masks(hidden_BT)
        x_BCJ = x_BTD.transpose(1, 2)
        for stage, unseen_B1J in zip(self.down, masks_B1J[:-1], strict=True):
            # Zeros for the next stage, not the biases of this one: as after the end of a block.
            x_BCJ = stage(x_BCJ).relu().masked_fill(unseen_B1J, 0.0)
        return x_BCJ, masks_B1J[-1]

    def masks(self, hidden_BT: Tensor) -> list[Tensor]:
        """Return for each stage where its windows hold padding alone."""
        seen_B1J = (~hidden_BT)[:, None].to(self.average.dtype)
        masks = []
        for window in self.average:
            seen_B1J = functional.conv1d(seen_B1J, window, stride=2, padding=KERNEL // 2)
            masks.append(seen_B1J <= 0)
        return masks

    def release(self, z_BZ: Tensor) -> Tensor:
        """Return vectors of the block's full length, shape BTD, from the latent."""
        for stage in self.up:
            z_BZ = stage(z_BZ).relu()
        return z_BZ.transpose(1, 2)


class LinearBottleneck(Bottleneck):
    """Linear maps of each token's vector by itself, or of all vectors of a row laid end to end.

    A latent is a matrix of shape (T, channels), or with `is_flat` one vector.
    """

    def __init__(
        self, d_model: int, block: int, channels: Sequence[int], is_variational: bool, *, is_flat: bool
    ) -> None:
        super().__init__()
        self.block, self.is_flat = block, is_flat
        outer = () if is_flat else (block,)
        sizes = [block * d_model if is_flat else d_model, *channels]
        shapes = [(*outer, size) for size in (*sizes, *sizes[-2::-1])]
        self.latent_shape = (*outer, sizes[-1])
        self.stage_shapes = [(block, d_model), *shapes, (block, d_model)] if is_flat else shapes
        self.down = linear_stages(sizes[:-1])
        self.to_mu = nn.Linear(sizes[-2], sizes[-1])
        self.to_logvar = nn.Linear(sizes[-2], sizes[-1]) if is_variational else None
        self.up = linear_stages(sizes[::-1])

    def press(self, x_BTD: Tensor, hidden_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Return the input of the last maps, and where it is padding alone."""
        if self.is_flat:
            return self.down(x_BTD.flatten(1)), hidden_BT.all(dim=1)[:, None]
        return self.down(x_BTD), hidden_BT[:, :, None]

    def release(self, z_BZ: Tensor) -> Tensor:
        """Return x_BTD of the block's length."""
        x = self.up(z_BZ)
        return x.unflatten(1, (self.block, -1)) if self.is_flat else x


class NoBottleneck(Bottleneck):
    """The latent is the encoder's vectors themselves."""

    def __init__(self, d_model: int, block: int) -> None:
        super().__init__()
        self.latent_shape = (block, d_model)
        self.stage_shapes = [self.latent_shape]
        self.to_logvar = None

    def posterior(self, x_BTD: Tensor, hidden_BT: Tensor) -> Latent:
        """Return the encoder's vectors as a latent without variance; padding is 0."""
        return Latent(x_BTD.masked_fill(hidden_BT[:, :, None], 0.0), None)

    def release(self, z_BZ: Tensor) -> Tensor:
        """Return the latent unchanged."""
        return z_BZ


KINDS = {
    "cnn": ConvolutionBottleneck,
    "linear_2d": partial(LinearBottleneck, is_flat=False),
    "linear_1d": partial(LinearBottleneck, is_flat=True),
}


def build_bottleneck(kind: str, d_model: int, block: int, channels: Sequence[int]) -> Bottleneck:
    """Return the bottleneck of a name: "cnn", "linear_2d" or "linear_1d", alone or after "variational_"; or "none".

    Raises:
        ValueError: another name.
    """
    if kind == "none":
        return NoBottleneck(d_model, block)
    plain = kind.removeprefix("variational_")
    if plain not in KINDS:
        raise ValueError(f"bottleneck={kind!r} is neither 'none' nor one of {', '.join(KINDS)}, plain or variational")
    return KINDS[plain](d_model, block, channels, is_variational=plain != kind)


def linear_stages(sizes: Sequence[int]) -> nn.Sequential:
    """Build linear layers from each size to the next, each followed by a ReLU."""
    return nn.Sequential(*(layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())))


def compression_ratio(bottleneck: Bottleneck) -> float:
    """Return the numbers of a latent over the numbers of the vectors that it represents."""
    return math.prod(bottleneck.latent_shape) / math.prod(bottleneck.stage_shapes[0])
