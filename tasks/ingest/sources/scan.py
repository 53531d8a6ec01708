"""The scan: one table with a row for each MIDI file of the sources, its hash and its place."""

import logging
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.config.source_limits import SourceLimits
from tasks.errors import ConfigError, DatasetError, NotFound, OrchestrionError, RejectReason
from tasks.ingest.sources.archives import list_archive, sniff_file
from tasks.ingest.sources.catalog import CatalogEntry, find_entry
from tasks.ingest.sources.folders import hash_found
from tasks.ingest.sources.labels import LICENCE_FILE, licence_column, read_licences, split_by_folders, split_by_table
from tasks.ingest.sources.listing import LISTING_SCHEMA, Part, Rows, ScanSettings
from tasks.ingest.sources.names import archive_format
from tasks.ingest.sources.read import BadRead, refuse_rows
from tasks.ingest.sources.secrets import public_address
from tasks.ingest.sources.spec import SourceSpec, check_source, parse_source, shown_source, source_name
from tasks.ingest.sources.threads import default_threads
from tasks.ingest.sources.walk import Found, one_file, read_list, walk_folder
from tasks.storage.file_names import MIDI_SUFFIXES, is_midi, printable, printable_column
from tasks.storage.integrity import examine
from tasks.storage.parquet import replace_column

logger = logging.getLogger(__name__)

SCAN_SCHEMA = pa.schema(
    {
        "path": pa.string(),  # '/' between folders; unique; bytes that are not UTF-8 as \xNN
        "n_bytes": pa.int64(),
        "content_hash": pa.binary(32),  # SHA-256; null where there is a reason
        "reason": pa.string(),  # empty: the file can be read
        "detail": pa.string(),
        "container": pa.dictionary(pa.int32(), pa.binary()),  # a local file or folder
        "kind": pa.int8(),  # see tasks/ingest/sources/listing.py
        "member": pa.binary(),
        "offset": pa.int64(),
        "stored_bytes": pa.int64(),
        "stamp": pa.int64(),  # of the file, or of the container where that is a file
        "licence": pa.dictionary(pa.int32(), pa.string()),
        "split": pa.dictionary(pa.int32(), pa.string()),  # official: train, validation or test
        "source": pa.dictionary(pa.int32(), pa.string()),
    }
)


@dataclass(frozen=True, slots=True)
class Scan:
    """The files of the sources: SCAN_SCHEMA in order of path, and the number of other files."""

    files: pa.Table
    n_other_files: int
    n_homes: int = 0  # homes of Orchestrion in the sources, left out


def scan_sources(
    texts: Sequence[str], cache: Path, limits: SourceLimits, rehash: bool = False, n_threads: int | None = None,
    on_files: Callable[[int], object] = lambda _: None,
) -> Scan:  # fmt: skip
    """Find and hash every MIDI file of some sources; see `ScanSettings`.

    The same contents give the same table, for any number of threads and any order of a folder's entries.

    Args:
        texts: sources as a user writes them.
        cache: folder with known hashes, downloads and unpacked streams for later scans. It may be deleted.
        n_threads: for reading; None for the number that suits this machine.
    Raises:
        ConfigError, NotFound, DatasetError: sources do not exist, cannot be read or hold no MIDI file; one message
            names them all.
    """
    _check_all(texts)
    settings = ScanSettings(cache.absolute(), limits, rehash, n_threads or default_threads(), on_files)
    prefixes = _prefixes(texts)
    tables: list[pa.Table] = []
    n_other_files = n_homes = 0
    problems: list[str] = []
    for text, prefix in zip(texts, prefixes, strict=True):
        spec = parse_source(text)
        parts, licences, entry = _list_source(spec, settings)
        n_others = sum(part.n_other_files for part in parts)
        n_other_files += n_others
        n_homes += sum(part.n_homes for part in parts)
        if not any(len(part.table) for part in parts):
            found = f"{n_others} other files" if n_others else "it is empty"
            problems.append(f"source {spec.label} holds no MIDI file ({', '.join(MIDI_SUFFIXES)}): {found}")
        for part in parts:
            for note in part.notes:
                logger.warning("source %s: %s", spec.label, note)
            if len(part.table):
                tables.append(_finish(part, spec, prefix, licences, entry))
                part.table = LISTING_SCHEMA.empty_table()  # a million rows are held once
    if problems:
        raise DatasetError("; ".join(problems))
    table = pa.concat_tables(tables).unify_dictionaries()
    tables.clear()
    return Scan(_in_order(table), n_other_files, n_homes)


