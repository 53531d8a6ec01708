"""Atomic file writes, the JSON format of files, and errors of disks."""

import errno
import json
import math
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

_SURROGATE = re.compile(r"\\ud|[\ud800-\udfff]")  # as JSON in ASCII writes one, or as it is
_KEPT_NAME_BYTES = 180  # of a name of up to 255, in that of its temporary file
_STORAGE_ERRORS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
}


def storage_problem(error: BaseException | None) -> str | None:
    """Return what is wrong with the disk in a few words, or None if `error` has no such cause."""
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


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader sees the old file or the whole new one, whatever is killed when."""
    with whole_file(path) as handle:
        handle.write(data)


def write_private_once(path: Path, text: str) -> None:
    """Write a file for the owner alone, unless there is one; a reader never sees half of it."""
    if path.exists():
        return
    path.parent.mkdir(0o700, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)  # 0600
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        with suppress(FileExistsError):  # another process was faster
            os.link(name, path)
    finally:
        Path(name).unlink()


@contextmanager
def whole_file(path: Path, sync_name: bool = True) -> Iterator[IO[bytes]]:
    """Open a file to be written, which becomes `path` when all went well, and otherwise never was.

    Args:
        sync_name: the name too survives a power cut; otherwise `sync_folder` does it later for many files at once.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    name = os.fsdecode(os.fsencode(path.name)[:_KEPT_NAME_BYTES])
    temporary = path.with_name(f".{name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with temporary.open("wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if sync_name:
        sync_folder(path.parent)


def publish_folder(temporary: Path, final: Path) -> None:
    """Rename a finished folder into place, over an older one of that name; its files are on disk before the name is."""
    for path in temporary.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
    outdated = final.with_name(f".{final.name}.old")
    shutil.rmtree(outdated, ignore_errors=True)
    if final.exists():
        final.replace(outdated)
    temporary.replace(final)
    sync_folder(final.parent)
    shutil.rmtree(outdated, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def json_bytes(value: Any) -> bytes:
    """Return JSON as this project writes it, strict as `json_text`: sorted keys, two spaces, a newline at the end."""
    return (json_text(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def json_text(value: Any, **layout: Any) -> str:
    """Return JSON that any reader takes: null for numbers not finite, \\xNN for bytes of names that are not UTF-8."""
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
