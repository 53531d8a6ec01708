"""The MIDI members of archives as rows, read by zipfile and tarfile.

This runs in a child process with limits of time and memory (`isolation`), because an archive may hang its reader or
fill the memory. Every fault of an archive is a row or one `DatasetError`.
"""

import codecs
import gzip
import hashlib
import json
import os
import re
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from tasks.config.source_limits import SourceLimits
from tasks.errors import DatasetError, RejectReason, plural
from tasks.ingest.sources.listing import DEFLATE, LISTING_SCHEMA, SLICE, Rows
from tasks.ingest.sources.names import danger_of, is_companion
from tasks.storage.file_names import is_midi, printable

METHODS = {zipfile.ZIP_STORED: SLICE, zipfile.ZIP_DEFLATED: DEFLATE}
MAX_NAME_RECORD = 2**20  # bytes of a long name or a pax header in a tar
MAX_SIZE = 2**62  # bytes; a larger claim is stored as this number
FREE_TAR_EXPANSION = 64 * 2**20  # bytes that a compressed tar of any size may become
MAX_EMPTY_READS = 64  # after the end of a tar; tarfile itself asks once or twice
_BATCH = 8192  # rows
_ENCRYPTED = 0x1 | 0x40 | 0x2000  # the member, strongly, the directory's facts about it
_LOCAL_HEADER = struct.Struct("<26xHH")  # lengths of the name and of the extra field after it
_NAME_RECORDS = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE)
_NAME_RECORDS += (tarfile.SOLARIS_XHDTYPE,)
_OCTAL = re.compile(rb" *([0-7]+)[ \0]*")


def prepare() -> None:
    """Load in the host what pyarrow loads with the first column, once for all children."""
    rows = Rows()
    rows.add(b"", 0, bytes(32), SLICE, 0, 0)
    with pa.ipc.new_stream(pa.BufferOutputStream(), LISTING_SCHEMA) as writer:
        writer.write_batch(rows.batch())
    codecs.lookup("cp437")  # of names in zips


def list_members(payload: bytes) -> bytes:
    """Write the rows of an archive, and the members of a compressed one, into the files of an order.

    Args:
        payload: JSON with `path`, `kind`, `limits`, `wanted` (a member that is not MIDI), and the paths `rows` (for an
            Arrow stream of LISTING_SCHEMA) and `pack` (empty for an archive that is read in place).
    Returns:
        JSON with `n_other_files` and `extra`, the wanted member's bytes as Latin-1 or null.
    Raises:
        DatasetError: nothing of the archive can be read.
    """
    order = json.loads(payload)
    limits = SourceLimits(**order["limits"])
    place = printable(os.fsencode(order["path"]))
    try:
        with (
            _open_regular(order["path"]) as file,
            pa.OSFile(order["rows"], "wb") as sink,
            pa.ipc.new_stream(sink, LISTING_SCHEMA) as writer,
        ):
            listing = _Listing(writer.write_batch, place, limits, order["wanted"].encode())
            if order["kind"] == "zip":
                _list_zip(file, listing)
            else:
                with Path(order["pack"]).open("wb", 2**20) if order["pack"] else nullcontext() as pack:
                    _list_tar(_Stream(file, order["kind"], limits), listing, pack)
            listing.flush()
    except (DatasetError, MemoryError):
        raise
    except _Unwritable as error:
        raise error.reason from None
    except Exception as error:
        raise DatasetError(f"archive {place}: {_words_of(error)}") from None
    extra = None if listing.extra is None else listing.extra.decode("latin-1")
    return json.dumps({"n_other_files": listing.n_other_files, "extra": extra}).encode()


def _open_regular(path: str) -> IO[bytes]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # NONBLOCK: it may be a pipe by now
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DatasetError(f"archive {printable(os.fsencode(path))}: not a regular file")
    return os.fdopen(descriptor, "rb")


def _words_of(error: BaseException) -> str:
    """Return an exception of the standard library as one line."""
    lines = (getattr(error, "strerror", None) or str(error)).splitlines()
    return lines[0][:300] if lines else type(error).__name__


