"""Files that kill their reader: found, rejected with what they died of, and nothing else lost with them."""

import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tasks.config.dataset import ParseConfig
from tasks.config.source_limits import SourceLimits
from tasks.errors import DatasetError
from tasks.ingest import song_shards
from tasks.ingest.sources.scan import scan_sources
from tasks.runtime.isolation import Host
from tasks.storage.home import Home
from tests.samples import small_corpus, small_dataset
from tests.tasks.runtime import hostile_parser

pytestmark = pytest.mark.slow  # seconds a test; see `make check`

LIMITS = ParseConfig(seconds=600.0, memory_bytes=2**28, shard_files=4)
SHORT = replace(LIMITS, seconds=1.0)  # where that verdict is waited for
N_PIECES = 20
HOSTILE = "tests.tasks.runtime.hostile_parser"
FAST = {"crash": ("crashed", "signal 11 (SIGSEGV)"), "memory": ("out_of_memory", "256 MiB")}
SLOW = {"hang": ("timed_out", "not done after"), "sleep": ("timed_out", "not done after")}


@dataclass(frozen=True)
class Source:
    """A corpus, what was found in it, and the song rows that reading it undisturbed gives, by content hash."""

    folder: Path
    contents: song_shards.Contents
    rows: Mapping[str, Mapping[str, Any]]

    def shards(self, folder: Path, limits: ParseConfig = LIMITS) -> list[song_shards.SongShard]:
        return song_shards.plan_song_shards(limits, self.contents, folder)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = tmp_path_factory.mktemp("quarantine")
    midi = small_corpus(folder / "midi", N_PIECES)
    scan = scan_sources([str(midi)], folder / "cache", SourceLimits())
    contents = song_shards.distinct_contents(scan.files)
    shards = song_shards.plan_song_shards(LIMITS, contents, folder / "songs")
    assert len(shards) > 4
    assert max(shard.n_files for shard in shards) > 1
    assert song_shards.parse_isolated(shards) == (N_PIECES, frozenset())
    rows = read_rows(shards)
    assert {row["status"] for row in rows.values()} == {"accepted"}
    return Source(midi, contents, rows)


@pytest.fixture(scope="module")
def hosted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Host, Path]]:
    """A host of these tests, and the file by which it learns which files are hostile."""
    host = Host()
    yield host, tmp_path_factory.mktemp("hostile") / "hostile.json"
    host.close()


@pytest.fixture
def hostile(hosted: tuple[Host, Path], monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping[str, str]], None]:
    """Choose the files that the hostile parser dies of."""
    host, chosen = hosted
    monkeypatch.setenv(hostile_parser.VARIABLE, str(chosen))
    monkeypatch.setattr(song_shards, "_host", host)
    for marker in chosen.parent.iterdir():
        marker.unlink()
    chosen.write_text("{}")
    return lambda files: chosen.write_text(json.dumps(files)) and None


def read_rows(shards: list[song_shards.SongShard]) -> dict[str, dict[str, Any]]:
    rows = [row for shard in shards for row in pq.read_table(shard.path, partitioning=None).to_pylist()]
    return {row["content_hash"]: row for row in rows}


def hashes_of(shard: song_shards.SongShard) -> list[str]:
    return [value.as_py().hex() for value in shard.members.column("content_hash")]


def by_size(shards: list[song_shards.SongShard]) -> list[song_shards.SongShard]:
    return sorted(shards, key=lambda shard: shard.n_files)


def check(source: Source, shards: list[song_shards.SongShard], expected: Mapping[str, tuple[str, str]]) -> None:
    """See that the expected files are rejected as said, and that each of the others is as if those were harmless."""
    rows = read_rows(shards)
    assert rows.keys() == {key for shard in shards for key in hashes_of(shard)}
    for key, row in rows.items():
        if key not in expected:
            assert row == source.rows[key]
            continue
        reason, said = expected[key]
        assert (row["status"], row["reason"]) == ("rejected", reason)
        assert said in row["detail"]
        assert row["n_notes"] == len(row["pitch"]) == 0
        assert row["n_bytes"] == source.rows[key]["n_bytes"]
    leftovers = [path for path in shards[0].path.parent.iterdir() if path not in {shard.path for shard in shards}]
    assert leftovers == []


