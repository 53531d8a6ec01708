"""Distances between two sets of pieces, with 95 % bootstrap intervals over pieces.

A resample of pieces is rougher than the pieces, which moves figures such as the overlap. So the percentiles of the
resamples are moved back by the mean of that shift, and cut where the figure ends. The seed and the name of the set
decide the resamples.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.music.arrays import FloatArray

N_RESAMPLES = 500
GRID = 512  # points for the range of the values and five bandwidths at each end
BANDWIDTH_MIN = 0.01  # of the range of the values
TAIL = 0.025
TOO_FEW = "fewer than 2 pieces in a set"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95 % interval; all are None where there is no figure, and `reason` says why."""

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        figures = {"value": self.value, "low": self.low, "high": self.high}
        return figures | ({"reason": self.reason} if self.reason else {})


def resample(n_pieces: int, seed: int, key: str, n_resamples: int = N_RESAMPLES) -> FloatArray:
    """Return how often each piece is drawn in each resample, [n_resamples + 1, n_pieces]; row 0 is the set itself.

    Args:
        key: name of the set; sets of different names get independent resamples.
    """
    if not n_pieces:
        return np.zeros((n_resamples + 1, 0))
    rng = np.random.default_rng([seed, zlib.crc32(key.encode())])
    drawn = rng.multinomial(n_pieces, np.full(n_pieces, 1 / n_pieces), size=n_resamples)
    return np.concatenate([np.ones((1, n_pieces)), drawn.astype(np.float64)])


def estimate(values: FloatArray, low: float = -np.inf, high: float = np.inf) -> Estimate:
    """Return the figure of the set itself, `values[0]`, with the interval of those of the resamples, `values[1:]`.

    Args:
        low, high: where the figure ends.
    """
    value, resampled = float(values[0]), values[1:]
    shift = resampled.mean() - value
    bounds = np.clip(np.quantile(resampled, [TAIL, 1 - TAIL]) - shift, low, high)
    return Estimate(value, min(float(bounds[0]), value), max(float(bounds[1]), value))


def overlap(
    generated: FloatArray, held_out: FloatArray, generated_weights: FloatArray, held_out_weights: FloatArray
) -> Estimate:
    """Return ∫ min(p, q), 0-1, of the densities p and q of two sets in one statistic.

    Densities are Gaussian kernel estimates on one grid with one bandwidth, Scott's: n^(-1/5) × the root of the mean of
    both variances, n the size of the smaller set; at least a hundredth of the range. So equal sets overlap wholly. In
    mgeval (Yang and Lerch 2020) each density lies on a grid of its own.

    Args:
        generated, held_out: finite values of N and M pieces.
        generated_weights, held_out_weights: [B + 1, N] and [B + 1, M] as from `resample`.
    """
    from scipy.sparse import csr_array

    if min(len(generated), len(held_out)) < 2:
        return Estimate(None, reason=TOO_FEW)
    pooled = np.concatenate([generated, held_out])
    low, width = pooled.min(), float(np.ptp(pooled))
    if not width > 0:
        return Estimate(1.0, 1.0, 1.0)
    sets = [(values - low) / width for values in (generated, held_out)]  # first: the square of a tiny range is 0
    spread = np.sqrt(np.mean([values.var(ddof=1) for values in sets]))
    bandwidth = max(min(map(len, sets)) ** -0.2 * spread, BANDWIDTH_MIN)
    step = (1 + 10 * bandwidth) / GRID
    kernel = np.exp(-0.5 * (2 * np.pi * np.fft.rfftfreq(GRID) * bandwidth / step) ** 2)  # its Fourier transform
    masses = []
    for values, weights in zip(sets, (generated_weights, held_out_weights), strict=True):
        points = np.rint(values / step).astype(np.int64)
        counts = csr_array((np.ones(len(points)), (points, np.arange(len(points)))), (GRID, len(points))) @ weights.T
        density = np.maximum(np.fft.irfft(np.fft.rfft(counts.T) * kernel, GRID), 0.0)
        masses.append(density / density.sum(axis=1, keepdims=True))
    return estimate(np.minimum(*masses).sum(axis=1), 0.0, 1.0)


