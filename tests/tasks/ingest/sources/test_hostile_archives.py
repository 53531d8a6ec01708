"""One crafted archive is a row of its own: it neither ends nor hangs the scan of the folder around it."""

import gzip
import io
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.config.source_limits import SourceLimits
from tasks.errors import DatasetError
from tasks.ingest.sources import archive_members
from tests.budget import examples
from tests.tasks.ingest.sources.builders import (  # fmt: skip
    LIMITS,
    contents,
    details,
    midi,
    scan,
    tar_bytes,
    write_files,
    write_tar,
    write_zip,
)

DIGITS = b"9" * 5000


def header(name: bytes = b"x.mid", size: bytes = b"00000000074\0", kind: bytes = b"0") -> bytes:
    """Return a tar header of 512 bytes with a fitting checksum."""
    block = bytearray(512)
    block[: len(name)] = name
    block[100:108], block[124:136], block[156:157] = b"0000644\0", size.ljust(12, b"\0"), kind
    block[257:265] = b"ustar\00000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def octal(number: int) -> bytes:
    return b"%011o\0" % number


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def pax(record: bytes, kind: bytes = b"x") -> bytes:
    return header(b"pax", octal(len(record)), kind) + padded(record)


def field(key: bytes, value: bytes) -> bytes:
    """Return a record of a pax header; its length counts its own digits."""
    rest = len(key) + len(value) + 3
    total = next(total for total in range(rest, rest + 9) if rest + len(str(total)) == total)
    return b"%d %s=%s\n" % (total, key, value)


SONG = padded(midi(1))
FIRST = header(b"first.mid") + SONG
END = bytes(1024)


def with_pax_size(value: bytes, name: bytes = b"x.mid") -> bytes:
    return FIRST + pax(field(b"size", value)) + header(name) + SONG + END


NEGATIVE = b"\xff" * 10 + b"\xfa\x00"  # -1536 in GNU's base 256
TARS = {
    "size -5": with_pax_size(b"-5"),
    "size -1536": with_pax_size(b"-1536"),
    "size -1536 of another file": with_pax_size(b"-1536", b"x.bin"),
    "size abc": with_pax_size(b"abc"),
    "size 1.5": with_pax_size(b"1.5"),
    "size empty": with_pax_size(b""),
    "size with a sign": with_pax_size(b"+60"),
    "size in other digits": with_pax_size("²".encode()),
    "size of 5,000 digits": with_pax_size(DIGITS),
    "size of 2**70": with_pax_size(str(2**70).encode()),
    "size of 10**18": with_pax_size(b"1" + b"0" * 18),
    "length of 5,000 digits": FIRST + pax(DIGITS + b" size=5\n") + header() + SONG + END,
    "length 0": FIRST + pax(b"0 size=5\n") + header() + SONG + END,
    "global size": FIRST + pax(field(b"size", b"-5"), b"g") + header() + SONG + END,
    "negative header": FIRST + header(size=NEGATIVE) + SONG + END,
    "negative name record": FIRST + header(b"L", NEGATIVE, b"L") + SONG + END,
    "negative pax record": FIRST + header(b"p", NEGATIVE, b"x") + SONG + END,
    "name record of 2 MiB": FIRST + header(b"L", octal(2**21), b"L") + bytes(2**21) + header() + SONG + END,
    "name record of 8 GiB": FIRST + header(b"L", b"77777777777\0", b"L") + SONG + END,
    "endless records": FIRST + pax(field(b"comment", b"x")) * 5000 + header() + SONG + END,
    "record and no member": FIRST + pax(field(b"path", b"y.mid")) + END,
    "record at the end": FIRST + pax(field(b"path", b"y.mid")),
    "sparse map that is none": FIRST + pax(field(b"GNU.sparse.map", b"a,b")) + header() + SONG + END,
    "sparse size that is none": FIRST + pax(field(b"GNU.sparse.size", b"abc")) + header() + SONG + END,
    "sparse 1.0 without a map": FIRST
    + pax(field(b"GNU.sparse.major", b"1") + field(b"GNU.sparse.minor", b"0"))
    + header()
    + SONG
    + END,
    "sparse 1.0 with 5,000 digits": FIRST
    + pax(field(b"GNU.sparse.major", b"1") + field(b"GNU.sparse.minor", b"0"))
    + header(size=octal(5001))
    + padded(DIGITS + b"\n")
    + END,
    "old sparse": FIRST + header(kind=b"S") + SONG + END,
    "size that is no octal": FIRST + header(size=b"99999999999\0") + SONG + END,
    "size of 2**87": FIRST + header(size=b"\x80" + b"\x7f" + b"\xff" * 10) + SONG + END,
}


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True], ids=["tar", "tar.gz"])
def test_tars_with_impossible_sizes_are_read_up_to_there(packed: bool, tmp_path: Path) -> None:
    suffix = "tar.gz" if packed else "tar"
    crafted = {f"{name}.{suffix}": gzip.compress(data) if packed else data for name, data in TARS.items()}
    tree = write_files(tmp_path / "tree", crafted | {"song.mid": midi(7)})
    write_zip(tree / "zip.zip", {"in.mid": midi(8)})
    result = scan(tmp_path / "cache", tree)
    found, said = contents(result), details(result)
    assert found["song.mid"] == midi(7)
    assert found["zip.zip/in.mid"] == midi(8)
    for name in crafted:
        assert found[f"{name}/first.mid"] == midi(1), name
        refused = {path: reason for path, reason in found.items() if path.startswith(name) and isinstance(reason, str)}
        assert set(refused.values()) <= {
            "truncated_archive", "too_large", "unsupported_compression"
        }, (name, refused)  # fmt: skip
        assert refused, name
        assert all("\n" not in said[path] and len(said[path]) < 1000 for path in refused)


