"""Metric points of a training run: summed over steps and workers, appended to a file, and read while it grows."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tasks.errors import DamagedFile
from tasks.storage.files import json_text, write_atomically
from tasks.storage.integrity import parse_sealed, sealed, warn_once
from tasks.training.ranks import sum_over_ranks

POINT: dict[Any, Any] = {"step": int, str: (float, None)}  # shape of a point


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
        self.n_steps = 0  # of this process
        self._reset()
        if rank == 0:
            self.sums += [math.nan if value is None else value for value in unreported or [0.0]]
            kept = [point for point in read_points(self.path) if point["step"] <= step]
            write_atomically(self.path, "".join(map(point_line, kept)).encode())
            for point in kept:
                self.latest |= {key: value for key, value in point.items() if key != "step"}

    def _reset(self) -> None:
        self.sums = np.zeros(5)  # loss, targets, hits, auxiliary loss, skipped steps since the last point
        self.n_tokens, self.seconds = 0, 0.0

    def add(self, step: int, metrics: Any, rate: float, n_tokens: int, seconds: float) -> None:
        """Count one step: its tokens, those of all ranks, and the seconds of training that it took."""
        # All ranks skip the same steps: one of them counts.
        skipped = self.rank == 0 and not metrics.applied
        self.sums += np.array([*metrics[:4], skipped])
        if self.n_steps == 1:  # the first step of a process compiles; it counts only as long as there is no other
            self.n_tokens, self.seconds = 0, 0.0
        self.n_tokens, self.seconds, self.n_steps = self.n_tokens + n_tokens, self.seconds + seconds, self.n_steps + 1
        self.step, self.rate, self.grad_norm = step, rate, metrics.grad_norm

    def unreported(self, world_size: int) -> list[float]:
        """Return the sums since the last point; saved, so that the next point covers the steps before a stop too."""
        return sum_over_ranks(self.sums.copy(), world_size).tolist()

    def flush(self, world_size: int) -> None:
        loss, n_targets, n_correct, auxiliary, n_skipped = sum_over_ranks(self.sums, world_size).tolist()
        self.write(
            {
                "step": self.step,
                "train/loss": loss / n_targets,
                "train/accuracy": n_correct / n_targets,
                "train/learning_rate": self.rate,
                "train/grad_norm": self.grad_norm,
                "train/tokens_per_second": self.n_tokens / max(self.seconds, 1e-9),
                "train/skipped_steps": n_skipped,
            }
            | ({"train/auxiliary_loss": auxiliary / n_targets} if auxiliary else {})
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
