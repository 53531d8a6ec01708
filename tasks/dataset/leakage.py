"""The leakage report: transposition-invariant n-grams that validation and test share with training pieces."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.config.dataset import LeakageConfig
from tasks.dataset.split import SPLITS

HELD_OUT = SPLITS[1:]

MIN_GRAMS = 8  # sampled n-grams of a rated piece
MOST_GRAMS = 16_000_000  # compared at once, 128 MB; above it, a smaller sample of each piece is compared
_WORST = 10  # pieces that the report names
_PIECES_OF_GRAM = 64  # train pieces compared for one n-gram; a common figure is in thousands
_BATCH = 256  # held-out pieces compared at once


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedPiece:
    """A held-out piece and the train piece that shares most of its n-grams."""

    piece: str
    n_grams: int  # compared ones
    share_in_train: float  # of its n-grams, anywhere in train
    nearest: str
    share_in_nearest: float


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitLeakage:
    """The shares of the pieces of one held-out split; `rated` leaves out pieces with fewer than 8 sampled n-grams."""

    n_pieces: int = 0
    n_rated: int = 0
    mean: float = 0.0  # of the shares found anywhere in train
    median: float = 0.0
    p95: float = 0.0
    max: float = 0.0
    n_leaked: int = 0  # pieces above the bound, by their nearest train piece
    leaked_share: float = 0.0  # of the rated pieces
    worst: tuple[SharedPiece, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class LeakageReport:
    """The n-grams that the held-out splits share with train."""

    piece_bound: float
    max_leaked_share: float
    leaked_share: float  # of the pieces in the worse held-out split
    sampled: int  # one n-gram in so many was compared
    splits: dict[str, SplitLeakage] = field(default_factory=dict)  # by name, `validation` and `test`
    # The figures of as many groups taken out of train: what pieces of these sources share without leakage. A `mean` far
    # above theirs is leakage too.
    baseline: SplitLeakage = SplitLeakage()


def exceeds(report: LeakageReport, bound: float | None = None) -> bool:
    """Return whether the share of leaked pieces is above the bound, by default the config's."""
    return report.leaked_share > (report.max_leaked_share if bound is None else bound)


