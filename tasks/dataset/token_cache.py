"""The memory-mapped token file of a split, made from its Parquet shards, which cannot be mapped.

The file can be made again at any time. A digest of the shards' footers is its name. It holds, in this order:

    4,096 bytes     JSON with a seal: digest of the shards, number of rows and of tokens, digest of all that follows
    tokens          uint16, little-endian, all rows end to end; zeros up to a multiple of 8 bytes
    offsets         int64, little-endian: rows + 1 of them, from 0 to the number of tokens
"""

import hashlib
import logging
import mmap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks.errors import NoSeal, plural
from tasks.music.arrays import IntArray, offsets_of
from tasks.music.tokenizers.base import TokenArray
from tasks.runtime.cluster import n_cpus
from tasks.storage.files import locked, storage_problem
from tasks.storage.integrity import tree_digest
from tasks.storage.mapped import HEADER_BYTES, map_arrays, mapped_file, unless_damaged
from tasks.storage.parquet import read_lists

logger = logging.getLogger(__name__)

_REVISION = 1  # of the layout, part of the digest
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
        folder: of the flat file, which is made in constant memory if it is missing or damaged. One of several
            processes makes it, and the others wait. Without a folder, or if it cannot be written to, all tokens are
            held in memory.
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
        reason, held = storage_problem(error) or error, plural(len(shards), "shard is", "shards are")
        logger.warning("no flat tokens in %s (%s): %s held in memory", folder, reason, held)
        return _in_memory(shards)


def flat_path(shards: Sequence[Path], folder: Path) -> Path:
    """Return the path of the flat file of `shards`."""
    digest = hashlib.sha256(f"{_REVISION}\n".encode())
    for shard in shards:
        digest.update(f"{shard.name}\n{shard.stat().st_size}\n".encode() + _footer(shard))
    return folder / f"{digest.hexdigest()[:24]}.tokens"


def _footer(shard: Path) -> bytes:
    """Return the footer of a Parquet file: counts, statistics and offsets of all its parts."""
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
        if not _map(path):  # another process may have made it meanwhile
            started = time.perf_counter()
            n_tokens, of = _write(path, shards), plural(len(shards), "shard")
            logger.info("laid %d tokens of %s flat in %s, %.1f s", n_tokens, of, path, time.perf_counter() - started)
    made = _map(path)
    if not made:
        raise OSError(f"{path} does not hold what was written to it")
    return made


def _write(path: Path, shards: Sequence[Path]) -> int:
    lengths, n_tokens = [np.zeros(0, np.int64)], 0
    with mapped_file(path) as (handle, header):
        for shard in shards:
            for row_lengths, ids in _rows(shard):
                handle.write(ids.astype("<u2", copy=False).data)
                lengths.append(row_lengths)
                n_tokens += len(ids)
        offsets = offsets_of(np.concatenate(lengths)).astype("<i8", copy=False)
        handle.write(bytes(-2 * n_tokens % 8))
        handle.write(offsets.data)
        handle.flush()
        with Path(handle.name).open("rb") as written:
            rest = _digest_of(mmap.mmap(written.fileno(), 0, access=mmap.ACCESS_READ))
        header.update(digest=path.stem, n_rows=len(offsets) - 1, n_tokens=n_tokens, rest=rest)
    return n_tokens


def _map(path: Path) -> FlatTokens | None:
    return unless_damaged(lambda: _open(path))


def _open(path: Path) -> FlatTokens:
    def layout(header: Mapping[str, Any]) -> list[tuple[str, int]]:
        return [("<u2", header["n_tokens"]), ("<i8", header["n_rows"] + 1)]

    return FlatTokens(*map_arrays(path, _HEADER, {"digest": path.stem}, layout, ("rest", _digest_of)))


def _digest_of(mapped: mmap.mmap) -> str:
    return tree_digest(mapped, HEADER_BYTES, n_cpus())


def check_flat(path: Path) -> None:
    """Check all bytes of a flat file; one from before digests passes, because it is made again anyway."""
    with suppress(NoSeal):
        _open(path)
