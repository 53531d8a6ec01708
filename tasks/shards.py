"""Parquet as this project writes it: the schemas of song, token and ledger files, and whole-file writes."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.home import write_atomically

SCHEMA_NUMBER = 1  # part of every version digest; raise it when a column changes its meaning

ROWS_PER_GROUP = 256

SONG_SCHEMA = pa.schema(
    [
        ("piece", pa.string()),  # the first 16 hex digits of content_hash
        ("content_hash", pa.string()),  # SHA-256 of the file
        ("n_bytes", pa.int64()),
        ("status", pa.string()),  # accepted | rejected
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("dropped", pa.string()),  # JSON: what the reader left out of an accepted file, by reason
        ("n_notes", pa.int32()),
        ("seconds", pa.float64()),
        ("ticks_per_quarter", pa.int32()),
        ("n_tracks", pa.int32()),
        ("programs", pa.list_(pa.uint8())),
        ("onset", pa.list_(pa.int64())),  # ticks
        ("duration", pa.list_(pa.int64())),  # ticks
        ("onset_seconds", pa.list_(pa.float64())),  # through the true tempo map
        ("duration_seconds", pa.list_(pa.float64())),
        ("pitch", pa.list_(pa.uint8())),
        ("velocity", pa.list_(pa.uint8())),
        ("program", pa.list_(pa.uint8())),
        ("is_drum", pa.list_(pa.bool_())),
        ("track", pa.list_(pa.uint16())),
        ("tempo_tick", pa.list_(pa.int64())),
        ("tempo_microseconds_per_quarter", pa.list_(pa.int64())),
        ("time_signature_tick", pa.list_(pa.int64())),
        ("time_signature_numerator", pa.list_(pa.int32())),
        ("time_signature_denominator", pa.list_(pa.int32())),
        ("key_signature_tick", pa.list_(pa.int64())),
        ("key_signature_sharps", pa.list_(pa.int8())),  # negative: flats
        ("key_signature_is_minor", pa.list_(pa.bool_())),
        ("pedal_onset", pa.list_(pa.int64())),  # ticks
        ("pedal_duration", pa.list_(pa.int64())),
        ("pedal_onset_seconds", pa.list_(pa.float64())),
        ("pedal_duration_seconds", pa.list_(pa.float64())),
        ("pedal_track", pa.list_(pa.uint16())),
    ]
)

TOKEN_SCHEMA = pa.schema(
    [
        ("piece", pa.string()),
        ("transposition", pa.int16()),  # semitones
        ("stretch", pa.float64()),  # ratio of new to old length
        ("n_tokens", pa.int32()),
        ("n_notes", pa.int32()),
        ("seconds", pa.float64()),
        ("tokens", pa.list_(pa.uint16())),
    ]
)

LEDGER_SCHEMA = pa.schema(
    [
        ("path", pa.string()),  # within the source; bytes that are not UTF-8 as \xNN
        ("content_hash", pa.string()),
        ("n_bytes", pa.int64()),
        ("status", pa.string()),  # accepted | duplicate | rejected
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("duplicate_of", pa.string()),  # path of the accepted file
        ("piece", pa.string()),
        ("group", pa.string()),  # near-duplicate component; a split holds whole groups
        ("split", pa.string()),  # train | validation | test; null unless accepted
        ("n_notes", pa.int32()),
        ("seconds", pa.float64()),
        ("ticks_per_quarter", pa.int32()),
        ("programs", pa.list_(pa.uint8())),
        ("licence", pa.string()),
    ]
)


def list_column(offsets: np.ndarray, values: np.ndarray, kind: pa.DataType) -> pa.ListArray:
    """Return flat `values` cut at `offsets` (P + 1 of them) as a list column of P rows."""
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values, kind))


def flat_values(table: pa.Table, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (offsets, values) of a list column as flat NumPy arrays; offsets start at 0."""
    array = table.column(column).combine_chunks()
    offsets = array.offsets.to_numpy().astype(np.int64)
    values = array.values.slice(offsets[0], offsets[-1] - offsets[0]).to_numpy(zero_copy_only=False)
    return offsets - offsets[0], values


def write_table(path: Path, table: pa.Table, metadata: Mapping[str, Any] | None = None) -> None:
    """Write one Parquet file whole; `metadata` becomes JSON values of the schema's metadata."""
    if metadata:
        encoded = {key: json.dumps(value, sort_keys=True) for key, value in metadata.items()}
        table = table.replace_schema_metadata(encoded)
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", row_group_size=ROWS_PER_GROUP, store_schema=True)
    write_atomically(path, sink.getvalue())


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read one Parquet file, or some of its columns."""
    with path.open("rb") as handle:  # a file, not a path: `split=train` in a folder's name must not become a column
        return pq.read_table(handle, columns=columns)