def test_a_size_in_a_pax_header_is_believed_where_it_is_one(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(
        FIRST + pax(field(b"size", b"60") + field(b"path", b"y.mid")) + header(size=octal(0)) + SONG + END
    )
    assert contents(scan(tmp_path / "cache", tmp_path / "s.tar")) == {"first.mid": midi(1), "y.mid": midi(1)}


def entry(method: int, stored: bytes, data: bytes, name: bytes = b"x.mid") -> tuple[bytes, bytes]:
    """Return a zip's local header with its data, and the entry of the directory for it at byte 0."""
    facts = struct.pack("<HHHHIII", 0, method, 0, 0, zlib.crc32(data), len(stored), len(data))
    local = b"PK\3\4" + struct.pack("<H", 20) + facts + struct.pack("<HH", len(name), 0) + name + stored
    central = b"PK\1\2" + struct.pack("<HH", 20, 20) + facts + struct.pack("<HHHHHII", len(name), 0, 0, 0, 0, 0, 0)
    return local, central + name


def zip_of(local: bytes, central: bytes) -> bytes:
    return local + central + struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 1, 1, len(central), len(local), 0)


@pytest.mark.parametrize("method", [1, 6, 9, 12, 14, 93, 95, 98, 99, 65535])
def test_members_of_other_methods_are_refused_whatever_they_hold(method: int, tmp_path: Path) -> None:
    for number, stored in enumerate(
        (b"", b"\x09\x14\0\0", b"\x09\x14\5\0" + b"\xff" * 5, b"BZh9", b"\x28\xb5\x2f\xfd")
    ):
        tree = write_files(tmp_path / f"{number}", {"a.zip": zip_of(*entry(method, stored, b"")), "b.mid": midi(1)})
        result = scan(tmp_path / f"cache{number}", tree)
        assert contents(result) == {"a.zip/x.mid": "unsupported_compression", "b.mid": midi(1)}
        assert f"compression method {method};" in details(result)["a.zip/x.mid"]


def deflated(data: bytes) -> bytes:
    return zlib.compress(data, wbits=-15)


