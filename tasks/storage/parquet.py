"""Parquet files of this project: the schemas of songs, tokens and ledgers, and atomic writes."""

import errno
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.errors import DamagedFile, first_line
from tasks.storage.files import whole_file
from tasks.storage.integrity import BLANK_SEAL, Sealing, require_whole

SCHEMA_NUMBER = 5  # part of every version digest; raise it when a column changes its meaning
WAY_OUT = "run its rebuild again"

ROWS_PER_GROUP = 256
TOKENS_PER_GROUP = 1 << 19  # a reader reads or skips a group as a whole


def _lists_of(kind: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("element", kind, nullable=False))


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


SONG_SCHEMA = pa.schema(
    [
        _required("piece", pa.string()),  # the first 16 hex digits of content_hash
        _required("content_hash", pa.string()),  # SHA-256 of the file
        _required("n_bytes", pa.int64()),
        _required("status", pa.string()),  # accepted | rejected
        _required("reason", pa.string()),
        _required("detail", pa.string()),
        _required("dropped", pa.string()),  # JSON: what the reader left out or repaired of an accepted file, by reason
        _required("n_note_ons", pa.int32()),  # note-ons in the file: n_notes and those that never ended
        _required("n_notes", pa.int32()),
        _required("seconds", pa.float64()),
        _required("ticks_per_quarter", pa.int32()),
        _required("n_tracks", pa.int32()),  # parts: one program of one channel of one track
        _required("programs", _lists_of(pa.uint8())),
        _required("onset", _lists_of(pa.int32())),  # ticks
        _required("duration", _lists_of(pa.int32())),  # ticks
        _required("onset_seconds", _lists_of(pa.float64())),  # through the true tempo map
        _required("duration_seconds", _lists_of(pa.float64())),
        _required("pitch", _lists_of(pa.uint8())),
        _required("velocity", _lists_of(pa.uint8())),
        _required("program", _lists_of(pa.uint8())),
        _required("is_drum", _lists_of(pa.bool_())),
        _required("track", _lists_of(pa.uint16())),
        _required("tempo_tick", _lists_of(pa.int32())),
        _required("tempo_microseconds_per_quarter", _lists_of(pa.int32())),
        _required("time_signature_tick", _lists_of(pa.int32())),
        _required("time_signature_numerator", _lists_of(pa.int32())),
        _required("time_signature_denominator", _lists_of(pa.int32())),
        _required("key_signature_tick", _lists_of(pa.int32())),
        _required("key_signature_sharps", _lists_of(pa.int8())),  # negative: flats
        _required("key_signature_is_minor", _lists_of(pa.bool_())),
        _required("pedal_onset", _lists_of(pa.int32())),  # ticks
        _required("pedal_duration", _lists_of(pa.int32())),
        _required("pedal_onset_seconds", _lists_of(pa.float64())),
        _required("pedal_duration_seconds", _lists_of(pa.float64())),
        _required("pedal_track", _lists_of(pa.uint16())),
    ]
)

TOKEN_SCHEMA = pa.schema(
    [
        _required("piece", pa.string()),
        _required("window", pa.int32()),  # number of the window within its piece; 0 where pieces are whole
        _required("transposition", pa.int16()),  # semitones
        _required("stretch", pa.float64()),  # ratio of new to old length
        _required("velocity_shift", pa.int16()),  # steps of MIDI velocity
        _required("redraws_parts", pa.bool_()),  # some parts are played by other programs or left out
        _required("n_tokens", pa.int32()),
        _required("n_notes", pa.int32()),
        _required("seconds", pa.float64()),
        _required("tokens", _lists_of(pa.uint16())),
    ]
)

IS_FLIPPED = _required("is_flipped", pa.bool_())  # a further column of tokens where `augment.flip` is set

