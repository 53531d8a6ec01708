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
from tasks.ingest.sources.listing import combined
from tasks.ingest.sources.names import archive_format, is_companion
from tasks.storage.file_names import is_midi, one_line, printable
from tasks.storage.home import is_home

CHUNK = 8192  # files whose Python objects exist at one time
TIMES = ("n_bytes", "mtime_ns", "ctime_ns", "inode")


@dataclass(slots=True)
class Found:
    """MIDI files below a folder, in order of their names."""

    members: pa.Array  # binary
    times: dict[str, np.ndarray]  # TIMES -> int64
    problems: dict[bytes, str]  # member -> why it has no status; its times are 0
    archives: list[bytes]
    n_other_files: int
    n_homes: int = 0  # homes of Orchestrion, which hold what it made itself, and are left out
    notes: list[str] = field(default_factory=list)


class _Columns:
    """Names and times, as lists for one chunk and as arrays before that."""

    def __init__(self) -> None:
        self.names: list[bytes] = []
        self.times: tuple[list[int], ...] = ([], [], [], [])
        self.chunks: list[pa.Array] = []
        self.time_chunks: list[np.ndarray] = []
        self.problems: dict[bytes, str] = {}

    def add(self, name: bytes, status: os.stat_result) -> None:
        sizes, mtimes, ctimes, inodes = self.times
        self.names.append(name)
        sizes.append(status.st_size)
        mtimes.append(status.st_mtime_ns)
        ctimes.append(status.st_ctime_ns)
        inodes.append(status.st_ino)
        if len(self.names) >= CHUNK:
            self.flush()

    def refuse(self, name: bytes, problem: str) -> None:
        self.names.append(name)
        for column in self.times:
            column.append(0)
        self.problems[name] = one_line(problem)

    def flush(self) -> None:
        self.chunks.append(pa.array(self.names, pa.binary()))
        # An inode number is unsigned; its lower 63 bits show a change.
        self.time_chunks.append(np.array([self.times[0], self.times[1], self.times[2],
                                          [inode & (2**63 - 1) for inode in self.times[3]]], np.int64))  # fmt: skip
        self.names.clear()
        for column in self.times:
            column.clear()

    def found(self, archives: list[bytes], n_other_files: int, notes: Sequence[str] = (), n_homes: int = 0) -> Found:
        self.flush()
        members = combined(pa.chunked_array(self.chunks, pa.binary()))
        times = np.concatenate(self.time_chunks, axis=1)
        self.chunks.clear()
        self.time_chunks.clear()
        pa.default_memory_pool().release_unused()
        if len(members) > 1 and not pc.all(pc.less(members[:-1], members[1:])).as_py():
            order = pc.sort_indices(members)
            members, times = members.take(order), times[:, order.to_numpy()]
        named: dict[str, np.ndarray] = {name: column for name, column in zip(TIMES, times, strict=True)}  # noqa: C416
        return Found(members, named, self.problems, sorted(archives), n_other_files, n_homes, list(notes))


def walk_folder(root: bytes, skip: bytes = b"") -> Found:
    """Find the MIDI files and archives below `root`, at any depth.

    Links to files are read. Links to folders are not followed, so there are no loops; a note counts them. Homes of
    Orchestrion below `root` are left out and counted: they hold what it generated. A folder below `root` that cannot be
    listed is a problem under its name, with a slash at the end.

    Args:
        root: absolute path of a folder.
        skip: absolute path of a folder to leave out, such as the scan's own cache.
    Raises:
        DatasetError: `root` cannot be listed.
    """
    walk = _Walk(root, skip)
    while walk.folders:
        folder = walk.folders.pop()
        try:
            with os.scandir(os.path.join(root, folder)) as entries:  # noqa: PTH118  (bytes, and a million of them)
                for entry in entries:
                    walk.sort(entry, folder + entry.name)
        except OSError as error:
            if not folder:
                raise DatasetError(f"source {printable(root)}: cannot list it: {error.strerror}") from None
            problem = f"cannot list this folder: {error.strerror} ({printable(folder)})"
            walk.columns.refuse(folder, problem)
    return walk.found()


