"""Archives -> listings. One that has not changed since the last scan is not opened."""

import os
import time
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pyarrow as pa

from tasks.errors import DatasetError
from tasks.sources.cache import cache_key, is_racy, load_table, store_table
from tasks.sources.limits import SourceLimits
from tasks.sources.listing import LISTING_SCHEMA, Part, stamp_of
from tasks.sources.names import archive_format, printable, sniff_format
from tasks.sources.packs import PackWriter
from tasks.sources.tars import read_compressed_tar, read_tar
from tasks.sources.zips import ArchiveScan, read_zip

CODECS = {"tar.gz": "gzip", "tar.zst": "zstd"}


def list_archive(
    path: bytes, cache: Path, limits: SourceLimits, n_threads: int, *, kind: str = "", wanted: str = "",
    rehash: bool = False, on_files: Callable[[int], None] | None = None,
) -> Part:  # fmt: skip
    """Return the listing of an archive, from the cache where neither the archive nor the limits have changed.

    Args:
        path: absolute path.
        kind: format, where the name does not tell it.
        wanted: name of a member that is not MIDI but asked for; its bytes become the part's `extra`.
    Raises:
        DatasetError: the archive cannot be read at all.
    """
    started_ns = time.time_ns()
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError as error:
        raise DatasetError(f"archive {printable(path)}: {error.strerror}") from None
    identity = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, *astuple(limits)[:4], wanted]
    key = cache_key(path)
    where = cache / "archives" / f"{key}.parquet"
    cached = None if rehash else load_table(where)
    if cached is not None and cached[1]["identity"] == identity:
        part = _recall(*cached, path, cache, stamp_of(status))
        if part is not None:
            if on_files:
                on_files(part.table.num_rows)
            return part
    kind = kind or archive_format(path)
    pack = cache / "packs" / f"{key}-{stamp_of(status):016x}.pack" if kind in CODECS else None
    try:
        result, pack_status = _read(os.fsdecode(path), kind, limits, n_threads, pack, wanted=wanted, on_files=on_files)
    except OSError as error:
        raise DatasetError(f"archive {printable(path)}: {error.strerror or error}") from None
    table = pa.Table.from_batches(result.batches, LISTING_SCHEMA).combine_chunks()
    facts: dict[str, Any] = {"identity": identity, "n_other_files": result.n_other_files}
    facts |= {"pack": pack.name if pack else "", "pack_stamp": stamp_of(pack_status) if pack_status else 0}
    facts["extra"] = None if result.extra is None else result.extra.decode("latin-1")
    if not is_racy(status.st_mtime_ns, started_ns):
        store_table(where, table, facts)
    if pack:
        _remove_older(pack, key)
    container, stamp = (os.fsencode(pack), facts["pack_stamp"]) if pack else (path, stamp_of(status))
    return Part(table, stamp, container, n_other_files=result.n_other_files, extra=result.extra)


def _read(
    path: str, kind: str, limits: SourceLimits, n_threads: int, pack: Path | None, **options: Any
) -> tuple[ArchiveScan, os.stat_result | None]:
    if kind == "zip":
        return read_zip(path, limits, n_threads, **options), None
    if kind == "tar":
        return read_tar(path, limits, **options), None
    if pack is None:
        raise DatasetError(f"archive {path} is in no known format")
    with PackWriter(pack) as writer:
        result = read_compressed_tar(path, CODECS[kind], limits, writer, **options)
        return result, writer.publish()


def _recall(table: pa.Table, facts: dict[str, Any], path: bytes, cache: Path, stamp: int) -> Part | None:
    container = path
    if facts["pack"]:
        pack = cache / "packs" / facts["pack"]
        try:
            if stamp_of(pack.stat()) != facts["pack_stamp"]:
                return None
        except OSError:
            return None
        container, stamp = os.fsencode(pack), facts["pack_stamp"]
    extra = None if facts["extra"] is None else facts["extra"].encode("latin-1")
    table = table.replace_schema_metadata(None).cast(LISTING_SCHEMA)
    return Part(table, stamp, container, n_other_files=facts["n_other_files"], extra=extra)


def _remove_older(pack: Path, key: str) -> None:
    for older in pack.parent.glob(f"{key}-*.pack"):
        if older != pack:
            older.unlink(missing_ok=True)


def sniff_file(path: Path) -> str:
    """Return what the first bytes of a file say it is: an archive format, `midi`, or an empty string."""
    with path.open("rb") as handle:
        return sniff_format(handle.read(512))
