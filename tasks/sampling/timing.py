"""Time and entropy of sampled pieces, as rows of a results file."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.sampling.sample_ids import WrittenIds


@dataclass(frozen=True, slots=True, kw_only=True)
class Continued:
    """What a piece continues: its name, file, and lengths in tokens; empty and 0 where there is no prompt.

    Args:
        prompt_length, original_length: tokens taken of it, and of all of it.
        n_compared: tokens at its beginning that are set beside the piece; 0 where none are.
        folder: the four MIDI files of `continuation_files`.
    """

    prompt: str = ""
    path: str = ""
    prompt_length: int
    original_length: int = 0
    n_compared: int = 0
    folder: str = ""


def result_row(piece: WrittenIds, continued: Continued, end_id: int, scoring_time: float) -> dict[str, Any]:
    """Return the measurements of one piece, ready for JSON; see `results_of`. `scoring_time` is in seconds."""
    n_given, n_compared = continued.prompt_length, continued.n_compared
    return {
        "composition_dir": continued.folder or None,
        "prompt": continued.prompt or None,
        "prompt_original_path": continued.path or None,
        "prompt_length": n_given,
        "generated_length": len(piece.ids) - n_given,
        "original_length": continued.original_length or None,
        "continued_original_length": max(n_compared - n_given, 0) if n_compared else None,
        "ended_with_eos": bool(piece.ids[-1] == end_id) and piece.chain is None,  # a chain ends with its last bar
        "entropy": round(float(np.mean(piece.entropies)), 4) if len(piece.entropies) else None,
        "generation_time": round(piece.seconds, 4),
        "scoring_time": round(scoring_time, 4),
        "entropies": [round(float(entropy), 3) for entropy in piece.entropies],
    }


def results_of(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return lengths, entropies and times of rows of `result_row`; measured, so they differ between runs.

    Lengths are in tokens: `original_length` of a prompt's whole file, `prompt_length` of the used part,
    `continued_original_length` of what follows it there, up to the most tokens that a piece may have. Entropies are in
    nats, of the model's distribution at each drawn token. `generation_time` is a piece's share of the seconds of the
    steps that sampled it, `scoring_time` the seconds of its MIDI, statistics and checks.
    """
    means = [row["entropy"] for row in rows if row["entropy"] is not None]
    return {
        "mean_entropy": round(float(np.mean(means)), 4) if means else None,
        "mean_generation_time": round(float(np.mean([row["generation_time"] for row in rows])), 4),
        "pieces": list(rows),
    }


class Clock:
    """Seconds of the stages of some work, in sequence."""

    def __init__(self) -> None:
        self.seconds = dict[str, float]()
        self.begun = time.perf_counter()

    def stop(self, stage: str) -> None:
        """Say that a stage is over and the next one begins."""
        now = time.perf_counter()
        self.seconds[stage], self.begun = round(now - self.begun, 3), now
