"""Names, sizes and times of the files of a folder or list, in columns. No file is opened."""

import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.errors import DatasetError, NotFound, plural
from tasks.ingest.sources.names import archive_format, is_companion
from tasks.storage.file_names import is_midi, one_line, printable
from tasks.storage.home import is_home

CHUNK = 8192  # files whose Python objects exist at one time
TIMES: tuple[str, ...] = ("n_bytes", "mtime_ns", "ctime_ns", "inode")


@dataclass(slots=True)
class Found:
    """MIDI files below a folder, in order of their names."""

    members: pa.Array  # binary
    times: dict[str, np.ndarray]  # TIMES -> int64
    problems: dict[bytes, str]  # member -> why it has no status; its times are 0
    archives: list[bytes]
    n_other_files: int
    n_homes: int = 0  # homes of Orchestrion, which are left out
    notes: list[str] = field(default_factory=list)


class _Files:
    """The files found so far: names and times of one chunk in lists, those before in arrays."""

    def __init__(self) -> None:
        self.names: list[bytes] = []
        self.times: list[tuple[int, int, int, int]] = []
        self.chunks: list[pa.Array] = []
        self.time_chunks: list[np.ndarray] = []
        self.problems: dict[bytes, str] = {}
        self.archives: list[bytes] = []
        self.n_other_files = 0

    def sort(self, name: bytes, look: Callable[[], os.stat_result], place: str = "") -> None:
        """Add a file if it is MIDI or an archive by its name; count it otherwise."""
        if is_companion(name) or not (is_midi(name) or archive_format(name)):
            self.n_other_files += 1
        else:
            self.add(name, look, place)

    def add(self, name: bytes, look: Callable[[], os.stat_result], place: str = "") -> None:
        """Add a file with the status that `look` returns; a file that is not regular is refused unopened."""
        try:
            status = look()
        except (OSError, ValueError) as error:  # a dangling link, a folder that cannot be entered, a NUL byte in a list
            self.refuse(name, f"{getattr(error, 'strerror', None) or error} ({printable(name)}{place})")
            return
        if not stat.S_ISREG(status.st_mode):
            self.refuse(name, f"no regular file but a folder, device, pipe or socket ({printable(name)}{place})")
        elif archive_format(name):
            self.archives.append(name)
        else:
            self.names.append(name)
            inode = status.st_ino & (2**63 - 1)  # unsigned; the lower 63 bits show a change
            self.times.append((status.st_size, status.st_mtime_ns, status.st_ctime_ns, inode))
            if len(self.names) >= CHUNK:
                self.flush()

    def refuse(self, name: bytes, problem: str) -> None:
        self.names.append(name)
        self.times.append((0, 0, 0, 0))
        self.problems[name] = one_line(problem)

    def flush(self) -> None:
        self.chunks.append(pa.array(self.names, pa.binary()))
        self.time_chunks.append(np.array(self.times, np.int64).reshape(-1, len(TIMES)).T)
        self.names.clear()
        self.times.clear()

    def found(self, notes: Sequence[str] = (), n_homes: int = 0) -> Found:
        self.flush()
        members, times = pa.concat_arrays(self.chunks), np.concatenate(self.time_chunks, axis=1)
        self.chunks.clear()
        self.time_chunks.clear()
        pa.default_memory_pool().release_unused()
        if len(members) > 1 and not pc.all(pc.less(members[:-1], members[1:])).as_py():
            order = pc.sort_indices(members)
            members, times = members.take(order), times[:, order.to_numpy()]
        columns = dict(zip(TIMES, times, strict=True))
        return Found(members, columns, self.problems, sorted(self.archives), self.n_other_files, n_homes, list(notes))


def walk_folder(root: bytes, skip: bytes = b"") -> Found:
    """Find the MIDI files and archives below `root`, at any depth.

    Links to files are read. Links to folders are not followed, so there are no loops; a note counts them. Homes of
    Orchestrion are left out and counted, because they hold generated files. A folder below `root` that cannot be listed
    is a problem under its name with a slash at the end.

    Args:
        root: absolute path of a folder.
        skip: absolute path of a folder to leave out, such as the scan's own cache.
    Raises:
        DatasetError: `root` cannot be listed.
    """
    files, folders = _Files(), [b""]  # folders to list; names end in a slash
    linked, homes = list[bytes](), list[bytes]()
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(os.path.join(root, folder)) as entries:  # noqa: PTH118  (bytes, and a million of them)
                for entry in entries:
                    name, kind = folder + entry.name, _kind_of(entry)
                    if kind == "file":
                        files.sort(name, entry.stat)
                    elif kind == "link":
                        linked.append(name)
                    elif is_home(entry.path):
                        homes.append(name)
                    elif entry.path != skip:
                        folders.append(name + b"/")
        except OSError as error:
            if not folder:
                raise DatasetError(f"source {printable(root)}: cannot list it: {error.strerror}") from None
            files.refuse(folder, f"cannot list this folder: {error.strerror} ({printable(folder)})")
    notes = []
    if linked:
        notes.append(
            f"{plural(len(linked), 'link')} to folders not followed ({printable(min(linked))});"
            " give what they lead to as a source"
        )
    if homes:
        notes.append(
            f"{plural(len(homes), 'home')} of Orchestrion not read ({printable(min(homes))}), for they hold what it"
            " made itself; name a folder inside one as a source if that is meant"
        )
    return files.found(notes, len(homes))


def _kind_of(entry: os.DirEntry[bytes]) -> str:
    """Return `folder`, `link` (to a folder) or `file`; only the target of a link is opened."""
    if entry.is_dir(follow_symlinks=False):
        return "folder"
    try:
        return "link" if entry.is_symlink() and entry.is_dir() else "file"
    except OSError:  # a link that leads to itself
        return "file"


def read_list(path: bytes) -> Found:
    """Find the files that a list names: one path a line, relative to the list's folder, `#` before a comment.

    A repeated line counts once.

    Raises:
        NotFound, DatasetError: the list does not exist, or cannot be read.
    """
    files, folder = _Files(), os.path.dirname(path)  # noqa: PTH120
    try:
        with open(path, "rb") as lines:  # noqa: PTH123
            names = {line.strip(b"\r\n \t") for line in lines if not line.lstrip().startswith(b"#")} - {b""}
    except FileNotFoundError:
        raise NotFound(f"source {printable(path)} does not exist") from None
    except OSError as error:
        raise DatasetError(f"source {printable(path)}: {error.strerror}") from None
    for name in sorted(names):
        files.sort(name, partial(os.stat, os.path.join(folder, name)), f", named in {printable(path)}")  # noqa: PTH118
    return files.found()


def one_file(path: bytes) -> Found:
    """Find a single MIDI file, whatever its name; its folder is the container."""
    files, name = _Files(), os.path.basename(path)  # noqa: PTH119
    if is_companion(name):
        files.n_other_files = 1
    else:
        files.add(name, partial(os.stat, path))
    return files.found()
