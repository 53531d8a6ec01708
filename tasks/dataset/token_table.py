"""A dataset version made of a table of token ids, each row of it a sequence, as other programs write them."""

import hashlib
import io
import itertools
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tasks.config.dataset import DatasetConfig
from tasks.config.serialization import digest
from tasks.dataset.augment import ITSELF
from tasks.dataset.publish import write_version
from tasks.dataset.split import SPLITS, split_groups
from tasks.dataset.variants import TokenRows, TokenShardCounts
from tasks.dataset.versions import DatasetVersion, note_latest, usable_version
from tasks.errors import ConfigError, first_line, plural
from tasks.ingest.sources.spec import source_name
from tasks.music.arrays import IntArray, offsets_of
from tasks.music.tokenizers.base import TokenArray, TokenBatch
from tasks.music.tokenizers.token_ids import TokenIdsConfig, TokenIdsTokenizer
from tasks.storage.file_names import printable
from tasks.storage.home import Home
from tasks.storage.parquet import LEDGER_SCHEMA, SCHEMA_NUMBER, TOKEN_SCHEMA, write_table
from tasks.storage.user_paths import as_text, read_input

_INTEGERS = [f"torch.{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)]


@dataclass(frozen=True, slots=True, eq=False)
class TokenTable:
    """The rows of a table without their padding; row i is `ids[offsets[i]:offsets[i + 1]]`.

    Args:
        groups: a number for each row; rows of one group are in one split.
        names_pieces: the table names the piece of each row, and these are the groups; otherwise equal rows are.
    """

    groups: NDArray[np.uint64]
    names_pieces: bool
    offsets: IntArray
    ids: TokenArray
    tokenizer: TokenIdsTokenizer

    @property
    def n_rows(self) -> int:
        return len(self.offsets) - 1


def row_keys(offsets: IntArray, ids: TokenArray) -> NDArray[np.uint64]:
    """Return a number for each row, which depends on its ids alone."""
    return _keys(ids[a:b].tobytes() for a, b in itertools.pairwise(offsets))


def _keys(values: Iterable[bytes]) -> NDArray[np.uint64]:
    keys = [int.from_bytes(hashlib.blake2b(value, digest_size=8).digest(), "little") for value in values]
    return np.array(keys, np.uint64)


def read_token_table(path: Path, vocab_size: int, pad_id: int | None = None, end_id: int | None = None) -> TokenTable:
    """Read a table of ids: a matrix in .npy or .pt, or in .parquet a column of lists or a column for each position.

    Parquet may also have a column `piece` of strings, whose rows of one piece stay in one split.

    Args:
        pad_id: fills rows up; it is removed from their ends.
        end_id: ends a row; nothing but pads may follow it.
    Raises:
        NotFound: the file cannot be read.
        ConfigError: it is no such table, or an id does not fit.
    """
    try:
        tokenizer = TokenIdsTokenizer(TokenIdsConfig(vocab_size, pad_id, end_id))
    except ValueError as error:
        raise ConfigError(f"--vocab-size, --pad-id and --end-id: {error}") from None
    if path.suffix not in _READERS:
        raise ConfigError(f"{printable(str(path))} is not named as one of {' '.join(_READERS)}")
    data = read_input(path)
    try:
        if not data:
            raise ConfigError("the file is empty")
        values, offsets, *pieces = _READERS[path.suffix](data)
        return _checked(values, offsets, pieces[0] if pieces else None, tokenizer)
    except ConfigError as error:
        error.put_before(f"token table {printable(str(path))}")
        raise


def _read_npy(data: bytes) -> tuple[np.ndarray, IntArray]:
    try:
        array = np.lib.format.read_array(io.BytesIO(data))  # refuses pickled objects
    except Exception as error:  # ValueError, EOFError, SyntaxError, MemoryError ...
        raise ConfigError(f"no array in NumPy's format: {first_line(error)}") from None
    return _rows_of(array)


def _read_pt(data: bytes) -> tuple[np.ndarray, IntArray]:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tensor = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception:  # UnpicklingError, RuntimeError, EOFError ...; torch advises to trust the file
        raise ConfigError("no tensor that torch reads with weights_only=True, but other objects or damaged") from None
    if not isinstance(tensor, torch.Tensor):
        raise ConfigError(f"expected one dense tensor, found {type(tensor).__name__}")
    if tensor.layout != torch.strided or tensor.is_meta:
        raise ConfigError(f"expected one dense tensor, found {'no values' if tensor.is_meta else tensor.layout}")
    if str(tensor.dtype) not in _INTEGERS:  # NumPy lacks some of the others
        raise ConfigError(f"expected integers, found {str(tensor.dtype).removeprefix('torch.')}")
    return _rows_of(tensor.detach().numpy())


def _read_parquet(data: bytes) -> tuple[np.ndarray, IntArray] | tuple[np.ndarray, IntArray, list[str]]:
    try:
        table = pq.ParquetFile(io.BytesIO(data)).read()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ConfigError(f"no Parquet file: {first_line(error)}") from None
    if table.column_names.count("piece") > 1:
        raise ConfigError("several columns are named piece")
    pieces = [table["piece"].to_pylist()] if "piece" in table.column_names else []
    if pieces and table["piece"].type not in (pa.string(), pa.large_string()):
        raise ConfigError(f"the column piece holds {table['piece'].type}, not names")
    table = table.drop_columns("piece") if pieces else table
    columns = [column.combine_chunks() for column in table.columns]
    kinds = [column.type for column in columns]
    is_lists = len(kinds) == 1 and isinstance(kinds[0], pa.ListType | pa.LargeListType | pa.FixedSizeListType)
    items = [kinds[0].value_type] if is_lists else kinds
    if not items or not all(map(pa.types.is_integer, items)):
        found = ", ".join(f"{field.name}: {field.type}" for field in table.schema)
        raise ConfigError(f"expected one column of lists of integers, or columns of integers, found {found or 'none'}")
    lists = columns[0].cast(pa.large_list(items[0])) if is_lists else None
    values = [lists.flatten()] if lists is not None else columns
    if any(column.null_count for column in (*columns, *values)) or any(None in names for names in pieces):
        raise ConfigError("it holds nulls; fill rows up with --pad-id")
    if lists is not None:
        return values[0].to_numpy(), lists.offsets.to_numpy(), *pieces
    return *_rows_of(np.column_stack([column.to_numpy() for column in columns])), *pieces


def _rows_of(array: np.ndarray) -> tuple[np.ndarray, IntArray]:
    if array.ndim != 2:
        raise ConfigError(f"expected a table of two dimensions, found {array.ndim}, of shape {array.shape}")
    return array.reshape(-1), np.arange(array.shape[0] + 1) * array.shape[1]


_READERS: dict[str, Callable[[bytes], tuple[Any, ...]]] = {
    ".npy": _read_npy,
    ".pt": _read_pt,
    ".parquet": _read_parquet,
}


def _checked(
    values: np.ndarray, offsets: IntArray, pieces: Sequence[str] | None, tokenizer: TokenIdsTokenizer
) -> TokenTable:
    """Return the rows without padding; ConfigError where they are not rows of ids that can be split and learned."""
    n_ids = tokenizer.config.n_ids
    if values.dtype.kind not in "iu":
        raise ConfigError(f"expected integers, found {values.dtype}")
    if len(values) and not 0 <= values.min() <= values.max() < n_ids:
        place = int(np.flatnonzero((values < 0) | (values >= n_ids))[0])
        at = _place(offsets, place)
        raise ConfigError(f"{at} holds {values[place]}, outside 0-{n_ids - 1}, the ids of --vocab-size {n_ids}")
    lengths = _lengths(values, offsets, tokenizer.pad_id)
    short = np.flatnonzero(lengths < 2)
    if len(short):
        n_ids_there = plural(int(lengths[short[0]]), "id")
        raise ConfigError(f"row {short[0]} has {n_ids_there} besides pads; a row needs 2 at least")
    position = np.arange(len(values)) - np.repeat(offsets[:-1], np.diff(offsets))
    is_kept = position < np.repeat(lengths, np.diff(offsets))
    offsets, ids = offsets_of(lengths), values[is_kept].astype(np.uint16)
    groups = row_keys(offsets, ids) if pieces is None else _keys(piece.encode() for piece in pieces)
    table = TokenTable(groups, pieces is not None, offsets, ids, tokenizer)
    ends = np.flatnonzero(table.ids == tokenizer.end_id)
    inside = ends[~np.isin(ends, table.offsets[1:] - 1)]
    if len(inside):
        raise ConfigError(f"{_place(table.offsets, inside[0])} is the end id {tokenizer.end_id}, but the row goes on")
    n_different = len(np.unique(groups))
    if n_different < len(SPLITS):
        found = plural(n_different, "different row" if pieces is None else "piece")
        raise ConfigError(f"{found}; at least {len(SPLITS)} are needed, one each for {', '.join(SPLITS)}")
    return table


def _lengths(values: np.ndarray, offsets: IntArray, pad_id: int) -> IntArray:
    """Return the length of each row without the pads at its end."""
    last = np.zeros(len(offsets) - 1, np.int64)
    is_long = np.diff(offsets) > 0
    if is_long.any():
        places = np.where(values != pad_id, np.arange(1, len(values) + 1), 0)
        last[is_long] = np.maximum.reduceat(places, offsets[:-1][is_long])
    return np.maximum(last - offsets[:-1], 0)


def _place(offsets: IntArray, place: int) -> str:
    row = int(np.searchsorted(offsets, place, side="right")) - 1
    return f"row {row}, position {place - int(offsets[row])}"


@dataclass(frozen=True, slots=True, eq=False)
class TokenDatasetPlan:
    """The version that a table becomes, with nothing written.

    Args:
        ledger: a row for each row of the table, all accepted.
        shards: by path within the dataset.
    """

    version: DatasetVersion
    ledger: pa.Table
    shards: dict[str, pa.Table]

    def publish(self, home: Home) -> DatasetVersion:
        """Write the version, or return it where it is whole already; it becomes the newest."""
        name, number, folder = self.version.name, self.version.version, self.version.folder
        found = usable_version(home, name, number)
        if found and not found.missing_files():
            note_latest(home, name, number)
            return found
        for path, rows in self.shards.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            write_table(folder / path, rows, {"schema": SCHEMA_NUMBER}, TOKEN_SCHEMA)
        return write_version(home, self.version, self.ledger)


def plan_token_dataset(home: Home, path: Path, table: TokenTable, config: DatasetConfig) -> TokenDatasetPlan:
    """Return the version that a table becomes, with nothing written.

    Its name is `<stem of the file>-tokens`. Its number depends on the rows, the vocabulary and the settings of the
    split, not on the kind of file.
    """
    encoder, name = table.tokenizer.to_json(), source_name(f"{path.stem}-tokens")
    settings = {name: getattr(config, name) for name in ("validation_share", "test_share", "split_seed")}
    contents = hashlib.sha256(table.offsets.astype("<i8").tobytes() + table.ids.astype("<u2").tobytes()).hexdigest()
    identity = {"schema": SCHEMA_NUMBER, "encoder": encoder, "contents": contents, "split": settings}
    if table.names_pieces:
        identity["pieces"] = hashlib.sha256(table.groups.astype("<u8").tobytes()).hexdigest()
    version = digest(identity)[:16]
    keys, group, sizes = np.unique(table.groups, return_inverse=True, return_counts=True)
    split_of = split_groups(keys, config.validation_share, config.test_share, config.split_seed)[group]
    shards, splits = dict[str, pa.Table](), dict[str, Any]()
    for number, split in enumerate(SPLITS):
        rows = np.flatnonzero(split_of == number)
        path_of_shard = f"tokens/{table.tokenizer.name}-{table.tokenizer.digest[:12]}/split={split}/{version}.parquet"
        counts, shards[path_of_shard] = _rows_of_split(table, rows)
        splits[split] = asdict(counts) | {"n_groups": len(np.unique(group[rows])), "shards": [path_of_shard]}
    manifest = {
        "schema": SCHEMA_NUMBER,
        "name": name,
        "version": version,
        "config": settings | {"windows": {"bars": 0, "hop_bars": 0}},
        "encoder": {"name": table.tokenizer.name, "digest": table.tokenizer.digest, "settings": encoder},
        "counts": dict.fromkeys(("n_other_files", "n_duplicate", "n_rejected", "n_notes"), 0)
        | dict.fromkeys(("n_files", "n_accepted"), table.n_rows)  # each row counts as a file
        | {"n_tokens": len(table.ids), "rejected_by_reason": {}, "duplicate_by_reason": {}, "left_out_by_reader": {}},
        "notes": {"found": 0, "kept": 0, "dropped": {}},
        "groups": {"n_groups": len(keys), "largest": int(sizes.max())},
        "leakage": {"leaked_share": 0.0, "max_leaked_share": 0.0},
        "splits": splits,
        "songs": [],
        "analysis": [],
    }
    dataset = DatasetVersion(name, version, home.datasets / name, manifest)
    return TokenDatasetPlan(dataset, _ledger(path, table, split_of), shards)


def _rows_of_split(table: TokenTable, rows: IntArray) -> tuple[TokenShardCounts, pa.Table]:
    """Return the counts of some rows, in rising order, and the rows by TOKEN_SCHEMA."""
    lengths, nothing = np.diff(table.offsets), np.zeros(len(rows), np.int64)
    ids = table.ids[np.repeat(np.isin(np.arange(table.n_rows), rows), lengths)]
    found = TokenRows()
    found.add(
        ITSELF,
        np.arange(len(rows)),
        TokenBatch(offsets_of(lengths[rows]), ids, nothing, nothing.astype(np.float64), {}),
    )
    found.counts.n_pieces = len(rows)
    return found.counts, found.table(_names(rows))


def _names(rows: IntArray) -> list[str]:
    return [f"row-{row:08d}" for row in rows.tolist()]


def _ledger(path: Path, table: TokenTable, split_of: NDArray[np.int8]) -> pa.Table:
    """Return a ledger with a row for each row of the table, all accepted."""
    n, names = table.n_rows, _names(np.arange(table.n_rows))
    hashes, groups = (
        [f"{key:016x}" for key in keys.tolist()] for keys in (row_keys(table.offsets, table.ids), table.groups)
    )
    known = {
        "path": names,
        "source": [as_text(path.absolute())] * n,
        "content_hash": hashes,
        "status": ["accepted"] * n,
        "piece": names,
        "group": groups,
        "split": [SPLITS[split] for split in split_of.tolist()],
    }
    columns = [pa.array(known[f.name], f.type) if f.name in known else pa.nulls(n, f.type) for f in LEDGER_SCHEMA]
    return pa.table(columns, schema=LEDGER_SCHEMA)
