"""Song shards to token shards: training pieces in all variants, other pieces unchanged."""

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.config.augmentations import NO_AUGMENTATION
from tasks.config.dataset import AugmentConfig, WindowConfig
from tasks.config.serialization import digest, to_json
from tasks.dataset.augment import change_notes, group_variants, plan_variants
from tasks.dataset.variants import TokenShardCounts, encode_variants
from tasks.music.notes import ALL_COLUMNS, COLUMNS, PIECE_COLUMNS, NoteBatch, kind_of
from tasks.music.tokenizers.mmm.vocabulary import MmmConfig
from tasks.music.tokenizers.optimus.characters import song_name
from tasks.music.tokenizers.registry import (
    LearnedConfig,
    TokenizerConfig,
    build_tokenizer,
    needs_vocabulary,
    symbols_in,
)
from tasks.music.transforms import transpose_within
from tasks.music.windows import cut_windows
from tasks.runtime import cluster
from tasks.storage.parquet import SCHEMA_NUMBER, flat_values, read_metadata, read_table, write_table

logger = logging.getLogger(__name__)

WHOLE_PIECES = WindowConfig()
_DURATIONS = {
    "end_seconds": "duration_seconds",
    "pedal_end": "pedal_duration",
    "pedal_end_seconds": "pedal_duration_seconds",
}
_SHARD_COLUMNS = [_DURATIONS.get(name, name) for name in ALL_COLUMNS if not name.endswith("offsets")]


@dataclass(frozen=True, slots=True, eq=False)
class TokenShard:
    """One unit of encoding: some pieces of a song shard, all of one split, and the path of the result."""

    songs: Path
    pieces: pa.StringArray  # a quarter of the memory of a tuple of strings
    split: str
    encoding: TokenizerConfig
    windows: WindowConfig
    augment: AugmentConfig
    path: Path
    names: tuple[str, ...] = ()  # of the files of the pieces, for an encoding that holds them


def plan_token_shards(
    wanted: Iterable[tuple[Path, str, pa.StringArray]], encoding: TokenizerConfig, augment: AugmentConfig, folder: Path,
    windows: WindowConfig = WHOLE_PIECES, names: Mapping[str, str] | None = None,
) -> list[TokenShard]:  # fmt: skip
    """Name token shards by their contents, and learn the vocabulary of an encoding that has one.

    Args:
        wanted: for each token shard its song shard, split and pieces, in rising order.
        folder: of all token shards; each encoding has a folder in it.
        names: the file name of each piece, for an encoding that holds it.
    """
    shards = [
        TokenShard(
            songs, pieces, split, encoding, windows, augment if split == "train" else NO_AUGMENTATION, Path(),
            tuple(names[piece] for piece in pieces.to_pylist()) if names else (),
        )
        for songs, split, pieces in wanted
    ]  # fmt: skip
    encoding = learn_vocabulary(shards, encoding)
    tokenizer = build_tokenizer(encoding)
    base = folder / f"{tokenizer.name}-{tokenizer.digest[:12]}"
    named = []
    for shard in shards:
        identity = {
            "schema": SCHEMA_NUMBER,
            "songs": shard.songs.stem,
            "pieces": shard.pieces.to_pylist(),
            "encoder": tokenizer.digest,
            "windows": to_json(shard.windows),
            "augment": to_json(shard.augment),
        } | ({"names": [song_name(name) for name in shard.names]} if shard.names else {})
        path = base / f"split={shard.split}" / f"{digest(identity)[:24]}.parquet"
        named.append(replace(shard, encoding=encoding, path=path))
    return named


def learn_vocabulary(shards: list[TokenShard], encoding: TokenizerConfig) -> TokenizerConfig:
    """Return an encoding that learns its vocabulary with the vocabulary of all variants of these pieces."""
    if not needs_vocabulary(encoding):
        return encoding
    return encoding.with_symbols(set[str]().union(*cluster.run_over(_symbols_of, _by_songs(shards))))


def with_symbols_of(shard: TokenShard) -> TokenShard:
    """Return a shard with the vocabulary of its own pieces, if its encoding learns one."""
    if not needs_vocabulary(shard.encoding):
        return shard
    return replace(shard, encoding=shard.encoding.with_symbols(_symbols_of([shard])))


