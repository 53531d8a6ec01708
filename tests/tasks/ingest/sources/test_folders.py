"""Folders, single files and lists of files; what the stat cache spares and what it must not miss."""

import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from tasks.errors import ConfigError, DatasetError, NotFound
from tasks.ingest.sources import folders, walk
from tasks.ingest.sources import scan as scan_module
from tasks.ingest.sources.listing import stamp_column, stamp_of
from tasks.ingest.sources.names import ARCHIVE_SUFFIXES
from tasks.ingest.sources.read import BadRead, read_members
from tasks.ingest.sources.scan import scan_sources
from tests.budget import examples
from tests.tasks.ingest.sources.builders import (
    LIMITS,
    LONG_AGO,
    contents,
    details,
    midi,
    scan,
    write_files,
    write_tar,
    write_zip,
)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The files that are opened for hashing, in order."""
    names: list[bytes] = []
    honest = folders.hash_file

    def spy(path: bytes):
        names.append(path.rpartition(b"/")[2])
        return honest(path)

    monkeypatch.setattr(folders, "hash_file", spy)
    return names


def test_a_tree_is_read_at_any_depth_by_suffix_in_any_case(tmp_path: Path, cache: Path) -> None:
    files = {
        "b.MID": midi(1),
        "a/b/c/d.midi": midi(2),
        "a/e.KaR": midi(3),
        "a.rmi": midi(4),
        "z.smf": midi(5),
        "e.mid": b"",
    }
    tree = write_files(tmp_path / "tree", files | {"readme.txt": b"x", "a/mid": b"no suffix", "a/x.mid.bak": b""})
    result = scan(cache, tree)
    assert contents(result) == files
    assert result.n_other_files == 3
    assert result.files["source"].to_pylist() == [str(tree)] * 6


def test_names_that_are_not_utf8_are_printed_as_hex_and_kept_apart(tmp_path: Path, cache: Path) -> None:
    tree = write_files(tmp_path / "tree", {"a\udcff.mid": midi(1), "a\\xff.mid": midi(2), "ä.mid": midi(3)})
    assert contents(scan(cache, tree)) == {"a\\xff.mid": midi(2), "a\\xff.mid#2": midi(1), "ä.mid": midi(3)}


def test_rows_do_not_depend_on_threads_or_on_the_order_of_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = write_files(tmp_path / "tree", {f"{i % 7}/{i}.mid": midi(i, 2000) for i in range(200)})
    write_zip(tree / "more.zip", {f"{i}.mid": midi(i + 1000) for i in range(100)})
    monkeypatch.setattr(folders, "CHUNK_FILES", 7)
    first = scan(tmp_path / "c1", tree, n_threads=1)
    honest = os.scandir

    class Backwards:
        def __init__(self, path: bytes) -> None:
            self.entries = list(honest(path))[::-1]

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *error: object) -> None:
            pass

    monkeypatch.setattr(walk.os, "scandir", Backwards)
    monkeypatch.setattr(walk, "CHUNK", 3)
    assert scan(tmp_path / "c2", tree, n_threads=8).files.equals(first.files)
    assert len(first.files) == 300


def test_links_to_folders_are_not_followed_and_said(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outside = write_files(tmp_path / "outside", {"far.mid": midi(9)})
    tree = write_files(tmp_path / "tree", {"a/x.mid": midi(1)})
    (tree / "a" / "loop").symlink_to(tree)
    (tree / "out").symlink_to(outside)
    (tree / "dead").symlink_to(tree / "nowhere")
    (tree / "far.mid").symlink_to(outside / "far.mid")
    (tree / "dead.mid").symlink_to(tree / "nowhere")
    result = scan(cache, tree)
    assert contents(result) == {"a/x.mid": midi(1), "far.mid": midi(9), "dead.mid": "unreadable_file"}
    assert "No such file" in details(result)["dead.mid"]
    assert "2 links to folders not followed (a/loop)" in caplog.text


def test_a_pipe_is_no_file_and_does_not_block(tmp_path: Path, cache: Path) -> None:
    tree = write_files(tmp_path / "tree", {"x.mid": midi(1)})
    (tree / "folder.mid").mkdir()  # a folder, and an empty one
    names = [f"pipe{suffix}" for suffix in (".mid", *ARCHIVE_SUFFIXES)]
    for name in names:
        os.mkfifo(tree / name)
    (tree / "link.zip").symlink_to("/dev/zero")
    (tree / "songs.lst").write_text("\n".join(["x.mid", "link.zip", "folder.mid", *names]))
    refused = dict.fromkeys([*names, "link.zip"], "unreadable_file") | {"x.mid": midi(1)}
    for source in (tree, tree / "songs.lst"):
        result = scan(cache, source)
        listed = {"folder.mid": "unreadable_file"} if source != tree else {}
        assert contents(result) == refused | listed
        assert "no regular file but a folder, device, pipe or socket" in details(result)["pipe.zip"]
    for name in ("pipe.mid", "pipe.tar.gz", "link.zip"):
        with pytest.raises(DatasetError, match=r"is no regular file"):
            scan(cache, tree / name)


def test_a_pipe_that_takes_the_place_of_a_file_after_it_was_listed_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mid")
    with pytest.raises(ValueError, match="no regular file"):
        folders.hash_file(os.fsencode(tmp_path / "pipe.mid"))


def test_a_link_that_leads_to_itself_is_a_row_or_another_file(tmp_path: Path, cache: Path) -> None:
    tree = write_files(tmp_path / "tree", {"x.mid": midi(1), "sub/y.mid": midi(2)})
    for name in ("loop.mid", "loop.zip", "loop", "sub/loop.txt"):
        (tree / name).symlink_to(Path(name).name)
    (tree / "songs.lst").write_text("x.mid\nloop.mid\nloop.zip\n")
    refused = {"loop.mid": "unreadable_file", "loop.zip": "unreadable_file"}
    result = scan(cache, tree)
    assert contents(result) == {"x.mid": midi(1), "sub/y.mid": midi(2)} | refused
    assert result.n_other_files == 3
    assert "symbolic links" in details(result)["loop.mid"]
    assert contents(scan(cache, tree / "songs.lst")) == {"x.mid": midi(1)} | refused


@pytest.mark.skipif(os.geteuid() != 0, reason="acts as another user, which only root can")
def test_what_may_not_be_read_is_a_row() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        tree = write_files(Path(place) / "tree", {"a.mid": midi(1), "b.mid": midi(2), "shut/c.mid": midi(3)})
        for path, mode in ((Path(place), 0o755), (tree / "b.mid", 0), (tree / "shut", 0)):
            path.chmod(mode)
        os.seteuid(65534)
        try:
            found = walk.walk_folder(os.fsencode(tree))
            with pytest.raises(DatasetError, match="cannot list it: Permission denied"):
                walk.walk_folder(os.fsencode(tree / "shut"))
            with pytest.raises(OSError, match="Permission denied"):
                folders.hash_file(os.fsencode(tree / "b.mid"))
        finally:
            os.seteuid(0)
    assert found.members.to_pylist() == [b"a.mid", b"b.mid", b"shut/"]
    assert found.problems == {b"shut/": "cannot list this folder: Permission denied (shut/)"}


def test_a_folder_that_goes_while_it_is_listed_is_a_row(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = write_files(tmp_path / "tree", {"x.mid": midi(1), "gone/y.mid": midi(2)})
    write_zip(tree / "z.zip", {"in.mid": midi(3)})
    honest = os.scandir

    def goes(path: bytes):
        if isinstance(path, bytes) and path.endswith(b"gone/"):
            shutil.rmtree(path)
        return honest(path)

    monkeypatch.setattr(walk.os, "scandir", goes)
    honest_list = scan_module.list_archive

    def goes_too(path: bytes, *rest: object, **options: object):
        Path(os.fsdecode(path)).unlink()
        return honest_list(path, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(scan_module, "list_archive", goes_too)
    result = scan(cache, tree)
    assert contents(result) == {"x.mid": midi(1), "gone/": "unreadable_folder", "z.zip": "unreadable_archive"}
    assert "No such file" in details(result)["gone/"]


APPLE_DOUBLE = b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(100)


def test_the_companions_that_macos_lays_beside_files_are_no_songs(tmp_path: Path, cache: Path) -> None:
    songs = {f"{name}.mid": midi(number) for number, name in enumerate("abc")} | {"sub/_.mid": midi(9)}
    beside = {
        "._a.mid": APPLE_DOUBLE, "sub/._.mid": midi(7), "__MACOSX/x.mid": midi(8), "sub/__MACOSX/._y.kar": b"",
        "renamed.mid": APPLE_DOUBLE, "._set.zip": APPLE_DOUBLE,
    }  # fmt: skip
    tree = write_files(tmp_path / "tree", songs | beside)
    archives = {"set.zip": write_zip, "set.tar": write_tar, "set.tar.gz": write_tar, "set.tar.zst": write_tar}
    for name, write in archives.items():
        write(tmp_path / name, songs | beside)
    (tree / "songs.lst").write_text("\n".join(songs | beside))
    for source in (tree, tree, tree / "songs.lst", *(tmp_path / name for name in archives)):
        result = scan(cache, source)
        assert contents(result) == songs
        assert result.n_other_files == len(beside) + (source == tree)
    for name in ("._a.mid", "renamed.mid"):
        with pytest.raises(DatasetError, match=r"holds no MIDI file .*: 1 other file"):
            scan(cache, tree / name)


def test_homes_below_a_source_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    own = {"lock": b"", "cache/folders/x.parquet": b"", "datasets/d/latest.json": b"", "generations/b/p.mid": midi(2)}
    own |= {"sample/s.mid": midi(3), "sessions/s/proposal.mid": midi(4)}
    tree = write_files(tmp_path / "tree", {"x.mid": midi(1), "lock": b"", "datasets/set.mid": midi(5)})
    for name in (".orchestrion", "deep/er/elsewhere"):
        write_files(tree / name, own)
    cache = tree / ".orchestrion" / "cache"
    result = scan(cache, tree)
    assert contents(result) == {"x.mid": midi(1), "datasets/set.mid": midi(5)}  # two names alone make no home
    assert (result.n_homes, result.n_other_files) == (2, 1)
    assert "2 homes of Orchestrion not read (.orchestrion)" in caplog.text
    assert contents(scan(cache, tree / ".orchestrion" / "sample")) == {"s.mid": midi(3)}
    assert contents(scan(cache, tree / "deep/er/elsewhere/generations")) == {"b/p.mid": midi(2)}
    with pytest.raises(DatasetError, match=r"elsewhere is a home of Orchestrion.*a folder inside it.*/sample"):
        scan(cache, tree / "deep/er/elsewhere")


def test_the_scans_own_cache_is_not_a_part_of_the_source(tmp_path: Path) -> None:
    tree = write_files(tmp_path, {"x.mid": midi(1), "cache/downloads/y.mid": midi(2)})
    assert list(contents(scan(tmp_path / "cache", tree))) == ["x.mid"]


def test_one_file_is_a_source(tmp_path: Path, cache: Path) -> None:
    write_files(tmp_path, {"Song.MID": midi(1), "other.mid": midi(2)})
    assert contents(scan(cache, tmp_path / "Song.MID")) == {"Song.MID": midi(1)}


def test_a_list_names_files_beside_it(tmp_path: Path, cache: Path) -> None:
    far = write_files(tmp_path / "far", {"z.mid": midi(3)}) / "z.mid"
    tree = write_files(tmp_path / "tree", {"a.mid": midi(1), "sub/b.mid": midi(2), "unlisted.mid": midi(4)})
    write_zip(tree / "c.zip", {"in.mid": midi(5)})
    lines = f"# songs\n a.mid \r\nsub/b.mid\na.mid\n\ngone.mid\nnotes.doc\nc.zip\n{far}\n../far/z.mid\n"
    (tree / "songs.lst").write_text(lines)
    result = scan(cache, tree / "songs.lst")
    assert contents(result) == {
        "a.mid": midi(1),
        "sub/b.mid": midi(2),
        "c.zip/in.mid": midi(5),
        "gone.mid": "unreadable_file",
        str(far): midi(3),
        "../far/z.mid": midi(3),
    }
    assert result.n_other_files == 1
    assert "songs.lst" in details(result)["gone.mid"]
    (tree / "songs.lst").write_bytes(b"a.mid\nn\0ul.mid\nn\0ul.zip\n")
    result = scan(cache, tree / "songs.lst")
    assert contents(result) == {"a.mid": midi(1), "n\0ul.mid": "unreadable_file", "n\0ul.zip": "unreadable_file"}
    assert "embedded null" in details(result)["n\0ul.mid"]


def test_several_sources_get_their_names_in_front(tmp_path: Path, cache: Path) -> None:
    one = write_files(tmp_path / "1" / "Bach Works", {"a.mid": midi(1)})
    two = write_files(tmp_path / "2" / "Bach Works", {"a.mid": midi(2), "b.txt": b""})
    three = write_zip(tmp_path / "set.zip", {"a.mid": midi(3)})
    result = scan(cache, one, two, three)
    assert contents(result) == {
        "bach-works/a.mid": midi(1),
        "bach-works-2/a.mid": midi(2),
        "set/a.mid": midi(3),
    }
    assert result.n_other_files == 1


def test_one_message_names_every_source_that_is_missing_or_empty(tmp_path: Path, cache: Path) -> None:
    tree = write_files(tmp_path / "tree", {"a.mid": midi(1)})
    with pytest.raises(NotFound, match=r"gone1 does not exist; source \S+gone2 does not exist"):
        scan(cache, tree, tmp_path / "gone1", tmp_path / "gone2")
    others = write_files(tmp_path / "others", {"a.txt": b"", "b.txt": b""})
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match=r"others holds no MIDI file .*: 2 other files; .*empty .*: it is empty"):
        scan(cache, tree, others, tmp_path / "empty")
    with pytest.raises(ConfigError, match="given twice"):
        scan(cache, tree, tree)
    with pytest.raises(ConfigError, match="no source"):
        scan(cache)


def test_licences_are_stated_by_pattern_by_fragment_or_not_at_all(tmp_path: Path, cache: Path) -> None:
    tree = write_files(
        tmp_path / "tree", {"bach/a.mid": midi(1), "b[1].mid": midi(2), "c.mid": midi(3), "d.mid": midi(4)}
    )
    assert scan(cache, tree).files["licence"].to_pylist() == [None] * 4
    assert scan(cache, f"{tree}#licence=CC0-1.0").files["licence"].to_pylist() == ["CC0-1.0"] * 4
    (tree / "licences.csv").write_text("pattern,licence\nbach/*,CC-BY-4.0\n[cd].mid,MIT\n*,other\n")
    stated = dict(zip(*(scan(cache, tree).files[name].to_pylist() for name in ("path", "licence")), strict=True))
    assert stated == {"bach/a.mid": "CC-BY-4.0", "b[1].mid": "other", "c.mid": "MIT", "d.mid": "MIT"}
    (tree / "licences.csv").write_text("pattern,licence\nbach/*,\n")
    with pytest.raises(DatasetError, match="line 2"):
        scan(cache, tree)
    (tree / "licences.csv").write_text("file,licence\n")
    with pytest.raises(DatasetError, match="needs pattern and licence"):
        scan(cache, tree)


def test_unchanged_files_are_not_opened_again(tmp_path: Path, cache: Path, opened: list[bytes]) -> None:
    tree = write_files(tmp_path / "tree", {f"{i}.mid": midi(i) for i in range(5)})
    first = scan(cache, tree)
    assert len(opened) == 5
    seen: list[int] = []
    assert scan(cache, tree, on_files=seen.append).files.equals(first.files)
    assert (len(opened), sum(seen)) == (5, 5)
    assert scan(cache, tree, rehash=True).files.equals(first.files)
    assert len(opened) == 10


def test_only_what_changed_is_opened(tmp_path: Path, cache: Path, opened: list[bytes]) -> None:
    tree = write_files(tmp_path / "tree", {f"{i}.mid": midi(i) for i in range(5)})
    scan(cache, tree)
    opened.clear()
    (tree / "1.mid").write_bytes(midi(11))  # other contents, same size
    os.utime(tree / "1.mid", (LONG_AGO + 5, LONG_AGO + 5))
    (tree / "2.mid").unlink()
    write_files(tree / "new", {"n.mid": midi(12)})
    result = scan(cache, tree)
    assert sorted(opened) == [b"1.mid", b"n.mid"]
    assert contents(result) == {
        "0.mid": midi(0), "1.mid": midi(11), "3.mid": midi(3), "4.mid": midi(4), "new/n.mid": midi(12)
    }  # fmt: skip
    opened.clear()
    scan(cache, tree)
    assert opened == []


def test_a_file_replaced_with_its_times_kept_is_opened(tmp_path: Path, cache: Path, opened: list[bytes]) -> None:
    tree = write_files(tmp_path / "tree", {"a.mid": midi(1)})
    scan(cache, tree)
    time.sleep(0.01)  # so that the change time, which nobody can set, is another
    (tree / "a.mid").write_bytes(midi(2))
    os.utime(tree / "a.mid", (LONG_AGO, LONG_AGO))
    assert contents(scan(cache, tree)) == {"a.mid": midi(2)}


def test_a_file_as_new_as_the_scan_is_distrusted(tmp_path: Path, cache: Path, opened: list[bytes]) -> None:
    tree = write_files(tmp_path / "tree", {"old.mid": midi(1), "new.mid": midi(2), "future.mid": midi(3)})
    now = time.time()
    os.utime(tree / "new.mid", (now, now))
    os.utime(tree / "future.mid", (now + 3600, now + 3600))
    scan(cache, tree)
    opened.clear()
    scan(cache, tree)
    assert sorted(opened) == [b"future.mid", b"new.mid"]


def test_a_damaged_cache_is_made_anew(tmp_path: Path, cache: Path, opened: list[bytes]) -> None:
    tree = write_files(tmp_path / "tree", {"a.mid": midi(1)})
    first = scan(cache, tree)
    (kept,) = (cache / "folders").iterdir()
    assert pq.read_table(kept).column_names == ["path", "n_bytes", "mtime_ns", "ctime_ns", "inode", "content_hash"]
    for damage in (b"", b"PAR1 nonsense", kept.read_bytes()[:-20]):
        kept.write_bytes(damage)
        opened.clear()
        assert scan(cache, tree).files.equals(first.files)
        assert opened == [b"a.mid"]


def test_reading_tells_what_vanished_and_what_changed(tmp_path: Path, cache: Path) -> None:
    names = ("gone", "longer", "shorter", "other", "touched", "same")
    tree = write_files(tmp_path / "tree", {f"{name}.mid": midi(1) for name in names})
    result = scan(cache, tree)
    (tree / "gone.mid").unlink()
    (tree / "longer.mid").write_bytes(midi(1) + b"x")
    (tree / "shorter.mid").write_bytes(midi(1)[:-1])
    (tree / "other.mid").write_bytes(midi(2))
    (tree / "touched.mid").touch()
    assert contents(result) == {
        "gone.mid": "vanished", "longer.mid": "changed", "shorter.mid": "changed", "other.mid": "changed",
        "touched.mid": midi(1), "same.mid": midi(1),
    }  # fmt: skip
    row = next(read_members(result.files.slice(1, 1)))
    assert row == BadRead("changed", "61 bytes where the scan found 60 (longer.mid)")


def test_a_large_file_is_hashed_in_pieces(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "ONE_READ", 100)
    tree = write_files(tmp_path / "tree", {"a.mid": midi(1, 3_000_000)})
    assert contents(scan(cache, tree)) == {"a.mid": midi(1, 3_000_000)}


def test_stamps_of_a_column_and_of_one_file_agree(tmp_path: Path) -> None:
    path = write_files(tmp_path, {"a.mid": midi(1)}) / "a.mid"
    os.utime(path, ns=(-5, -5))  # before 1970
    status = path.stat()
    columns = [np.array([value]) for value in (status.st_size, status.st_mtime_ns, status.st_ctime_ns)]
    assert stamp_column(columns).to_pylist() == [stamp_of(status)]


@examples(25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 3), st.booleans()), max_size=6))
def test_a_scan_with_a_cache_equals_one_without(changes: list[tuple[str, int, bool]], tmp_path_factory) -> None:
    tmp_path = tmp_path_factory.mktemp("tree")
    tree = write_files(tmp_path / "tree", {f"{name}.mid": midi(0) for name in "abc"})
    for step, (name, number, is_removed) in enumerate(changes):
        scan_sources([str(tree)], tmp_path / "cache", LIMITS)
        path = tree / f"{name}.mid"
        if is_removed and len(list(tree.iterdir())) > 1:
            path.unlink(missing_ok=True)
        else:
            path.write_bytes(midi(number))
            os.utime(path, (LONG_AGO + step, LONG_AGO + step))
    with_cache = scan_sources([str(tree)], tmp_path / "cache", LIMITS).files
    assert with_cache.equals(scan_sources([str(tree)], tmp_path / "none", LIMITS).files)