LEDGER_SCHEMA = pa.schema(
    [
        ("path", pa.string()),  # within the sources; bytes that are not UTF-8 as \\xNN
        ("source", pa.string()),  # as the user gave it
        ("content_hash", pa.string()),  # null where the file could not be read
        ("n_bytes", pa.int64()),
        ("status", pa.string()),  # accepted | duplicate | rejected
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("duplicate_of", pa.string()),  # path of the accepted file
        ("piece", pa.string()),
        ("group", pa.string()),  # near-duplicate component, named by its smallest piece; a split holds whole groups
        ("split", pa.string()),  # train | validation | test; null unless accepted
        ("n_note_ons", pa.int32()),  # notes in the file; null where it could not be read as music
        ("n_notes", pa.int32()),  # of them, those that ended and are kept
        ("dropped", pa.string()),  # JSON: what the reader left out or repaired, by reason
        ("seconds", pa.float64()),
        ("ticks_per_quarter", pa.int32()),
        ("programs", pa.list_(pa.uint8())),
        ("licence", pa.string()),  # as the source states it
    ]
)


def list_column(offsets: np.ndarray, values: np.ndarray, kind: pa.DataType) -> pa.ListArray:
    """Return flat `values` cut at `offsets` (P + 1 of them) as a column of P lists of the type `kind`."""
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values, kind.value_type), type=kind)


