"""A folder or a list of files -> names, sizes and times, in columns. Nothing is opened."""

# pyarrow.compute makes its functions when it is imported, so the type checker does not see them.
# pyright: reportAttributeAccessIssue=false

import os
import stat
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.errors import DatasetError, NotFound
from tasks.sources.listing import combined
from tasks.sources.names import archive_format, is_midi, printable

CHUNK = 8192  # files whose Python objects exist at one time
TIMES = ("n_bytes", "mtime_ns", "ctime_ns", "inode")


@dataclass(slots=True)
class Found:
    """MIDI files below a folder, in order of their names."""

    members: pa.Array  # binary
    times: dict[str, np.ndarray]  # TIMES -> int64
    problems: dict[bytes, str]  # member -> why it cannot even be looked at; its times are 0
    archives: list[bytes]
    n_other_files: int
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
        self.problems[name] = problem

    def flush(self) -> None:
        self.chunks.append(pa.array(self.names, pa.binary()))
        # An inode number is unsigned; its lower 63 bits will do to see a change.
        self.time_chunks.append(np.array([self.times[0], self.times[1], self.times[2],
                                          [inode & (2**63 - 1) for inode in self.times[3]]], np.int64))  # fmt: skip
        self.names.clear()
        for column in self.times:
            column.clear()

    def found(self, archives: list[bytes], n_other_files: int, notes: list[str]) -> Found:
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
        return Found(members, named, self.problems, sorted(archives), n_other_files, notes)


def walk_folder(root: bytes, skip: bytes = b"") -> Found:
    """Find the MIDI files and archives below `root`, at any depth.

    Links to files are read. Links to folders are not followed, wherever they lead: inside the tree the files are found
    without them, outside they are no part of it, and a loop cannot arise; a note counts them.

    Args:
        root: absolute path of a folder.
        skip: absolute path of a folder to leave out: the scan's own cache, should it lie inside.
    Raises:
        DatasetError: a folder cannot be listed.
    """
    columns = _Columns()
    archives: list[bytes] = []
    linked: list[bytes] = []
    n_other_files = 0
    folders = [b""]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(os.path.join(root, folder)) as entries:  # noqa: PTH118  (bytes, and a million of them)
                for entry in entries:
                    name = entry.name
                    kind = _kind_of(entry)
                    if kind == "folder":
                        if not skip or entry.path != skip:
                            folders.append(folder + name + b"/")
                    elif kind == "link":
                        linked.append(folder + name)
                    elif is_midi(name):
                        _look_at(entry, folder + name, columns)
                    elif archive_format(name):
                        archives.append(folder + name)
                    else:
                        n_other_files += 1
        except OSError as error:
            place = printable(error.filename or folder)
            raise DatasetError(f"source {printable(root)}: cannot list {place}: {error.strerror}") from None
    notes = []
    if linked:
        shown = printable(min(linked))
        notes.append(f"{len(linked)} links to folders not followed ({shown}); give what they lead to as a source")
    return columns.found(archives, n_other_files, notes)


def _kind_of(entry: os.DirEntry[bytes]) -> str:
    """Tell folders, links to folders and files apart; only a link costs a look at what it leads to."""
    if entry.is_dir(follow_symlinks=False):
        return "folder"
    return "link" if entry.is_symlink() and entry.is_dir() else "file"


def _look_at(entry: os.DirEntry[bytes], name: bytes, columns: _Columns) -> None:
    try:
        status = entry.stat()
    except OSError as error:  # a dangling link, or a folder that may be listed but not entered
        columns.refuse(name, f"{error.strerror} ({printable(name)})")
        return
    if stat.S_ISREG(status.st_mode):
        columns.add(name, status)
    else:
        columns.refuse(name, f"not a file but a device, pipe or socket ({printable(name)})")


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
        if archive_format(name):
            archives.append(name)
        elif not is_midi(name):
            n_other_files += 1
        else:
            try:
                status = os.stat(os.path.join(folder, name))  # noqa: PTH116, PTH118
            except OSError as error:
                columns.refuse(name, f"{error.strerror} ({printable(name)}, named in {printable(path)})")
                continue
            if stat.S_ISREG(status.st_mode):
                columns.add(name, status)
            else:
                columns.refuse(name, f"not a file ({printable(name)}, named in {printable(path)})")
    return columns.found(archives, n_other_files, [])


def one_file(path: bytes) -> Found:
    """Find a single file; its folder is the container."""
    columns = _Columns()
    columns.add(os.path.basename(path), os.stat(path))  # noqa: PTH116, PTH119
    return columns.found([], 0, [])
