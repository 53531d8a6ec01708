"""Distances between sets against slow direct formulas, closed forms, and cases in which the answer is known."""

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import linalg, stats

from tasks.music.arrays import FloatArray
from tasks.music.metrics.distances import (
    BANDWIDTH_MIN,
    Estimate,
    compare_scores,
    compare_vectors,
    estimate,
    frechet_distance,
    overlap,
    resample,
)
from tests.budget import examples

DICE = np.random.default_rng(7)
Moments = tuple[FloatArray, FloatArray]


def overlap_of(ours: FloatArray, theirs: FloatArray, n_resamples: int = 3) -> Estimate:
    weights = [resample(len(values), 0, key, n_resamples) for values, key in ((ours, "a"), (theirs, "b"))]
    return overlap(ours, theirs, *weights)


def slow_bandwidth(ours: FloatArray, theirs: FloatArray) -> float:
    spread = math.sqrt((np.var(ours, ddof=1) + np.var(theirs, ddof=1)) / 2)
    return max(min(len(ours), len(theirs)) ** -0.2 * spread, BANDWIDTH_MIN * np.ptp(np.concatenate([ours, theirs])))


def slow_overlap(ours: FloatArray, theirs: FloatArray) -> float:
    """Sum kernels one by one on a fine grid, and integrate."""
    width = slow_bandwidth(ours, theirs)
    pooled = np.concatenate([ours, theirs])
    grid = np.linspace(pooled.min() - 6 * width, pooled.max() + 6 * width, 4001)
    p, q = (sum(stats.norm.pdf(grid, value, width) for value in values) for values in (ours, theirs))
    return float(np.minimum(p / p.sum(), q / q.sum()).sum())


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (DICE.normal(0, 1, 20), DICE.normal(1, 2, 30)),
        (DICE.exponential(1, 12), DICE.exponential(2, 25)),
        (DICE.uniform(0, 1, 9), DICE.normal(0.5, 0.1, 5)),
        (np.array([0.0, 1.0]), np.array([0.5, 3.0])),
        (DICE.integers(0, 4, 20).astype(float), DICE.integers(1, 5, 15).astype(float)),
    ],
    ids=["normal", "skewed", "one narrow", "two values", "whole numbers"],
)
def test_densities_are_sums_of_kernels(ours: FloatArray, theirs: FloatArray) -> None:
    assert overlap_of(ours, theirs).value == pytest.approx(slow_overlap(ours, theirs), abs=0.01, rel=0.02)


def test_a_set_is_like_itself() -> None:
    values = DICE.normal(3, 2, 400)
    assert overlap_of(values, values).value == pytest.approx(1)


@pytest.mark.parametrize("shift", [0.0, 0.7, 2.0, 5.0])
def test_shifted_normal_values_have_the_closed_form(shift: float) -> None:
    theirs = stats.norm.ppf((np.arange(3000) + 0.5) / 3000)
    ours = theirs + shift
    smooth = math.sqrt(1 + slow_bandwidth(ours, theirs) ** 2)
    assert overlap_of(ours, theirs).value == pytest.approx(2 * stats.norm.cdf(-shift / 2 / smooth), abs=0.005)


def test_sets_of_one_shape_in_different_places_are_apart() -> None:
    """Where each density has a grid of its own, these two look the same."""
    values = DICE.normal(0, 1, 50)
    assert overlap_of(values, values + 1000).value == pytest.approx(0, abs=1e-6)


def test_values_that_are_all_equal() -> None:
    ones = np.ones(5)
    assert overlap_of(ones, ones) == Estimate(1, 1, 1)
    assert overlap_of(ones, 2 * ones).value == pytest.approx(0, abs=1e-6)


@examples(60)
@example([0.0, 0.0], [0.0, 5e-324])
@given(*[st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=12)] * 2)
def test_whatever_the_values_the_figure_is_finite_and_in_range(ours: list[float], theirs: list[float]) -> None:
    found = overlap_of(np.array(ours), np.array(theirs), n_resamples=8)
    assert 0 <= found.low <= found.value <= found.high <= 1 + 1e-9