class _Walk:
    """The state of a walk."""

    def __init__(self, root: bytes, skip: bytes) -> None:
        self.root, self.skip = root, skip
        self.folders = [b""]  # still to be listed; names end in a slash
        self.columns = _Columns()
        self.archives: list[bytes] = []
        self.linked: list[bytes] = []
        self.homes: list[bytes] = []
        self.n_other_files = 0

    def sort(self, entry: os.DirEntry[bytes], name: bytes) -> None:
        kind = _kind_of(entry)
        if kind == "folder":
            if is_home(entry.path):
                self.homes.append(name)
            elif not self.skip or entry.path != self.skip:
                self.folders.append(name + b"/")
        elif kind == "link":
            self.linked.append(name)
        elif is_midi(name) and not is_companion(name):
            _look_at(entry.stat, name, self.columns)
        elif archive_format(name) and not is_companion(name):
            _look_at(entry.stat, name, self.columns, self.archives)
        else:
            self.n_other_files += 1

    def found(self) -> Found:
        notes = []
        if self.linked:
            shown = printable(min(self.linked))
            notes.append(
                f"{plural(len(self.linked), 'link')} to folders not followed ({shown});"
                " give what they lead to as a source"
            )
        if self.homes:
            shown = printable(min(self.homes))
            notes.append(
                f"{plural(len(self.homes), 'home')} of Orchestrion not read ({shown}), for they hold what it made"
                " itself; name a folder inside one as a source if that is meant"
            )
        return self.columns.found(self.archives, self.n_other_files, notes, len(self.homes))


def _kind_of(entry: os.DirEntry[bytes]) -> str:
    """Return `folder`, `link` (to a folder) or `file`; only the target of a link is opened."""
    if entry.is_dir(follow_symlinks=False):
        return "folder"
    try:
        return "link" if entry.is_symlink() and entry.is_dir() else "file"
    except OSError:  # a link that leads to itself
        return "file"


def _look_at(
    look: Callable[[], os.stat_result], name: bytes, columns: _Columns, archives: list[bytes] | None = None,
    place: str = "",
) -> None:  # fmt: skip
    """Add a file to the columns, or to the archives where it is one; a file that is not regular is refused unopened."""
    try:
        status = look()
    except (OSError, ValueError) as error:  # a dangling link, a folder that cannot be entered, a NUL byte in a list
        columns.refuse(name, f"{getattr(error, 'strerror', None) or error} ({printable(name)}{place})")
        return
    if not stat.S_ISREG(status.st_mode):
        columns.refuse(name, f"no regular file but a folder, device, pipe or socket ({printable(name)}{place})")
    elif archives is None:
        columns.add(name, status)
    else:
        archives.append(name)


def read_list(path: bytes) -> Found:
    """Find the files that a list names: one path a line, relative to the list's folder, `#` before a comment.

    A line that stands twice counts once.

    Raises:
        DatasetError: the list cannot be read.
    """
    columns = _Columns()
    archives: list[bytes] = []
    n_other_files = 0
    folder = os.path.dirname(path)  # noqa: PTH120
    try:
        with open(path, "rb") as lines:  # noqa: PTH123
            names = {line.strip(b"\r\n \t") for line in lines if not line.lstrip().startswith(b"#")} - {b""}
    except FileNotFoundError:
        raise NotFound(f"source {printable(path)} does not exist") from None
    except OSError as error:
        raise DatasetError(f"source {printable(path)}: {error.strerror}") from None
    for name in sorted(names):
        is_archive = bool(archive_format(name))
        if is_companion(name) or not (is_archive or is_midi(name)):
            n_other_files += 1
            continue
        look = partial(os.stat, os.path.join(folder, name))  # noqa: PTH118
        _look_at(look, name, columns, archives if is_archive else None, f", named in {printable(path)}")
    return columns.found(archives, n_other_files)


def one_file(path: bytes) -> Found:
    """Find a single file; its folder is the container."""
    columns = _Columns()
    name = os.path.basename(path)  # noqa: PTH119
    if is_companion(name):
        return columns.found([], 1)
    _look_at(partial(os.stat, path), name, columns)
    return columns.found([], 0)
