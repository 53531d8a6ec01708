"""Batches depend on seed and step alone; windows keep to their rows; scoring counts every token once."""

import hashlib
import tempfile
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.registry import build_model
from tasks.storage.home import Home
from tasks.storage.parquet import TOKEN_SCHEMA, write_table
from tasks.training.batches import Batches
from tasks.training.token_dataset import TokenDataset, WindowKind
from tests.budget import examples
from tests.samples import SMALL_MODEL, short_training, small_corpus, small_dataset

START, END, PAD = 414, 415, 0
ROW_LENGTHS = (2, 3, 5, 9, 10, 17, 40, 64)
KINDS = get_args(WindowKind)


def write_rows(path: Path, rows: list[list[int]]) -> Path:
    write_table(path, pa.table({"tokens": pa.array(rows, TOKEN_SCHEMA.field("tokens").type)}))
    return path


def numbered_rows(lengths: tuple[int, ...]) -> list[list[int]]:
    """Rows in which every token but <start> and <end> is a number of its own, from 1 up."""
    numbers = iter(range(1, START))
    return [[START, *(next(numbers) for _ in range(length - 2)), END] for length in lengths]


@pytest.fixture(params=["in memory", "mapped"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> TokenDataset:
    rows = numbered_rows(ROW_LENGTHS)
    shards = [write_rows(tmp_path / "a.parquet", rows[:3]), write_rows(tmp_path / "b.parquet", rows[3:])]
    return TokenDataset(shards, tmp_path / "flat" if request.param == "mapped" else None)


def test_the_store_holds_the_rows_of_all_shards_in_order(store: TokenDataset) -> None:
    rows = [store.tokens[a:b].tolist() for a, b in zip(store.offsets[:-1], store.offsets[1:], strict=True)]
    assert rows == numbered_rows(ROW_LENGTHS)
    assert (store.n_rows, store.n_tokens) == (len(ROW_LENGTHS), sum(ROW_LENGTHS))


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_depends_on_seed_and_step_alone(store: TokenDataset, kind: WindowKind) -> None:
    first = store.batch(3, 7, 16, 12, kind=kind)
    for other_step in (8, 1, 1000):
        assert not np.array_equal(store.batch(3, other_step, 16, 12, kind=kind), first)
    assert not np.array_equal(store.batch(4, 7, 16, 12, kind=kind), first)
    np.random.default_rng(0).random(5)
    np.testing.assert_array_equal(store.batch(3, 7, 16, 12, kind=kind), first)
    assert first.shape == (16, 13)
    assert first.dtype == np.int64


def test_large_seeds_are_told_apart(store: TokenDataset) -> None:
    assert not np.array_equal(store.batch(2**63, 1, 16, 12), store.batch(2**63 + 1, 1, 16, 12))


# What a run that was begun with an earlier release still has to draw when it goes on.
DRAWN = {
    "random": "e74695adc63b8422",
    "whole": "a1bc0869bec8d083",
    "start": "676576e8f9a85c58",
    "end": "31aea8420e98ed9b",
    "packed": "eb58ff22a065ff54",
}


@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_what_they_always_were(store: TokenDataset, kind: WindowKind) -> None:
    drawn = np.concatenate([store.batch(3, step, 16, 12, kind=kind) for step in range(1, 9)])
    assert hashlib.sha256(drawn.astype("<i8").tobytes()).hexdigest()[:16] == DRAWN[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_a_share_is_the_same_rows_of_the_batch_and_lengths_are_those_of_all(
    store: TokenDataset, kind: WindowKind
) -> None:
    for step in range(1, 9):
        whole = store.batch(3, step, 16, 12, PAD, kind)
        for rank in range(3):
            share = slice(rank, None, 3)
            np.testing.assert_array_equal(store.batch(3, step, 16, 12, PAD, kind, share), whole[share])
        np.testing.assert_array_equal(store.lengths(3, step, 16, 12, kind), (whole != PAD).sum(axis=1))


@pytest.mark.parametrize("has_inner_pads", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_workers_count_the_targets_of_all_and_build_their_own_rows(
    tmp_path: Path, kind: WindowKind, has_inner_pads: bool
) -> None:
    rows = [[5, 6, PAD if has_inner_pads else 7, 8], [9, 10, 11, 12, 13], [14, 15]]
    store = TokenDataset([write_rows(tmp_path / "a.parquet", rows)])
    config = short_training(batch_size=6, seq_len=8, windows=kind)
    model = build_model(SMALL_MODEL, 16, PAD)
    (alone,) = [batch for _, batch in Batches(store, config, model, PAD).ahead(range(5, 6))]
    shares = [Batches(store, config, model, PAD, rank, 2).build(5) for rank in range(2)]
    for rank, share in enumerate(shares):
        assert share.tokens.tolist() == alone.tokens[rank::2].tolist()
        assert share.counts == alone.counts.share(2)
        assert share.n_tokens == alone.n_tokens == int((alone.tokens != PAD).sum())


def test_batches_come_in_order_and_an_error_reaches_the_step_it_belongs_to(tmp_path: Path) -> None:
    store = TokenDataset([write_rows(tmp_path / "a.parquet", [[5, 6, 7, 8], [9, 10]])])
    batches = Batches(store, short_training(seq_len=8), build_model(SMALL_MODEL, 16, PAD), PAD)
    expected = [batches.build(step).tokens.tolist() for step in (2, 3, 4)]
    found = dict(batches.ahead(range(2, 5)))
    assert list(found) == [2, 3, 4]
    assert [batch.tokens.tolist() for batch in found.values()] == expected
    assert not list(batches.ahead(range(5, 5)))
    store.offsets = store.offsets[:0]
    with pytest.raises(IndexError):
        next(batches.ahead(range(1, 3)))


def test_a_kind_that_is_none_is_refused(store: TokenDataset) -> None:
    with pytest.raises(ValueError, match="kind 'middle'; known: random, whole, start, end, packed"):
        store.batch(0, 1, 4, 8, kind="middle")  # type: ignore[arg-type]


def test_shards_without_a_token_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no token in 1 shards .*a\.parquet"):
        TokenDataset([write_rows(tmp_path / "a.parquet", [])])


@pytest.mark.slow
def test_another_store_of_the_same_shards_gives_the_same_batches(home: Home, tmp_path: Path) -> None:
    dataset = small_dataset(home, small_corpus(tmp_path / "midi", 6))
    shards = dataset.token_shards("train")
    one, other = TokenDataset(shards), TokenDataset(shards)
    for step in range(1, 6):
        np.testing.assert_array_equal(one.batch(0, step, 4, 64), other.batch(0, step, 4, 64))


@pytest.mark.parametrize("seq_len", [8, 12, 63, 100])
def test_windows_lie_inside_one_row_and_pads_stand_at_the_end(store: TokenDataset, seq_len: int) -> None:
    rows = [[*row, *[PAD] * seq_len] for row in numbered_rows(ROW_LENGTHS)]
    allowed = set()
    for row, length in zip(rows, ROW_LENGTHS, strict=True):
        for start in range(max(length - seq_len - 1, 0) + 1):
            allowed.add(tuple(row[start : start + seq_len + 1]))
    drawn = {tuple(row) for step in range(60) for row in store.batch(0, step, 16, seq_len).tolist()}
    assert drawn <= allowed
    assert all(row[0] == START for row in drawn if PAD in row)  # short rows begin at their beginning


@pytest.mark.parametrize("kind", ["random", "whole", "start", "end"])
def test_start_and_end_occur_only_where_a_piece_starts_or_ends(store: TokenDataset, kind: WindowKind) -> None:
    for step in range(40):
        for row in store.batch(1, step, 16, 10, kind=kind):
            assert START not in row[1:]
            places = np.flatnonzero(row == END)
            assert len(places) <= 1
            assert not row[places[0] + 1 :].any() if len(places) else (row != PAD).all()


def test_tokens_beyond_the_windows_are_counted(store: TokenDataset) -> None:
    lengths = np.diff(store.offsets)
    assert store.longest_row == lengths.max() - 1
    for seq_len in (3, 8, 100):
        beyond = sum(max(int(length) - seq_len - 1, 0) for length in lengths)
        assert store.n_out_of_reach(seq_len, "whole") == store.n_out_of_reach(seq_len, "end") == beyond
        assert store.n_out_of_reach(seq_len, "random") == store.n_out_of_reach(seq_len, "packed") == 0
        windows = [len(tokens) for tokens, _ in store.sequential_windows(seq_len, seq_len, 3)]
        assert store.n_sequential_windows(seq_len, seq_len) == sum(windows)


def padded(row: list[int], length: int) -> tuple[int, ...]:
    return (*row, *[PAD] * (length - len(row)))


@pytest.mark.parametrize("seq_len", [8, 16, 100])
@pytest.mark.parametrize("kind", ["start", "end"])
def test_first_and_last_windows_of_rows_are_drawn_evenly(store: TokenDataset, kind: WindowKind, seq_len: int) -> None:
    length = seq_len + 1
    part = slice(None, length) if kind == "start" else slice(-length, None)
    expected = {padded(row[part], length) for row in numbered_rows(ROW_LENGTHS)}
    drawn = np.concatenate([store.batch(0, step, 32, seq_len, kind=kind) for step in range(100)])
    found, counts = np.unique(drawn, axis=0, return_counts=True)
    assert {tuple(row) for row in found.tolist()} == expected
    np.testing.assert_allclose(counts, 3200 / len(ROW_LENGTHS), atol=5 * np.sqrt(3200 / len(ROW_LENGTHS)))


@pytest.mark.parametrize("batch_size", [1, 3, 8, 20])
def test_whole_rows_come_once_in_each_epoch(store: TokenDataset, batch_size: int) -> None:
    n_epochs, n_rows = 15, len(ROW_LENGTHS)
    n_steps = -(-n_epochs * n_rows // batch_size)
    drawn = np.concatenate([store.batch(2, step, batch_size, 30, kind="whole") for step in range(1, n_steps + 1)])
    expected = sorted(padded(row[:31], 31) for row in numbered_rows(ROW_LENGTHS))
    epochs = drawn[: n_epochs * n_rows].reshape(n_epochs, n_rows, 31)
    for epoch in epochs.tolist():
        assert sorted(map(tuple, epoch)) == expected
    assert len({epoch.tobytes() for epoch in epochs}) > 1  # not the same order each time


@pytest.mark.slow
@examples(60)
@given(
    lengths=st.lists(st.integers(2, 40), min_size=1, max_size=9),
    seq_len=st.integers(1, 60),
    batch_size=st.integers(1, 7),
    seed=st.integers(0, 3),
)
def test_packed_windows_hold_whole_rows_end_to_end(
    lengths: list[int], seq_len: int, batch_size: int, seed: int
) -> None:
    rows = numbered_rows(tuple(lengths))
    with tempfile.TemporaryDirectory() as folder:
        store = TokenDataset([write_rows(Path(folder) / "a.parquet", rows)])
    n_windows = -(-store.n_tokens // seq_len)
    n_steps = -(-n_windows // batch_size)
    batches = [store.batch(seed, step, batch_size, seq_len, kind="packed") for step in range(1, n_steps + 1)]
    for tokens in batches:
        assert tokens.shape == (batch_size, seq_len + 1)
        for window in tokens:
            parts = np.split(window, np.flatnonzero(window[1:] == START) + 1)
            for place, part in enumerate(parts):
                row = next(row for row in rows if _position(row, part.tolist()) is not None)
                assert place == 0 or part[0] == row[0] == START
                assert place == len(parts) - 1 or part[-1] == row[-1] == END
                assert place in (0, len(parts) - 1) or part.tolist() == row
    epoch = np.concatenate(batches)[:n_windows]
    counts = np.bincount(epoch[:, 1:].ravel(), minlength=END + 1)
    expected = np.bincount(np.concatenate(rows), minlength=END + 1)
    n_twice = n_windows * seq_len - store.n_tokens  # the last window runs on into the first row
    assert (counts >= expected).all()
    assert counts.sum() - expected.sum() == n_twice < seq_len


def test_packed_windows_of_a_batch_come_from_all_over_the_epoch(tmp_path: Path) -> None:
    store = TokenDataset([write_rows(tmp_path / "a.parquet", [[START, number, END] for number in range(1, 400)])])
    batch = store.batch(0, 1, 16, 11, kind="packed")  # four rows each
    assert len(np.unique(batch[batch < START])) > 16 * 3


def test_every_token_of_every_row_is_reached(store: TokenDataset) -> None:
    seen = np.unique(np.concatenate([store.batch(0, step, 32, 12).ravel() for step in range(200)]))
    assert set(seen.tolist()) == {PAD, *store.tokens.tolist()}


def test_rows_are_drawn_in_proportion_to_their_length(store: TokenDataset) -> None:
    row_of_token = dict(
        zip(store.tokens.tolist(), np.repeat(np.arange(store.n_rows), ROW_LENGTHS).tolist(), strict=True)
    )
    first_inner = np.concatenate([store.batch(5, step, 64, 8)[:, 1] for step in range(400)])
    inner = first_inner[first_inner < START]  # a row of two tokens has only <start> and <end>
    counts = np.bincount([row_of_token[token] for token in inner.tolist()], minlength=store.n_rows)
    expected = np.array(ROW_LENGTHS) / sum(ROW_LENGTHS) * len(first_inner)
    np.testing.assert_allclose(counts[1:], expected[1:], atol=5 * np.sqrt(expected.max()))


def test_beginnings_and_ends_are_not_starved(tmp_path: Path) -> None:
    store = TokenDataset([write_rows(tmp_path / "a.parquet", numbered_rows((400,)))])
    batches = np.concatenate([store.batch(0, step, 64, 40) for step in range(100)])
    share_of_starts, share_of_ends = (batches[:, 0] == START).mean(), (batches[:, -1] == END).mean()
    # 360 inner starts and 20 more for each of the two ends: (20 + 1) / 400 each
    assert share_of_starts == pytest.approx(21 / 400, rel=0.25)
    assert share_of_ends == pytest.approx(21 / 400, rel=0.25)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_the_workers_slices_make_up_the_global_batch(store: TokenDataset, world_size: int) -> None:
    # Each worker draws the whole batch by itself and takes every world_size-th row.
    whole = store.batch(0, 3, 8, 12)
    slices = [store.batch(0, 3, 8, 12)[rank::world_size] for rank in range(world_size)]
    joined = np.empty_like(whole)
    for rank, part in enumerate(slices):
        assert len(part) == 8 // world_size
        joined[rank::world_size] = part
    np.testing.assert_array_equal(joined, whole)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize(("seq_len", "stride"), [(8, 4), (8, 8), (8, 1), (9, 4), (16, 5), (63, 31), (200, 100)])
def test_scoring_counts_every_target_once_with_enough_before_it(
    store: TokenDataset, seq_len: int, stride: int, batch_size: int
) -> None:
    place_of = {
        (token, int(row)): (int(row), place)
        for row in range(store.n_rows)
        for place, token in enumerate(store.tokens[store.offsets[row] : store.offsets[row + 1]].tolist())
    }
    rows = numbered_rows(ROW_LENGTHS)
    counted: dict[tuple[int, int], int] = {}
    for tokens, mask in store.sequential_windows(seq_len, stride, batch_size, PAD):
        assert tokens.shape == mask.shape == (len(tokens), seq_len + 1)
        assert len(tokens) <= batch_size
        for window, chosen in zip(tokens.tolist(), mask.tolist(), strict=True):
            real = [token for token in window if token != PAD]
            assert window == real + [PAD] * (len(window) - len(real))
            row = next(index for index, whole in enumerate(rows) if _position(whole, real) is not None)
            start = _position(rows[row], real)
            assert start is not None
            for place, is_counted in enumerate(chosen):
                if is_counted:
                    _, at = place_of[window[place], row]
                    assert at == start + place
                    assert place >= min(at, seq_len - stride)  # tokens before it in its window
                    counted[row, at] = counted.get((row, at), 0) + 1
    assert counted == {(row, place): 1 for row, length in enumerate(ROW_LENGTHS) for place in range(1, length)}


def _position(row: list[int], window: list[int]) -> int | None:
    """Return where `window` stands in `row`; the numbers of `numbered_rows` make that unique, but for [start, end]."""
    starts = [start for start in range(len(row) - len(window) + 1) if row[start : start + len(window)] == window]
    return starts[0] if starts else None


@pytest.mark.parametrize("stride", [0, 9])
def test_a_stride_that_would_leave_tokens_out_is_refused(store: TokenDataset, stride: int) -> None:
    with pytest.raises(ValueError, match=f"stride={stride} outside 1-8"):
        next(store.sequential_windows(8, stride, 4))


def test_scoring_windows_end_where_the_row_ends(store: TokenDataset) -> None:
    n_windows = sum(len(tokens) for tokens, _ in store.sequential_windows(8, 4, 16))
    # (length - 9) / 4 further windows, rounded up, after the first
    assert n_windows == sum(1 + max(0, -(-(length - 9) // 4)) for length in ROW_LENGTHS)
