"""Choices for one piece: a counter-based generator keyed by (seed, piece index), so no piece depends on another."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


class Dice:
    """Random choices of one piece; built on plain uniform floats, the part of numpy's streams that stays the same."""

    def __init__(self, seed: int, piece_index: int) -> None:
        key = np.array([seed, piece_index], dtype=np.uint64)
        self._generator = np.random.Generator(np.random.Philox(key=key))

    def floats(self, n: int) -> np.ndarray:
        """Return n uniform floats in [0, 1)."""
        return self._generator.random(n)

    def chance(self, share: float) -> bool:
        """Return True in `share` (0-1) of the cases."""
        return float(self._generator.random()) < share

    def between(self, low: float, high: float) -> float:
        """Return a uniform float in [low, high)."""
        return low + (high - low) * float(self._generator.random())

    def whole(self, low: int, high: int) -> int:
        """Return a uniform integer from low to high, both included."""
        return low + int((high - low + 1) * float(self._generator.random()))

    def pick(self, options: Sequence[T], weights: Sequence[float] | None = None) -> T:
        """Return one of the options, each as likely as its weight (not normalised; equal when None)."""
        if weights is None:
            return options[self.whole(0, len(options) - 1)]
        bounds = np.cumsum(weights)
        place = int(np.searchsorted(bounds, bounds[-1] * float(self._generator.random()), side="right"))
        return options[min(place, len(options) - 1)]
