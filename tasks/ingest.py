"""MIDI files -> song shards: every distinct file becomes one row, accepted with its notes or rejected with a reason."""

import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tasks import cluster
from tasks.config import DatasetConfig, digest
from tasks.errors import BadScore, DatasetError
from tasks.music.score import ReadLimits, Score, read_midi
from tasks.scan import HashedFile, SourceFile, chunk_by_bytes, hash_files
from tasks.shards import SCHEMA_NUMBER, SONG_SCHEMA, list_column, write_table

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SongShard:
    """One unit of parsing: the files whose content hash begins with the shard's bits, and where the result goes."""

    members: tuple[tuple[str, SourceFile], ...]  # (content hash, one file with that content), by hash
    limits: ReadLimits
    path: Path


def hash_sources(files: list[SourceFile], on_files: Callable[[int], None] | None = None) -> list[HashedFile]:
    """Hash all files, in order; `on_files` gets the number of files as each chunk is done.

    In threads of this process: hashing releases the interpreter's lock, and a rebuild that finds nothing new to do need
    not start Ray to learn so.
    """
    hashed: list[HashedFile] = []
    with ThreadPoolExecutor(cluster.n_cpus()) as pool:
        for chunk in pool.map(hash_files, chunk_by_bytes(files)):
            hashed += chunk
            if on_files:
                on_files(len(chunk))
    return hashed


def plan_song_shards(config: DatasetConfig, hashed: list[HashedFile], folder: Path) -> list[SongShard]:
    """Assign each distinct content to a shard by the first bits of its hash, and name the shard by what is in it.

    A shard's name does not depend on the other files, so one new file changes one shard.
    """
    limits = ReadLimits(max_bytes=config.max_file_bytes, max_notes=config.max_notes, max_seconds=config.max_seconds)
    first_with: dict[str, SourceFile] = {}
    for entry in hashed:
        if entry.content_hash:
            first_with.setdefault(entry.content_hash, entry.file)
    buckets: dict[int, list[str]] = defaultdict(list)
    n_bits = config.n_shards.bit_length() - 1
    for content_hash in sorted(first_with):
        buckets[int(content_hash[:8], 16) >> (32 - n_bits)].append(content_hash)
    shards = []
    for _, hashes in sorted(buckets.items()):
        identity = {"schema": SCHEMA_NUMBER, "limits": asdict(limits), "members": hashes}
        members = tuple((content_hash, first_with[content_hash]) for content_hash in hashes)
        shards.append(SongShard(members, limits, folder / f"{digest(identity)[:24]}.parquet"))
    return shards


def build_song_shards(shards: list[SongShard], on_files: Callable[[int], None] | None = None) -> int:
    """Parse and write the shards that do not exist yet; return how many were written."""
    missing = [shard for shard in shards if not shard.path.exists()]
    cluster.run_over(build_song_shard, missing, lambda n_files: on_files and on_files(n_files))
    return len(missing)


def build_song_shard(shard: SongShard) -> int:
    """Parse the members of one shard and write it; return the number of files.

    Raises:
        DatasetError: a file vanished or changed since it was hashed.
    """
    rows, scores = [], []
    for content_hash, file in shard.members:
        data = _read_unchanged(file, content_hash)
        row = {"piece": content_hash[:16], "content_hash": content_hash, "n_bytes": len(data)}
        try:
            score = read_midi(data, file.path, shard.limits)
        except BadScore as error:
            rows.append(row | {"status": "rejected", "reason": error.reason, "detail": error.detail})
            scores.append(None)
        else:
            rows.append(row | {"status": "accepted", "reason": "", "detail": ""} | _facts(score))
            scores.append(score)
    write_table(shard.path, _song_table(rows, scores), {"schema": SCHEMA_NUMBER, "limits": asdict(shard.limits)})
    return len(rows)


def _read_unchanged(file: SourceFile, content_hash: str) -> bytes:
    try:
        data = Path(file.location).read_bytes()
    except OSError as error:
        raise DatasetError(f"{file.path} vanished during the rebuild ({error.strerror}); run it again") from None
    if hashlib.sha256(data).hexdigest() != content_hash:
        raise DatasetError(f"{file.path} changed during the rebuild; run it again")
    return data


def _facts(score: Score) -> dict[str, Any]:
    notes = score.notes
    return {
        "dropped": json.dumps(score.dropped, sort_keys=True),
        "n_notes": len(notes.pitch),
        "seconds": float(notes.end_seconds.max()),
        "ticks_per_quarter": score.ticks_per_quarter,
        "n_tracks": score.n_tracks,
        "programs": sorted({int(program) for program in np.unique(notes.program[~notes.is_drum])}),
    }


def _list_columns(score: Score) -> dict[str, np.ndarray]:
    notes, pedals = score.notes, score.pedals
    return {
        "onset": notes.onset,
        "duration": notes.duration,
        "onset_seconds": notes.onset_seconds,
        "duration_seconds": notes.end_seconds - notes.onset_seconds,
        "pitch": notes.pitch,
        "velocity": notes.velocity,
        "program": notes.program,
        "is_drum": notes.is_drum,
        "track": notes.track,
        "tempo_tick": score.tempos.tick,
        "tempo_microseconds_per_quarter": score.tempos.microseconds_per_quarter,
        "time_signature_tick": score.time_signatures.tick,
        "time_signature_numerator": score.time_signatures.numerator,
        "time_signature_denominator": score.time_signatures.denominator,
        "key_signature_tick": score.key_signatures.tick,
        "key_signature_sharps": score.key_signatures.key,
        "key_signature_is_minor": score.key_signatures.is_minor,
        "pedal_onset": pedals.onset,
        "pedal_duration": pedals.end - pedals.onset,
        "pedal_onset_seconds": pedals.onset_seconds,
        "pedal_duration_seconds": pedals.end_seconds - pedals.onset_seconds,
        "pedal_track": pedals.track,
    }


def _song_table(rows: list[dict[str, Any]], scores: list[Score | None]) -> pa.Table:
    columns_of = [_list_columns(score) if score is not None else None for score in scores]
    arrays = []
    for field in SONG_SCHEMA:
        if not pa.types.is_list(field.type) or field.name == "programs":
            arrays.append(pa.array([row.get(field.name) for row in rows], field.type))
            continue
        parts = [columns[field.name] if columns else np.zeros(0) for columns in columns_of]
        offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])])
        arrays.append(list_column(offsets, np.concatenate(parts) if parts else np.zeros(0), field.type.value_type))
    return pa.Table.from_arrays(arrays, schema=SONG_SCHEMA)
