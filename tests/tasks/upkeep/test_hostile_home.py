"""What stands in a home is looked at before it is believed: foreign manifests, impossible sizes, times of a clock."""

import json
import logging
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest

from tasks.checkpoints import CheckpointFolder, load_model
from tasks.dataset import analyse, versions
from tasks.dataset.token_cache import flat_tokens
from tasks.dataset.upkeep import prune, verify_version
from tasks.dataset.versions import DatasetVersion
from tasks.errors import CheckpointError, DamagedFile, DatasetError, OrchestrionError
from tasks.generation.batch_files import run_note_path
from tasks.generation.generate import find_batch
from tasks.review.comparison import _newest_batch
from tasks.storage.home import Home
from tasks.storage.integrity import checksum_path, drop_damaged, file_hash, sealed_bytes
from tasks.storage.parquet import check_shards
from tests.homes import unpack_home
from tests.samples import small_corpus, small_dataset


@pytest.fixture
def old(tmp_path: Path) -> Home:
    return Home(unpack_home("96e5a72", tmp_path)[0])


def put(home: Home, name: str, manifest: Any) -> Path:
    path = home.datasets / name / "versions" / "0000000000000000" / "manifest.json"
    path.parent.mkdir(parents=True)
    path.write_text(manifest if isinstance(manifest, str) else json.dumps(manifest))
    return path


