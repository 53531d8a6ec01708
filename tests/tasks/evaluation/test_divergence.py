"""Divergence of continuations: values by hand, exactly 0 for equal music, histograms as PNG."""

import math

import numpy as np
import pytest

from tasks.evaluation.divergence import (
    COMPARISONS,
    DISTANCES,
    divergences,
    draw_histograms,
    features_of,
    kl_divergence,
    mean_divergences,
)
from tests.builders import DRUMS, make_score

CHORDS = {"C": (60, 64, 67), "F": (65, 69, 72), "G": (67, 71, 74), "Am": (57, 60, 64)}
VECTORS = {"I": np.array([1.0, 0.0]), "V": np.array([0.0, 1.0]), "IV": np.array([1.0, 1.0])}


def song(*names: str, duration: int = 2000):  # type: ignore[no-untyped-def]
    """A chord for each bar of 4/4 at 500 ticks a quarter."""
    notes = [(2000 * bar, duration, pitch, 64) for bar, name in enumerate(names) for pitch in CHORDS[name]]
    return features_of(make_score(notes))


def test_kl_divergence_by_hand() -> None:
    p, q = np.array([1.0, 1.0, 0.0]), np.array([2.0, 0.0, 2.0])
    half, none, total = 0.5 + 1e-6, 1e-6, 1 + 3e-6
    by_hand = (half * math.log(half / half) + half * math.log(half / none) + none * math.log(none / half)) / total
    assert kl_divergence(p, q) == pytest.approx(by_hand, rel=1e-12)
    assert kl_divergence(np.array([1.0, 1.0]), np.array([1.0, 3.0])) == pytest.approx(0.143841, abs=2e-6)
    assert kl_divergence(5 * p, q) == pytest.approx(by_hand)
    assert kl_divergence(p, 3 * p) == 0
    assert kl_divergence(p, 0 * p) is None


def test_features_by_hand() -> None:
    notes = [(0, 500, 60, 64, 0), (0, 60, 72, 64, 0), (500, 250, 67, 64, 0), (0, 500 * 99, 36, 64, 1)]
    found = features_of(make_score(notes, programs=(0, DRUMS)))
    assert found.pitch_classes.tolist() == [2, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]
    assert dict(enumerate(found.durations.tolist(), 1)) == {n: float(n in (1, 4, 8, 96)) for n in range(1, 97)}
    assert found.numerals == ["I"]


def test_equal_music_has_distance_0() -> None:
    own, other = song("C", "F", "G", "C"), song("C", "G", "C", "Am", duration=1000)
    found = divergences({"prompt": own, "generated": other, "original": other}, VECTORS)
    for name in DISTANCES:
        assert found[name]["from_original"] == 0
        assert found[name]["from_prompt"] == found[name]["from_prompt_of_originals"] > 0  # type: ignore[operator]
    means = mean_divergences([found, found])
    assert {means[name]["p_value"] for name in DISTANCES} == {1}
    assert means["duration_kl"]["from_prompt"] == found["duration_kl"]["from_prompt"]


def test_a_piece_that_adds_nothing_is_not_compared() -> None:
    own, nothing = song("C", "G"), features_of(make_score([(0, 480, 36, 64, 0)], programs=(DRUMS,)))
    found = divergences({"prompt": own, "generated": nothing, "original": own}, VECTORS)
    assert found["pitch_class_kl"] == {"from_original": None, "from_prompt": None, "from_prompt_of_originals": 0}
    assert found["harmony_distance"] == {"from_original": None, "from_prompt": None, "from_prompt_of_originals": 0}
    means = mean_divergences([found])
    assert means["pitch_class_kl"] == found["pitch_class_kl"] | {"p_value": None}
    assert set(COMPARISONS) | {"p_value"} == set(means["duration_kl"])


@pytest.mark.slow
def test_histograms_are_the_same_bytes_each_time() -> None:
    sides = {"prompt": song("C"), "generated": song("F", duration=240), "original": song("G", "C")}
    found = [divergences(sides, VECTORS)]
    first = draw_histograms([sides], found)
    assert sorted(first) == ["distances.png", "durations.png", "pitch_classes.png"]
    assert all(data.startswith(b"\x89PNG") for data in first.values())
    assert draw_histograms([sides], found) == first
