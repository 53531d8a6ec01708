"""Rebuilds through the real command line with faults in the middle: killed processes, a lost Ray, a full disk, signals.

All builds here are of one corpus with one set of settings, so each must end in the very files of the undisturbed one.
Processes are told apart by a variable of their environment, which Ray's and the isolation hosts inherit.
"""

import contextlib
import ctypes
import hashlib
import json
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tasks.config.dataset import AugmentConfig, ParseConfig
from tasks.dataset import versions
from tasks.dataset.versions import DatasetVersion
from tasks.ingest.sources.sample_corpus import write_sample_corpus
from tasks.storage.home import Home
from tests.flows.conftest import last_json, orchestrion, prefect_server, shared_prefect, shared_servers
from tests.flows.marked import Marked
from tests.samples import small_dataset
from tests.tasks.ingest.sources.builders import serve_file, serving, write_zip

N_PIECES = 32
PADDING = 400 * 2**10  # bytes a file, so that its size makes several pieces of work of the corpus
SETTINGS = [
    "dataset.parse.shard_files=2", "dataset.augment.transpositions=[-2,-1,0,1,2]",
    "dataset.augment.stretches=[0.9,1.0,1.1]",
]  # fmt: skip
ARGUMENTS = ["--name", "faults", "--json", *(argument for setting in SETTINGS for argument in ("--set", setting))]
HOST, RAYLET, GCS = r"tasks\.runtime\.isolation", r"raylet/raylet ", r"gcs/gcs_server "
PARSER, ENCODER = r"ray::parse_isolated", r"ray::encode_songs"


def padded_corpus(folder: Path) -> Path:
    """Write pieces with a chunk of an unknown kind in front of their tracks; readers pass over it."""
    dice = random.Random(0)
    for path in write_sample_corpus(folder, N_PIECES):
        data = path.read_bytes()
        chunk = b"XTRA" + PADDING.to_bytes(4, "big") + dice.randbytes(PADDING)
        path.write_bytes(data[:14] + chunk + data[14:])
        os.utime(path, (1e9, 1e9))  # a file written just before a scan is read again by the next
    return folder


class Rebuild(Marked):
    """One `orchestrion rebuild`."""

    def __init__(self, home: Path, source: Path, servers: dict[str, str], folder: Path, **variables: str) -> None:
        super().__init__(home, folder, ["rebuild", "--source", str(source), *ARGUMENTS], servers | variables)

    def wait_for(self, stage: str, n: int = 1) -> None:
        """Wait until `n` shards of a stage are there."""
        folder = self.home / "datasets" / "faults" / stage
        self.wait_until(lambda: sum(1 for _ in folder.rglob("[!.]*.parquet")) >= n)

    def kill(self, pattern: str, which: int = 0) -> None:
        """Kill one of the processes that match, of which one must be there: 0 is the oldest, -1 the youngest."""

        def matching() -> list[int]:
            return sorted(pid for pid, command in self.processes() if re.search(pattern, command))

        os.kill(self.wait_until(matching)[which], signal.SIGKILL)

    def finish(self, seconds: float = 600) -> int:
        return self.process.wait(seconds)

    def result(self) -> dict[str, Any]:
        """Wait for success and return what the command printed."""
        assert self.finish() == 0, self.errors[-3000:]
        return json.loads(self.said.read_text().splitlines()[-1])


Start = Callable[..., Rebuild]
STARTED: list[Rebuild] = []  # by all tests here


