"""Tables of token ids from other programs: the same dataset from every kind of file, and what is wrong in one line."""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tasks.config.dataset import DatasetConfig
from tasks.config.presets import build_preset
from tasks.dataset.changes import diff_versions
from tasks.dataset.text import dataset_text
from tasks.dataset.token_export import export_tokens
from tasks.dataset.token_table import plan_token_dataset, read_token_table
from tasks.dataset.upkeep import verify_version
from tasks.dataset.versions import DatasetVersion, resolve_dataset
from tasks.errors import ConfigError, DatasetError, NotFound
from tasks.storage.home import Home
from tasks.storage.parquet import read_table
from tasks.training.job import check_model
from tasks.training.token_dataset import TokenDataset

N_IDS = 20


def some_rows(n_rows: int = 40, length: int = 6) -> np.ndarray:
    return np.random.default_rng(0).integers(1, N_IDS, (n_rows, length))


def publish(home: Home, path: Path, **ids: Any) -> DatasetVersion:
    return plan_token_dataset(home, path, read_token_table(path, N_IDS, **ids), DatasetConfig()).publish(home)


def write_as(path: Path, rows: np.ndarray) -> Path:
    """Write rows in the form that a file's name asks for; `lists` and `columns` are the two of Parquet."""
    if path.suffix == ".npy":
        np.save(path, rows)
    elif path.suffix == ".pt":
        torch.save(torch.from_numpy(rows), path)
    elif "lists" in str(path):
        pq.write_table(pa.table({"ids": rows.tolist()}), path)
    else:
        pq.write_table(pa.table({f"at_{i}": rows[:, i] for i in range(rows.shape[1])}), path)
    return path


def rows_in(dataset: DatasetVersion) -> dict[str, list[tuple[int, ...]]]:
    found = {}
    for split in ("train", "validation", "test"):
        store = TokenDataset(dataset.token_shards(split))
        found[split] = [
            tuple(store.tokens[a:b].tolist()) for a, b in zip(store.offsets, store.offsets[1:], strict=False)
        ]
    return found


def test_every_kind_of_file_gives_the_same_version(home: Home, tmp_path: Path) -> None:
    rows, found = some_rows(), []
    for kind, dtype in (("npy", ">i4"), ("pt", "i2"), ("lists.parquet", "i8"), ("columns.parquet", "u1")):
        folder = tmp_path / kind
        folder.mkdir()
        path = folder / f"table.{kind.rpartition('.')[2]}"
        found.append(publish(home, write_as(path, rows.astype(dtype))))
    assert {dataset.reference for dataset in found} == {found[0].reference}
    assert found[0].name == "table-tokens"
    parts = rows_in(found[0])
    assert sorted(row for split in parts.values() for row in split) == sorted(map(tuple, rows.tolist()))
    assert all(parts.values())


def test_equal_rows_are_in_one_split_and_the_ledger_has_every_row(home: Home, tmp_path: Path) -> None:
    rows = some_rows(30)
    dataset = publish(home, write_as(tmp_path / "twice.npy", np.concatenate([rows, rows])))
    parts = rows_in(dataset)
    assert not set(parts["train"]) & {*parts["validation"], *parts["test"]}
    ledger = read_table(dataset.ledger)
    assert ledger.num_rows == dataset.manifest["counts"]["n_files"] == 60
    assert ledger["split"].to_pylist()[:30] == ledger["split"].to_pylist()[30:]
    assert dataset.manifest["groups"] == {"n_groups": 30, "largest": 2}
    with pytest.raises(DatasetError, match="holds token ids and no songs"):
        dataset_text(dataset)
    assert verify_version(dataset) == []


