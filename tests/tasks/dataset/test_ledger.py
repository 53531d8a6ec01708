"""The ledger: near-duplicates stay together, filters and licences are counted, leaks are refused, notes add up."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tasks.config.dataset import FilterConfig, GroupConfig, LeakageConfig
from tasks.config.source_limits import SourceLimits
from tasks.dataset.ledger import count_losses, count_notes
from tasks.dataset.versions import DatasetVersion
from tasks.errors import DatasetError
from tasks.music.midi.read_midi import read_midi
from tasks.music.midi.writer import write_midi
from tasks.music.score import Score, build_score
from tasks.storage.home import Home
from tests.samples import small_corpus, small_dataset


def rows_of(version: DatasetVersion) -> dict[str, dict]:
    return {row["path"]: row for row in pq.read_table(version.ledger).to_pylist()}


def changed(score: Score, semitones: int = 0, stretch: int = 1, notes: slice = slice(None)) -> bytes:
    """Return a piece moved, in another tempo and in part, as a MIDI file."""
    columns = {
        name: getattr(score.notes, name)[notes]
        for name in ("onset", "duration", "pitch", "velocity", "program", "is_drum", "track")
    }
    shift = np.where(columns["is_drum"], 0, semitones)
    columns |= {"pitch": columns["pitch"].astype(np.int64) + shift}
    columns |= {name: columns[name] * stretch for name in ("onset", "duration")}
    return write_midi(build_score(score.ticks_per_quarter, columns, tempos=score.tempos, n_tracks=score.n_tracks))


def corpus_with_variants(folder: Path, n_pieces: int = 24) -> list[str]:
    """Write pieces, and of every fourth one a copy three semitones up and twice as slow; return the copies' names."""
    small_corpus(folder, n_pieces)
    copies = []
    for path in sorted(folder.glob("*.mid"))[::4]:
        score = read_midi(path)
        if score.notes.pitch[~score.notes.is_drum].max() <= 124:
            (folder / f"{path.stem}-copy.mid").write_bytes(changed(score, 3, 2))
            copies.append(f"{path.stem}-copy.mid")
    return copies


def test_a_transposed_and_slowed_copy_is_of_its_original_s_group_and_split(home: Home, tmp_path: Path) -> None:
    copies = corpus_with_variants(tmp_path / "midi")
    version = small_dataset(home, tmp_path / "midi")
    rows = rows_of(version)
    assert len(copies) >= 5
    for name in copies:
        copy, original = rows[name], rows[name.replace("-copy", "")]
        assert (copy["group"], copy["split"]) == (original["group"], original["split"])
        assert copy["status"] == "accepted"
    groups = version.manifest["groups"]
    assert groups["n_groups"] == len({row["group"] for row in rows.values()}) == len(rows) - len(copies)
    assert groups["n_pieces_in_larger_groups"] == 2 * len(copies)


def test_near_duplicates_can_be_dropped_and_the_fuller_one_stays(home: Home, tmp_path: Path) -> None:
    source = small_corpus(tmp_path / "midi", 12)
    first = sorted(source.glob("*.mid"))[0]
    score = read_midi(first)
    (source / "a-part.mid").write_bytes(changed(score, 2, notes=slice(0, int(0.8 * len(score.notes.pitch)))))
    version = small_dataset(home, source, near_duplicates="drop")
    row = rows_of(version)["a-part.mid"]
    assert (row["status"], row["reason"], row["duplicate_of"]) == ("duplicate", "near_duplicate", first.name)
    assert row["split"] is None
    assert version.manifest["counts"]["duplicate_by_reason"] == {"near_duplicate": 1}
    assert version.manifest["notes"]["dropped"]["near_duplicate"] == row["n_notes"]


@pytest.mark.slow
def test_a_copy_across_the_splits_fails_the_rebuild(home: Home, tmp_path: Path) -> None:
    corpus_with_variants(tmp_path / "midi", 40)
    blind = GroupConfig(enabled=False)
    with pytest.raises(DatasetError, match=r"of the held-out pieces stand in train, more than dataset\.leakage"):
        small_dataset(home, tmp_path / "midi", groups=blind, validation_share=0.3, test_share=0.3)
    assert not list(home.datasets.glob("*/versions/*"))
    allowed = LeakageConfig(max_leaked_share=1.0)
    leaky = small_dataset(home, tmp_path / "midi", groups=blind, validation_share=0.3, test_share=0.3, leakage=allowed)
    assert leaky.manifest["leakage"]["leaked_share"] > 0.05
    worst = (
        leaky.manifest["leakage"]["splits"]["test"]["worst"]
        or leaky.manifest["leakage"]["splits"]["validation"]["worst"]
    )
    assert worst[0]["share_in_nearest"] > 0.9
    whole = small_dataset(home, tmp_path / "midi", validation_share=0.3, test_share=0.3)
    assert whole.manifest["leakage"]["leaked_share"] == 0


def test_filtered_pieces_are_rejected_with_reason_and_counted(home: Home, tmp_path: Path) -> None:
    source = small_corpus(tmp_path / "midi", 20)
    plain = rows_of(small_dataset(home, source))
    bound = sorted(row["n_notes"] for row in plain.values())[5]
    version = small_dataset(home, source, filters=FilterConfig(min_notes=bound))
    rows = rows_of(version)
    few = {path for path, row in plain.items() if row["n_notes"] < bound}
    assert {path for path, row in rows.items() if row["status"] == "rejected"} == few
    for path in few:
        assert rows[path]["reason"] == "too_few_notes"
        assert f"at least {bound} asked (dataset.filters.min_notes)" in rows[path]["detail"]
        assert rows[path]["n_notes"] == plain[path]["n_notes"]
    notes = version.manifest["notes"]
    assert notes["dropped"] == {"too_few_notes": sum(plain[path]["n_notes"] for path in few)}
    assert version.manifest["songs"] == small_dataset(home, source).manifest["songs"]  # filters parse nothing again


