"""Comparison of generated pieces with held-out music: statistics, one distance, and how typical each piece is."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tasks.music.arrays import FloatArray
from tasks.music.metrics.distances import N_RESAMPLES, Estimate, compare_vectors, estimate, overlap, resample
from tasks.music.metrics.feature_vector import FEATURES_V1, feature_vectors

FEATURES = "v1"
FEATURE_NAMES = [feature.name for feature in FEATURES_V1]

Pieces = Sequence[Mapping[str, float]]  # statistics of each piece, as from `piece_statistics`


def judge_pieces(generated: Pieces, held_out: Pieces, n_resamples: int = N_RESAMPLES) -> dict[str, Any]:
    """Compare generated pieces with held-out ones; the same pieces give the same result, ready for JSON.

    Length matters to many statistics: judge excerpts against excerpts of the same length.

    Args:
        generated, held_out: all with the same names.
        n_resamples: bootstrap resamples of the pieces, for the intervals.
    Returns:
        `n_generated`, `n_held_out`, `n_resamples`; every figure below is value, low and high (95 %), or None with a
        `reason`:

        - metrics: name -> `generated` and `held_out` (means), `overlap` (see `overlap`).
        - fd_feat: Fréchet distance of the feature vectors, with `features` (their version), `chance` and `chance_high`
          (see `compare_vectors`); not comparable with distances on other features.
        - typicality: `generated` and `held_out` (means), and `pieces`, one number for each generated piece in order
          (see `typicality`).
    Raises:
        ValueError: a piece without one of the statistics of another or of the feature vector, or a value that is no
            finite number.
    """
    names = list(dict.fromkeys(name for piece in [*generated, *held_out] for name in piece))
    ours, reference = _table(generated, names, "generated"), _table(held_out, names, "held-out")
    weights = [resample(len(ours), 0, "generated", n_resamples), resample(len(reference), 0, "held_out", n_resamples)]
    vectors = feature_vectors(generated), feature_vectors(held_out)
    metrics = {}
    for place, name in enumerate(names):
        columns = ours[:, place], reference[:, place]
        figures = {"generated": _mean(columns[0], weights[0]), "held_out": _mean(columns[1], weights[1])}
        figures["overlap"] = overlap(*columns, *weights)
        metrics[name] = {key: figure.to_json() for key, figure in figures.items()}
    return {
        "n_generated": len(generated),
        "n_held_out": len(held_out),
        "n_resamples": n_resamples,
        "metrics": metrics,
        "fd_feat": {"features": FEATURES} | compare_vectors(*vectors, n_resamples=n_resamples),
        "typicality": _judge_typicality(generated, held_out, weights),
    }


def typicality(pieces: Pieces, held_out: Pieces, names: Sequence[str] = FEATURE_NAMES) -> FloatArray:
    """Return how typical of held-out music each piece is, float64[N], 0-1.

    It is the mean over statistics of min(1, 4 min(F, 1 - F)), where F is the share of held-out pieces below the piece,
    and of those with the same value half: 1 within the middle half of the held-out pieces, falling by rank, 0 outside
    all of them. Real pieces have about 0.75 on average. It finds the odd ones in a batch and knows nothing of beauty.

    Args:
        names: statistics to look at; by default those of the feature vector, which leave length out.
    """
    ours, reference = _table(pieces, names, "generated"), _table(held_out, names, "held-out")
    if not len(reference):
        raise ValueError("typicality needs held-out pieces, there are none")
    ours, reference = np.round(ours, 9), np.sort(np.round(reference, 9), axis=0)  # the order of sums does not count
    shares = np.zeros(ours.shape)
    for place in range(len(names)):
        below, up_to = (np.searchsorted(reference[:, place], ours[:, place], side=side) for side in ("left", "right"))
        shares[:, place] = (below + up_to) / (2 * len(reference))
    return np.minimum(1.0, 4 * np.minimum(shares, 1 - shares)).mean(axis=1)


def _table(pieces: Pieces, names: Sequence[str], what: str) -> FloatArray:
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


def _mean(values: FloatArray, weights: FloatArray) -> Estimate:
    if not len(values):
        return Estimate(None, reason="no piece in the set")
    if len(values) == 1:
        return Estimate(float(values[0]), reason="one piece has no interval")
    return estimate(weights @ values / len(values))


def _judge_typicality(generated: Pieces, held_out: Pieces, weights: Sequence[FloatArray]) -> dict[str, Any]:
    if not held_out:
        nothing = Estimate(None, reason="no held-out piece").to_json()
        return {"generated": nothing, "held_out": nothing, "pieces": [None] * len(generated)}
    found = [typicality(pieces, held_out) for pieces in (generated, held_out)]
    means = [_mean(*pair).to_json() for pair in zip(found, weights, strict=True)]
    return {"generated": means[0], "held_out": means[1], "pieces": found[0].tolist()}