class _Listing:
    """The rows of one archive, written in batches, and the counts of its members."""

    def __init__(
        self, write: Callable[[pa.RecordBatch], None], place: str, limits: SourceLimits, wanted: bytes
    ) -> None:
        self.write, self.place, self.limits, self.wanted = write, place, limits, wanted
        self.rows = Rows()
        self.n_members = self.n_other_files = 0
        self.extra: bytes | None = None

    def count_member(self) -> None:
        self.n_members += 1
        if self.n_members > self.limits.max_archive_members:
            limit = f"max_archive_members={self.limits.max_archive_members}"
            raise DatasetError(f"archive {self.place} has more members than {limit}")

        if len(self.rows) >= _BATCH:
            self.flush()

    def add(self, name: bytes, data: bytes, kind: int, offset: int, stored_bytes: int) -> None:
        self.rows.add(name, len(data), hashlib.sha256(data).digest(), kind, offset, stored_bytes)

    def refuse(self, name: bytes, n_bytes: int, reason: str, detail: str) -> None:
        self.rows.refuse(name, min(n_bytes, MAX_SIZE), reason, detail)

    def flush(self) -> None:
        try:
            self.write(self.rows.batch())
        except OSError as error:
            raise _Unwritable(error) from None


class _Refused(Exception):
    """A member that is not read: reason and detail."""

    def __init__(self, reason: RejectReason, detail: str) -> None:
        super().__init__(reason, detail)


class _Unwritable(BaseException):
    """A failure to write the output; handlers of an archive's faults do not catch it."""

    def __init__(self, reason: OSError) -> None:
        super().__init__(reason)
        self.reason = reason


# --- zip


def _list_zip(file: IO[bytes], listing: _Listing) -> None:
    try:
        archive = zipfile.ZipFile(file)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a damaged directory: BadZipFile, struct.error, UnicodeDecodeError ...
        n_bytes = os.fstat(file.fileno()).st_size
        raise DatasetError(
            f"archive {listing.place}: {_words_of(error)}; its directory, at the end of {n_bytes} bytes, is damaged or"
            " truncated, or it is no zip"
        ) from None
    with archive:
        _ZipReader(archive, file, listing).read()


