"""Checks of the paths that a user names, and writing to them.

Regular files are written whole, through links. Pipes and devices such as /dev/null are written to, never replaced.
"""

import errno
import os
import re
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote_to_bytes

from tasks.errors import ConfigError, NotFound
from tasks.storage.file_names import printable
from tasks.storage.files import publish_folder, storage_problem, whole_file

_MAX_LINKS = 40  # as the kernel
_DESCRIPTORS = re.compile(r"/proc/(\d+)(?:/task/\d+)?/fd")


def check_there(path: Path, what: str) -> None:
    """Raise NotFound if nothing is at a path; `what` names it in the message, such as `prompt`."""
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
    """Return the path that `as_text` or a user wrote."""
    scheme, mark, path = text.partition("://")
    is_address = mark and scheme.lower() == "file" and path.startswith("/")
    return Path(os.fsdecode(unquote_to_bytes(path))) if is_address else Path(text)


def read_input(path: Path) -> bytes:
    """Return the bytes of a file that a user named.

    Raises:
        NotFound: it cannot be read.
    """
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or str(error)
        raise NotFound(f"cannot read {printable(str(path))}: {problem}") from None


def is_file(path: Path) -> bool:
    """Return whether a file is at a path; False for an impossible name."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def check_output(path: Path) -> None:
    """Check that a file can be written at a path, without touching it.

    Raises:
        ConfigError: it is a folder or a block device, its name is too long, or its folder does not exist.
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


def check_output_folder(path: Path) -> None:
    """Check that a folder can be made or filled at a path, without touching it; errors as in `check_output`."""
    real = Path(os.path.realpath(path))
    try:
        found = _status(path)
        if found is None:
            _check_new(path, real)
        elif not stat.S_ISDIR(found.st_mode):
            raise ConfigError(f"cannot write to {printable(str(path))}: it is a file; name a folder")
        above = next((folder for folder in real.parents if folder.is_dir()), real)  # where the folder is replaced
        if not all(os.access(folder, os.W_OK | os.X_OK) for folder in (above, *([real] if found else []))):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except (OSError, ValueError) as error:
        raise _refusal(path, error) from None


def write_output_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Make a folder at a path that a user named, in one step; an existing one is replaced.

    Args:
        fill: gets an empty folder beside it and writes the contents.
    Raises:
        ConfigError: the path cannot be written to.
        OSError: the disk is full or broken.
    """
    real = Path(os.path.realpath(path))
    unfinished = real.with_name(f".{real.name}.unfinished")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        fill(unfinished)
        publish_folder(unfinished, real)
    except (OSError, ValueError) as error:
        if storage_problem(error) and not isinstance(error, PermissionError):
            raise
        raise _refusal(path, error) from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def write_output(path: Path, data: bytes) -> None:
    """Write `data` to a path that a user named; a regular file is replaced in one step and keeps its permissions.

    Raises:
        ConfigError: the path cannot be written to.
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
    """Return whether writing to a path makes or replaces a regular file."""
    found = _status(path)
    return _descriptor_of(path) is None and (found is None or stat.S_ISREG(found.st_mode))


def _status(path: Path) -> os.stat_result | None:
    """Return the status of the end of a path's links, or None where nothing is yet."""
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
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
