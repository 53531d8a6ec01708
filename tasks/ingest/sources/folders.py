"""Content hashes of files on disk; a file with unchanged size and times is not opened again."""

import hashlib
import os
import stat
import time
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.errors import RejectReason
from tasks.ingest.sources.cache import RACY_NS, cache_key, load_batches, store_table
from tasks.ingest.sources.listing import FILE, LISTING_SCHEMA, Part, ScanSettings, hash_column, stamp_column
from tasks.ingest.sources.names import is_companion
from tasks.ingest.sources.threads import cut, map_in_order
from tasks.ingest.sources.walk import TIMES, Found
from tasks.storage.file_names import printable

LARGE_FILE = 64 * 2**10  # bytes
ONE_READ = 8 * 2**20  # bytes; larger files are hashed piece by piece
CHUNK_FILES, CHUNK_BYTES = 512, 32 * 2**20


def hash_found(found: Found, container: bytes, source: bytes, settings: ScanSettings) -> Part:
    """Return the listing of a folder's files, each with its SHA-256 or the reason why it cannot be read.

    Args:
        found: the files, by names relative to `container`.
        source: absolute path of the user's folder, list or file; key of the cache.
    """
    started_ns = time.time_ns()
    n = len(found.members)
    digests, known = np.zeros((n, 32), np.uint8), np.zeros(n, bool)
    where = settings.cache / "folders" / f"{cache_key(source)}.parquet"
    cached = None if settings.rehash else load_batches(where)
    n_remembered = -1
    if cached is not None:
        facts, n_remembered, batches = cached
        for batch in batches:
            _recall(found, batch, int(facts["started_ns"]), digests, known)
        for member in found.problems:  # never known, though its times of 0 may be equal
            known[bisect_left(found.members, member, key=_as_bytes)] = False
    n_cached = int(known.sum())
    if n_cached:
        settings.on_files(n_cached)
    problems, companions = _hash_missing(found, container, np.flatnonzero(~known), digests, settings)
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
    found: Found, container: bytes, missing: np.ndarray, digests: np.ndarray, settings: ScanSettings
) -> tuple[dict[int, str], list[int]]:
    """Fill in the digests of the other files; return the problems of unreadable files, and the companions, by row."""
    sizes = found.times["n_bytes"]
    problems: dict[int, str] = {}
    companions: list[int] = []

    def hash_chunk(rows: np.ndarray) -> tuple[np.ndarray, list[_Hashed]]:
        names = found.members.take(pa.array(rows)).to_pylist()
        return rows, [_hash(container, name, found.problems.get(name, "")) for name in names]

    chunks: Any = cut(missing, sizes[missing].tolist(), CHUNK_FILES, CHUNK_BYTES)  # type: ignore[arg-type]
    hashed_chunks = map_in_order(hash_chunk, chunks, settings.n_threads, lambda rows: sizes[rows].mean() > LARGE_FILE)
    for rows, hashed in hashed_chunks:
        digests[rows] = np.frombuffer(b"".join(digest for digest, _, _ in hashed), np.uint8).reshape(-1, 32)
        for name, column in zip(TIMES, np.array([times for _, times, _ in hashed], np.int64).T, strict=True):
            found.times[name][rows] = column
        for row, (_, _, problem) in zip(rows.tolist(), hashed, strict=True):
            if problem == _COMPANION:
                companions.append(row)
            elif problem:
                problems[row] = problem
        settings.on_files(len(rows))
    return problems, companions


_Hashed = tuple[bytes, tuple[int, ...], str]  # digest, TIMES of the open file, problem
_COMPANION = "companion"


def _hash(container: bytes, name: bytes, problem: str) -> _Hashed:
    try:
        if not problem:
            digest, n_bytes, status = hash_file(os.path.join(container, name))  # noqa: PTH118
            return digest, (n_bytes, status.st_mtime_ns, status.st_ctime_ns, status.st_ino & (2**63 - 1)), ""
    except IsCompanion:
        problem = _COMPANION
    except OSError as error:
        problem = f"{error.strerror} ({printable(name)})"
    except ValueError as error:
        problem = str(error)
    return bytes(32), (0, 0, 0, 0), problem


class IsCompanion(Exception):
    """A file that macOS puts beside another; its first bytes show it."""


def hash_file(path: bytes) -> tuple[bytes, int, os.stat_result]:
    """Return a file's SHA-256, the number of bytes hashed, and its status before the reading.

    The next scan sees a change during the reading, because the times are then later than this status.

    Raises:
        ValueError: it is not a regular file.
        IsCompanion: it is not a song.
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
    is_folder = {row: found.members[row].as_py().endswith(b"/") for row in problems}
    reasons = {
        row: RejectReason.UNREADABLE_FOLDER if is_folder[row] else RejectReason.UNREADABLE_FILE for row in problems
    }
    columns = {
        "member": found.members,
        "n_bytes": pa.array(found.times["n_bytes"]),
        "content_hash": hashes,
        "reason": _sparse(n, reasons),
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


def _sparse(n: int, values: Mapping[int, str]) -> pa.Array:
    """Return a column of strings that are empty except in a few rows."""
    return pa.array([values.get(row, "") for row in range(n)], pa.string()) if values else pa.repeat("", n)