class _ZipReader:
    def __init__(self, archive: zipfile.ZipFile, file: IO[bytes], listing: _Listing) -> None:
        self.archive, self.descriptor, self.listing, self.limits = archive, file.fileno(), listing, listing.limits
        self.n_expanded = 0
        self.overlapping: set[int] = set()  # places in the directory

    def read(self) -> None:
        members = self.archive.infolist()
        if any(member.header_offset < 0 for member in members):
            raise DatasetError(f"archive {self.listing.place}: its beginning is missing; it is truncated or damaged")
        self.overlapping = _overlapping(members)
        for place, member in enumerate(members):
            self.listing.count_member()
            name = _raw_name(member)
            if is_midi(name) and not is_companion(name):
                self._read_midi(place, member, name)
            elif not name.endswith(b"/"):
                self.listing.n_other_files += 1
                if name == self.listing.wanted:
                    with suppress(_Refused):
                        self._check(place, member, name)
                        self.listing.extra = self._content(member)[0]

    def _read_midi(self, place: int, member: zipfile.ZipInfo, name: bytes) -> None:
        claimed = member.file_size
        try:
            self._check(place, member, name)
            self._check_total()
            data, offset = self._content(member)
            if is_companion(b"", data):
                self.listing.n_other_files += 1
                return
            self.n_expanded += len(data)
            self._check_total()
        except MemoryError:
            raise
        except _Refused as refused:
            self.listing.refuse(name, claimed, *refused.args)
        except Exception as error:  # BadZipFile, zlib.error, EOFError, struct.error, UnicodeDecodeError ...
            problem = f"{_words_of(error)} ({self._where(member)})"
            self.listing.refuse(name, claimed, RejectReason.DAMAGED_MEMBER, problem)
        else:
            self.listing.add(name, data, METHODS[member.compress_type], offset, member.compress_size)

    def _check_total(self) -> None:
        if self.n_expanded > self.limits.max_expanded_bytes:
            limit = f"max_expanded_bytes={self.limits.max_expanded_bytes}"
            detail = f"the members up to this one pass {limit} ({self.listing.place})"
            raise _Refused(RejectReason.ARCHIVE_BOMB, detail)

    def _check(self, place: int, member: zipfile.ZipInfo, name: bytes) -> None:
        """Raise _Refused for a member that is not even opened."""
        where = self._where(member)
        if danger := danger_of(name):
            raise _Refused(RejectReason.UNSAFE_PATH, f"{danger}: {printable(name)} ({where})")
        if member.create_system == 3 and stat.S_ISLNK(member.external_attr >> 16):
            raise _Refused(RejectReason.LINK_ENTRY, f"a symbolic link, which is not followed ({where})")
        if member.flag_bits & _ENCRYPTED:
            raise _Refused(RejectReason.ENCRYPTED, f"unpack the archive with its password first ({where})")
        if place in self.overlapping:
            raise _Refused(RejectReason.ARCHIVE_BOMB, f"its bytes overlap those of another member ({where})")
        if member.compress_type not in METHODS:
            detail = f"compression method {member.compress_type}; stored (0) and deflate (8) are read ({where})"
            raise _Refused(RejectReason.UNSUPPORTED_COMPRESSION, detail)
        if member.compress_size > self.limits.max_member_bytes:
            limit = f"max_member_bytes={self.limits.max_member_bytes}"
            raise _Refused(RejectReason.TOO_LARGE, f"{member.compress_size} bytes stored, above {limit} ({where})")

    def _content(self, member: zipfile.ZipInfo) -> tuple[bytes, int]:
        """Return a member's contents and the offset of its stored bytes; zipfile checks header and checksum."""
        largest, n_stored = self.limits.max_member_bytes, member.compress_size
        limit = min(largest, self.limits.expansion_limit(n_stored))
        # zipfile stops at the size that the directory claims, and expands some KiB at a time.
        claimed, member.file_size = member.file_size, limit + 2**16
        with self.archive.open(member) as stream:
            data = stream.read(limit + 1)
        if len(data) > limit >= largest:
            raise _Refused(RejectReason.TOO_LARGE, f"more than max_member_bytes={limit} ({self._where(member)})")
        if len(data) > limit:
            ratio = f"max_expansion_ratio={self.limits.max_expansion_ratio:g}"
            detail = f"{n_stored} bytes become more than {limit}, {ratio} ({self._where(member)})"
            raise _Refused(RejectReason.ARCHIVE_BOMB, detail)
        if len(data) != claimed:
            raise ValueError(f"the directory says {claimed} bytes, but there are {len(data)}")
        header = os.pread(self.descriptor, _LOCAL_HEADER.size, member.header_offset)
        return data, member.header_offset + _LOCAL_HEADER.size + sum(_LOCAL_HEADER.unpack(header))

    def _where(self, member: zipfile.ZipInfo) -> str:
        return f"{self.listing.place}, byte {member.header_offset}"


def _raw_name(member: zipfile.ZipInfo) -> bytes:
    """Return the bytes of a member's name; zipfile decodes them by one of two tables."""
    return member.orig_filename.encode("utf-8" if member.flag_bits & 0x800 else "cp437")


def _overlapping(members: list[zipfile.ZipInfo]) -> set[int]:
    """Return the places of members whose bytes overlap those of an earlier one.

    Such a small zip can hold the same data a million times. Python 3.11 does not check it.
    """
    found, end = set[int](), 0
    for place in sorted(range(len(members)), key=lambda place: members[place].header_offset):
        member = members[place]
        if member.header_offset < end:
            found.add(place)
        end = max(end, member.header_offset + 30 + len(_raw_name(member)) + member.compress_size)
    return found


# --- tar


class _BadHeader(Exception):
    """A wrong header that tarfile accepts, or silently takes for the end of the archive."""


