"""Distances between two sets of pieces, with intervals: overlap and divergence of densities, Fréchet distance.

Densities are Gaussian kernel estimates of both sets with one bandwidth on one grid, so that equal sets have equal
densities. In mgeval (Yang and Lerch 2020) each density lies on a grid of its own, and their "KL" compares values at
different places; here it is a divergence.

Intervals are 95 % bootstrap intervals over pieces. A resample of pieces is rougher than the pieces, which moves figures
such as overlap and divergence; so its percentiles are moved back by the mean of that shift, and cut where the figure
ends. The seed and the name of the set decide the resamples, whatever else is computed.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.music.arrays import FloatArray

N_RESAMPLES = 500
GRID = 512  # points for twice the range of the values and five bandwidths at each end
BANDWIDTH_MIN = 0.01  # of the range of the values
MASS_MIN = 1e-12  # a point of the grid never counts for less, so that divergences end at 27.6 nats
PIVOT_MIN = 1e-10  # of a variance: what is less is rounding, left by features that others determine
PIECES_AT_ONCE = 4096
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
        """Return the figure for JSON, `reason` only where there is one."""
        figures = {"value": self.value, "low": self.low, "high": self.high}
        return figures | ({"reason": self.reason} if self.reason else {})


def resample(n_pieces: int, seed: int, key: str, n_resamples: int = N_RESAMPLES) -> FloatArray:
    """Return how often each piece is drawn in each resample, [n_resamples + 1, n_pieces]; row 0 is the set itself.

    Args:
        key: name of the set; sets of different names get independent resamples.
    """
    dice = np.random.default_rng([seed, zlib.crc32(key.encode())])
    drawn = dice.multinomial(n_pieces, np.full(n_pieces, 1 / n_pieces), size=n_resamples)
    return np.concatenate([np.ones((1, n_pieces)), drawn.astype(np.float64)])


def estimate(values: FloatArray, low: float = -np.inf, high: float = np.inf) -> Estimate:
    """Return the figure of the set itself, `values[0]`, with the interval of those of the resamples, `values[1:]`.

    Args:
        values: resamples without the figure are NaN and left out.
        low, high: where the figure ends.
    """
    value, resampled = float(values[0]), values[1:]
    resampled = resampled[np.isfinite(resampled)]
    if not len(resampled):
        return Estimate(value, reason="no resample has the figure")
    shift = resampled.mean() - value
    bounds = np.clip(np.quantile(resampled, [TAIL, 1 - TAIL]) - shift, low, high)
    return Estimate(value, min(float(bounds[0]), value), max(float(bounds[1]), value))


@dataclass(frozen=True, slots=True)
class DensityComparison:
    """How alike two sets are in one statistic.

    - overlap: ∫ min(p, q), 0-1, of the densities p and q of generated and held-out values.
    - divergence: KL(p ‖ q) = Σ p ln(p / q) in nats, 0-27.6.
    - distance_overlap, distance_divergence: the same of the densities of |x - y|, with x and y two different held-out
      pieces (p), or one generated and one held-out piece (q): what mgeval calls intra-set and inter-set distances.
    """

    overlap: Estimate
    divergence: Estimate
    distance_overlap: Estimate
    distance_divergence: Estimate


def compare_values(
    generated: FloatArray, held_out: FloatArray, generated_weights: FloatArray, held_out_weights: FloatArray
) -> DensityComparison:
    """Compare two sets in one statistic.

    The bandwidth is Scott's: n^(-1/5) × the root of the mean of both variances, n the size of the smaller set; and at
    least a hundredth of the range. Distances are those between values drawn from the densities, so they have √2 times
    that bandwidth, and none lies below 0. Sets whose values are all equal overlap wholly.

    Args:
        generated, held_out: finite values of N and M pieces.
        generated_weights, held_out_weights: [B + 1, N] and [B + 1, M] as from `resample`.
    """
    if min(len(generated), len(held_out)) < 2:
        nothing = Estimate(None, reason=TOO_FEW)
        return DensityComparison(nothing, nothing, nothing, nothing)
    spectra, smoothing = _spectra([(generated, generated_weights), (held_out, held_out_weights)])
    if smoothing is None:
        whole, none = Estimate(1.0, 1.0, 1.0), Estimate(0.0, 0.0, 0.0)
        return DensityComparison(whole, none, whole, none)
    ours, theirs = spectra
    itself = np.sum(held_out_weights**2, axis=1)[:, None]  # pairs of a piece with itself
    intra = _folded((np.abs(theirs) ** 2 - itself) * smoothing**2)
    intra[np.count_nonzero(held_out_weights, axis=1) < 2] = np.nan  # one piece drawn again and again makes no pair
    inter = _folded((ours * theirs.conj()).real * smoothing**2)
    p, q = (_masses(np.fft.irfft(spectrum * smoothing, GRID)) for spectrum in spectra)
    return DensityComparison(*_alikeness(p, q), *_alikeness(intra, inter))


def _spectra(
    sets: list[tuple[FloatArray, FloatArray]],
) -> tuple[list[NDArray[np.complex128]], FloatArray | None]:
    """Return the Fourier transforms of the resampled histograms of both sets, and that of the kernel.

    The kernel is None where all values are equal.
    """
    pooled = np.concatenate([values for values, _ in sets])
    low, width = pooled.min(), float(np.ptp(pooled))
    if not width > 0:
        return [], None
    n_smaller = min(len(values) for values, _ in sets)
    scaled = [(values - low) / width for values, _ in sets]  # first, for the square of a tiny range is 0
    spread = np.sqrt(np.mean([values.var(ddof=1) for values in scaled]))
    bandwidth = max(n_smaller**-0.2 * spread, BANDWIDTH_MIN)
    step = (2 + 10 * bandwidth) / GRID
    frequency = 2 * np.pi * np.fft.rfftfreq(GRID)  # per step
    kernel = np.exp(-0.5 * (frequency * bandwidth / step) ** 2)
    histograms = [_histograms(values / step, weights) for values, (_, weights) in zip(scaled, sets, strict=True)]
    return [np.fft.rfft(histogram) for histogram in histograms], kernel


def _histograms(place: FloatArray, weights: FloatArray) -> FloatArray:
    """Count resampled values at the nearest points of the grid, [B + 1, GRID]."""
    order = np.argsort(place, kind="stable")
    points, first = np.unique(np.rint(place[order]).astype(np.int64), return_index=True)
    counts = np.zeros((len(weights), GRID))
    counts[:, points] = np.add.reduceat(weights[:, order], first, axis=1)
    return counts


def _folded(spectrum: FloatArray) -> FloatArray:
    """Turn the spectrum of a density of differences into masses of distances, [B + 1, GRID / 2 + 1]."""
    density = np.fft.irfft(spectrum, GRID)[:, : GRID // 2 + 1]
    density[:, 1:-1] *= 2
    return _masses(density)


def _masses(density: FloatArray) -> FloatArray:
    density = np.maximum(density, 0.0)
    return density / np.maximum(density.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)


def _alikeness(p: FloatArray, q: FloatArray) -> tuple[Estimate, Estimate]:
    ratio = np.log(np.maximum(p, MASS_MIN)) - np.log(np.maximum(q, MASS_MIN))
    divergence = np.maximum(np.sum(p * ratio, axis=1), 0.0)
    return estimate(np.minimum(p, q).sum(axis=1), 0.0, 1.0), estimate(divergence, 0.0)


@dataclass(frozen=True, slots=True)
class FrechetEstimate:
    """A Fréchet distance with its yardstick: what sets of these sizes have when nothing sets them apart.

    `chance` is the mean, and `chance_high` the 95 % point, over random divisions of all pieces into two such sets.
    """

    distance: Estimate
    chance: float | None = None
    chance_high: float | None = None

    def to_json(self) -> dict[str, Any]:
        return self.distance.to_json() | {"chance": self.chance, "chance_high": self.chance_high}


def compare_vectors(
    generated: FloatArray, held_out: FloatArray, seed: int = 0, n_resamples: int = N_RESAMPLES
) -> FrechetEstimate:
    """Return the Fréchet distance between two sets of vectors: ‖μ - ν‖² + Tr(Σ + Τ - 2 (Σ Τ)^½), at least 0.

    Covariances (over n - 1) are shrunk towards their diagonals, C' = (1 - λ) C + λ diag C with λ = D / (D + n), n the
    size of the smaller set; so few pieces give a distance too, singular or not, and both sets are treated alike. The
    distance of small sets is still too large, which is what `chance` shows. Source: Heusel et al. 2017, on the features
    of a network; on ours it is `fd_feat` and no FMD.

    Args:
        generated, held_out: float64[N, D] and [M, D].
    """
    sizes = len(generated), len(held_out)
    if min(sizes) < 2:
        return FrechetEstimate(Estimate(None, reason=TOO_FEW))
    n_features = generated.shape[1]
    shrinkage = n_features / (n_features + min(sizes))

    def distances(vectors: list[FloatArray], weights: list[FloatArray]) -> FloatArray:
        moments = [_moments(*pair, shrinkage) for pair in zip(vectors, weights, strict=True)]
        return frechet_distance(*moments[0], *moments[1])

    keys = "generated", "held_out"
    weights = [resample(n, seed, key, n_resamples) for n, key in zip(sizes, keys, strict=True)]
    found = estimate(distances([generated, held_out], weights), 0.0)
    dice = np.random.default_rng([seed, zlib.crc32(b"chance")])
    is_first = np.arange(sum(sizes)) < sizes[0]
    divided = dice.permuted(np.tile(is_first, (n_resamples, 1)), axis=1)
    everything = np.concatenate([generated, held_out])
    by_chance = distances([everything] * 2, [divided.astype(np.float64), (~divided).astype(np.float64)])
    return FrechetEstimate(found, float(by_chance.mean()), float(np.quantile(by_chance, 0.95)))


def frechet_distance(
    mean: FloatArray, covariance: FloatArray, mean2: FloatArray, covariance2: FloatArray
) -> FloatArray:
    """Return the Fréchet distance between Gaussians: means [..., D], covariances [..., D, D], singular or not.

    Tr (Σ Τ)^½ is taken as Tr (Lᵀ Τ L)^½ with Σ = L Lᵀ, which has the same eigenvalues and is symmetric.
    """
    root = _cholesky(covariance)
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh(np.swapaxes(root, -1, -2) @ covariance2 @ root), 0.0)).sum(axis=-1)
    traces = np.trace(covariance, axis1=-2, axis2=-1) + np.trace(covariance2, axis1=-2, axis2=-1)
    return np.maximum(np.sum((mean - mean2) ** 2, axis=-1) + traces - 2 * shared, 0.0)


def _cholesky(covariance: FloatArray) -> FloatArray:
    """Return L with L Lᵀ = covariance, [..., D, D], of singular ones too; numpy's refuses those.

    One step for all matrices at once, which beats the threads of LAPACK at many matrices as small as ours.
    """
    root = np.zeros_like(covariance)
    for k in range(covariance.shape[-1]):
        column = covariance[..., k:, k] - np.einsum("...ij,...j->...i", root[..., k:, :k], root[..., k, :k])
        is_free = column[..., :1] > PIVOT_MIN * covariance[..., k : k + 1, k]
        root[..., k:, k] = np.where(is_free, column / np.sqrt(np.where(is_free, column[..., :1], 1.0)), 0.0)
    return root


def _moments(vectors: FloatArray, weights: FloatArray, shrinkage: float) -> tuple[FloatArray, FloatArray]:
    """Return means [B, D] and shrunk covariances [B, D, D] of weighted vectors."""
    n, n_features = weights.sum(axis=1), vectors.shape[1]
    mean = weights @ vectors / n[:, None]
    centre = vectors.mean(axis=0)
    moved = vectors - centre  # numbers near 0 lose no digits when squared
    row, column = np.triu_indices(n_features)
    second = np.zeros((len(weights), n_features, n_features))
    for first in range(0, len(vectors), PIECES_AT_ONCE):
        block = slice(first, first + PIECES_AT_ONCE)
        second[:, row, column] += weights[:, block] @ (moved[block, row] * moved[block, column])
    second[:, column, row] = second[:, row, column]
    shift = mean - centre
    covariance = (second - n[:, None, None] * shift[:, :, None] * shift[:, None, :]) / (n - 1)[:, None, None]
    diagonal = np.eye(vectors.shape[1]) * covariance
    return mean, (1 - shrinkage) * covariance + shrinkage * diagonal


@dataclass(frozen=True, slots=True)
class ScoreComparison:
    """Scores of a candidate minus those of a champion, over the same pieces; `is_better` where 0 lies outside."""

    difference: Estimate
    n_pieces: int
    is_better: bool

    def to_json(self) -> dict[str, Any]:
        return self.difference.to_json() | {"n_pieces": self.n_pieces, "is_better": self.is_better}


def compare_scores(
    candidate: Mapping[str, float],
    champion: Mapping[str, float],
    *,
    weights: Mapping[str, float] | None = None,
    lower_is_better: bool = True,
    seed: int = 0,
    n_resamples: int = 2000,
) -> ScoreComparison:
    """Compare two models by their scores of the same pieces: Σ w (candidate - champion) / Σ w, with its 95 % interval.

    Pieces are drawn together with both scores, so what makes a piece hard for both does not widen the interval. The
    candidate is better only if the whole interval is on its side.

    Args:
        candidate, champion: piece -> score, such as bits per note.
        weights: piece -> weight above 0, such as its notes, if the score of a set is no plain mean; 1 by default.
    Raises:
        ValueError: other pieces on one side, a weight that is not above 0, or a score that is no finite number.
    """
    names = sorted(candidate)
    for other in (champion, candidate if weights is None else weights):
        if names != sorted(other):
            apart = sorted(set(names) ^ set(other))
            raise ValueError(f"scores of different pieces, {len(apart)} on one side only: {', '.join(apart[:3])}")
    difference = np.array([candidate[name] - champion[name] for name in names], np.float64)
    weight = np.array([(weights or {}).get(name, 1.0) for name in names], np.float64)
    if not np.all(np.isfinite(difference)) or not np.all(weight > 0):
        wrong = [name for name, d, w in zip(names, difference, weight, strict=True) if not (np.isfinite(d) and w > 0)]
        raise ValueError(f"no finite score, or a weight not above 0, of {len(wrong)} pieces: {', '.join(wrong[:3])}")
    if len(names) < 2:
        return ScoreComparison(Estimate(None, reason="fewer than 2 pieces"), len(names), False)
    drawn = resample(len(names), seed, "pairs", n_resamples)
    found = estimate(drawn @ (weight * difference) / (drawn @ weight))
    assert found.low is not None
    assert found.high is not None
    return ScoreComparison(found, len(names), found.high < 0 if lower_is_better else found.low > 0)
