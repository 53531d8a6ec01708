"""Paths that a user names, checked before work starts: inputs exist and outputs can be written.

Regular files are written whole and links are followed. Pipes and devices such as /dev/null are written to, never
replaced; a disk is never written to.
"""

import errno
import os
import re
import stat
import sys
from pathlib import Path
from urllib.parse import unquote_to_bytes

from tasks.errors import ConfigError, NotFound
from tasks.storage.file_names import printable
from tasks.storage.files import storage_problem, whole_file

_MAX_LINKS = 40  # as the kernel
_DESCRIPTORS = re.compile(r"/proc/(\d+)(?:/task/\d+)?/fd")


def check_there(path: Path, what: str) -> None:
    """Check that something is at a path.

    Args:
        what: its name in the message, such as `prompt`.
    Raises:
        NotFound: nothing is there, or the path cannot be examined.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"{what} {printable(str(path))} does not exist") from None
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or str(error)
        raise NotFound(f"{what} {printable(str(path))}: {problem}") from None


def as_text(path: Path) -> str:
    """Return a path as text for JSON and databases: itself, or a file:// address if it is not UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return path.absolute().as_uri()
    return str(path)


def path_of(text: str) -> Path:
    """Return the path of a text by `as_text` or by a user."""
    scheme, mark, path = text.partition("://")
    is_address = mark and scheme.lower() == "file" and path.startswith("/")
    return Path(os.fsdecode(unquote_to_bytes(path))) if is_address else Path(text)


def is_file(path: Path) -> bool:
    """Return whether a file is at a path; an impossible name is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def check_output(path: Path) -> None:
    """Check that a file can be written at a path, without touching it.

    Raises:
        ConfigError: it is a folder or a block device, has no name or one that is too long, or leads nowhere.
    """
    try:
        mode = found.st_mode if (found := _status(path)) else 0
        if stat.S_ISDIR(mode) or stat.S_ISBLK(mode):
            kind = "folder" if stat.S_ISDIR(mode) else "block device"
            raise ConfigError(f"cannot write to {printable(str(path))}: it is a {kind}; name a file")
        if not mode:
            _check_new(path, Path(os.path.realpath(path)))
    except (OSError, ValueError) as error:
        raise _refusal(path, error) from None


def write_output(path: Path, data: bytes) -> None:
    """Write `data` to a path that a user named.

    A regular file is replaced in one step and keeps its permissions; a symbolic link stays, and its target is written;
    a device, a pipe or an open descriptor such as /dev/stdout is written to.

    Raises:
        ConfigError: as `check_output`, or the place cannot be written to.
        OSError: the disk is full or broken.
    """
    check_output(path)
    try:
        descriptor = _descriptor_of(path)
        if descriptor is not None:
            sys.stdout.flush()
            _write_to(os.dup(descriptor), data)
            return
        found = _status(path)
        if found is not None and not stat.S_ISREG(found.st_mode):
            _write_to(os.open(path, os.O_WRONLY | os.O_NOCTTY), data)
            return
        with whole_file(Path(os.path.realpath(path))) as handle:
            if found is not None:
                os.fchmod(handle.fileno(), stat.S_IMODE(found.st_mode))
            handle.write(data)
    except BrokenPipeError:
        raise
    except (OSError, ValueError) as error:
        if storage_problem(error) and not isinstance(error, PermissionError):
            raise
        raise _refusal(path, error) from None


def is_regular_output(path: Path) -> bool:
    """Return whether writing to a path makes or replaces a regular file, so that others can stand beside it."""
    found = _status(path)
    return _descriptor_of(path) is None and (found is None or stat.S_ISREG(found.st_mode))


def _status(path: Path) -> os.stat_result | None:
    """Return the status of the end of a path's links, or None where nothing is yet."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _check_new(path: Path, real: Path) -> None:
    folder = next(above for above in real.parents if os.path.lexists(above))
    if not folder.is_dir():
        raise ConfigError(f"cannot write to {printable(str(path))}: {printable(str(folder))} is no folder")
    longest = os.pathconf(folder, "PC_NAME_MAX")
    for name in real.relative_to(folder).parts:
        if len(os.fsencode(name)) > longest:
            raise OSError(errno.ENAMETOOLONG, f"{os.strerror(errno.ENAMETOOLONG)}, limit {longest} bytes")


def _descriptor_of(path: Path) -> int | None:
    """Return the descriptor of this process behind a path such as /dev/stdout, or None."""
    place = os.path.abspath(path)  # noqa: PTH100  (resolve() would follow links)
    for _ in range(_MAX_LINKS):
        folder, name = os.path.split(place)
        folder = os.path.realpath(folder)
        owner = _DESCRIPTORS.fullmatch(folder)
        if owner and int(owner[1]) == os.getpid() and name.isdecimal():
            return int(name)
        place = os.path.join(folder, name)  # noqa: PTH118
        if not os.path.islink(place):  # noqa: PTH114
            return None
        place = os.path.join(folder, os.readlink(place))  # noqa: PTH115, PTH118
    return None


def _write_to(descriptor: int, data: bytes) -> None:
    with os.fdopen(descriptor, "wb", buffering=0) as handle:
        view = memoryview(data)
        while view:
            view = view[handle.write(view) :]


def _refusal(path: Path, error: Exception) -> ConfigError:
    if isinstance(error, ConfigError):
        return error
    problem = getattr(error, "strerror", None) or str(error)
    return ConfigError(f"cannot write to {printable(str(path))!r}: {problem}")