@pytest.mark.parametrize("what", [*FAST, "hang", "sleep"])
def test_a_file_that_kills_its_reader_is_rejected_and_the_batch_kept(
    source: Source, tmp_path: Path, hostile: Callable[[Mapping[str, str]], None], what: str
) -> None:
    shards = by_size(source.shards(tmp_path / "songs", SHORT if what in SLOW else LIMITS))
    if what in SLOW:  # each attempt takes its time
        shards = shards[-2:]
    culprit = hashes_of(shards[-1])[1]  # among others
    hostile({culprit: what})
    n_files = sum(shard.n_files for shard in shards)
    assert song_shards.parse_isolated(shards, f"{HOSTILE}:parse") == (n_files, frozenset())
    check(source, shards, {culprit: (FAST | SLOW)[what]})


def test_several_culprits_of_one_batch_are_all_found(
    source: Source, tmp_path: Path, hostile: Callable[[Mapping[str, str]], None]
) -> None:
    shards = source.shards(tmp_path / "songs")
    smallest, largest = hashes_of(by_size(shards)[0]), hashes_of(by_size(shards)[-1])
    assert len(smallest) == 1  # a shard that is nothing but its culprit
    files = {smallest[0]: "crash", **dict.fromkeys(largest, "memory"), largest[0]: "crash"}
    hostile(files)
    assert song_shards.parse_isolated(shards, f"{HOSTILE}:parse") == (N_PIECES, frozenset())
    check(source, shards, {key: FAST[what] for key, what in files.items()})


def test_shards_written_before_the_death_say_who_died(
    source: Source, tmp_path: Path, hostile: Callable[[Mapping[str, str]], None]
) -> None:
    shards = source.shards(tmp_path / "songs")
    culprit = hashes_of(shards[0])[0]
    hostile({culprit: "crash"})
    song_shards.parse_isolated(shards, f"{HOSTILE}:parse_then_die")
    check(source, shards, {culprit: FAST["crash"]})


@pytest.mark.parametrize("function", ["die_once", "kill_host_once", "die_then_kill_host", "kill_host_of_one_file"])
def test_a_death_that_does_not_repeat_loses_nothing(
    source: Source, tmp_path: Path, hostile: Callable[[Mapping[str, str]], None], function: str
) -> None:
    shards = source.shards(tmp_path / "songs")
    song_shards.parse_isolated(shards, f"{HOSTILE}:{function}")
    assert Path(os.environ[hostile_parser.VARIABLE] + ".done").exists()
    check(source, shards, {})


def test_a_batch_that_dies_though_none_of_its_files_does_is_an_error(
    source: Source, tmp_path: Path, hostile: Callable[[Mapping[str, str]], None]
) -> None:
    shards = source.shards(tmp_path / "songs")
    with pytest.raises(DatasetError, match=r"SIGSEGV.*though none does so alone; raise dataset\.parse\.seconds"):
        song_shards.parse_isolated(by_size(shards)[-1:], f"{HOSTILE}:jostle")
    assert not by_size(shards)[-1].path.exists()


def test_a_killed_host_is_replaced(
    source: Source, tmp_path: Path, hostile: Callable[[Mapping[str, str]], None]
) -> None:
    shards = source.shards(tmp_path / "songs")
    song_shards.parse_isolated(shards[:2], f"{HOSTILE}:parse")
    process = song_shards._host._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    song_shards.parse_isolated(shards[2:], f"{HOSTILE}:parse")
    check(source, shards, {})


def test_the_ledger_accounts_for_files_in_quarantine(
    source: Source, home: Home, hostile: Callable[[Mapping[str, str]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = song_shards.parse_isolated
    chosen = dict(zip(sorted(source.rows)[3:5], ("crash", "memory"), strict=True))
    hostile(chosen)
    monkeypatch.setattr(song_shards, "parse_isolated", lambda shards: plain(shards, f"{HOSTILE}:parse"))
    version = small_dataset(home, source.folder, parse=LIMITS)
    ledger = pq.read_table(version.ledger).to_pylist()
    assert len(ledger) == N_PIECES
    assert version.manifest["counts"]["rejected_by_reason"] == {"crashed": 1, "out_of_memory": 1}
    assert version.manifest["counts"]["n_accepted"] == N_PIECES - 2
    for row in ledger:
        if row["content_hash"] in chosen:
            reason, said = FAST[chosen[row["content_hash"]]]
            assert (row["status"], row["reason"], row["split"]) == ("rejected", reason, None)
            assert said in row["detail"]
        else:
            assert (row["status"], row["n_notes"]) == ("accepted", source.rows[row["content_hash"]]["n_notes"])
    kept = {piece for path in version.shards() if "songs" not in path.parts for piece in pieces_of(path)}
    assert kept == {row["piece"] for row in ledger if row["status"] == "accepted"}


def pieces_of(path: Path) -> list[str]:
    return pq.read_table(path, columns=["piece"], partitioning=None).column("piece").to_pylist()
