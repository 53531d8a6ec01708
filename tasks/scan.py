"""A source folder -> the files in it, their sizes and content hashes. Nothing is opened as music here."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import DatasetError, NotFound

MIDI_SUFFIXES = (".mid", ".midi", ".kar", ".rmi", ".smf")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of a source: where it is, and what to call it in the ledger."""

    location: str  # absolute; may hold surrogates for bytes that are not UTF-8
    n_bytes: int
    path: str  # within the source, '/' between folders; bytes that are not UTF-8 as \\xNN


@dataclass(frozen=True, slots=True)
class HashedFile:
    """A source file with the SHA-256 of its bytes, or with what kept us from reading them."""

    file: SourceFile
    content_hash: str
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Scan:
    """What a source holds: the MIDI files in order of their path, and how many others stand beside them."""

    files: list[SourceFile]
    n_other_files: int


def scan_source(source: Path) -> Scan:
    """List the MIDI files below `source`, by suffix in any case, at any depth.

    Raises:
        NotFound: no such path.
        DatasetError: it is neither a folder nor a MIDI file, or holds no MIDI file.
    """
    check_source(source)
    if source.is_file():
        return Scan([SourceFile(str(source.absolute()), source.stat().st_size, printable(source.name))], 0)
    files: list[SourceFile] = []
    n_other_files = 0

    def complain(error: OSError) -> None:
        raise DatasetError(f"source {source}: cannot list {error.filename}: {error.strerror}")

    root = str(source.absolute())
    for folder, _, names in os.walk(root, onerror=complain):
        for name in names:
            location = os.path.join(folder, name)  # noqa: PTH118  (Path is ten times slower over a million names)
            if not name.lower().endswith(MIDI_SUFFIXES):
                n_other_files += 1
                continue
            try:
                n_bytes = os.stat(location).st_size  # noqa: PTH116
            except OSError:  # a dangling link: hashing will say so, and the ledger will hold it
                n_bytes = 0
            files.append(SourceFile(location, n_bytes, printable(os.path.relpath(location, root))))
    if not files:
        found = f"{n_other_files} other files" if n_other_files else "it is empty"
        raise DatasetError(f"source {source} holds no MIDI file ({', '.join(MIDI_SUFFIXES)}): {found}")
    return Scan(sorted(files, key=lambda file: file.path), n_other_files)


def check_source(source: Path) -> None:
    """See that a source is a folder or a MIDI file, without looking inside.

    Raises:
        NotFound: no such path.
        DatasetError: it is neither.
    """
    if not source.exists():
        raise NotFound(f"source {source} does not exist")
    if not source.is_dir() and not source.name.lower().endswith(MIDI_SUFFIXES):
        raise DatasetError(f"source {source} is neither a folder nor a {' '.join(MIDI_SUFFIXES)} file")


def printable(name: str) -> str:
    """Return a file name as valid UTF-8; bytes that are not UTF-8 become \\xNN."""
    return os.fsencode(name).decode("utf-8", errors="backslashreplace").replace(os.sep, "/")


def hash_files(files: list[SourceFile]) -> list[HashedFile]:
    """Return the SHA-256 of each file; one that cannot be read carries the reason instead."""
    hashed = []
    for file in files:
        try:
            with open(file.location, "rb") as handle:  # noqa: PTH123
                hashed.append(HashedFile(file, hashlib.file_digest(handle, "sha256").hexdigest()))
        except OSError as error:
            hashed.append(HashedFile(file, "", f"{error.strerror} ({file.path})"))
    return hashed


def chunk_by_bytes(
    files: list[SourceFile], max_bytes: int = 16 * 2**20, max_files: int = 512
) -> list[list[SourceFile]]:
    """Cut a list of files into runs of at most `max_bytes` and `max_files`, for one worker task each."""
    chunks: list[list[SourceFile]] = []
    size = 0
    for file in files:
        if not chunks or size + file.n_bytes > max_bytes or len(chunks[-1]) >= max_files:
            chunks.append([])
            size = 0
        chunks[-1].append(file)
        size += file.n_bytes
    return chunks
