"""Statistics of the beginnings of held-out pieces, for comparison with generated ones of the same length."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tasks.checkpoints import LoadedModel
from tasks.dataset.versions import DatasetVersion, resolve_dataset
from tasks.music.excerpt import Extent, beginning
from tasks.music.metrics.piece_metrics import piece_statistics
from tasks.music.score import Score
from tasks.storage.home import Home
from tasks.storage.parquet import read_table
from tasks.training.token_dataset import TokenDataset

MOST_PIECES = 200
ALL = Extent()


def pieces_of_rows(dataset: DatasetVersion, split: str) -> list[str]:
    """Return the piece that each token row of a split is of, or is a window of."""
    shards = dataset.token_shards(split)
    return [piece for shard in shards for piece in read_table(shard, ["piece"]).column("piece").to_pylist()]


def held_out_statistics(
    tokenizer: Any, dataset: DatasetVersion, splits: Sequence[str], max_tokens: int, limit: Extent = ALL
) -> list[dict[str, float]]:
    """Return the statistics of the beginnings of pieces of some splits, as the encoding holds them.

    A beginning has `max_tokens` tokens and is within `limit` at most. The pieces are those of `spread_pieces`.
    """
    scores = spread_pieces(tokenizer, dataset, splits, max_tokens)
    return [piece_statistics(beginning(score, limit, cut=True) if limit else score) for score in scores]


def spread_pieces(
    tokenizer: Any, dataset: DatasetVersion, splits: Sequence[str], max_tokens: int | None = None
) -> Iterator[Score]:
    """Yield `MOST_PIECES` rows of some splits at most, evenly spread over them in their order, as music."""
    stores = [TokenDataset(dataset.token_shards(split), dataset.flat_tokens) for split in splits]
    rows = [store.tokens[a:b] for store in stores for a, b in zip(store.offsets[:-1], store.offsets[1:], strict=True)]
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), MOST_PIECES)).round().astype(int))
    yield from (tokenizer.decode(rows[place][:max_tokens]) for place in chosen)


def dataset_of(loaded: LoadedModel, home: Home) -> DatasetVersion:
    """Return the dataset version that a model was trained on; NotFound where it is gone."""
    return resolve_dataset(home, "{name}@{version}".format(**loaded.state["dataset"]))