@dataclass(frozen=True)
class Reference:
    """What one process built without a fault and without Ray."""

    source: Path
    home: Path
    files: dict[str, str]
    version: str


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Start a rebuild with a Ray of its own, or on the Ray of all tests; what still runs in the end is killed."""
    folder = tmp_path_factory.mktemp("said")

    def begin(home: Path, source: Path, own_ray: bool = False, **variables: str) -> Rebuild:
        servers = shared_prefect() if own_ray else shared_servers()
        STARTED.append(Rebuild(home, source, servers, folder, **variables))
        return STARTED[-1]

    yield begin
    for rebuild in STARTED:
        for pid, _ in rebuild.processes():
            os.kill(pid, signal.SIGKILL)
        rebuild.process.wait()


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    folder = tmp_path_factory.mktemp("reference")
    source, home = padded_corpus(folder / "midi"), folder / "home"
    dataset = built_here(home, source)
    assert dataset.manifest["counts"]["n_accepted"] == dataset.manifest["counts"]["n_files"] == N_PIECES
    return Reference(source, home, files_of(home), dataset.version)


def built_here(home: Path, source: Path) -> DatasetVersion:
    """Build in this process what the commands here build."""
    augment = AugmentConfig(transpositions=(-2, -1, 0, 1, 2), stretches=(0.9, 1.0, 1.1))
    return small_dataset(Home.at(home), source, name="faults", parse=ParseConfig(shard_files=2), augment=augment)


def files_of(home: Path) -> dict[str, str]:
    """Return the digests of a dataset's visible files; its page apart, which tells how long reading took."""
    folder = home / "datasets" / "faults"
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".") and "reports" not in path.parts
    }


@pytest.mark.slow
@pytest.mark.chaos
def test_a_signature_in_an_address_is_nowhere_after_a_rebuild(start: Start, tmp_path: Path) -> None:
    write_zip(tmp_path / "s.zip", {path.name: path.read_bytes() for path in write_sample_corpus(tmp_path / "midi", 24)})
    secrets = [f"SECRET{uuid.uuid4().hex}" for _ in range(7)]
    asked = "/a;v={}/s.zip;{}?sig={}&key={}&unlisted={}&{}".format(*secrets)
    with serving() as web:
        web.answer = serve_file((tmp_path / "s.zip").read_bytes())
        source: Any = f"{web.address}{asked}#access_token={secrets[6]}"
        rebuild = start(tmp_path / "home", source, own_ray=True, ORCHESTRION_CPUS="1")
        rebuild.wait_until(lambda: web.requests)
        commands = [command for _, command in rebuild.processes()]
        result = rebuild.result()
        again = start(tmp_path / "home", source).result()
    assert {path for path, _ in web.requests} == {asked}
    assert web.requests[1][1]["If-None-Match"] == '"v1"'  # the same address is known again by the key of the home
    assert (result["n_files"], again["reused"]) == (24, True)
    assert "ray is started with 1 core" in rebuild.errors
    said = rebuild.errors + rebuild.said.read_text()
    places = [tmp_path / "home", prefect_server()[0].root]  # the server's database too
    files = [path for place in places for path in place.rglob("*") if path.is_file()]
    ledger = str(pq.read_table(result["ledger"]).to_pylist())
    assert f"{web.address}/a/s.zip?query=" in ledger
    for secret in secrets:
        assert not [command for command in commands if secret in command]
        assert secret not in said + ledger
        assert [path for path in files if secret in str(path) or secret.encode() in path.read_bytes()] == []


@pytest.mark.slow
@pytest.mark.chaos
def test_a_folder_that_changes_under_a_rebuild_is_rebuilt(start: Start, tmp_path: Path) -> None:
    source = tmp_path / "midi"
    paths = write_sample_corpus(source, 24)
    rebuild = start(tmp_path / "home", source)
    rebuild.wait_until(lambda: list((tmp_path / "home" / "cache" / "folders").glob("[!.]*.parquet")))  # it is scanned
    paths[0].unlink()
    paths[1].write_bytes(b"no music any more")
    os.utime(paths[2])
    (source / "new.mid").write_bytes(paths[3].read_bytes())
    result = rebuild.result()
    rows = {row["path"]: row for row in pq.read_table(result["ledger"]).to_pylist()}
    assert (rows[paths[0].name]["status"], rows[paths[0].name]["reason"]) == ("rejected", "vanished")
    assert (rows[paths[1].name]["status"], rows[paths[1].name]["reason"]) == ("rejected", "not_midi")
    assert rows["new.mid"]["duplicate_of"] == paths[3].name or rows[paths[3].name]["duplicate_of"] == "new.mid"
    assert sum(row["status"] == "accepted" for row in rows.values()) == 22
    assert "went or changed since the scan; scanning again" in rebuild.errors


