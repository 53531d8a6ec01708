"""Archives: read in place, hostile ones refused by name, damaged ones read as far as they go."""

import os
import stat
import struct
import tarfile
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.config.source_limits import SourceLimits
from tasks.errors import DatasetError
from tasks.ingest.sources import archives
from tasks.ingest.sources.names import danger_of
from tasks.ingest.sources.scan import scan_sources
from tests.budget import examples
from tests.tasks.ingest.sources.builders import (
    LIMITS,
    LONG_AGO,
    contents,
    details,
    midi,
    scan,
    tar_bytes,
    write_files,
    write_tar,
    write_zip,
)

FILES = {"b/x.mid": midi(1), "a.MIDI": midi(2, 5000), "b/empty.kar": b""}
OTHERS = {"readme.txt": b"hello", "inner.zip": b"PK"}
WRITERS: dict[str, Callable[..., Path]] = {
    "s.zip": write_zip,
    "s.tar": write_tar,
    "s.tar.gz": write_tar,
    "s.tgz": write_tar,
    "s.tar.zst": write_tar,
}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The archives that are opened for listing, in order."""
    names: list[str] = []
    honest = archives._read

    def spy(path: str, *args: object, **options: object):
        names.append(Path(path).name)
        return honest(path, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(archives, "_read", spy)
    return names


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_files(name: str, tmp_path: Path, cache: Path) -> None:
    path = WRITERS[name](tmp_path / name, FILES | OTHERS)
    seen: list[int] = []
    result = scan(cache, path, on_files=seen.append)
    assert contents(result) == FILES
    assert result.n_other_files == 2
    assert sum(seen) == 3


@pytest.mark.parametrize("name", WRITERS)
def test_an_archive_that_has_not_changed_is_not_read_again(
    name: str, tmp_path: Path, cache: Path, read: list[str]
) -> None:
    path = WRITERS[name](tmp_path / name, FILES)
    first = scan(cache, path)
    assert scan(cache, path).files.equals(first.files)
    assert read == [name]
    os.utime(path, (LONG_AGO + 1, LONG_AGO + 1))
    scan(cache, path)
    assert read == [name] * 2
    scan(cache, path, rehash=True)
    assert read == [name] * 3
    scan(cache, path, limits=SourceLimits(max_member_bytes=4000))
    assert read == [name] * 4
    now = time.time()
    os.utime(path, (now, now))  # as new as the scan: its listing is not kept
    scan(cache, path)
    scan(cache, path)
    assert read == [name] * 6


@pytest.mark.parametrize("name", ["s.tar.gz", "s.tar.zst"])
def test_a_pack_that_is_missing_is_made_again(name: str, tmp_path: Path, cache: Path, read: list[str]) -> None:
    path = write_tar(tmp_path / name, FILES)
    scan(cache, path)
    (pack,) = (cache / "packs").iterdir()
    pack.unlink()
    assert contents(scan(cache, path)) == FILES
    os.utime(path, (LONG_AGO + 1, LONG_AGO + 1))
    scan(cache, path)
    assert len(list((cache / "packs").iterdir())) == 1  # the older one is gone
    assert len(read) == 3


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zip_methods(method: int, tmp_path: Path, cache: Path) -> None:
    result = scan(cache, write_zip(tmp_path / "s.zip", FILES, method))
    if method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        assert contents(result) == FILES
    else:
        assert contents(result) == dict.fromkeys(FILES, "unsupported_compression")
        assert f"compression method {method}; stored (0) and deflate (8) are read" in details(result)["b/x.mid"]


def test_archives_inside_a_folder_are_read_and_those_inside_archives_are_not(tmp_path: Path, cache: Path) -> None:
    tree = write_files(tmp_path / "tree", {"a.mid": midi(1), "sub/note.txt": b""})
    write_zip(tree / "sub" / "set.ZIP", {"in/b.mid": midi(2), "inner.zip": b"PK", "c.txt": b""})
    write_tar(tree / "sub" / "more.tar", {"b.mid": midi(3)})
    (tree / "bad.zip").write_bytes(b"nothing of the kind")
    result = scan(cache, tree)
    assert contents(result) == {
        "a.mid": midi(1),
        "sub/set.ZIP/in/b.mid": midi(2),
        "sub/more.tar/b.mid": midi(3),
        "bad.zip": "unreadable_archive",
    }
    assert result.n_other_files == 3
    assert "its directory, at the end of 19 bytes, is damaged or truncated" in details(result)["bad.zip"]


def test_a_changed_archive_is_noticed_when_read(tmp_path: Path, cache: Path) -> None:
    files = {"a.mid": midi(1), "b.mid": midi(2)}
    path = write_zip(tmp_path / "s.zip", files)
    result = scan(cache, path)
    path.touch()
    assert contents(result) == files  # touched, but the same
    write_zip(path, {name: data[::-1] for name, data in files.items()})
    assert set(contents(result).values()) == {"changed"}
    path.unlink()
    assert set(contents(result).values()) == {"vanished"}


@pytest.mark.parametrize("writer", ["s.zip", "s.tar", "s.tar.gz"])
def test_names_that_lead_elsewhere_are_refused(writer: str, tmp_path: Path, cache: Path) -> None:
    bad = ["../up.mid", "a/../../up.mid", "/abs.mid", "C:\\win.mid", "C:win.mid", "..\\up.mid", "\\\\host\\share.mid"]
    path = WRITERS[writer](tmp_path / writer, {name: midi(1) for name in bad} | {"a/..b.mid": midi(2)})
    result = scan(cache, path)
    found = contents(result)
    assert found.pop("a/..b.mid") == midi(2)
    assert set(found.values()) == {"unsafe_path"}
    assert len(found) == len(bad)
    assert not list(tmp_path.glob("**/up.mid"))


@given(st.binary(max_size=12))
def test_a_name_without_danger_stays_below_its_folder(name: bytes) -> None:
    if not danger_of(name) and name:
        joined = os.path.normpath(b"/root/of/" + name.replace(b"\\", b"/"))
        assert joined.startswith(b"/root/of")


def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w") as archive:
        for name, kind in (("sym.mid", tarfile.SYMTYPE), ("hard.mid", tarfile.LNKTYPE), ("dev.mid", tarfile.CHRTYPE),
                           ("fifo.mid", tarfile.FIFOTYPE), ("other", tarfile.SYMTYPE)):  # fmt: skip
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    result = scan(cache, path)
    assert set(contents(result).values()) == {"link_entry"}
    assert (len(result.files), result.n_other_files) == (4, 1)


def test_links_and_encrypted_members_of_a_zip_are_refused(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "s.zip"
    with zipfile.ZipFile(path, "w") as archive:
        link = zipfile.ZipInfo("link.mid")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("secret.mid", midi(1))
        archive.writestr("odd.mid", midi(2))
        archive.writestr("fine.mid", midi(3))
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\1\2", data.index(b"PK\1\2") + 1)
    data[at + 8] |= 1  # encrypted
    at = data.index(b"PK\1\2", at + 1)
    data[at + 10] = 97  # WavPack
    path.write_bytes(data)
    assert contents(scan(cache, path)) == {
        "link.mid": "link_entry",
        "secret.mid": "encrypted",
        "odd.mid": "unsupported_compression",
        "fine.mid": midi(3),
    }


def test_a_zip_bomb_is_refused_by_what_comes_out_not_by_what_it_says(tmp_path: Path, cache: Path) -> None:
    bomb = bytes(30 * 2**20)
    path = write_zip(tmp_path / "s.zip", {"bomb.mid": bomb, "fine.mid": midi(1)})
    data = path.read_bytes()
    for claim in (data, data.replace(struct.pack("<I", len(bomb)), struct.pack("<I", 1000))):
        path.write_bytes(claim)
        result = scan(cache, path)
        assert contents(result) == {"bomb.mid": "archive_bomb", "fine.mid": midi(1)}
        assert "max_expansion_ratio=200" in details(result)["bomb.mid"]
    generous = SourceLimits(max_expansion_ratio=2000, max_member_bytes=2**20)
    assert contents(scan(cache, path, limits=generous))["bomb.mid"] == "too_large"


@pytest.mark.parametrize("n_threads", [1, 4])
def test_the_limit_on_all_of_a_zip_cuts_at_the_same_member_each_time(n_threads: int, tmp_path: Path) -> None:
    files = {f"{i:04d}.mid": midi(i, 1000) for i in range(3000)} | {"../x.mid": midi(1)}
    path = write_zip(tmp_path / "s.zip", files)
    limits = SourceLimits(max_expanded_bytes=1_500_000)
    result = scan(tmp_path / f"cache{n_threads}", path, limits=limits, n_threads=n_threads)
    found = list(contents(result).values())
    assert found == ["unsafe_path", *(midi(i, 1000) for i in range(1500)), *["archive_bomb"] * 1500]
    assert "max_expanded_bytes=1500000" in details(result)["2999.mid"]


def test_members_that_share_bytes_are_refused(tmp_path: Path, cache: Path) -> None:
    path = write_zip(tmp_path / "s.zip", {"a.mid": midi(1), "b.mid": midi(2)})
    data = path.read_bytes()
    at = data.index(b"PK\1\2", data.index(b"PK\1\2") + 1)
    shared = data[:at] + data[at : at + 42] + bytes(4) + data[at + 46 :]  # b's header is said to be a's
    path.write_bytes(shared)
    found = contents(scan(cache, path))
    assert sorted(str(value) for value in found.values() if isinstance(value, str)) == ["archive_bomb"]


@pytest.mark.slow
def test_a_tar_that_expands_too_far_is_left_there(tmp_path: Path, cache: Path) -> None:
    files = {"a.mid": midi(1), "fill.bin": bytes(90 * 2**20), "b.mid": midi(2)}
    path = write_tar(tmp_path / "s.tar.gz", files)
    result = scan(cache, path)
    assert contents(result) == {"a.mid": midi(1), "s.tar.gz": "archive_bomb"}
    assert "max_expansion_ratio=200" in details(result)["s.tar.gz"]
    limits = SourceLimits(max_expansion_ratio=2000, max_expanded_bytes=10**6)
    assert "max_expanded_bytes=1e+06" in details(scan(cache, path, limits=limits))["s.tar.gz"]


def test_too_many_members_refuse_the_archive(tmp_path: Path, cache: Path) -> None:
    limits = SourceLimits(max_archive_members=2)
    for name, writer in WRITERS.items():
        with pytest.raises(DatasetError, match="max_archive_members=2"):
            scan(cache, writer(tmp_path / name, FILES), limits=limits)


def test_large_members_are_refused_alone(tmp_path: Path, cache: Path) -> None:
    for name, writer in WRITERS.items():
        result = scan(cache, writer(tmp_path / name, FILES), limits=SourceLimits(max_member_bytes=4000))
        assert contents(result) == FILES | {"a.MIDI": "too_large"}
        assert "max_member_bytes=4000" in details(result)["a.MIDI"]


def test_names_that_stand_twice_are_numbered(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "s.zip"
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore")  # of zipfile, about the name that it writes twice
        for number in range(3):
            archive.writestr("a.mid", midi(number))
        archive.writestr("a.mid#2", midi(7))
        archive.writestr("a.mid#2.mid", midi(8))
    assert contents(scan(cache, path)) == {
        "a.mid": midi(0), "a.mid#2": midi(1), "a.mid#3": midi(2), "a.mid#2.mid": midi(8)
    }  # fmt: skip


def test_names_that_are_not_utf8_and_very_long_names(tmp_path: Path, cache: Path) -> None:
    long = "very/" * 60 + "long.mid"
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT):
        files = {"caf\udce9.mid": midi(1), long if kind != tarfile.USTAR_FORMAT else "very/" * 40 + "l.mid": midi(2)}
        found = contents(scan(cache, write_tar(tmp_path / f"s{kind}.tar", files, format=kind)))
        assert found == {"caf\\xe9.mid": midi(1)} | dict(list(files.items())[1:])
    path = write_zip(tmp_path / "s.zip", {"cafe.mid": midi(1), "Ünï.mid": midi(2)})
    path.write_bytes(path.read_bytes().replace(b"cafe.mid", b"caf\xe9.mid"))
    assert contents(scan(cache, path)) == {"caf\\xe9.mid": midi(1), "Ünï.mid": midi(2)}


def test_a_zip_behind_other_bytes_and_one_of_zip64(tmp_path: Path, cache: Path) -> None:
    path = write_zip(tmp_path / "s.zip", FILES)
    path.write_bytes(b"#!/bin/sh\n" * 50 + path.read_bytes())
    assert contents(scan(cache, path)) == FILES
    with zipfile.ZipFile(path, "w") as archive, archive.open("a.mid", "w", force_zip64=True) as member:
        member.write(midi(1))
    assert contents(scan(cache, path)) == {"a.mid": midi(1)}
    data = path.read_bytes()
    end = data.index(b"PK\5\6")
    n_bytes, offset = struct.unpack_from("<II", data, end + 12)
    record = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, n_bytes, offset)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, end, 1)
    closing = data[end : end + 8] + b"\xff" * 12 + data[end + 20 :]
    path.write_bytes(data[:end] + record + locator + closing)
    assert contents(scan(cache, path)) == {"a.mid": midi(1)}


def test_a_damaged_member_is_a_row(tmp_path: Path, cache: Path) -> None:
    files = {f"{name}.mid": midi(i, 3000) for i, name in enumerate(("crc", "size", "stream", "name", "gone", "fine"))}
    path = write_zip(tmp_path / "s.zip", files)
    data = bytearray(path.read_bytes())
    entries, at = {}, data.index(b"PK\1\2")
    for name in files:
        entries[name.removesuffix(".mid")] = at
        at = data.find(b"PK\1\2", at + 1)
    data[entries["crc"] + 16] ^= 1
    data[entries["size"] + 24] ^= 1
    (begin,) = struct.unpack_from("<I", data, entries["stream"] + 42)
    data[begin + 30 + 10 : begin + 30 + 20] = b"\xff" * 10
    (begin,) = struct.unpack_from("<I", data, entries["name"] + 42)
    data[begin + 30] ^= 1
    struct.pack_into("<I", data, entries["gone"] + 42, len(data) + 99)
    path.write_bytes(data)
    result = scan(cache, path)
    assert contents(result) == dict.fromkeys(files, "damaged_member") | {"fine.mid": files["fine.mid"]}
    said = details(result)
    assert "CRC-32" in said["crc.mid"]
    assert "but there are 3000" in said["size.mid"]
    assert "and header b'oame.mid' differ" in said["name.mid"]
    assert f"Truncated file header ({path}, byte {len(data) + 99})" in said["gone.mid"]


def test_a_truncated_zip_says_so(tmp_path: Path, cache: Path) -> None:
    path = write_zip(tmp_path / "s.zip", FILES)
    whole = path.read_bytes()
    for damage in (whole[:-30], whole[: len(whole) // 2], b"", whole[50:]):
        path.write_bytes(damage)
        with pytest.raises(DatasetError, match=r"s\.zip.*(truncated|damaged)"):
            scan(cache, path)
    data = bytearray(whole)
    data[data.index(b"PK\1\2", data.index(b"PK\1\2") + 1)] = 0
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=r"magic number for central directory; its directory, .* is damaged"):
        scan(cache, path)


@pytest.mark.parametrize("name", ["s.tar", "s.tar.gz", "s.tar.zst"])
def test_a_truncated_tar_is_read_as_far_as_it_goes(name: str, tmp_path: Path, cache: Path) -> None:
    files = {f"{i}.mid": os.urandom(60_000) for i in range(10)}
    path = write_tar(tmp_path / name, files)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    result = scan(cache, path)
    found = contents(result)
    assert found[name] == "truncated_archive"
    assert "any further ones are lost" in details(result)[name]
    whole = {key: value for key, value in found.items() if isinstance(value, bytes)}
    assert 3 <= len(whole) < 10
    assert whole.items() <= files.items()


def test_a_tar_with_rubbish_inside_is_read_up_to_there(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "s.tar"
    first = tar_bytes({"a.mid": midi(1)})[:1024]
    path.write_bytes(first + b"rubbish " * 200)
    result = scan(cache, path)
    assert contents(result) == {"a.mid": midi(1), "s.tar": "truncated_archive"}
    assert "no tar header at byte 1024" in details(result)["s.tar"]
    for junk in (b"", b"x" * 100, b"rubbish " * 200):
        path.write_bytes(junk)
        with pytest.raises(DatasetError, match=r"archive \S+s\.tar"):
            scan(cache, path)
    path.write_bytes(first)  # no end mark: many writers leave it out
    assert contents(scan(cache, path)) == {"a.mid": midi(1)}


def test_a_wrong_checksum_at_the_end_of_a_gzip_is_said(tmp_path: Path, cache: Path) -> None:
    path = write_tar(tmp_path / "s.tar.gz", FILES)
    data = bytearray(path.read_bytes())
    data[-6] ^= 1
    path.write_bytes(data)
    assert contents(scan(cache, path)) == FILES | {"s.tar.gz": "truncated_archive"}


def test_a_sparse_file_in_a_tar_is_refused(tmp_path: Path, cache: Path) -> None:
    member = tarfile.TarInfo("sparse.mid")
    member.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.name": "real.mid"}
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(member)
    assert contents(scan(cache, path)) == {"real.mid": "unsupported_compression"}


@examples(150)
@given(name=st.sampled_from(sorted(WRITERS)), data=st.data())
def test_flipped_bytes_never_crash_a_scan(name: str, data: st.DataObject, tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("flip")
    path = WRITERS[name](folder / name, FILES)
    octets = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        octets[data.draw(st.integers(0, len(octets) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(octets[: data.draw(st.integers(0, len(octets)))])
    try:
        result = scan_sources([str(path)], folder / "cache", LIMITS, n_threads=1)
    except DatasetError:
        return  # said, as it should be
    for value in contents(result).values():
        assert isinstance(value, str) or value in FILES.values() or name != "s.zip"