def test_too_few_pieces_give_no_figure_but_a_reason() -> None:
    one, many = np.array([1.0]), np.arange(5.0)
    for ours, theirs in ((one, many), (many, one)):
        assert overlap_of(ours, theirs) == Estimate(None, reason="fewer than 2 pieces in a set")
        vectors = compare_vectors(ours[:, None], theirs[:, None])
        assert vectors["value"] is None
        assert vectors["reason"] == "fewer than 2 pieces in a set"


def test_resamples_depend_on_seed_and_name_alone() -> None:
    drawn = resample(50, 1, "generated", 200)
    assert drawn[0].tolist() == [1] * 50
    assert (drawn.sum(axis=1) == 50).all()
    assert np.array_equal(drawn, resample(50, 1, "generated", 200))
    assert not np.array_equal(drawn, resample(50, 2, "generated", 200))
    assert not np.array_equal(drawn, resample(50, 1, "held_out", 200))
    assert np.mean(drawn[1:] == 0) == pytest.approx(math.exp(-1), abs=0.02)  # a piece stays out of a third of them


def test_estimates_are_moved_back_by_the_shift_of_resampling() -> None:
    found = estimate(np.array([5.0, *np.arange(7.0, 17.0)]))  # the resamples lie 6.5 too high
    assert found.value == 5
    assert found.low == pytest.approx(7.225 - 6.5)
    assert found.high == pytest.approx(15.775 - 6.5)
    assert estimate(np.array([0.9, 0.1, 0.9]), 0.0, 1.0).high == 1.0
    assert estimate(np.array([1.0, 1.0])) == Estimate(1.0, 1.0, 1.0)


def random_moments(n_features: int, rank: int) -> Moments:
    factor = DICE.normal(size=(n_features, rank))
    return DICE.normal(size=n_features), factor @ factor.T


@pytest.mark.parametrize("rank", [6, 2, 1])
def test_frechet_distance_is_the_formula_with_a_matrix_root(rank: int) -> None:
    (mean, covariance), (mean2, covariance2) = random_moments(6, rank), random_moments(6, 6)
    root = linalg.sqrtm(covariance2)  # of the one that is never singular
    shared = linalg.sqrtm(root @ covariance @ root + 1e-12 * np.eye(6)).real
    direct = np.sum((mean - mean2) ** 2) + np.trace(covariance + covariance2 - 2 * shared)
    assert frechet_distance(mean, covariance, mean2, covariance2) == pytest.approx(direct, abs=1e-4)
    assert frechet_distance(mean2, covariance2, mean, covariance) == pytest.approx(direct, abs=1e-4)
    assert frechet_distance(mean, covariance, mean, covariance) == pytest.approx(0, abs=1e-4)


def test_frechet_distance_of_independent_features_adds_up() -> None:
    mean, spread = np.array([0.0, 1.0, 2.0]), np.array([1.0, 2.0, 0.0])
    mean2, spread2 = np.array([3.0, 1.0, 2.0]), np.array([1.0, 5.0, 2.0])
    closed = 3**2 + 3**2 + 2**2
    assert frechet_distance(mean, np.diag(spread**2), mean2, np.diag(spread2**2)) == pytest.approx(closed)
    batch = frechet_distance(
        np.stack([mean, mean2]), np.stack([np.diag(spread**2), np.diag(spread2**2)]), mean2, np.diag(spread2**2)
    )
    assert batch == pytest.approx([closed, 0])


def slow_frechet(ours: FloatArray, theirs: FloatArray, shrinkage: float) -> float:
    moments = []
    for rows in (ours, theirs):
        covariance = np.cov(rows.T, ddof=1)
        moments.append((rows.mean(axis=0), (1 - shrinkage) * covariance + shrinkage * np.diag(np.diag(covariance))))
    (mean, covariance), (mean2, covariance2) = moments
    values = np.linalg.eigvals(covariance @ covariance2)
    root = np.sqrt(np.maximum(values.real, 0)).sum()
    return float(np.sum((mean - mean2) ** 2) + np.trace(covariance + covariance2) - 2 * root)


