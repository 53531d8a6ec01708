"""What a seal finds: every flipped bit of a sealed file, and nothing in one that is whole."""

import hashlib
import io
import json
import random
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.errors import DamagedFile
from tasks.storage import integrity, parquet
from tasks.storage.integrity import (
    drop_damaged,
    examine,
    parse_sealed,
    read_sealed,
    require_whole,
    sealed,
    sealed_bytes,
)
from tasks.storage.parquet import read_table, write_table
from tasks.storage.strict_json import BadJson, check_shape, parse_json, read_json

VALUE = {"version": "0123", "n": 12, "share": 1 / 3, "names": ["a", "ü"], "nothing": None, "below": {"b": [1, 2.5]}}


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def small_table() -> pa.Table:
    dice = random.Random(3)
    numbers = [dice.randrange(1000) for _ in range(3000)]
    return pa.table({"n": numbers, "lists": [[n, n + 1] for n in numbers], "text": [str(n % 7) for n in numbers]})


@pytest.mark.slow
def test_every_flipped_bit_of_sealed_json_is_found(tmp_path: Path) -> None:
    path, data = tmp_path / "x.json", sealed_bytes(VALUE)
    path.write_bytes(data)
    assert read_sealed(path) == VALUE
    for bit in range(8 * len(data)):
        path.write_bytes(flipped(data, bit))
        with pytest.raises(DamagedFile, match=r"x\.json (is damaged|cannot be read)") as error:
            read_sealed(path)
        assert len(str(error.value).splitlines()) == 1


def test_a_seal_is_the_digest_of_the_canonical_form() -> None:
    canonical = json.dumps(VALUE, sort_keys=True, separators=(",", ":"))
    assert sealed(VALUE)["seal"] == hashlib.sha256(canonical.encode()).hexdigest()
    assert json.loads(sealed_bytes(VALUE)) == VALUE | {"seal": sealed(VALUE)["seal"]}
    assert parse_sealed(json.dumps(sealed(VALUE)), "line 3") == VALUE  # as one line, the same


def test_json_without_a_seal_is_used_and_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(integrity, "_told_unverified", [])
    for name in ("one", "other"):
        (tmp_path / name).write_text(json.dumps(VALUE))
        assert read_sealed(tmp_path / name) == VALUE
    assert caplog.text.count("unverified") == 1
    assert "verify --seal" in caplog.text


@pytest.mark.parametrize("encoded", [False, True])
def test_every_flipped_bit_of_a_table_is_found(tmp_path: Path, encoded: bool) -> None:
    path, table = tmp_path / "x.parquet", small_table()
    schema = pa.schema([pa.field(name, kind.type) for name, kind in zip(table.column_names, table.schema, strict=True)])
    write_table(path, table, {"schema": 1}, schema if encoded else None)
    data, dice = path.read_bytes(), random.Random(5)
    assert read_table(path).equals(table)
    footer = 8 * (len(data) - 2000)
    bits = [dice.randrange(8 * len(data)) for _ in range(150)] + [
        dice.randrange(footer, 8 * len(data)) for _ in range(150)
    ]
    for bit in bits:
        path.write_bytes(flipped(data, bit))
        if examine(path).has_seal:
            with pytest.raises(DamagedFile, match="run its rebuild again"):
                read_table(path)
        else:  # the mark of the seal itself: the data are whole, and a reader either gets them or says that it cannot
            with suppress(DamagedFile):
                assert read_table(path).equals(table)
        drop_damaged([path], 1)  # a rebuild makes it again in any case
        assert not path.exists()


