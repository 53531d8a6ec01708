"""The flat file holds what the shards hold, is made once, and is made again when it is missing, stale or damaged."""

import errno
import logging
import mmap
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tasks.dataset import token_cache
from tasks.dataset.token_cache import FlatTokens, flat_path, flat_tokens
from tasks.storage.parquet import TOKEN_SCHEMA, list_column, write_table

LENGTHS = (3, 2, 700, 0, 41)


def write_shard(path: Path, ids: np.ndarray, lengths: tuple[int, ...] = LENGTHS) -> Path:
    offsets = np.cumsum([0, *lengths])
    tokens = list_column(offsets, ids[: offsets[-1]].astype(np.uint16), TOKEN_SCHEMA.field("tokens").type)
    write_table(path, pa.table({"tokens": tokens}))  # the loader needs no other column
    return path


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    ids = np.random.default_rng(0).integers(0, 1 << 16, 1000)
    return [write_shard(tmp_path / "one.parquet", ids), write_shard(tmp_path / "two.parquet", ids[::-1], (5, 400))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "tokens"


def assert_same(found: FlatTokens, expected: FlatTokens) -> None:
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.offsets, expected.offsets)
    assert (found.tokens.dtype, found.offsets.dtype) == (np.uint16, np.int64)


def is_mapped(flat: FlatTokens) -> bool:
    owner: object = flat.tokens
    while isinstance(owner, np.ndarray):
        owner = owner.base
    return isinstance(owner, memoryview) and isinstance(owner.obj, mmap.mmap)


def test_rows_lie_in_the_order_of_the_shards(shards: list[Path]) -> None:
    flat = flat_tokens(shards)
    ids = np.random.default_rng(0).integers(0, 1 << 16, 1000)
    np.testing.assert_array_equal(flat.tokens, [*ids[: sum(LENGTHS)], *ids[::-1][:405]])
    assert np.diff(flat.offsets).tolist() == [*LENGTHS, 5, 400]


def test_the_mapped_file_holds_the_same_and_cannot_be_written_to(shards: list[Path], folder: Path) -> None:
    mapped = flat_tokens(shards, folder)
    assert is_mapped(mapped)
    assert not is_mapped(flat_tokens(shards))
    assert_same(mapped, flat_tokens(shards))
    with pytest.raises(ValueError, match="read-only"):
        mapped.tokens[0] = 1


def test_the_file_is_made_once_with_the_same_bytes_everywhere(shards: list[Path], folder: Path, tmp_path: Path) -> None:
    flat_tokens(shards, folder)
    path = flat_path(shards, folder)
    made = path.stat()
    flat_tokens(shards, folder)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (made.st_ino, made.st_mtime_ns)
    flat_tokens(shards, tmp_path / "elsewhere")
    assert flat_path(shards, tmp_path / "elsewhere").read_bytes() == path.read_bytes()


def test_other_shards_are_another_file(shards: list[Path], folder: Path) -> None:
    before = flat_tokens(shards, folder)
    assert_same(flat_tokens(shards[::-1], folder), flat_tokens(shards[::-1]))
    assert_same(flat_tokens(shards[:1], folder), flat_tokens(shards[:1]))
    write_shard(shards[0], np.full(1000, 7), LENGTHS[:3])
    after = flat_tokens(shards, folder)
    assert_same(after, flat_tokens(shards))
    assert not np.array_equal(after.tokens[: len(before.tokens)], before.tokens)
    assert len(list(folder.glob("*.tokens"))) == 4


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "cut off": lambda data: data[:-1],
    "longer": lambda data: data + b"\0",
    "header is no JSON": lambda data: b"\xff" + data[1:],
    "header without counts": lambda data: b"{}".ljust(4096) + data[4096:],
    "counts are no numbers": lambda data: data.replace(b'"n_rows": 7', b'"n_rows":""'),
    "other shards' name": lambda data: data.replace(b'"digest": "', b'"digest": "0', 1).replace(b" ", b"", 1),
    "other offsets": lambda data: data[:-8] + b"\1" + data[-7:],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_made_again(shards: list[Path], folder: Path, damage: str) -> None:
    flat_tokens(shards, folder)
    path = flat_path(shards, folder)
    whole = path.read_bytes()
    path.write_bytes(DAMAGE[damage](whole))
    assert path.read_bytes() != whole
    assert_same(flat_tokens(shards, folder), flat_tokens(shards))
    assert path.read_bytes() == whole


def test_what_a_killed_process_left_is_taken_away(shards: list[Path], folder: Path) -> None:
    path = flat_path(shards, folder)
    folder.mkdir(parents=True)
    left = folder / f".{path.name}.1-2.tmp"
    left.write_bytes(b"half of it")
    flat_tokens(shards, folder)
    assert not left.exists()


def test_where_nothing_can_be_written_tokens_are_held_in_memory(
    shards: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    with caplog.at_level(logging.WARNING):
        flat = flat_tokens(shards, tmp_path / "file" / "tokens")
    assert_same(flat, flat_tokens(shards))
    assert "2 shards are held in memory" in caplog.text


def test_a_full_disk_leaves_nothing_behind(
    shards: list[Path], folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fill_the_disk(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(token_cache, "_write", fill_the_disk)
    assert_same(flat_tokens(shards, folder), flat_tokens(shards))
    assert "the disk is full" in caplog.text
    assert [path.name for path in folder.iterdir()] == [".lock"]


def test_a_missing_shard_is_an_error(shards: list[Path], folder: Path) -> None:
    shards[1].unlink()
    with pytest.raises(FileNotFoundError, match=r"two\.parquet"):
        flat_tokens(shards, folder)


def test_threads_that_ask_at_once_make_one_file(
    shards: list[Path], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO), ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: flat_tokens(shards, folder), range(8)))
    for flat in found:
        assert is_mapped(flat)
        assert_same(flat, flat_tokens(shards))
    assert caplog.text.count("laid 1151 tokens of 2 shards flat") == 1
    assert sorted(path.name for path in folder.iterdir()) == [".lock", flat_path(shards, folder).name]


@pytest.mark.slow
def test_processes_that_ask_at_once_make_one_file(shards: list[Path], folder: Path) -> None:
    code = (
        "import logging, pathlib, sys; from tasks.dataset.token_cache import flat_tokens;"
        "logging.basicConfig(level=logging.INFO, stream=sys.stdout);"
        "paths = [pathlib.Path(name) for name in sys.argv[1:]];"
        "print(int(flat_tokens(paths[1:], paths[0]).tokens.sum()))"
    )
    command = [sys.executable, "-c", code, str(folder), *map(str, shards)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate(timeout=60)[0] for process in running]
    total = str(int(flat_tokens(shards).tokens.sum()))
    assert [text.splitlines()[-1] for text in said] == [total] * 3
    assert "".join(said).count("laid 1151 tokens") == 1
