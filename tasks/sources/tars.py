"""Tar archives as a stream of members: plain ones give places to read from, compressed ones are spooled into a pack."""

import hashlib
import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from tasks.errors import DatasetError
from tasks.sources.limits import SourceLimits
from tasks.sources.listing import SLICE, Rows
from tasks.sources.names import danger_of, is_midi, printable
from tasks.sources.packs import PackWriter
from tasks.sources.tar_streams import CompressedStream, ExpansionStop, PlainStream, Stream
from tasks.sources.zips import ArchiveScan

BLOCK = 512
MAX_NAME_RECORD = 2**20  # bytes of a long name or a pax header
_LINKS = b"12"
_BATCH = 8192


@dataclass(slots=True)
class _Next:
    """What the special records in front of a member say of it."""

    name: bytes | None = None
    size: int | None = None
    sparse: bool = False
    common: dict[bytes, bytes] = field(default_factory=dict)  # of a global pax header: for all that follow


class TarReader:
    """Reads the members of one tar; `rows` are the MIDI files found so far."""

    def __init__(
        self, stream: Stream, place: str, limits: SourceLimits, wanted: str = "", pack: PackWriter | None = None,
        on_files: Callable[[int], None] | None = None,
    ) -> None:  # fmt: skip
        self.stream, self.place, self.limits, self.pack = stream, place, limits, pack
        self.wanted, self.on_files = wanted.encode(), on_files
        self.rows = Rows()
        self.result = ArchiveScan([self.rows.batch()])
        self.n_members = 0

    def scan(self) -> ArchiveScan:
        """Read to the end, or to where the archive breaks; there it says so in a row of its own.

        Raises:
            DatasetError: the first header already is none, or there are too many members.
        """
        try:
            self._read_members()
        except ExpansionStop as stop:
            self._break_off("archive_bomb", str(stop))
        except (OSError, EOFError, pa.ArrowException) as error:
            # Arrow's messages may go on over several lines.
            problem = str(error).splitlines()[0] if str(error) else "it ends early"
            self._break_off("truncated_archive", f"{problem}, after {self.stream.position} bytes")
        self._flush()
        return self.result

    def _break_off(self, reason: str, problem: str) -> None:
        if not self.n_members:
            raise DatasetError(f"archive {self.place}: {problem}; no member could be read")
        what = f"{problem}; {self.n_members} members were read, any further ones are lost ({self.place})"
        self.rows.refuse(b"", 0, reason, what)

    def _read_members(self) -> None:
        special = _Next()
        while True:
            at = self.stream.position
            header = self.stream.read(BLOCK)
            if not header:
                if not self.n_members:
                    raise DatasetError(f"archive {self.place}: it is empty")
                return  # without an end mark: many writers leave it out
            if len(header) < BLOCK:
                raise EOFError(f"a header of {len(header)} bytes at byte {at}")
            if header == bytes(BLOCK):
                self._drain()
                return
            if not _checksum_fits(header):
                if not self.n_members:
                    raise DatasetError(f"archive {self.place}: no tar header at byte {at}")
                raise EOFError(f"no tar header at byte {at}")
            size = _number(header[124:136], at)
            kind = header[156:157]
            if kind in b"LKxg" and kind:
                self._read_special(kind, size, special)
                continue
            self.n_members += 1
            if self.n_members > self.limits.max_archive_members:
                limit = f"max_archive_members={self.limits.max_archive_members}"
                raise DatasetError(f"archive {self.place} has more members than {limit}")
            self._read_member(header, kind, size if special.size is None else special.size, special)
            special = _Next(common=special.common)

    def _read_special(self, kind: bytes, size: int, special: _Next) -> None:
        if size > MAX_NAME_RECORD:
            raise EOFError(f"a name record of {size} bytes at byte {self.stream.position}")
        data = self._exactly(size)
        self._pad(size)
        if kind == b"L":
            special.name = data.split(b"\0", 1)[0]
        elif kind in b"xg":
            fields = _pax_fields(data)
            if kind == b"g":
                special.common |= fields
            fields = special.common | fields
            special.name = fields.get(b"path", special.name)
            special.name = fields.get(b"GNU.sparse.name", special.name)
            special.sparse = any(key.startswith(b"GNU.sparse") for key in fields)
            if b"size" in fields:
                special.size = int(fields[b"size"])

    def _read_member(self, header: bytes, kind: bytes, size: int, special: _Next) -> None:
        name = _name(header) if special.name is None else special.name
        begin = self.stream.position
        if kind == b"5" or (kind in b"0\0" and name.endswith(b"/")):
            size = size if kind != b"5" else 0
        elif kind in _LINKS or kind in b"346":
            if is_midi(name):
                what = "a link" if kind in _LINKS else "a device or pipe"
                self.rows.refuse(name, 0, "link_entry", f"{what}, which is not followed ({self.place}, byte {begin})")
            else:
                self.result.n_other_files += 1
            size = 0
        elif is_midi(name):
            self._read_midi(name, size, begin, special.sparse or kind == b"S")
            return
        else:
            self.result.n_other_files += 1
            if self.wanted and name == self.wanted and size <= self.limits.max_member_bytes:
                self.result.extra = self._exactly(size)
                self._pad(size)
                return
        if not self.stream.skip(size + -size % BLOCK):
            raise EOFError(f"{printable(name)} ends early")

    def _read_midi(self, name: bytes, size: int, begin: int, is_sparse: bool) -> None:
        where = f"({self.place}, byte {begin})"
        refusal = None
        if danger := danger_of(name):
            refusal = ("unsafe_path", f"{danger}: {printable(name)} {where}")
        elif is_sparse:
            refusal = ("unsupported_compression", f"a sparse file {where}")
        elif size > self.limits.max_member_bytes:
            refusal = ("too_large", f"{size} bytes, above max_member_bytes={self.limits.max_member_bytes} {where}")
        if refusal:
            self.rows.refuse(name, size, *refusal)
            complete = self.stream.skip(size)
        else:
            data = self.stream.read(size)
            complete = len(data) == size
            if complete:
                offset = self.pack.append(data) if self.pack else begin
                self.rows.add(name, size, hashlib.sha256(data).digest(), SLICE, offset, size)
            else:
                detail = f"{len(data)} of its {size} bytes are there {where}"
                self.rows.refuse(name, size, "truncated_archive", detail)
        if not complete:
            raise EOFError(f"{printable(name)} ends early")
        if len(self.rows) >= _BATCH:
            self._flush()
        self._pad(size)

    def _exactly(self, n_bytes: int) -> bytes:
        data = self.stream.read(n_bytes)
        if len(data) < n_bytes:
            raise EOFError(f"a record of {n_bytes} bytes ends early")
        return data

    def _pad(self, size: int) -> None:
        self.stream.skip(-size % BLOCK)

    def _drain(self) -> None:
        """Read on to where the compressed stream ends, for that is where its checksum stands."""
        if isinstance(self.stream, CompressedStream):
            while self.stream.read(2**20):
                pass

    def _flush(self) -> None:
        n_files = len(self.rows)
        self.result.batches.append(self.rows.batch())
        if self.on_files and n_files:
            self.on_files(n_files)