ZIPS: dict[str, Callable[[], bytes]] = {
    "stream cut": lambda: zip_of(*entry(8, deflated(midi(1, 5000))[:-9], midi(1, 5000))),
    "no stream": lambda: zip_of(*entry(8, b"", midi(1))),
    "rubbish": lambda: zip_of(*entry(8, b"\xff" * 60, midi(1))),
    "longer than said": lambda: zip_of(*entry(8, deflated(midi(1, 5000)), midi(1))),
    "shorter than said": lambda: zip_of(*entry(8, deflated(midi(1)), midi(1, 5000))),
    "stored longer": lambda: zip_of(*entry(0, midi(1), midi(1)[:-1])),
}


@pytest.mark.parametrize("name", ZIPS)
def test_damaged_members_of_a_zip_are_rows(name: str, tmp_path: Path) -> None:
    tree = write_files(tmp_path / "tree", {"a.zip": ZIPS[name](), "b.mid": midi(1)})
    assert contents(scan(tmp_path / "cache", tree)) == {"a.zip/x.mid": "damaged_member", "b.mid": midi(1)}


def test_a_directory_that_cannot_be_read_is_one_row(tmp_path: Path) -> None:
    local, central = entry(0, midi(1), midi(1))
    broken = {
        "flag.zip": zip_of(local, central[:9] + b"\x08" + central[10:46] + b"\xff\xfe.mi"),  # UTF-8, it says
        "version.zip": zip_of(local, central[:6] + b"\xff\xff" + central[8:]),
        "extra.zip": zip_of(local, central[:30] + b"\4\0" + central[32:] + b"\1\0\xff\xff"),
        "disk.zip": zip_of(local, central)[:-18] + b"\xff" * 18,
        "end.zip": b"PK\5\6" + b"\xff" * 18,
        "empty.zip": b"",
        "empty.tar": b"",
        "zeros.tar": bytes(10240),
        "gzip.tar.gz": b"\x1f\x8b\x08" + b"\xff" * 50,
        "zstd.tar.zst": b"\x28\xb5\x2f\xfd" + b"\xff" * 50,
    }
    tree = write_files(tmp_path / "tree", broken | {"b.mid": midi(1)})
    result = scan(tmp_path / "cache", tree)
    assert contents(result) == dict.fromkeys(broken, "unreadable_archive") | {"b.mid": midi(1)}
    for name in broken:
        assert name in details(result)[name]
        assert "\n" not in details(result)[name]
        with pytest.raises(DatasetError, match=name):
            scan(tmp_path / "cache", tree / name)


@pytest.mark.slow
def test_a_reader_that_runs_out_of_time_or_memory_is_a_row_that_names_the_setting(tmp_path: Path) -> None:
    slow = gzip.compress(FIRST + header(b"x", octal(0), b"5") * 120_000)  # seconds of CPU time
    large = io.BytesIO()
    with zipfile.ZipFile(large, "w") as archive:
        archive.writestr("a.mid", bytes(60 * 2**20), zipfile.ZIP_DEFLATED)
    tree = write_files(tmp_path / "tree", {"slow.tar.gz": slow, "large.zip": large.getvalue(), "song.mid": midi(1)})
    for name, limits in (
        ("slow.tar.gz", SourceLimits(archive_seconds=0.001)),
        ("large.zip", SourceLimits(archive_memory_bytes=2**20, max_expansion_ratio=1e6)),
    ):
        result = scan(tmp_path / name, tree, limits=limits)
        found, said = contents(result), details(result)
        assert (found[name], found["song.mid"]) == ("unreadable_archive", midi(1))
        assert f"dataset.source_limits.{'archive_seconds' if 'slow' in name else 'archive_memory_bytes'}" in said[name]
        assert not list((tmp_path / name / "archives").glob(".*"))
    again = contents(scan(tmp_path / "slow.tar.gz", tree / "slow.tar.gz"))  # such a verdict is not kept
    assert again == {"first.mid": midi(1)}


