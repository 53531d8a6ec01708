"""How are token shards best written? Encodings, codecs, types and row groups of one real shard, in turns.

    PYTHONPATH=. python bench/bench_shards.py --source some/folder

The shard holds the pieces of the source in `oore` with the default augmentation, in the order of `encode.py`.
Every way writes to memory, so that no disk is measured; rates are tokens for each second of one core. The ratio is the
chosen way's write rate over that of pyarrow's defaults. Whether DuckDB and Polars open each file is seen where they
are installed; they are no dependencies:

    pip install --target /tmp/bench-site duckdb polars
    PYTHONPATH=.:/tmp/bench-site python bench/bench_shards.py --source some/folder
"""

import hashlib
import io
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import report

from tasks.config.dataset import AugmentConfig
from tasks.errors import BadScore
from tasks.music.arrays import offsets_of
from tasks.music.midi.read_midi import read_midi
from tasks.music.notes import NoteBatch
from tasks.music.tokenizers.oore import OoreTokenizer
from tasks.music.transforms import stretch_time
from tasks.storage.parquet import TOKEN_SCHEMA, write_table

PACKAGES = ("pyarrow", "numpy", "pandas", "duckdb", "polars")
SCALARS = (
    "piece",
    "transposition",
    "stretch",
    "n_tokens",
    "n_notes",
    "seconds",
)  # a few bytes a row, whatever they are
CODECS = (("none", None), ("lz4", None), ("snappy", None), ("zstd", -5), ("zstd", 1), ("zstd", 3))
ENCODINGS = ("PLAIN", "DELTA_BINARY_PACKED", "BYTE_STREAM_SPLIT", "dictionary")
CHOSEN = "PLAIN, zstd 3"
GROUP_TOKENS = 1 << 19


def lists_of(kind: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("element", kind, nullable=False))


LISTS = lists_of(pa.uint16())


@dataclass(frozen=True, slots=True)
class Way:
    """One way to write the shard: the type of the column of tokens, and what `pyarrow.parquet.write_table` is told."""

    kind: pa.DataType = LISTS
    group_tokens: int = GROUP_TOKENS
    options: dict[str, Any] = field(default_factory=dict)


def encoded(encoding: str, codec: str = "zstd", level: int | None = 3, **more: Any) -> dict[str, Any]:
    """Return write options; columns of a few bytes a row are always written alike."""
    leaf = "tokens.list.element"
    compression = dict.fromkeys(SCALARS, "zstd") | {leaf: codec, "tokens": codec}
    levels = dict.fromkeys(SCALARS, 1) | ({} if level is None else {leaf: level, "tokens": level})
    options = {"compression": compression, "compression_level": levels, "write_statistics": list(SCALARS)} | more
    if encoding == "dictionary":
        return options | {"use_dictionary": ["piece", leaf]}
    return options | {"use_dictionary": ["piece"], "column_encoding": {leaf: encoding}}


def ways() -> dict[str, Way]:
    """Return all ways by name; those that do not name a part have it as the chosen one does."""
    found = {}
    for encoding in ENCODINGS:
        for codec, level in CODECS:
            name = f"{encoding}, {codec}{'' if level is None else f' {level}'}"
            found[name] = Way(options=encoded(encoding, codec, level))
    two_bytes = lists_of(pa.binary(2))
    return found | {
        "elements may be null": Way(kind=pa.list_(pa.uint16()), options=encoded("PLAIN")),
        "lists of 2 bytes": Way(kind=two_bytes, options=encoded("PLAIN")),
        "lists of 2 bytes, BYTE_STREAM_SPLIT": Way(kind=two_bytes, options=encoded("BYTE_STREAM_SPLIT")),
        "binary": Way(kind=pa.binary(), options=encoded("PLAIN", use_dictionary=["piece"], column_encoding=None)),
        **{
            f"groups of {n >> 10}Ki tokens": Way(group_tokens=n, options=encoded("PLAIN"))
            for n in (1 << 17, 1 << 20, 1 << 22)
        },
        "one group": Way(group_tokens=1 << 40, options=encoded("PLAIN")),
        "pages of 256 KiB": Way(options=encoded("PLAIN", data_page_size=1 << 18)),
        "pages of 4 MiB": Way(options=encoded("PLAIN", data_page_size=1 << 22)),
        "without statistics": Way(options=encoded("PLAIN", write_statistics=False)),
        "statistics of tokens too": Way(options=encoded("PLAIN", write_statistics=True)),
        "page index": Way(options=encoded("PLAIN", write_page_index=True)),
        "pyarrow's defaults": Way(kind=pa.list_(pa.uint16()), group_tokens=1 << 40),
    }


