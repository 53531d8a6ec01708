"""Uses of a `Vae`'s latents: writing pieces, interpolating, and measuring how much they are used.

Shape letters: see layers.py; Z represents all axes of a latent.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.training import token_loss
from models.vae.cache import LatentCache
from models.vae.model import Vae

# Between nearly equal or opposite directions the arc's formula divides by nearly 0; there a straight line is the arc.
LEAST_SINE = 1e-6
ACTIVE_VARIANCE = 0.01  # Burda et al. 2016, section 5.2


class ConditionedDecoder(nn.Module):
    """A `Vae` with a latent for each piece, as a sampler needs it: piece `i` is written from `latents_NZ[i]`."""

    latents_NZ: Tensor

    def __init__(self, model: Vae, latents_NZ: Tensor) -> None:
        super().__init__()
        self.config, self.vocab_size, self.pad_id = model.config, model.vocab_size, model.pad_id
        self.max_length, self.n_parameters = model.max_length, model.n_parameters
        if latents_NZ.shape[1:] != model.bottleneck_shape:
            raise ValueError(
                f"latents of shape {tuple(latents_NZ.shape[1:])}, the model's have {model.bottleneck_shape}"
            )
        self.model = model
        self.register_buffer("latents_NZ", latents_NZ.detach().to(model.embed.weight))

    @property
    def embed(self) -> nn.Embedding:
        """The token embedding of the model."""
        return self.model.embed

    def new_cache(self, batch_size: int, max_length: int) -> LatentCache:
        """Return a cache whose rows begin with the latents of the first pieces; see `LatentCache.start_row`."""
        return self.model.new_cache(batch_size, max_length, self.latents_of)

    def latents_of(self, pieces: Sequence[int]) -> Tensor:
        """Return the latents of the pieces with these numbers; raise ValueError for a number without one."""
        if len(pieces) and max(pieces) >= len(self.latents_NZ):
            raise ValueError(f"piece {max(pieces)}, but only {len(self.latents_NZ)} latents")
        return self.latents_NZ[list(pieces)]

    def forward(self, tokens_BT: Tensor, cache: LatentCache | None = None) -> Tensor:
        """Return logits of the id after each of `tokens_BT`, (B, T, V); without a cache row `i` is piece `i`."""
        if cache is not None:
            return self.model.continue_rows(tokens_BT, cache)
        return self.model.logits(tokens_BT, self.latents_of(range(len(tokens_BT))))


def slerp(start_Z: Tensor, end_Z: Tensor, share: float) -> Tensor:
    """Return the latent at `share` of the arc from one latent to another, 0 the first and 1 the second exactly.

    Latents of the prior all lie about equally far from 0. So does the arc between two of them, while a straight line
    passes much nearer to 0. Source: Shoemake 1985.
    """
    start, end = start_Z.flatten().double(), end_Z.flatten().double()
    norms = start.norm() * end.norm()
    cosine = (start @ end / norms).clamp(-1.0, 1.0) if norms > 0 else torch.zeros_like(norms)
    angle = cosine.arccos()
    if angle.sin() < LEAST_SINE:
        return torch.lerp(start_Z, end_Z, share)
    point = ((1 - share) * angle).sin() / angle.sin() * start + (share * angle).sin() / angle.sin() * end
    return point.to(start_Z.dtype).unflatten(0, start_Z.shape)


def interpolate(start_Z: Tensor, end_Z: Tensor, n_steps: int) -> Tensor:
    """Return `n_steps` latents, (n_steps, Z), evenly along the arc from one to another, both included.

    Raises:
        ValueError: fewer than 2 steps, or latents of different shapes.
    """
    if n_steps < 2:
        raise ValueError(f"n_steps={n_steps} is below 2, the two ends")
    if start_Z.shape != end_Z.shape:
        raise ValueError(f"latents of different shapes: {tuple(start_Z.shape)} and {tuple(end_Z.shape)}")
    return torch.stack([slerp(start_Z, end_Z, step / (n_steps - 1)) for step in range(n_steps)])


@dataclass(frozen=True, slots=True)
class LatentUse:
    """How much a decoder listens to its latents; losses in nats per token.

    Args:
        own_nll: with each piece's own latent.
        other_nll: with that of another row.
        n_active: numbers of the latent whose mu varies over the pieces by more than `ACTIVE_VARIANCE`.
        n_numbers: all numbers of the latent.
    """

    own_nll: float
    other_nll: float
    n_active: int
    n_numbers: int

    @property
    def gain(self) -> float:
        """What knowing the right latent rather than another is worth; 0 where the decoder ignores it."""
        return self.other_nll - self.own_nll


@torch.no_grad()
def latent_use(model: Vae, tokens_BT: Tensor, batch_size: int = 64) -> LatentUse:
    """Measure how much a model uses its latents to write these rows, with the likeliest latents; its mode is restored.

    The other latent of a row is that of the row half of all rows further on; neighbours may be alike.

    Args:
        batch_size: rows at once; it does not change the figures but in their last digits.
    Raises:
        ValueError: fewer than 2 rows.
    """
    if len(tokens_BT) < 2:
        raise ValueError(f"{len(tokens_BT)} rows; the use of latents is measured by giving one row another's")
    was_training = model.training
    model.eval()
    try:
        mu_BZ = torch.cat([model.encode(part_BT).mu_BZ for part_BT in tokens_BT.split(batch_size)])
        parts = [model.rows(part_BT) for part_BT in tokens_BT.split(batch_size)]
        sums = [
            [
                token_loss(model.decode(rows.decoder_BT, z_BZ), rows.targets_BT, model.pad_id)
                for rows, z_BZ in zip(parts, z.split(batch_size), strict=True)
            ]
            for z in (mu_BZ, mu_BZ.roll(-(len(mu_BZ) // 2), dims=0))
        ]
    finally:
        model.train(was_training)
    n_targets = sum(int(n) for _, n in sums[0])
    own_sum, other_sum = (sum(float(nll) for nll, _ in side) for side in sums)
    return LatentUse(
        own_nll=own_sum / n_targets,
        other_nll=other_sum / n_targets,
        n_active=int((mu_BZ.var(dim=0) > ACTIVE_VARIANCE).sum()),
        n_numbers=mu_BZ[0].numel(),
    )
