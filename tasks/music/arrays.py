"""Array types of the music package, and offsets of runs."""

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