def main() -> None:
    options = report.parser(__doc__.splitlines()[0], rounds=3)
    options.add_argument("--tokens", type=int, default=20_000_000, help="tokens in the shard, at most")
    options.add_argument("--plain", action="store_true", help="without augmentation, as held-out shards are")
    given = options.parse_args()
    with report.source_folder(given.source) as folder:
        columns, ids, lengths = read_rows(report.midi_files(folder), given.tokens, given.plain)
        name = f"{folder.name}, not augmented" if given.plain else folder.name
    record = compare(columns, ids, lengths, given.rounds)
    report.save("shards", name, record, given.results, PACKAGES)
    print(markdown(record))


def read_rows(
    files: Sequence[Path], max_tokens: int, plain: bool
) -> tuple[dict[str, pa.Array], np.ndarray, np.ndarray]:
    """Return the rows of a shard: all columns but the tokens, these end to end, and their number in each row."""
    augment = AugmentConfig(transpositions=(0,), stretches=(1.0,)) if plain else AugmentConfig()
    pieces = {}
    for path in report.spread(files, 300):
        data = path.read_bytes()
        try:
            pieces[hashlib.sha256(data).hexdigest()[:16]] = read_midi(data)
        except BadScore:
            continue
    names = sorted(pieces)
    batch = NoteBatch.joined([pieces[name].notes for name in names])
    tokenizer = OoreTokenizer()
    encodings = {stretch: tokenizer.encode(stretch_time(batch, stretch)) for stretch in augment.stretches}
    rows, parts, n_tokens = [], [], 0
    for place, name in enumerate(names):
        for stretch, tokens in sorted(encodings.items()):
            ids = tokens.ids[tokens.offsets[place] : tokens.offsets[place + 1]]
            for semitones in augment.transpositions:
                moved = tokenizer.transpose_ids(ids, semitones)
                if moved is None or n_tokens + len(moved) > max_tokens:
                    continue
                n_tokens += len(moved)
                parts.append(moved)
                rows.append((name, semitones, stretch, len(moved), tokens.n_notes[place], tokens.seconds[place]))
    columns = {
        name: pa.array(np.array(values), TOKEN_SCHEMA.field(name).type)
        for name, values in zip(SCALARS, zip(*rows, strict=True), strict=True)
    }
    return columns, np.concatenate(parts), np.array([len(part) for part in parts])


def compare(columns: dict[str, pa.Array], ids: np.ndarray, lengths: np.ndarray, rounds: int) -> dict[str, Any]:
    """Write and read the shard in all ways and return what came of it."""
    every = ways()
    tables = {kind: table_of(columns, ids, lengths, kind) for kind in {way.kind for way in every.values()}}
    files: dict[str, bytes] = {}
    sides: dict[str, Callable[[], Any]] = {
        name: partial(write, files, name, way, tables[way.kind], len(ids) / len(lengths)) for name, way in every.items()
    }
    with tempfile.TemporaryDirectory(prefix="orchestrion-bench-") as folder:
        ours = Path(folder) / "ours.parquet"
        tables["ours"] = table_of(columns, ids, lengths, TOKEN_SCHEMA.field("tokens").type)
        sides["tasks/storage/parquet.py, to disk"] = partial(
            write_table, ours, tables["ours"], None, tables["ours"].schema
        )
        written = report.measure(sides, rounds)
        files["tasks/storage/parquet.py, to disk"] = ours.read_bytes()
        read = report.measure({name: partial(read_tokens, files[name]) for name in sides}, rounds)
        found = {
            name: {
                "bytes_per_token": round(len(files[name]) / len(ids), 3),
                "write_tokens_per_second": round(len(ids) / median(written[name].cpu)),
                "read_tokens_per_second": round(len(ids) / median(read[name].cpu)),
                **facts_of(files[name], Path(folder) / "one.parquet"),
            }
            for name in sides
        }
    chosen, default = (found[name]["write_tokens_per_second"] for name in (CHOSEN, "pyarrow's defaults"))
    return {
        "ratio": round(chosen / default, 2),
        "ratio_means": f"tokens/s written as `{CHOSEN}` over pyarrow's defaults",
        "tokens": len(ids),
        "rows": len(lengths),
        "rounds": rounds,
        "ways": found,
    }


def table_of(columns: dict[str, pa.Array], ids: np.ndarray, lengths: np.ndarray, kind: pa.DataType) -> pa.Table:
    """Return the shard with its tokens as a column of this type."""
    offsets, data = pa.array(offsets_of(lengths), pa.int32()), pa.py_buffer(ids.astype("<u2"))
    if pa.types.is_binary(kind):
        in_bytes = pa.py_buffer(offsets_of(2 * lengths).astype(np.int32))
        tokens: pa.Array = pa.BinaryArray.from_buffers(kind, len(lengths), [None, in_bytes, data])
    else:
        values = pa.Array.from_buffers(kind.value_type, len(ids), [None, data])
        tokens = pa.ListArray.from_arrays(offsets, values, type=kind)
    return pa.table({**columns, "tokens": tokens})


