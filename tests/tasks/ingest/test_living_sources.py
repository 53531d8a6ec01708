"""Sources that change while they are rebuilt: a file that went or changed is a row or is read anew, the rest stays."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.config.dataset import DatasetConfig
from tasks.dataset import ledger, steps
from tasks.errors import DatasetError
from tasks.ingest import song_shards
from tasks.ingest.sources.scan import scan_sources
from tasks.runtime import cluster
from tasks.storage.home import Home
from tests.samples import small_corpus
from tests.tasks.ingest.sources.builders import write_tar, write_zip


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do the work in this process, without Ray and Prefect."""

    def run_over(function: Callable[..., Any], chunks: Any, on_result: Any = None, **options: Any) -> list[Any]:
        results = [function(chunk) for chunk in chunks]
        for result in results:
            if on_result:
                on_result(result)
        return results

    monkeypatch.setattr(cluster, "run_over", run_over)
    monkeypatch.setattr(song_shards, "start_workers", lambda: None)
    for name in ("find_inputs", "find_inputs_again", "parse_songs"):
        monkeypatch.setattr(steps, name, getattr(steps, name).fn)


def settings_of(*sources: Path) -> DatasetConfig:
    return DatasetConfig(sources=tuple(map(str, sources)), name="living")


def rows_of(inputs: steps.Inputs, songs: steps.Songs) -> dict[str, dict[str, Any]]:
    """Return path -> the ledger's row."""
    book = ledger.build_ledger(inputs.config, inputs.scan.files, songs.contents, songs.shards, songs.analysis)
    return {row["path"]: row for row in book.table.to_pylist()}


def write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def before_each_round(monkeypatch: pytest.MonkeyPatch, change: Callable[[int], None]) -> list[int]:
    """Have the sources changed before each round of parsing; return the numbers of the rounds."""
    rounds: list[int] = []
    honest = song_shards.build_song_shards

    def build(*arguments: Any) -> song_shards.Parsed:
        rounds.append(len(rounds))
        change(rounds[-1])
        return honest(*arguments)

    monkeypatch.setattr(song_shards, "build_song_shards", build)
    return rounds


