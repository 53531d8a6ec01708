"""Statistics against values worked out by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.music.metrics.bar_metrics import bar_statistics
from tasks.music.metrics.piece_metrics import entropy, piece_statistics, scale_consistency
from tests.builders import DRUMS, make_score


def test_a_small_piece_by_hand() -> None:
    score = make_score(
        [
            (0, 1000, 60, 60),  # C4, 0 to 1 s
            (500, 1000, 64, 80),  # E4, 0.5 to 1.5 s
            (3000, 1000, 72, 100),  # C5, 3 to 4 s
            (3000, 1000, 36, 40, 1),  # bass drum, 3 to 4 s
        ],
        programs=(0, DRUMS),
    )
    statistics = piece_statistics(score)
    statistics = {name: value for name, value in statistics.items() if name not in bar_statistics(score)}
    assert statistics == pytest.approx(
        {
            "n_notes": 4,
            "seconds": 4,
            "notes_per_second": 1,
            "polyphony": 4 / 2.5,  # four seconds of pitches in 1.5 + 1 seconds of sound
            "polyphony_rate": 1.5 / 2.5,  # from 0.5 to 1 and from 3 to 4
            "empty_share": 1.5 / 4,
            "pitch_min": 60,
            "pitch_max": 72,
            "pitch_range": 12,
            "pitch_mean": 196 / 3,
            "n_pitches": 3,
            "n_pitch_classes": 2,
            "pitch_entropy": math.log2(3),
            "pitch_class_entropy": -(2 / 3) * math.log2(2 / 3) - (1 / 3) * math.log2(1 / 3),
            "scale_consistency": 1,
            "velocity_mean": 70,
            "velocity_std": math.sqrt((10**2 + 10**2 + 30**2 + 30**2) / 4),
            "duration_mean_seconds": 1,
            "drum_share": 1 / 4,
            "onset_gap_mean_seconds": 3 / 2,
            "melodic_interval_mean": (4 + 8) / 2,
        }
    )


def test_silence() -> None:
    statistics = piece_statistics(make_score([]))
    assert [statistics.pop(name) for name in ("empty_share", "empty_bar_rate", "empty_beat_rate")] == [1, 1, 1]
    assert set(statistics.values()) == {0.0}


def test_drums_have_no_pitch_statistics() -> None:
    statistics = piece_statistics(make_score([(0, 100, 36, 80)], programs=(DRUMS,)))
    named = ("pitch_min", "pitch_max", "pitch_mean", "pitch_entropy", "scale_consistency", "n_pitches")
    assert {statistics[name] for name in named} == {0.0}
    assert statistics["drum_share"] == 1
    assert statistics["polyphony"] == pytest.approx(1)


def test_a_pitch_that_two_parts_share_counts_once() -> None:
    statistics = piece_statistics(make_score([(0, 100, 60, 80), (0, 100, 60, 80, 1)], programs=(0, 1)))
    assert statistics["polyphony"] == pytest.approx(1)
    assert statistics["polyphony_rate"] == pytest.approx(0)


def test_the_upper_line_and_the_gaps_between_onsets() -> None:
    chords = [(0, 100, 60, 80), (0, 100, 72, 80), (500, 100, 60, 80), (500, 100, 65, 80), (2000, 100, 67, 80)]
    statistics = piece_statistics(make_score([*chords, (3000, 100, 36, 80, 1)], programs=(0, DRUMS)))
    assert statistics["melodic_interval_mean"] == pytest.approx((7 + 2) / 2)  # C5 F4 G4, without the drum
    assert statistics["onset_gap_mean_seconds"] == pytest.approx(1)  # 0.5, 1.5 and 1 s


@pytest.mark.parametrize(
    ("counts", "bits"), [([0] * 12, 0), ([5] + [0] * 11, 0), ([1] * 12, 3.5849625), ([2, 1, 1], 1.5)]
)
def test_entropy(counts: list[int], bits: float) -> None:
    assert entropy(np.array(counts)) == pytest.approx(bits)


@pytest.mark.parametrize(
    ("pitches", "share"),
    [
        ([60, 62, 64, 65, 67, 69, 71], 1.0),  # C major
        ([57, 59, 60, 62, 64, 65, 67], 1.0),  # A minor, the same notes
        ([61, 63, 65, 66, 68, 70, 72], 1.0),  # D flat major
        ([60, 61, 62], 2 / 3),  # a chromatic run: no scale holds three neighbours
        (list(range(60, 72)), 7 / 12),
        ([], 0.0),
    ],
)
def test_scale_consistency(pitches: list[int], share: float) -> None:
    assert scale_consistency(np.array(pitches, dtype=np.uint8)) == pytest.approx(share)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 5000), st.integers(1, 5000), st.integers(0, 127), st.integers(1, 127), st.integers(0, 1)
        ),
        max_size=30,
    )
)
def test_every_value_is_finite_and_in_its_range(rows: list[tuple[int, ...]]) -> None:
    statistics = piece_statistics(make_score(rows, programs=(0, DRUMS)))
    assert all(math.isfinite(value) for value in statistics.values())
    shares = ("polyphony_rate", "empty_share", "scale_consistency", "drum_share")
    assert all(-1e-9 <= statistics[name] <= 1 + 1e-9 for name in shares)
    assert statistics["polyphony"] >= (1 - 1e-9 if rows else 0)
    assert statistics["pitch_class_entropy"] <= math.log2(12) + 1e-9


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 40), st.integers(60, 63), st.just(80)), max_size=12))
def test_polyphony_is_a_count_over_steps(rows: list[tuple[int, ...]]) -> None:
    sounding = np.zeros((100, 128), dtype=bool)
    for onset, duration, pitch, _ in rows:
        sounding[onset : onset + duration, pitch] = True
    counts = sounding.sum(axis=1)
    statistics = piece_statistics(make_score(rows))
    n_steps = max((counts > 0).sum(), 1)
    assert statistics["polyphony"] == pytest.approx(counts.sum() / n_steps)
    assert statistics["polyphony_rate"] == pytest.approx((counts > 1).sum() / n_steps, abs=1e-9)