def _symbols_of(shards: Sequence[TokenShard]) -> set[str]:
    symbols = set[str]()
    for shard, rows in _read_rows(shards):
        assert isinstance(shard.encoding, LearnedConfig)
        symbols.update(*map(song_name, shard.names))
        for shared, members in group_variants(plan_variants(shard.augment, rows.pieces)):
            changed, _ = change_notes(shard.augment, rows.notes, rows.pieces, shared)
            for variant in members:
                symbols |= symbols_in(shard.encoding, transpose_within(changed, variant.transposition)[0])
    return symbols


def _by_songs(shards: Sequence[TokenShard]) -> list[list[TokenShard]]:
    """Group shards by song shard, so that each is read once."""
    return [list(group) for _, group in itertools.groupby(shards, lambda shard: shard.songs)]


def build_token_shards(shards: Sequence[TokenShard], on_pieces: Callable[[int], None] | None = None) -> int:
    """Encode and write the shards that do not exist yet; return their number."""
    missing = [shard for shard in shards if not shard.path.exists()]
    cluster.run_over(encode_songs, _by_songs(missing), lambda n_pieces: on_pieces and on_pieces(n_pieces))
    return len(missing)


def encode_songs(shards: Sequence[TokenShard]) -> int:
    """Encode and write some shards of one song shard; return the number of pieces."""
    for shard, sequences in _read_rows(shards):
        tokenizer = build_tokenizer(shard.encoding)
        names = dict(zip(shard.pieces.to_pylist(), shard.names, strict=True)) if shard.names else {}
        named = [names[piece] for piece in sequences.pieces] if names else []
        rows = encode_variants(tokenizer, shard.augment, sequences.notes, sequences.pieces, named)
        rows.counts.n_pieces, rows.counts.notes_cut_by_windows = len(shard.pieces), sequences.n_cut
        metadata = {
            "schema": SCHEMA_NUMBER,
            "encoder": tokenizer.to_json(),
            "encoder_digest": tokenizer.digest,
            "counts": asdict(rows.counts),
        }
        write_table(shard.path, rows.table(sequences.pieces, sequences.windows), metadata, rows.schema)
    return sum(len(shard.pieces) for shard in shards)


@dataclass(frozen=True, slots=True, eq=False)
class _Sequences:
    """The rows of a shard before encoding: whole pieces or windows, in order of piece and time."""

    notes: NoteBatch
    pieces: list[str]
    windows: np.ndarray  # int64, the number of each window within its piece
    n_cut: int  # notes that a window cuts where it ends


def _read_rows(shards: Sequence[TokenShard]) -> Iterator[tuple[TokenShard, _Sequences]]:
    """Yield each shard of one song shard with its rows."""
    names = sorted(itertools.chain.from_iterable(shard.pieces.to_pylist() for shard in shards))
    notes = read_notes(shards[0].songs, names)
    for shard in shards:
        pieces = shard.pieces.to_pylist()
        batch = notes.take(np.searchsorted(names, pieces))
        if not shard.windows.bars:
            yield shard, _Sequences(batch, pieces, np.zeros(len(pieces), np.int64), 0)
            continue
        hop = shard.windows.hop_bars or shard.windows.bars
        batch, piece, n_cut = cut_windows(batch, shard.windows.bars, hop, grid_of(shard.encoding))
        window = np.arange(len(piece)) - np.searchsorted(piece, piece)
        yield shard, _Sequences(batch, [pieces[place] for place in piece], window, int(n_cut.sum()))


def grid_of(encoding: TokenizerConfig) -> int:
    """Return the units per quarter to which an encoding rounds before it finds bars, or 0."""
    return encoding.units_per_quarter if isinstance(encoding, MmmConfig) else 0


def read_counts(path: Path) -> TokenShardCounts:
    """Return the counts in a shard's metadata."""
    return TokenShardCounts(**read_metadata(path, "counts"))


def read_notes(songs: Path, pieces: Sequence[str]) -> NoteBatch:
    """Return the notes of some pieces of a song shard, in order of piece."""
    table = read_table(songs, ["piece", *_SHARD_COLUMNS])
    table = table.filter(pc.is_in(table.column("piece"), value_set=pa.array(pieces, pa.string())))
    flat = {field.name: flat_values(table, field.name) for field in table.schema if pa.types.is_list(field.type)}
    columns = {name: values for name, (_, values) in flat.items()}
    columns |= {name: table.column(name).to_numpy() for name in PIECE_COLUMNS}
    columns |= {f"{owner}offsets": flat[names[0]][0] for owner, names in COLUMNS.items()}
    for end, duration in _DURATIONS.items():
        onset = columns[end.replace("end", "onset")]
        columns[end] = onset.astype(kind_of(end)) + columns[duration]
    return NoteBatch.of(columns)
