"""Repetition within a piece, from its notes: self-similarity of bars, and compressibility.

The figures stand in for the structureness indicator of Wu and Yang 2020, which reads repeats by time scale from a scape
plot of rendered audio; they are not that indicator, and their values do not compare with it.
"""

import lzma
from itertools import pairwise

import numpy as np

from tasks.music.arrays import IntArray
from tasks.music.bars import GridNotes, NoteCells

MAX_BARS = 512  # self-similarity looks at as many bars from the first with a note on; 17 minutes of 4/4 at 120 a minute
PHRASE_BARS = (2, 4, 8)
_PAIRS_AT_ONCE = 1 << 22
_LZMA = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 1 << 20}]


def repetition_statistics(notes: GridNotes, cells: NoteCells) -> dict[str, float]:
    """Return the figures of repetition by name; see the functions of this file.

    `bar_repetition` and `phrase_repetition_2` to `_8` are `phrase_repetition` over phrases of 1, 2, 4 and 8 bars.
    """
    common, size = common_notes(cells)
    return {
        "self_similarity": self_similarity(common, size),
        "bar_repetition": phrase_repetition(common, size, 1),
        **{f"phrase_repetition_{n}": phrase_repetition(common, size, n) for n in PHRASE_BARS},
        "compression_ratio": compression_ratio(notes),
    }


def common_notes(cells: NoteCells) -> tuple[IntArray, IntArray]:
    """Return how many notes each two bars share, [M, M], and how many different ones each bar has, [M].

    Bars are those from the first to the last in which a note begins, at most `MAX_BARS`.
    """
    bar, kind = cells
    if not len(bar):
        return np.zeros((0, 0), np.int64), np.zeros(0, np.int64)
    bar = bar - bar[0]
    kind, bar = kind[bar < MAX_BARS], bar[bar < MAX_BARS]
    n_bars = int(bar[-1]) + 1
    order = np.argsort(kind, kind="stable")
    bar_by_kind = bar[order]
    _, first, count = np.unique(kind[order], return_index=True, return_counts=True)
    begin, n_partners = np.repeat(first, count), np.repeat(count, count)
    common = np.zeros(n_bars * n_bars, np.int64)
    for low, high in _blocks(n_partners):
        partners, total = n_partners[low:high], int(n_partners[low:high].sum())
        steps = np.arange(total) - np.repeat(np.cumsum(partners) - partners, partners)
        other = bar_by_kind[np.repeat(begin[low:high], partners) + steps]
        common += np.bincount(np.repeat(bar_by_kind[low:high], partners) * n_bars + other, minlength=n_bars * n_bars)
    return common.reshape(n_bars, n_bars), np.bincount(bar, minlength=n_bars)


def self_similarity(common: IntArray, size: IntArray) -> float:
    """Return the likeness of two bars, |A ∩ B| / |A ∪ B|, averaged over all pairs that hold notes; 0-1.

    Args:
        common, size: as from `common_notes`.
    """
    union = size[:, None] + size - common
    is_pair = np.triu(union > 0, k=1)
    return float(np.mean(common[is_pair] / union[is_pair])) if is_pair.any() else 0.0


def phrase_repetition(common: IntArray, size: IntArray, n_bars: int) -> float:
    """Return how well a phrase comes again elsewhere in the piece, averaged over all phrases that hold notes; 0-1.

    A phrase is `n_bars` bars in a row, beginning at any bar i. Its likeness to the phrase at j is the number of notes
    that bars i + k and j + k share over the number of those in either, both summed over k; it counts for the most
    alike phrase that does not overlap it, 0 where there is none. So 1 means that every phrase returns note by note.

    Args:
        common, size: as from `common_notes`.
    """
    n_phrases = len(size) - n_bars + 1
    if n_phrases <= n_bars:
        return 0.0
    shared = np.zeros((n_phrases, n_phrases), np.int64)
    held = np.zeros(n_phrases, np.int64)
    for k in range(n_bars):
        shared += common[k : k + n_phrases, k : k + n_phrases]
        held += size[k : k + n_phrases]
    place = np.arange(n_phrases)
    union = held[:, None] + held - shared
    is_apart = np.abs(place[:, None] - place) >= n_bars
    likeness = np.divide(shared, union, out=np.zeros(shared.shape), where=is_apart & (union > 0))
    return float(np.mean(likeness.max(axis=1)[held > 0]))


def compression_ratio(notes: GridNotes) -> float:
    """Return how much smaller LZMA makes the piece: bytes before / bytes after; about 0.4 for one note, 0 for none.

    The piece is written as three bytes a note: positions since the note before, pitch with 128 added for drums, and
    duration in positions; numbers over 255 count as 255. A cheap cousin of the
    compression ratio of Text2midi (Bhandari et al. 2025), which finds transposed repeats too, so values do not compare.
    """
    if not len(notes.bar):
        return 0.0
    raw = symbol_string(notes)
    return len(raw) / len(lzma.compress(raw, lzma.FORMAT_RAW, filters=_LZMA))


def symbol_string(notes: GridNotes) -> bytes:
    """Return the three bytes of each note that `compression_ratio` describes."""
    lines = notes.lines
    onset = lines.begin(notes.bar) // lines.position_units + notes.position
    columns = np.stack([np.diff(onset, prepend=onset[0]), notes.symbol, notes.duration], axis=1)
    return np.clip(columns, 0, 255).astype(np.uint8).tobytes()


def _blocks(sizes: IntArray) -> list[tuple[int, int]]:
    """Cut rows into runs of about `_PAIRS_AT_ONCE` pairs."""
    block = np.cumsum(sizes) // _PAIRS_AT_ONCE
    borders = [0, *(np.flatnonzero(np.diff(block)) + 1).tolist(), len(sizes)]
    return [(low, high) for low, high in pairwise(borders) if high > low]
