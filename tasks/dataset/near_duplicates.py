"""Near-duplicate pieces as groups: banded MinHash finds candidates, an estimate of containment links them.

Importing this file loads neither numba nor scipy: `GroupConfig` is part of the dataset's config.
"""

import dataclasses
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tasks.config.dataset import GroupConfig
from tasks.errors import plural

if TYPE_CHECKING:
    from tasks.music.arrays import FloatArray, IntArray
    from tasks.music.similarity.fingerprint import WordArray

logger = logging.getLogger(__name__)

_CHUNK = 2**18  # rows of a band whose candidates are held at once
_STRICTEST = 0.9  # containment of copies, which no guard parts
_STRICTER = 0.1  # one step of the guard


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """The near-duplicate groups of P pieces."""

    component: NDArray[np.int32]  # [P], group of each piece; groups are numbered by their smallest piece ids
    representative: NDArray[np.int32]  # [P], index of the piece with the smallest id of the group, which names it
    n_candidates: int = 0  # compared pairs
    n_links: int = 0  # joined pairs; a pair that others already join is not compared
    largest: int = 0  # pieces in the largest group
    n_guarded: int = 0  # groups that were too large and were formed again with stricter bounds
    n_parted: int = 0  # pieces outside the largest parts of those groups

    @property
    def n_groups(self) -> int:
        return int(self.component.max()) + 1 if len(self.component) else 0


def group_pieces(
    piece_ids: Sequence[str] | NDArray[Any],
    signatures: "WordArray",
    n_shingles: NDArray[np.integer],
    config: GroupConfig = GroupConfig(),
) -> Groups:
    """Return the connected components of the links between near-duplicate pieces; no order of the input matters.

    Each word of a signature is a band. Pieces with an equal word are in one bucket, ordered by the next word. Each is
    compared with the next few of the bucket and with the first, so the work is linear in the pieces.

    A chain of weak links may join unlike pieces. A group above both limits is therefore formed again with a bound that
    is 0.1 higher, until its parts are below the limit or the bound is 0.9.

    Args:
        piece_ids: distinct; sorted ones save a copy of the signatures.
        signatures: uint32[P, words], from `fingerprint.sign_pieces`.
        n_shingles: int[P], from the same.
    """
    n_pieces = len(signatures)
    ids = np.asarray(piece_ids)
    if not len(ids) == len(n_shingles) == n_pieces:
        raise ValueError(f"{len(ids)} piece ids, {n_pieces} signatures and {len(n_shingles)} counts differ")
    if not config.enabled or n_pieces < 2:
        every = np.arange(n_pieces, dtype=np.int32)
        return Groups(every, every, largest=min(n_pieces, 1))
    order = None if np.all(ids[:-1] < ids[1:]) else np.argsort(ids, kind="stable")
    if order is not None:
        if np.any(ids[order[:-1]] == ids[order[1:]]):
            raise ValueError("piece ids are not distinct")
        signatures, n_shingles = signatures[order], n_shingles[order]
    counted = Counter[str]()
    limit = max(config.max_group_pieces, int(config.max_group_share * n_pieces))
    labels = _components(signatures, np.asarray(n_shingles, np.float64), config, limit, counted)
    component, representative = _by_first(labels)
    largest = int(np.bincount(component).max())
    n_groups = plural(int(component.max()) + 1, "group")
    logger.info("%s: %s, the largest of %d", plural(n_pieces, "piece"), n_groups, largest)
    if order is not None:
        back = np.argsort(order)
        component, representative = component[back], order[representative[back]].astype(np.int32)
    return Groups(component, representative, largest=largest, **counted)


