"""The files of a home: whatever stands in one, a command goes on or says in one line which file is damaged.

An input is the number of a kind of file and its bytes. Seeds stand without their seals too, so that mutants get past
them to what reads the values.
"""

import atexit
import json
import logging
import random
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from flows.services import environment
from tasks.checkpoints import CheckpointFolder, load_model
from tasks.composer.sessions import SessionFolder
from tasks.config.source_limits import SourceLimits
from tasks.copying import index
from tasks.copying.store import index_path, map_index
from tasks.dataset import token_cache, versions
from tasks.dataset.card import dataset_card
from tasks.dataset.changes import diff_versions
from tasks.dataset.upkeep import verify_version
from tasks.dataset.versions import DatasetVersion
from tasks.errors import DatasetError
from tasks.generation.batch_files import check_piece, read_run_note
from tasks.generation.generate import find_batch, find_whole_batch
from tasks.generation.summary import batch_card, batch_summary
from tasks.ingest.sources.cache import load_batches, load_table, store_table
from tasks.lineage.lineage import Lineage
from tasks.storage.databases import check_database
from tasks.storage.home import Home
from tasks.storage.integrity import SEAL, checksum_path, sealed_bytes
from tasks.storage.parquet import flat_values, read_metadata, read_table
from tasks.sweep.space import SweepFolder, rank
from tasks.training import runs
from tasks.training.metrics_log import MetricsTail, read_points
from tests.fuzz.harness import Target
from tests.fuzz.mutators import BINARY, JSON, Mutator
from tests.homes import unpack_home


@dataclass(frozen=True)
class Place:
    """A file of a home and what reads it."""

    path: Path
    read: Callable[[], object]

    def seeds(self) -> list[bytes]:
        data = self.path.read_bytes()
        try:
            value = json.loads(data)
        except ValueError:
            return [data]
        plain = {key: item for key, item in value.items() if key != SEAL}
        return [json.dumps(plain).encode(), sealed_bytes(plain)]


