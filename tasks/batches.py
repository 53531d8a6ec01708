"""Training batches as a pure function of (dataset version, seed, step): resuming at step k needs k and nothing else."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tasks.shards import flat_values, read_table


class TokenStore:
    """All token rows of one split, flat in memory.

    Args:
        shards: the split's files, in the manifest's order; that order is part of what a batch depends on.
    """

    def __init__(self, shards: list[Path]) -> None:
        parts = [flat_values(read_table(path, ["tokens"]), "tokens") for path in shards]
        lengths = np.concatenate([np.diff(offsets) for offsets, _ in parts])
        self.tokens = np.concatenate([values for _, values in parts])  # uint16
        self.offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)

    @property
    def n_rows(self) -> int:
        return len(self.offsets) - 1

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)

    def batch(self, seed: int, step: int, batch_size: int, window_tokens: int, pad_id: int = 0) -> np.ndarray:
        """Return int64[batch_size, window_tokens + 1]: inputs and the targets one further.

        Rows are drawn in proportion to their length, so that each token is equally likely; within a row the window is
        drawn so that the first and the last one have the chance of half a window's starts, since pieces begin and end
        there. Short rows are padded at the end. `<start>` and `<end>` occur only where a piece starts or ends.
        """
        rng = np.random.Generator(np.random.Philox(key=[seed, step]))
        rows = np.searchsorted(self.offsets, rng.integers(0, self.n_tokens, batch_size), side="right") - 1
        first, last = self.offsets[rows], self.offsets[rows + 1]
        n_windows = np.maximum(last - first - window_tokens - 1, 0)
        margin = window_tokens // 2
        drawn = rng.integers(-margin, n_windows + margin + 1)
        starts = first + np.clip(drawn, 0, n_windows)
        return self._windows(starts, last, window_tokens, pad_id)

    def sequential_windows(
        self, window_tokens: int, stride: int, batch_size: int, pad_id: int = 0
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (tokens, mask) batches that cover every token of every row exactly once as a target.

        Windows of one row advance by `stride`, so that a counted token has at least `window_tokens - stride` tokens
        before it, or all there are.

        Returns:
            tokens int64[b, window_tokens + 1], and a mask of the same shape that is True where a token counts.
        """
        starts, ends, counted_from = [], [], []
        for row in range(self.n_rows):
            first, last = int(self.offsets[row]), int(self.offsets[row + 1])
            counted = first + 1  # <start> is given, not predicted
            start = first
            while True:
                starts.append(start)
                ends.append(last)
                counted_from.append(counted)
                counted = start + window_tokens + 1
                if counted >= last:
                    break
                start += stride
        for low in range(0, len(starts), batch_size):
            part = slice(low, low + batch_size)
            at = np.array(starts[part])
            tokens = self._windows(at, np.array(ends[part]), window_tokens, pad_id)
            position = at[:, None] + np.arange(window_tokens + 1)
            yield tokens, (position >= np.array(counted_from[part])[:, None]) & (tokens != pad_id)

    def _windows(self, starts: np.ndarray, ends: np.ndarray, window_tokens: int, pad_id: int) -> np.ndarray:
        position = starts[:, None] + np.arange(window_tokens + 1)
        inside = position < ends[:, None]
        return np.where(inside, self.tokens[np.minimum(position, self.n_tokens - 1)].astype(np.int64), pad_id)