def _components(
    signatures: "WordArray", n_shingles: "FloatArray", config: GroupConfig, limit: int, counted: Counter[str]
) -> "IntArray":
    """Label each piece with its component, too large ones parted."""
    labels = _linked(signatures, n_shingles, config, counted)
    sizes = np.bincount(labels)
    stricter = round(config.min_containment + _STRICTER, 6)
    if sizes.max() <= limit or stricter > _STRICTEST:
        return labels
    next_label = len(sizes)
    for large in np.flatnonzero(sizes > limit):
        members = np.flatnonzero(labels == large)
        inner, strict = Counter[str](), dataclasses.replace(config, min_containment=stricter)
        parts = _components(signatures[members], n_shingles[members], strict, limit, inner)
        counted["n_candidates"] += inner["n_candidates"]
        counted["n_guarded"] += 1
        counted["n_parted"] += len(members) - int(np.bincount(parts).max())
        labels[members] = parts + next_label
        next_label += int(parts.max()) + 1
    return np.unique(labels, return_inverse=True)[1]


def _linked(
    signatures: "WordArray", n_shingles: "FloatArray", config: GroupConfig, counted: Counter[str]
) -> "IntArray":
    """Label each piece with its component of linked pieces, one band after another."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    n_pieces, n_words = signatures.shape
    labels = np.arange(n_pieces)
    for band in range(n_words):
        found = []
        for left, right in _candidates(signatures[:, band], signatures[:, (band + 1) % n_words], config.reach):
            new = labels[left] != labels[right]
            left, right = left[new], right[new]  # noqa: PLW2901
            counted["n_candidates"] += len(left)
            near = _near(signatures, n_shingles, left, right, config)
            found.append((labels[left[near]], labels[right[near]]))
        joined_left, joined_right = (np.concatenate(side) for side in zip(*found, strict=True)) if found else ([], [])
        if len(joined_left):
            counted["n_links"] += len(joined_left)
            n_labels = int(labels.max()) + 1
            links = coo_matrix(
                (np.ones(len(joined_left), np.bool_), (joined_left, joined_right)), shape=(n_labels, n_labels)
            )
            labels = connected_components(links, directed=False)[1].astype(np.int64)[labels]
    return labels


def _candidates(words: "WordArray", next_words: "WordArray", reach: int) -> Iterator[tuple["IntArray", "IntArray"]]:
    """Yield pairs of pieces whose words are equal: each with the next few of its bucket and with the first."""
    keys = words.astype(np.uint64) << np.uint64(32) | next_words
    order = np.argsort(keys, kind="stable")
    bucket = (keys[order] >> np.uint64(32)).astype(np.uint32)
    del keys
    starts = np.flatnonzero(np.concatenate([[True], bucket[1:] != bucket[:-1]]))
    sizes = np.diff(starts, append=len(bucket))
    shared = np.repeat(sizes > 1, sizes)
    order, bucket = order[shared], bucket[shared]
    starts = np.flatnonzero(np.concatenate([[True], bucket[1:] != bucket[:-1]])) if len(order) else starts[:0]
    first = np.repeat(starts, sizes[sizes > 1])
    for begin in range(0, len(order), _CHUNK):
        end = min(begin + _CHUNK, len(order))
        at = np.arange(begin, end)
        pairs = []
        for step in range(1, reach + 1):
            here = at[at + step < len(order)]
            here = here[bucket[here] == bucket[here + step]]
            pairs.append((order[here], order[here + step]))
        far = at[at - first[begin:end] > reach]
        pairs.append((order[first[far]], order[far]))
        yield np.concatenate([p[0] for p in pairs]), np.concatenate([p[1] for p in pairs])


def _near(
    signatures: "WordArray", n_shingles: "FloatArray", left: "IntArray", right: "IntArray", config: GroupConfig
) -> NDArray[np.bool_]:
    from tasks.music.similarity.fingerprint import N_PERMUTATIONS, count_equal

    equal = count_equal(signatures, left, right)
    likeness = equal / N_PERMUTATIONS  # an unbiased estimate of the Jaccard index (Broder 1997)
    smaller = np.minimum(n_shingles[left], n_shingles[right])
    shared = likeness / (1 + likeness) * (n_shingles[left] + n_shingles[right])
    bound = np.minimum(config.min_containment + config.small_piece_margin / np.sqrt(np.maximum(smaller, 1)), 0.95)
    return (equal >= config.min_equal) & (shared >= bound * smaller)


def _by_first(labels: "IntArray") -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Number components by their first member; return the numbers and the first members."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse].astype(np.int32), first[inverse].astype(np.int32)
