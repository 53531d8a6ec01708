"""Contents of scan rows, read in any process of the machine that scanned."""

import hashlib
import logging
import os
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.errors import RejectReason
from tasks.ingest.sources.listing import DEFLATE, FILE, stamp_of
from tasks.storage.parquet import replace_column

logger = logging.getLogger(__name__)

MAX_OPEN = 64  # containers
BATCH_ROWS = 1024
COLUMNS = (
    "path", "n_bytes", "content_hash", "reason", "detail", "container", "kind", "member", "offset", "stored_bytes",
    "stamp",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class BadRead:
    """A row without contents: refused by the scan, or gone or changed since."""

    reason: str  # the scan's, or VANISHED, CHANGED or UNREADABLE_FILE
    detail: str


def refuse_lost(files: pa.Table, lost: Collection[bytes]) -> pa.Table:
    """Return scan rows in which those of the lost content hashes that still cannot be read are refused."""
    wanted = pc.is_in(files.column("content_hash"), pa.array(lost, pa.binary(32))).combine_chunks()
    places = np.flatnonzero(wanted.to_numpy(zero_copy_only=False))
    read = read_members(files.take(pa.array(places)))
    return refuse_rows(
        files, {at: lost for at, lost in zip(places.tolist(), read, strict=True) if isinstance(lost, BadRead)}
    )


def refuse_rows(files: pa.Table, refused: Mapping[int, BadRead]) -> pa.Table:
    """Return scan rows with some refused, by row number."""
    places = np.zeros(files.num_rows, np.bool_)
    places[list(refused)] = True
    values = {
        "reason": pa.array([refused[place].reason for place in sorted(refused)], pa.string()),
        "detail": pa.array([refused[place].detail for place in sorted(refused)], pa.string()),
        "content_hash": pa.nulls(len(refused), pa.binary(32)),
    }
    for name, column in values.items():
        replaced = pc.replace_with_mask(files.column(name).combine_chunks(), pa.array(places), column)
        files = replace_column(files, name, replaced)
    return files


def read_members(rows: pa.Table) -> Iterator[bytes | BadRead]:
    """Yield the contents of scan rows, in their order: exactly the bytes that were hashed.

    All bytes are hashed again, because a flipped bit of a disk changes no time. A touched or copied file stays valid.
    """
    containers = _Containers()
    try:
        for batch in rows.select(list(COLUMNS)).to_batches(max_chunksize=BATCH_ROWS):
            for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                yield _read(containers, *row)  # pyright: ignore[reportCallIssue]
    finally:
        containers.close()


class _Containers:
    """Open archives and packs with their stamps; the one opened first is closed first."""

    def __init__(self) -> None:
        self._open: dict[bytes, tuple[int, int]] = {}

    def open(self, path: bytes) -> tuple[int, int]:
        """Return a descriptor and the stamp of its file."""
        if (known := self._open.get(path)) is not None:
            return known
        if len(self._open) >= MAX_OPEN:
            oldest = next(iter(self._open))
            os.close(self._open.pop(oldest)[0])
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._open[path] = opened = (descriptor, stamp_of(os.fstat(descriptor)))
        return opened

    def close(self) -> None:
        for descriptor, _ in self._open.values():
            os.close(descriptor)
        self._open.clear()


def _read(  # noqa: PLR0911  (one for each problem)
    containers: _Containers, path: str, n_bytes: int,
    content_hash: bytes | None, reason: str, detail: str, container: bytes, kind: int,
    member: bytes, offset: int, stored_bytes: int, stamp: int,
) -> bytes | BadRead:  # fmt: skip
    if reason:
        return BadRead(reason, detail)
    try:
        if kind == FILE:
            data, found = _read_file(os.path.join(container, member), n_bytes), None  # noqa: PTH118
        else:
            descriptor, found = containers.open(container)
            data = _pread(descriptor, stored_bytes, offset)
            if kind == DEFLATE:
                data = zlib.decompressobj(-15).decompress(data, n_bytes + 1)
    except FileNotFoundError as error:
        return BadRead(RejectReason.VANISHED, f"{error.strerror} since the scan ({path})")
    except OSError as error:
        return BadRead(RejectReason.UNREADABLE_FILE, f"{error.strerror or error} ({path})")
    except zlib.error as error:
        return BadRead(RejectReason.CHANGED, f"{error} since the scan ({path})")
    if len(data) != n_bytes:
        return BadRead(RejectReason.CHANGED, f"{len(data)} bytes where the scan found {n_bytes} ({path})")
    if hashlib.sha256(data).digest() != content_hash:
        if found == stamp and container.endswith(b".pack"):  # our own copy of members or objects
            logger.warning("%s is damaged: %s; it is unpacked again", os.fsdecode(container), path)
            with suppress(OSError):
                os.unlink(container)  # noqa: PTH108
        return BadRead(RejectReason.CHANGED, f"other contents than at the scan ({path})")
    return data


def _read_file(path: bytes, n_bytes: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        data = os.read(descriptor, n_bytes + 1)
        while len(data) <= n_bytes and (more := os.read(descriptor, n_bytes + 1 - len(data))):
            data += more
        return data
    finally:
        os.close(descriptor)


def _pread(descriptor: int, n_bytes: int, offset: int) -> bytes:
    data = os.pread(descriptor, n_bytes, offset)
    while len(data) < n_bytes and (more := os.pread(descriptor, n_bytes - len(data), offset + len(data))):
        data += more
    return data