def carry_vanished(before: Scan, after: Scan, lost: Collection[bytes]) -> Scan:
    """Add a row `vanished` to a second scan for each lost file of the first scan that it does not find.

    Args:
        lost: content hashes of files that could not be read after the first scan.
    """
    old = before.files
    is_lost = pc.or_(
        pc.is_in(old["content_hash"], pa.array(lost, pa.binary(32))), pc.equal(old["reason"], RejectReason.VANISHED)
    )
    rows = old.filter(pc.and_(is_lost, pc.invert(pc.is_in(old["path"], after.files["path"].combine_chunks()))))
    gone = BadRead(RejectReason.VANISHED, "it was there at the first scan of this rebuild and is gone now")
    rows = refuse_rows(rows, dict.fromkeys(range(rows.num_rows), gone))
    files = pa.concat_tables([after.files, rows]).unify_dictionaries()
    return Scan(_sorted(files), after.n_other_files, after.n_homes)


def _check_all(texts: Sequence[str]) -> None:
    """Check all sources; one message names all problems."""
    if not texts:
        raise ConfigError("no source is given; name a folder, a file, an address or a set of the catalog")
    problems: list[OrchestrionError] = []
    for text in texts:
        try:
            check_source(text)
        except (ConfigError, NotFound, DatasetError) as error:
            problems.append(error)
    if problems:
        raise type(problems[0])("; ".join(str(problem) for problem in problems))
    if twice := next((text for text in texts if texts.count(text) > 1), None):
        raise ConfigError(f"source {shown_source(twice)} is given twice")


def _prefixes(texts: Sequence[str]) -> list[str]:
    """Return the prefix of each source's paths: none for one source, its short name for several."""
    if len(texts) == 1:
        return [""]
    names: list[str] = []
    for text in texts:
        name = stem = source_name(text)
        number = 2
        while name in names:
            name, number = f"{stem}-{number}", number + 1
        names.append(name)
    return [f"{name}/" for name in names]


def _list_source(
    spec: SourceSpec, settings: ScanSettings
) -> tuple[list[Part], list[tuple[str, str]], CatalogEntry | None]:
    """Return the listings of a source, the licences of its `licences.csv`, and its entry in the catalog."""
    path = os.fsencode(spec.location)
    if spec.kind == "folder":
        parts = _list_found(walk_folder(path, os.fsencode(settings.cache)), path, path, settings)
        stated = Path(spec.location) / LICENCE_FILE
        return parts, read_licences(stated) if stated.is_file() else [], None
    if spec.kind == "list":
        return _list_found(read_list(path), os.path.dirname(path), path, settings), [], None  # noqa: PTH120
    if spec.kind == "uri":
        return _list_uri(spec, settings), [], None
    if spec.kind == "catalog":
        entry = find_entry(spec.location)
        local = _download_first(entry, spec.sha256 or entry.sha256, settings)
        return [_list_local(local, entry.title, settings, entry.split_table)], [], entry
    if spec.kind == "http":
        local = _download(spec.location, spec.sha256, settings)
        named = PurePosixPath(unquote(urlsplit(public_address(spec.location)).path)).name or "download"
        return [_list_local(local, spec.label, settings, named=printable(named))], [], None
    if spec.sha256:
        _verify_file(spec.location, spec.sha256)
    return [_list_local(Path(spec.location), spec.label, settings)], [], None


def _list_found(found: Found, container: bytes, source: bytes, settings: ScanSettings) -> list[Part]:
    """Return the listing of a folder's files, and one for each archive among them."""
    inner = [_inner_archive(os.path.join(container, name), printable(name), settings) for name in found.archives]  # noqa: PTH118
    return [hash_found(found, container, source, settings), *inner]


def _inner_archive(path: bytes, shown: str, settings: ScanSettings) -> Part:
    """Return the listing of an archive among other files; an unreadable one is a row with a reason."""
    try:
        part = list_archive(path, settings)
    except DatasetError as error:
        rows = Rows()
        rows.refuse(b"", _n_bytes(path), RejectReason.UNREADABLE_ARCHIVE, str(error))
        part = Part(pa.Table.from_batches([rows.batch()]), 0, path)
    part.folder, part.label = f"{shown}/", shown
    return part


def _n_bytes(path: bytes) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116
    except OSError:  # gone, or a link that leads nowhere
        return 0


def _list_local(path: Path, label: str, settings: ScanSettings, wanted: str = "", named: str = "") -> Part:
    """Return the listing of one local file, an archive or MIDI by its name or its first bytes."""
    name = os.fsencode(path)
    kind = archive_format(name) or ("midi" if is_midi(name) else sniff_file(path))
    if not kind:
        with path.open("rb") as handle:
            begin = handle.read(16)
        raise DatasetError(f"source {label} is neither MIDI nor a known archive: it begins with {begin!r}")
    if kind == "midi":
        part = hash_found(one_file(name), os.path.dirname(name), name, settings)  # noqa: PTH120
        part.only_path = named if is_midi(named.encode()) else ""
        return part
    part = list_archive(name, settings, kind, wanted)
    part.label = named or printable(path.name)
    return part