def read_tar(path: str, limits: SourceLimits, **options: Any) -> ArchiveScan:
    """Hash the MIDI files of a plain tar, each a row with its place."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return TarReader(PlainStream(descriptor), printable(path), limits, **options).scan()
    finally:
        os.close(descriptor)


def read_compressed_tar(path: str, codec: str, limits: SourceLimits, pack: PackWriter, **options: Any) -> ArchiveScan:
    """Hash the MIDI files of a compressed tar and write them into `pack`, each a row with its place there."""
    stream = CompressedStream(path, codec, limits)
    try:
        return TarReader(stream, printable(path), limits, pack=pack, **options).scan()
    finally:
        stream.close()


def _checksum_fits(header: bytes) -> bool:
    try:
        stated = int(header[148:156].strip(b"\0 ") or b"0", 8)
    except ValueError:
        return False
    without = header[:148] + b" " * 8 + header[156:]
    if sum(without) == stated:
        return True
    return sum(byte - 256 if byte > 127 else byte for byte in without) == stated  # some old writers add signed bytes


def _number(octets: bytes, at: int) -> int:
    try:
        size = tarfile.nti(octets)  # type: ignore[attr-defined]  # octal, or GNU's base 256
    except tarfile.TarError:
        raise EOFError(f"no size in the tar header at byte {at}") from None
    if size < 0:
        raise EOFError(f"a size of {size} in the tar header at byte {at}")
    return size


def _name(header: bytes) -> bytes:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _pax_fields(data: bytes) -> dict[bytes, bytes]:
    fields = {}
    at = 0
    while at < len(data):
        length, _, _ = data[at:].partition(b" ")
        if not length.isdigit() or int(length) < len(length) + 3:
            break
        key, _, value = data[at + len(length) + 1 : at + int(length) - 1].partition(b"=")
        fields[key] = value
        at += int(length)
    return fields
