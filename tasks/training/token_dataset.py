"""Training batches as a pure function of (dataset version, seed, step), so that step k can be resumed from k."""

import functools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from tasks.dataset.token_cache import flat_tokens
from tasks.music.arrays import BoolArray, IntArray, offsets_of

WindowKind = Literal["random", "whole", "start", "end", "packed"]

_EPOCHS = 1 << 63  # keys of what is drawn for an epoch begin here, far from those of steps


class TokenDataset:
    """All token rows of one split, end to end.

    Args:
        shards: the split's files, in the manifest's order; that order is part of what a batch depends on.
        folder: where the rows lie flat in a file that is mapped into memory, made if need be; see `token_cache`.
            None: they are read into memory.
    Raises:
        ValueError: the shards hold no token.
    """

    def __init__(self, shards: Sequence[Path], folder: Path | None = None) -> None:
        flat = flat_tokens(shards, folder)
        if not len(flat.tokens):
            raise ValueError(f"no token in {len(shards)} shards ({', '.join(str(path) for path in shards[:3])})")
        self.tokens, self.offsets = flat.tokens, flat.offsets  # uint16, int64
        self._epoch = functools.lru_cache(maxsize=2)(self._draw_epoch)

    @property
    def n_rows(self) -> int:
        return len(self.offsets) - 1

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)

    @property
    def longest_row(self) -> int:
        """Tokens of the longest row, the first of which is given and not predicted."""
        return int(np.diff(self.offsets).max()) - 1

    def contains(self, token: int) -> bool:
        """Return whether any row holds an id; it reads the whole split."""
        return bool((self.tokens == token).any())

    def steps_per_epoch(self, batch_size: int, seq_len: int, kind: WindowKind) -> int:
        """Return the steps in which as many rows, or for windows of parts of rows tokens, are seen as the split has."""
        n_windows = self.n_rows if kind == "whole" else -(-self.n_tokens // seq_len)
        return -(-n_windows // batch_size)

    def n_out_of_reach(self, seq_len: int, kind: WindowKind) -> int:
        """Return the number of tokens that no window of a kind ever holds."""
        if kind in ("random", "packed"):
            return 0
        return int(np.maximum(np.diff(self.offsets) - seq_len - 1, 0).sum())

    def batch(
        self,
        seed: int,
        step: int,
        batch_size: int,
        seq_len: int,
        pad_id: int = 0,
        kind: WindowKind = "random",
        share: slice = slice(None),
    ) -> IntArray:
        """Return int64[batch_size, seq_len + 1]: inputs and the targets one further.

        Short windows are padded at the end. `<start>` and `<end>` occur only where a piece starts or ends.

        Args:
            step: counted from 1, so that the epochs of `whole` and `packed` begin with it.
            kind: how windows are taken from rows.
                random: rows are drawn in proportion to their length, so that each token is equally likely; within a
                    row the window is drawn so that the first and the last one have the chance of half a window's
                    starts, since pieces begin and end there.
                whole: from a row's start, every row once in each epoch; what does not fit into a window is cut off.
                start, end: a row's first or last window; rows are drawn evenly.
                packed: whole rows in sequence, in an order drawn for each epoch. The rows of an epoch form a ring, cut
                    every `seq_len`: there is no pad, every token is a target, and the last window runs on into the
                    first row. The windows of a batch lie far apart in the ring.
            share: the rows of the batch to build and return; the others are drawn, but not built.
        Raises:
            ValueError: another kind.
        """
        if kind == "packed":
            return self._packed(seed, step, batch_size, seq_len, share)
        starts, ends = self._places(seed, step, batch_size, seq_len, kind)
        return self._windows(starts[share], ends[share], seq_len, pad_id)

    def lengths(self, seed: int, step: int, batch_size: int, seq_len: int, kind: WindowKind) -> IntArray:
        """Return how many tokens of a row each window of a `batch` holds, int64[batch_size]; the others are pads."""
        if kind == "packed":
            return np.full(batch_size, seq_len + 1)
        starts, ends = self._places(seed, step, batch_size, seq_len, kind)
        return np.minimum(ends - starts, seq_len + 1)

    def _places(
        self, seed: int, step: int, batch_size: int, seq_len: int, kind: WindowKind
    ) -> tuple[IntArray, IntArray]:
        """Return where the windows of a batch begin and where their rows end."""
        rng = _generator(seed, step)
        if kind == "random":
            return self._random_windows(rng, batch_size, seq_len)
        if kind not in ("whole", "start", "end"):
            raise ValueError(f"windows of kind {kind!r}; known: {', '.join(get_args(WindowKind))}")
        is_whole = kind == "whole"
        rows = self._rows_in_turn(seed, step, batch_size) if is_whole else rng.integers(0, self.n_rows, batch_size)
        starts, ends = self.offsets[rows], self.offsets[rows + 1]
        return (np.maximum(starts, ends - seq_len - 1) if kind == "end" else starts), ends

    def _packed(self, seed: int, step: int, batch_size: int, seq_len: int, share: slice) -> IntArray:
        n_windows = -(-self.n_tokens // seq_len)
        epoch, turn = _epochs(step, batch_size, n_windows)
        epoch, begin = epoch[share], (turn * _coprime_stride(n_windows) % n_windows * seq_len)[share]
        return np.concatenate(
            [
                self._ring_windows(*self._epoch(seed, number), begin[epoch == number], seq_len + 1)
                for number in np.unique(epoch).tolist()
            ]
        )

    def sequential_windows(
        self, seq_len: int, stride: int, batch_size: int, pad_id: int = 0
    ) -> Iterator[tuple[IntArray, BoolArray]]:
        """Yield (tokens, mask) batches that cover every token of every row exactly once as a target.

        Windows of one row advance by `stride`, so that a counted token has at least `seq_len - stride` tokens
        before it, or all there are.

        Returns:
            tokens int64[b, seq_len + 1], and a mask of the same shape that is True where a token counts.
        Raises:
            ValueError: a stride outside 1 to `seq_len`.
        """
        if not 1 <= stride <= seq_len:
            raise ValueError(f"stride={stride} outside 1-{seq_len}, the window's tokens")
        borders = self._window_borders(seq_len, stride)
        for low in range(0, int(borders[-1]), batch_size):
            window = np.arange(low, min(low + batch_size, int(borders[-1])))
            row = np.searchsorted(borders, window, side="right") - 1
            turn = window - borders[row]
            starts = self.offsets[row] + turn * stride
            # The first token of a row is given, not predicted; later windows count what the one before did not reach.
            counted_from = np.where(turn > 0, starts - stride + seq_len + 1, starts + 1)
            position = starts[:, None] + np.arange(seq_len + 1)
            counts = (position >= counted_from[:, None]) & (position < self.offsets[row + 1][:, None])
            yield self._windows(starts, self.offsets[row + 1], seq_len, pad_id), counts

    def n_sequential_windows(self, seq_len: int, stride: int) -> int:
        """Return the number of windows that `sequential_windows` yields."""
        return int(self._window_borders(seq_len, stride)[-1])

    def rows_of_windows(self, seq_len: int, stride: int) -> IntArray:
        """Return the row of each window that `sequential_windows` yields."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self._window_borders(seq_len, stride)))

    def _window_borders(self, seq_len: int, stride: int) -> IntArray:
        """Return where each row's windows begin among all, and their number."""
        beyond_first = np.maximum(np.diff(self.offsets) - seq_len - 1, 0)
        return offsets_of(1 + -(-beyond_first // stride))

    def _random_windows(self, rng: np.random.Generator, batch_size: int, seq_len: int) -> tuple[IntArray, IntArray]:
        rows = np.searchsorted(self.offsets, rng.integers(0, self.n_tokens, batch_size), side="right") - 1
        first, last = self.offsets[rows], self.offsets[rows + 1]
        n_windows = np.maximum(last - first - seq_len - 1, 0)
        margin = seq_len // 2
        drawn = rng.integers(-margin, n_windows + margin + 1)
        return first + np.clip(drawn, 0, n_windows), last

    def _rows_in_turn(self, seed: int, step: int, batch_size: int) -> IntArray:
        epoch, turn = _epochs(step, batch_size, self.n_rows)
        return np.concatenate(
            [self._epoch(seed, number)[0][turn[epoch == number]] for number in np.unique(epoch).tolist()]
        )

    def _draw_epoch(self, seed: int, epoch: int) -> tuple[IntArray, IntArray]:
        """Return all rows in the epoch's order, int64[rows], and where they begin and end when laid end to end."""
        order = _generator(seed, _EPOCHS + epoch).permutation(self.n_rows)
        return order, offsets_of(np.diff(self.offsets)[order])

    def _ring_windows(self, order: IntArray, borders: IntArray, begin: IntArray, length: int) -> IntArray:
        """Return the windows of a ring of rows that begin at these places."""
        first = np.searchsorted(borders, begin, side="right") - 1
        rounds, place = np.divmod(begin + length - 1, self.n_tokens)
        last = rounds * self.n_rows + np.searchsorted(borders, place, side="right") - 1
        n_parts = last - first + 1  # a part is what one window holds of one row
        window = np.repeat(np.arange(len(begin)), n_parts)
        number = np.arange(len(window)) - (np.cumsum(n_parts) - n_parts)[window]
        rounds, turn = np.divmod(first[window] + number, self.n_rows)
        row_begins = borders[turn] + rounds * self.n_tokens
        part_begins = np.maximum(row_begins, begin[window])
        part_ends = np.minimum(row_begins + borders[turn + 1] - borders[turn], begin[window] + length)
        lengths = part_ends - part_begins
        source = self.offsets[order[turn]] + part_begins - row_begins
        position = np.arange(len(begin) * length) + np.repeat(source - (np.cumsum(lengths) - lengths), lengths)
        return self.tokens[position].astype(np.int64).reshape(-1, length)

    def _windows(self, starts: IntArray, ends: IntArray, seq_len: int, pad_id: int) -> IntArray:
        """Return the tokens from `starts` on, and pads from `ends` on."""
        length = seq_len + 1
        if self.n_tokens < length:
            windows = np.empty((len(starts), length), np.int64)
        else:  # whole windows are copied five times as fast as single tokens; short ones are set right below
            wide = sliding_window_view(self.tokens, length)
            windows = wide[np.minimum(starts, self.n_tokens - length)].astype(np.int64)
        short = np.flatnonzero(ends - starts < length)
        if len(short):
            position = starts[short, None] + np.arange(length)
            tokens = self.tokens.take(position, mode="clip").astype(np.int64)
            windows[short] = np.where(position < ends[short, None], tokens, pad_id)
        return windows


def _generator(seed: int, number: int) -> np.random.Generator:
    key = np.array([seed, number], np.uint64)  # a list with a number from 2**63 up would become floats
    return np.random.Generator(np.random.Philox(key=key))


def _epochs(step: int, batch_size: int, n_per_epoch: int) -> tuple[IntArray, IntArray]:
    """Return the epoch of each item of a step's batch, and its turn there; items are numbered through all steps."""
    return np.divmod((step - 1) * batch_size + np.arange(batch_size), n_per_epoch)


def _coprime_stride(n: int) -> int:
    """Return a stride that visits all of 0 to n - 1: the golden section of n, or the next number coprime to n."""
    stride = max(1, round(n * (math.sqrt(5) - 1) / 2))
    while math.gcd(stride, n) > 1:
        stride += 1
    return stride
