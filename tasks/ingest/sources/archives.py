"""Listings of archives, made in a limited child process and cached."""

import json
import os
import shutil
import stat
import tempfile
import time
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

import pyarrow as pa

from tasks.config.source_limits import SourceLimits
from tasks.errors import DatasetError, RejectReason
from tasks.ingest.sources.cache import cache_key, is_racy, load_table, store_table
from tasks.ingest.sources.listing import LISTING_SCHEMA, Part, ScanSettings, stamp_of
from tasks.ingest.sources.names import archive_format, sniff_format
from tasks.runtime.isolation import Death, Host, WorkError, WorkLimits
from tasks.storage.file_names import printable
from tasks.storage.files import publish_file

COMPRESSED = ("tar.gz", "tar.zst")
SECONDS_PER_MIB = 2.0  # of CPU time, some hundred times that of most archives

_host = Host()  # one for each process that scans


def list_archive(path: bytes, settings: ScanSettings, kind: str = "", wanted: str = "") -> Part:
    """Return the listing of an archive, from the cache if neither the archive nor the limits have changed.

    Args:
        path: absolute path.
        kind: format, if the name does not show it.
        wanted: name of a member that is not MIDI; its bytes become the part's `extra`.
    Raises:
        DatasetError: the archive cannot be read at all.
    """
    started_ns = time.time_ns()
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError as error:
        raise DatasetError(f"archive {printable(path)}: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        raise DatasetError(f"archive {printable(path)} is no regular file but a folder, device, pipe or socket")
    limits = astuple(settings.limits)[:4]
    identity = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, *limits, wanted]
    key, stamp = cache_key(path), stamp_of(status)
    where, packs = settings.cache / "archives" / f"{key}.parquet", settings.cache / "packs"
    cached = None if settings.rehash else load_table(where)
    if cached and cached[1]["identity"] == identity and _has_pack(packs, cached[1]):
        table, facts = cached
    else:
        kind = kind or archive_format(path)
        pack = packs / f"{key}-{stamp:016x}.pack" if kind in COMPRESSED else None
        table, found = _read(os.fsdecode(path), status.st_size, kind, settings.limits, where.parent, pack, wanted)
        facts: dict[str, Any] = {"identity": identity, **found, "pack": pack.name if pack else ""}
        facts["pack_stamp"] = stamp_of(pack.stat()) if pack else 0
        if not is_racy(status.st_mtime_ns, started_ns):
            store_table(where, table, facts)
        for older in packs.glob(f"{key}-*.pack") if pack else ():
            if older != pack:
                older.unlink(missing_ok=True)
    settings.on_files(table.num_rows)
    table = table.replace_schema_metadata(None).cast(LISTING_SCHEMA)
    extra = None if facts["extra"] is None else facts["extra"].encode("latin-1")
    if facts["pack"]:
        path, stamp = os.fsencode(packs / facts["pack"]), facts["pack_stamp"]
    return Part(table, stamp, path, n_other_files=facts["n_other_files"], extra=extra)


def _has_pack(packs: Path, facts: dict[str, Any]) -> bool:
    """Return whether the pack of a listing is unchanged; True without one."""
    try:
        return not facts["pack"] or stamp_of((packs / facts["pack"]).stat()) == facts["pack_stamp"]
    except OSError:
        return False


def _read(
    path: str, n_bytes: int, kind: str, limits: SourceLimits, folder: Path, pack: Path | None, wanted: str
) -> tuple[pa.Table, dict[str, Any]]:
    """List an archive in a child process; return its rows and the other results of `list_members`.

    Args:
        folder: for temporary files, on the file system of the cache.
        pack: file for the members of a compressed archive.
    """
    place = printable(os.fsencode(path))
    folder.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".", suffix=".tmp", dir=folder))
    rows, spool = temporary / "rows", temporary / "pack"
    order = {"path": path, "kind": kind, "limits": asdict(limits), "wanted": wanted}
    order |= {"rows": str(rows), "pack": str(spool) if pack else ""}
    try:
        seconds = limits.archive_seconds + SECONDS_PER_MIB * n_bytes / 2**20
        bounds = WorkLimits(seconds=seconds, memory_bytes=limits.archive_memory_bytes)
        answer = _host.run("tasks.ingest.sources.archive_members:list_members", json.dumps(order).encode(), bounds)
        if isinstance(answer, Death):
            setting = {
                RejectReason.TIMED_OUT: "archive_seconds",
                RejectReason.OUT_OF_MEMORY: "archive_memory_bytes",
            }.get(answer.reason)
            hint = f"; dataset.source_limits.{setting} sets the limit" if setting else ""
            raise DatasetError(f"archive {place}: its reader {answer.reason.replace('_', ' ')}: {answer.detail}{hint}")
        with pa.OSFile(str(rows), "rb") as file:
            table = pa.ipc.open_stream(file).read_all().combine_chunks()
        if pack:
            pack.parent.mkdir(parents=True, exist_ok=True)
            publish_file(spool, pack)
        return table, json.loads(answer)
    except WorkError as error:
        if error.errno:  # the disk is full, for example; the archive is not at fault
            raise OSError(error.errno, error.message) from None
        raise DatasetError(error.message if error.kind == "DatasetError" else f"archive {place}: {error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sniff_file(path: Path) -> str:
    """Return the format by a file's first bytes: an archive format, `midi`, or an empty string."""
    with path.open("rb") as handle:
        return sniff_format(handle.read(512))
