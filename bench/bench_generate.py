"""How many pieces a minute does a batch compose, files, pictures and sound included, and where does the time go?

    PYTHONPATH=. python bench/bench_generate.py

Sixty-four pieces, each of 1,024 tokens, by the RGA edition's model at its published size (10.8 million parameters),
from `orchestrion generate` on to the finished page, with one worker and with one for each core. The model has learned
on the sample corpus for `--steps`, which is enough for lengths of notes and pauses like those of music; sound costs by
its minute, so the minutes are in the results.

The memory-bandwidth limit is what reading all weights once for a step, and each row's keys and values once, would take
at the rate at which this machine sums a large array: nothing that keeps float32 keys and values can be faster.
"""

import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import report
import torch
from bench_evidence import orchestrion, sets

PACKAGES = ("torch", "numpy", "ray")
N_LAYERS, D_MODEL, BYTES = 6, 512, 4
SETTINGS = (
    "train.batch_size=4", "train.seq_len=512", "train.validation_windows=2",
    'train.schedule={"name":"warmup_cosine","max_lr":0.001,"warmup_steps":10}',
)  # fmt: skip


def main() -> None:
    options = report.parser(__doc__.splitlines()[0], rounds=1, with_source=False)
    options.add_argument("--home", type=Path, default=Path(".bench-generate"), help="folder of all that is built")
    options.add_argument("--pieces", type=int, default=64)
    options.add_argument("--tokens", type=int, default=1024)
    options.add_argument("--steps", type=int, default=100, help="of the model's training")
    options.add_argument("--workers", type=int, nargs="+", default=[1, os.cpu_count() or 1])
    given = options.parse_args()
    orchestrion(given.home, "rebuild", "--preset", "rga", "--name", "bench")
    changes = [*SETTINGS, f"train.n_steps={given.steps}", f"train.eval_interval={given.steps}"]
    trained = orchestrion(given.home, "train", "--preset", "rga", "--dataset", "bench", *sets(changes))
    for n_workers in dict.fromkeys(given.workers):
        rounds = [compose(given, n_workers) for _ in range(given.rounds)]
        record = summary(rounds, given.pieces, given.tokens, trained["n_parameters"], n_workers)
        report.save("generate", f"rga on cpu, {n_workers} workers", record, given.results, PACKAGES)


def compose(given: Any, n_workers: int) -> dict[str, Any]:
    """Compose the batch and return what was measured."""
    rows = -(-given.pieces // n_workers)
    changes = [
        f"generate.sampling.max_tokens={given.tokens}", f"generate.sampling.min_new_tokens={given.tokens - 1}",
        "generate.sampling.temperature=1.0",
        "generate.sampling.top_p=null", f"generate.n_workers={n_workers}", f"generate.batch_size={rows}",
    ]  # fmt: skip
    arguments = ("generate", "--preset", "rga", "-n", str(given.pieces), "--fresh", *sets(changes))
    started = time.perf_counter()
    batch = orchestrion(given.home, *arguments)
    seconds = time.perf_counter() - started
    results = json.loads(Path(f"{batch['batch_dir']}.results.json").read_text())
    return results | {"seconds": seconds, "music_seconds": batch["metrics"]["seconds"] * batch["n_pieces"]}


def summary(rounds: list[dict[str, Any]], n_pieces: int, n_tokens: int, n_weights: int, n_workers: int) -> Any:
    """Return medians over the rounds."""

    def median(of: Any) -> float:
        return statistics.median(of(found) for found in rounds)

    stages = {
        stage: median(lambda found, stage=stage: found["stage_seconds"][stage]) for stage in rounds[0]["stage_seconds"]
    }
    n_drawn = sum(row["generated_length"] for row in rounds[0]["pieces"])
    scoring = median(lambda found: sum(row["scoring_time"] for row in found["pieces"])) / n_workers
    sampling = stages["writing"] - scoring
    whole, total = sum(stages.values()), median(lambda found: found["seconds"])
    limit = bandwidth_limit(n_pieces, n_drawn / n_pieces, n_weights, n_workers)
    return {
        "ratio": round(limit / sampling, 3),
        "ratio_means": "share of the memory-bandwidth limit that sampling reaches, model loading included",
        "pieces": n_pieces,
        "tokens_drawn": n_drawn,
        "minutes_of_music": round(median(lambda found: found["music_seconds"]) / 60, 1),
        "workers": n_workers,
        "pieces_per_minute": round(60 * n_pieces / whole, 2),
        "pieces_per_minute_of_the_whole_command": round(60 * n_pieces / total, 2),
        "share_of_rendering_scoring_and_judging": round(1 - sampling / whole, 3),
        "median_seconds": {"command": round(total, 1), "sampling": round(sampling, 1), "scoring": round(scoring, 1)}
        | {stage: round(seconds, 1) for stage, seconds in stages.items() if stage != "writing"},
        "tokens_per_second": round(n_drawn / sampling),
        "bandwidth_limit_seconds": round(limit, 1),
        "rounds": [round(found["seconds"], 1) for found in rounds],
        "tokens_of_a_piece": n_tokens,
    }


def bandwidth_limit(n_pieces: int, n_tokens: float, n_weights: int, n_workers: int) -> float:
    """Return the seconds in which this machine reads what sampling must read: weights and caches, once a step."""
    weights = n_tokens * n_weights * BYTES * n_workers
    caches = n_pieces * N_LAYERS * 2 * D_MODEL * BYTES * n_tokens**2 / 2
    return (weights + caches) / bytes_per_second()


def bytes_per_second() -> float:
    """Return at which rate all cores together read memory."""
    values, rates = torch.from_numpy(np.ones(1 << 28, np.float32)), []
    for _ in range(5):
        started = time.perf_counter()
        values.sum()
        rates.append(values.numel() * BYTES / (time.perf_counter() - started))
    return max(rates)


if __name__ == "__main__":
    main()
