"""Tables of token ids for other programs: the published cut, its seed, and the way back through `train --tokens`."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.dataset.token_export import cut_windows, export_tokens
from tasks.dataset.token_table import read_token_table
from tasks.dataset.versions import DatasetVersion
from tasks.errors import ConfigError
from tasks.music.arrays import offsets_of
from tasks.music.tokenizers.registry import tokenizer_from_json
from tasks.training.token_dataset import TokenDataset

LENGTH = 60


def rows_of(offsets: np.ndarray, ids: np.ndarray) -> list[list[int]]:
    return [ids[a:b].tolist() for a, b in itertools.pairwise(offsets)]


def random_rows(lengths: list[int]) -> tuple[np.ndarray, np.ndarray]:
    ids = np.random.default_rng(3).integers(0, 400, sum(lengths)).astype(np.uint16)
    return offsets_of(lengths), ids


def test_two_windows_of_each_row_of_about_the_length() -> None:
    offsets, ids = random_rows([500, 61, 60, 59, 9, 2] * 50)
    rows, windows = rows_of(offsets, ids), rows_of(*cut_windows(offsets, ids, LENGTH, seed=0))
    assert len(windows) == 2 * len(rows)
    ahead = set()
    for row, anywhere, ending in zip(rows, windows[::2], windows[1::2], strict=True):
        begin = next(i for i in range(len(row)) if row[i : i + len(anywhere)] == anywhere)
        assert row[len(row) - len(ending) :] == ending
        for window in (anywhere, ending):
            assert LENGTH - LENGTH // 6 <= len(window) <= LENGTH + LENGTH // 6 or len(window) == len(row) <= LENGTH
        if len(row) == 500:
            ahead.add(begin)
            assert len(ending) <= LENGTH
    assert len(ahead) > 40  # windows are from anywhere
    long = windows[1::12]
    assert {len(window) for window in long} == set(range(LENGTH - LENGTH // 6, LENGTH + 1))


def test_what_is_drawn_depends_on_seed_and_row_alone() -> None:
    offsets, ids = random_rows([300] * 9)
    first = rows_of(*cut_windows(offsets, ids, LENGTH, seed=5))
    assert first == rows_of(*cut_windows(offsets, ids, LENGTH, seed=5))
    assert first != rows_of(*cut_windows(offsets, ids, LENGTH, seed=6))
    assert first[4:] == rows_of(*cut_windows(offsets[2:] - 600, ids[600:], LENGTH, seed=5))


@pytest.mark.parametrize("suffix", [".npy", ".pt", ".parquet"])
def test_the_table_is_read_again_as_it_was_cut(dataset: DatasetVersion, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"table{suffix}"
    facts = export_tokens(dataset, out, LENGTH, "train")
    again = tmp_path / f"again{suffix}"
    export_tokens(dataset, again, LENGTH, "train")
    assert out.read_bytes() == again.read_bytes()
    tokenizer = tokenizer_from_json(dataset.manifest["encoder"]["settings"])
    assert (facts["vocab_size"], facts["pad_id"], facts["end_id"]) == (416, tokenizer.pad_id, tokenizer.end_id)
    read = read_token_table(out, facts["vocab_size"], facts["pad_id"], facts["end_id"])
    store = TokenDataset(dataset.token_shards("train"))
    windows = rows_of(*cut_windows(store.offsets, store.tokens, LENGTH, 0))
    assert rows_of(read.offsets, read.ids) == windows
    assert facts["n_rows"] == 2 * dataset.manifest["splits"]["train"]["n_rows"]
    if suffix == ".parquet":
        assert len(np.unique(read.groups)) == dataset.manifest["splits"]["train"]["n_pieces"]
    assert all(window[-1] == tokenizer.end_id for window in windows[1::2])
    assert all(tokenizer.end_id not in window[:-1] for window in windows)


def test_whole_rows_of_all_splits(dataset: DatasetVersion, tmp_path: Path) -> None:
    facts = export_tokens(dataset, tmp_path / "all.npy", 0)
    assert facts["n_tokens"] == dataset.manifest["counts"]["n_tokens"]
    assert facts["n_rows"] == sum(part["n_rows"] for part in dataset.manifest["splits"].values())


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("x.csv", {}, "x.csv is not named as one of .npy .pt .parquet"),
        ("x.npy", {"split": "all"}, "--split all: known are train, validation, test"),
        ("none/x/y.npy", {}, "cannot write to"),
    ],
)
def test_mistakes(dataset: DatasetVersion, tmp_path: Path, name: str, settings: dict[str, Any], message: str) -> None:
    (tmp_path / "none").touch()
    with pytest.raises(ConfigError, match=message):
        export_tokens(dataset, tmp_path / name, LENGTH, **settings)
