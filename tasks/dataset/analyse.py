"""Analysis shards: features of each accepted piece of a song shard, with histograms in the metadata."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.config.serialization import digest
from tasks.dataset.leakage import thin_grams, thinning_for
from tasks.music.metrics.features import FEATURES
from tasks.runtime import cluster
from tasks.storage.parquet import SCHEMA_NUMBER, flat_values, list_column, read_metadata, read_table, write_table

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
    """One unit of analysis: a song shard and the path of the result."""

    songs: Path
    path: Path


@dataclass(frozen=True, slots=True, eq=False)
class Analysis:
    """The features of the P accepted pieces of the song shards, in their order.

    Signatures and n-grams stay on disk, because those of a million pieces take hundreds of megabytes.
    """

    table: pa.Table  # piece, features and n_shingles
    shards: tuple[AnalysisShard, ...]
    offsets: np.ndarray  # int64[shards + 1], where each shard's pieces begin

    def signatures(self, wanted: np.ndarray) -> np.ndarray:
        """Return uint32[·, words], the signatures of the pieces where the mask `wanted` is true."""
        from tasks.music.similarity.fingerprint import N_WORDS

        found, at = np.empty((int(wanted.sum()), N_WORDS), np.uint32), 0
        for shard, begin, end in zip(self.shards, self.offsets[:-1], self.offsets[1:], strict=True):
            rows = flat_values(read_table(shard.path, ["signature"]), "signature")[1].reshape(end - begin, N_WORDS)
            rows = rows[wanted[begin:end]]
            found[at : at + len(rows)] = rows
            at += len(rows)
        return found

    def grams(self, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """Return (offsets, hashes, thinning): the sampled n-grams of the pieces where the mask `wanted` is true.

        Of very many n-grams only one in `thinning` is kept, the same ones in all pieces.
        """
        n_grams = sum(read_metadata(shard.path, "n_grams") for shard in self.shards)
        thinning, parts = thinning_for(n_grams), []
        for shard, begin, end in zip(self.shards, self.offsets[:-1], self.offsets[1:], strict=True):
            offsets, grams = thin_grams(*flat_values(read_table(shard.path, ["grams"]), "grams"), thinning)
            sizes, mask = np.diff(offsets), wanted[begin:end]
            parts.append((sizes[mask], grams[np.repeat(mask, sizes)]))
        sizes = np.concatenate([np.zeros(1, np.int64), *(sizes for sizes, _ in parts)])
        return np.cumsum(sizes), np.concatenate([np.zeros(0, np.uint64), *(grams for _, grams in parts)]), thinning

    def histograms(self) -> dict[str, np.ndarray]:
        """Return the histograms over all pieces of the shards, filtered ones too."""
        total: dict[str, np.ndarray] = {}
        for shard in self.shards:
            for name, counts in read_metadata(shard.path, "histograms").items():
                total[name] = total.get(name, 0) + np.array(counts, np.int64)
        return total


def plan_analysis(songs: Sequence[Path], folder: Path) -> list[AnalysisShard]:
    """Return one analysis shard for each song shard, named by a digest of its input."""
    named = [digest({"schema": SCHEMA_NUMBER, "revision": REVISION, "songs": path.stem})[:24] for path in songs]
    return [AnalysisShard(path, folder / f"{name}.parquet") for path, name in zip(songs, named, strict=True)]


def build_analysis(shards: Sequence[AnalysisShard], on_shards: Callable[[int], None] | None = None) -> int:
    """Analyse the shards that do not exist yet; return their number."""
    missing = [shard for shard in shards if not shard.path.exists()]
    if missing:
        prepare()  # once here instead of in every worker
    jobs = [missing[place : place + _SHARDS_A_JOB] for place in range(0, len(missing), _SHARDS_A_JOB)]
    cluster.run_over(analyse_shards, jobs, lambda n_shards: on_shards and on_shards(n_shards))
    return len(missing)


def prepare() -> None:
    """Compile the loops over notes, or load them from Numba's cache."""
    from tasks.music.metrics import features
    from tasks.music.similarity import fingerprint

    offsets = np.zeros(2, np.int64)
    none: Any = np.zeros(0)
    features.piece_features(offsets, *[none] * 6)
    features.histograms(offsets, *[none] * 6)
    fingerprint.sign_pieces(offsets, *[none] * 3)
    fingerprint.gram_hashes(offsets, *[none] * 3)


def analyse_shards(shards: Sequence[AnalysisShard]) -> int:
    """Analyse some song shards and write the results; return the number of shards."""
    for shard in shards:
        table, histograms = analyse(shard.songs)
        metadata = {"schema": SCHEMA_NUMBER, "revision": REVISION, "histograms": histograms}
        metadata["n_grams"] = len(flat_values(table, "grams")[1])
        write_table(shard.path, table, metadata, ANALYSIS_SCHEMA)
    return len(shards)


def analyse(songs: Path) -> tuple[pa.Table, dict[str, list[int]]]:
    """Return the analysis of a song shard's accepted pieces, and histograms over them."""
    from tasks.music.metrics import features  # compiled code; planning does not need it
    from tasks.music.similarity import fingerprint

    table = read_table(songs, _SONG_COLUMNS)
    table = table.filter(pc.equal(table.column("status"), "accepted"))
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
    """Read the columns about each piece from the shards, without signatures and n-grams."""
    names = [field.name for field in ANALYSIS_SCHEMA if not pa.types.is_list(field.type)]
    tables = [read_table(shard.path, names).replace_schema_metadata(None) for shard in shards]
    sizes = np.cumsum([0, *(table.num_rows for table in tables)])
    table = pa.concat_tables([ANALYSIS_SCHEMA.empty_table().select(names), *tables]).combine_chunks()
    return Analysis(table, tuple(shards), sizes)