def test_only_stated_licences_are_accepted(home: Home, tmp_path: Path) -> None:
    source = small_corpus(tmp_path / "midi", 9)
    names = sorted(path.name for path in source.glob("*.mid"))
    free = "".join(f"{name},CC0-1.0\n" for name in names[:5])
    (source / "licences.csv").write_text(f"pattern,licence\n{free}{names[5]},CC-BY-4.0\n")
    version = small_dataset(home, source, licences=("CC0-1.0",))
    rows = rows_of(version)
    assert {name for name in names if rows[name]["status"] == "accepted"} == set(names[:5])
    assert rows[names[5]]["reason"] == "licence_not_allowed"
    assert "licence CC-BY-4.0 is not one of CC0-1.0" in rows[names[5]]["detail"]
    assert "licence not stated" in rows[names[6]]["detail"]
    assert rows[names[0]]["licence"] == "CC0-1.0"


def test_a_duplicate_with_the_right_licence_takes_the_place_of_the_other(home: Home, tmp_path: Path) -> None:
    source = small_corpus(tmp_path / "midi", 6)
    names = sorted(path.name for path in source.glob("*.mid"))
    (source / "zz.mid").write_bytes((source / names[0]).read_bytes())
    (source / "licences.csv").write_text(f"pattern,licence\n{names[0]},other\n*,CC0-1.0\n")
    rows = rows_of(small_dataset(home, source, licences=("CC0-1.0",)))
    assert rows[names[0]]["status"] == "rejected"
    assert rows["zz.mid"]["status"] == "accepted"


def test_notes_found_are_notes_kept_and_notes_dropped_by_reason(home: Home, tmp_path: Path) -> None:
    source = small_corpus(tmp_path / "midi", 12, with_flaws=True)
    (source / "hanging.mid").write_bytes(
        b"MThd\0\0\0\6\0\1\0\1\1\xe0MTrk\0\0\0\x10" + b"\0\x90\x3c\x50\0\x90\x3e\x50\x60\x80\x3c\0" + b"\0\xff\x2f\0"
    )
    version = small_dataset(home, source)
    ledger = pq.read_table(version.ledger)
    notes = version.manifest["notes"]
    assert notes == count_notes(ledger)
    assert notes["found"] == notes["kept"] + sum(notes["dropped"].values())
    assert notes["dropped"]["unended_notes"] == 1
    assert notes["found"] == sum(row["n_note_ons"] or 0 for row in ledger.to_pylist())
    assert count_losses(ledger) == version.manifest["counts"]["left_out_by_reader"] == {"unended_notes": 1}
    kept = [row for row in ledger.to_pylist() if row["status"] == "accepted"]
    assert all(row["n_note_ons"] == row["n_notes"] + json.loads(row["dropped"]).get("unended_notes", 0) for row in kept)


def test_an_official_split_is_taken_and_a_group_it_tears_apart_is_held_out(home: Home, tmp_path: Path) -> None:
    copies = corpus_with_variants(tmp_path / "midi", 12)
    paths = sorted(path.name for path in (tmp_path / "midi").glob("*.mid"))
    stated = dict.fromkeys(paths, "train") | {paths[-1]: "validation", paths[-3]: "test", copies[0]: "test"}
    version = small_dataset(home, tmp_path / "midi", stated)
    rows = rows_of(version)
    torn = {copies[0], copies[0].replace("-copy", "")}
    assert {rows[path]["split"] for path in torn} == {"test"}
    for path in set(paths) - torn - {paths[-1], paths[-3]}:
        if rows[path]["group"] not in {rows[paths[-1]]["group"], rows[paths[-3]]["group"]}:
            assert rows[path]["split"] == "train", path
    assert rows[paths[-1]]["split"] == "validation"


def test_a_file_above_the_limit_is_refused_without_being_read(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.config.dataset import ParseConfig
    from tasks.ingest import song_shards
    from tasks.ingest.sources.scan import scan_sources
    from tasks.music.midi.limits import ReadLimits

    source = small_corpus(tmp_path / "midi", 4)
    (source / "huge.mid").write_bytes(bytes(2**20))
    files = scan_sources([str(source)], home.cache, SourceLimits()).files
    asked: list[str] = []
    honest = song_shards.read_members
    monkeypatch.setattr(
        song_shards, "read_members", lambda rows: asked.extend(rows["path"].to_pylist()) or honest(rows)
    )
    members = song_shards.distinct_contents(files)
    shards = song_shards.plan_song_shards(ParseConfig(), members, tmp_path / "songs")
    rows = [
        r for s in shards for r in song_shards.parse_members(s.members, ReadLimits(max_bytes=2**19), {}).to_pylist()
    ]
    (huge,) = (row for row in rows if row["status"] == "rejected")
    assert (huge["reason"], huge["detail"]) == ("too_long", "file of 1048576 bytes, limit 524288")
    assert len(rows) == 5
    assert sorted(asked) == sorted(path.name for path in source.glob("*.mid") if path.name != "huge.mid")
