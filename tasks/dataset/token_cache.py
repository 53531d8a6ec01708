"""The memory-mapped token file of a split: Parquet cannot be mapped token by token.

Such a file can be made again from the shards at any time. It is named by what the shards' footers say, so that other
shards are another file, and holds, in this order:

    4,096 bytes     JSON with a seal: digest of the shards, number of rows and of tokens, digest of all that follows
    tokens          uint16, little-endian, all rows end to end; zeros up to a multiple of 8 bytes
    offsets         int64, little-endian: rows + 1 of them, from 0 to the number of tokens
"""

import hashlib
import json
import logging
import mmap
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from tasks.errors import DamagedFile, NoSeal, plural
from tasks.music.arrays import IntArray, offsets_of
from tasks.music.tokenizers.base import TokenArray
from tasks.runtime.cluster import n_cpus
from tasks.storage.files import locked, storage_problem, whole_file
from tasks.storage.integrity import OTHER_BYTES, read_header, sealed, tree_digest
from tasks.storage.parquet import read_lists

logger = logging.getLogger(__name__)

_REVISION = 1  # of the layout, part of the digest
_HEADER_BYTES = 4096
_HEADER = {"digest": str, "n_rows": int, "n_tokens": int, "rest": str}
_ROWS_AT_ONCE = 64


@dataclass(frozen=True, slots=True, eq=False)
class FlatTokens:
    """Rows of tokens end to end; row i is `tokens[offsets[i]:offsets[i + 1]]`. Mapped arrays cannot be written to."""

    tokens: TokenArray
    offsets: IntArray  # [rows + 1]


def flat_tokens(shards: Sequence[Path], folder: Path | None = None) -> FlatTokens:
    """Return the tokens of `shards`, end to end in their order.

    Args:
        folder: where the flat file lies, or is made in constant memory if it is missing or damaged. Several processes
            may ask at once: one makes it and the others wait. Without a folder, or if it cannot be written to, all
            tokens are held in memory.
    Raises:
        DamagedFile: a shard has other bytes than were written.
        OSError: a shard is missing or cannot be read.
    """
    if folder is None:
        return _in_memory(shards)
    try:
        path = flat_path(shards, folder)
        return _map(path) or _make(path, shards)
    except OSError as error:
        reason = storage_problem(error) or error
        logger.warning(
            "no flat tokens in %s (%s): %s held in memory",
            folder,
            reason,
            plural(len(shards), "shard is", "shards are"),
        )
        return _in_memory(shards)


def flat_path(shards: Sequence[Path], folder: Path) -> Path:
    """Return where the flat file of `shards` is, or would be."""
    said = hashlib.sha256(f"{_REVISION}\n".encode())
    for shard in shards:
        said.update(f"{shard.name}\n{shard.stat().st_size}\n".encode() + _footer(shard))
    return folder / f"{said.hexdigest()[:24]}.tokens"


def _footer(shard: Path) -> bytes:
    """Return the end of a Parquet file: counts, statistics and places of all its parts."""
    with shard.open("rb") as handle:
        size = handle.seek(0, 2)
        handle.seek(max(0, size - 8))  # the footer's length and four letters
        n_bytes = int.from_bytes(handle.read(4), "little") + 8
        handle.seek(max(0, size - n_bytes))
        return handle.read()


def _in_memory(shards: Sequence[Path]) -> FlatTokens:
    parts = [part for shard in shards for part in _rows(shard)]
    lengths = np.concatenate([np.zeros(0, np.int64), *(lengths for lengths, _ in parts)])
    return FlatTokens(np.concatenate([np.zeros(0, np.uint16), *(ids for _, ids in parts)]), offsets_of(lengths))


def _rows(shard: Path) -> Iterator[tuple[IntArray, TokenArray]]:
    """Yield the lengths of some rows and their tokens, end to end."""
    for lists in read_lists(shard, "tokens", _ROWS_AT_ONCE):
        yield np.diff(lists.offsets.to_numpy()).astype(np.int64), lists.flatten().to_numpy()


