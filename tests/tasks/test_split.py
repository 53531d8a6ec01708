"""Splits: seeded, stable under growth, never empty."""

import pytest

from tasks.errors import DatasetError
from tasks.split import SPLITS, split_groups


def groups(n: int) -> dict[str, int]:
    return {f"{i:016x}": 1 for i in range(n)}


def test_shares_are_about_what_was_asked_for() -> None:
    splits = list(split_groups(groups(5000), 0.1, 0.2, seed=0).values())
    assert splits.count("validation") / 5000 == pytest.approx(0.1, abs=0.02)
    assert splits.count("test") / 5000 == pytest.approx(0.2, abs=0.02)


def test_new_pieces_move_no_old_one() -> None:
    before, after = split_groups(groups(300), 0.1, 0.1, 0), split_groups(groups(400), 0.1, 0.1, 0)
    assert {group: after[group] for group in before} == before


def test_another_seed_splits_otherwise_and_the_same_seed_the_same() -> None:
    assert split_groups(groups(100), 0.1, 0.1, 0) == split_groups(groups(100), 0.1, 0.1, 0)
    assert split_groups(groups(100), 0.1, 0.1, 0) != split_groups(groups(100), 0.1, 0.1, 1)


@pytest.mark.parametrize("n", range(3, 12))
def test_no_split_is_empty_even_with_few_pieces(n: int) -> None:
    for seed in range(20):
        assert set(split_groups(groups(n), 0.1, 0.1, seed).values()) == set(SPLITS)


def test_too_few_pieces_are_refused() -> None:
    with pytest.raises(DatasetError, match="found 2 distinct usable pieces"):
        split_groups(groups(2), 0.1, 0.1, 0)
