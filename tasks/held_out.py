"""Statistics of the beginnings of held-out pieces, to set generated ones of the same length beside."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tasks.batches import TokenStore
from tasks.datasets import DatasetVersion
from tasks.music.metrics import piece_statistics

MOST_PIECES = 200


def held_out_statistics(
    tokenizer: Any, dataset: DatasetVersion, splits: Sequence[str], max_tokens: int
) -> list[dict[str, float]]:
    """Return the statistics of the first `max_tokens` tokens of pieces of some splits, as the encoding holds them.

    There are `MOST_PIECES` at most, evenly spread over the splits in their order.
    """
    stores = [TokenStore(dataset.token_shards(split), dataset.flat_tokens) for split in splits]
    rows = [store.tokens[a:b] for store in stores for a, b in zip(store.offsets[:-1], store.offsets[1:], strict=True)]
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), MOST_PIECES)).round().astype(int))
    return [piece_statistics(tokenizer.decode(rows[place][:max_tokens])) for place in chosen]
