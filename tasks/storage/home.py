"""The home folder: the paths of all results, and the lock for writers."""

import errno
import json
import logging
import os
import shlex
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tasks.errors import BadHome, HomeError
from tasks.storage.files import acquire_lock, storage_problem

logger = logging.getLogger(__name__)

LOCK_WAIT = "ORCHESTRION_LOCK_WAIT_SECONDS"
MIN_FREE_BYTES = 256 * 2**20
MAX_HOME_BYTES = 480  # of the path: SQLite opens files with paths of up to 504
MAX_NAME_BYTES = 255
PRIVATE_FOLDER, PRIVATE_FILE = 0o700, 0o600
_LAYOUT = ("cache", "datasets", "generations", "logs", "mlflow", "prefect", "runs", "sample", "sessions", "sweeps")
_MARKS = ("lock", "datasets", "runs", "generations", "mlflow", "prefect", "cache", "session.json", "address-key")
_held_locks: dict[Path, int] = {}  # homes that this process has locked -> depth of nested calls


class _Below:
    """A path below the root of a home."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, home: "Home", owner: type) -> Path:
        return home.root / self.name


@dataclass(frozen=True, slots=True)
class Home:
    """A home folder with the paths in it; no other code joins these names."""

    root: Path

    @classmethod
    def at(cls, path: str | Path | None = None) -> "Home":
        """Return the home at `path`, by default at ORCHESTRION_HOME or at `.orchestrion` in the current folder.

        Raises:
            BadHome: the path is an address, not UTF-8, too long, or has a character that the databases refuse.
        """
        return cls(_checked(str(path or os.environ.get("ORCHESTRION_HOME") or ".orchestrion")))

    datasets = _Below("datasets")
    runs = _Below("runs")
    sweeps = _Below("sweeps")
    generations = _Below("generations")
    mlflow = _Below("mlflow")
    prefect = _Below("prefect")
    sample_corpus = _Below("sample")
    cache = _Below("cache")  # made again from the sources: hashes of unchanged files, downloads, unpacked archives
    services = _Below("services.json")
    password = _Below("password")  # of the servers of this home, readable by its owner alone
    address_key = _Below("address-key")  # of the digests that replace secrets in addresses, as private

    def prepare(self, min_free_bytes: int = MIN_FREE_BYTES) -> None:
        """Make the folder, accessible to this user alone, and check that it can be written to.

        Raises:
            BadHome: it is a file, or a folder of other things that is open to others.
            HomeError: it is read-only, or has less than `min_free_bytes` free.
        """
        probe = self.root / f".probe-{os.getpid()}"
        try:
            self.root.parent.mkdir(parents=True, exist_ok=True)
            self.root.mkdir(PRIVATE_FOLDER, exist_ok=True)
            self._make_private()
            probe.write_bytes(b"")
            probe.unlink()
        except (FileExistsError, NotADirectoryError):
            raise BadHome(f"home {self.root} is a file, not a folder; give another --home") from None
        except OSError as error:
            kind = BadHome if error.errno in (errno.ENAMETOOLONG, errno.ELOOP) else HomeError
            raise kind(f"cannot write to home {self.root}: {storage_problem(error) or error.strerror}") from None
        free = shutil.disk_usage(self.root).free
        if free < min_free_bytes:
            raise HomeError(
                f"home {self.root} has {free >> 20} MiB free, below the {min_free_bytes >> 20} MiB a run needs"
            )

    def _make_private(self) -> None:
        found = self.root.stat()
        if found.st_uid != os.geteuid() or not found.st_mode & 0o077:
            return
        names = {entry.name for entry in self.root.iterdir()} - {"lost+found"}
        shared = self.root == Path("/") or found.st_mode & stat.S_ISVTX
        if shared or (names and names.isdisjoint(_MARKS)):
            hint = "" if shared else f", or close it yourself: chmod 700 {shlex.quote(str(self.root))}"
            raise BadHome(
                f"home {self.root} is open to others and holds other things than a home; give a new folder{hint}"
            )
        self.root.chmod(PRIVATE_FOLDER)

    @contextmanager
    def locked(self, purpose: str) -> Iterator[None]:
        """Hold the home for one writing command; nested calls of the same process share the lock.

        ORCHESTRION_LOCK_WAIT_SECONDS sets how long to wait for another process, by default 0.

        Args:
            purpose: of the command, such as `orchestrion train`; the error of another process names it.
        Raises:
            HomeError: another process holds the home.
        """
        if _held_locks.get(self.root):
            _held_locks[self.root] += 1
            try:
                yield
            finally:
                _held_locks[self.root] -= 1
            return
        self.prepare()
        with _open_lock(self.root / "lock") as handle:
            if not acquire_lock(handle.fileno(), 0):
                self._wait_for(handle)
            handle.seek(0)
            handle.truncate()
            handle.write(json.dumps({"pid": os.getpid(), "purpose": purpose, "since": time.strftime("%F %T")}))
            handle.flush()
            _held_locks[self.root] = 1
            try:
                yield
            finally:
                del _held_locks[self.root]
                handle.seek(0)
                handle.truncate()

    def _wait_for(self, handle: IO[str]) -> None:
        busy, given = f"home {self.root} is in use by {_holder(handle)}", os.environ.get(LOCK_WAIT, "0")
        try:
            seconds = float(given)
        except ValueError:
            raise HomeError(f"{LOCK_WAIT}={given} is not a number of seconds") from None
        if seconds > 0:
            logger.warning("%s; waiting for it, up to %g s", busy, seconds)
        if not acquire_lock(handle.fileno(), seconds):
            raise HomeError(f"home {self.root} is in use by {_holder(handle)}; wait for it, or give another --home")


def is_home(folder: str | bytes) -> bool:
    """Return whether a folder is a home: it has a lock and at least two of a home's folders."""
    where = os.fsdecode(folder)
    if not os.path.isfile(os.path.join(where, "lock")):  # noqa: PTH113, PTH118  (asked of every folder of a source)
        return False
    return sum(os.path.isdir(os.path.join(where, name)) for name in _LAYOUT) >= 2  # noqa: PTH112, PTH118