def measure_leakage(
    piece_ids: Sequence[str] | NDArray[Any], gram_offsets: NDArray[np.int64], grams: NDArray[np.uint64],
    splits: Sequence[str] | NDArray[Any], groups: Sequence[Any] | NDArray[Any] | None = None,
    config: LeakageConfig = LeakageConfig(), thinning: int = 1,
) -> LeakageReport:  # fmt: skip
    """Compare validation and test with train.

    Args:
        piece_ids: of P pieces.
        gram_offsets: int64[P + 1]; piece i owns `grams[gram_offsets[i]:gram_offsets[i + 1]]`, distinct ones.
        grams: from `fingerprint.gram_hashes`.
        splits: name or index into `SPLITS` of each piece's split.
        groups: the near-duplicate group of each piece; without it the baseline takes single pieces.
        thinning: factor by which the caller has thinned the n-grams; they are thinned more if needed.
    """
    from tasks.music.similarity.fingerprint import SAMPLE

    ids, of_split = np.asarray(piece_ids), np.asarray(splits)
    if of_split.dtype.kind not in "iu":
        of_split = np.select([of_split == name for name in SPLITS], range(len(SPLITS)), default=-1)
    group = np.arange(len(ids)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    gram_offsets, grams = np.asarray(gram_offsets), np.asarray(grams)
    wanted = thinning * thinning_for(len(grams))
    if wanted > thinning:
        gram_offsets, grams = thin_grams(gram_offsets, grams, wanted)
    table = _Grams(ids, gram_offsets, grams)
    train, *rest = (np.flatnonzero(of_split == split) for split in range(len(SPLITS)))
    held = dict(zip(HELD_OUT, rest, strict=True))
    found = {name: _compare(table, pieces, train, config.piece_bound) for name, pieces in held.items()}
    taken = _some_groups(group, train, sum(len(np.unique(group[pieces])) for pieces in rest))
    return LeakageReport(
        piece_bound=config.piece_bound,
        max_leaked_share=config.max_leaked_share,
        leaked_share=max(split.leaked_share for split in found.values()),
        sampled=SAMPLE * wanted,
        splits=found,
        baseline=_compare(table, train[taken], train[~taken], config.piece_bound),
    )


def thinning_for(n_grams: int) -> int:
    """Return the power of two by which `n_grams` must be thinned to `MOST_GRAMS`."""
    thinning = 1
    while n_grams > thinning * MOST_GRAMS:
        thinning *= 2
    return thinning


def thin_grams(
    offsets: NDArray[np.int64], grams: NDArray[np.uint64], thinning: int
) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Keep one n-gram in `thinning`, a power of two, by its hash: the same ones in all pieces, in part or in whole."""
    kept = (grams >> np.uint64(40)) & np.uint64(thinning - 1) == 0  # other bits than those of the first sample
    before = np.concatenate([np.zeros(1, np.int64), np.cumsum(kept)])
    return before[offsets], grams[kept]


@dataclass(frozen=True, slots=True, eq=False)
class _Grams:
    ids: NDArray[Any]
    offsets: NDArray[np.int64]
    grams: NDArray[np.uint64]

    def of(self, pieces: NDArray[np.int64]) -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
        """Return the n-grams of some pieces, and for each the place of its piece among them."""
        sizes = (self.offsets[1:] - self.offsets[:-1])[pieces]
        ends = np.cumsum(sizes)
        n_grams = int(ends[-1]) if len(ends) else 0
        place = np.arange(n_grams) + np.repeat(self.offsets[pieces] - (ends - sizes), sizes)
        return self.grams[place], np.repeat(np.arange(len(pieces), dtype=np.int32), sizes)


def _compare(table: _Grams, held: NDArray[np.int64], train: NDArray[np.int64], piece_bound: float) -> SplitLeakage:
    sizes = np.diff(table.offsets)[held]
    rated = held[sizes >= MIN_GRAMS]
    if not len(rated) or not len(train):
        return SplitLeakage(n_pieces=len(held))
    train_grams, owner = table.of(train)
    order = np.argsort(train_grams, kind="stable")  # of equal n-grams the first pieces stay first
    train_grams, owner = train_grams[order], owner[order]
    del order
    grams, place = table.of(rated)
    first = np.searchsorted(train_grams, grams)
    known = np.zeros(len(grams), np.bool_)
    if len(train_grams):
        known = train_grams[np.minimum(first, len(train_grams) - 1)] == grams
    n_grams = np.bincount(place, minlength=len(rated))
    shares = np.bincount(place, weights=known, minlength=len(rated)) / n_grams
    suspects = np.flatnonzero(shares >= min(piece_bound, np.sort(shares)[-_WORST:][0]))
    nearest, in_nearest = np.full(len(rated), -1), np.zeros(len(rated))
    wanted = known & np.isin(place, suspects)
    nearest_of, n_shared = _nearest(train_grams, owner, grams[wanted], first[wanted], place[wanted], len(rated))
    nearest[suspects], in_nearest[suspects] = nearest_of[suspects], n_shared[suspects] / n_grams[suspects]
    leaked = in_nearest > piece_bound
    worst = np.lexsort([-shares, -in_nearest])[:_WORST]
    return SplitLeakage(
        n_pieces=len(held),
        n_rated=len(rated),
        mean=round(float(shares.mean()), 4),
        median=round(float(np.median(shares)), 4),
        p95=round(float(np.percentile(shares, 95)), 4),
        max=round(float(shares.max()), 4),
        n_leaked=int(leaked.sum()),
        leaked_share=round(float(leaked.mean()), 6),
        worst=tuple(
            SharedPiece(
                piece=str(table.ids[rated[i]]),
                n_grams=int(n_grams[i]),
                share_in_train=round(float(shares[i]), 4),
                nearest=str(table.ids[train[nearest[i]]]) if nearest[i] >= 0 else "",
                share_in_nearest=round(float(in_nearest[i]), 4),
            )
            for i in worst
        ),
    )


def _nearest(
    train_grams: NDArray[np.uint64], owner: NDArray[np.int32], grams: NDArray[np.uint64], first: NDArray[np.int64],
    place: NDArray[np.int32], n_held: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:  # fmt: skip
    """Return for each held-out piece the first train piece with most shared n-grams, and their number.

    Args:
        grams: n-grams of train, with their `first` place in `train_grams` and the `place` of their held-out piece.
    """
    nearest, most = np.full(n_held, -1), np.zeros(n_held, np.int64)
    if not len(grams):
        return nearest, most
    starts = np.searchsorted(place, np.arange(0, n_held + _BATCH, _BATCH))
    n_train = int(owner.max()) + 1
    for begin, end in itertools.pairwise(starts):
        if begin == end:
            continue
        last = np.searchsorted(train_grams, grams[begin:end], side="right")
        counts = np.minimum(last - first[begin:end], _PIECES_OF_GRAM)
        ends = np.cumsum(counts)
        at = np.arange(ends[-1]) + np.repeat(first[begin:end] - (ends - counts), counts)
        pairs, shared = np.unique(
            np.repeat(place[begin:end].astype(np.int64), counts) * n_train + owner[at], return_counts=True
        )
        held, piece = pairs // n_train, pairs % n_train
        best = np.lexsort([piece, -shared, held])
        chosen = best[np.concatenate([[True], held[best][1:] != held[best][:-1]])]
        nearest[held[chosen]], most[held[chosen]] = piece[chosen], shared[chosen]
    return nearest, most


def _some_groups(group: NDArray[np.int64], train: NDArray[np.int64], n_wanted: int) -> NDArray[np.bool_]:
    """Return a mask of the train pieces in every k-th group: about `n_wanted` groups, at most half of them."""
    known, of_piece = np.unique(group[train], return_inverse=True)
    step = max(2, -(-len(known) // max(1, n_wanted)))
    return of_piece % step == 0