def test_every_page_has_its_checksum(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    write_table(path, small_table())
    data, dice = path.read_bytes(), random.Random(7)
    by_checksum = 0
    for _ in range(100):  # other readers find a flipped bit of the data by it, too
        changed = io.BytesIO(flipped(data, dice.randrange(8 * (len(data) - 4000))))
        try:
            assert pq.read_table(changed, page_checksum_verification=True).equals(small_table())
        except (OSError, pa.ArrowException) as error:
            by_checksum += "CRC checksum" in str(error)
    assert by_checksum > 50


def test_the_same_table_gives_the_same_bytes_and_its_seal_can_be_checked_by_anybody(tmp_path: Path) -> None:
    one, other = tmp_path / "one.parquet", tmp_path / "other.parquet"
    for path in (one, other):
        write_table(path, small_table())
    data = one.read_bytes()
    assert data == other.read_bytes()
    seal = pq.read_metadata(one).metadata[b"orchestrion.seal"]
    assert hashlib.sha256(data.replace(seal, b"0" * 64)).hexdigest().encode() == seal
    assert examine(one) == integrity.FileState(hashlib.sha256(data).hexdigest(), True, True)


def test_a_file_that_is_looked_at_again_is_not_read_again_but_a_changed_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.parquet"
    write_table(path, small_table())
    data = path.read_bytes()
    n_read: list[int] = []
    look = integrity._examine
    monkeypatch.setattr(integrity, "_examine", lambda handle: n_read.append(1) or look(handle))
    require_whole(path)
    require_whole(path)
    assert len(n_read) == 2  # it was changed so shortly before that a change might not show
    monkeypatch.setattr(integrity, "_RACY_NS", -(10**12))
    require_whole(path)
    require_whole(path)
    assert len(n_read) == 3
    path.write_bytes(flipped(data, 8 * 600))
    with pytest.raises(DamagedFile):
        require_whole(path)


def test_files_of_before_seals_are_checked_by_what_their_dataset_knows(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    path, hashes = folder / "tokens" / "oore-1" / "split=train" / "a.parquet", folder / "versions" / "1" / "hashes.json"
    path.parent.mkdir(parents=True)
    hashes.parent.mkdir(parents=True)
    pq.write_table(small_table(), path)
    name = "tokens/oore-1/split=train/a.parquet"
    hashes.write_text(json.dumps({name: hashlib.sha256(path.read_bytes()).hexdigest()}))
    assert read_table(path).equals(small_table())
    path.write_bytes(flipped(path.read_bytes(), 8 * 700))
    with pytest.raises(DamagedFile, match=r"a\.parquet is damaged: .*run its rebuild again"):
        read_table(path)


def test_a_missing_file_is_no_damaged_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        parquet.read_table(tmp_path / "gone.parquet")
    with pytest.raises(FileNotFoundError):
        read_sealed(tmp_path / "gone.json")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000 + "]" * 100_000, "nested more than 100 deep"),
        ('{"a":' * 101 + "1" + "}" * 101, "nested more than 100 deep"),
        ("1" * 5_000, "of 5000 digits is beyond 64 bits"),
        ('{"a": 1, "a": 2}', "key 'a' is there twice"),
        ("{", "Expecting property name"),
        (b"\xff\xfe", "not UTF-8"),
        ("", "Expecting value"),
    ],
)
def test_hostile_json_is_refused_in_one_line(text: str | bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(text.encode() if isinstance(text, str) else text)
    for read in (lambda: parse_json(text), lambda: read_json(tmp_path / "x")):
        with pytest.raises(BadJson) as error:
            read()
        assert said in str(error.value)
        assert len(str(error.value).splitlines()) == 1


def test_a_file_that_is_too_large_is_not_read_whole(tmp_path: Path) -> None:
    (tmp_path / "x").write_text(" " * 100 + "1")
    assert read_json(tmp_path / "x", limit_bytes=101) == 1
    with pytest.raises(BadJson, match="more than 100 bytes"):
        read_json(tmp_path / "x", limit_bytes=100)


def test_shapes_say_what_is_where() -> None:
    shape = {"n": int, "share": float, "names": [str], "more?": {str: int}, "maybe": (None, {"at": str})}
    good = {"n": 1, "share": 1, "names": ["a"], "maybe": None, "other": []}
    check_shape(good, shape)
    check_shape(good | {"more": {"x": 2}, "maybe": {"at": "b"}}, shape)
    for change, said in (
        ({"n": True}, "n is True, not a whole number"),
        ({"n": 1.5}, "n is 1.5"),
        ({"share": "1"}, "share is '1', not a number"),
        ({"names": ["a", 2]}, "names[1] is 2, not a text"),
        ({"names": {}}, "names is dict, not a list"),
        ({"more": {"x": "y"}}, "more.x is 'y'"),
        ({"maybe": 3}, "maybe is 3, not null"),
    ):
        with pytest.raises(BadJson) as error:
            check_shape(good | change, shape)
        assert said in str(error.value)
    with pytest.raises(BadJson, match="it has no 'n'"):
        check_shape({}, shape)