@cache
def a_home() -> Home:
    folder = Path(tempfile.mkdtemp(prefix="fuzz-home-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    home = Home(unpack_home("96e5a72", folder)[0])
    (dataset,) = versions.list_datasets(home)
    token_cache.flat_tokens(dataset.token_shards("train"), dataset.flat_tokens)
    index.copy_index(dataset)
    cached = next((home.cache / "folders").glob("*.parquet"))
    store_table(cached, read_table(dataset.ledger), {"started_ns": 1})
    (home.sweeps / "one").mkdir(parents=True)
    row: dict[str, Any] = {"point": 1, "settings": "a=1", "values": {"a": 1}, "status": "finished", "reason": ""}
    row |= dict.fromkeys(("val_loss", "bits_per_note", "nll_per_token", "accuracy", "n_parameters"))
    row |= {"step": 1, "n_steps": 2, "model_version": "", "run_id": "", "run_dir": "d"}
    SweepFolder(home.sweeps / "one").write_rows([row])
    (home.sweeps / "one" / "sweep.json").write_bytes(sealed_bytes({"run_id": "r"}))
    home.services.write_text(json.dumps({"prefect_url": "http://127.0.0.1:1", "mlflow_url": "http://127.0.0.1:1"}))
    facts = home.cache / "downloads" / "one.zip.json"
    facts.parent.mkdir()
    facts.write_text(json.dumps({"address": "x", "known": {"etag": "e", "n_bytes": 3, "sha256": "0" * 64}}))
    return home


def _versions(home: Home) -> list[DatasetVersion]:
    damaged: list[DatasetError] = []
    found = versions.list_datasets(home, damaged=damaged)
    if damaged:
        raise damaged[0]
    return found


def _show_dataset(home: Home) -> None:
    (version,) = _versions(home)
    version.summary()
    dataset_card(version)
    assert all(path.is_relative_to(version.folder) for path in version.shards())
    version.missing_files()
    diff_versions(version, version)


def _show_batch(home: Home, name: str) -> None:
    batch = find_batch(home, name)
    assert batch
    batch_summary(batch)
    batch_card(batch)
    Lineage(home, None).of(name)
    find_whole_batch(home, name)


def _show_session(home: Home, name: str) -> None:
    folder = SessionFolder(home, name)
    folder.describe(folder.read())


def _read_shard(path: Path) -> None:
    table = read_table(path)
    for field in table.schema:
        if str(field.type).startswith("list"):
            flat_values(table, field.name)
    read_metadata(path, "schema")


def _read_scan(path: Path) -> None:
    load_table(path)
    if found := load_batches(path):
        list(found[2])


def _read_download(home: Home) -> None:
    from tasks.ingest.sources import downloads
    from tasks.ingest.sources.connections import Watch

    address, path = "http://127.0.0.1:1/one.zip", home.cache / "downloads" / "one.zip"
    with Watch(SourceLimits()) as watch:
        downloads._Download(address, address, path, SourceLimits(), "", watch)


@cache
def text_places() -> list[Place]:
    home = a_home()
    (version,) = versions.list_datasets(home)
    checksum_path(version.manifest_path).unlink()  # or no mutant would get beyond it
    checkpoint = next(home.root.glob("runs/*/checkpoints/step-*/state.json")).parent
    run = checkpoint.parents[1]
    (session,) = home.root.glob("sessions/*/session.json")
    batch = next(home.generations.glob("[!.]*/manifest.json")).parent
    sidecar = batch / "pieces" / "0001.json"
    sweep = SweepFolder(home.sweeps / "one")
    pointer = CheckpointFolder(checkpoint.parent)
    human = index.human_path(version.version_folder)
    return [
        Place(version.manifest_path, lambda: _show_dataset(home)),
        Place(version.folder / "latest.json", lambda: versions.resolve_dataset(home, "small").summary()),
        Place(version.hashes_path, lambda: verify_version(version)),
        Place(human, lambda: index._read_human(version.version_folder)),
        Place(checkpoint / "state.json", lambda: load_model(checkpoint)),
        Place(pointer.root / "last.json", lambda: pointer.find("last")),
        Place(run / "run.json", lambda: runs._read_facts(run / "run.json").get("run_id")),
        Place(run / "metrics.jsonl", lambda: _read_curve(run / "metrics.jsonl")),
        Place(session, lambda: _show_session(home, session.parent.name)),
        Place(batch / "manifest.json", lambda: _show_batch(home, batch.name)),
        Place(sidecar, lambda: (check_piece(sidecar), Lineage(home, None).of(str(sidecar)))),
        Place(home.generations / f"{batch.name}.results.json", lambda: find_whole_batch(home, batch.name)),
        Place(home.generations / f"{batch.name}.run.json", lambda: read_run_note(batch)),
        Place(sweep.facts, sweep.run_id),
        Place(sweep.results, lambda: rank(sweep.read_rows([]))),
        Place(home.services, lambda: environment.read_services(home)),
        Place(home.cache / "downloads" / "one.zip.json", lambda: _read_download(home)),
    ]


def _read_curve(path: Path) -> None:
    for points in (read_points(path), MetricsTail(path).new_points()):
        assert all(isinstance(point["step"], int | float) for point in points)


@cache
def binary_places() -> list[Place]:
    home = a_home()
    (version,) = versions.list_datasets(home)
    checkpoint = next(home.root.glob("runs/*/checkpoints/step-*/state.json")).parent
    flat = token_cache.flat_path(version.token_shards("train"), version.flat_tokens)
    index = index_path(version.version_folder)
    cached = next((home.cache / "folders").glob("*.parquet"))
    songs, tokens = version.folder / version.manifest["songs"][0], version.token_shards("train")[0]
    database = home.mlflow / "mlflow.db"
    return [
        Place(songs, lambda: _read_shard(songs)),
        Place(tokens, lambda: _read_shard(tokens)),
        Place(version.ledger, lambda: read_table(version.ledger)),
        Place(cached, lambda: _read_scan(cached)),
        Place(flat, lambda: token_cache._map(flat)),
        Place(index, lambda: map_index(index)),
        Place(checkpoint / "model.safetensors", lambda: load_model(checkpoint)),  # of before digests, so it is parsed
        Place(database, lambda: check_database(database, "all")),
    ]


def check_text(data: bytes) -> None:
    """Put the bytes where the file stood and read it."""
    _check(text_places(), data)


def check_binary(data: bytes) -> None:
    """The same for files that are no text."""
    _check(binary_places(), data)


def _check(places: Sequence[Place], data: bytes) -> None:
    if not data:
        return
    place = places[data[0] % len(places)]
    whole = place.path.read_bytes()
    place.path.write_bytes(data[1:])
    logging.disable(logging.WARNING)
    try:
        place.read()
    finally:
        logging.disable(logging.NOTSET)
        place.path.write_bytes(whole)


def _seeds(places: Sequence[Place]) -> list[bytes]:
    return [bytes([number]) + seed for number, place in enumerate(places) for seed in place.seeds()]


def _behind_number(mutator: Mutator) -> Mutator:
    def mutate(data: bytes, dice: random.Random, others: Sequence[bytes]) -> bytes:
        return data[:1] + mutator(data[1:], dice, [other[1:] for other in others])

    return mutate


TARGETS = (
    Target(
        name="home_text",
        seeds=lambda: _seeds(text_places()),
        check=check_text,
        mutators=tuple(map(_behind_number, JSON)),
    ),
    Target(
        name="home_binary",
        seeds=lambda: _seeds(binary_places()),
        check=check_binary,
        mutators=tuple(map(_behind_number, BINARY)),
    ),
)
