"""The file of the index of copies: lines and seeds of all training pieces, memory-mapped.

It lies beside a version's manifest and can be made again from the song shards at any time. It holds, little-endian:

    4,096 bytes     JSON with a seal: revision, version, numbers of notes, seeds, pieces; checksum of all that follows
    onset           float32, seconds of each note of the lines of all training pieces, end to end
    pitch           uint8; zeros up to a multiple of 8 bytes
    seeds           uint64, rising: hash of ten intervals << 32 | place of the first note
    offsets         int64, pieces + 1 of them: where the line of each piece begins
    pieces          uint64, the piece ids as numbers
"""

import itertools
import json
import logging
import mmap
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tasks.errors import DamagedFile
from tasks.music.arrays import IntArray
from tasks.storage.files import whole_file
from tasks.storage.integrity import OTHER_BYTES, read_header, sealed

if TYPE_CHECKING:
    from tasks.music.similarity.shared_runs import Lines

logger = logging.getLogger(__name__)

REVISION = 1  # of the layout and of what a run is: part of the file's name

_HEADER_BYTES = 4096
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
    """Return where the index of a version is, or would be, by the version's folder."""
    return folder / f"copying-{REVISION}.index"


def write_index(path: Path, version: str, parts: Iterable[tuple[NDArray[np.uint64], "Lines"]]) -> None:
    """Write an index whole. Besides the pitches, of a byte each, 16 million notes or so are in memory at a time.

    Args:
        parts: ids and lines of some pieces at a time.
    """
    for left_by_a_kill in path.parent.glob(f".{path.name}.*.tmp"):
        left_by_a_kill.unlink()
    with whole_file(path) as handle:
        handle.seek(_HEADER_BYTES)
        header = {"revision": REVISION, "version": version} | _write_arrays(handle, parts)
        handle.seek(0)
        handle.write(json.dumps(sealed(header)).encode().ljust(_HEADER_BYTES - 1) + b"\n")


def _write_arrays(handle: IO[bytes], parts: Iterable[tuple[NDArray[np.uint64], "Lines"]]) -> dict[str, int]:
    """Write all that follows the header; return the numbers and the checksum that belong into it."""
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
    """Return the arrays of an index, or None if it is missing or not what was written; the latter is logged.

    Args:
        trusting: look at its size alone, not at all of its bytes.
    """
    try:
        with path.open("rb") as handle:
            header = read_header(handle, path, _HEADER)
            n_notes, n_seeds, n_pieces = (header[name] for name in ("n_notes", "n_seeds", "n_pieces"))
            seeds_at = _HEADER_BYTES + -(-5 * n_notes // 8) * 8
            offsets_at = seeds_at + 8 * n_seeds
            pieces_at = offsets_at + 8 * (n_pieces + 1)
            is_ours = header["revision"] == REVISION and header["version"] == path.parent.name
            if not is_ours or handle.seek(0, 2) != pieces_at + 8 * n_pieces:
                raise DamagedFile(f"{path} is damaged: it is the index of something else")
            # Copied when written to, which never happens: the compiled code knows only arrays that could be.
            mapped = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY)
        if not trusting and _crc32(mapped) != header["crc32"]:
            raise DamagedFile(f"{path} is damaged: {OTHER_BYTES}")
    except FileNotFoundError:
        return None
    except DamagedFile as error:
        logger.warning("%s; it is made again", error)
        return None
    return IndexedLines(
        onset=np.frombuffer(mapped, "<f4", n_notes, _HEADER_BYTES),
        pitch=np.frombuffer(mapped, "u1", n_notes, _HEADER_BYTES + 4 * n_notes),
        seeds=np.frombuffer(mapped, "<u8", n_seeds, seeds_at),
        offsets=np.frombuffer(mapped, "<i8", n_pieces + 1, offsets_at),
        pieces=np.frombuffer(mapped, "<u8", n_pieces, pieces_at),
    )


def _crc32(mapped: mmap.mmap) -> int:
    value = 0
    with memoryview(mapped) as view:
        for place in range(_HEADER_BYTES, len(view), _CHUNK):
            value = zlib.crc32(view[place : place + _CHUNK], value)
    return value
