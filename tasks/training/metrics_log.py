"""Metric points of a training run: summed over steps and workers, appended to a file, and read while it grows."""

import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from models.training import StepMetrics, read_metrics
from tasks.errors import DamagedFile
from tasks.storage.files import json_text, write_atomically
from tasks.storage.integrity import parse_sealed, sealed, warn_once
from tasks.training.ranks import sum_over_ranks

POINT: dict[Any, Any] = {"step": int, str: (float, None)}  # shape of a point
SPEEDS = ("train/tokens_per_second", "train/flops_utilisation")  # metrics that depend on the machine


class Reporter:
    """Gathers step metrics and appends points to a run's file; only rank 0 writes.

    Args:
        step: from which the run goes on; later points of an earlier attempt are taken out of the file.
        unreported: sums of the saved state, from the method `unreported`.
    """

    def __init__(self, path: Path, rank: int, step: int, unreported: list[float | None] | None) -> None:
        self.path, self.rank = path, rank
        self.latest: dict[str, float] = {}
        self.constant: dict[str, float] = {}  # what holds for the whole run
        self.used_share: float | None = None  # of the GPUs' peak, by one token a second
        self.n_steps = 0  # of this process
        self._waiting: list[tuple[int, Tensor]] = []  # figures that may not be computed yet
        self._waiting_tokens = 0
        self._reset()
        self.start_clock()
        if rank == 0:
            self.sums += [math.nan if value is None else value for value in unreported or [0.0]]
            kept = [point for point in read_points(self.path) if point["step"] <= step]
            write_atomically(self.path, "".join(map(point_line, kept)).encode())
            for point in kept:
                self.latest |= {key: value for key, value in point.items() if key != "step"}

    def _reset(self) -> None:
        self.sums = np.zeros(5)  # loss, targets, hits, auxiliary loss, skipped steps since the last point
        self.n_tokens, self.seconds = 0, 0.0

    def start_clock(self) -> None:
        """Let training count from now on: what was done since the last `fetch` was something else."""
        self._begun = time.perf_counter()

    def add(self, step: int, figures: Tensor, rate: float, n_tokens: int) -> None:
        """Take the figures of one step, which may still be computed, and the tokens of all ranks."""
        self._waiting.append((step, figures))
        self._waiting_tokens += n_tokens
        self.n_steps += 1
        self.step, self.rate = step, rate

    @property
    def n_waiting(self) -> int:
        """Steps since the last `fetch`."""
        return len(self._waiting)

    def fetch(self) -> list[tuple[int, StepMetrics]]:
        """Wait for the steps added since the last fetch, count them, and return them with their figures."""
        if not self._waiting:
            return []
        found = read_metrics([figures for _, figures in self._waiting])
        for metrics in found:
            # All ranks skip the same steps: one of them counts.
            self.sums += np.array([*metrics[:4], self.rank == 0 and not metrics.applied])
        self.grad_norm = found[-1].grad_norm
        if self.n_steps > 1 >= self.n_steps - len(found):  # the first step of a process compiles; it does not count
            self.n_tokens, self.seconds = 0, 0.0  # if there is another
        self.seconds += time.perf_counter() - self._begun
        self.n_tokens += self._waiting_tokens
        steps = [step for step, _ in self._waiting]
        self._waiting, self._waiting_tokens = [], 0
        self.start_clock()
        return list(zip(steps, found, strict=True))

    def unreported(self, world_size: int) -> list[float]:
        """Return the sums since the last point; saved, so that the next point covers the steps before a stop too."""
        return sum_over_ranks(self.sums.copy(), world_size).tolist()

    def flush(self, world_size: int) -> None:
        """Write a point of the steps that were fetched since the last one."""
        loss, n_targets, n_correct, auxiliary, n_skipped = sum_over_ranks(self.sums, world_size).tolist()
        tokens_per_second = self.n_tokens / max(self.seconds, 1e-9)
        self.write(
            {
                "step": self.step,
                "train/loss": loss / n_targets,
                "train/accuracy": n_correct / n_targets,
                "train/learning_rate": self.rate,
                "train/grad_norm": self.grad_norm,
                "train/tokens_per_second": tokens_per_second,
                "train/skipped_steps": n_skipped,
            }
            | ({"train/auxiliary_loss": auxiliary / n_targets} if auxiliary else {})
            | ({"train/flops_utilisation": self.used_share * tokens_per_second} if self.used_share else {})
            | self.constant
        )
        self._reset()

    def write(self, point: dict[str, float]) -> None:
        self.latest |= {key: value for key, value in point.items() if key != "step"}
        if self.rank == 0:
            with self.path.open("a") as handle:
                handle.write(point_line(point))


class MetricsTail:
    """Reads the points that were appended to a file since the last look, each once, though a restart rewrites some."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.inode, self.offset = 0, 0
        self.seen: set[tuple[float, bool]] = set()

    def new_points(self) -> list[dict[str, float]]:
        if not self.path.exists():
            return []
        with self.path.open("rb") as handle:
            inode = os.fstat(handle.fileno()).st_ino
            if inode != self.inode:  # a restart put another file in its place
                self.inode, self.offset = inode, 0
            handle.seek(self.offset)
            whole, _, _ = handle.read().rpartition(b"\n")
        self.offset += len(whole) + 1 if whole else 0
        fresh = []
        for line in whole.split(b"\n") if whole else ():
            point = _read_line(line, self.path)
            if point is None:
                continue
            key = (point["step"], "val/loss" in point)
            if key not in self.seen:
                self.seen.add(key)
                fresh.append(point)
        return fresh


def read_points(path: Path) -> list[dict[str, float]]:
    """Return the metric points of a run; a line that is torn or damaged is left out with a warning."""
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    points = (_read_line(line, path) for line in lines if line)
    return [point for point in points if point is not None]


def point_line(point: Mapping[str, float]) -> str:
    """Return a metric point as a line of a run's file."""
    return json_text(sealed(point)) + "\n"


def _read_line(line: bytes, path: Path) -> dict[str, float] | None:
    """Return the point of a line; JSON has no number for a loss that is none."""
    try:
        point = parse_sealed(line, path, POINT)
        return {key: math.nan if value is None else value for key, value in point.items()}
    except DamagedFile as error:
        warn_once(f"{error}; the line is left out: {line[:60].decode(errors='replace')}")
        return None