def flat_values(table: pa.Table, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (offsets, values) of a list column as flat NumPy arrays; offsets start at 0."""
    array = table.column(column).combine_chunks()
    offsets = array.offsets.to_numpy().astype(np.int64)
    values = array.values.slice(offsets[0], offsets[-1] - offsets[0]).to_numpy(zero_copy_only=False)
    return offsets - offsets[0], values


def replace_column(table: pa.Table, name: str, values: pa.Array | pa.ChunkedArray) -> pa.Table:
    """Return a table with other values in one column of the same type."""
    at = table.schema.get_field_index(name)
    return table.set_column(at, table.schema.field(at), values)


def write_table(
    path: Path, table: pa.Table, metadata: Mapping[str, Any] | None = None, schema: pa.Schema | None = None
) -> None:
    """Write one Parquet file whole; `metadata` becomes JSON values of the schema's metadata.

    Args:
        schema: of a table with long lists; each list column then gets the encoding that suits its numbers.
    """
    with whole_file(path, sync_name=False) as handle:  # publishing a version syncs the names of its shards
        write_into(handle, table, metadata, schema)


def write_into(
    handle: IO[bytes], table: pa.Table, metadata: Mapping[str, Any] | None = None, schema: pa.Schema | None = None
) -> None:
    """Write a table into an open file, as `write_table` does."""
    if metadata:
        encoded = {key: json.dumps(value, sort_keys=True) for key, value in metadata.items()}
        table = table.replace_schema_metadata(encoded)
    options = _encodings(schema) if schema else {"compression": "zstd", "compression_level": 1}
    write_sealed(handle, table, _rows_per_group(table), store_schema=True, **options)


def write_sealed(handle: IO[bytes], table: pa.Table, row_group_size: int, **options: Any) -> None:
    """Write a table as Parquet with a checksum on each page and the seal of the whole file in its footer."""
    sink = Sealing(handle)
    with pq.ParquetWriter(sink, table.schema, write_page_checksum=True, **options) as writer:
        writer.write_table(table, row_group_size)
        writer.add_key_value_metadata(BLANK_SEAL)
    sink.seal()


def _rows_per_group(table: pa.Table) -> int:
    if "tokens" not in table.column_names or not table.num_rows:
        return ROWS_PER_GROUP
    n_tokens = sum(len(chunk.flatten()) for chunk in table.column("tokens").chunks)
    return max(1, TOKENS_PER_GROUP * table.num_rows // max(1, n_tokens))


def _encodings(schema: pa.Schema) -> dict[str, Any]:
    """Return the encoding of each column.

    Integers are packed differences, seconds are split into their bytes and compressed lightly, values that hardly
    change have a dictionary. Measured against the defaults: half the time for a tenth more bytes.
    """
    leaves = {f"{field.name}.list.element": field.type.value_type for field in schema if pa.types.is_list(field.type)}
    scalars = [field.name for field in schema if not pa.types.is_list(field.type)]
    encodings = {name: _ENCODINGS[kind] for name, kind in leaves.items() if kind in _ENCODINGS}
    squeezed = dict.fromkeys(scalars, 1) | {name: -5 for name, kind in leaves.items() if kind == pa.float64()}
    if _TOKENS in leaves:  # zstd finds the common parts of the variants of a piece only if they are PLAIN
        encodings[_TOKENS], squeezed[_TOKENS] = "PLAIN", 3
    texts = [field.name for field in schema if pa.types.is_string(field.type) and field.name not in _UNIQUE]
    return {
        "column_encoding": encodings,
        "use_dictionary": texts + [name for name in leaves if name not in encodings],
        "compression": {name: "zstd" if name in squeezed else "none" for name in (*scalars, *leaves)},
        "compression_level": squeezed,
        "write_statistics": scalars,
    }


_ENCODINGS = {
    pa.int32(): "DELTA_BINARY_PACKED",
    pa.uint16(): "DELTA_BINARY_PACKED",
    pa.uint32(): "PLAIN",  # hashes
    pa.uint64(): "PLAIN",
    pa.float64(): "BYTE_STREAM_SPLIT",
}
_TOKENS = "tokens.list.element"
_UNIQUE = ("piece", "content_hash")  # values that differ in every row need no dictionary


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read one Parquet file, or some of its columns; all its bytes are checked when a process first reads it.

    Raises:
        DamagedFile: it has other bytes than were written.
        OSError: it is missing or cannot be read.
    """
    check_shard(path)
    # A path would turn `split=train` in a folder's name into a column. Arrow's threads may close a file of Python
    # after the interpreter has ended, which would abort.
    with _opened(path) as handle:
        try:
            # `pq.read_table` imports pandas and takes twice as long.
            table = pq.ParquetFile(handle, page_checksum_verification=True).read(columns)
            return table.select(columns) if columns else table
        except (pa.ArrowException, OSError, KeyError) as error:
            raise _damaged(path, error) from None


def read_lists(path: Path, column: str, n_rows: int) -> Iterator[pa.ListArray]:
    """Yield a list column some rows at a time, in constant memory; errors as in `read_table`."""
    check_shard(path)
    try:
        # Buffering ahead would read the whole column at once.
        with pq.ParquetFile(path, pre_buffer=False, page_checksum_verification=True) as file:
            for batch in file.iter_batches(n_rows, columns=[column], use_threads=False):
                yield batch.column(0)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from None


def read_metadata(path: Path, key: str) -> Any:
    """Return a value of the `metadata` of `write_table`; errors as in `read_table`."""
    check_shard(path)
    with _opened(path) as handle:
        try:
            return json.loads((pq.read_schema(handle).metadata or {})[key.encode()])
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            raise _damaged(path, error) from None


def check_shard(path: Path) -> None:
    """Check all bytes of a Parquet file, once in a process; errors as in `read_table`."""
    try:
        require_whole(path)
    except DamagedFile as error:
        raise DamagedFile(f"{error}; {WAY_OUT}") from None


def check_shards(paths: Sequence[Path], n_threads: int) -> None:
    """Raise DamagedFile if one of some Parquet files is missing or has other bytes than were written."""

    def check(path: Path) -> None:
        try:
            check_shard(path)
        except OSError as error:
            raise DamagedFile(f"{path} cannot be read: {error.strerror}; {WAY_OUT}") from None

    with ThreadPoolExecutor(n_threads) as pool:
        list(pool.map(check, paths))


def _damaged(path: Path, error: Exception) -> DamagedFile:
    return DamagedFile(f"{path} is damaged: {first_line(error)}; {WAY_OUT}")


def _opened(path: Path) -> pa.OSFile:
    try:
        return pa.OSFile(os.fsencode(path))
    except OSError as error:
        number = error.errno or errno.EIO
        raise OSError(number, os.strerror(number), str(path)) from None  # Arrow's error names no file