def see_nothing_half_done(home: Path, reference: Reference) -> None:
    """See that no version can be seen yet, and that each shard that can be seen is whole."""
    assert versions.list_datasets(Home.at(home)) == []
    for name, digest in files_of(home).items():
        assert not name.startswith("versions/")
        assert digest == reference.files[name]


def times_of(home: Path) -> dict[Path, int]:
    shards = (home / "datasets").rglob("*.parquet")
    return {path: path.stat().st_mtime_ns for path in shards if "versions" not in path.parts}


def watch_opens(folder: Path) -> Callable[[], set[str]]:
    """Watch a folder with inotify; the returned function gives the names of its files opened since then."""
    libc, opens = ctypes.CDLL(None, use_errno=True), 0x20  # IN_OPEN
    handle = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert libc.inotify_add_watch(handle, os.fsencode(folder), opens) > 0

    def opened() -> set[str]:
        with os.fdopen(handle, "rb") as events:
            data, names, place = events.read() or b"", set(), 0
        while place < len(data):
            length = struct.unpack_from("iIII", data, place)[3]
            names.add(data[place + 16 : place + 16 + length].rstrip(b"\0").decode())
            place += 16 + length
        return names - {""}  # the folder itself

    return opened


@pytest.fixture(scope="module")
def survived(reference: Reference, start: Start, tmp_path_factory: pytest.TempPathFactory) -> tuple[Rebuild, Rebuild]:
    """A rebuild whose workers and hosts were killed, and one that was begun meanwhile."""
    rebuild = start(tmp_path_factory.mktemp("survived") / "home", reference.source, own_ray=True)
    rebuild.wait_for("songs")
    rebuild.kill(HOST, which=-1)  # the child that reads
    rebuild.wait_for("songs", 4)
    rebuild.kill(HOST, which=0)
    rebuild.wait_for("songs", 8)
    rebuild.kill(PARSER)
    second = start(rebuild.home, reference.source)
    rebuild.wait_for("tokens")
    rebuild.kill(ENCODER)
    return rebuild, second


@pytest.mark.slow
@pytest.mark.chaos
def test_killed_workers_and_hosts_are_replaced_and_a_second_rebuild_is_refused(
    reference: Reference, survived: tuple[Rebuild, Rebuild]
) -> None:
    rebuild, second = survived
    assert second.finish() == 1
    (complaint,) = second.complaints
    assert f"in use by orchestrion rebuild-dataset (process {rebuild.process.pid}, since" in complaint
    assert rebuild.result()["dataset_version"] == reference.version
    assert files_of(rebuild.home) == reference.files


@pytest.mark.slow
@pytest.mark.chaos
def test_unchanged_input_is_not_read_again_and_a_second_rebuild_waits_if_told_to(
    reference: Reference, survived: tuple[Rebuild, Rebuild], start: Start
) -> None:
    assert survived[0].finish() == 0
    home = survived[0].home
    before, opened = times_of(home), watch_opens(reference.source)
    first = start(home, reference.source, own_ray=True)
    first.wait_until((home / "lock").read_text)
    second = start(home, reference.source, own_ray=True, ORCHESTRION_LOCK_WAIT_SECONDS="120")
    for rebuild in (first, second):
        result = rebuild.result()
        assert result["reused"]
        assert result["dataset_version"] == reference.version
        assert "ray is started" not in rebuild.errors
        assert "parsing" not in rebuild.errors
    assert "in use by orchestrion rebuild-dataset" in second.errors
    assert "waiting for it, up to 120 s" in second.errors
    assert opened() == set()
    assert times_of(home) == before
    assert files_of(home) == reference.files


