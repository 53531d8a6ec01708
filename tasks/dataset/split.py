"""The split into training, validation and test: by group, by a seeded hash, before augmentation."""

import numpy as np
from numpy.typing import NDArray

from tasks.errors import DatasetError, plural

SPLITS = ("train", "validation", "test")


def split_groups(
    group_keys: NDArray[np.uint64], validation_share: float, test_share: float, seed: int,
    fixed: NDArray[np.int8] | None = None,
) -> NDArray[np.int8]:  # fmt: skip
    """Return the split of each group, int8[G], as an index into `SPLITS`.

    It depends on seed and key alone, so new pieces move no old one. An empty split gets the group whose hash is
    nearest.

    Args:
        group_keys: uint64[G], distinct.
        fixed: int8[G], the split of groups that have one already, -1 for the others.
    Raises:
        DatasetError: fewer groups than splits, or none that could go to an empty one.
    """
    fixed = np.full(len(group_keys), -1, np.int8) if fixed is None else fixed
    if len(group_keys) < len(SPLITS):
        raise DatasetError(
            f"found {plural(len(group_keys), 'distinct usable group')} of pieces; at least {len(SPLITS)} are needed,"
            f" one each for {', '.join(SPLITS)}"
        )
    place = _unit_hash(seed, group_keys)
    train_share = 1 - validation_share - test_share
    lows = np.array([0.0, train_share, train_share + validation_share])
    highs = np.append(lows[1:], 1.0)
    splits = (np.searchsorted(lows, place, side="right") - 1).astype(np.int8)
    splits = np.where(fixed >= 0, fixed, splits)
    for split in range(len(SPLITS)):
        if np.any(splits == split):
            continue
        counts = np.bincount(splits, minlength=len(SPLITS))
        movable = np.flatnonzero((counts[splits] > 1) & (fixed < 0))
        if not len(movable):
            raise DatasetError(
                f"no piece is in split {SPLITS[split]}: the sources state a split for every piece, and filters or"
                " licences left none there; set dataset.split=seeded, or accept more"
            )
        distance = np.maximum(lows[split] - place[movable], place[movable] - highs[split])
        splits[movable[np.lexsort([group_keys[movable], distance])[0]]] = split
    return splits


def official_groups(of_piece: NDArray[np.int8], group_of_piece: NDArray[np.integer], n_groups: int) -> NDArray[np.int8]:
    """Return the split that the source states for each group, -1 for none.

    A group with several stated splits goes to the one with most of its pieces, at a tie to the later one of `SPLITS`.

    Args:
        of_piece: int8[P], indices into `SPLITS`, -1 where the source states none.
    """
    votes = np.zeros((n_groups, len(SPLITS)), np.int64)
    stated = of_piece >= 0
    np.add.at(votes, (group_of_piece[stated], of_piece[stated]), 1)
    last_most = len(SPLITS) - 1 - np.argmax(votes[:, ::-1], axis=1)
    return np.where(votes.any(axis=1), last_most, -1).astype(np.int8)


def _unit_hash(seed: int, keys: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Return a number in [0, 1) for each key: the finalizer of SplitMix64 (Steele et al. 2014) over key and seed."""
    with np.errstate(over="ignore"):
        mixed = keys + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    return (mixed >> np.uint64(11)) / 2.0**53
