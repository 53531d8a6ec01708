"""Looking after versions: every damage is found and mended, only what nothing needs is deleted."""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.config.dataset import AugmentConfig, DatasetConfig
from tasks.dataset import steps, upkeep, versions
from tasks.dataset.changes import diff_versions
from tasks.dataset.upkeep import prune, verify_version
from tasks.dataset.versions import DatasetVersion
from tasks.errors import DatasetError
from tasks.storage.home import Home
from tests import command_line
from tests.samples import small_corpus, small_dataset

N_PIECES = 10


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A home with three versions, each with a piece more than the one before, and the corpus of the last."""
    folder = tmp_path_factory.mktemp("upkeep")
    source = small_corpus(folder / "midi", N_PIECES)
    home = Home.at(folder / "home")
    held_back = [(path, path.read_bytes()) for path in sorted(source.glob("*.mid"))[-2:]]
    for path, _ in held_back:
        path.unlink()
    small_dataset(home, source)
    for path, data in held_back:
        path.write_bytes(data)
        small_dataset(home, source)
    return home.root, source


@pytest.fixture
def copy(built: tuple[Path, Path], tmp_path: Path) -> Home:
    """A home of one test with the three versions; their times say which is the newest."""
    shutil.copytree(built[0], tmp_path / "home")  # copies times too
    return Home.at(tmp_path / "home")


def versions_of(home: Home) -> list[DatasetVersion]:
    return versions.list_datasets(home)


def digests(home: Home) -> dict[str, str]:
    return {
        str(path.relative_to(home.root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(home.datasets.rglob("*"))
        if path.is_file()
    }


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def problems_of(dataset: DatasetVersion) -> dict[str, str]:
    return {Path(problem.path).name: problem.problem for problem in verify_version(dataset)}


KINDS: dict[str, Callable[[DatasetVersion], Path]] = {
    "songs": lambda version: version.folder / version.manifest["songs"][1],
    "analysis": lambda version: version.folder / version.manifest["analysis"][1],
    "train": lambda version: version.token_shards("train")[0],
    "validation": lambda version: version.token_shards("validation")[0],
    "test": lambda version: version.token_shards("test")[-1],
    "ledger": lambda version: version.ledger,
    "hashes": lambda version: version.hashes_path,
}


def test_whole_versions_have_no_problems(copy: Home) -> None:
    counted: list[int] = []
    newest, middle, oldest = versions_of(copy)
    for version in (newest, middle, oldest):
        assert verify_version(version, counted.append) == []
    assert sum(counted) == sum(len(version.shards()) + 1 for version in (newest, middle, oldest))
    assert newest.manifest["changes"]["previous"] == middle.version
    assert middle.manifest["changes"]["previous"] == oldest.version


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_is_found_and_mended(copy: Home, built: tuple[Path, Path], kind: str) -> None:
    before, version = digests(copy), versions_of(copy)[0]
    damaged = KINDS[kind](version)
    flip_bit(damaged)
    found = problems_of(version)
    assert list(found) == [damaged.name]
    assert found[damaged.name] in ("has other bytes than were written", "is not the one the manifest names")
    damaged.unlink()
    found = problems_of(version)
    assert list(found) == [damaged.name]
    assert "cannot be read" in found[damaged.name]
    assert find_whole(copy, built[1]) is None
    small_dataset(copy, built[1])
    assert problems_of(versions_of(copy)[0]) == {}
    assert digests(copy) == before
    assert find_whole(copy, built[1]) is not None


def find_whole(home: Home, source: Path) -> DatasetVersion | None:
    """Return what a rebuild of `source` finds finished already."""
    augment = AugmentConfig(transpositions=(0, 1), stretches=(1.0,))
    inputs = steps.find_inputs.fn(DatasetConfig(sources=(str(source),), name="small", augment=augment), home)
    return steps.find_whole_version.fn(home, inputs)


@pytest.mark.parametrize("name", ["manifest.json.sha256", "pieces.parquet.sha256"])
def test_a_lost_checksum_is_found_and_mended(copy: Home, built: tuple[Path, Path], name: str) -> None:
    before, version = digests(copy), versions_of(copy)[0]
    (version.version_folder / name).unlink()
    assert list(problems_of(version)) == [name.removesuffix(".sha256")]
    assert find_whole(copy, built[1]) is None
    small_dataset(copy, built[1])
    assert digests(copy) == before


def test_checksums_are_those_of_sha256sum(copy: Home) -> None:
    folder = versions_of(copy)[0].version_folder
    paths = list(folder.glob("*.sha256"))
    assert paths
    for path in paths:
        subprocess.run(["sha256sum", "--check", "--strict", path.name], cwd=folder, check=True, capture_output=True)


def test_a_changed_manifest_is_found_and_mended(copy: Home, built: tuple[Path, Path]) -> None:
    before, version = digests(copy), versions_of(copy)[0]
    text = version.manifest_path.read_text()
    version.manifest_path.write_text(text.replace('"n_files": 10', '"n_files": 11'))
    assert version.version not in [entry.version for entry in versions_of(copy)]  # it is not believed
    assert problems_of(version) == {"manifest.json": "has other bytes than were written"}
    version.manifest_path.unlink()
    assert version.version not in [entry.version for entry in versions_of(copy)]
    small_dataset(copy, built[1])
    assert digests(copy) == before  # what it says of the version before it included


def test_a_damaged_ledger_is_mended_by_the_same_rebuild_and_named_by_others(
    copy: Home, built: tuple[Path, Path], tmp_path: Path
) -> None:
    before, (version, older, _) = digests(copy), versions_of(copy)
    version.ledger.write_bytes(version.ledger.read_bytes()[:-100])
    assert find_whole(copy, built[1]) is None
    with pytest.raises(DatasetError, match=r"pieces\.parquet is missing or damaged .*; delete "):
        diff_versions(older, version)
    changed = tmp_path / "midi"
    shutil.copytree(built[1], changed)
    next(changed.glob("*.mid")).unlink()
    with pytest.raises(DatasetError, match=r"pieces\.parquet is missing or damaged .*; delete "):
        small_dataset(copy, changed)
    small_dataset(copy, built[1])
    assert {path: digests(copy).get(path) for path in before} == before


def test_several_damages_are_all_named(copy: Home) -> None:
    version = versions_of(copy)[0]
    songs, tokens = KINDS["songs"](version), KINDS["train"](version)
    flip_bit(songs)
    flip_bit(version.ledger)
    tokens.unlink()
    assert problems_of(version) == {
        songs.name: "has other bytes than were written",
        version.ledger.name: "has other bytes than were written",
        tokens.name: "is missing or cannot be read",
    }


def test_an_older_version_is_mended_with_what_it_said_of_changes(
    copy: Home, built: tuple[Path, Path], tmp_path: Path
) -> None:
    before, (newest, middle, _) = digests(copy), versions_of(copy)
    source = tmp_path / "midi"
    shutil.copytree(built[1], source)
    (added,) = diff_versions(middle, newest)["examples"]["added"]
    (source / added).unlink()
    KINDS["songs"](middle).unlink()
    assert small_dataset(copy, source).version == middle.version
    after = digests(copy)
    moved = {path for path in before if before[path] != after[path]}
    ledger = {f"datasets/small/versions/{middle.version}/pieces.parquet{end}" for end in ("", ".sha256")}
    assert moved == ledger | {"datasets/small/latest.json"}  # the ledger names the source that was asked for
    assert versions.resolve_dataset(copy, "small").version == middle.version


def test_prune_deletes_only_what_no_version_uses(copy: Home) -> None:
    whole = digests(copy)
    assert prune(copy) == upkeep.Pruned((), 0, 0)
    assert digests(copy) == whole
    stray = copy.datasets / "small" / "songs" / "ffff.parquet"
    stray.write_bytes(b"12345")
    half = copy.datasets / "small" / "tokens" / ".0000.parquet.12-34.tmp"  # as a killed worker leaves it
    half.write_bytes(b"1")
    assert prune(copy, dry_run=True) == upkeep.Pruned((), 2, 6)
    assert stray.exists()
    assert prune(copy) == upkeep.Pruned((), 2, 6)
    assert digests(copy) == whole


def test_prune_clears_away_what_interrupted_work_left(copy: Home) -> None:
    whole, newest = digests(copy), versions_of(copy)[0]
    known = [entry.reference for entry in versions_of(copy)]
    for name in (f".{newest.version}.tmp", f".{newest.version}.old"):
        shutil.copytree(newest.version_folder, newest.version_folder.with_name(name))
    begun = newest.version_folder.with_name("0123456789abcdef")  # a prune that was killed after the manifest
    begun.mkdir()
    (begun / "pieces.parquet").write_bytes(b"")
    assert [entry.reference for entry in versions_of(copy)] == known
    prune(copy, dry_run=True)
    assert begun.exists()
    prune(copy)
    assert digests(copy) == whole
    assert {path.name for path in newest.version_folder.parent.iterdir()} == {e.version for e in versions_of(copy)}


@pytest.mark.parametrize("keep", [1, 2, 3, 9])
def test_prune_keeps_the_newest(copy: Home, keep: int) -> None:
    versions, whole = versions_of(copy), digests(copy)
    kept, gone = versions[:keep], versions[keep:]
    would = prune(copy, keep, dry_run=True)
    assert digests(copy) == whole
    assert would.versions == tuple(version.reference for version in gone)
    assert prune(copy, keep) == would
    assert [version.reference for version in versions_of(copy)] == [version.reference for version in kept]
    needed = {path for version in kept for path in version.shards()}
    unneeded = {path for version in gone for path in version.shards()} - needed
    assert would.n_files == len(unneeded)
    assert not [path for path in unneeded if path.exists()]
    assert [verify_version(version) for version in kept] == [[] for _ in kept]


def test_prune_keeps_what_is_in_use_whatever_its_age(copy: Home, built: tuple[Path, Path]) -> None:
    newest, middle, oldest = versions_of(copy)
    assert prune(copy, 1, [oldest.reference]).versions == (middle.reference,)
    assert verify_version(oldest) == verify_version(newest) == []
    small_dataset(copy, built[1])  # and what was pruned is built again only where it is needed
    assert {version.version for version in versions_of(copy)} == {newest.version, oldest.version}


def test_the_newest_is_what_was_confirmed_last(copy: Home) -> None:
    oldest = versions_of(copy)[-1]
    versions.note_latest(copy, oldest.name, oldest.version)
    prune(copy, 1)
    assert [version.reference for version in versions_of(copy)] == [oldest.reference]
    assert versions.resolve_dataset(copy, "small").version == oldest.version


def test_prune_refuses_while_a_manifest_is_damaged(copy: Home) -> None:
    middle = versions_of(copy)[1]
    middle.manifest_path.write_text("{bad")
    whole = digests(copy)
    with pytest.raises(DatasetError, match=rf"{middle.version}/manifest\.json is damaged .*; delete its folder"):
        prune(copy, 1)
    assert digests(copy) == whole


def test_a_lost_pointer_to_the_newest_version_does_no_harm(copy: Home) -> None:
    newest = versions_of(copy)[0]
    pointer = newest.folder / "latest.json"
    for damage in (pointer.unlink, lambda: pointer.write_text("{"), lambda: pointer.write_text('{"version": "gone"}')):
        damage()
        assert versions.resolve_dataset(copy, "small").version == newest.version
        found = versions.newest_version(copy, "small")
        assert found is not None
        assert found.version == newest.version


def test_versions_of_several_datasets_are_kept_apart(copy: Home, tmp_path: Path) -> None:
    other = small_dataset(copy, small_corpus(tmp_path / "other", 4), name="other")
    small = [version.reference for version in versions_of(copy) if version.name == "small"]
    assert prune(copy, 1).versions == tuple(small[1:])
    assert {version.reference for version in versions_of(copy)} == {other.reference, small[0]}
    assert verify_version(other) == []
    versions.find_version(copy, "other", other.version)
    shutil.rmtree(other.folder)
    assert [version.reference for version in versions_of(copy)] == small[:1]


def orchestrion(home: Home, *arguments: str) -> subprocess.CompletedProcess[str]:
    return command_line.run(["datasets", *arguments, "--home", str(home.root)], dict(os.environ), timeout=600)


def answer(home: Home, *arguments: str, code: int = 0) -> dict[str, Any]:
    done = orchestrion(home, *arguments, "--json")
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_the_commands_say_what_the_functions_do(copy: Home, tmp_path: Path) -> None:
    from tasks.tracking.mlflow_tracker import Tracker

    newest, middle, oldest = versions_of(copy)
    listed = answer(copy, "list")["datasets"]
    assert [entry["dataset_version"] for entry in listed] == [v.version for v in (newest, middle, oldest)]
    assert answer(copy, "show", "small")["manifest"] == newest.manifest
    assert f"# {newest.reference}" in orchestrion(copy, "show").stdout

    changes = answer(copy, "diff", f"small@{middle.version}")
    assert (changes["n_added"], changes["n_removed"], changes["n_changed"]) == (1, 0, 0)
    assert changes["shards"] == newest.manifest["changes"]["shards"]
    assert answer(copy, "diff", newest.reference, middle.reference)["n_removed"] == 1

    verified = answer(copy, "verify", "--all")
    assert verified.pop("n_other_files") == len(
        [*copy.root.glob("datasets/*/latest.json"), *copy.root.glob("cache/*/*")]
    )
    assert verified == {
        "ok": True, "n_versions": 3, "n_files": sum(len(v.shards()) + 1 for v in (newest, middle, oldest)),
        "problems": [], "n_unverified": 0, "n_sealed": 0,
    }  # fmt: skip
    damaged = KINDS["validation"](newest)
    data = damaged.read_bytes()
    flip_bit(damaged)
    said = answer(copy, "verify", newest.reference, code=1)
    assert [problem["path"] for problem in said["problems"]] == [str(damaged)]
    plain = orchestrion(copy, "verify")
    assert plain.returncode == 1
    assert f"{damaged} has other bytes than were written" in plain.stdout
    damaged.write_bytes(data)

    export = tmp_path / "export"
    export.mkdir()
    (export / "weights").write_bytes(b"1")
    facts = {"preset": "tiny", "dataset": oldest.reference, "checkpoint": "runs/none", "val_loss": "1.0"}
    with Tracker(copy).open_run("orchestrion/training", "a-run", {}) as run:
        run.register_model("small-tiny", export, facts)
    would = answer(copy, "prune", "--keep", "1", "--dry-run")
    assert would["versions"] == [middle.reference]
    assert len(versions_of(copy)) == 3
    assert answer(copy, "prune", "--keep", "1") == would | {"dry_run": False}
    assert [v.reference for v in versions_of(copy)] == [newest.reference, oldest.reference]
    assert answer(copy, "verify", "--all")["ok"]

    with copy.locked("orchestrion rebuild"):
        busy = orchestrion(copy, "prune")
    assert busy.returncode == 1
    assert "in use by orchestrion rebuild" in busy.stderr
    newest.manifest_path.write_text("{bad")
    for command, code in ((["list"], 0), (["verify", "--all"], 1), (["prune", "--keep", "1"], 2)):
        done = orchestrion(copy, *command)  # the others are listed and verified
        assert done.returncode == code
        assert done.stderr.count("manifest.json is damaged") >= 1
        assert "Traceback" not in done.stderr
    assert [entry["dataset_version"] for entry in answer(copy, "list")["datasets"]] == [oldest.version]