KILL, INTERRUPT, TERMINATION = signal.SIGKILL, signal.SIGINT, signal.SIGTERM


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.parametrize(
    "ends",
    [
        (("tokens", 5, KILL), ("tokens", 10, INTERRUPT)),
        pytest.param((("songs", 2, KILL), ("tokens", 5, KILL), ("versions", 1, KILL)), marks=pytest.mark.nightly),
        pytest.param((("songs", 1, INTERRUPT), ("tokens", 1, TERMINATION)), marks=pytest.mark.nightly),
    ],
    ids=lambda ends: "-".join(f"{stage}_{number.name}" for stage, _, number in ends),
)
def test_a_rebuild_that_is_killed_or_stopped_leaves_nothing_half_done_and_the_next_one_goes_on(
    reference: Reference, start: Start, tmp_path: Path, ends: tuple[tuple[str, int, signal.Signals], ...]
) -> None:
    home = tmp_path / "home"
    versions = home / "datasets" / "faults" / "versions"
    for stage, n_shards, number in ends:
        rebuild = start(home, reference.source, own_ray=True, ORCHESTRION_CPUS="1")
        if stage == "versions":
            rebuild.wait_until(lambda: versions.is_dir() and any(versions.iterdir()))
        else:
            rebuild.wait_for(stage, n_shards)
        os.kill(rebuild.process.pid, number)
        if number == KILL:
            assert rebuild.finish() == -signal.SIGKILL
        else:
            assert rebuild.finish() == 130, rebuild.errors
            assert not (home / "logs" / "hung.txt").exists()  # it ended by itself, before its deadline
            assert "Traceback" not in rebuild.errors
        see_nothing_half_done(home, reference)
    assert start(home, reference.source).result()["dataset_version"] == reference.version
    assert files_of(home) == reference.files


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.nightly
def test_a_ray_that_is_lost_is_started_again(reference: Reference, start: Start, tmp_path: Path) -> None:
    losses = (("songs", RAYLET), ("tokens", GCS))
    home = tmp_path / "home"
    rebuild = start(home, reference.source, own_ray=True)
    for stage, server in losses:
        rebuild.wait_for(stage, 2)
        rebuild.kill(server)
    assert rebuild.result()["dataset_version"] == reference.version
    assert rebuild.errors.count("ray is started") == 1 + len(losses)
    assert files_of(home) == reference.files


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system in memory with room for little more than an empty home must have."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=320m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"mounting a small disk is not permitted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.parametrize("stage", [pytest.param("songs", marks=pytest.mark.nightly), "tokens"])
def test_a_full_disk_is_told_and_with_room_the_rebuild_goes_on(
    reference: Reference, start: Start, small_disk: Path, stage: str
) -> None:
    home, filler = small_disk / "home", small_disk / "filler"
    if stage == "tokens":  # of an earlier rebuild, that got so far
        shutil.copytree(reference.home / "datasets", home / "datasets")
        shutil.rmtree(home / "datasets" / "faults" / "tokens")
        shutil.rmtree(home / "datasets" / "faults" / "versions")
    rebuild = start(home, reference.source)
    rebuild.wait_for(stage)
    with filler.open("wb", buffering=0) as handle:
        while rebuild.process.poll() is None:  # again and again, for what failed to fit is deleted
            for size in (2**20, 2**12):
                with contextlib.suppress(OSError):
                    while handle.write(bytes(size)):
                        pass
            time.sleep(0.05)
    assert rebuild.finish() == 1
    (complaint,) = rebuild.complaints
    assert complaint.startswith("orchestrion: the disk is full")
    assert rebuild.errors.splitlines()[-1] == complaint
    see_nothing_half_done(home, reference)
    filler.unlink()
    start(home, reference.source).result()
    assert files_of(home) == reference.files


