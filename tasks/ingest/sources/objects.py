"""Object stores (s3://, gs://, memory:// ...), whose objects are fetched once into local packs."""

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from fsspec.implementations.arrow import ArrowFSWrapper
from pyarrow import fs as arrow_fs

from tasks.errors import ConfigError, DamagedFile, DatasetError, NotFound, RejectReason, first_line
from tasks.ingest.sources.cache import cache_key, load_table, store_table
from tasks.ingest.sources.connections import refuses_private, require_public
from tasks.ingest.sources.listing import LISTING_SCHEMA, SLICE, Part, Rows, ScanSettings, stamp_of
from tasks.ingest.sources.names import archive_format, is_companion
from tasks.ingest.sources.read import BadRead
from tasks.ingest.sources.threads import cut
from tasks.storage.file_names import is_midi, printable
from tasks.storage.files import whole_file, write_atomically
from tasks.storage.integrity import read_sealed, sealed_bytes

logger = logging.getLogger(__name__)

BATCH_OBJECTS, BATCH_BYTES = 512, 128 * 2**20  # held in memory at one time
ATTEMPTS = 3
_FACTS = ("ETag", "etag", "md5Hash", "generation", "LastModified", "last_modified", "mtime", "created", "updated")
STORED_SCHEMA = pa.schema(
    [(name, LISTING_SCHEMA.field(name).type) for name in ("member", "n_bytes", "content_hash", "offset")]
    + [("token", pa.string()), ("pack", pa.string())]
)


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One object of a store."""

    name: bytes  # below the address
    path: str
    n_bytes: int
    token: str  # changes with the contents; empty if unknown


class _ArrowStore(ArrowFSWrapper):
    """A store that pyarrow opens, listed in pages of objects instead of folder by folder."""

    def find(self, path: str, *_: Any, **__: Any) -> dict[str, dict[str, Any]]:  # type: ignore[override]
        infos = self.fs.get_file_info(arrow_fs.FileSelector(path, recursive=True))
        return {info.path: self._make_entry(info) for info in infos if info.type == arrow_fs.FileType.File}


def _open_store(address: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system of an address and the path in it."""
    try:
        system, path = arrow_fs.FileSystem.from_uri(address)
        return _ArrowStore(system, skip_instance_cache=True), path
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        refusal = first_line(error)
    try:
        return fsspec.core.url_to_fs(address)
    except ImportError as error:
        raise ConfigError(f"source {address}: {first_line(error)}") from None
    except Exception as error:  # any error of a foreign file system
        raise DatasetError(f"source {address}: {first_line(error)}; pyarrow: {refusal}") from None


def _objects(system: fsspec.AbstractFileSystem, path: str) -> Iterator[StoredObject]:
    top: dict[str, Any] = system.info(path)
    found: Any
    if top["type"] == "file":
        found, folder = {path: top}, path.rpartition("/")[0]
    else:
        found, folder = system.find(path, detail=True), path.rstrip("/")
    for place, info in found.items():
        token = {key: str(info[key]) for key in _FACTS if info.get(key) is not None}
        name = os.fsencode(place.removeprefix(f"{folder}/"))
        yield StoredObject(name, place, int(info.get("size") or 0), json.dumps(token) if token else "")


def _refuse_private(address: str, label: str) -> None:
    """Refuse a store on this machine or its networks, named by the address or by its `endpoint_override`."""
    parts = urlsplit(address)
    hosts = [urlsplit(f"//{value}").hostname for name, value in parse_qsl(parts.query) if name == "endpoint_override"]
    if parts.scheme not in ("s3", "gs", "gcs", "memory"):  # whose host is the name of a bucket
        hosts.append(parts.hostname)
    for host in hosts:
        require_public(host or "", None, label)


