"""Song shards: a row for each distinct MIDI content, accepted with its notes or rejected with a reason.

Files are read in limited child processes (`isolation`). A batch that kills its child is halved until the culprits are
found; they are rejected with the cause of death.
"""

import io
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.config.dataset import ParseConfig
from tasks.config.old_names import first_names
from tasks.config.serialization import digest
from tasks.errors import DatasetError, RejectReason, plural
from tasks.ingest.sources.read import BadRead, read_members
from tasks.music.midi.limits import ReadLimits
from tasks.runtime import cluster
from tasks.runtime.isolation import Death, Host, WorkError, WorkLimits, find_culprits
from tasks.storage.parquet import SCHEMA_NUMBER, SONG_SCHEMA, list_column, write_into, write_table

logger = logging.getLogger(__name__)

MIN_SHARD_BITS = 3  # small datasets have 8 shards too, for several workers and cheap changes
BATCH_BYTES = 2 * 2**20  # of MIDI read at once; they fit into a core's cache
JOB_BYTES, JOB_FILES = 4 * 2**20, 4096  # of one piece of work of a child
ATTEMPTS_OF_A_SHARD = 3  # without its culprits, because another process may kill the child
SECONDS_PER_MIB = 2.0  # twenty times the usual time


def hex_strings(hashes: pa.Array) -> pa.Array:
    """Return 32-byte hashes as strings of 64 hex digits, nulls as nulls."""
    flat = memoryview(hashes.buffers()[1])[32 * hashes.offset :][: 32 * len(hashes)] if len(hashes) else b""
    offsets = np.arange(len(hashes) + 1, dtype=np.int32) * 64
    strings = pa.StringArray.from_buffers(len(hashes), pa.py_buffer(offsets), pa.py_buffer(flat.hex().encode()))
    return pc.if_else(hashes.is_valid(), strings, pa.scalar(None, pa.string()))


@dataclass(frozen=True, slots=True, eq=False)
class SongShard:
    """One unit of parsing: contents whose hashes begin with the shard's bits, and the path of the result."""

    files: pa.Table  # scan rows
    rows: np.ndarray  # of the shard in `files`, one for each content, by hash
    n_bytes: int
    limits: ParseConfig
    path: Path

    @property
    def n_files(self) -> int:
        return len(self.rows)

    @property
    def members(self) -> pa.Table:
        return self.files.take(pa.array(self.rows))

    def part(self, begin: int, end: int) -> "SongShard":
        """Return a shard with some of the members in a table of their own, for another process."""
        members = self.files.take(pa.array(self.rows[begin:end])).unify_dictionaries().combine_chunks()
        n_bytes = int(np.sum(members.column("n_bytes").to_numpy()))
        return SongShard(members, np.arange(members.num_rows), n_bytes, self.limits, self.path)


@dataclass(frozen=True, slots=True, eq=False)
class Contents:
    """The M distinct contents of a scan, by hash."""

    files: pa.Table  # the scan's rows
    first: np.ndarray  # int64[M], the first row with each content
    place: np.ndarray  # int64[scan rows], the content of each row; -1 for none

    def __len__(self) -> int:
        return len(self.first)

    def words(self) -> np.ndarray:
        """Return uint64[M, 4], the hashes."""
        return hash_words(self.files.column("content_hash").take(pa.array(self.first)).combine_chunks())


def distinct_contents(files: pa.Table) -> Contents:
    """Find the distinct contents of scan rows, each represented by its first row."""
    hashes = files.column("content_hash").combine_chunks()
    usable = np.flatnonzero(hashes.is_valid().to_numpy(zero_copy_only=False))
    words = hash_words(hashes.drop_null())
    order = np.lexsort(words.T[::-1])
    words = words[order]
    is_first = np.ones(len(order), np.bool_)
    is_first[1:] = np.any(words[1:] != words[:-1], axis=1)
    place = np.full(files.num_rows, -1, np.int64)
    place[usable[order]] = np.cumsum(is_first) - 1
    return Contents(files, usable[order[is_first]], place)


def hash_words(hashes: pa.Array) -> np.ndarray:
    """Return 32-byte hashes as uint64[N, 4] in the order of the bytes."""
    flat = (
        np.frombuffer(hashes.buffers()[1], ">u8", len(hashes) * 4, hashes.offset * 32) if len(hashes) else np.zeros(0)
    )
    return flat.reshape(-1, 4).astype(np.uint64)


