"""Which pieces are for training, validation and test: decided by group, before augmentation, by a seeded hash."""

import hashlib
from collections.abc import Mapping

from tasks.errors import DatasetError

SPLITS = ("train", "validation", "test")


def split_groups(groups: Mapping[str, int], validation_share: float, test_share: float, seed: int) -> dict[str, str]:
    """Assign every group to a split; a group's place depends on (seed, group) alone, so new pieces move no old one.

    Only where a split would stay empty does the group whose hash is nearest to it move there.

    Args:
        groups: group -> number of pieces in it.
    Returns:
        group -> `train`, `validation` or `test`.
    Raises:
        DatasetError: fewer groups than splits.
    """
    if len(groups) < len(SPLITS):
        raise DatasetError(
            f"found {len(groups)} distinct usable pieces; at least {len(SPLITS)} are needed,"
            f" one each for {', '.join(SPLITS)}"
        )
    place = {group: _unit_hash(seed, group) for group in groups}
    train_share = 1 - validation_share - test_share
    bounds = {
        "train": (0.0, train_share),
        "validation": (train_share, train_share + validation_share),
        "test": (train_share + validation_share, 1.0),
    }
    splits = {
        group: next((s for s in SPLITS if bounds[s][0] <= u < bounds[s][1]), "test") for group, u in place.items()
    }
    for split in SPLITS:
        if split in splits.values():
            continue
        low, high = bounds[split]
        counts = {s: sum(1 for chosen in splits.values() if chosen == s) for s in SPLITS}
        movable = [group for group in groups if counts[splits[group]] > 1]
        splits[min(movable, key=lambda g: (max(low - place[g], place[g] - high), g))] = split
    return splits


def _unit_hash(seed: int, group: str) -> float:
    return int.from_bytes(hashlib.sha256(f"{seed}:{group}".encode()).digest()[:8], "big") / 2**64
