"""Distances between sets against slow direct formulas, closed forms, and cases in which the answer is known."""

import json
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
    compare_values,
    compare_vectors,
    estimate,
    frechet_distance,
    resample,
)
from tests.budget import examples

DICE = np.random.default_rng(7)
Moments = tuple[FloatArray, FloatArray]


def compared(ours: FloatArray, theirs: FloatArray, n_resamples: int = 3) -> dict[str, float]:
    weights = [resample(len(values), 0, key, n_resamples) for values, key in ((ours, "a"), (theirs, "b"))]
    found = compare_values(ours, theirs, *weights)
    names = ("overlap", "divergence", "distance_overlap", "distance_divergence")
    return {name: getattr(found, name).value for name in names}


def slow_bandwidth(ours: FloatArray, theirs: FloatArray) -> float:
    spread = math.sqrt((np.var(ours, ddof=1) + np.var(theirs, ddof=1)) / 2)
    return max(min(len(ours), len(theirs)) ** -0.2 * spread, BANDWIDTH_MIN * np.ptp(np.concatenate([ours, theirs])))


def slow_comparison(ours: FloatArray, theirs: FloatArray) -> dict[str, float]:
    """Sum kernels one by one on a fine grid, and integrate."""
    width = slow_bandwidth(ours, theirs)
    pooled = np.concatenate([ours, theirs])
    grid = np.linspace(pooled.min() - 6 * width, pooled.max() + 6 * width, 4001)
    p, q = (sum(stats.norm.pdf(grid, value, width) for value in values) for values in (ours, theirs))
    reach = np.linspace(0, np.ptp(pooled) + 9 * width, 4001)
    intra = [one - other for i, one in enumerate(theirs) for j, other in enumerate(theirs) if i != j]
    inter = [one - other for one in ours for other in theirs]
    folded = [
        sum(stats.norm.pdf(sign * reach, gap, math.sqrt(2) * width) for gap in gaps for sign in (1, -1))
        for gaps in (intra, inter)
    ]
    return dict(zip(("overlap", "divergence"), integrals(p, q), strict=True)) | dict(
        zip(("distance_overlap", "distance_divergence"), integrals(*folded), strict=True)
    )


def integrals(p: FloatArray, q: FloatArray) -> tuple[float, float]:
    p, q = p / p.sum(), q / q.sum()
    return float(np.minimum(p, q).sum()), float(np.sum(p * (np.log(p + 1e-300) - np.log(q + 1e-300))))


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
    assert compared(ours, theirs) == pytest.approx(slow_comparison(ours, theirs), abs=0.01, rel=0.02)


def test_a_set_is_like_itself() -> None:
    values = DICE.normal(3, 2, 400)
    found = compared(values, values)
    assert found["overlap"] == pytest.approx(1)
    assert found["divergence"] == pytest.approx(0, abs=1e-12)
    assert found["distance_overlap"] == pytest.approx(1, abs=0.01)  # a piece has distance 0 to itself
    assert found["distance_divergence"] == pytest.approx(0, abs=0.001)


@pytest.mark.parametrize("shift", [0.0, 0.7, 2.0, 5.0])
def test_shifted_normal_values_have_the_closed_form(shift: float) -> None:
    theirs = stats.norm.ppf((np.arange(3000) + 0.5) / 3000)
    ours = theirs + shift
    found = compared(ours, theirs)
    smooth = math.sqrt(1 + slow_bandwidth(ours, theirs) ** 2)
    assert found["overlap"] == pytest.approx(2 * stats.norm.cdf(-shift / 2 / smooth), abs=0.005)
    if shift < 1:  # further out the sample, which ends, has thinner tails than the distribution
        assert found["divergence"] == pytest.approx(shift**2 / 2 / smooth**2, rel=0.02, abs=1e-6)
    grid, scale = np.linspace(0, shift + 15, 5000), math.sqrt(2) * smooth
    intra, inter = stats.foldnorm.pdf(grid, 0, scale=scale), stats.foldnorm.pdf(grid, shift / scale, scale=scale)
    overlap, divergence = integrals(intra, inter)
    assert found["distance_overlap"] == pytest.approx(overlap, abs=0.005)
    assert found["distance_divergence"] == pytest.approx(divergence, abs=0.02)


