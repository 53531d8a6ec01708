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
    first_rows = np.cumsum([0, *(store.n_rows for store in stores)])
    n = int(first_rows[-1])
    for place in np.unique(np.linspace(0, n - 1, min(n, MOST_PIECES)).round().astype(int)):
        split = int(np.searchsorted(first_rows, place, "right")) - 1
        store, row = stores[split], place - first_rows[split]
        yield tokenizer.decode(store.tokens[store.offsets[row] : store.offsets[row + 1]][:max_tokens])


def dataset_of(loaded: LoadedModel, home: Home) -> DatasetVersion:
    """Return the dataset version that a model was trained on; NotFound where it is gone."""
    return resolve_dataset(home, "{name}@{version}".format(**loaded.state["dataset"]))
