"""The token rows of a dataset as one table for other programs, cut as the Music Transformer's preprocessing cuts."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.dataset.split import SPLITS
from tasks.dataset.token_cache import flat_tokens
from tasks.dataset.token_table import row_keys
from tasks.dataset.versions import DatasetVersion
from tasks.errors import ConfigError, DatasetError
from tasks.music.arrays import IntArray, offsets_of, spread_ranges
from tasks.music.tokenizers.base import TokenArray
from tasks.music.tokenizers.registry import tokenizer_from_json
from tasks.storage.file_names import printable
from tasks.storage.parquet import read_table
from tasks.storage.user_paths import check_output, write_output


def export_tokens(dataset: DatasetVersion, out: Path, length: int, split: str = "", seed: int = 0) -> dict[str, Any]:
    """Write the rows of a dataset, or of one split, and return the counts and ids of the table.

    A `.npy` or `.pt` file is a matrix of int64, padded at the ends of rows. A `.parquet` file has a column of lists,
    without padding, and one of the piece that each is of.

    Args:
        length: see `cut_windows`; 0: whole rows.
    Raises:
        ConfigError: the file has another kind of name or cannot be written, or there is no such split.
        DatasetError: the split has no row.
    """
    if out.suffix not in _WRITERS:
        raise ConfigError(f"{printable(str(out))} is not named as one of {' '.join(_WRITERS)}")
    if split and split not in SPLITS:
        raise ConfigError(f"--split {split}: known are {', '.join(SPLITS)}")
    check_output(out)
    tokenizer = tokenizer_from_json(dataset.manifest["encoder"]["settings"])
    shards = [shard for name in ([split] if split else SPLITS) for shard in dataset.token_shards(name)]
    flat = flat_tokens(shards, dataset.flat_tokens)
    offsets, ids = flat.offsets, flat.tokens
    if len(offsets) < 2:
        raise DatasetError(f"{dataset.reference} has no row in its split {split}")
    pieces = [piece for shard in shards for piece in read_table(shard, ["piece"])["piece"].to_pylist()]
    if length:
        offsets, ids = cut_windows(offsets, ids, length, seed)
        pieces = np.repeat(pieces, 2).tolist()
    write_output(out, _WRITERS[out.suffix](offsets, ids, pieces, tokenizer.pad_id))
    return {
        "n_rows": len(offsets) - 1,
        "longest_row": int(np.diff(offsets).max()),
        "n_tokens": int(offsets[-1]),
        "vocab_size": tokenizer.vocab_size,
        "pad_id": tokenizer.pad_id,
        "end_id": tokenizer.end_id if tokenizer.end_id >= 0 else None,
    }


def cut_windows(offsets: IntArray, ids: TokenArray, length: int, seed: int) -> tuple[IntArray, TokenArray]:
    """Return two windows of each row: one from anywhere, and one that ends where the row ends.

    The first has `length - length // 6` to `length + length // 6` ids, the second up to `length // 6` less than
    `length`. A row that is no longer than its window stays whole. What is drawn depends on `seed` and the row's ids.
    """
    margin, drawn = length // 6, np.empty((len(offsets) - 1, 3), np.int64)
    for row, key in enumerate(row_keys(offsets, ids)):
        rng = np.random.Generator(np.random.Philox(key=np.array([seed, key], np.uint64)))
        drawn[row] = rng.integers(0, (2 * margin + 1, 2**62, margin + 1))
    begins, ends = offsets[:-1], offsets[1:]
    n_ids = np.minimum(length - margin + drawn[:, 0], ends - begins)
    anywhere = begins + drawn[:, 1] % (ends - begins - n_ids + 1)
    ending = np.where(ends - begins > length, ends - length + drawn[:, 2], begins)
    starts = np.column_stack([anywhere, ending]).reshape(-1)
    lengths = np.column_stack([n_ids, ends - ending]).reshape(-1)
    return offsets_of(lengths), ids[spread_ranges(starts, starts + lengths)[1]]


def _matrix(offsets: IntArray, ids: TokenArray, pad_id: int) -> IntArray:
    row, place = spread_ranges(offsets[:-1], offsets[1:])
    matrix = np.full((len(offsets) - 1, int(np.diff(offsets).max())), pad_id, np.int64)
    matrix[row, place - offsets[row]] = ids
    return matrix


def _npy(offsets: IntArray, ids: TokenArray, pieces: list[str], pad_id: int) -> bytes:
    handle = io.BytesIO()
    np.save(handle, _matrix(offsets, ids, pad_id))
    return handle.getvalue()


def _pt(offsets: IntArray, ids: TokenArray, pieces: list[str], pad_id: int) -> bytes:
    import torch

    handle = io.BytesIO()
    torch.save(torch.from_numpy(_matrix(offsets, ids, pad_id)), handle)
    return handle.getvalue()


def _parquet(offsets: IntArray, ids: TokenArray, pieces: list[str], pad_id: int) -> bytes:
    handle = io.BytesIO()
    lists = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(ids))
    pq.write_table(pa.table({"piece": pieces, "tokens": lists}), handle, compression="zstd")
    return handle.getvalue()


_WRITERS: dict[str, Callable[[IntArray, TokenArray, list[str], int], bytes]] = {
    ".npy": _npy,
    ".pt": _pt,
    ".parquet": _parquet,
}