def test_pads_at_the_end_are_left_out_and_the_end_id_ends_a_row(home: Home, tmp_path: Path) -> None:
    rows = np.zeros((10, 8), np.int64)
    for row in range(10):
        rows[row, : 3 + row % 4] = [1 + row, *[5] * (1 + row % 4), 19]
    dataset = publish(home, write_as(tmp_path / "padded.npy", rows), pad_id=0, end_id=19)
    found = [row for split in rows_in(dataset).values() for row in split]
    assert sorted(found) == sorted(tuple(row[row != 0].tolist()) for row in rows)
    assert dataset.manifest["encoder"]["settings"]["vocab_size"] == N_IDS
    assert publish(home, tmp_path / "padded.npy").manifest["encoder"]["settings"]["vocab_size"] == N_IDS + 1


def test_rows_of_one_piece_are_in_one_split(home: Home, tmp_path: Path) -> None:
    rows, names = some_rows(60), [f"piece {row % 12}" for row in range(60)]
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table({"piece": names, "ids": rows.tolist()}), path)
    dataset = publish(home, path)
    ledger = read_table(dataset.ledger).to_pydict()
    splits = {(names[row], split) for row, split in enumerate(ledger["split"])}
    assert len(splits) == dataset.manifest["groups"]["n_groups"] == 12
    assert len(set(ledger["content_hash"])) == 60
    assert dataset.version != publish(home, write_as(tmp_path / "table.npy", rows)).version


def test_a_changed_row_is_another_version_of_the_same_dataset(home: Home, tmp_path: Path) -> None:
    rows = some_rows()
    old = publish(home, write_as(tmp_path / "table.npy", rows))
    rows[3, 3] = rows[3, 3] % 19 + 1
    new = publish(home, write_as(tmp_path / "table.npy", rows))
    assert resolve_dataset(home, "table-tokens").version == new.version != old.version
    assert diff_versions(old, new)["n_changed"] == 1
    assert new.manifest["changes"]["previous"] == old.version


@pytest.mark.parametrize("preset", ["music_transformer_tiny", "rga_tiny", "char_gpt_tiny", "orchestrion_small_tiny"])
def test_a_model_of_every_decoder_preset_fits(home: Home, tmp_path: Path, preset: str) -> None:
    check_model(build_preset(preset).train, publish(home, write_as(tmp_path / "table.npy", some_rows())))


def saved(value: Any) -> bytes:
    handle = io.BytesIO()
    torch.save(value, handle)
    return handle.getvalue()


def array(value: Any) -> bytes:
    handle = io.BytesIO()
    np.save(handle, np.asarray(value), allow_pickle=True)
    return handle.getvalue()


def parquet(names: list[str] | None = None, /, **columns: Any) -> bytes:
    handle, table = io.BytesIO(), pa.table(columns)
    pq.write_table(table.rename_columns(names or table.column_names), handle)
    return handle.getvalue()


