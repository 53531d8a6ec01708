"""What users write to name a source, and the catalog."""

import re
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.config.source_limits import SourceLimits
from tasks.errors import ConfigError, DatasetError, NotFound, OrchestrionError
from tasks.ingest.sources.catalog import CATALOG, catalog_names, find_entry
from tasks.ingest.sources.labels import split_by_folders
from tasks.ingest.sources.spec import check_source, parse_source, source_name
from tests.budget import examples
from tests.tasks.ingest.sources.builders import midi, write_files


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    names = ["tree/a.mid", "a.MID", "b.Zip", "c.tar.gz", "d.tgz", "e.tar.zst", "f.lst", "g.txt", "doc.pdf", "a#b.mid"]
    write_files(tmp_path, {name: midi(1) for name in names})
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("tree", "folder"), ("a.MID", "file"), ("b.Zip", "archive"), ("c.tar.gz", "archive"), ("d.tgz", "archive"),
        ("e.tar.zst", "archive"), ("f.lst", "list"), ("g.txt", "list"), ("a#b.mid", "file"), (" tree ", "folder"),
        ("s3://bucket/x", "uri"), ("gs://bucket", "uri"), ("memory://x", "uri"), ("HTTP://host/x", "http"),
        ("https://host/a.zip?b=c#part", "http"), ("catalog:groove", "catalog"), ("Groove", "catalog"),
        ("catalog:lakh-full#licence=CC-BY-4.0", "catalog"),
    ],
)  # fmt: skip
def test_kinds(text: str, kind: str, here: Path) -> None:
    assert parse_source(text).kind == kind
    check_source(text)


def test_a_path_comes_before_a_catalog_name(here: Path) -> None:
    (here / "groove").mkdir()
    assert parse_source("groove").kind == "folder"
    assert parse_source("catalog:groove").kind == "catalog"


def test_settings_behind_a_source(here: Path) -> None:
    digest = "ab" * 32
    spec = parse_source(f"b.Zip#sha256={digest.upper()}&licence=CC BY%204.0+")
    assert (spec.sha256, spec.licence, spec.location) == (digest, "CC BY 4.0+", str(here / "b.Zip"))
    assert parse_source("tree#license=MIT").licence == "MIT"
    assert parse_source("s3://bucket/x?region=a#licence=MIT").label == "s3://bucket/x?region=a"
    for text, said in (("b.Zip#sha256=12", "64 hex"), (f"tree#sha256={digest}", "for one file, and this is a folder")):
        with pytest.raises(ConfigError, match=said):
            parse_source(text)


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("", ConfigError, "is empty"), ("#licence=MIT", ConfigError, "is empty"),
        ("nowhere", NotFound, "source nowhere does not exist$"), ("grove", NotFound, "did you mean catalog:groove"),
        ("catalog:maestro", NotFound, "did you mean maestro-v3"), ("catalog:zzz", NotFound, "known: js-fakes"),
        ("catalog:giantmidi", NotFound, "fetched by hand.*GiantMIDI-Piano"), ("doc.pdf", DatasetError, "neither a fol"),
        ("s3a4://x", ConfigError, "unknown scheme s3a4"), ("http:///x", ConfigError, "names no server"),
        ("a.mid/b", NotFound, "does not exist"),
        ("http://[::1", ConfigError, "source http://.*: Invalid IPv6"), ("s3://[::1/x", ConfigError, "Invalid IPv6"),
        ("http://host:70000/x", ConfigError, "host:70000/x: its port is no number from 1 to 65535"),
        ("http://host:0/x", ConfigError, "its port is no"), ("http://host:-1/x", ConfigError, "its port is no number"),
        ("http://host:x/", ConfigError, "source http://host:x/: its port is no number"),
        ("x" * 300, NotFound, "of 300 characters: File name too long"),
        ("x" * 300 + ".mid", NotFound, "File name too long"), ("y/" * 3000, NotFound, "of 6000 characters: File name"),
        ("file:///" + "x" * 300, NotFound, "File name too long"), ("a\0.mid", NotFound, "embedded null"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_each(text: str, error: type[OrchestrionError], said: str, here: Path) -> None:
    with pytest.raises(error, match=said) as caught:
        check_source(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("tree", "tree"), ("b.Zip", "b"), ("c.tar.gz#licence=MIT", "c"), ("f.lst", "f"), ("a.MID", "a.mid"),
        ("s3://bucket/My Set/?region=x", "my-set"), ("s3://bucket", "bucket"), ("catalog:Groove", "groove"),
        ("https://host/x/maestro-v3.0.0-midi.zip?download=true", "maestro-v3.0.0-midi"), ("https://host/", "host"),
        ("file:///a/b c", "b-c"), ("/", "dataset"), ("Ünï", "n"), ("x" * 99, "x" * 64), ("~noone-", "noone"),
        ("http://[::1", "dataset"), ("y/" * 3000 + "end", "end"),
    ],
)  # fmt: skip
def test_short_names(text: str, name: str, here: Path) -> None:
    assert source_name(text) == name


@examples(50)
@given(st.text(min_size=1, max_size=80).filter(lambda text: "\0" not in text))
def test_a_short_name_is_always_a_name(text: str) -> None:
    assert re.fullmatch(r"[a-z0-9_.-]{1,64}", source_name(text))


def test_limits_are_checked() -> None:
    with pytest.raises(ValueError, match="max_member_bytes=0 is below 1"):
        SourceLimits(max_member_bytes=0)
    with pytest.raises(ValueError, match="max_expansion_ratio=nan"):
        SourceLimits(max_expansion_ratio=float("nan"))


def test_the_catalog_says_what_is_known_and_nothing_else() -> None:
    asked_for = (
        "js-fakes jsb-chorales nottingham pop909 maestro-v3 groove asap lakh-full lakh-clean los-angeles giantmidi"
    )
    assert set(asked_for.split()) <= set(catalog_names())
    for entry in CATALOG:
        assert source_name(f"catalog:{entry.name}") == entry.name
        assert all((entry.title, entry.licence, entry.citation))
        assert entry.page.startswith("http")
        assert all(re.match("https?://", address) for address in entry.addresses)
        assert re.fullmatch("([0-9a-f]{64})?", entry.sha256)
        assert bool(entry.sha256) <= bool(entry.checksum_from)
        assert bool(entry.split_table) == all(entry.split_columns)
        assert find_entry(entry.name.upper()) is entry
        assert entry.addresses or entry.remarks


def test_splits_by_folder() -> None:
    names = [b"JSB Chorales/train/1.mid", b"JSB Chorales/valid/2.mid", b"x/test/3.mid", b"train.mid", b"x/\xff/4.mid"]
    assert split_by_folders(pa.array(names)).to_pylist() == ["train", "validation", "test", None, None]