def _make(path: Path, shards: Sequence[Path]) -> FlatTokens:
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent / ".lock"):
        if not _map(path):  # else another process made it meanwhile
            for left_by_a_kill in path.parent.glob(f".{path.name}.*.tmp"):
                left_by_a_kill.unlink()
            started = time.perf_counter()
            with whole_file(path) as handle:
                n_tokens = _write(handle, path.stem, shards)
            seconds = time.perf_counter() - started
            logger.info(
                "laid %d tokens of %s flat in %s, %.1f s", n_tokens, plural(len(shards), "shard"), path, seconds
            )
    made = _map(path)
    if not made:
        raise OSError(f"{path} does not hold what was written to it")
    return made


def _write(handle: IO[bytes], digest: str, shards: Sequence[Path]) -> int:
    """Write a flat file's three parts, the first one last, and return the number of tokens."""
    lengths, n_tokens = [np.zeros(0, np.int64)], 0
    handle.seek(_HEADER_BYTES)
    for shard in shards:
        for row_lengths, ids in _rows(shard):
            handle.write(ids.astype("<u2", copy=False).data)
            lengths.append(row_lengths)
            n_tokens += len(ids)
    offsets = offsets_of(np.concatenate(lengths)).astype("<i8", copy=False)
    handle.write(bytes(_offsets_at(n_tokens) - handle.tell()))
    handle.write(offsets.data)
    handle.flush()
    with Path(handle.name).open("rb") as written:
        rest = _digest_of(mmap.mmap(written.fileno(), 0, access=mmap.ACCESS_READ))
    header = {"digest": digest, "n_rows": len(offsets) - 1, "n_tokens": n_tokens, "rest": rest}
    handle.seek(0)
    handle.write(json.dumps(sealed(header)).encode().ljust(_HEADER_BYTES - 1) + b"\n")
    return n_tokens


def _map(path: Path) -> FlatTokens | None:
    """Return a flat file's arrays, or None if it is missing or not what was written; all its bytes are checked."""
    try:
        return _open(path)
    except FileNotFoundError:
        return None
    except DamagedFile as error:
        logger.warning("%s; it is made again from the shards", error)
        return None


def _open(path: Path) -> FlatTokens:
    with path.open("rb") as handle:
        header = read_header(handle, path, _HEADER)
        n_rows, n_tokens = header["n_rows"], header["n_tokens"]
        whole = _offsets_at(n_tokens) + 8 * (n_rows + 1)
        if header["digest"] != path.stem or handle.seek(0, 2) != whole:
            raise DamagedFile(f"{path} is damaged: it holds other shards or {handle.tell()} bytes, not {whole}")
        mapped = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
    if _digest_of(mapped) != header["rest"]:
        raise DamagedFile(f"{path} is damaged: {OTHER_BYTES}")
    mapped.madvise(mmap.MADV_RANDOM)  # windows from a cold disk come 5 times faster than with read-ahead
    tokens = np.frombuffer(mapped, "<u2", n_tokens, _HEADER_BYTES)
    return FlatTokens(tokens, np.frombuffer(mapped, "<i8", n_rows + 1, _offsets_at(n_tokens)))


def _digest_of(mapped: mmap.mmap) -> str:
    return tree_digest(mapped, _HEADER_BYTES, n_cpus())


def check_flat(path: Path) -> None:
    """Check all bytes of a flat file; one from before digests is skipped, because it is made again anyway.

    Raises:
        DamagedFile: it is not what was written.
        OSError: it cannot be read.
    """
    with suppress(NoSeal):
        _open(path)


def _offsets_at(n_tokens: int) -> int:
    """Return where the offsets begin, in bytes."""
    return _HEADER_BYTES + -(-2 * n_tokens // 8) * 8
