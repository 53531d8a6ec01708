"""Parsers that behave badly on chosen files and do the real work on all others, for the tests of quarantine.

The files are chosen by content hash in a JSON file that ORCHESTRION_HOSTILE_FILES names:
`{"<hash>": "crash" | "hang" | "sleep" | "memory"}`.
"""

import ctypes
import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from tasks.ingest import song_shards
from tests.tasks.runtime.hostile_work import behave

VARIABLE = "ORCHESTRION_HOSTILE_FILES"


def prepare() -> None:
    """Make the real parser ready, as its own module does."""
    song_shards.prepare()


def parse(payload: bytes) -> bytes:
    """Die of the first chosen file that is to be read, else parse."""
    for what in _chosen(payload).values():
        behave(what.encode())
    return song_shards.parse_shards(payload)


def parse_then_die(payload: bytes) -> bytes:
    """Do all the work, written shards included, and die of the first chosen file before saying so."""
    answer = song_shards.parse_shards(payload)
    for what in _chosen(payload).values():
        behave(what.encode())
    return answer


def die_once(payload: bytes) -> bytes:
    """Die the first time, however many files there are; parse from then on."""
    return _misbehave_once(payload, lambda: ctypes.string_at(0))


def kill_host_once(payload: bytes) -> bytes:
    """Kill the host process, once, on a batch of more than one file or on any."""
    return _misbehave_once(payload, lambda: os.kill(os.getppid(), signal.SIGKILL))


def die_then_kill_host(payload: bytes) -> bytes:
    """Die the first time; kill the host, once, when a shard is tried again after the search."""
    marker = Path(os.environ[VARIABLE] + ".died")
    if not marker.exists():
        marker.touch()
        ctypes.string_at(0)
    is_dry = json.loads(pa.ipc.open_stream(payload).schema.metadata[b"order"])["dry"]
    return song_shards.parse_shards(payload) if is_dry else kill_host_once(payload)


def kill_host_of_one_file(payload: bytes) -> bytes:
    """Die of any larger batch until a single file is tried; kill its host then, once."""
    marker = Path(os.environ[VARIABLE] + ".done")
    if pa.ipc.open_stream(payload).read_all().num_rows > 1 and not marker.exists():
        ctypes.string_at(0)
    return _misbehave_once(payload, lambda: os.kill(os.getppid(), signal.SIGKILL))


def jostle(payload: bytes) -> bytes:
    """Die of any batch of more than one file, as if they needed too much together."""
    if pa.ipc.open_stream(payload).read_all().num_rows > 1:
        ctypes.string_at(0)
    return song_shards.parse_shards(payload)


def _misbehave_once(payload: bytes, how: object) -> bytes:
    marker = Path(os.environ[VARIABLE] + ".done")
    if not marker.exists():
        marker.touch()
        how()  # type: ignore[operator]
        signal.pause()
    return song_shards.parse_shards(payload)


def _chosen(payload: bytes) -> Mapping[str, str]:
    """Return what to do, by hash, of the files of an order; those in quarantine are not read."""
    members = pa.ipc.open_stream(payload).read_all()
    quarantined = json.loads(members.schema.metadata[b"order"])["quarantined"]
    hostile = json.loads(Path(os.environ[VARIABLE]).read_bytes())
    hashes = [value.hex() for value in members.column("content_hash").to_pylist()]
    return {key: hostile[key] for key in hashes if key in hostile and key not in quarantined}