def write(files: dict[str, bytes], name: str, way: Way, table: pa.Table, mean_tokens: float) -> None:
    sink = io.BytesIO()
    n_rows = max(1, min(round(way.group_tokens / mean_tokens), table.num_rows))
    pq.write_table(table, sink, row_group_size=n_rows, **way.options)
    files[name] = sink.getvalue()


def read_tokens(data: bytes) -> pa.Table:
    return pq.read_table(io.BytesIO(data), columns=["tokens"], use_threads=False, pre_buffer=False)


def facts_of(data: bytes, path: Path) -> dict[str, Any]:
    """Return what a file holds, what it costs to stream it or to fetch one piece, and which libraries open it."""
    path.write_bytes(data)
    with pq.ParquetFile(path, pre_buffer=False) as file:  # else all of the column is fetched at once
        column = file.metadata.row_group(0).column(len(SCALARS))
        logical = file.schema.column(len(SCALARS)).logical_type
        held = 0
        for batch in file.iter_batches(64, columns=["tokens"], use_threads=False):
            held = max(held, pa.total_allocated_bytes())
            del batch
        piece = file.read_row_group(file.num_row_groups // 2, columns=["piece"]).column(0)[0].as_py()
        n_groups, base = file.num_row_groups, pa.total_allocated_bytes()
    seconds = []
    for _ in range(5):
        started = time.process_time()
        one = pq.read_table(path, filters=[("piece", "=", piece)], columns=["tokens"], use_threads=False)
        seconds.append(time.process_time() - started)
    encodings = sorted({*column.encodings} - {"RLE"}) if column.encodings else []
    return {
        "row_groups": n_groups,
        "stream_mib": round((held - base) / 2**20, 1),
        "one_piece_ms": round(1000 * median(seconds), 1),
        "one_piece_rows": one.num_rows,
        "physical": column.physical_type,
        "logical": str(logical),
        "encodings": encodings,
        "opens": opens(path, pq.read_table(path, columns=["tokens"]).column(0)),
    }


def opens(path: Path, tokens: pa.ChunkedArray) -> dict[str, bool]:
    """Tell which libraries give the tokens as lists of the same numbers."""
    if not pa.types.is_list(tokens.type) or not pa.types.is_integer(tokens.type.value_type):
        return {}
    expected = int(np.sum(tokens.combine_chunks().flatten().to_numpy(), dtype=np.int64))
    sums: dict[str, Callable[[str], int]] = {"pandas": sum_pandas, "duckdb": sum_duckdb, "polars": sum_polars}
    found = {}
    for library, total in sums.items():
        try:
            found[f"{library} {version(library)}"] = total(str(path)) == expected
        except ImportError:
            continue
        except Exception as error:  # whatever the library raises: that it does not open the file is the finding
            print(f"{library}: {error}")
            found[f"{library} {version(library)}"] = False
    return found


def sum_pandas(path: str) -> int:
    import pandas as pd

    return sum(int(ids.sum(dtype=np.int64)) for ids in pd.read_parquet(path, columns=["tokens"])["tokens"])


def sum_duckdb(path: str) -> int:
    import duckdb  # pyright: ignore[reportMissingImports]

    return int(duckdb.execute("select sum(list_sum(tokens)) from read_parquet(?)", [path]).fetchall()[0][0])


def sum_polars(path: str) -> int:
    import polars as pl  # pyright: ignore[reportMissingImports]

    return int(pl.read_parquet(path, columns=["tokens"])["tokens"].list.sum().cast(pl.Int64).sum())


def markdown(record: dict[str, Any]) -> str:
    """Return the ways as a table for docs/data-format.md."""
    lines = [
        "| way | bytes a token | written, M/s | read, M/s | MiB to stream | ms for one piece | not opened by |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for name, way in record["ways"].items():
        rates = [f"{way[key] / 1e6:.0f}" for key in ("write_tokens_per_second", "read_tokens_per_second")]
        shut = ", ".join(library for library, is_open in way["opens"].items() if not is_open)
        cells = [name, f"{way['bytes_per_token']:.2f}", *rates, str(way["stream_mib"]), str(way["one_piece_ms"])]
        lines.append(f"| {' | '.join(cells)} | {shut if way['opens'] else 'all: no list of numbers'} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