def list_objects(address: str, label: str, settings: ScanSettings) -> tuple[list[Part], list[tuple[bytes, Path]]]:
    """Fetch the changed objects below an address; return the listings of its packs, and its archives as local files.

    Args:
        label: the address in messages.
    """
    if refuses_private(settings.limits):
        _refuse_private(address, label)
    system, path = _open_store(address)
    try:
        found = sorted(_objects(system, path), key=lambda item: item.name)
    except FileNotFoundError:
        found = []
    except Exception as error:  # any error of a foreign file system
        raise DatasetError(f"source {label}: cannot list it: {first_line(error)}") from None
    if not found:
        raise NotFound(f"source {label} does not exist or is empty")
    files = [item for item in found if is_midi(item.name) and not is_companion(item.name)]
    archives = [item for item in found if archive_format(item.name) and not is_companion(item.name)]
    fetcher = _Fetcher(system, label, address, settings)
    parts = fetcher.fetch(files)
    parts[0].n_other_files = len(found) - len(files) - len(archives) + fetcher.n_companions
    return parts, [(item.name, fetcher.fetch_archive(item)) for item in archives]


@dataclass(slots=True)
class _Fetcher:
    system: Any  # fsspec.AbstractFileSystem, whose `open` has no exact type
    label: str
    address: str
    settings: ScanSettings
    n_companions: int = 0  # among the files that were fetched

    @property
    def packs(self) -> Path:
        return self.settings.cache / "packs"

    def fetch(self, files: list[StoredObject]) -> list[Part]:
        key = cache_key(self.address)
        where = self.settings.cache / "objects" / f"{key}.parquet"
        cached = None if self.settings.rehash else load_table(where)
        kept = self._kept(files, cached[0].replace_schema_metadata(None)) if cached else STORED_SCHEMA.empty_table()
        names = set(kept["member"].to_pylist())
        missing = [item for item in files if item.name not in names]
        if names:
            self.settings.on_files(len(names))
        fresh, refused = self._spool(missing, key)
        stored = pa.concat_tables([kept, fresh]).combine_chunks()
        if missing or cached is None or len(cached[0]) != len(stored):
            store_table(where, stored, {"address": self.label})
        used = set(stored["pack"].to_pylist())
        for pack in self.packs.glob(f"{key}-*.pack"):
            if pack.name not in used:
                pack.unlink(missing_ok=True)
        unread = Part(pa.Table.from_batches([refused.batch()]), 0, os.fsencode(self.settings.cache))
        return [*self._parts(stored), unread]

    def _kept(self, files: list[StoredObject], table: pa.Table) -> pa.Table:
        """Return the rows of unchanged objects whose packs exist."""
        names = pa.array([item.name for item in files], pa.binary())
        index = pc.index_in(table["member"].combine_chunks(), value_set=names)
        tokens = pa.array([item.token for item in files], pa.string()).take(index)
        sizes = pa.array([item.n_bytes for item in files], pa.int64()).take(index)
        packs = [pack for pack in pc.unique(table["pack"]).to_pylist() if (self.packs / pack).exists()]
        same = pc.and_(pc.equal(tokens, table["token"]), pc.equal(sizes, table["n_bytes"]))
        same = pc.and_(pc.and_(same, pc.not_equal(tokens, "")), pc.is_in(table["pack"], pa.array(packs, pa.string())))
        return table.filter(pc.fill_null(same, False))

    def _spool(self, files: list[StoredObject], key: str) -> tuple[pa.Table, Rows]:
        """Fetch some objects into a new pack; return their rows, and those of the failed ones."""
        columns: dict[str, list[Any]] = {name: [] for name in STORED_SCHEMA.names}
        refused = Rows()
        if not files:
            return STORED_SCHEMA.empty_table(), refused
        path = self.packs / f"{key}-{time.time_ns():016x}.pack"
        batches = cut(files, [item.n_bytes for item in files], BATCH_OBJECTS, BATCH_BYTES)
        with ThreadPoolExecutor(self.settings.n_threads) as pool, whole_file(path) as pack:
            for batch in batches:
                for item, data in zip(batch, pool.map(self._get, batch), strict=True):
                    if isinstance(data, BadRead):
                        refused.refuse(item.name, item.n_bytes, data.reason, data.detail)
                    elif is_companion(item.name, data):
                        self.n_companions += 1
                    else:
                        sha256 = hashlib.sha256(data).digest()
                        row = (item.name, len(data), sha256, pack.tell(), item.token, path.name)
                        pack.write(data)
                        for column, value in zip(columns.values(), row, strict=True):
                            column.append(value)
                self.settings.on_files(len(batch))
        return pa.table(columns, schema=STORED_SCHEMA), refused

    def _get(self, item: StoredObject) -> bytes | BadRead:
        """Return an object's bytes, or the reason of the failure."""
        limit, name = self.settings.limits.max_member_bytes, printable(item.name)
        problem = ""
        if item.n_bytes > limit:
            detail = f"{item.n_bytes} bytes, above max_member_bytes={limit} ({name})"
            return BadRead(RejectReason.TOO_LARGE, detail)
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(self.settings.limits.retry_wait_seconds * 2 ** (attempt - 1))
            try:
                with self.system.open(item.path, "rb") as stream:
                    data = stream.read(limit + 1)
            except FileNotFoundError:
                return BadRead(RejectReason.VANISHED, f"gone since the store was listed ({name})")
            except Exception as error:  # any error of a foreign file system
                problem = first_line(error)
                continue
            if len(data) > limit:
                return BadRead(RejectReason.TOO_LARGE, f"more than max_member_bytes={limit} ({name})")
            return data
        return BadRead(RejectReason.DOWNLOAD_FAILED, f"{problem}, {ATTEMPTS} times ({name})")

    def fetch_archive(self, item: StoredObject) -> Path:
        """Return a local copy of an archive in the store."""
        base = printable(item.name).replace("/", "_")[-80:]
        path = self.settings.cache / "downloads" / f"{cache_key(self.address, item.name)}-{base}"
        facts = path.with_name(f"{path.name}.json")
        identity, limit = [item.n_bytes, item.token], self.settings.limits.max_download_bytes
        if item.token and not self.settings.rehash and path.exists() and _read_identity(facts) == identity:
            return path
        try:
            with self.system.open(item.path, "rb") as stream, whole_file(path) as handle:
                while piece := stream.read(2**20):
                    if handle.tell() + len(piece) > limit:
                        problem = f"{printable(item.name)} is larger than max_download_bytes={limit}"
                        raise DatasetError(f"source {self.label}: {problem}")
                    handle.write(piece)
                facts.unlink(missing_ok=True)
        except DatasetError:
            raise
        except Exception as error:  # any error of a foreign file system
            shown = printable(item.name)
            raise DatasetError(f"source {self.label}: cannot fetch {shown}: {first_line(error)}") from None
        write_atomically(facts, sealed_bytes({"identity": identity}))
        return path

    def _parts(self, stored: pa.Table) -> list[Part]:
        parts = []
        for name in sorted(pc.unique(stored["pack"]).to_pylist()):
            rows = stored.filter(pc.equal(stored["pack"], name)).combine_chunks()
            columns = {column: rows[column] for column in ("member", "n_bytes", "content_hash", "offset")}
            columns |= dict.fromkeys(("reason", "detail"), pa.repeat("", len(rows)))
            columns |= {"stored_bytes": rows["n_bytes"], "kind": pa.array(np.full(len(rows), SLICE, np.int8))}
            table = pa.table({column: columns[column] for column in LISTING_SCHEMA.names}, schema=LISTING_SCHEMA)
            parts.append(Part(table, stamp_of((self.packs / name).stat()), os.fsencode(self.packs / name)))
        return parts


def _read_identity(facts: Path) -> list[Any] | None:
    try:
        return read_sealed(facts, {"identity": list})["identity"]
    except (FileNotFoundError, DamagedFile):
        return None
