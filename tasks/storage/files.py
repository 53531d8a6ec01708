"""Atomic file writes, locks, the JSON format of files, and errors of disks."""

import errno
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

_SURROGATE = re.compile(r"\\ud|[\ud800-\udfff]")  # escaped in JSON, or as a character
_KEPT_NAME_BYTES = 180  # of a file name, in the name of its temporary file; names have at most 255 bytes
_STORAGE_ERRORS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
}


def storage_problem(error: BaseException | None) -> str | None:
    """Return the problem of the disk that caused an error, in a few words; None for another cause."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in _STORAGE_ERRORS:
            return f"{_STORAGE_ERRORS[error.errno]}" + (f" ({error.filename})" if error.filename else "")
        if "database or disk is full" in str(error) or "No space left on device" in str(error):  # SQLite, safetensors
            return _STORAGE_ERRORS[errno.ENOSPC]
        if "attempt to write a readonly database" in str(error):
            return _STORAGE_ERRORS[errno.EROFS]
        error = getattr(error, "cause", None) or error.__cause__ or error.__context__
    return None


def write_atomically(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write `data` to `path`; a reader sees the old file or the whole new one, even after a kill."""
    with whole_file(path, mode=mode) as handle:
        handle.write(data)


def write_private_once(path: Path, text: str) -> None:
    """Write a file for the owner alone, unless there is one."""
    if not path.exists():
        path.parent.mkdir(0o700, parents=True, exist_ok=True)
        with whole_file(path, mode=0o600, replaces=False) as handle:
            handle.write(text.encode())


@contextmanager
def whole_file(path: Path, sync_name: bool = True, mode: int = 0o666, replaces: bool = True) -> Iterator[IO[bytes]]:
    """Open a temporary file for writing; it becomes `path` at the end of the block, and is removed after an error.

    Args:
        sync_name: make the name survive a power cut too. Without it, a later `sync` of the folder does so.
        mode: permissions of a new file, before the umask.
        replaces: replace a file of that name. Without it, an existing file stays, and the new one is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    name = os.fsdecode(os.fsencode(path.name)[:_KEPT_NAME_BYTES])
    temporary = path.with_name(f".{name}.{os.getpid()}-{threading.get_ident()}.tmp")
    temporary.unlink(missing_ok=True)  # of a process of that number that was killed
    try:
        with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        if replaces:
            temporary.replace(path)
        else:
            with suppress(FileExistsError):
                os.link(temporary, path)
            temporary.unlink()
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if sync_name:
        sync(path.parent)


def publish_file(temporary: Path, final: Path) -> None:
    """Rename a finished file into place once its bytes are on the disk."""
    sync(temporary)
    temporary.replace(final)
    sync(final.parent)


def publish_folder(temporary: Path, final: Path) -> None:
    """Flush the files of a finished folder and rename it into place, over an older one of that name."""
    for path in temporary.rglob("*"):
        if path.is_file():
            sync(path)
    outdated = final.with_name(f".{final.name}.old")
    shutil.rmtree(outdated, ignore_errors=True)
    if final.exists():
        final.replace(outdated)
    temporary.replace(final)
    sync(final.parent)
    shutil.rmtree(outdated, ignore_errors=True)


def sync(path: Path) -> None:
    """Flush a file's bytes, or the names in a folder, so that they survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def acquire_lock(descriptor: int, wait_seconds: float = math.inf) -> bool:
    """Lock an open file or folder against other processes; return False if it was not free in time.

    The lock is polled, because a blocking call does not end at Ctrl-C.
    """
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
        time.sleep(0.1)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a folder, or of a file, which is made if it is missing; other processes wait."""
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        acquire_lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def json_digest(value: Any) -> str:
    """Return the SHA-256 of a JSON value in canonical form, as hex: keys sorted, no spaces, ASCII."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def json_bytes(value: Any) -> bytes:
    """Return the bytes of a JSON file: `json_text` with sorted keys, two spaces of indent and a last newline."""
    return (json_text(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def json_text(value: Any, **layout: Any) -> str:
    """Return strict JSON: null for numbers that are not finite, \\xNN for bytes that are not UTF-8."""
    try:
        text = json.dumps(value, allow_nan=False, **layout)
    except ValueError:
        text = ""
    return text if text and not _SURROGATE.search(text) else json.dumps(_strict(value), **layout)


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {_strict(key): _strict(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return _SURROGATE.sub(_escaped, value) if isinstance(value, str) else value


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0]) if len(found[0]) == 1 else 0
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}" if code else found[0]