def plan_song_shards(limits: ParseConfig, contents: Contents, folder: Path) -> list[SongShard]:
    """Assign each content to a shard by the first bits of its hash, and name the shard by its members.

    A shard with too many files or bytes is cut in two by one more bit. So one new file changes one shard.
    """
    words, files = contents.words(), contents.files
    sizes = np.concatenate([[0], np.cumsum(files.column("n_bytes").to_numpy()[contents.first])])
    identity = {"schema": SCHEMA_NUMBER, "limits": asdict(limits)}
    shards = []
    for begin, end in _cut(words[:, 0], sizes, limits, 0, len(words), 0, 0):
        hashes = [row.hex() for row in words[begin:end].astype(">u8").view("V32").ravel().tolist()]
        name = digest(identity | {"members": hashes})[:24]
        n_bytes = int(sizes[end] - sizes[begin])
        shards.append(SongShard(files, contents.first[begin:end], n_bytes, limits, folder / f"{name}.parquet"))
    return shards


def _cut(
    prefixes: np.ndarray, n_bytes: np.ndarray, limits: ParseConfig, begin: int, end: int, bits: int, prefix: int
) -> list[tuple[int, int]]:
    """Return the ranges of the shards among contents `begin` to `end`, which share their first `bits` bits."""
    n_files, size = end - begin, int(n_bytes[end] - n_bytes[begin])
    fits = n_files <= 1 or (n_files <= limits.shard_files and size <= limits.shard_bytes)
    if n_files == 0 or (fits and bits >= MIN_SHARD_BITS) or bits == 64:
        return [(begin, end)] if n_files else []
    middle_prefix = prefix | 1 << (63 - bits)
    middle = begin + int(np.searchsorted(prefixes[begin:end], np.uint64(middle_prefix)))
    lower = _cut(prefixes, n_bytes, limits, begin, middle, bits + 1, prefix)
    return lower + _cut(prefixes, n_bytes, limits, middle, end, bits + 1, middle_prefix)


def start_workers() -> None:
    """Start Ray and compile the reader in one worker before the others need it."""
    cluster.run_apart(prepare)


class Parsed(NamedTuple):
    """The result for some files or shards. A shard with a lost content is not written."""

    n: int  # parsed
    lost: frozenset[str] = frozenset()  # content hashes whose files vanished or changed since the scan


def build_song_shards(shards: Sequence[SongShard], on_files: Callable[[int], None] | None = None) -> Parsed:
    """Parse and write the shards that do not exist yet; return their number and their lost contents."""
    missing = [shard for shard in shards if not shard.path.exists()]
    parsed = cluster.run_over(parse_isolated, jobs(missing), lambda result: on_files and on_files(result.n))
    return Parsed(len(missing), frozenset().union(*(result.lost for result in parsed)))


def jobs(shards: Sequence[SongShard]) -> Iterator[list[SongShard]]:
    """Group shards into pieces of work of `JOB_BYTES` with their own rows of the scan's table."""
    job: list[SongShard] = []
    n_bytes = n_files = 0
    for shard in shards:
        n_bytes, n_files = n_bytes + shard.n_bytes, n_files + shard.n_files
        if job and (n_bytes > JOB_BYTES or n_files > JOB_FILES):
            yield job
            job, n_bytes, n_files = [], shard.n_bytes, shard.n_files
        job.append(shard.part(0, shard.n_files))
    if job:
        yield job


_host = Host()  # one for each process that parses


def parse_isolated(shards: Sequence[SongShard], function: str = "tasks.ingest.song_shards:parse_shards") -> Parsed:
    """Parse and write some shards in a child process; files that kill the child are rejected.

    Args:
        function: run by the child.
    Raises:
        DatasetError: the limits are too low for the whole batch.
    """
    if not shards:
        return Parsed(0)
    outcome = _attempt(shards, function)
    if isinstance(outcome, Death):
        logger.warning("a batch of %s: %s; looking for the file", plural(len(shards), "shard"), outcome.detail)
        outcome = frozenset().union(*(_parse_carefully(shard, function) for shard in shards))
    return Parsed(sum(shard.n_files for shard in shards), outcome)


def _parse_carefully(shard: SongShard, function: str) -> frozenset[str]:
    """Parse a shard without the files that kill their reader; return the lost contents."""
    quarantined = _quarantine(shard, function)
    for attempt in range(ATTEMPTS_OF_A_SHARD):
        outcome = _attempt([shard], function, quarantined, patience=10)
        if not isinstance(outcome, Death):
            return outcome
        if attempt + 1 == ATTEMPTS_OF_A_SHARD:
            raise DatasetError(
                f"reading {plural(shard.n_files, 'file')} from {shard.members.column('path')[0]} on: {outcome.detail},"
                " though none does so alone; raise dataset.parse.seconds or dataset.parse.memory_bytes"
            )
    raise AssertionError