def _list_uri(spec: SourceSpec, settings: ScanSettings) -> list[Part]:
    from tasks.ingest.sources.objects import list_objects  # which imports fsspec

    parts, archives = list_objects(spec.location, spec.label, settings)
    alone = len(archives) == 1 and not any(len(part.table) for part in parts) and archive_format(spec.location.encode())
    for name, local in archives:
        if spec.sha256:
            _verify_file(str(local), spec.sha256)
        if alone:
            parts.append(_list_local(local, spec.label, settings, named=printable(name)))
        else:
            parts.append(_inner_archive(os.fsencode(local), printable(name), settings))
    return parts


def _verify_file(path: str, sha256: str) -> None:
    found = examine(Path(path)).sha256
    if found != sha256:
        raise DatasetError(f"source {path}: sha256 is {found}, not {sha256}")


def _download(address: str, sha256: str, settings: ScanSettings) -> Path:
    from tasks.ingest.sources.downloads import download  # which imports requests

    return download(address, settings.cache, settings.limits, sha256)


def _download_first(entry: CatalogEntry, sha256: str, settings: ScanSettings) -> Path:
    """Download a catalog entry from the first of its addresses that has it."""
    problems = []
    for address in entry.addresses:
        try:
            return _download(address, sha256, settings)
        except (NotFound, DatasetError) as error:
            problems.append(str(error))
    raise DatasetError(f"catalog entry {entry.name}: {'; '.join(problems)}")


def _finish(
    part: Part, spec: SourceSpec, prefix: str, licences: list[tuple[str, str]], entry: CatalogEntry | None
) -> pa.Table:
    """Return a listing as rows of SCAN_SCHEMA."""
    listing = part.table.combine_chunks()
    n = len(listing)
    members = listing["member"].combine_chunks()
    paths = printable_column(members)
    if part.folder:
        paths = pc.binary_join_element_wise(part.folder, paths, "")
    if part.only_path:
        paths = pa.array([part.only_path], pa.string())
    if part.label:
        paths = pc.if_else(pc.equal(members, b""), part.label, paths)
    licence = licence_column(paths, licences, spec.licence or (entry.licence if entry else ""))
    if prefix:
        paths = pc.binary_join_element_wise(prefix, paths, "")
    split = pa.nulls(n, SCAN_SCHEMA.field("split").type)
    if entry and entry.split_folders:
        split = split_by_folders(members)
    elif entry and entry.split_table:
        if part.extra is None:
            logger.warning("catalog entry %s: its archive holds no %s, so no split", entry.name, entry.split_table)
        else:
            split = split_by_table(members, part.extra, entry.split_table, entry.split_columns)
    columns = {name: listing[name] for name in LISTING_SCHEMA.names}
    columns |= {"path": paths, "licence": licence, "split": split}
    columns["stamp"] = part.stamp if isinstance(part.stamp, pa.Array) else pa.array(np.full(n, part.stamp, np.int64))
    columns["container"] = _constant(part.container, n, pa.binary())
    columns["source"] = _constant(spec.label, n, pa.string())
    return pa.table([columns[name] for name in SCAN_SCHEMA.names], schema=SCAN_SCHEMA)


def _constant(value: str | bytes, n: int, kind: pa.DataType) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int32)), pa.array([value], kind))


def _in_order(table: pa.Table) -> pa.Table:
    """Sort by path, bytewise, and number the files that share a path."""
    table = _sorted(table)
    paths = table["path"].combine_chunks()
    shared = np.flatnonzero(pc.equal(paths[1:], paths[:-1]).to_numpy(zero_copy_only=False))
    if not len(shared):
        return table
    return _sorted(_numbered(table, sorted({*shared.tolist(), *(shared + 1).tolist()})))


def _sorted(table: pa.Table) -> pa.Table:
    table = table.combine_chunks()
    paths = table["path"].combine_chunks()
    if len(paths) < 2 or pc.all(pc.less(paths[:-1], paths[1:])).as_py():
        return table
    return table.take(pc.sort_indices(paths)).combine_chunks()


def _numbered(table: pa.Table, rows: list[int]) -> pa.Table:
    """Number the second and further files of one path, in order of name, place and contents."""
    some = table.take(pa.array(rows)).select(["path", "member", "offset", "content_hash", "container"]).to_pylist()
    order = sorted(range(len(rows)), key=lambda at: [b"" if key is None else key for key in some[at].values()])
    paths = table["path"].to_pylist()
    taken = set(paths)
    previous, number = "", 1
    for at in order:
        path = some[at]["path"]
        number = number + 1 if path == previous else 1
        previous = path
        if number > 1:
            while (name := f"{path}#{number}") in taken:
                number += 1
            paths[rows[at]] = name
            taken.add(name)
    return replace_column(table, "path", pa.array(paths, pa.string()))
