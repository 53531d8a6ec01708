"""Song shards -> token shards: each piece of the training split in all its variants, the others as they are."""

import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks import cluster
from tasks.config import AugmentConfig, digest, to_json
from tasks.music.notes import NoteBatch
from tasks.music.tokenizers.base import TokenBatch
from tasks.music.tokenizers.registry import TokenizerConfig, build_tokenizer
from tasks.music.transforms import stretch_time
from tasks.shards import SCHEMA_NUMBER, TOKEN_SCHEMA, flat_values, list_column, read_table, write_table

logger = logging.getLogger(__name__)

NO_AUGMENTATION = AugmentConfig(transpositions=(0,), stretches=(1.0,))


@dataclass(frozen=True, slots=True, eq=False)
class TokenShard:
    """One unit of encoding: some pieces of a song shard, all of one split, and where the result goes."""

    songs: Path
    pieces: pa.StringArray  # a quarter of the memory of a tuple of strings
    split: str
    encoding: TokenizerConfig
    augment: AugmentConfig
    path: Path


@dataclass(frozen=True, slots=True)
class TokenShardCounts:
    """What a token shard holds; saved in its metadata, so that it need not be counted again."""

    n_pieces: int
    n_rows: int
    n_tokens: int
    n_notes: int
    seconds: float
    max_tokens: int
    pieces_without_notes: int  # nothing left for this encoding: an empty row would teach silence
    variants_left_out: int  # a note would leave 0-127, or drums would be transposed
    notes_dropped: dict[str, int]  # by reason, over the unaugmented pieces


def plan_token_shards(
    wanted: Iterable[tuple[Path, str, pa.StringArray]], encoding: TokenizerConfig, augment: AugmentConfig, folder: Path
) -> list[TokenShard]:
    """Name token shards by what is in them.

    Args:
        wanted: (song shard, split, its accepted pieces of that split in rising order), one for each token shard.
        folder: where token shards live; a sub-folder for the encoding is made in it.
    """
    tokenizer = build_tokenizer(encoding)
    base = folder / f"{tokenizer.name}-{tokenizer.digest[:12]}"
    shards = []
    for songs, split, pieces in wanted:
        variants = augment if split == "train" else NO_AUGMENTATION
        identity = {
            "schema": SCHEMA_NUMBER,
            "songs": songs.stem,
            "pieces": pieces.to_pylist(),
            "encoder": tokenizer.digest,
            "augment": to_json(variants),
        }
        path = base / f"split={split}" / f"{digest(identity)[:24]}.parquet"
        shards.append(TokenShard(songs, pieces, split, encoding, variants, path))
    return shards


def build_token_shards(shards: list[TokenShard], on_pieces: Callable[[int], None] | None = None) -> int:
    """Encode and write the shards that do not exist yet; return how many were written."""
    missing = [shard for shard in shards if not shard.path.exists()]
    cluster.run_over(build_token_shard, missing, lambda n_pieces: on_pieces and on_pieces(n_pieces))
    return len(missing)


def build_token_shard(shard: TokenShard) -> int:
    """Encode one shard and write it; return the number of pieces."""
    tokenizer = build_tokenizer(shard.encoding)
    pieces = tuple(shard.pieces.to_pylist())
    batch = read_notes(shard.songs, pieces)
    parts: list[pa.Table] = []
    n_variants_left_out = 0
    counts: dict[str, Any] = {}
    for stretch in shard.augment.stretches:
        plain = tokenizer.encode(batch if stretch == 1.0 else stretch_time(batch, stretch))
        if not counts:
            holds_drums = np.add.reduceat(batch.is_drum, batch.offsets[:-1]) > plain.dropped["drums"]
            dropped = {reason: int(per_piece.sum()) for reason, per_piece in sorted(plain.dropped.items())}
            counts = {"pieces_without_notes": int((plain.n_notes == 0).sum()), "notes_dropped": dropped}
        for semitones in shard.augment.transpositions:
            table, n_left_out = _variant_rows(tokenizer, plain, pieces, semitones, stretch, holds_drums)
            parts.append(table)
            n_variants_left_out += n_left_out
    table = pa.concat_tables(parts).sort_by(
        [("piece", "ascending"), ("stretch", "ascending"), ("transposition", "ascending")]
    )
    counts |= {
        "n_pieces": len(shard.pieces),
        "n_rows": table.num_rows,
        "n_tokens": _sum(table, "n_tokens"),
        "n_notes": _sum(table, "n_notes"),
        "seconds": round(float(np.sum(table.column("seconds").to_numpy())), 3),
        "max_tokens": int(table.column("n_tokens").to_numpy().max(initial=0)),
        "variants_left_out": n_variants_left_out,
    }
    metadata = {
        "schema": SCHEMA_NUMBER,
        "encoder": tokenizer.to_json(),
        "encoder_digest": tokenizer.digest,
        "counts": counts,
    }
    write_table(shard.path, table, metadata)
    return len(shard.pieces)


