"""The sample corpus as it is shipped: complete, with its licence, unpacked where it may be already."""

import os
from pathlib import Path

import pytest

from tasks.errors import ConfigError
from tasks.ingest.sources.sample_corpus import N_PIECES, sample_files, write_sample_corpus


def test_writing_twice_touches_nothing_and_mends_what_differs(tmp_path: Path) -> None:
    shipped = sample_files()
    paths = write_sample_corpus(tmp_path / "new" / "corpus", n_pieces=6)
    assert [path.read_bytes() for path in paths] == [shipped[path.name] for path in paths]
    for path in paths:
        os.utime(path, ns=(1, 1))
    paths[2].write_bytes(b"damaged")
    assert write_sample_corpus(tmp_path / "new" / "corpus", n_pieces=6) == paths
    assert [path.stat().st_mtime_ns == 1 for path in paths] == [True, True, False, True, True, True]
    assert paths[2].read_bytes() == shipped[paths[2].name]
    assert sorted(path.parent.iterdir()) == sorted(paths), "no partial files stay behind"


def test_flaws_come_only_on_request(tmp_path: Path) -> None:
    assert not (write_sample_corpus(tmp_path / "clean", n_pieces=2)[0].parent / "flawed").exists()
    paths = write_sample_corpus(tmp_path / "all", n_pieces=2, with_flaws=True)
    flaws = {path.stem: path.read_bytes() for path in paths[2:]}
    assert {path.parent.name for path in paths[2:]} == {"flawed"}
    assert set(flaws) == {"exact-duplicate", "truncated", "web-page", "empty", "without-notes"}
    assert flaws["exact-duplicate"] == paths[0].read_bytes()
    assert paths[1].read_bytes().startswith(flaws["truncated"])
    assert flaws["empty"] == b""
    assert flaws["web-page"].startswith(b"<!DOCTYPE html>")


def test_by_default_it_is_the_whole_corpus(tmp_path: Path) -> None:
    paths = write_sample_corpus(tmp_path)
    families = [path.name.split("-")[0] for path in paths]
    assert {family: families.count(family) for family in families} == {"chorale": 80, "piano": 70, "band": 50}
    assert len({path.read_bytes() for path in paths}) == N_PIECES


def test_its_maker_and_licence_are_stated() -> None:
    stated = sample_files()["README.txt"].decode()
    assert "Maker: the Orchestrion project" in stated
    assert "SPDX: Apache-2.0" in stated


@pytest.mark.parametrize("n_pieces", [-1, N_PIECES + 1])
def test_impossible_numbers_are_named(tmp_path: Path, n_pieces: int) -> None:
    with pytest.raises(ConfigError, match=f"n_pieces={n_pieces} is outside 0 to 200"):
        write_sample_corpus(tmp_path / "corpus", n_pieces)
    assert not (tmp_path / "corpus").exists()


def test_no_pieces_is_a_lawful_wish(tmp_path: Path) -> None:
    assert write_sample_corpus(tmp_path, n_pieces=0) == []
