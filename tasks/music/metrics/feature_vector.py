"""Vectors of thirty standardised statistics of pieces, for distances between sets.

Statistics of length (n_notes, seconds, n_bars) are left out: they depend on how much was sampled. A version never
changes; other statistics, means or scales get another name, so that figures stay comparable.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tasks.music.arrays import FloatArray


@dataclass(frozen=True, slots=True)
class VectorFeature:
    """One statistic as (f(value) - mean) / scale, where f is log(1 + value) if `is_log` and otherwise the identity."""

    name: str
    mean: float
    scale: float
    is_log: bool = False


# Means and scales are close to those over 1,422 pieces of 17 public collections (piano, pop, chorales, folk tunes,
# drums, games), at most 150 of each, rounded.
FEATURES_V1 = (
    VectorFeature("notes_per_second", 2.4, 0.55, is_log=True),
    VectorFeature("onset_gap_mean_seconds", 0.2, 0.1, is_log=True),
    VectorFeature("duration_mean_seconds", 0.35, 0.2, is_log=True),
    VectorFeature("polyphony", 1.5, 0.35, is_log=True),
    VectorFeature("polyphony_rate", 0.85, 0.25),
    VectorFeature("empty_share", 0.1, 0.15),
    VectorFeature("pitch_min", 30.0, 12.0),
    VectorFeature("pitch_max", 76.0, 28.0),
    VectorFeature("pitch_mean", 54.0, 19.0),
    VectorFeature("n_pitch_classes", 9.0, 3.6),
    VectorFeature("pitch_class_entropy", 2.6, 0.95),
    VectorFeature("scale_consistency", 0.8, 0.3),
    VectorFeature("melodic_interval_mean", 8.0, 5.0),
    VectorFeature("velocity_mean", 83.0, 19.0),
    VectorFeature("velocity_std", 12.0, 11.0),
    VectorFeature("drum_share", 0.2, 0.3),
    VectorFeature("notes_per_bar", 2.9, 0.65, is_log=True),
    VectorFeature("empty_bar_rate", 0.0, 0.05),
    VectorFeature("empty_beat_rate", 0.0, 0.05),
    VectorFeature("groove_consistency", 0.75, 0.2),
    VectorFeature("grooving_similarity", 0.75, 0.2),
    VectorFeature("bar_similarity_1", 0.15, 0.15),
    VectorFeature("bar_similarity_2", 0.15, 0.15),
    VectorFeature("bar_similarity_4", 0.2, 0.2),
    VectorFeature("self_similarity", 0.1, 0.1),
    VectorFeature("bar_repetition", 0.5, 0.35),
    VectorFeature("phrase_repetition_4", 0.45, 0.35),
    VectorFeature("pitch_class_entropy_1_bar", 1.9, 0.75),
    VectorFeature("chord_irregularity", 0.5, 0.3),
    VectorFeature("compression_ratio", 1.6, 0.5, is_log=True),
)


def feature_vectors(pieces: Sequence[Mapping[str, float]]) -> FloatArray:
    """Return the vectors of pieces, float64[N, D], of `FEATURES_V1`.

    Args:
        pieces: statistics by name, as from `piece_statistics`.
    Raises:
        ValueError: a piece lacks a feature.
    """
    features = FEATURES_V1
    for place, piece in enumerate(pieces):
        lacking = [feature.name for feature in features if feature.name not in piece]
        if lacking:
            raise ValueError(
                f"piece {place} lacks {len(lacking)} of {len(features)} features: {', '.join(lacking[:3])}"
            )
    values = np.array([[piece[feature.name] for feature in features] for piece in pieces], np.float64)
    values = values.reshape(-1, len(features))
    is_log = np.array([feature.is_log for feature in features])
    values = np.where(is_log, np.log1p(np.where(is_log, values, 0.0)), values)
    return (values - [feature.mean for feature in features]) / [feature.scale for feature in features]
