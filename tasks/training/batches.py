"""Batches of one worker, each built on a thread while the step before it runs."""

from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.training import BatchCounts, count_batch, count_lengths
from tasks.config.training import TrainConfig
from tasks.training.token_dataset import TokenDataset


class Batch(NamedTuple):
    """One step's batch.

    Attributes:
        tokens: int64[rows, seq_len + 1], ids of this worker's rows, in the memory of the host.
        counts: what the losses are means over, the share of one worker.
        n_tokens: tokens of all workers' rows, padding left out.
    """

    tokens: Tensor
    counts: BatchCounts
    n_tokens: int


class Batches:
    """This worker's rows of each step's batch, which depends on the dataset, the seed and the step alone.

    Args:
        model: counts what its losses are means over; it is not called.
        pins: put rows into memory from which a GPU copies them while it computes.
    """

    def __init__(
        self,
        store: TokenDataset,
        config: TrainConfig,
        model: nn.Module,
        pad_id: int,
        rank: int = 0,
        world_size: int = 1,
        pins: bool = False,
    ) -> None:
        self.store, self.config, self.model, self.pad_id = store, config, model, pad_id
        self.rank, self.world_size, self.pins = rank, world_size, pins
        # A table of ids may have pads inside of its rows: then the tokens of all workers have to be looked at.
        self.has_inner_pads = world_size > 1 and store.contains(pad_id)

    def build(self, step: int) -> Batch:
        """Return the batch of one step, counted from 1."""
        config, share = self.config, slice(self.rank, None, self.world_size)
        place = config.seed, step, config.batch_size, config.seq_len
        if self.world_size == 1 or self.has_inner_pads:
            batch = torch.from_numpy(self.store.batch(*place, self.pad_id, config.windows))
            counts, n_tokens = count_batch(self.model, batch, self.pad_id), int((batch != self.pad_id).sum())
            rows = batch[share]
        else:
            lengths = torch.from_numpy(self.store.lengths(*place, config.windows))
            counts, n_tokens = count_lengths(self.model, lengths, config.seq_len + 1), int(lengths.sum())
            rows = torch.from_numpy(self.store.batch(*place, self.pad_id, config.windows, share))
        return Batch(rows.pin_memory() if self.pins else rows, counts.share(self.world_size), n_tokens)

    def ahead(self, steps: range) -> Generator[tuple[int, Batch], None, None]:
        """Yield each step with its batch, and build the next one meanwhile; close the iterator on leaving it early."""
        with ThreadPoolExecutor(1, "batches") as pool:
            following: Future[Batch] | None = pool.submit(self.build, steps[0]) if steps else None
            for step in steps:
                assert following is not None
                batch = following.result()
                following = pool.submit(self.build, step + 1) if step + 1 in steps else None
                yield step, batch