def test_a_disk_that_is_full_is_no_fault_of_the_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.ingest.sources import archives

    (tmp_path / "s.tar").write_bytes(tar_bytes({"a.mid": midi(1)}))
    honest = archives._host.run
    full = f"{__name__}:list_on_a_full_disk"
    monkeypatch.setattr(archives._host, "run", lambda function, *rest: honest(full, *rest))
    with pytest.raises(OSError, match="No space left on device"):
        scan(tmp_path / "cache", write_files(tmp_path, {"b.mid": midi(2)}), limits=LIMITS)


def list_on_a_full_disk(payload: bytes) -> bytes:
    """Do as `list_members` where the disk is full; runs in the child process."""
    import errno
    import os

    from tasks.ingest.sources import archive_members

    def fails(self: object, batch: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    archive_members._Listing.__init__ = _with_write(archive_members._Listing.__init__, fails)  # type: ignore[method-assign]
    return archive_members.list_members(payload)


def _with_write(honest: Callable[..., None], fails: Callable[..., None]) -> Callable[..., None]:
    def make(self: object, write: object, *rest: object) -> None:
        honest(self, lambda batch: fails(self, batch), *rest)

    return make


def test_tarfile_members_of_every_kind_end_where_they_should(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w") as archive:
        folder = tarfile.TarInfo("folder.mid")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        unknown = tarfile.TarInfo("unknown.mid")
        unknown.type, unknown.size = b"Z", 60
        archive.addfile(unknown, io.BytesIO(midi(1)))
        archive.addfile(tarfile.TarInfo("empty.mid"))
    assert contents(scan(tmp_path / "cache", path)) == {"unknown.mid": midi(1), "empty.mid": b""}


@examples(60, deadline=None)
@given(st.data())
def test_the_short_way_to_a_tar_header_says_what_tarfile_says(data: st.DataObject) -> None:
    info = tarfile.TarInfo(data.draw(st.sampled_from(["a.mid", "caf\u00e9.mid", "folder/" * 16 + "a.mid"])))
    info.size = data.draw(st.sampled_from([0, 5, 511, 2**20, 8**11 - 1]))
    block = bytearray(info.tobuf(data.draw(st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT])))[-512:])
    for _ in range(data.draw(st.integers(0, 2))):
        place = data.draw(st.sampled_from([0, 99, *range(124, 136), *range(148, 157), 345, 346, 500]))
        block[place] = data.draw(st.sampled_from(list(b"\0 0127A\x80\xff")))
    if data.draw(st.booleans()):  # what is odd need not be told by the sum
        block[148:156] = b"%06o\0 " % (256 + sum(block[:148]) + sum(block[156:]))
    short = archive_members._Header._of_plain_file(bytes(block), "utf-8", "surrogateescape")
    if short is not None:
        long = tarfile.TarInfo.frombuf(bytes(block), "utf-8", "surrogateescape")
        assert (short.name, short.size, short.type) == (long.name, long.size, long.type)


def test_most_headers_take_the_short_way() -> None:
    for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        info = tarfile.TarInfo("folder/a.mid")
        info.size = 60
        header = archive_members._Header._of_plain_file(info.tobuf(kind), "utf-8", "surrogateescape")
        assert header is not None
        assert (header.name, header.size) == ("folder/a.mid", 60)


def test_a_child_that_lists_an_archive_finds_all_of_it_loaded(tmp_path: Path) -> None:
    """Otherwise each of thousands of small archives costs a quarter of a second for pandas, which pyarrow loads."""
    write_zip(tmp_path / "a.zip", {"a.mid": midi(1)})
    write_tar(tmp_path / "b.tar.gz", {"a.mid": midi(1)})
    code = """
import json, sys
from dataclasses import asdict
from tasks.ingest.sources import archive_members
from tasks.config.source_limits import SourceLimits
archive_members.prepare()
before = set(sys.modules)
for name, kind in (("a.zip", "zip"), ("b.tar.gz", "tar.gz")):
    order = {"path": name, "kind": kind, "limits": asdict(SourceLimits()), "wanted": "", "rows": "rows"}
    order["pack"] = "pack" if kind == "tar.gz" else ""
    archive_members.list_members(json.dumps(order).encode())
print(sorted(set(sys.modules) - before))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert ended.stdout.strip() == "[]"
