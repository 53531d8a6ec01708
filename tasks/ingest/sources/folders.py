"""Content hashes of files on disk; files with unchanged size and times are not opened again."""

import hashlib
import os
import stat
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.errors import RejectReason
from tasks.ingest.sources.cache import RACY_NS, cache_key, load_batches, store_table
from tasks.ingest.sources.listing import FILE, LISTING_SCHEMA, Part, hash_column, stamp_column
from tasks.ingest.sources.names import is_companion
from tasks.ingest.sources.threads import cut, map_in_order
from tasks.ingest.sources.walk import TIMES, Found
from tasks.storage.file_names import printable

LARGE_FILE = 64 * 2**10  # bytes
ONE_READ = 8 * 2**20  # bytes; larger files are hashed piece by piece
CHUNK_FILES, CHUNK_BYTES = 512, 32 * 2**20


@dataclass(slots=True)
class _Hashed:
    """One chunk of files after reading, with size and times of the open file."""

    rows: np.ndarray  # positions in the listing
    digests: bytes
    times: np.ndarray  # TIMES x files, int64
    problems: dict[int, str]
    companions: list[int]


def hash_found(
    found: Found, container: bytes, source: bytes, cache: Path, n_threads: int, rehash: bool = False,
    on_files: Callable[[int], None] | None = None,
) -> Part:  # fmt: skip
    """Return the listing of a folder's files, each with its SHA-256 or the reason why it cannot be read.

    Args:
        found: the files, by names relative to `container`.
        source: absolute path of the folder, list or file of the user; key of the cache.
        cache: folder of the scan cache.
        rehash: open every file, also those in the cache.
        on_files: called with the number of further files done.
    """
    started_ns = time.time_ns()
    n = len(found.members)
    digests, known = np.zeros((n, 32), np.uint8), np.zeros(n, bool)
    where = cache / "folders" / f"{cache_key(source)}.parquet"
    cached = None if rehash else load_batches(where)
    n_remembered = -1
    if cached is not None:
        facts, n_remembered, batches = cached
        for batch in batches:
            _recall(found, batch, int(facts["started_ns"]), digests, known)
        for member in found.problems:  # never known, though its times of 0 may be equal
            known[bisect_left(found.members, member, key=_as_bytes)] = False
    n_cached = int(known.sum())
    if on_files and n_cached:
        on_files(n_cached)
    problems, companions = _hash_missing(found, container, np.flatnonzero(~known), digests, n_threads, on_files)
    valid = np.ones(n, bool)
    valid[[*problems, *companions]] = False
    hashes = hash_column(digests, valid)
    if n_cached < n or n_remembered != n:
        _remember(where, found, hashes, valid, started_ns)
    return _part(found, container, hashes, problems, companions)


def _recall(found: Found, batch: pa.RecordBatch, started_ns: int, digests: np.ndarray, known: np.ndarray) -> None:
    """Fill in the digests of unchanged files.

    Both lists of names are in order, so those of a batch lie between its first and its last.
    """
    names = batch["path"]
    begin = bisect_left(found.members, names[0].as_py(), key=_as_bytes)
    end = bisect_right(found.members, names[-1].as_py(), key=_as_bytes)
    present = found.members[begin:end]
    if present.equals(names):
        rows, places = np.arange(begin, end), np.arange(len(names))
    else:
        index = pc.index_in(present, value_set=names)
        rows = begin + np.flatnonzero(index.is_valid().to_numpy(zero_copy_only=False))
        places = index.drop_null().to_numpy()
    same = found.times["mtime_ns"][rows] < started_ns - RACY_NS
    for name in TIMES:
        same &= found.times[name][rows] == batch[name].to_numpy()[places]
    hashes = batch["content_hash"]
    stored = np.frombuffer(hashes.buffers()[1], np.uint8).reshape(-1, 32)[hashes.offset :]
    digests[rows[same]] = stored[places[same]]
    known[rows[same]] = True


def _as_bytes(name: pa.Scalar) -> bytes:
    return name.as_py()


def _hash_missing(
    found: Found, container: bytes, missing: np.ndarray, digests: np.ndarray, n_threads: int,
    on_files: Callable[[int], None] | None,
) -> tuple[dict[int, str], list[int]]:  # fmt: skip
    """Fill in the digests of the other files; return the problems of those that cannot be read, and the companions."""
    sizes = found.times["n_bytes"]
    problems: dict[int, str] = {}
    companions: list[int] = []

    def hash_chunk(rows: np.ndarray) -> _Hashed:
        names = found.members.take(pa.array(rows)).to_pylist()
        return _hash_files(container, names, rows, found.problems)

    chunks: Any = cut(missing, sizes[missing].tolist(), CHUNK_FILES, CHUNK_BYTES)  # type: ignore[arg-type]
    for hashed in map_in_order(hash_chunk, chunks, n_threads, lambda rows: sizes[rows].mean() > LARGE_FILE):
        digests[hashed.rows] = np.frombuffer(hashed.digests, np.uint8).reshape(-1, 32)
        for name, column in zip(TIMES, hashed.times, strict=True):
            found.times[name][hashed.rows] = column
        problems |= hashed.problems
        companions += hashed.companions
        if on_files:
            on_files(len(hashed.rows))
    return problems, companions


