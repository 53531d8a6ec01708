"""The listing of one container (folder, archive, pack): a row for each MIDI file with its place in the container."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from tasks.config.source_limits import SourceLimits
from tasks.storage.file_names import one_line

# Storage of a row's bytes. FILE: a file below the container, which is a folder. SLICE, DEFLATE: a range of the
# container's bytes, plain or deflated.
FILE, SLICE, DEFLATE, UNREAD = range(4)

LISTING_SCHEMA = pa.schema(
    {
        "member": pa.binary(),  # name within the container, as stored; empty: the container itself
        "n_bytes": pa.int64(),
        "content_hash": pa.binary(32),
        "reason": pa.string(),
        "detail": pa.string(),
        "kind": pa.int8(),
        "offset": pa.int64(),
        "stored_bytes": pa.int64(),
    }
)
_FACTORS = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


@dataclass(frozen=True, slots=True)
class ScanSettings:
    """Settings of one scan for all its sources."""

    cache: Path
    limits: SourceLimits
    rehash: bool  # open every file again, also those in the cache
    n_threads: int
    on_files: Callable[[int], object]  # called with the number of further files done


@dataclass(slots=True)
class Part:
    """A listing with its container, and the names of its rows in the source."""

    table: pa.Table  # LISTING_SCHEMA
    stamp: int | pa.Array  # of the container, or of each file
    container: bytes  # absolute path of a local file or folder
    folder: str = ""  # prefix of the members' paths
    label: str = ""  # path of the rows without a member
    only_path: str = ""  # of a part with one row, if its member has another name
    n_other_files: int = 0
    n_homes: int = 0  # of Orchestrion, left out
    notes: list[str] = field(default_factory=list)  # sentences for the log
    extra: bytes | None = None  # the wanted file that is not MIDI, such as a table of splits


class Rows:
    """Rows of a listing, gathered in plain lists."""

    def __init__(self) -> None:
        self.columns: dict[str, list] = {name: [] for name in LISTING_SCHEMA.names}

    def add(
        self, member: bytes, n_bytes: int, content_hash: bytes | None, kind: int, offset: int, stored_bytes: int
    ) -> None:
        self._append(member, n_bytes, content_hash, "", "", kind, offset, stored_bytes)

    def refuse(self, member: bytes, n_bytes: int, reason: str, detail: str) -> None:
        self._append(member, n_bytes, None, reason, one_line(detail), UNREAD, 0, 0)

    def _append(self, *values: object) -> None:
        for column, value in zip(self.columns.values(), values, strict=True):
            column.append(value)

    def __len__(self) -> int:
        return len(self.columns["member"])

    def batch(self) -> pa.RecordBatch:
        """Return the rows and start with none."""
        arrays = [pa.array(self.columns[column.name], column.type) for column in LISTING_SCHEMA]
        for column in self.columns.values():
            column.clear()
        return pa.RecordBatch.from_arrays(arrays, schema=LISTING_SCHEMA)


def stamp_of(status: os.stat_result) -> int:
    """Return a number that changes with a file's size or times."""
    times = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return stamp_column([np.array([value]) for value in times])[0].as_py()


def stamp_column(columns: Sequence[np.ndarray]) -> pa.Array:
    """Return `stamp_of` for columns of size, mtime and ctime."""
    mixed = np.zeros(len(columns[0]), np.uint64)
    for values, factor in zip(columns, _FACTORS, strict=True):
        mixed = (mixed ^ values.view(np.uint64)) * np.uint64(factor)
        mixed ^= mixed >> np.uint64(31)
    return pa.array((mixed >> np.uint64(1)).view(np.int64))


def hash_column(digests: np.ndarray, valid: np.ndarray) -> pa.Array:
    """Return rows of 32 bytes as a column; those that are not valid become null."""
    bits = None if valid.all() else pa.array(valid).buffers()[1]
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), len(digests), [bits, pa.py_buffer(digests)])
