"""Token shards are written as measured, a reader can skip what it does not want, and every library opens them."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.storage.parquet import TOKEN_SCHEMA, TOKENS_PER_GROUP, list_column, write_table

N_PIECES, VARIANTS, LENGTH = 40, 25, 3000


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    n_rows = N_PIECES * VARIANTS
    ids = np.random.default_rng(0).integers(0, 1 << 16, n_rows * LENGTH).astype(np.uint16)
    columns = {
        "piece": [f"{number // VARIANTS:016x}" for number in range(n_rows)],
        "window": [0] * n_rows,
        "transposition": [0] * n_rows,
        "stretch": [1.0] * n_rows,
        "velocity_shift": [0] * n_rows,
        "redraws_parts": [False] * n_rows,
        "n_tokens": [LENGTH] * n_rows,
        "n_notes": [1] * n_rows,
        "seconds": [1.0] * n_rows,
        "tokens": list_column(np.arange(0, len(ids) + 1, LENGTH, np.int64), ids, TOKEN_SCHEMA.field("tokens").type),
    }
    path = tmp_path_factory.mktemp("shards") / "tokens.parquet"
    write_table(path, pa.table(columns, schema=TOKEN_SCHEMA), None, TOKEN_SCHEMA)
    return path, ids.reshape(n_rows, LENGTH)


def test_ids_lie_plain_in_32_bits_and_none_is_null(shard: tuple[Path, np.ndarray]) -> None:
    with pq.ParquetFile(shard[0]) as file:
        leaf = next(
            number for number in range(len(file.schema)) if file.schema.column(number).path == "tokens.list.element"
        )
        column = file.metadata.row_group(0).column(leaf)
        assert (column.physical_type, column.compression) == ("INT32", "ZSTD")
        assert set(column.encodings) == {"RLE", "PLAIN"}  # RLE: where lists begin
        assert file.schema.column(leaf).max_definition_level == 1  # of the list, which may be empty


def test_groups_hold_half_a_million_tokens_and_say_which_pieces_are_in_them(shard: tuple[Path, np.ndarray]) -> None:
    metadata = pq.read_metadata(shard[0])
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    assert all(group.num_rows * LENGTH <= TOKENS_PER_GROUP for group in groups)
    assert len(groups) == -(-N_PIECES * VARIANTS // (TOKENS_PER_GROUP // LENGTH))
    ranges = [group.column(0).statistics for group in groups]
    assert all(one.max <= other.min for one, other in pairwise(ranges))
    wanted = f"{N_PIECES - 1:016x}"
    assert sum(one.min <= wanted <= one.max for one in ranges) == 1


@pytest.mark.parametrize("library", ["pandas", "duckdb", "polars"])
def test_other_libraries_see_lists_of_the_same_ids(shard: tuple[Path, np.ndarray], library: str) -> None:
    module = pytest.importorskip(library)
    path, expected = str(shard[0]), shard[1]
    if library == "duckdb":
        rows = module.execute("select tokens from read_parquet(?)", [path]).fetchnumpy()["tokens"]
    else:
        rows = module.read_parquet(path, columns=["tokens"])["tokens"].to_list()
    np.testing.assert_array_equal(np.array([np.asarray(row) for row in rows]), expected)