class _Header(tarfile.TarInfo):
    """A tar header with checks that tarfile lacks: of negative sizes, malformed sizes and endless names.

    A negative size makes tarfile read backwards (CVE-2025-8194). After the first member, tarfile takes a damaged header
    for the end of the archive.
    """

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> "tarfile.TarInfo":
        header = cls._of_plain_file(buf, encoding, errors) or super().frombuf(buf, encoding, errors)
        if header.size < 0 or (header.type in _NAME_RECORDS and header.size > MAX_NAME_RECORD):
            raise _BadHeader(f"a size of {header.size} bytes in a header of type {header.type!r}")
        return header

    @classmethod
    def _of_plain_file(cls, buf: bytes, encoding: str, errors: str) -> "tarfile.TarInfo | None":
        """Return the header of an ordinary file, or None if tarfile has to parse it.

        tarfile parses thirteen fields and adds the bytes up twice. The scan needs three fields and saves a third of
        its time.
        """
        size, checksum = _OCTAL.fullmatch(buf, 124, 136), _OCTAL.fullmatch(buf, 148, 156)
        if len(buf) != tarfile.BLOCKSIZE or buf[156:157] != tarfile.REGTYPE or not size or not checksum:
            return None
        if sum(buf) - sum(buf[148:156]) + 8 * 32 != int(checksum[1], 8):
            return None
        header = cls(buf[:100].partition(b"\0")[0].decode(encoding, errors))
        header.size = int(size[1], 8)
        if prefix := buf[345:500].partition(b"\0")[0]:
            header.name = f"{prefix.decode(encoding, errors)}/{header.name}"
        return header

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> "tarfile.TarInfo":  # type: ignore[override]
        try:
            header = super().fromtarfile(archive)
        except (tarfile.EOFHeaderError, tarfile.EmptyHeaderError):  # type: ignore[attr-defined]
            raise  # the end
        except tarfile.HeaderError as error:
            raise _BadHeader(f"no tar header at byte {archive.offset} ({error})") from None
        size = header.pax_headers.get("size", "0")
        if not (size.isascii() and size.isdigit() and len(size) <= 19) or not 0 <= header.size < MAX_SIZE:
            raise _BadHeader(f"a size of {size[:40]!r} in a pax header")
        return header


class _Stream:
    """The bytes of a tar, expanded and counted against the limits; damage is raised after the bytes before it."""

    def __init__(self, file: IO[bytes], kind: str, limits: SourceLimits) -> None:
        self.is_compressed = kind != "tar"
        self._read1: Callable[[int], bytes] = file.read
        if kind == "tar.gz":
            self._read1 = gzip.GzipFile(fileobj=file).read1
        elif kind == "tar.zst":
            self._read1 = pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd").read
        ratio = max(FREE_TAR_EXPANSION, int(os.fstat(file.fileno()).st_size * limits.max_expansion_ratio))
        self._limit = min(limits.max_expanded_bytes, ratio)
        self._name = "max_expanded_bytes" if self._limit < ratio else "max_expansion_ratio"
        self._value = limits.max_expanded_bytes if self._limit < ratio else limits.max_expansion_ratio
        self._n_bytes = self._n_empty = 0
        self._error: Exception | None = None

    def read(self, n_bytes: int) -> bytes:
        """Return that many bytes, or fewer at the end; tarfile would go on for as long as a header claims."""
        data = self._read(n_bytes)
        self._n_empty = 0 if data else self._n_empty + 1
        if self._n_empty > MAX_EMPTY_READS:
            raise EOFError("it ends early")
        return data

    def drain(self) -> None:
        """Read to the end of a compressed stream, because its checksum is there."""
        while self.is_compressed and self._read(2**20):
            pass

    def _read(self, n_bytes: int) -> bytes:
        """Return that many bytes, or fewer where the stream ends or breaks; the next call raises the error."""
        parts, missing = list[bytes](), n_bytes
        while missing and not self._error:
            try:
                part = self._read1(missing)
            except MemoryError:
                raise
            except Exception as error:  # zlib.error, EOFError, OSError, ArrowException ...
                self._error = error
                break
            if not part:
                break
            parts.append(part)
            missing -= len(part)
        if self._error and missing == n_bytes:
            raise self._error
        self._n_bytes += n_bytes - missing
        if self.is_compressed and self._n_bytes > self._limit:
            detail = f"it expands to more than {self._limit} bytes, {self._name}={self._value:g}"
            raise _Refused(RejectReason.ARCHIVE_BOMB, detail)
        return b"".join(parts)


