"""Mapped files: 4,096 bytes of sealed JSON, then arrays end to end, little-endian.

Zeros pad each array to a multiple of its item size.
"""

import json
import logging
import mmap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tasks.errors import DamagedFile
from tasks.storage.files import whole_file
from tasks.storage.integrity import OTHER_BYTES, read_header, sealed
from tasks.storage.strict_json import Shape

logger = logging.getLogger(__name__)

HEADER_BYTES = 4096
Found = TypeVar("Found")


@contextmanager
def mapped_file(path: Path) -> Iterator[tuple[IO[bytes], dict[str, Any]]]:
    """Open a mapped file for writing after its header, which is written last; remove what a killed process left."""
    for left_by_a_kill in path.parent.glob(f".{path.name}.*.tmp"):
        left_by_a_kill.unlink()
    header: dict[str, Any] = {}
    with whole_file(path) as handle:
        handle.seek(HEADER_BYTES)
        yield handle, header
        handle.seek(0)
        handle.write(json.dumps(sealed(header)).encode().ljust(HEADER_BYTES - 1) + b"\n")


def map_arrays(
    path: Path,
    shape: Shape,
    expected: Mapping[str, Any],
    layout: Callable[[Mapping[str, Any]], Sequence[tuple[str, int]]],
    digest: tuple[str, Callable[[mmap.mmap], Any]] | None,
    access: int = mmap.ACCESS_READ,
) -> list[NDArray[Any]]:
    """Return the arrays of a mapped file, or raise DamagedFile if it has other bytes than were written.

    Args:
        shape: of the header.
        expected: values that the header must have.
        layout: returns the type and length of each array by the header.
        digest: key of the header, and the function that computes its value from the bytes after the header; None skips
            the check.
    """
    with path.open("rb") as handle:
        header = read_header(handle, path, shape)
        arrays, end = [], HEADER_BYTES
        for kind, length in layout(header):
            start = end + -end % np.dtype(kind).itemsize
            arrays.append((kind, length, start))
            end = start + length * np.dtype(kind).itemsize
        is_meant = all(header[key] == value for key, value in expected.items())
        if not is_meant or handle.seek(0, 2) != end:
            raise DamagedFile(f"{path} is damaged: it holds something else or {handle.tell()} bytes, not {end}")
        mapped = mmap.mmap(handle.fileno(), 0, access=access)
    if digest and digest[1](mapped) != header[digest[0]]:
        raise DamagedFile(f"{path} is damaged: {OTHER_BYTES}")
    mapped.madvise(mmap.MADV_RANDOM)  # places on a cold disk come 5 times faster than with read-ahead
    return [np.frombuffer(mapped, *array) for array in arrays]


def unless_damaged(open_file: Callable[[], Found]) -> Found | None:
    """Return the result of `open_file`, or None if the file is missing or damaged; damage is logged."""
    try:
        return open_file()
    except FileNotFoundError:
        return None
    except DamagedFile as error:
        logger.warning("%s; it is made again", error)
        return None