FOREIGN: dict[str, Any] = {
    "an empty object": {},
    "a list": [],
    "a text": '"x"',
    "cut": "{",
    "deep": "[" * 100_000,
    "many digits": '{"schema": ' + "1" * 5_000 + "}",
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_manifest_blocks_no_other_dataset(old: Home, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    path = put(old, "bad", FOREIGN[kind])
    with caplog.at_level(logging.WARNING):
        assert [dataset.name for dataset in versions.list_datasets(old)] == ["small"]
    assert caplog.text.count(f"{path} is damaged") == 1
    assert versions.resolve_dataset(old).name == versions.resolve_dataset(old, "small").name == "small"
    for reference in ("bad", "bad@0000000000000000"):
        with pytest.raises(DatasetError, match=r"manifest\.json is damaged"):
            versions.resolve_dataset(old, reference)
    before = {path for path in old.datasets.rglob("*") if path.is_file()}
    with pytest.raises(DatasetError, match="the others were pruned"):
        prune(old)
    assert {path for path in old.datasets.rglob("*") if path.is_file()} == before


CHANGES: dict[str, Any] = {
    "splits are gone": lambda manifest: manifest.pop("splits"),
    "counts are a text": lambda manifest: manifest.update(counts="x"),
    "a shard elsewhere": lambda manifest: manifest["songs"].append("../../../../etc/passwd"),
    "an absolute shard": lambda manifest: manifest["analysis"].append("/etc/x.parquet"),
    "a token shard elsewhere": lambda manifest: manifest["splits"]["train"]["shards"].append("tokens/../../x.parquet"),
    "a shard of another stage": lambda manifest: manifest["songs"].append("versions/x.parquet"),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("has_checksum", [False, True])
def test_a_manifest_that_names_other_places_is_refused(old: Home, name: str, has_checksum: bool) -> None:
    (version,) = versions.list_datasets(old)
    manifest = json.loads(version.manifest_path.read_text())
    CHANGES[name](manifest)
    version.manifest_path.write_text(json.dumps(manifest))
    if not has_checksum:
        checksum_path(version.manifest_path).unlink()
    with pytest.raises(DatasetError, match=r"manifest\.json is damaged") as error:
        versions.resolve_dataset(old, "small")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["/etc", "../../..", "step-1", "", "step-000012/../../x"])
def test_a_pointer_stays_in_its_folder(old: Home, name: str) -> None:
    folder = next(old.root.glob("runs/*/checkpoints"))
    (folder / "last.json").write_bytes(sealed_bytes({"checkpoint": name}))
    with pytest.raises(CheckpointError, match=r"last\.json is damaged"):
        CheckpointFolder(folder).find("last")


def hostile(state: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    model = state["config"]["model"] | change.pop("model", {})
    return state | {"config": state["config"] | {"model": model}} | change


STATES: dict[str, Any] = {
    "layers": ({"model": {"n_layers": 10**9}}, "1000000000 layers in state.json"),
    "width": ({"model": {"d_model": 2**30}}, "of another model|no such model"),
    "distances": ({"model": {"max_relative_distance": 10**10}}, "of another model|no such model"),
    "feed-forward": ({"model": {"d_ff": 2**62}}, "of another model|no such model"),
    "heads": ({"model": {"n_heads": 0}}, "n_heads=0 is below 1"),
    "a tokenizer that is a list": ({"tokenizer": [1]}, "tokenizer is list, not an object"),
    "a tokenizer without a name": ({"tokenizer": {}}, "it has no 'tokenizer.name'"),
    "an unknown tokenizer": ({"tokenizer": {"name": "x"}}, "unknown encoding"),
    "a config that is a list": ({"config": [1]}, "config is list, not an object"),
    "a step that is a text": ({"step": "1"}, "step is '1', not a whole number"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("has_seal", [False, True])
def test_a_hostile_state_is_refused_at_once(old: Home, name: str, has_seal: bool) -> None:
    folder = next(old.root.glob("runs/*/checkpoints/step-*"))
    load_model(folder)
    change, said = STATES[name]
    state = json.loads((folder / "state.json").read_text())
    changed = hostile(state, dict(change)) if "config" not in change else state | change
    if has_seal:
        changed["files"] = {name: file_hash(folder / name) for name in ("model.safetensors", "optimizer.safetensors")}
    (folder / "state.json").write_bytes(sealed_bytes(changed) if has_seal else json.dumps(changed).encode())
    used = time.process_time()
    with pytest.raises(OrchestrionError, match=said) as error:
        load_model(folder)
    assert time.process_time() - used < 30
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"format": ' + "1" * 5_000 + "}", '{"format": 1, "step": 1e400}', "\0"]
)
def test_a_state_that_is_hardly_json_is_refused(old: Home, text: str) -> None:
    folder = next(old.root.glob("runs/*/checkpoints/step-*"))
    (folder / "state.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"state\.json"):
        load_model(folder)


@pytest.mark.parametrize("name", ["../../etc", "/etc", "a/b", ".x", ""])
def test_a_batch_that_names_another_folder_is_refused(old: Home, name: str) -> None:
    path = next(old.generations.glob("[!.]*/manifest.json"))
    path.write_bytes(sealed_bytes(json.loads(path.read_text()) | {"batch": name}))
    with pytest.raises(DamagedFile, match=r"manifest\.json is damaged"):
        find_batch(old, path.parent.name)


def flip_middle(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[random.Random(path.name).randrange(len(data))] ^= 4
    path.write_bytes(data)


def test_a_damaged_shard_is_refused_by_training_and_made_again_by_a_rebuild(home: Home, tmp_path: Path) -> None:
    source = small_corpus(tmp_path / "midi", 8)
    version = small_dataset(home, source)
    shards = [*version.token_shards("train"), version.folder / version.manifest["songs"][0]]
    shards.append(version.folder / version.manifest["analysis"][0])
    before = {path: path.read_bytes() for path in shards}
    for path in shards:
        flip_middle(path)
        with pytest.raises(DamagedFile, match=rf"{path.name} is damaged: .*; run its rebuild again"):
            check_shards([path], 2)
    with pytest.raises(DamagedFile, match="run its rebuild again"):
        flat_tokens(version.token_shards("train"), version.flat_tokens)
    drop_damaged(version.shards(), 2)
    assert not any(path.exists() for path in shards)
    again = small_dataset(home, source)
    assert again.version == version.version
    assert {path: path.read_bytes() for path in shards} == before
    assert verify_version(again) == []


def test_a_rebuild_by_itself_finds_what_is_damaged(home: Home, tmp_path: Path) -> None:
    version = small_dataset(home, small_corpus(tmp_path / "midi", 6))
    planned = analyse.plan_analysis([version.folder / path for path in version.manifest["songs"]], version.folder)
    assert [path.path.name for path in planned] == [Path(path).name for path in version.manifest["analysis"]]
    flip_middle(version.folder / version.manifest["analysis"][0])
    assert [problem.problem for problem in verify_version(version)] == ["has other bytes than were written"]


# --- a clock that jumps --------------------------------------------------------------------------------------------


def set_time(path: Path, seconds: float) -> None:
    os.utime(path, (seconds, seconds))


def test_the_newest_dataset_is_a_record_and_not_a_time(home: Home, tmp_path: Path) -> None:
    source = small_corpus(tmp_path / "midi", 8)
    built: list[DatasetVersion] = []
    for number, name in enumerate(("one", "other", "one")):
        if number == 2:
            next(source.glob("*.mid")).unlink()
        built.append(small_dataset(home, source, name=name))
        set_time(built[-1].manifest_path, time.time() - 10_000 * number)  # the clock is put back before each
    first, other, second = built
    assert [version.reference for version in versions.list_datasets(home)] == [
        second.reference, other.reference, first.reference,
    ]  # fmt: skip
    assert versions.resolve_dataset(home).reference == second.reference
    assert versions.resolve_dataset(home, "one").version == second.version
    assert prune(home, 1).versions == (first.reference,)
    versions.note_latest(home, other.name, other.version)
    assert versions.resolve_dataset(home).reference == other.reference
    (other.folder / "latest.json").unlink()  # lost with its numbers: what has a number is newer
    assert versions.resolve_dataset(home).reference == second.reference
    assert versions.resolve_dataset(home, "other").version == other.version


def test_the_newest_batch_is_a_record_and_not_a_time(old: Home) -> None:
    folders = sorted(path.parent for path in old.generations.glob("[!.]*/manifest.json"))
    model = json.loads((folders[0] / "manifest.json").read_text())["model_version"]
    for number, folder in enumerate(folders):
        set_time(folder, 1e9 - number)
        batch = find_batch(old, folder.name)
        assert batch
        batch.note_run(f"run-{number}")
    assert len(folders) == 2
    assert _newest_batch(old, model) == folders[1].name
    run_note_path(folders[1]).unlink()
    assert _newest_batch(old, model) == folders[0].name


@pytest.mark.slow
def test_the_newest_model_is_a_record_and_not_a_time(old: Home) -> None:
    import sqlite3
    from contextlib import closing

    from tasks.tracking.mlflow_tracker import Tracker

    tracker = Tracker(old)
    (first,) = tracker.models()
    facts = {"preset": "small", "dataset": first.dataset, "checkpoint": str(first.checkpoint)}
    made = []
    for name in ("a", "b", "a"):
        with tracker.open_run("orchestrion/training", name) as run:
            made.append(run.register_model(name, old.root / first.checkpoint, facts))
    with closing(sqlite3.connect(old.mlflow / "mlflow.db")) as database, database:
        database.execute("UPDATE model_versions SET creation_time = 1000 WHERE name = 'a' AND version = 2")
    assert [model.reference for model in tracker.models()] == ["a@2", "b@1", "a@1", first.reference]
    assert tracker.model().reference == tracker.model("a").reference == tracker.model("a@latest").reference == "a@2"
