"""Seals: the digest of a file, stored in the file and checked when it is read.

A JSON object has its seal under the key `seal`, a Parquet file in the metadata of its footer, a mapped file in the JSON
of its header. The SHA-256 of any other file (weights, MIDI, pictures) is in the sealed JSON beside it. Files from
before seals are used with one warning.
"""

import hashlib
import json
import logging
import mmap
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

from tasks.errors import DamagedFile, NoSeal
from tasks.storage.files import json_bytes, json_digest, json_text
from tasks.storage.strict_json import BadJson, Shape, check_shape, parse_json, read_json

logger = logging.getLogger(__name__)

SEAL = "seal"  # key of a JSON object: SHA-256 of the object without it, as canonical JSON
OTHER_BYTES = "its bytes are not those that were written"

TABLE_SEAL = "orchestrion.seal"  # key of a Parquet footer: SHA-256 of the file with 64 zeros in this value's place
_BLANK = b"0" * 64
_MARK = b"\x18" + bytes([len(TABLE_SEAL)]) + TABLE_SEAL.encode() + b"\x18\x40"  # as the footer's Thrift writes the key
_BLOCK = 1 << 20
_LONGEST_FOOTER = 64 * 2**20
_RACY_NS = 2 * 10**9  # a file changed so shortly before it was looked at may change again without its time moving
_CHUNK = 1 << 24  # bytes of a tree digest's leaves


