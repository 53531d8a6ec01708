"""Every kind of file that a home holds and that is read back: a flipped bit is found, or is shown to change nothing."""

import json
import logging
import random
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tasks.checkpoints import check_checkpoint, load_model
from tasks.copying.index import copy_index
from tasks.dataset.split import SPLITS
from tasks.dataset.token_cache import check_flat, flat_tokens
from tasks.dataset.upkeep import verify_version
from tasks.dataset.versions import list_datasets, resolve_dataset
from tasks.errors import OrchestrionError
from tasks.generation import batch_files
from tasks.ingest.sources.cache import load_table
from tasks.ingest.sources.downloads import download
from tasks.storage import integrity
from tasks.storage.files import write_atomically
from tasks.storage.home import Home
from tasks.storage.integrity import file_hash, read_checksum, sealed_bytes
from tasks.storage.parquet import check_shard, read_table
from tasks.sweep.space import SweepFolder
from tasks.training.metrics_log import read_points
from tasks.upkeep import home_files
from tasks.upkeep.home_files import Finding, check_files
from tests.homes import unpack_home
from tests.samples import small_dataset
from tests.tasks.ingest.sources.builders import LIMITS, serve_file, serving
from tests.tasks.ingest.sources.builders import midi as midi_like

N_FLIPS = 500
SEED = 20261130


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home that 96e5a72 made, which knew no seals."""
    return unpack_home("96e5a72", tmp_path_factory.mktemp("old"))[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """The same home with seals, and with what today's code adds: shards, flat tokens, an index, a sweep."""
    root, midi = unpack_home("96e5a72", tmp_path_factory.mktemp("whole"))
    home = Home(root)
    check_files(home, seal=True)
    dataset = small_dataset(home, midi, name="today")
    for split in SPLITS:
        flat_tokens(dataset.token_shards(split), dataset.flat_tokens)
    copy_index(dataset)
    row: dict[str, Any] = dict.fromkeys(("val_loss", "bits_per_note", "nll_per_token", "accuracy"), 1.5)
    row |= {"point": 1, "settings": "train.seed=1", "values": {"train.seed": 1}, "status": "finished", "reason": ""}
    row |= {"step": 3, "n_steps": 3, "model_version": "m@1", "run_id": "r", "run_dir": "d", "n_parameters": 5}
    folder = SweepFolder(home.sweeps / "a-sweep")
    folder.write_rows([row])
    write_atomically(folder.facts, sealed_bytes({"run_id": "r"}))
    with serving() as server:
        server.answer = serve_file(midi_like(1))
        download(f"{server.address}/a.mid?key=1", home.cache, LIMITS)
    return home


def problems(findings: list[Finding]) -> list[str]:
    return [finding.problem for finding in findings if finding.problem]


def test_an_old_home_is_whole_but_unverified_until_it_is_sealed(old: Path, caplog: pytest.LogCaptureFixture) -> None:
    home = Home(old)
    before = {path: path.read_bytes() for path in old.rglob("*") if path.is_file()}
    integrity._told_unverified.clear()
    with caplog.at_level(logging.WARNING):
        found = check_files(home)
    assert problems(found) == []
    assert sum(finding.is_unverified for finding in found) > 20
    assert caplog.text.count("unverified") == 1
    assert {path: path.read_bytes() for path in old.rglob("*") if path.is_file()} == before
    sealed = check_files(home, seal=True)
    assert problems(sealed) == []
    assert sum(finding.got_seal for finding in sealed) == sum(finding.is_unverified for finding in found)
    again = check_files(home)
    assert problems(again) == []
    assert not any(finding.is_unverified for finding in again)
    for path, data in before.items():  # what it said it says still
        if path.suffix == ".json" and path.exists() and path.read_bytes() != data:
            said = json.loads(path.read_text())
            assert {key: said[key] for key in json.loads(data)} == json.loads(data)
    assert [verify_version(dataset) for dataset in list_datasets(home)] == [[]]


def test_what_is_damaged_is_not_sealed(old: Path, tmp_path: Path) -> None:
    shutil.copytree(old, tmp_path / "home")
    home = Home(tmp_path / "home")
    states = list(home.root.glob("runs/*/checkpoints/step-*/state.json"))
    states[0].write_text("{}")
    (session,) = home.root.glob("sessions/*/session.json")
    session.write_text(session.read_text().replace('"ids": [', '"ids": [999999, ', 1))
    found = check_files(home, seal=True)
    assert {finding.path for finding in found if finding.problem} == {states[0], session}
    assert states[0].read_text() == "{}"


def files_of(home: Home) -> dict[str, list[Path]]:
    """Return every file that is read back, by its kind."""
    found = {kind.name: sorted(home.root.glob(kind.pattern)) for kind in home_files.kinds()}
    dataset = resolve_dataset(home, "today")
    found["song shards"] = [dataset.folder / path for path in dataset.manifest["songs"]]
    found["analysis shards"] = [dataset.folder / path for path in dataset.manifest["analysis"]]
    found["token shards"] = [path for split in SPLITS for path in dataset.token_shards(split)]
    found["ledgers"] = [dataset.ledger]
    found["manifests"] = [dataset.manifest_path]
    found["hashes"] = [dataset.hashes_path]
    found["checksums"] = sorted(dataset.version_folder.glob("*.sha256"))
    found["weights"] = sorted(home.root.glob("runs/*/checkpoints/step-*/*.safetensors"))
    found["downloads"] = [path.with_suffix("") for path in found["what was downloaded"]]
    found["MIDI, pictures, sound"] = [
        path for path in sorted(home.root.glob("generations/[!.]*/pieces/*")) if path.suffix != ".json"
    ]
    return found