def _quarantine(shard: SongShard, function: str) -> dict[str, Death]:
    """Return content hash -> death of the files that kill a child on their own."""

    def attempt(places: Sequence[int]) -> Death | None:
        part = shard.part(places[0], places[-1] + 1)
        outcome = _attempt([part], function, dry=True)
        if isinstance(outcome, Death) and len(places) == 1:
            # A second attempt, because a busy moment must not reject a file for good.
            outcome = _attempt([part], function, dry=True, patience=2)
        return outcome if isinstance(outcome, Death) else None

    culprits = find_culprits(range(shard.n_files), attempt)
    hashes, paths = shard.members.column("content_hash"), shard.members.column("path")
    for place, death in culprits:
        logger.warning("%s is quarantined: %s", paths[place], death.detail)
    return {hashes[place].as_py().hex(): death for place, death in culprits}


def _attempt(
    shards: Sequence[SongShard],
    function: str,
    quarantined: dict[str, Death] | None = None,
    dry: bool = False,
    patience: float = 1.0,
) -> Death | frozenset[str]:
    limits = shards[0].limits
    order = {
        "shards": [[str(shard.path), shard.n_files] for shard in shards],
        "limits": first_names(asdict(limits)),  # as in the digest that names the shard
        "quarantined": {key: [death.reason, death.detail] for key, death in (quarantined or {}).items()},
        "dry": dry,
    }
    seconds = limits.seconds + SECONDS_PER_MIB * sum(shard.n_bytes for shard in shards) / 2**20
    sink = pa.BufferOutputStream()
    members = pa.concat_tables([shard.members for shard in shards]).unify_dictionaries().combine_chunks()
    with pa.ipc.new_stream(sink, members.schema.with_metadata({"order": json.dumps(order)})) as writer:
        writer.write_table(members)
    try:
        bounds = WorkLimits(seconds=seconds * patience, memory_bytes=limits.memory_bytes)
        result = _host.run(function, sink.getvalue().to_pybytes(), bounds)
    except WorkError as error:
        if error.kind == "DatasetError":
            raise DatasetError(error.message) from None
        if error.errno:
            raise OSError(error.errno, error.message) from None
        raise
    return result if isinstance(result, Death) else frozenset(json.loads(result))


# --- in the child

# Two tracks of two notes each, with two tempos, meters, keys, programs and pedals.
_EVENTS = (
    b"\0\xff\x51\3\7\xa1\x20\x60\xff\x51\3\6\x1a\x80\0\xff\x58\4\4\2\x18\x08\x60\xff\x58\4\3\2\x18\x08"
    b"\0\xff\x59\2\0\0\x60\xff\x59\2\1\0\0\xc0\5\0\xb0\x40\x7f\0\x90\x3c\x50\x60\x80\x3c\0\0\xb0\x40\0"
    b"\0\xc0\6\0\xb0\x40\x7f\0\x90\x3e\x50\x60\x80\x3e\0\0\xb0\x40\0\0\xff\x2f\0"
)
_SOME_MUSIC = b"MThd\0\0\0\6\0\1\0\2\1\xe0" + 2 * (b"MTrk" + len(_EVENTS).to_bytes(4) + _EVENTS)


def prepare() -> None:
    """Compile the reader or load its compiled code; numba compiles other code for empty arrays."""
    members = pa.table({"content_hash": pa.array([bytes(32)] * 2, pa.binary(32)), "n_bytes": pa.array([1, 1])})
    write_into(io.BytesIO(), _song_table(members, [_SOME_MUSIC, _SOME_MUSIC], ReadLimits(), {}), {}, SONG_SCHEMA)


def parse_shards(payload: bytes) -> bytes:
    """Parse the shards of an order and write them, except in a dry run; return the lost contents as JSON."""
    members = pa.ipc.open_stream(payload).read_all()
    order = json.loads(members.schema.metadata[b"order"])
    limits = ReadLimits(**order["limits"]["read"])
    lost: list[str] = []
    begin = 0
    for path, n_rows in order["shards"]:
        part, begin = members.slice(begin, n_rows), begin + n_rows
        try:
            table = parse_members(part, limits, order["quarantined"])
        except LostContents as error:
            lost += error.hashes
            continue
        if not order["dry"]:
            write_table(Path(path), table, {"schema": SCHEMA_NUMBER, "limits": order["limits"]}, SONG_SCHEMA)
    return json.dumps(lost).encode()