# --- JSON


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object with its seal."""
    plain = json.loads(json_text({key: item for key, item in value.items() if key != SEAL}))  # as it is read back
    return plain | {SEAL: _digest(plain)}


def sealed_bytes(value: Mapping[str, Any]) -> bytes:
    """Return the bytes of a sealed JSON file."""
    return json_bytes(sealed(value))


def unsealed(value: Any, place: object, shape: Shape = dict) -> dict[str, Any]:
    """Return a parsed JSON object without its seal, or raise DamagedFile if it fits neither its seal nor `shape`.

    Args:
        place: of the object, for messages.
        shape: see `check_shape`.
    """
    if not isinstance(value, dict):
        raise DamagedFile(f"{place} is damaged: it is no JSON object")
    plain = {key: item for key, item in value.items() if key != SEAL}
    try:
        found = _digest(plain)
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"{place} is damaged: {error}") from None
    if SEAL in value:
        if value[SEAL] != found:
            raise DamagedFile(f"{place} is damaged: {OTHER_BYTES}")
    elif _is_renamed(plain):
        raise DamagedFile(f"{place} is damaged: the name of its seal is another")
    else:
        tell_unverified(place)
    try:
        check_shape(plain, shape)
    except BadJson as error:
        raise DamagedFile(f"{place} is damaged: {error}") from None
    return plain


def read_sealed(path: Path, shape: Shape = dict) -> dict[str, Any]:
    """Return the JSON object of a file without its seal.

    Raises:
        FileNotFoundError: the file does not exist.
        DamagedFile: it cannot be read, or does not hold a JSON object with this seal and shape.
    """
    try:
        value = read_json(path)
    except FileNotFoundError:
        raise
    except BadJson as error:
        raise DamagedFile(f"{path} is damaged: {error}") from None
    except OSError as error:
        raise DamagedFile(f"{path} cannot be read: {error.strerror}") from None
    return unsealed(value, path, shape)


def parse_sealed(text: bytes | str, place: object, shape: Shape = dict) -> dict[str, Any]:
    """Return the JSON object of a text, such as a line of a file, without its seal, or raise DamagedFile."""
    try:
        return unsealed(parse_json(text), place, shape)
    except BadJson as error:
        raise DamagedFile(f"{place} is damaged: {error}") from None


def _is_renamed(value: Any) -> bool:
    """Return whether an object has its seal under another key, as after a flipped bit."""
    items = value.items() if isinstance(value, dict) and SEAL not in value else ()
    return any(isinstance(item, str) and len(item) == 64 and item == _digest(value, key) for key, item in items)


def _digest(value: dict[str, Any], without: str | None = None) -> str:
    return json_digest({key: item for key, item in value.items() if key != without})


_warned: set[str] = set()
_told_unverified: list[str] = []  # the first file without a digest


def warn_once(message: str) -> None:
    """Log a warning once in a process, because a file may be read many times."""
    if message not in _warned:
        _warned.add(message)
        logger.warning("%s", message)


def tell_unverified(place: object) -> None:
    """Warn once in a process about files from before digests."""
    if not _told_unverified:
        _told_unverified.append(str(place))
        logger.warning(
            "%s has no digest: it and others of its age are used unverified; `orchestrion datasets verify --seal` adds"
            " digests",
            place,
        )


# --- whole files


@dataclass(frozen=True, slots=True)
class FileState:
    """The result of a check of all bytes of a file."""

    sha256: str  # hex
    has_seal: bool  # in the file, as a Parquet file of this project has
    fits: bool  # it has a seal and fits it


_looked_at: dict[tuple[str, tuple[int, ...]], FileState] = {}


def examine(path: Path) -> FileState:
    """Check all bytes of a file; the same process does not read an unchanged file again."""
    with path.open("rb") as handle:
        status = _status(handle)
        key = (str(path), status)
        if (known := _looked_at.get(key)) is not None:
            return known
        state = _examine(handle)
        if _status(handle) == status and max(status[2:4]) < time.time_ns() - _RACY_NS:
            _looked_at[key] = state
    return state


def _status(handle: IO[bytes]) -> tuple[int, ...]:
    status = os.fstat(handle.fileno())
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_dev


def _examine(handle: BufferedReader) -> FileState:
    place = _seal_place(handle)
    handle.seek(0)
    if place is None:
        return FileState(hashlib.file_digest(handle, "sha256").hexdigest(), has_seal=False, fits=False)
    whole = hashlib.sha256()
    while block := handle.read(min(_BLOCK, place - handle.tell())):
        whole.update(block)
    blank = whole.copy()
    written, rest = handle.read(64), handle.read()  # of the footer
    whole.update(written + rest)
    blank.update(_BLANK + rest)
    return FileState(whole.hexdigest(), has_seal=True, fits=blank.hexdigest().encode() == written)


def _seal_place(handle: IO[bytes]) -> int | None:
    """Return the offset of the seal of a Parquet file, or None."""
    size = handle.seek(0, 2)
    handle.seek(max(0, size - 8))
    footer = int.from_bytes(handle.read(4), "little") + 8  # its length and four letters
    begin = max(0, size - max(1 << 16, min(footer, _LONGEST_FOOTER)))
    handle.seek(begin)
    found = handle.read().rfind(_MARK)
    place = begin + found + len(_MARK)
    return place if found >= 0 and place + 64 <= size else None


class Sealing:
    """A file whose digest replaces `BLANK_SEAL` in it once it is written."""

    def __init__(self, handle: IO[bytes]) -> None:
        self.handle, self.begin = handle, handle.tell()
        self.digest, self.n_bytes, self.place = hashlib.sha256(), 0, -1
        self.closed = False

    def write(self, data: Any) -> int:
        block = bytes(data)
        self.digest.update(block)
        if (found := block.rfind(_MARK + _BLANK)) >= 0:  # a footer is written at once
            self.place = self.n_bytes + found + len(_MARK)
        self.n_bytes += len(block)
        return self.handle.write(block)

    def flush(self) -> None:
        self.handle.flush()

    def tell(self) -> int:
        return self.n_bytes

    def seal(self) -> None:
        """Put the digest in its place; the handle stays at the end of the file."""
        assert self.place >= 0, "no place for a seal"
        self.handle.seek(self.begin + self.place)
        self.handle.write(self.digest.hexdigest().encode())
        self.handle.seek(self.begin + self.n_bytes)


BLANK_SEAL = {TABLE_SEAL: _BLANK.decode()}


def require_whole(path: Path, digest: str = "") -> FileState:
    """Check all bytes of a file by its seal or its known digest, and raise DamagedFile if they are others.

    Args:
        digest: SHA-256 of a file without a seal; by default the one beside it or in its dataset's `hashes.json`.
    """
    state = examine(path)
    if state.has_seal and not digest:
        is_whole = state.fits
    else:
        known = digest or known_digest(path)
        is_whole = not known or known == state.sha256
        if not known:
            tell_unverified(path)
    if not is_whole:
        raise DamagedFile(f"{path} is damaged: {OTHER_BYTES}")
    return state


def known_digest(path: Path) -> str:
    """Return the SHA-256 of a file from the checksum beside it or from its dataset, or an empty string."""
    if beside := read_checksum(path):
        return beside
    folder = next((above for above in list(path.parents)[1:4] if (above / "versions").is_dir()), None)
    for hashes in sorted(folder.glob("versions/[!.]*/hashes.json")) if folder else ():
        if found := _read_hashes(hashes, hashes.stat().st_mtime_ns).get(str(path.relative_to(folder or ""))):
            return found
    return ""


@lru_cache(maxsize=64)
def _read_hashes(path: Path, changed_ns: int) -> dict[str, str]:
    try:
        found = read_json(path)
        check_shape(found, {str: str})
    except (OSError, BadJson):
        return {}
    return found


def checksum_path(path: Path) -> Path:
    """Return the path of the checksum beside a file, in the format of `sha256sum --check`."""
    return path.with_name(f"{path.name}.sha256")


def read_checksum(path: Path) -> str:
    """Return the SHA-256 in the checksum beside a file, empty if there is none; a damaged one fits nothing."""
    try:
        line = checksum_path(path).read_bytes().decode("utf-8", "backslashreplace")
    except OSError:
        return ""
    digest, _, name = line.partition("  ")
    return digest if name == f"{path.name}\n" else line or "nothing"


def drop_damaged(paths: Sequence[Path], n_threads: int, on_files: Callable[[int], None] | None = None) -> None:
    """Delete sealed files that are damaged, so that they are made again."""

    def is_whole(path: Path) -> bool:
        try:
            return examine(path).fits
        except OSError:
            return False

    with ThreadPoolExecutor(n_threads) as pool:
        for path, fits in zip(paths, pool.map(is_whole, paths), strict=True):
            if not fits:
                logger.warning("%s is damaged: %s; it is made again", path, OTHER_BYTES)
                path.unlink(missing_ok=True)
            if on_files:
                on_files(1)


# --- mapped files


def tree_digest(data: "mmap.mmap | memoryview", begin: int, n_threads: int) -> str:
    """Return the SHA-256 over the SHA-256 of each 16 MiB of a mapped file from `begin` on, as hex."""
    with memoryview(data) as view:
        places = range(begin, len(view), _CHUNK)
        with ThreadPoolExecutor(n_threads) as pool:
            leaves = pool.map(lambda place: hashlib.sha256(view[place : place + _CHUNK]).digest(), places)
            return hashlib.sha256(b"".join(leaves)).hexdigest()


def read_header(handle: IO[bytes], path: Path, shape: Shape, n_bytes: int = 4096) -> dict[str, Any]:
    """Return the sealed JSON at the beginning of a mapped file.

    Raises:
        NoSeal: the file is from before seals.
        DamagedFile: the header has other bytes than were written.
    """
    try:
        value = parse_json(handle.read(n_bytes))
    except BadJson as error:
        raise DamagedFile(f"{path} is damaged: {error}") from None
    if _is_renamed(value):
        raise DamagedFile(f"{path} is damaged: its header has no seal")
    if not isinstance(value, dict) or SEAL not in value:
        raise NoSeal(f"{path} has no digest")
    found = unsealed(value, path, shape)
    for key, item in found.items():
        if isinstance(item, int) and item < 0:
            raise DamagedFile(f"{path} is damaged: {key} is {item}")
    return found


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file as hex, empty if it cannot be read."""
    try:
        return examine(path).sha256
    except OSError:
        return ""