def _list_tar(stream: Any, listing: _Listing, pack: IO[bytes] | None) -> None:
    """List the members up to the end or to the first damage, which becomes a row."""
    problem, reason, position = "", RejectReason.TRUNCATED_ARCHIVE, 0
    try:
        for archive, member in _members(stream):
            position = member.offset_data
            listing.count_member()
            _read_tar_member(archive, member, listing, pack)
        stream.drain()
    except (DatasetError, MemoryError):
        raise
    except _Refused as refused:
        reason, problem = refused.args
    except Exception as error:  # TarError, zlib.error, EOFError, ValueError, RecursionError ...
        problem = f"{_words_of(error)}, after byte {position}"
    if not problem:
        if not listing.n_members:
            raise DatasetError(f"archive {listing.place}: it is empty")
        return
    if not listing.n_members:
        raise DatasetError(f"archive {listing.place}: {problem}; no member could be read")
    n_read = plural(listing.n_members, "member was", "members were")
    what = f"{problem}; {n_read} read, any further ones are lost ({listing.place})"
    listing.refuse(b"", 0, reason, what)


def _members(stream: Any) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    options: Any = {"encoding": "utf-8", "errors": "surrogateescape", "tarinfo": _Header}
    with tarfile.open(fileobj=stream, mode="r|", **options) as archive:
        while (member := archive.next()) is not None:
            yield archive, member
            archive.members.clear()  # type: ignore[attr-defined]  # tarfile keeps them all otherwise


def _read_tar_member(
    archive: tarfile.TarFile, member: tarfile.TarInfo, listing: _Listing, pack: IO[bytes] | None
) -> None:
    name = member.name.encode("utf-8", "surrogateescape")
    if member.isdir():
        return
    if not is_midi(name) or is_companion(name):
        listing.n_other_files += 1
        if name == listing.wanted and not _tar_refusal(member, name, listing.limits):
            listing.extra = _content(archive, member)
        return
    where = f"{listing.place}, byte {member.offset_data}"
    if refusal := _tar_refusal(member, name, listing.limits):
        reason, problem = refusal
        listing.refuse(name, 0 if reason == RejectReason.LINK_ENTRY else member.size, reason, f"{problem} ({where})")
        return
    try:
        data = _content(archive, member)
    except (MemoryError, _Refused):
        raise
    except Exception as error:
        problem = f"its {member.size} bytes: {_words_of(error)} ({where})"
        listing.refuse(name, member.size, RejectReason.TRUNCATED_ARCHIVE, problem)
        raise
    if is_companion(b"", data):
        listing.n_other_files += 1
        return
    offset = member.offset_data
    if pack is not None:
        try:
            offset = pack.tell()
            pack.write(data)
        except OSError as error:
            raise _Unwritable(error) from None
    listing.add(name, data, SLICE, offset, len(data))


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream: Any = archive.fileobj  # at the member's bytes; extractfile would make three objects for each
    data = stream.read(member.size)
    if len(data) < member.size:
        raise EOFError(f"{len(data)} are there")
    return data


def _tar_refusal(member: tarfile.TarInfo, name: bytes, limits: SourceLimits) -> tuple[RejectReason, str] | None:
    """Return why a member is not read, or None."""
    if member.islnk() or member.issym():
        return RejectReason.LINK_ENTRY, "a link, which is not followed"
    if member.ischr() or member.isblk() or member.isfifo():
        return RejectReason.LINK_ENTRY, "a device or pipe, which is not followed"
    if danger := danger_of(name):
        return RejectReason.UNSAFE_PATH, f"{danger}: {printable(name)}"
    if member.issparse() or any(key.startswith("GNU.sparse") for key in member.pax_headers):
        return RejectReason.UNSUPPORTED_COMPRESSION, "a sparse file"
    if member.size > limits.max_member_bytes:
        return RejectReason.TOO_LARGE, f"{member.size} bytes, above max_member_bytes={limits.max_member_bytes}"
    return None