class LostContents(Exception):
    """Files that vanished or changed since the scan, by content hash."""

    def __init__(self, hashes: list[str]) -> None:
        super().__init__(hashes)
        self.hashes = hashes


def parse_members(members: pa.Table, limits: ReadLimits, quarantined: dict[str, list[str]]) -> pa.Table:
    """Return a song row for each scan row, or raise LostContents if files changed since the scan."""
    parts, contents, n_bytes, begin = [], list[bytes](), 0, 0
    lost: list[str] = []
    hashes = members.column("content_hash").to_pylist()
    sizes = members.column("n_bytes").to_numpy()
    is_small = sizes <= limits.max_bytes  # larger files are not read
    refused = {
        hashes[place].hex(): [RejectReason.TOO_LONG, f"file of {sizes[place]} bytes, limit {limits.max_bytes}"]
        for place in np.flatnonzero(~is_small).tolist()
    }
    quarantined = refused | quarantined
    readable = read_members(members.filter(pa.array(is_small)))
    for place in range(members.num_rows):
        content = next(readable) if is_small[place] else b""
        if isinstance(content, BadRead):
            lost.append(hashes[place].hex())
            continue
        if lost:  # the shard is not written
            continue
        contents.append(b"" if quarantined and hashes[place].hex() in quarantined else content)
        n_bytes += len(content)
        if n_bytes >= BATCH_BYTES or place == members.num_rows - 1:
            parts.append(_song_table(members.slice(begin, len(contents)), contents, limits, quarantined))
            contents, n_bytes, begin = [], 0, place + 1
    if lost:
        raise LostContents(lost)
    return pa.concat_tables(parts).combine_chunks() if len(parts) != 1 else parts[0]


def _song_table(
    members: pa.Table, contents: list[bytes], limits: ReadLimits, quarantined: dict[str, list[str]]
) -> pa.Table:
    from tasks.music.midi import events
    from tasks.music.midi.reader import read_files
    from tasks.music.notes import owner_of

    batch = read_files(contents, limits)
    notes, hashes = batch.notes, [value.hex() for value in members.column("content_hash").to_pylist()]
    refusals = [(refusal.reason, refusal.detail) if refusal else ("", "") for refusal in batch.refusals]
    for place, key in enumerate(hashes if quarantined else ()):
        refusals[place] = tuple(quarantined.get(key, refusals[place]))  # type: ignore[assignment]
    accepted = batch.facts[:, events.CODE] == events.OK
    last = np.maximum.reduceat(np.append(notes.end_seconds, 0.0), notes.offsets[:-1]) if hashes else np.zeros(0)
    columns: dict[str, Any] = {
        "piece": [key[:16] for key in hashes],
        "content_hash": hashes,
        "n_bytes": members.column("n_bytes").combine_chunks(),
        "status": np.where(accepted, "accepted", "rejected").tolist(),
        "reason": [reason for reason, _ in refusals],
        "detail": [detail for _, detail in refusals],
        "dropped": batch.dropped,
        "n_note_ons": np.where(accepted, batch.facts[:, events.N_NOTE_ONS], 0),
        "n_notes": np.diff(notes.offsets),
        "seconds": np.where(accepted, last, 0.0),
        "ticks_per_quarter": np.where(accepted, notes.ticks_per_quarter, 0),
        "n_tracks": np.where(accepted, notes.n_tracks, 0),
        "programs": _programs(batch.programs),
    }
    durations = {
        "duration_seconds": notes.end_seconds - notes.onset_seconds,
        "pedal_duration": notes.pedal_end - notes.pedal_onset,
        "pedal_duration_seconds": notes.pedal_end_seconds - notes.pedal_onset_seconds,
    }
    arrays = []
    for field in SONG_SCHEMA:
        if field.name in columns:
            arrays.append(pa.array(columns[field.name], field.type))
            continue
        values = durations[field.name] if field.name in durations else getattr(notes, field.name)
        arrays.append(list_column(getattr(notes, f"{owner_of(field.name)}offsets"), values, field.type))
    return pa.Table.from_arrays(arrays, schema=SONG_SCHEMA)


def _programs(is_used: np.ndarray) -> pa.Array:
    """Return the programs of each song's pitched notes, rising."""
    offsets = np.concatenate([[0], np.cumsum(is_used.sum(axis=1))])
    return list_column(offsets, np.nonzero(is_used)[1], SONG_SCHEMA.field("programs").type)
