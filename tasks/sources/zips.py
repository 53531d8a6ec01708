"""Zip archives read in place: each member by its offset, without unpacking anything to disk."""

import hashlib
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from tasks.sources.expand import EXPANSION_ERRORS, TooMuch, expand
from tasks.sources.limits import SourceLimits
from tasks.sources.listing import BZIP2, DEFLATE, LISTING_SCHEMA, LZMA, SLICE, ZSTD, Rows
from tasks.sources.names import danger_of, printable
from tasks.sources.threads import map_in_order
from tasks.sources.zip_directory import Entry, read_directory

METHODS = {0: SLICE, 8: DEFLATE, 12: BZIP2, 14: LZMA, 93: ZSTD}
CHUNK_MEMBERS = 1024
_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_ENCRYPTED = 0x1 | 0x2000  # the member; the directory's facts about it


@dataclass(slots=True)
class ArchiveScan:
    """What reading an archive adds up to."""

    batches: list[pa.RecordBatch]
    n_other_files: int = 0
    n_expanded: int = 0
    extra: bytes | None = None  # the file that was asked for by name


def read_zip(
    path: str, limits: SourceLimits, n_threads: int, wanted: str = "", on_files: Callable[[int], None] | None = None
) -> ArchiveScan:
    """Hash the MIDI files of a zip, each a row with its place or with a reason.

    Args:
        wanted: name of a member that is not MIDI but asked for; its bytes become `extra`.
    Raises:
        DatasetError: there is no directory, or it is damaged or too long.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        directory = read_directory(descriptor, path, limits.max_archive_members, wanted.encode())
        reader = _ZipReader(descriptor, printable(path), limits)
        result = ArchiveScan([Rows().batch()], directory.n_other_files)
        if directory.wanted is not None and reader.refusal(directory.wanted) is None:
            result.extra = reader.content(directory.wanted)[0]

        def work(chunk: list[Entry]) -> tuple[list[Entry], pa.RecordBatch]:
            is_full = result.n_expanded > limits.max_expanded_bytes
            return chunk, reader.refuse_all(chunk) if is_full else reader.hash(chunk)

        chunks = directory.chunks(CHUNK_MEMBERS)
        for chunk, batch in map_in_order(work, chunks, n_threads, _mean_stored):
            result.batches.append(reader.bound(chunk, batch, result))
            if on_files:
                on_files(len(chunk))
        return result
    finally:
        os.close(descriptor)


class _ZipReader:
    def __init__(self, descriptor: int, place: str, limits: SourceLimits) -> None:
        self.descriptor = descriptor
        self.place = place
        self.limits = limits
        self.size = os.fstat(descriptor).st_size

    def hash(self, chunk: list[Entry]) -> pa.RecordBatch:
        rows = Rows()
        for entry in chunk:
            if refusal := self.refusal(entry):
                rows.refuse(entry.name, entry.expanded, *refusal)
                continue
            try:
                data, offset = self.content(entry)
            except TooMuch as error:
                rows.refuse(entry.name, entry.expanded, *self._too_much(entry, error.limit))
            except EXPANSION_ERRORS as error:
                problem = str(error) or type(error).__name__
                rows.refuse(entry.name, entry.expanded, "damaged_member", f"{problem} ({self._where(entry)})")
            else:
                digest = hashlib.sha256(data).digest()
                rows.add(entry.name, len(data), digest, METHODS[entry.method], offset, entry.stored)
        return rows.batch()

    def refusal(self, entry: Entry) -> tuple[str, str] | None:  # noqa: PLR0911  (one line for each reason)
        """Return why a member is not even opened, or None."""
        if danger := danger_of(entry.name):
            return "unsafe_path", f"{danger}: {printable(entry.name)} ({self._where(entry)})"
        if entry.is_link:
            return "link_entry", f"a symbolic link, which is not followed ({self._where(entry)})"
        if entry.flags & _ENCRYPTED:
            return "encrypted", f"unpack the archive with its password first ({self._where(entry)})"
        if entry.overlaps:
            return "archive_bomb", f"its bytes overlap those of another member ({self._where(entry)})"
        if entry.method not in METHODS:
            return "unsupported_compression", f"compression method {entry.method} ({self._where(entry)})"
        if entry.stored > self.limits.max_member_bytes:
            limit = f"max_member_bytes={self.limits.max_member_bytes}"
            return "too_large", f"{entry.stored} bytes stored, above {limit} ({self._where(entry)})"
        return None

    def content(self, entry: Entry) -> tuple[bytes, int]:
        """Return a member's contents and the offset of its stored bytes; checks header, size and checksum."""
        block = self._read(min(94 + len(entry.name) + entry.stored, self.size - entry.header), entry.header)
        if len(block) < 30 or block[:4] != b"PK\3\4":
            raise ValueError("no member begins there")
        n_name, n_extra = _LOCAL.unpack_from(block)[-2:]
        if block[30 : 30 + n_name] != entry.name:
            raise ValueError("its header has another name than the directory")
        begin = 30 + n_name + n_extra
        stored = block[begin : begin + entry.stored]
        if len(stored) < entry.stored:
            stored = self._read(entry.stored, entry.header + begin)
        limit = min(self.limits.max_member_bytes, self.limits.expansion_limit(entry.stored))
        data = expand(stored, METHODS[entry.method], limit)
        if len(data) != entry.expanded:
            raise ValueError(f"the directory says {entry.expanded} bytes, but there are {len(data)}")
        if zlib.crc32(data) != entry.crc:
            raise ValueError(f"CRC-32 is {zlib.crc32(data):08x}, the directory says {entry.crc:08x}")
        return data, entry.header + begin

    def bound(self, chunk: list[Entry], batch: pa.RecordBatch, result: ArchiveScan) -> pa.RecordBatch:
        """Refuse the members from which on the whole archive expands too far; its total goes up in `result`."""
        sizes = np.where(batch["content_hash"].is_valid(), batch["n_bytes"].to_numpy(), 0)
        running = result.n_expanded + np.cumsum(sizes)
        if not len(running):
            return batch
        if running[-1] <= self.limits.max_expanded_bytes:
            result.n_expanded = int(running[-1])
            return batch
        rows = batch.to_pylist()
        # From the first that passes the limit on, whatever a thread that did not know of it may have found.
        for index in range(int(np.searchsorted(running, self.limits.max_expanded_bytes, side="right")), len(rows)):
            if self.refusal(chunk[index]) is None:
                reason, detail = self._over_total()
                rows[index] |= {"n_bytes": chunk[index].expanded, "content_hash": None, "reason": reason}
                rows[index]["detail"] = detail
        result.n_expanded = self.limits.max_expanded_bytes + 1
        return pa.RecordBatch.from_pylist(rows, schema=LISTING_SCHEMA)

    def refuse_all(self, chunk: list[Entry]) -> pa.RecordBatch:
        rows = Rows()
        for entry in chunk:
            rows.refuse(entry.name, entry.expanded, *(self.refusal(entry) or self._over_total()))
        return rows.batch()

    def _too_much(self, entry: Entry, limit: int) -> tuple[str, str]:
        if limit >= self.limits.max_member_bytes:
            return "too_large", f"more than max_member_bytes={limit} ({self._where(entry)})"
        ratio = f"max_expansion_ratio={self.limits.max_expansion_ratio:g}"
        return "archive_bomb", f"{entry.stored} bytes become more than {limit}, {ratio} ({self._where(entry)})"

    def _over_total(self) -> tuple[str, str]:
        limit = f"max_expanded_bytes={self.limits.max_expanded_bytes}"
        return "archive_bomb", f"the members up to this one pass {limit} ({self.place})"

    def _where(self, entry: Entry) -> str:
        return f"{self.place}, byte {entry.header}"

    def _read(self, n_bytes: int, offset: int) -> bytes:
        if n_bytes < 0 or offset + n_bytes > self.size:
            raise EOFError(f"its bytes end at {offset + n_bytes}, the archive at {self.size}")
        return os.pread(self.descriptor, n_bytes, offset)


def _mean_stored(chunk: list[Entry]) -> float:
    return sum(entry.stored for entry in chunk) / max(1, len(chunk))
