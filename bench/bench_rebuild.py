"""How long does a whole rebuild take, with one worker and with two, and once more when nothing has changed?

    python bench/bench_rebuild.py --source some/folder

Runs `orchestrion rebuild` as a person would, each time into an empty home, the numbers of workers taking turns.
`work` is the time of the stages that workers share (parsing, analysing, encoding), as the command says it itself;
`flow` is what the command reports for the whole, Ray's start and the steps of one process included; `command` is from
start to exit, with the start of Python and of Prefect's own server. The first home of each turn is rebuilt unchanged.
"""

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import report

SHARED_STAGES = ("parsing", "analysing", "encoding")
PACKAGES = ("ray", "prefect", "mlflow", "pyarrow", "symusic", "numpy")


def main() -> None:
    options = report.parser(__doc__.splitlines()[0], rounds=2)
    options.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="numbers of Ray workers to compare")
    options.add_argument("--augment", action="store_true", help="with the default 25 variants of each training piece")
    given = options.parse_args()
    runs: dict[int, list[dict[str, Any]]] = {n: [] for n in given.workers}
    unchanged: list[dict[str, Any]] = []
    with (
        report.source_folder(given.source) as folder,
        tempfile.TemporaryDirectory(prefix="orchestrion-bench-") as temporary,
    ):
        name = folder.name
        for turn in range(given.rounds):
            for n_workers in given.workers:
                home = Path(temporary) / f"home-{turn}-{n_workers}"
                runs[n_workers].append(rebuild(folder, home, n_workers, given.augment))
                if n_workers == given.workers[0]:
                    unchanged.append(rebuild(folder, home, n_workers, given.augment))
                shutil.rmtree(home)
    first = runs[given.workers[0]][0]
    versions = {run["result"]["dataset_version"] for done in runs.values() for run in done}
    counts = {key: first["result"][key] for key in ("n_files", "n_notes", "n_tokens")}
    sides = {f"{n} workers": side(done, counts["n_files"]) for n, done in runs.items()}
    slow, fast = sides[f"{given.workers[0]} workers"], sides[f"{given.workers[-1]} workers"]
    record = {
        "ratio": round(slow["work_seconds"] / fast["work_seconds"], 2),
        "ratio_means": f"files/s of the shared stages with {given.workers[-1]} workers over {given.workers[0]}",
        "flow_ratio": round(slow["flow_seconds"] / fast["flow_seconds"], 2),
        "same_version": len(versions) == 1,
        **counts,
        "variants_of_a_training_piece": 25 if given.augment else 1,
        **sides,
        "unchanged": side(unchanged, counts["n_files"]),
    }
    report.save("rebuild", f"{name}, augmented" if given.augment else name, record, given.results, PACKAGES)


def rebuild(source: Path, home: Path, n_workers: int, augment: bool) -> dict[str, Any]:
    """Run the command once; return its JSON, the seconds it took and those of its stages."""
    command = [
        sys.executable,
        "-m",
        "flows.cli",
        "rebuild",
        "--source",
        str(source),
        "--home",
        str(home),
        "--json",
    ]
    if not augment:
        command += ["--set", "dataset.augment.transpositions=[0]", "--set", "dataset.augment.stretches=[1.0]"]
    started = time.perf_counter()
    environment = os.environ | {"ORCHESTRION_CPUS": str(n_workers)}
    done = subprocess.run(command, cwd=report.ROOT, env=environment, capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - started
    stages = {stage: float(took) for stage, took in re.findall(r"(\w+): \d+ \w+ in ([\d.]+) s", done.stderr)}
    return {"seconds": seconds, "result": json.loads(done.stdout.splitlines()[-1]), "stages": stages}


def side(runs: list[dict[str, Any]], n_files: int) -> dict[str, Any]:
    """Return medians over some runs."""
    flow = statistics.median(run["result"]["seconds"] for run in runs)
    return {
        "files_per_second": round(n_files / flow, 1),
        "flow_seconds": round(flow, 2),
        "work_seconds": round(statistics.median(work_of(run) for run in runs), 2),
        "stages": runs[0]["stages"],
        "command_seconds": round(statistics.median(run["seconds"] for run in runs), 2),
        "rounds": [run["result"]["seconds"] for run in runs],
    }


def work_of(run: dict[str, Any]) -> float:
    return sum(run["stages"].get(stage, 0.0) for stage in SHARED_STAGES)


if __name__ == "__main__":
    main()