BAD = [
    ("x.npy", b"", {}, "the file is empty"),
    ("x.npy", b"[[1, 2]]", {}, "no array in NumPy's format"),
    ("x.npy", array(some_rows())[:-9], {}, "no array in NumPy's format"),
    ("x.npy", array([[{}, 1]]), {}, "no array in NumPy's format: Object arrays cannot be loaded"),
    ("x.npy", array(some_rows() / 2), {}, "expected integers, found float64"),
    ("x.npy", array(some_rows() > 3), {}, "expected integers, found bool"),
    ("x.npy", array(some_rows()[0]), {}, r"expected a table of two dimensions, found 1, of shape (6,)"),
    ("x.npy", array(some_rows(1)), {}, "1 different row; at least 3 are needed, one each for train, validation, test"),
    ("x.npy", array([[1, 2]] * 9), {}, "1 different row; at least 3 are needed"),
    ("x.npy", array(np.zeros((0, 4), int)), {}, "0 different rows; at least 3 are needed"),
    ("x.npy", array([[1, 2], [3, -4]]), {}, "row 1, position 1 holds -4, outside 0-19, the ids of --vocab-size 20"),
    ("x.npy", array([[1, 2], [20, 4]]), {}, "row 1, position 0 holds 20, outside 0-19"),
    ("x.npy", array([[1, 2], [0, 0]]), {"pad_id": 0}, "row 1 has 0 ids besides pads; a row needs 2 at least"),
    ("x.npy", array([[1], [2]]), {}, "row 0 has 1 id besides pads"),
    ("x.npy", array([[1, 9, 2], [3, 4, 9]]), {"end_id": 9}, "row 0, position 1 is the end id 9, but the row goes on"),
    ("x.pt", saved({"ids": 1}), {}, "expected one dense tensor, found dict"),
    ("x.pt", saved(Path("x")), {}, "no tensor that torch reads with weights_only=True"),
    ("x.pt", pickle.dumps(Home), {}, "no tensor that torch reads with weights_only=True"),
    ("x.pt", saved(torch.rand(4, 4).bfloat16()), {}, "expected integers, found bfloat16"),
    ("x.pt", saved(torch.eye(4, dtype=torch.int64).to_sparse()), {}, "one dense tensor, found torch.sparse_coo"),
    ("x.pt", saved(torch.ones(4, 4, dtype=torch.int64, device="meta")), {}, "dense tensor, found no values"),
    ("x.parquet", b"PAR1", {}, "no Parquet file"),
    ("x.parquet", parquet(a=[1.5]), {}, "or columns of integers, found a: double"),
    ("x.parquet", parquet(a=[[1]], b=[[1]]), {}, "found a: list<element: int64>, b: list<element: int64>"),
    ("x.parquet", parquet(a=[[1, None]]), {}, "it holds nulls"),
    ("x.parquet", parquet(a=[[1, 2], None]), {}, "it holds nulls"),
    ("x.parquet", parquet(a=[[1, 2], [3, 4]], piece=["x", None]), {}, "it holds nulls"),
    ("x.parquet", parquet(a=[[1, 2], [3, 4]], piece=["x", "x"]), {}, "1 piece; at least 3 are needed"),
    ("x.parquet", parquet(["piece"] * 2, a=["x"], b=["x"]), {}, "several columns are named piece"),
    ("x.parquet", parquet(a=[1, 2], piece=[3, 4]), {}, "the column piece holds int64, not names"),
    ("x.pt", saved(torch.ones(4, 4, dtype=torch.bool)), {}, "expected integers, found bool"),
    ("x.parquet", parquet(a=[[1, 2], [], [3, 4]]), {}, "row 1 has 0 ids besides pads"),
    ("x.csv", b"1,2", {}, "x.csv is not named as one of .npy .pt .parquet"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "data", "ids", "message"), BAD)
def test_what_is_wrong_with_a_table_is_said_in_one_line(
    tmp_path: Path, name: str, data: bytes, ids: dict[str, int], message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        read_token_table(path, N_IDS, **ids)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_exported_table_without_an_end_id_has_none(home: Home, tmp_path: Path) -> None:
    version = publish(home, write_as(tmp_path / "x.npy", some_rows()))
    facts = export_tokens(version, tmp_path / "back.npy", 0)
    assert (facts["vocab_size"], facts["pad_id"], facts["end_id"]) == (N_IDS + 1, N_IDS, None)
    read = read_token_table(tmp_path / "back.npy", N_IDS + 1, facts["pad_id"], facts["end_id"])
    assert read.n_rows == len(some_rows())


@pytest.mark.parametrize(
    ("vocab_size", "pad_id", "end_id", "message"),
    [
        (1, None, None, "vocabulary size 1 is outside 2-65535, the sizes of a table without a pad id"),
        (65_537, 0, None, "vocabulary size 65537 is outside 2-65536"),
        (20, 20, None, "pad id 20 is outside 0-19"),
        (20, None, -1, "end id -1 is outside 0-19"),
        (20, 3, 3, "id 3 is both pad and end"),
    ],
)
def test_impossible_vocabularies_are_refused(
    tmp_path: Path, vocab_size: int, pad_id: int | None, end_id: int | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        read_token_table(write_as(tmp_path / "x.npy", some_rows()), vocab_size, pad_id, end_id)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="cannot read"):
        read_token_table(tmp_path / "x.npy", N_IDS)