def finding_of(home: Home, path: Path) -> str:
    """Return what the reader that the commands use says of a file, empty where it sees nothing wrong."""
    kinds = [kind for kind in home_files.kinds() if path.relative_to(home.root).match(kind.pattern)]
    kinds = [kind for kind in kinds if path in home.root.glob(kind.pattern)]
    try:
        if kinds:
            kinds[0].check(path)
        elif path.suffix == ".parquet":
            check_shard(path)
            read_table(path)
        elif path.suffix == ".safetensors":
            check_checkpoint(path.parent)
        elif path.parent.name == "downloads":
            home_files._check_download(path.with_name(f"{path.name}.json"))
        elif path.parent.name == "pieces":
            batch_files.check_piece(path.with_suffix(".json"))
        else:
            resolve_dataset(home, "today")
            return "; ".join(f"{p.path} {p.problem}" for p in verify_version(resolve_dataset(home, "today")))
    except OrchestrionError as error:
        return str(error)
    return ""


def flip(path: Path, dice: random.Random) -> Callable[[], None]:
    """Flip one bit of a file and return what puts it back."""
    data = path.read_bytes()
    place, bit = dice.randrange(len(data)), dice.randrange(8)
    changed = bytearray(data)
    changed[place] ^= 1 << bit
    path.write_bytes(changed)
    return lambda: void(path.write_bytes(data))


def void(value: object) -> None:
    """Forget a value."""


@pytest.mark.slow
def test_every_one_of_five_hundred_flipped_bits_is_found(whole: Home) -> None:
    places, dice, missed = files_of(whole), random.Random(SEED), list[str]()
    databases = {"the tracker's database", "Prefect's database"}  # SQLite keeps no checksums: see the next test
    by_kind = {name: paths for name, paths in places.items() if paths and name not in databases}
    assert set(places) - set(by_kind) == databases, "a kind of file that no test flips"
    assert all(not finding_of(whole, path) for paths in by_kind.values() for path in paths)
    counts = Counter[str]()
    for _ in range(N_FLIPS):
        name = dice.choice(sorted(by_kind))
        path = dice.choice(by_kind[name])
        put_back = flip(path, dice)
        said = finding_of(whole, path)
        counts[name] += bool(said)
        if not said or len(said.splitlines()) != 1 or path.stem.partition(".")[0] not in said:
            missed.append(f"{path}: {said!r}")
        put_back()
    assert missed == []
    assert counts.total() == N_FLIPS
    assert all(not finding_of(whole, path) for paths in by_kind.values() for path in paths)


def test_every_flipped_bit_of_a_checksum_beside_a_file_is_found(whole: Home) -> None:
    paths = files_of(whole)["checksums"]
    assert len(paths) == 2
    for path in paths:
        data = path.read_bytes()
        file = path.with_suffix("")
        assert read_checksum(file) == file_hash(file)
        for place in range(len(data)):
            for bit in range(8):
                changed = bytearray(data)
                changed[place] ^= 1 << bit
                path.write_bytes(changed)
                assert read_checksum(file) not in ("", file_hash(file))
        path.write_bytes(data)


@pytest.mark.slow
def test_what_a_command_reads_is_refused_or_made_again(whole: Home, tmp_path: Path) -> None:
    """The same through the readers themselves: no other value ever comes out."""
    shutil.copytree(whole.root, tmp_path / "home")
    home, dice = Home(tmp_path / "home"), random.Random(SEED + 1)
    places = files_of(home)
    checkpoint = home.root.glob("runs/*/checkpoints/step-*/state.json")
    folder = next(checkpoint).parent
    weights = {name: value.clone() for name, value in load_model(folder).model.state_dict().items()}
    points = {path: read_points(path) for path in places["curves"]}
    flats = {path: path.read_bytes() for path in places["flat tokens"]}
    scans = {path: load_table(path) for path in places["what scans found"]}
    for _ in range(60):
        put_back = flip(folder / dice.choice(("model.safetensors", "state.json")), dice)
        with suppress(OrchestrionError):
            assert not load_model(folder), "a flipped bit was loaded"
        put_back()
        path = dice.choice(sorted(points))
        put_back = flip(path, dice)
        assert all(point in points[path] for point in read_points(path))  # a line is left out, none is another
        put_back()
        path = dice.choice(sorted(scans))
        put_back = flip(path, dice)
        assert load_table(path) is None
        put_back()
        path = dice.choice(sorted(flats))
        put_back = flip(path, dice)
        with pytest.raises(OrchestrionError):
            check_flat(path)
        put_back()
    assert all(load_model(folder).model.state_dict()[name].equal(value) for name, value in weights.items())


def test_a_flipped_bit_of_a_database_is_found_where_it_matters(whole: Home) -> None:
    """SQLite has no checksums: its check finds what breaks the structure; a flipped letter of a text stays one."""
    (path,) = files_of(whole)["the tracker's database"]
    dice, n_found = random.Random(SEED + 2), 0
    for _ in range(40):
        put_back = flip(path, dice)
        n_found += bool(finding_of(whole, path))
        put_back()
    assert 0 < n_found <= 40
    assert finding_of(whole, path) == ""


def test_hashes_are_those_of_today(whole: Home) -> None:
    dataset = resolve_dataset(whole, "today")
    assert verify_version(dataset) == []
    assert file_hash(dataset.hashes_path) == dataset.manifest["hashes"]
