"""The built-in sample corpus: 200 pieces of music and five flawed files, shipped as `sample_corpus.tar.xz`.

This project made the pieces with its own program (`bench/sample_corpus`); their licence is Apache-2.0, as README.txt in
the archive states.
"""

import os
import tarfile
from importlib import resources
from pathlib import Path

from tasks.errors import ConfigError

N_PIECES = 200
README = "README.txt"


def write_sample_corpus(folder: Path, n_pieces: int = N_PIECES, with_flaws: bool = False) -> list[Path]:
    """Write the sample corpus into a folder and return its paths; files with the right bytes stay untouched.

    Args:
        n_pieces: 0 to 200, of the first pieces.
        with_flaws: also write `flawed/` with an exact duplicate, a truncated file, a web page, an empty file and a file
            without notes; their paths come last.
    """
    if not 0 <= n_pieces <= N_PIECES:
        raise ConfigError(f"n_pieces={n_pieces} is outside 0 to {N_PIECES} (sample corpus)")
    files = sample_files()
    names = [name for name in files if name != README]
    wanted = names[:n_pieces] + (names[N_PIECES:] if with_flaws else [])
    for name in wanted:
        if not _holds(folder / name, files[name]):
            _write(folder / name, files[name])
    return [folder / name for name in wanted]


def sample_files() -> dict[str, bytes]:
    """Return the files of the shipped archive by name: README.txt, the pieces in order, then those in `flawed/`."""
    with (
        (resources.files("tasks.ingest.sources") / "sample_corpus.tar.xz").open("rb") as handle,
        tarfile.open(fileobj=handle, mode="r:xz") as archive,
    ):
        return {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]


def _holds(path: Path, data: bytes) -> bool:
    return path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data


def _write(path: Path, data: bytes) -> None:
    """Write a file whole without a sync; the next run compares it with the archive."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
