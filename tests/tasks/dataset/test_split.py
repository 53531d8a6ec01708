"""Splits: seeded, stable under growth, never empty; or the source's own."""

import numpy as np
import pytest

from tasks.dataset.split import SPLITS, official_groups, split_groups
from tasks.errors import DatasetError


def groups(n: int) -> np.ndarray:
    return np.arange(n, dtype=np.uint64)


def test_shares_are_about_what_was_asked_for() -> None:
    counts = np.bincount(split_groups(groups(5000), 0.1, 0.2, seed=0))
    assert counts[1] / 5000 == pytest.approx(0.1, abs=0.02)
    assert counts[2] / 5000 == pytest.approx(0.2, abs=0.02)


def test_new_pieces_move_no_old_one() -> None:
    before, after = split_groups(groups(300), 0.1, 0.1, 0), split_groups(groups(400), 0.1, 0.1, 0)
    assert np.array_equal(after[:300], before)


def test_another_seed_splits_otherwise_and_the_same_seed_the_same() -> None:
    assert np.array_equal(split_groups(groups(100), 0.1, 0.1, 0), split_groups(groups(100), 0.1, 0.1, 0))
    assert not np.array_equal(split_groups(groups(100), 0.1, 0.1, 0), split_groups(groups(100), 0.1, 0.1, 1))


def test_the_order_of_groups_does_not_matter() -> None:
    assert np.array_equal(split_groups(groups(40)[::-1], 0.1, 0.1, 0)[::-1], split_groups(groups(40), 0.1, 0.1, 0))


@pytest.mark.parametrize("n", range(3, 12))
def test_no_split_is_empty_even_with_few_pieces(n: int) -> None:
    for seed in range(20):
        assert set(split_groups(groups(n), 0.1, 0.1, seed).tolist()) == set(range(len(SPLITS)))


def test_too_few_pieces_are_refused() -> None:
    with pytest.raises(DatasetError, match="found 2 distinct usable groups"):
        split_groups(groups(2), 0.1, 0.1, 0)


def test_a_group_that_the_source_tears_apart_goes_where_most_of_it_is_and_in_doubt_out_of_train() -> None:
    of_piece = np.array([0, 0, 2, 0, 1, -1, -1, 1], np.int8)
    group_of_piece = np.array([0, 0, 0, 1, 1, 2, 3, 3])
    assert official_groups(of_piece, group_of_piece, 4).tolist() == [0, 1, -1, 1]


def test_groups_with_a_split_of_their_own_keep_it_and_no_split_stays_empty() -> None:
    fixed = np.array([0] * 8 + [-1] * 4, np.int8)
    for seed in range(30):
        splits = split_groups(groups(12), 0.1, 0.1, seed, fixed)
        assert np.all(splits[:8] == 0)
        assert set(splits.tolist()) == {0, 1, 2}
    with pytest.raises(DatasetError, match="no piece is in split validation"):
        split_groups(groups(4), 0.1, 0.1, 0, np.array([0, 0, 2, 2], np.int8))
