"""Array types of the music package, and runs of values laid end to end."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
ByteArray = NDArray[np.uint8]
TrackArray = NDArray[np.uint16]
BoolArray = NDArray[np.bool_]


def offsets_of(lengths: Sequence[int] | IntArray) -> IntArray:
    """Return the borders of runs of these lengths: int64[len + 1], starting with 0."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def spread_ranges(first: IntArray, last: IntArray) -> tuple[IntArray, IntArray]:
    """Return all places of ranges `first` to `last` (excluded) end to end: the range of each, and the place itself."""
    offsets = offsets_of(last - first)
    row = np.repeat(np.arange(len(first)), last - first)
    return row, np.arange(len(row)) - (offsets[:-1] - first)[row]