def test_files_and_archives_that_went_or_changed_after_the_scan(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = small_corpus(tmp_path / "midi", 14)
    songs = [path.read_bytes() for path in sorted(tree.glob("*.mid"))]
    names = [path.name for path in sorted(tree.glob("*.mid"))]
    for path in sorted(tree.glob("*.mid"))[8:]:
        path.unlink()
    write_zip(tree / "gone.zip", {"in.mid": songs[8]})
    write_zip(tree / "changed.zip", {"in.mid": songs[9], "other.mid": songs[10]})
    write_tar(tree / "same.tar.gz", {"in.mid": songs[11]})
    (tree / "twin.mid").write_bytes(songs[0])  # of a file that goes

    def change(number: int) -> None:
        if number == 0:
            (tree / names[0]).unlink()
            (tree / names[1]).unlink()
            (tree / names[2]).write_bytes(songs[12])
            (tree / names[3]).write_bytes(b"no music at all")
            (tree / names[4]).touch()
            (tree / "new.mid").write_bytes(songs[13])
            (tree / "gone.zip").unlink()
            write_zip(tree / "changed.zip", {"in.mid": songs[9][:-40] + songs[9][-40:], "other.mid": songs[8]})

    inputs = steps.find_inputs(settings_of(tree), home)
    rounds = before_each_round(monkeypatch, change)
    read, parsed = steps.read_songs(home, inputs)
    assert len(rounds) == 2
    rows = rows_of(read, parsed)
    state = {path: (row["status"], row["reason"]) for path, row in rows.items()}
    kept = dict.fromkeys((names[2], *names[4:8], "twin.mid", "new.mid"), ("accepted", None))
    kept |= dict.fromkeys(("changed.zip/in.mid", "changed.zip/other.mid", "same.tar.gz/in.mid"), ("accepted", None))
    lost = dict.fromkeys((names[0], names[1], "gone.zip/in.mid"), ("rejected", "vanished"))
    assert state == kept | lost | {names[3]: ("rejected", "not_midi")}
    assert "at the first scan of this rebuild and is gone now" in rows[names[0]]["detail"]
    assert read.version != inputs.version


def test_the_version_is_of_what_was_read(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree, other = small_corpus(tmp_path / "midi", 6), small_corpus(tmp_path / "other", 7)
    paths = sorted(tree.glob("*.mid"))
    new = sorted(other.glob("*.mid"))[-1].read_bytes()
    inputs = steps.find_inputs(settings_of(tree), home)
    before_each_round(monkeypatch, lambda number: write(paths[0], new))
    read, _ = steps.read_songs(home, inputs)
    fresh = steps.find_inputs(settings_of(tree), Home.at(tmp_path / "fresh"))
    assert read.version == fresh.version != inputs.version
    assert read.scan.files["content_hash"].equals(fresh.scan.files["content_hash"])


def test_a_file_that_changes_again_and_again_is_rejected_and_the_rest_is_kept(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = small_corpus(tmp_path / "midi", 6)
    restless = min(tree.glob("*.mid"))
    data = restless.read_bytes()

    def change(number: int) -> None:
        restless.write_bytes(data + bytes(number + 1))

    inputs = steps.find_inputs(settings_of(tree), home)
    rounds = before_each_round(monkeypatch, change)
    read, parsed = steps.read_songs(home, inputs)
    assert len(rounds) == steps.MAX_RESCANS + 2
    rows = rows_of(read, parsed)
    assert (rows[restless.name]["status"], rows[restless.name]["reason"]) == ("rejected", "changed")
    assert re.search(r"bytes where the scan found \d+", rows[restless.name]["detail"])
    assert sum(row["status"] == "accepted" for row in rows.values()) == 5


def test_sources_that_never_hold_still_end_the_rebuild_in_one_line(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = small_corpus(tmp_path / "midi", 6)
    monkeypatch.setattr(steps, "MAX_ROUNDS", 2)
    restless = min(tree.glob("*.mid"))
    before_each_round(monkeypatch, lambda number: write(restless, bytes(number)))
    with pytest.raises(DatasetError, match="living change faster than they are read, 2 times in a row"):
        steps.read_songs(home, steps.find_inputs(settings_of(tree), home))


def test_what_may_not_be_read_any_more_is_rejected_for_that(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = small_corpus(tmp_path / "midi", 4)
    first = sorted(tree.glob("*.mid"))[0]
    inputs = steps.find_inputs(settings_of(tree), home)

    def change(number: int) -> None:  # a folder stands where the file was, so that it is found and cannot be read
        if number == 0:
            first.unlink()
            os.mkfifo(first)

    before_each_round(monkeypatch, change)
    rows = rows_of(*steps.read_songs(home, inputs))
    assert (rows[first.name]["status"], rows[first.name]["reason"]) == ("rejected", "unreadable_file")
    assert "no regular file" in rows[first.name]["detail"]


def test_only_the_files_that_are_lost_are_refused_of_those_with_one_content(tmp_path: Path, home: Home) -> None:
    from tasks.ingest.sources.read import refuse_lost

    tree = small_corpus(tmp_path / "midi", 3)
    paths = sorted(tree.glob("*.mid"))
    (tree / "twin.mid").write_bytes(paths[0].read_bytes())
    scan = scan_sources([str(tree)], home.cache, settings_of(tree).source_limits)
    digest = scan.files["content_hash"][scan.files["path"].to_pylist().index("twin.mid")].as_py()
    paths[0].unlink()
    refused = refuse_lost(scan.files, [digest])
    assert refused.schema.equals(scan.files.schema)
    assert dict(zip(refused["path"].to_pylist(), refused["reason"].to_pylist(), strict=True)) == {
        path.name: "" for path in paths
    } | {"twin.mid": "", paths[0].name: "vanished"}
    assert refused["content_hash"].null_count == 1
    assert refused["path"].equals(scan.files["path"])