def read_counts(path: Path) -> TokenShardCounts:
    """Return the counts that `build_token_shard` left in a shard's metadata."""
    return TokenShardCounts(**json.loads(pq.read_schema(path).metadata[b"counts"]))


def read_notes(songs: Path, pieces: tuple[str, ...] | None = None) -> NoteBatch:
    """Return the notes of a song shard's accepted pieces (or of some of them), in order of piece."""
    table = read_table(songs)
    wanted = set(pieces) if pieces is not None else None
    keep = [
        status == "accepted" and (wanted is None or piece in wanted)
        for piece, status in zip(table.column("piece").to_pylist(), table.column("status").to_pylist(), strict=True)
    ]
    table = table.filter(pa.array(keep))
    flat = {field.name: flat_values(table, field.name) for field in table.schema if pa.types.is_list(field.type)}
    onset_seconds, pedal_onset_seconds = flat["onset_seconds"][1], flat["pedal_onset_seconds"][1]
    return NoteBatch(
        offsets=flat["pitch"][0],
        onset=flat["onset"][1].astype(np.int64),
        duration=flat["duration"][1].astype(np.int64),
        onset_seconds=onset_seconds,
        end_seconds=onset_seconds + flat["duration_seconds"][1],
        pitch=flat["pitch"][1],
        velocity=flat["velocity"][1],
        program=flat["program"][1],
        is_drum=flat["is_drum"][1],
        track=flat["track"][1],
        pedal_offsets=flat["pedal_onset"][0],
        pedal_onset_seconds=pedal_onset_seconds,
        pedal_end_seconds=pedal_onset_seconds + flat["pedal_duration_seconds"][1],
        pedal_track=flat["pedal_track"][1],
        ticks_per_quarter=table.column("ticks_per_quarter").to_numpy().astype(np.int64),
        tempo_offsets=flat["tempo_tick"][0],
        tempo_tick=flat["tempo_tick"][1].astype(np.int64),
        tempo_microseconds_per_quarter=flat["tempo_microseconds_per_quarter"][1].astype(np.float64),
        time_signature_offsets=flat["time_signature_tick"][0],
        **{
            name: flat[name][1].astype(np.int64)
            for name in ("time_signature_tick", "time_signature_numerator", "time_signature_denominator")
        },
    )


def _variant_rows(
    tokenizer: Any,
    plain: TokenBatch,
    pieces: tuple[str, ...],
    semitones: int,
    stretch: float,
    holds_drums: np.ndarray,
) -> tuple[pa.Table, int]:
    """Transpose the tokens of pieces encoded once for each stretch: equal to encoding transposed notes, and cheaper."""
    rows, n_left_out = [], 0
    for index in np.flatnonzero(plain.n_notes):
        ids = plain.ids[plain.offsets[index] : plain.offsets[index + 1]]
        moved = ids
        if semitones:  # a drum's pitch names the drum, so a piece with drums has no transpositions
            moved = None if holds_drums[index] else tokenizer.transpose_ids(ids, semitones)
        if moved is None:
            n_left_out += 1
        else:
            rows.append((index, moved))
    chosen = np.array([index for index, _ in rows], np.int64)
    lengths = np.array([len(ids) for _, ids in rows], np.int64)
    ids = np.concatenate([ids for _, ids in rows]) if rows else np.zeros(0, np.uint16)
    columns = {
        "piece": pa.array([pieces[index] for index in chosen], pa.string()),
        "transposition": pa.array(np.full(len(rows), semitones), pa.int16()),
        "stretch": pa.array(np.full(len(rows), stretch), pa.float64()),
        "n_tokens": pa.array(lengths, pa.int32()),
        "n_notes": pa.array(plain.n_notes[chosen], pa.int32()),
        "seconds": pa.array(plain.seconds[chosen], pa.float64()),
        "tokens": list_column(np.concatenate([[0], np.cumsum(lengths)]), ids, TOKEN_SCHEMA.field("tokens").type),
    }
    return pa.table(columns, schema=TOKEN_SCHEMA), n_left_out


def _sum(table: pa.Table, column: str) -> int:
    return int(np.sum(table.column(column).to_numpy(), dtype=np.int64))
