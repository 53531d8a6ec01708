"""The central directory of a zip file: what is in it and where, as columns."""

import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from tasks.errors import DatasetError
from tasks.sources.names import is_midi, printable

MAX_TAIL = 22 + 2**16 + 20  # end record, its comment, the zip64 locator
_ENTRY = struct.Struct("<4sBBHHHHHIIIHHHHHII")
_FLUSH = 8192  # entries whose Python objects exist at one time
_COLUMNS = ("flags", "method", "crc", "stored", "expanded", "header", "is_link")


@dataclass(frozen=True, slots=True)
class Entry:
    """One member, as the directory describes it."""

    name: bytes
    flags: int
    method: int
    crc: int
    stored: int
    expanded: int  # as claimed
    header: int  # offset of the local header
    is_link: int
    overlaps: bool  # its bytes overlap those of a member further in front


@dataclass(slots=True)
class Directory:
    """The MIDI files of a zip in the directory's order, and how many other files it has."""

    names: list[pa.Array]
    columns: list[np.ndarray]  # _COLUMNS x entries, for each array of names
    overlaps: list[np.ndarray]
    n_other_files: int
    wanted: Entry | None

    def chunks(self, max_entries: int) -> Iterator[list[Entry]]:
        """Yield the entries, some at a time."""
        for names, columns, overlaps in zip(self.names, self.columns, self.overlaps, strict=True):
            for begin in range(0, len(names), max_entries):
                part = slice(begin, begin + max_entries)
                values = columns[:, part].T.tolist()
                bits = overlaps[part].tolist()
                yield [
                    Entry(name, *numbers, overlap)  # pyright: ignore[reportCallIssue]
                    for name, numbers, overlap in zip(names[part].to_pylist(), values, bits, strict=True)
                ]


def read_directory(descriptor: int, path: str, max_members: int, wanted: bytes = b"") -> Directory:
    """Read the central directory.

    Args:
        wanted: name of a member that is not MIDI but asked for.
    Raises:
        DatasetError: there is none, it is damaged, or it lists more than `max_members`.
    """
    place = printable(path)
    size = os.fstat(descriptor).st_size
    data, shift = _find(descriptor, place, size, max_members)
    return _parse(data, shift, place, max_members, wanted)


def _find(descriptor: int, place: str, size: int, max_members: int) -> tuple[bytes, int]:
    """Return the directory's bytes, and how many stand in front of the archive, as in one that extracts itself."""
    tail_start = max(0, size - MAX_TAIL)
    tail = os.pread(descriptor, MAX_TAIL, tail_start)
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) < at + 22:
        raise DatasetError(f"archive {place}: no zip directory at its end, byte {size}; it is truncated or no zip")
    n_members, n_bytes, offset = struct.unpack_from("<HII", tail, at + 10)
    end = tail_start + at
    if at >= 20 and tail[at - 20 : at - 16] == b"PK\6\7":
        (where,) = struct.unpack_from("<Q", tail, at - 12)
        # What stands in front of the archive moves the record too; it also lies 56 bytes before its locator.
        for candidate in (where, end - 76):
            record = os.pread(descriptor, 56, candidate) if 0 <= candidate < size else b""
            if record[:4] == b"PK\6\6" and len(record) == 56:
                n_members, n_bytes, offset = struct.unpack_from("<QQQ", record, 32)
                end = candidate
                break
    if n_members > max_members:
        raise _too_many(place, n_members, max_members)
    begin = end - n_bytes
    if begin < offset or begin < 0:
        raise DatasetError(
            f"archive {place}: its directory of {n_bytes} bytes should begin at byte {offset},"
            f" but ends at byte {end}; it is damaged or truncated"
        )
    data = os.pread(descriptor, n_bytes, begin)
    while len(data) < n_bytes and (more := os.pread(descriptor, n_bytes - len(data), begin + len(data))):
        data += more  # one call reads 2 GiB at most
    return data, begin - offset


def _parse(data: bytes, shift: int, place: str, max_members: int, wanted: bytes) -> Directory:
    found = Directory([], [], [], 0, None)
    names: list[bytes] = []
    numbers: list[tuple[int, ...]] = []
    at = n_members = 0
    unpack = _ENTRY.unpack_from
    while at + 46 <= len(data):
        (signature, _, system, _, flags, method, _, _, crc, stored, expanded, n_name, n_extra, n_comment,
         _, _, attributes, header) = unpack(data, at)  # fmt: skip
        begin = at + 46
        following = begin + n_name + n_extra + n_comment
        if signature != b"PK\1\2" or following > len(data):
            break
        name = data[begin : begin + n_name]
        if 0xFFFFFFFF in (stored, expanded, header):
            extra = data[begin + n_name : begin + n_name + n_extra]
            expanded, stored, header = (min(value, 2**62) for value in _zip64(extra, expanded, stored, header))
        n_members += 1
        at = following
        if n_members > max_members:
            raise _too_many(place, n_members, max_members)
        row = (flags, method, crc, stored, expanded, header + shift, system == 3 and stat.S_ISLNK(attributes >> 16))
        if is_midi(name):
            names.append(name)
            numbers.append(row)
            if len(names) >= _FLUSH:
                _flush(found, names, numbers)
        elif not name.endswith(b"/"):
            found.n_other_files += 1
            if wanted and name == wanted:
                found.wanted = Entry(name, *row, overlaps=False)  # pyright: ignore[reportCallIssue]
    if at != len(data):
        raise DatasetError(
            f"archive {place}: its directory is damaged at byte {at} of {len(data)}, after {n_members} members"
        )
    _flush(found, names, numbers)
    _mark_overlaps(found)
    return found


def _flush(found: Directory, names: list[bytes], numbers: list[tuple[int, ...]]) -> None:
    found.names.append(pa.array(names, pa.binary()))
    found.columns.append(np.array(numbers, np.int64).reshape(-1, len(_COLUMNS)).T)
    names.clear()
    numbers.clear()


def _mark_overlaps(found: Directory) -> None:
    """Find members whose bytes overlap those of another: how a small zip holds the same data a million times."""
    header = np.concatenate([columns[5] for columns in found.columns])
    name_bytes = np.concatenate([np.diff(_offsets(names)) for names in found.names])
    end = header + 30 + name_bytes + np.concatenate([columns[3] for columns in found.columns])
    order = np.argsort(header, kind="stable")
    overlaps = np.zeros(len(header), bool)
    if len(order):
        overlaps[order[1:]] = header[order[1:]] < np.maximum.accumulate(end[order])[:-1]
    found.overlaps = np.split(overlaps, np.cumsum([len(names) for names in found.names])[:-1])


def _offsets(names: pa.Array) -> np.ndarray:
    return np.frombuffer(names.buffers()[1], np.int32)[names.offset : names.offset + len(names) + 1]


def _too_many(place: str, n_members: int, limit: int) -> DatasetError:
    return DatasetError(f"archive {place} has {n_members} members or more, above max_archive_members={limit}")


def _zip64(extra: bytes, *values: int) -> tuple[int, ...]:
    """Replace each value of 0xFFFFFFFF by the next one of the zip64 field."""
    at = 0
    while at + 4 <= len(extra):
        tag, size = struct.unpack_from("<HH", extra, at)
        if tag == 1:
            field = extra[at + 4 : at + 4 + size]
            numbers = iter(struct.unpack(f"<{len(field) // 8}Q", field[: len(field) // 8 * 8]))
            return tuple(next(numbers, value) if value == 0xFFFFFFFF else value for value in values)
        at += 4 + size
    return values