@pytest.mark.slow
@pytest.mark.chaos
def test_new_names_build_nothing_and_one_new_file_one_shard_of_each_kind(
    reference: Reference, start: Start, tmp_path: Path
) -> None:
    source, home = tmp_path / "midi", tmp_path / "home"
    shutil.copytree(reference.source, source)
    shutil.copytree(reference.home, home)
    (source / "deeper").mkdir()
    renamed = sorted(source.glob("*.mid"))[7]
    renamed = renamed.rename(source / "deeper" / "Renamed.MID")
    before = times_of(home)
    rebuild = start(home, source)
    result = rebuild.result()
    assert result["dataset_version"] == reference.version
    assert not result["reused"]
    assert "parsing" not in rebuild.errors
    assert "encoding" not in rebuild.errors
    assert times_of(home) == before
    ledger = pq.read_table(result["ledger"]).to_pylist()
    assert "deeper/Renamed.MID" in [row["path"] for row in ledger]
    assert {k: v for k, v in files_of(home).items() if "pieces.parquet" not in k} == {
        k: v for k, v in reference.files.items() if "pieces.parquet" not in k
    }

    data = renamed.read_bytes()
    (source / "new.mid").write_bytes(data[:30] + bytes([data[30] ^ 1]) + data[31:])  # other padding, the same music
    after = built_here(home, source)
    manifest = after.manifest
    assert manifest["counts"]["n_accepted"] == N_PIECES + 1
    shards = manifest["changes"]["shards"]
    assert 1 <= shards["songs"]["new"] <= 2  # two where the shard was full and is cut in two
    assert len(times_of(home)) - len(before) == sum(shards[stage]["new"] for stage in shards)
    assert {path: time for path, time in times_of(home).items() if path in before} == before
    assert (manifest["changes"]["n_added"], manifest["changes"]["examples"]) == (1, {"added": ["new.mid"]})
    versions = [f"faults@{version}" for version in (result["dataset_version"], after.version)]
    said = last_json(orchestrion(home, "datasets", "diff", "--home", str(home), "--json", *versions))
    assert said == {"old": versions[0], "new": versions[1], **manifest["changes"]}


@pytest.mark.slow
@pytest.mark.chaos
def test_nothing_runs_on_after_all_of_this(reference: Reference) -> None:
    deadline = time.monotonic() + 60
    while left := [process for rebuild in STARTED for process in rebuild.processes()]:
        assert time.monotonic() < deadline, left
        time.sleep(0.5)


@pytest.mark.slow
@pytest.mark.parametrize("change", ["added", "changed", "removed"])
def test_one_changed_file_changes_one_shard_of_each_kind(home: Home, tmp_path: Path, change: str) -> None:
    source = tmp_path / "midi"
    write_sample_corpus(source, 40)
    if change == "added":
        held_back = sorted(source.glob("*.mid"))[3]
        held_back = held_back.rename(tmp_path / held_back.name)
    before = small_dataset(home, source)
    times = times_of(home.root)
    crowded = max((pq.read_table(before.folder / path) for path in before.manifest["songs"]), key=len)
    paths = {row["content_hash"]: row["path"] for row in pq.read_table(before.ledger).to_pylist()}
    chosen = source / paths[crowded.column("content_hash")[0].as_py()]
    if change == "added":
        chosen = held_back.rename(source / held_back.name)
    elif change == "removed":
        chosen.unlink()
    else:
        data = chosen.read_bytes()
        place = data.index(b"MTrk")
        chosen.write_bytes(data[:place] + b"XTRA\0\0\0\1\0" + data[place:])
    after = small_dataset(home, source)
    changes = after.manifest["changes"]
    counts = {kind: changes[f"n_{kind}"] for kind in ("added", "changed", "removed")}
    assert counts == {kind: int(kind == change) for kind in counts}
    assert changes["examples"] == {change: [chosen.name]}
    assert changes["n_moved_pieces"] == 0
    most = 2 if change == "changed" else 1  # other contents have another place: one shard loses them, one gets them
    shards = changes["shards"]
    for stage in ("songs", "analysis"):
        assert (shards[stage]["new"], shards[stage]["gone"]) == (most, most)
    new = [path for path in times_of(home.root) if path not in times]
    for split in ("train", "validation", "test"):
        assert sum(f"split={split}" in str(path) for path in new) <= most
    assert len(new) == sum(shards[stage]["new"] for stage in ("songs", "analysis", "tokens"))
    assert versions.find_version(home, "small", before.version) is not None