def _hash_files(container: bytes, names: list[bytes], rows: np.ndarray, refused: dict[bytes, str]) -> _Hashed:
    digests: list[bytes] = []
    times: list[tuple[int, int, int, int]] = []
    problems: dict[int, str] = {}
    companions: list[int] = []
    join = os.path.join
    for row, name in zip(rows.tolist(), names, strict=True):
        try:
            if name in refused:
                raise ValueError(refused[name])
            digest, n_bytes, status = hash_file(join(container, name))
        except (OSError, ValueError, IsCompanion) as error:
            if isinstance(error, IsCompanion):
                companions.append(row)
            else:
                problems[row] = f"{error.strerror} ({printable(name)})" if isinstance(error, OSError) else str(error)
            digests.append(bytes(32))
            times.append((0, 0, 0, 0))
            continue
        digests.append(digest)
        times.append((n_bytes, status.st_mtime_ns, status.st_ctime_ns, status.st_ino & (2**63 - 1)))
    return _Hashed(rows, b"".join(digests), np.array(times, np.int64).reshape(-1, 4).T, problems, companions)


class IsCompanion(Exception):
    """A file that macOS puts beside another, known by its first bytes."""


def hash_file(path: bytes) -> tuple[bytes, int, os.stat_result]:
    """Return a file's SHA-256, the number of bytes hashed, and its status before the reading.

    A change during the reading changes the times after that status, so the next scan sees it.

    Raises:
        ValueError: it is no regular file.
        IsCompanion: it is no song in spite of its name.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # NONBLOCK: it may be a pipe by now
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"no regular file but a device, pipe or socket ({printable(path)})")
        data = os.read(descriptor, min(status.st_size + 1, ONE_READ))
        if is_companion(b"", data):
            raise IsCompanion
        if len(data) == status.st_size:
            return hashlib.sha256(data).digest(), len(data), status
        state, n_bytes = hashlib.sha256(data), len(data)
        while data := os.read(descriptor, 2**20):
            state.update(data)
            n_bytes += len(data)
        return state.digest(), n_bytes, status
    finally:
        os.close(descriptor)


def _remember(where: Path, found: Found, hashes: pa.Array, valid: np.ndarray, started_ns: int) -> None:
    columns: list[Any] = [found.members, *(pa.array(found.times[name]) for name in TIMES), hashes]
    table = pa.Table.from_arrays(columns, names=["path", *TIMES, "content_hash"])
    if not valid.all():
        table = table.filter(pa.array(valid))
    store_table(where, table, {"started_ns": started_ns})


def _part(found: Found, container: bytes, hashes: pa.Array, problems: dict[int, str], companions: list[int]) -> Part:
    n = len(found.members)
    columns = {
        "member": found.members,
        "n_bytes": pa.array(found.times["n_bytes"]),
        "content_hash": hashes,
        "reason": _sparse(n, {row: _reason(found.members[row].as_py()) for row in problems}),
        "detail": _sparse(n, problems),
        "kind": pa.array(np.full(n, FILE, np.int8)),
        "offset": pa.array(np.zeros(n, np.int64)),
        "stored_bytes": pa.array(found.times["n_bytes"]),
    }
    table = pa.table(columns, schema=LISTING_SCHEMA)
    stamps = stamp_column([found.times[name] for name in TIMES[:3]])
    if companions:
        stays = np.ones(n, bool)
        stays[companions] = False
        table, stamps = table.filter(pa.array(stays)), stamps.filter(pa.array(stays))
    n_other_files = found.n_other_files + len(companions)
    return Part(table, stamps, container, n_other_files=n_other_files, n_homes=found.n_homes, notes=found.notes)


def _reason(member: bytes) -> RejectReason:
    return RejectReason.UNREADABLE_FOLDER if member.endswith(b"/") else RejectReason.UNREADABLE_FILE


def _sparse(n: int, values: dict[int, str]) -> pa.Array:
    """Return a column of strings that are empty except in a few rows."""
    return pa.array([values.get(row, "") for row in range(n)], pa.string()) if values else pa.repeat("", n)