def test_sets_of_one_shape_in_different_places_are_apart() -> None:
    """Where each density has a grid of its own, these two look the same."""
    values = DICE.normal(0, 1, 50)
    found = compared(values, values + 1000)
    assert found["overlap"] == pytest.approx(0, abs=1e-6)
    assert found["divergence"] > 20
    assert found["distance_overlap"] == pytest.approx(0, abs=1e-6)


def test_values_that_are_all_equal() -> None:
    ones = np.ones(5)
    assert compared(ones, ones) == {"overlap": 1, "divergence": 0, "distance_overlap": 1, "distance_divergence": 0}
    apart = compared(ones, 2 * ones)
    assert apart["overlap"] == pytest.approx(0, abs=1e-6)
    assert all(math.isfinite(value) for value in apart.values())


@examples(60)
@example([0.0, 0.0], [0.0, 5e-324])
@given(*[st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=12)] * 2)
def test_whatever_the_values_the_figures_are_finite_and_in_range(ours: list[float], theirs: list[float]) -> None:
    weights = [resample(len(values), 3, key, 8) for values, key in ((ours, "a"), (theirs, "b"))]
    found = compare_values(np.array(ours), np.array(theirs), *weights)
    for name, top in (("overlap", 1), ("divergence", 28), ("distance_overlap", 1), ("distance_divergence", 28)):
        figure = getattr(found, name)
        assert 0 <= figure.value <= top + 1e-9, name
        if not figure.reason:
            assert 0 <= figure.low <= figure.value <= figure.high, name


def test_too_few_pieces_give_no_figure_but_a_reason() -> None:
    one, many = np.array([1.0]), np.arange(5.0)
    for ours, theirs in ((one, many), (many, one)):
        found = compare_values(ours, theirs, resample(len(ours), 0, "a", 3), resample(len(theirs), 0, "b", 3))
        assert found.overlap == found.distance_divergence == Estimate(None, reason="fewer than 2 pieces in a set")
        vectors = compare_vectors(ours[:, None], theirs[:, None])
        assert vectors.distance.value is None
        assert vectors.to_json()["reason"] == "fewer than 2 pieces in a set"


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
    assert estimate(np.array([1.0, np.nan, 1.0])) == Estimate(1.0, 1.0, 1.0)
    assert estimate(np.array([1.0, np.nan])) == Estimate(1.0, reason="no resample has the figure")


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
    figures = (found.distance.value, found.distance.low, found.distance.high)
    assert figures == pytest.approx((expected.value, expected.low, expected.high), abs=1e-4)


def test_chance_is_the_distance_of_sets_that_nothing_sets_apart() -> None:
    pieces = DICE.normal(0, 1, (120, 5))
    alike = compare_vectors(pieces[:40], pieces[40:], n_resamples=200)
    assert alike.distance.value is not None
    assert alike.chance is not None
    assert alike.chance_high is not None
    assert 0 < alike.chance < alike.chance_high
    assert alike.distance.value < 1.5 * alike.chance_high
    apart = compare_vectors(pieces[:40] + 1, pieces[40:], n_resamples=200)
    assert apart.chance_high is not None
    assert apart.distance.low is not None
    assert apart.distance.low > apart.chance_high
    itself = compare_vectors(pieces, pieces, n_resamples=50)
    assert itself.distance.value == pytest.approx(0, abs=1e-6)
    assert itself.distance.low == 0


