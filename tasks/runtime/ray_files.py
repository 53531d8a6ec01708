"""Token and folder of a Ray that this process starts, readable by their owner alone."""

import logging
import os
import secrets
import shutil
import stat
import tempfile
from pathlib import Path

from tasks.errors import ConfigError, HomeError
from tasks.storage.files import acquire_lock, write_private_once

logger = logging.getLogger(__name__)

PREFIX = "orchestrion-"
FALLBACK = Path("/tmp")  # short on every system
MAX_SOCKET_PATH = 107  # bytes of the path of a Unix socket on Linux
# The path below Ray's folder: the time with microseconds, a process id of 7 digits, and the name of a second socket.
_SESSION = "/session_2026-11-30_12-00-00_000000_4194304/sockets/plasma_store.1"
_RANDOM = 8  # characters of `tempfile.mkdtemp`
MAX_ROOT = MAX_SOCKET_PATH - len(_SESSION) - len("/") - len(PREFIX) - _RANDOM - len("/r")


def secure_token(is_new: bool = True) -> None:
    """Close the file of Ray's token to others, or make one; all can read the token that Ray makes.

    RAY_AUTH_TOKEN and RAY_AUTH_TOKEN_PATH come first, as in Ray, and stay as they are.

    Args:
        is_new: Ray will be started, so a missing token is made.
    Raises:
        ConfigError: RAY_AUTH_TOKEN_PATH does not exist.
        HomeError: the file of the token belongs to another user, or cannot be closed to others.
    """
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token" or os.environ.get("RAY_AUTH_TOKEN"):
        return
    if given := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        if not Path(given).exists():
            raise ConfigError(f"RAY_AUTH_TOKEN_PATH={given} does not exist")
        return
    path = Path.home() / ".ray" / "auth_token"
    try:
        if not is_new and not path.exists():
            return  # Ray's own error names the missing token
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _close_to_others(path.parent)
        write_private_once(path, secrets.token_hex(32))
        if _close_to_others(path):
            logger.warning(
                "others could read Ray's token %s until now; `ray get-auth-token --generate` makes a new one", path
            )
    except OSError as error:
        raise HomeError(
            f"cannot keep Ray's token in {path}: {error.strerror}; set RAY_AUTH_TOKEN, or HOME to a folder of yours"
        ) from None


def _close_to_others(path: Path) -> bool:
    """Remove all rights of group and others; return whether they had any."""
    found = path.stat()
    if found.st_uid != os.geteuid():
        raise HomeError(f"{path} belongs to user {found.st_uid}, not to you; set RAY_AUTH_TOKEN to a token of your own")
    if not found.st_mode & 0o077:
        return False
    path.chmod(stat.S_IMODE(found.st_mode) & 0o700)
    return True


def folder_root() -> Path:
    """Return the parent folder of an embedded Ray: RAY_TMPDIR, TMPDIR or /tmp, whichever is writable and short enough.

    Raises:
        ConfigError: none is; the paths of sockets have at most 107 bytes.
    """
    wanted = [Path(value).absolute() for name in ("RAY_TMPDIR", "TMPDIR") if (value := os.environ.get(name))]
    for root in [*wanted, FALLBACK]:
        if len(os.fsencode(root)) <= MAX_ROOT and root.is_dir() and os.access(root, os.W_OK | os.X_OK):
            return root
    found = f"TMPDIR={wanted[-1]} has {len(os.fsencode(wanted[-1]))} bytes" if wanted else "TMPDIR is not set"
    raise ConfigError(
        f"no folder for Ray's sockets: {found}, and {FALLBACK} cannot be written to;"
        f" set TMPDIR to a writable folder of at most {MAX_ROOT} bytes"
    )


class Folder:
    """A folder that only this user can enter, for one Ray; removed by `remove`, or by the next Ray after a kill."""

    def __init__(self) -> None:
        root = folder_root()
        _remove_abandoned(root)
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=root))  # 0700 and new
        self._handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        acquire_lock(self._handle)
        self.ray = self.path / "r"  # Ray opens its own folder to everybody
        self.ray.mkdir()  # after the lock, because `_remove_abandoned` looks for it

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._handle)


def _remove_abandoned(root: Path) -> None:
    """Remove this project's unlocked folders below `root`."""
    for path in root.glob(f"{PREFIX}{'?' * _RANDOM}"):
        try:
            found = path.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or not (path / "r").is_dir():
                continue
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            if acquire_lock(handle, wait_seconds=0):
                shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(handle)
