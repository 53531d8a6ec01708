"""Rebuilds: every file accounted for, the same bytes however it was built, only what changed paid for."""

import hashlib
import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tasks.config.dataset import AugmentConfig, DatasetConfig, ParseConfig
from tasks.config.source_limits import SourceLimits
from tasks.dataset import analyse, encode, ledger, versions
from tasks.dataset.publish import plan_tokens, publish_version, version_of
from tasks.errors import ConfigError, DatasetError, NotFound
from tasks.ingest import song_shards
from tasks.ingest.sources.scan import scan_sources
from tasks.music.midi.limits import ReadLimits
from tasks.music.tokenizers.remi.vocabulary import RemiConfig
from tasks.storage.home import Home
from tests.conftest import real_data
from tests.samples import small_corpus, small_dataset


def shard_bytes(home: Home) -> dict[str, str]:
    return {
        str(path.relative_to(home.root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(home.datasets.rglob("*"))
        if path.is_file() and "versions" not in path.parts
    } | {
        str(path.relative_to(home.root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(home.datasets.rglob("versions/*/*"))
    }


def test_every_file_ends_in_exactly_one_state(home: Home, tmp_path: Path) -> None:
    source = small_corpus(tmp_path / "midi", 12, with_flaws=True)
    (source / "notes.txt").write_text("not music")
    version = small_dataset(home, source)
    ledger = pq.read_table(version.ledger).to_pylist()
    on_disk = sorted(str(p.relative_to(source)) for p in source.rglob("*") if p.suffix.lower() == ".mid")
    assert [row["path"] for row in ledger] == on_disk
    counts = version.manifest["counts"]
    assert counts["n_files"] == counts["n_accepted"] + counts["n_duplicate"] + counts["n_rejected"] == len(on_disk)
    assert counts["n_other_files"] == 1
    assert counts["n_duplicate"] == 1
    assert counts["n_accepted"] == 12
    for row in ledger:
        if row["status"] == "accepted":
            assert row["split"] in ("train", "validation", "test")
            assert row["n_notes"] > 0
        else:
            assert row["split"] is None
            assert row["reason"]
        if row["status"] == "duplicate":
            assert row["duplicate_of"] in on_disk


def test_notes_in_are_notes_out_plus_counted_losses(home: Home, tmp_path: Path) -> None:
    version = small_dataset(home, small_corpus(tmp_path / "midi"))
    accepted = sum(row["n_notes"] for row in pq.read_table(version.ledger).to_pylist() if row["status"] == "accepted")
    plain = dropped = 0
    for split in ("train", "validation", "test"):
        facts = version.manifest["splits"][split]
        dropped += facts["notes_dropped"]["drums"] + facts["notes_dropped"]["unison_merged"]
        for path in version.token_shards(split):
            rows = pq.read_table(path, partitioning=None).to_pylist()
            plain += sum(r["n_notes"] for r in rows if r["transposition"] == 0 and r["stretch"] == 1.0)
    assert accepted == plain + dropped


def test_training_pieces_get_all_variants_and_the_others_none(home: Home, tmp_path: Path) -> None:
    augment = AugmentConfig(transpositions=(-1, 0, 1), stretches=(0.9, 1.0))
    version = small_dataset(home, small_corpus(tmp_path / "midi"), augment=augment)
    splits = version.manifest["splits"]
    assert splits["train"]["n_rows"] == 6 * splits["train"]["n_pieces"] - splits["train"]["variants_out_of_range"]
    for split in ("validation", "test"):
        assert splits[split]["n_rows"] == splits[split]["n_pieces"]
        for path in version.token_shards(split):
            assert set(pq.read_table(path, partitioning=None)["transposition"].to_pylist()) == {0}


def test_no_piece_is_in_two_splits(home: Home, tmp_path: Path) -> None:
    version = small_dataset(home, small_corpus(tmp_path / "midi", 20))
    pieces = {
        split: {
            p
            for path in version.token_shards(split)
            for p in pq.read_table(path, partitioning=None)["piece"].to_pylist()
        }
        for split in ("train", "validation", "test")
    }
    assert not pieces["train"] & pieces["validation"]
    assert not pieces["train"] & pieces["test"]
    assert not pieces["validation"] & pieces["test"]


def test_no_run_of_64_tokens_of_a_held_out_piece_stands_in_train(home: Home, tmp_path: Path) -> None:
    version = small_dataset(home, small_corpus(tmp_path / "midi", 20))

    def runs(split: str) -> set[tuple[int, ...]]:
        tables = [pq.read_table(path, partitioning=None) for path in version.token_shards(split)]
        rows = [row for table in tables for row in table["tokens"].to_pylist()]
        return {tuple(row[place : place + 64]) for row in rows for place in range(len(row) - 63)}

    train = runs("train")
    for split in ("validation", "test"):
        held_out = runs(split)
        assert len(held_out) > 100
        assert not held_out & train


def test_place_names_and_order_of_files_do_not_change_version_or_bytes(tmp_path: Path) -> None:
    one = small_corpus(tmp_path / "one")
    two = tmp_path / "two" / "deep"
    two.mkdir(parents=True)
    for index, path in enumerate(sorted(one.glob("*.mid"), reverse=True)):
        shutil.copy(path, two / f"{index:02d}.MID")
    homes = [Home.at(tmp_path / "home-one"), Home.at(tmp_path / "home-two")]
    versions = [small_dataset(home, source) for home, source in zip(homes, (one, two.parent), strict=True)]
    assert versions[0].version == versions[1].version
    bytes_of = [{k: v for k, v in shard_bytes(home).items() if "pieces.parquet" not in k} for home in homes]
    assert bytes_of[0] == bytes_of[1]


def test_one_new_file_changes_one_song_shard(home: Home, tmp_path: Path) -> None:
    source = small_corpus(tmp_path / "midi", 20)
    added = source / "zz.mid"
    last = sorted(source.glob("*.mid"))[0]
    data = last.read_bytes()
    last.unlink()
    before = small_dataset(home, source)
    songs = {path.name for path in (home.datasets / "small" / "songs").iterdir()}
    added.write_bytes(data)
    after = small_dataset(home, source)
    new = {path.name for path in (home.datasets / "small" / "songs").iterdir()} - songs
    assert before.version != after.version
    assert len(new) == 1


def test_settings_that_matter_change_the_version_and_names_do_not(tmp_path: Path) -> None:
    source = small_corpus(tmp_path / "midi", 4)
    files = scan_sources([str(source)], tmp_path / "cache", SourceLimits()).files
    plain = version_of(DatasetConfig(), files)
    for config in (DatasetConfig(name="other"), DatasetConfig(sources=("/elsewhere",)), DatasetConfig(rehash=True)):
        assert version_of(config, files) == plain
    assert version_of(DatasetConfig(split_seed=1), files) != plain
    assert version_of(DatasetConfig(augment=AugmentConfig(transpositions=(0,))), files) != plain


def test_song_rows_hold_the_notes_of_the_file(home: Home, tmp_path: Path) -> None:
    from tasks.music.midi.read_midi import read_midi

    source = small_corpus(tmp_path / "midi", 6)
    version = small_dataset(home, source)
    scores = {hashlib.sha256(p.read_bytes()).hexdigest()[:16]: read_midi(p) for p in source.glob("*.mid")}
    for relative in version.manifest["songs"]:
        for row in pq.read_table(version.folder / relative, partitioning=None).to_pylist():
            notes = scores[row["piece"]].notes
            assert row["onset"] == notes.onset.tolist()
            assert row["pitch"] == notes.pitch.tolist()
            assert row["onset_seconds"] == notes.onset_seconds.tolist()
            assert row["tempo_tick"] == scores[row["piece"]].tempos.tick.tolist()
            assert len(row["pedal_onset"]) == len(scores[row["piece"]].pedals.onset)


@pytest.mark.parametrize(
    ("prepare", "error", "said"),
    [
        (lambda folder: None, NotFound, "does not exist"),
        (lambda folder: folder.mkdir(), DatasetError, "it is empty"),
        (lambda folder: (folder.mkdir(), (folder / "a.txt").write_text("x")), DatasetError, "1 other files"),
        (lambda folder: folder.write_text("x"), DatasetError, "neither a folder, nor"),
    ],
    ids=["missing", "empty", "no-midi", "a-text-file"],
)
def test_a_useless_source_is_one_clear_error(home: Home, tmp_path: Path, prepare, error, said) -> None:
    prepare(tmp_path / "source")
    with pytest.raises(error, match=said):
        small_dataset(home, tmp_path / "source")
    assert not list(home.datasets.glob("*/versions/*"))


def test_a_folder_of_broken_files_publishes_nothing(home: Home, tmp_path: Path) -> None:
    source = tmp_path / "broken"
    source.mkdir()
    for index in range(4):
        (source / f"{index}.mid").write_bytes(b"<html>" + bytes([index]))
    with pytest.raises(DatasetError, match="none of the 4 files found is usable"):
        small_dataset(home, source)
    assert not list(home.datasets.glob("*/versions/*"))


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (
            ReadLimits(channels=(14,)),
            r"\(3 no_notes\); the first, .*: none of \d+ notes is on a channel of",
        ),
        (
            ReadLimits(median_pitch=127),
            r"\(3 out_of_range\); the first, .*\.mid: moved by \d+ semitones to",
        ),
    ],
    ids=["channels", "median_pitch"],
)
def test_reading_that_no_file_allows_names_its_setting(
    home: Home, tmp_path: Path, limits: ReadLimits, message: str
) -> None:
    with pytest.raises(DatasetError, match=f"none of the 3 files found is usable {message}"):
        small_dataset(home, small_corpus(tmp_path / "midi", 3), parse=ParseConfig(read=limits))


def test_flips_that_an_encoding_cannot_hold_are_refused(home: Home, tmp_path: Path) -> None:
    augment = AugmentConfig(flip=True)
    with pytest.raises(ConfigError, match=r"augment\.flip: remi holds pitches 70-100 and none of their flips, 27-57"):
        small_dataset(
            home,
            small_corpus(tmp_path / "midi", 3),
            augment=augment,
            encoding=RemiConfig(pitch_min=70, pitch_max=100),
        )


def test_too_many_broken_files_fail_the_rebuild(home: Home, tmp_path: Path) -> None:
    source = small_corpus(tmp_path / "midi", 4)
    for index in range(6):
        (source / f"broken{index}.mid").write_bytes(b"<html>" + bytes([index]))
    with pytest.raises(DatasetError, match="6 of 10 files rejected"):
        small_dataset(home, source)
    assert small_dataset(home, source, max_reject_share=0.7).manifest["counts"]["n_rejected"] == 6


def test_unreadable_and_odd_names_are_in_the_ledger(home: Home, tmp_path: Path) -> None:
    import os

    source = small_corpus(tmp_path / "midi", 6)
    data = next(source.glob("*.mid")).read_bytes()
    (source / "dangling.mid").symlink_to(tmp_path / "nowhere.mid")
    (source / os.fsdecode(b"caf\xe9.mid")).write_bytes(data)
    rows = {row["path"]: row for row in pq.read_table(small_dataset(home, source).ledger).to_pylist()}
    assert rows["dangling.mid"]["reason"] == "unreadable_file"
    assert "caf\\xe9.mid" in rows


def test_a_version_is_found_by_name_prefix_and_default(home: Home, tmp_path: Path) -> None:
    version = small_dataset(home, small_corpus(tmp_path / "midi", 4))
    for reference in ("", "small", f"small@{version.version}", f"small@{version.version[:6]}"):
        assert versions.resolve_dataset(home, reference).version == version.version
    with pytest.raises(NotFound, match="known: small"):
        versions.resolve_dataset(home, "other")
    with pytest.raises(NotFound, match=version.version):
        versions.resolve_dataset(home, "small@ffff")
    with pytest.raises(NotFound, match="holds no dataset yet"):
        versions.resolve_dataset(Home.at(tmp_path / "nothing"), "")


def test_missing_shards_are_noticed(home: Home, tmp_path: Path) -> None:
    version = small_dataset(home, small_corpus(tmp_path / "midi", 4))
    assert version.missing_files() == []
    gone = version.token_shards("train")[0]
    gone.unlink()
    assert version.missing_files() == [gone]


def test_a_version_that_lost_a_shard_is_published_again(home: Home, tmp_path: Path) -> None:
    source = small_corpus(tmp_path / "midi", 4)
    before = small_dataset(home, source)
    digests = shard_bytes(home)
    before.token_shards("train")[0].unlink()
    assert small_dataset(home, source).missing_files() == []
    assert shard_bytes(home) == digests
    assert [path.name for path in (home.datasets / "small" / "versions").iterdir()] == [before.version]


def test_a_damaged_manifest_is_named(home: Home, tmp_path: Path) -> None:
    version = small_dataset(home, small_corpus(tmp_path / "midi", 4))
    version.manifest_path.write_text("{bad")
    for reference in ("", "small", version.reference):
        with pytest.raises(DatasetError, match=r"manifest\.json is damaged"):
            versions.resolve_dataset(home, reference)
    other = small_dataset(home, small_corpus(tmp_path / "other", 5), name="other")  # which goes on
    assert [entry.reference for entry in versions.list_datasets(home)] == [other.reference]
    assert versions.resolve_dataset(home, "other").version == other.version


@pytest.mark.slow
def test_one_and_two_workers_give_the_same_bytes(tmp_path: Path, ray: None) -> None:
    source = small_corpus(tmp_path / "midi", 24, with_flaws=True)
    plain, parallel = Home.at(tmp_path / "plain"), Home.at(tmp_path / "parallel")
    small_dataset(plain, source)
    config = DatasetConfig(
        sources=(str(source),), name="small", augment=AugmentConfig(transpositions=(0, 1), stretches=(1.0,))
    )
    scan = scan_sources(config.sources, parallel.cache, config.source_limits)
    folder = parallel.datasets / "small"
    contents = song_shards.distinct_contents(scan.files)
    songs = song_shards.plan_song_shards(config.parse, contents, folder / "songs")
    assert song_shards.build_song_shards(songs) == (len(songs), frozenset())
    assert song_shards.build_song_shards(songs) == (0, frozenset())
    planned = analyse.plan_analysis([shard.path for shard in songs], folder / "analysis")
    assert analyse.build_analysis(planned) == len(planned)
    analysis = analyse.read_analysis(planned)
    book = ledger.build_ledger(config, scan.files, contents, songs, analysis)
    leakage = ledger.check_leakage(config, book, analysis)
    tokens = plan_tokens(config, book, songs, folder)
    assert encode.build_token_shards(tokens) == len(tokens)
    assert encode.build_token_shards(tokens) == 0
    version = version_of(config, scan.files)
    publish_version(parallel, config, version, scan.n_other_files, book, leakage, songs, planned, tokens)
    assert shard_bytes(plain) == shard_bytes(parallel)


@pytest.mark.slow
def test_bad_files_all_end_in_the_ledger(home: Home) -> None:
    source = real_data("bad")
    version = small_dataset(home, source, max_reject_share=1.0)
    counts = version.manifest["counts"]
    suffixes = (".mid", ".midi", ".kar", ".rmi", ".smf")
    expected = sum(p.name.lower().endswith(suffixes) for p in source.rglob("*") if p.is_file())
    assert counts["n_files"] == expected == counts["n_accepted"] + counts["n_duplicate"] + counts["n_rejected"]
    assert sum(counts["rejected_by_reason"].values()) == counts["n_rejected"]
    assert json.loads(version.manifest_path.read_text())["version"] == version.version
