"""Song shards -> analysis shards: what filters, grouping, the leakage report and the dataset's page need of each piece.

One row for each accepted piece of a song shard, in its order; histograms over all of them in the metadata.
"""

# pyarrow.compute makes its functions when it is imported, so the type checker does not see them.
# pyright: reportAttributeAccessIssue=false

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks import cluster
from tasks.config import digest
from tasks.music.features import FEATURES
from tasks.shards import SCHEMA_NUMBER, flat_values, list_column, read_table, write_table

logger = logging.getLogger(__name__)

REVISION = 1  # of features and fingerprints; raise it when one of them changes its meaning
ANALYSIS_SCHEMA = pa.schema(
    [
        pa.field("piece", pa.string(), nullable=False),
        *(pa.field(name, pa.from_numpy_dtype(kind.dtype), nullable=False) for name, kind in FEATURES.items()),
        pa.field("n_shingles", pa.int32(), nullable=False),
        pa.field("signature", pa.list_(pa.field("element", pa.uint32(), nullable=False)), nullable=False),
        pa.field("grams", pa.list_(pa.field("element", pa.uint64(), nullable=False)), nullable=False),
    ]
)
_SONG_COLUMNS = ["piece", "status", "onset", "onset_seconds", "duration_seconds", "pitch", "velocity", "program"]
_SONG_COLUMNS += ["is_drum", "tempo_microseconds_per_quarter"]
_SHARDS_A_JOB = 4


@dataclass(frozen=True, slots=True)
class AnalysisShard:
    """One unit of analysis: a song shard, and where the result goes."""

    songs: Path
    path: Path


@dataclass(frozen=True, slots=True, eq=False)
class Analysis:
    """What was found about the P accepted pieces of a version, in the order of its song shards."""

    table: pa.Table  # piece, features and n_shingles
    signature: np.ndarray  # uint32[P, words]
    shards: tuple[AnalysisShard, ...]

    def grams(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (int64[P + 1] offsets, uint64 hashes) of the sampled n-grams of all pieces."""
        parts = [flat_values(read_table(shard.path, ["grams"]), "grams") for shard in self.shards]
        sizes = np.concatenate([np.zeros(1, np.int64), *(np.diff(offsets) for offsets, _ in parts)])
        return np.cumsum(sizes), np.concatenate([np.zeros(0, np.uint64), *(grams for _, grams in parts)])

    def histograms(self) -> dict[str, np.ndarray]:
        """Return the histograms over all pieces that the shards hold, filtered ones too."""
        total: dict[str, np.ndarray] = {}
        for shard in self.shards:
            for name, counts in json.loads(pq.read_schema(shard.path).metadata[b"histograms"]).items():
                total[name] = total.get(name, 0) + np.array(counts, np.int64)
        return total


def plan_analysis(songs: Sequence[Path], folder: Path) -> list[AnalysisShard]:
    """Return one analysis shard for each song shard, named by what it is made of."""
    named = [digest({"schema": SCHEMA_NUMBER, "revision": REVISION, "songs": path.stem})[:24] for path in songs]
    return [AnalysisShard(path, folder / f"{name}.parquet") for path, name in zip(songs, named, strict=True)]


def build_analysis(shards: Sequence[AnalysisShard], on_shards: Callable[[int], None] | None = None) -> int:
    """Analyse the shards that have not been; return how many were written."""
    missing = [shard for shard in shards if not shard.path.exists()]
    jobs = [missing[place : place + _SHARDS_A_JOB] for place in range(0, len(missing), _SHARDS_A_JOB)]
    cluster.run_over(analyse_shards, jobs, lambda n_shards: on_shards and on_shards(n_shards))
    return len(missing)


def analyse_shards(shards: Sequence[AnalysisShard]) -> int:
    """Analyse some song shards and write the results; return the number of shards."""
    for shard in shards:
        table, histograms = analyse(shard.songs)
        metadata = {"schema": SCHEMA_NUMBER, "revision": REVISION, "histograms": histograms}
        write_table(shard.path, table, metadata, ANALYSIS_SCHEMA)
    return len(shards)


def analyse(songs: Path) -> tuple[pa.Table, dict[str, list[int]]]:
    """Return the analysis of a song shard's accepted pieces, and histograms over them."""
    from tasks.music import features, fingerprint  # compiled code; planning does not need it

    table = read_table(songs, _SONG_COLUMNS)
    table = table.filter(pa.compute.equal(table.column("status"), "accepted"))
    flat = {field.name: flat_values(table, field.name) for field in table.schema if pa.types.is_list(field.type)}
    offsets, onset = flat["onset"]
    ends = flat["onset_seconds"][1] + flat["duration_seconds"][1]
    notes = (flat["onset_seconds"][1], ends, *(flat[name][1] for name in ("pitch", "velocity", "program", "is_drum")))
    identity = (offsets, onset, flat["pitch"][1], flat["is_drum"][1])
    signed, (gram_offsets, grams) = fingerprint.sign_pieces(*identity), fingerprint.gram_hashes(*identity)
    n_pieces, n_words = signed.signature.shape
    columns: dict[str, Any] = {
        "piece": table.column("piece").combine_chunks(),
        **features.piece_features(offsets, *notes),
        "n_shingles": signed.n_shingles,
        "signature": list_column(
            np.arange(n_pieces + 1) * n_words, signed.signature.ravel(), ANALYSIS_SCHEMA.field("signature").type
        ),
        "grams": list_column(gram_offsets, grams, ANALYSIS_SCHEMA.field("grams").type),
    }
    histograms = features.histograms(offsets, *notes)
    first_tempo = flat["tempo_microseconds_per_quarter"]
    histograms["tempo"] = features.tempo_histogram(first_tempo[1][first_tempo[0][:-1]])
    arrays = [pa.array(columns[field.name], field.type) for field in ANALYSIS_SCHEMA]
    return pa.Table.from_arrays(arrays, schema=ANALYSIS_SCHEMA), {name: h.tolist() for name, h in histograms.items()}


def read_analysis(shards: Sequence[AnalysisShard]) -> Analysis:
    """Read what the shards say of each piece, n-grams apart."""
    from tasks.music.fingerprint import N_WORDS

    names = [field.name for field in ANALYSIS_SCHEMA if not pa.types.is_list(field.type)]
    tables, signatures = [ANALYSIS_SCHEMA.empty_table().select(names)], [np.zeros((0, N_WORDS), np.uint32)]
    for shard in shards:
        table = read_table(shard.path, [*names, "signature"])
        signatures.append(flat_values(table, "signature")[1].reshape(table.num_rows, N_WORDS))
        tables.append(table.select(names).replace_schema_metadata(None))
    table = pa.concat_tables(tables).replace_schema_metadata(None)
    return Analysis(table, np.concatenate(signatures), tuple(shards))