@pytest.mark.parametrize("n_ours", [3, 40])
def test_vectors_and_their_resamples_against_repeated_rows(n_ours: int) -> None:
    ours, theirs = DICE.normal(0, 1, (n_ours, 5)), DICE.normal(0.3, 2, (12, 5))
    shrinkage = 5 / (5 + min(n_ours, 12))
    found = compare_vectors(ours, theirs, seed=4, n_resamples=15)
    drawn = zip(resample(n_ours, 4, "generated", 15), resample(12, 4, "held_out", 15), strict=True)
    slow = [
        slow_frechet(np.repeat(ours, one.astype(int), axis=0), np.repeat(theirs, two.astype(int), axis=0), shrinkage)
        for one, two in drawn
    ]
    assert slow[0] == pytest.approx(slow_frechet(ours, theirs, shrinkage))
    expected = estimate(np.array(slow), 0.0)
    figures = (found["value"], found["low"], found["high"])
    assert figures == pytest.approx((expected.value, expected.low, expected.high), abs=1e-4)


def test_chance_is_the_distance_of_sets_that_nothing_sets_apart() -> None:
    pieces = DICE.normal(0, 1, (120, 5))
    alike = compare_vectors(pieces[:40], pieces[40:], n_resamples=200)
    assert 0 < alike["chance"] < alike["chance_high"]
    assert alike["value"] < 1.5 * alike["chance_high"]
    apart = compare_vectors(pieces[:40] + 1, pieces[40:], n_resamples=200)
    assert apart["low"] > apart["chance_high"]
    itself = compare_vectors(pieces, pieces, n_resamples=50)
    assert itself["value"] == pytest.approx(0, abs=1e-6)
    assert itself["low"] == 0


def test_features_that_never_vary_do_no_harm() -> None:
    ours, theirs = DICE.normal(0, 1, (30, 4)), DICE.normal(0, 1, (30, 4))
    ours[:, 2], theirs[:, 2], ours[:, 3], theirs[:, 3] = 1, 3, ours[:, 0], theirs[:, 0]
    found = compare_vectors(ours, theirs, n_resamples=20)
    assert found["value"] == pytest.approx(slow_frechet(ours, theirs, 4 / 34), abs=1e-4)


def test_a_better_model_by_hand() -> None:
    champion, candidate = [4.0, 9.0, 1.0], [3.0, 8.0, 0.5]
    found = compare_scores(candidate, champion)
    assert found.value == pytest.approx(-2.5 / 3)
    assert found.high is not None
    assert found.high < 0
    assert compare_scores(champion, champion) == Estimate(0, 0, 0)
    assert compare_scores(candidate, champion) == found


def test_resamples_are_means_of_the_drawn_pieces() -> None:
    difference = DICE.normal(0, 1, 12)
    found = compare_scores(difference.tolist(), [0.0] * 12, n_resamples=50)
    slow = estimate(
        np.array([np.repeat(difference, drawn).mean() for drawn in resample(12, 0, "pairs", 50).astype(int)])
    )
    assert (found.value, found.low, found.high) == pytest.approx((slow.value, slow.low, slow.high))


def test_pairs_are_drawn_together() -> None:
    hard = DICE.normal(10, 5, 60)
    found = compare_scores((hard - 0.2 + DICE.normal(0, 0.1, 60)).tolist(), hard.tolist())
    assert found.high is not None
    assert found.high < 0  # the pieces differ by 5, the models by 0.2 on each
    assert found.low == pytest.approx(-0.2, abs=0.06)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    held = 0
    for trial in range(300):
        scores = np.random.default_rng(trial).normal(1.0, 1.0, 40)
        found = compare_scores(scores.tolist(), [0.0] * 40, n_resamples=300)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 1.0 <= found.high
    assert 0.90 <= held / 300 <= 0.98


@pytest.mark.parametrize(
    ("candidate", "champion", "message"),
    [
        ([1.0], [1.0, 2.0], "scores of 1 and of 2 pieces"),
        ([1.0, math.nan], [1.0, 1.0], "no finite score of 1 pieces: 1"),
    ],
)
def test_scores_that_cannot_be_compared(candidate: list[float], champion: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare_scores(candidate, champion)


def test_one_pair_is_no_comparison() -> None:
    assert compare_scores([1.0], [2.0]) == Estimate(None, reason="fewer than 2 pieces")
