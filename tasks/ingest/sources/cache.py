"""The scan cache: results of earlier scans for unchanged files. It may be deleted."""

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.storage.files import whole_file
from tasks.storage.integrity import OTHER_BYTES, examine
from tasks.storage.parquet import write_sealed

logger = logging.getLogger(__name__)

CACHE_NUMBER = 2  # raise it when a column or the reading of an archive changes
GROUP_ROWS = 2**16
RACY_NS = 2 * 10**9  # a file changed so shortly before a scan may change again without its time moving


def cache_key(*parts: bytes | str) -> str:
    """Return the name of a cache entry."""
    return hashlib.sha256(b"\0".join(os.fsencode(part) for part in parts)).hexdigest()[:24]


def load_table(path: Path) -> tuple[pa.Table, dict[str, Any]] | None:
    """Return a cached table and its facts, or None without a usable one."""
    if (found := load_batches(path)) is None:
        return None
    facts, n_rows, batches = found
    rows = list(batches)
    if sum(batch.num_rows for batch in rows) < n_rows:  # damaged, as the log says
        return None
    return pa.Table.from_batches(rows, None if rows else pq.read_schema(path)), facts


def load_batches(path: Path) -> tuple[dict[str, Any], int, Iterator[pa.RecordBatch]] | None:
    """Return a cached table's facts, its number of rows, and its batches; None without a usable table.

    The seal is checked, because the rows replace the reading of files.
    """
    try:
        state = examine(path)
        if not state.fits:
            raise ValueError(OTHER_BYTES if state.has_seal else "it has no digest")
        file = pq.ParquetFile(path)
        facts = json.loads((file.schema_arrow.metadata or {})[b"facts"])
    except FileNotFoundError:
        return None
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        logger.warning("scan cache %s is damaged (%s); it is made anew", path, error)
        return None
    if facts.get("cache") != CACHE_NUMBER:
        return None
    return facts, file.metadata.num_rows, _batches(file, path)


def _batches(file: pq.ParquetFile, path: Path) -> Iterator[pa.RecordBatch]:
    try:
        with file:
            yield from file.iter_batches(GROUP_ROWS, use_threads=False)
    except (OSError, pa.ArrowException) as error:
        logger.warning("scan cache %s is damaged (%s); what follows is hashed anew", path, error)


def store_table(path: Path, table: pa.Table, facts: dict[str, Any]) -> None:
    """Write a cached table whole."""
    table = table.replace_schema_metadata({b"facts": json.dumps(facts | {"cache": CACHE_NUMBER}).encode()})
    with whole_file(path) as handle:
        write_sealed(handle, table, GROUP_ROWS, compression="lz4", use_dictionary=False, write_statistics=False)


def is_racy(mtime_ns: int, scan_started_ns: int) -> bool:
    """Return whether a file changed so shortly before a scan that its times may not show a later change."""
    return mtime_ns >= scan_started_ns - RACY_NS
