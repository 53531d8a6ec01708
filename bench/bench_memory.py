"""Do the systems learn a few pieces by heart, as their authors show?

    PYTHONPATH=. python bench/bench_memory.py --home /tmp/memory --source ~/midi/js-fakes [--only rga_tiny ...]

S000 reaches an accuracy of 0.99 and a loss of 0.05 on 20 pieces, S001 a loss of 0.1 on one song of less than 5,000
characters, S002 reconstructs 8 pieces with an accuracy of 0.99. Each row takes the first files of the folder, builds a
dataset of them, trains the system's twin on it, and evaluates it twice: on the pieces that it has learned and on the
others. All by the command line; the script stops if a goal is missed.
"""

import argparse
import dataclasses
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import report
from bench_evidence import PACKAGES, orchestrion, sets

HELD_OUT = 2  # files of a split, which a dataset needs; beside those that are learned


@dataclasses.dataclass(frozen=True)
class Row:
    """What is learned by heart, and what is to be reached on it."""

    preset: str
    n_pieces: int
    least_accuracy: float
    most_nats: float
    n_steps: int
    settings: tuple[str, ...]


ROWS = (
    Row("rga_tiny", 20, 0.99, 0.05, 6000, ("train.optimizer.weight_decay=0.0",)),
    Row("char_gpt_tiny", 1, 0.0, 0.1, 1500, ("train.optimizer.weight_decay=0.0",)),
    Row("mmm_vae_tiny", 8, 0.99, float("inf"), 2000, ("train.model.token_dropout=0.0",)),
)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--home", type=Path, default=Path(".memory"), help="folder of all that is built")
    options.add_argument("--source", type=Path, required=True, help="folder of MIDI")
    options.add_argument("--only", nargs="*", default=[], help="presets; by default all")
    options.add_argument("--results", type=Path, default=report.RESULTS, help="folder for the JSON file")
    given = options.parse_args()
    for row in ROWS:
        if not given.only or row.preset in given.only:
            report.save("memory", row.preset, run_row(row, given), given.results, PACKAGES)


def run_row(row: Row, given: argparse.Namespace) -> dict[str, Any]:
    """Train a preset on a few files and return how well it knows them."""
    folder = few_files(given.source, given.home / "midi" / row.preset, row.n_pieces)
    name = f"memory-{row.preset.replace('_', '-')}"
    built = orchestrion(
        given.home, "rebuild", "--source", str(folder), "--preset", row.preset, "--name", name,
        *sets(["dataset.augment.transpositions=[0]", "dataset.augment.stretches=[1.0]"]),
    )  # fmt: skip
    started = time.perf_counter()
    # One look at the held-out pieces, at the end: the weights kept are the last, not those that know these best.
    changes = [*row.settings, f"train.n_steps={row.n_steps}", f"train.eval_interval={row.n_steps}"]
    trained = orchestrion(given.home, "train", "--preset", row.preset, "--dataset", name, *sets(changes))
    seconds = time.perf_counter() - started
    learned, held_out = (score(given.home, trained["model_version"], row.preset, name, s) for s in ("train", "test"))
    nats = learned.get("reconstruction", learned["nll_per_token"])
    if learned["accuracy"] < row.least_accuracy or nats > row.most_nats:
        sys.exit(f"{row.preset}: accuracy {learned['accuracy']:.4f}, {nats:.4f} nats per token of what it has learned")
    return {
        "ratio": round(learned["accuracy"] / held_out["accuracy"], 2),
        "ratio_means": "accuracy on the pieces learned over that on others",
        "preset": row.preset,
        "settings": changes,
        "n_pieces": row.n_pieces,
        "n_parameters": trained["n_parameters"],
        "steps": trained["step"],
        "train_seconds": round(seconds, 1),
        "learned": learned,
        "held_out": held_out,
        "run_id": trained["run_id"],
        "dataset_version": built["dataset_version"],
    }


def few_files(source: Path, folder: Path, n_pieces: int) -> Path:
    """Copy the first files of a folder to `train`, `validation` and `test` below another."""
    shutil.rmtree(folder, ignore_errors=True)
    found = iter(sorted(source.rglob("*.mid")))
    for split, n in (("train", n_pieces), ("validation", HELD_OUT), ("test", HELD_OUT)):
        (folder / split).mkdir(parents=True)
        for _ in range(n):
            shutil.copy(next(found), folder / split)
    return folder


def score(home: Path, model: str, preset: str, dataset: str, split: str) -> dict[str, float]:
    changes = sets([f"evaluate.split={split}", "evaluate.n_samples=0"])
    scored = orchestrion(home, "evaluate", "--model", model, "--preset", preset, "--dataset", dataset, *changes)
    return {key: value for key, value in scored["metrics"].items() if not key.startswith(("held_out/", "samples/"))}


if __name__ == "__main__":
    main()