def test_features_that_never_vary_do_no_harm() -> None:
    ours, theirs = DICE.normal(0, 1, (30, 4)), DICE.normal(0, 1, (30, 4))
    ours[:, 2], theirs[:, 2], ours[:, 3], theirs[:, 3] = 1, 3, ours[:, 0], theirs[:, 0]
    found = compare_vectors(ours, theirs, n_resamples=20)
    assert found.distance.value == pytest.approx(slow_frechet(ours, theirs, 4 / 34), abs=1e-4)


def test_a_better_model_by_hand() -> None:
    champion = {"a": 4.0, "b": 9.0, "c": 1.0}
    candidate = {"c": 0.5, "b": 8.0, "a": 3.0}
    found = compare_scores(candidate, champion)
    assert found.difference.value == pytest.approx(-2.5 / 3)
    assert (found.n_pieces, found.is_better) == (3, True)
    weighted = compare_scores(candidate, champion, weights={"a": 1, "b": 2, "c": 7})
    assert weighted.difference.value == pytest.approx((-1 - 2 - 3.5) / 10)
    assert not compare_scores(champion, candidate).is_better
    assert compare_scores(champion, candidate, lower_is_better=False).is_better
    same = compare_scores(champion, champion)
    assert same.difference == Estimate(0, 0, 0)
    assert not same.is_better
    assert compare_scores(candidate, champion, seed=3) == compare_scores(candidate, champion, seed=3)
    assert json.loads(json.dumps(found.to_json()))["is_better"] is True


def test_weighted_resamples_are_ratios_of_sums() -> None:
    difference, weight = DICE.normal(0, 1, 12), DICE.uniform(0.1, 9, 12)
    names = [f"{index:02d}" for index in range(12)]
    zero, weights = dict.fromkeys(names, 0.0), dict(zip(names, weight, strict=True))
    found = compare_scores(dict(zip(names, difference, strict=True)), zero, weights=weights, seed=5, n_resamples=50)
    slow = [
        np.average(np.repeat(difference, n), weights=np.repeat(weight, n))
        for n in resample(12, 5, "pairs", 50).astype(int)
    ]
    assert found.difference.value == pytest.approx(slow[0])
    assert (found.difference.low, found.difference.high) == pytest.approx(
        (estimate(np.array(slow)).low, estimate(np.array(slow)).high)
    )


def test_pairs_are_drawn_together() -> None:
    hard = {str(index): float(value) for index, value in enumerate(DICE.normal(10, 5, 60))}
    easier = {name: value - 0.2 + DICE.normal(0, 0.1) for name, value in hard.items()}
    found = compare_scores(easier, hard)
    assert found.is_better  # the pieces differ by 5, the models by 0.2 on each
    assert found.difference.low == pytest.approx(-0.2, abs=0.06)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    held = 0
    for trial in range(300):
        draws = np.random.default_rng(trial).normal(1.0, 1.0, 40)
        scores = {str(index): value for index, value in enumerate(draws)}
        found = compare_scores(scores, dict.fromkeys(scores, 0.0), seed=trial, n_resamples=300).difference
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 1.0 <= found.high
    assert 0.90 <= held / 300 <= 0.98


@pytest.mark.parametrize(
    ("candidate", "champion", "weights", "message"),
    [
        ({"a": 1.0}, {"b": 1.0}, None, "2 on one side only: a, b"),
        ({"a": 1.0}, {"a": 1.0}, {}, "1 on one side only: a"),
        (
            {"a": math.nan, "b": 1.0},
            {"a": 1.0, "b": 1.0},
            None,
            "no finite score, or a weight not above 0, of 1 pieces: a",
        ),
        ({"a": 1.0, "b": 1.0}, {"a": 1.0, "b": 1.0}, {"a": 1, "b": 0}, "of 1 pieces: b"),
    ],
)
def test_scores_that_cannot_be_compared(candidate, champion, weights, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare_scores(candidate, champion, weights=weights)


def test_one_pair_is_no_comparison() -> None:
    found = compare_scores({"a": 1.0}, {"a": 2.0})
    assert (found.difference.value, found.is_better, found.difference.reason) == (None, False, "fewer than 2 pieces")