def _checked(name: str) -> Path:
    if "://" in name:
        raise BadHome(f"home {name} is an address; a home is a folder of this machine")
    try:
        path = Path(name).expanduser().absolute()
        path.resolve()
        length = len(str(path).encode())
    except (RuntimeError, OSError) as error:  # no such user; links that lead in a circle; a name that is too long
        raise BadHome(f"home {name}: {getattr(error, 'strerror', None) or error}") from None
    except ValueError as error:
        problem = "is not UTF-8" if isinstance(error, UnicodeError) else "holds a NUL character"
        raise BadHome(f"home {name.encode('utf-8', 'backslashreplace').decode()!r} {problem}") from None
    if any(len(part.encode()) > MAX_NAME_BYTES for part in path.parts):
        raise BadHome(f"home {path}: a folder's name is too long, above {MAX_NAME_BYTES} bytes")
    wrong = next((character for character in str(path) if character == "?" or ord(character) < 32), None)
    if wrong is not None:
        raise BadHome(f"home {str(path)!r} holds the character {wrong!r}, which the paths of databases cannot")
    if length > MAX_HOME_BYTES:
        raise BadHome(f"home {path} is {length} bytes long, above {MAX_HOME_BYTES}: SQLite opens no longer paths")
    return path


def _open_lock(path: Path) -> IO[str]:
    """Open a lock that other users cannot hold, because they cannot read it."""
    try:
        handle = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE), "r+")
        if os.fstat(handle.fileno()).st_uid == os.geteuid():
            os.fchmod(handle.fileno(), PRIVATE_FILE)
    except OSError as error:
        raise HomeError(f"cannot open {path}: {storage_problem(error) or error.strerror}") from None
    return handle


def _holder(handle: IO[str]) -> str:
    try:
        handle.seek(0)
        holder = json.loads(handle.read(4096))
        return f"{holder['purpose']} (process {holder['pid']}, since {holder['since']})"
    except (ValueError, LookupError, TypeError, RecursionError):
        return "another process"