def compare_vectors(
    generated: FloatArray, held_out: FloatArray, seed: int = 0, n_resamples: int = N_RESAMPLES
) -> dict[str, Any]:
    """Return the Fréchet distance between two sets of vectors: ‖μ - ν‖² + Tr(Σ + Τ - 2 (Σ Τ)^½), at least 0.

    Covariances (over n - 1) are shrunk towards their diagonals, C' = (1 - λ) C + λ diag C with λ = D / (D + n), n the
    size of the smaller set. So few pieces give a distance too, singular or not, and both sets are treated alike. The
    distance of small sets is still too large, which is what `chance` shows. Source: Heusel et al. 2017, on the features
    of a network; on ours it is `fd_feat` and no FMD.

    Args:
        generated, held_out: float64[N, D] and [M, D].
    Returns:
        `value`, `low` and `high` of the distance; `chance`, its mean over random divisions of all pieces into two sets
        of these sizes, and `chance_high`, the 95 % point of these.
    """
    sizes = len(generated), len(held_out)
    if min(sizes) < 2:
        return Estimate(None, reason=TOO_FEW).to_json() | {"chance": None, "chance_high": None}
    n_features = generated.shape[1]
    shrinkage = n_features / (n_features + min(sizes))

    def distances(vectors: Sequence[FloatArray], weights: Sequence[FloatArray]) -> FloatArray:
        moments = [_moments(*pair, shrinkage) for pair in zip(vectors, weights, strict=True)]
        return frechet_distance(*moments[0], *moments[1])

    weights = [resample(n, seed, key, n_resamples) for n, key in zip(sizes, ("generated", "held_out"), strict=True)]
    found = estimate(distances([generated, held_out], weights), 0.0)
    rng = np.random.default_rng([seed, zlib.crc32(b"chance")])
    divided = rng.permuted(np.tile(np.arange(sum(sizes)) < sizes[0], (n_resamples, 1)), axis=1)
    everything = np.concatenate([generated, held_out])
    by_chance = distances([everything] * 2, [divided.astype(np.float64), (~divided).astype(np.float64)])
    chance = {"chance": float(by_chance.mean()), "chance_high": float(np.quantile(by_chance, 0.95))}
    return found.to_json() | chance


def frechet_distance(
    mean: FloatArray, covariance: FloatArray, mean2: FloatArray, covariance2: FloatArray
) -> FloatArray:
    """Return the Fréchet distance between Gaussians: means [..., D], covariances [..., D, D], singular or not.

    Tr (Σ Τ)^½ is taken as Tr (Lᵀ Τ L)^½ with Σ = L Lᵀ, which has the same eigenvalues and is symmetric.
    """
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.maximum(values, 0.0))[..., None, :]
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh(np.swapaxes(root, -1, -2) @ covariance2 @ root), 0.0)).sum(axis=-1)
    traces = np.trace(covariance, axis1=-2, axis2=-1) + np.trace(covariance2, axis1=-2, axis2=-1)
    return np.maximum(np.sum((mean - mean2) ** 2, axis=-1) + traces - 2 * shared, 0.0)


def _moments(vectors: FloatArray, weights: FloatArray, shrinkage: float) -> tuple[FloatArray, FloatArray]:
    """Return means [B, D] and shrunk covariances [B, D, D] of weighted vectors."""
    n, n_features = weights.sum(axis=1), vectors.shape[1]
    centre = vectors.mean(axis=0)
    moved = vectors - centre  # numbers near 0 lose no digits when squared
    shift = weights @ moved / n[:, None]
    products = (moved[:, :, None] * moved[:, None, :]).reshape(len(vectors), -1)
    second = (weights @ products).reshape(-1, n_features, n_features)
    covariance = (second - n[:, None, None] * shift[:, :, None] * shift[:, None, :]) / (n - 1)[:, None, None]
    diagonal = np.eye(n_features) * covariance
    return centre + shift, (1 - shrinkage) * covariance + shrinkage * diagonal


def compare_scores(candidate: Sequence[float], champion: Sequence[float], n_resamples: int = 2000) -> Estimate:
    """Return the mean of candidate - champion over the same pieces, in the same order, with its 95 % interval.

    Pieces are drawn together with both scores, so what makes a piece hard for both does not widen the interval.

    Raises:
        ValueError: sequences of different lengths, or a score that is not a finite number.
    """
    if len(candidate) != len(champion):
        raise ValueError(f"scores of {len(candidate)} and of {len(champion)} pieces")
    difference = np.array(candidate, np.float64) - np.array(champion, np.float64)
    if wrong := np.flatnonzero(~np.isfinite(difference)).tolist():
        raise ValueError(f"no finite score of {len(wrong)} pieces: {', '.join(map(str, wrong[:3]))}")
    if len(difference) < 2:
        return Estimate(None, reason="fewer than 2 pieces")
    return estimate(resample(len(difference), 0, "pairs", n_resamples) @ difference / len(difference))
