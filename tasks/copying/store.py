"""The file of the index of copies: lines and seeds of all training pieces, memory-mapped.

The file is beside a version's manifest and can be made again from the song shards. It holds, little-endian:

    4,096 bytes     JSON with a seal: revision, version, numbers of notes, seeds, pieces; checksum of all that follows
    onset           float32, seconds of each note of the lines of all training pieces, end to end
    pitch           uint8; zeros up to a multiple of 8 bytes
    seeds           uint64, rising: hash of ten intervals << 32 | place of the first note
    offsets         int64, pieces + 1 of them: where the line of each piece begins
    pieces          uint64, the piece ids as numbers
"""

import itertools
import mmap
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tasks.music.arrays import IntArray
from tasks.storage.mapped import HEADER_BYTES, map_arrays, mapped_file, unless_damaged

if TYPE_CHECKING:
    from tasks.music.similarity.shared_runs import Lines

REVISION = 1  # of the layout and of what a run is: part of the file's name

_HEADER = {"version": str} | dict.fromkeys(("revision", "n_notes", "n_seeds", "n_pieces", "crc32"), int)
_SEEDS_AT_ONCE = 1 << 24  # 128 MiB
_CHUNK = 1 << 24  # bytes whose checksum is taken at once


@dataclass(frozen=True, slots=True, eq=False)
class IndexedLines:
    """Lines of P training pieces, N notes in all, and their S seeds; see `tasks.music.similarity.shared_runs`."""

    onset: NDArray[np.float32]  # [N] seconds
    pitch: NDArray[np.uint8]  # [N]
    seeds: NDArray[np.uint64]  # [S]
    offsets: IntArray  # [P + 1]
    pieces: NDArray[np.uint64]  # [P]


def index_path(folder: Path) -> Path:
    """Return the path of the index in a version's folder."""
    return folder / f"copying-{REVISION}.index"


def write_index(path: Path, version: str, parts: Iterable[tuple[NDArray[np.uint64], "Lines"]]) -> None:
    """Write an index whole from ids and lines, some pieces at a time.

    Memory holds one byte for each note, and all data of about 16 million notes.
    """
    with mapped_file(path) as (handle, header):
        header.update({"revision": REVISION, "version": version} | _write_arrays(handle, parts))


def _write_arrays(handle: IO[bytes], parts: Iterable[tuple[NDArray[np.uint64], "Lines"]]) -> dict[str, int]:
    """Write the arrays; return the numbers and the checksum for the header."""
    from tasks.music.similarity.shared_runs import seeds_between

    out = _Checked(handle)
    pitches, sizes, ids = [np.zeros(0, np.uint8)], [np.zeros(1, np.int64)], [np.zeros(0, np.uint64)]
    for names, lines in parts:
        out.write(lines.onset.astype("<f4", copy=False))
        pitches.append(lines.pitch)
        sizes.append(np.diff(lines.offsets))
        ids.append(names)
    pitch, offsets = np.concatenate(pitches), np.cumsum(np.concatenate(sizes))
    out.write(pitch)
    out.write(np.zeros(-5 * len(pitch) % 8, np.uint8))
    n_passes = len(pitch) // (4 * _SEEDS_AT_ONCE) + 1  # a seed at every fourth note, their hashes spread evenly
    borders = [k * (1 << 32) // n_passes for k in range(n_passes + 1)]
    n_seeds = 0
    for low, high in itertools.pairwise(borders):
        seeds = seeds_between(offsets, pitch, low, high)
        out.write(seeds.astype("<u8", copy=False))
        n_seeds += len(seeds)
    out.write(offsets.astype("<i8", copy=False))
    out.write(np.concatenate(ids).astype("<u8", copy=False))
    return {"n_notes": len(pitch), "n_seeds": n_seeds, "n_pieces": len(offsets) - 1, "crc32": out.crc32}


class _Checked:
    """Writes arrays and keeps the checksum of all of them."""

    def __init__(self, handle: IO[bytes]) -> None:
        self.handle, self.crc32 = handle, 0

    def write(self, values: NDArray[Any]) -> None:
        self.handle.write(values.data)
        self.crc32 = zlib.crc32(values.data, self.crc32)


def map_index(path: Path, trusting: bool = False) -> IndexedLines | None:
    """Return the arrays of an index, or None if it is missing or damaged; damage is logged.

    Args:
        trusting: check the size of the file but not its bytes.
    """

    def layout(header: Mapping[str, Any]) -> list[tuple[str, int]]:
        n_notes, n_seeds, n_pieces = (header[name] for name in ("n_notes", "n_seeds", "n_pieces"))
        return [("<f4", n_notes), ("u1", n_notes), ("<u8", n_seeds), ("<i8", n_pieces + 1), ("<u8", n_pieces)]

    expected = {"revision": REVISION, "version": path.parent.name}
    digest = None if trusting else ("crc32", _crc32)
    # Copy-on-write, because the compiled code takes only writable arrays.
    return unless_damaged(lambda: IndexedLines(*map_arrays(path, _HEADER, expected, layout, digest, mmap.ACCESS_COPY)))


def _crc32(mapped: mmap.mmap) -> int:
    value = 0
    with memoryview(mapped) as view:
        for place in range(HEADER_BYTES, len(view), _CHUNK):
            value = zlib.crc32(view[place : place + _CHUNK], value)
    return value
