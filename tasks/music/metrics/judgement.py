"""Comparison of generated pieces with held-out music: statistics, one distance, and how typical each piece is."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tasks.music.arrays import FloatArray
from tasks.music.metrics.distances import (
    N_RESAMPLES,
    TOO_FEW,
    Estimate,
    compare_values,
    compare_vectors,
    estimate,
    resample,
)
from tasks.music.metrics.feature_vector import FEATURE_VERSIONS, feature_vectors

FEATURES = "v1"


def judge_pieces(
    generated: Sequence[Mapping[str, float]],
    held_out: Sequence[Mapping[str, float]],
    seed: int = 0,
    n_resamples: int = N_RESAMPLES,
) -> dict[str, Any]:
    """Compare generated pieces with held-out ones; the same pieces and seed give the same result, ready for JSON.

    Length matters to many statistics: judge excerpts against excerpts of the same length.

    Args:
        generated, held_out: statistics of each piece, as from `piece_statistics`; all with the same names.
        n_resamples: bootstrap resamples of the pieces, for the intervals.
    Returns:
        `n_generated`, `n_held_out`, `seed`, `n_resamples`; every figure below is value, low and high (95 %), or None
        with a `reason`:

        - metrics: name -> `generated` and `held_out` (means), `z` (difference of the means in standard deviations of
          the held-out pieces), `overlap`, `divergence`, `distance_overlap` and `distance_divergence` (see
          `DensityComparison`).
        - fd_feat: Fréchet distance of the feature vectors, with `features` (their version), `chance` and `chance_high`
          (see `FrechetEstimate`); not comparable with distances on other features.
        - typicality: `generated` and `held_out` (means), and `pieces`, one number for each generated piece in order
          (see `typicality`).
    Raises:
        ValueError: pieces with other names than the first, or a value that is no finite number.
    """
    names = list(dict.fromkeys(name for piece in [*generated, *held_out] for name in piece))
    values = [_table(pieces, names, what) for pieces, what in ((generated, "generated"), (held_out, "held-out"))]
    weights = [
        resample(len(pieces), seed, key, n_resamples) if len(pieces) else None
        for pieces, key in ((generated, "generated"), (held_out, "held_out"))
    ]
    return {
        "n_generated": len(generated),
        "n_held_out": len(held_out),
        "seed": seed,
        "n_resamples": n_resamples,
        "metrics": {
            name: _judge_metric(*((table[:, place], w) for table, w in zip(values, weights, strict=True)))
            for place, name in enumerate(names)
        },
        "fd_feat": {"features": FEATURES} | _judge_vectors(generated, held_out, names, seed, n_resamples),
        "typicality": _judge_typicality(generated, held_out, names, weights),
    }


def typicality(
    pieces: Sequence[Mapping[str, float]], held_out: Sequence[Mapping[str, float]], names: Sequence[str] = ()
) -> FloatArray:
    """Return how typical of held-out music each piece is, float64[N], 0-1.

    It is the mean over statistics of min(1, 4 min(F, 1 - F)), where F is the share of held-out pieces below the piece,
    and of those with the same value half: 1 within the middle half of the held-out pieces, falling by rank, 0 outside
    all of them. Real pieces have about 0.75 on average. It finds the odd ones in a batch and knows nothing of beauty.

    Args:
        names: statistics to look at; by default those of the feature vector, which leave length out.
    """
    names = names or [feature.name for feature in FEATURE_VERSIONS[FEATURES]]
    ours, theirs = _table(pieces, names, "generated"), _table(held_out, names, "held-out")
    if not len(theirs):
        raise ValueError("typicality needs held-out pieces, there are none")
    ours, theirs = np.round(ours, 9), np.sort(np.round(theirs, 9), axis=0)  # equal up to the order of sums is equal
    shares = np.zeros(ours.shape)
    for place in range(len(names)):
        below, up_to = (np.searchsorted(theirs[:, place], ours[:, place], side=side) for side in ("left", "right"))
        shares[:, place] = (below + up_to) / (2 * len(theirs))
    return np.minimum(1.0, 4 * np.minimum(shares, 1 - shares)).mean(axis=1)


def _table(pieces: Sequence[Mapping[str, float]], names: Sequence[str], what: str) -> FloatArray:
    for place, piece in enumerate(pieces):
        lacking = [name for name in names if name not in piece]
        if lacking:
            raise ValueError(f"{what} piece {place} lacks {len(lacking)} statistics: {', '.join(lacking[:3])}")
    table = np.array([[piece[name] for name in names] for piece in pieces], np.float64)
    table = table.reshape(len(pieces), len(names))
    wrong = np.argwhere(~np.isfinite(table))
    if len(wrong):
        place, column = wrong[0]
        raise ValueError(f"{names[column]} of {what} piece {place} is {table[place, column]}, no finite number")
    return table


_Weighted = tuple[FloatArray, FloatArray | None]  # values of one set, and its resamples, None without pieces


def _judge_metric(generated: _Weighted, held_out: _Weighted) -> dict[str, Any]:
    means = [_resampled_means(*side) for side in (generated, held_out)]
    figures = {"generated": _mean(*generated), "held_out": _mean(*held_out)}
    figures["z"] = _z(means[0], means[1], held_out[0])
    if generated[1] is None or held_out[1] is None:
        nothing = Estimate(None, reason=TOO_FEW).to_json()
        return {name: figure.to_json() for name, figure in figures.items()} | dict.fromkeys(_DENSITIES, nothing)
    compared = compare_values(generated[0], held_out[0], generated[1], held_out[1])
    figures |= {name: getattr(compared, name) for name in _DENSITIES}
    return {name: figure.to_json() for name, figure in figures.items()}


_DENSITIES = ("overlap", "divergence", "distance_overlap", "distance_divergence")


def _resampled_means(values: FloatArray, weights: FloatArray | None) -> FloatArray | None:
    return None if weights is None else weights @ values / len(values)


def _mean(values: FloatArray, weights: FloatArray | None) -> Estimate:
    means = _resampled_means(values, weights)
    if means is None:
        return Estimate(None, reason="no piece in the set")
    return estimate(means) if len(values) > 1 else Estimate(float(values[0]), reason="one piece has no interval")


def _z(ours: FloatArray | None, theirs: FloatArray | None, held_out: FloatArray) -> Estimate:
    if ours is None or theirs is None or len(held_out) < 2:
        return Estimate(None, reason=TOO_FEW)
    spread = held_out.std(ddof=1)
    if not spread > 1e-9 * np.abs(held_out).max():
        return Estimate(None, reason="the held-out pieces do not differ")
    return estimate((ours - theirs) / spread)


def _judge_vectors(
    generated: Sequence[Mapping[str, float]],
    held_out: Sequence[Mapping[str, float]],
    names: Sequence[str],
    seed: int,
    n_resamples: int,
) -> dict[str, Any]:
    lacking = _lacking_features(names)
    if lacking:
        return Estimate(None, reason=lacking).to_json() | {"chance": None, "chance_high": None}
    vectors = [feature_vectors(pieces, FEATURES) for pieces in (generated, held_out)]
    return compare_vectors(vectors[0], vectors[1], seed, n_resamples).to_json()


def _judge_typicality(
    generated: Sequence[Mapping[str, float]],
    held_out: Sequence[Mapping[str, float]],
    names: Sequence[str],
    weights: Sequence[FloatArray | None],
) -> dict[str, Any]:
    lacking = _lacking_features(names) or ("" if held_out else "no held-out piece")
    if lacking:
        nothing = Estimate(None, reason=lacking).to_json()
        return {"generated": nothing, "held_out": nothing, "pieces": [None] * len(generated)}
    found = [typicality(pieces, held_out) for pieces in (generated, held_out)]
    means = [_mean(*pair).to_json() for pair in zip(found, weights, strict=True)]
    return {"generated": means[0], "held_out": means[1], "pieces": found[0].tolist()}


def _lacking_features(names: Sequence[str]) -> str:
    lacking = [feature.name for feature in FEATURE_VERSIONS[FEATURES] if feature.name not in names]
    return f"pieces lack {len(lacking)} features of {FEATURES}: {', '.join(lacking[:3])}" if lacking else ""
