"""Does a rebuild hold out? Very many small files: rate from start to end, memory, and again with nothing changed.

    python bench/bench_scale.py --source some/folder --files 20000
    python bench/bench_scale.py --source some/folder --files 1000000      (once; half an hour)

The files are made from real ones: each takes some bars' worth of notes from two random pieces of the source, transposed
and stretched, and is written as a MIDI file of its own into one uncompressed tar archive, which stands for a folder.
`orchestrion rebuild` then runs on it as a person would, without augmentation, and is looked at from outside: resident
memory of the driver and of every process below it twice a second, and the times at which song shards appear. The rate
at the end over the rate at the start compares the last fifth of the parsed files with the first fifth after the first
twentieth, in which processes still start. Then the same command runs again, with nothing changed.
"""

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import report

from tasks.errors import BadScore
from tasks.music.midi.read_midi import read_midi
from tasks.music.midi.writer import write_midi
from tasks.music.score import Score, build_score

PACKAGES = ("ray", "prefect", "mlflow", "pyarrow", "numba", "numpy")
MIN_NOTES, MAX_NOTES = 30, 90  # taken from each of the two pieces
LOOKS_PER_SECOND = 2.0


def main() -> None:
    options = report.parser(__doc__.splitlines()[0], rounds=1)
    options.add_argument("--files", type=int, default=20_000, help="how many files to make")
    options.add_argument("--archive", type=Path, help="an archive of that many files that an earlier run has made")
    options.add_argument("--scratch", type=Path, help="folder for archive and home; by default a temporary one")
    given = options.parse_args()
    with (
        report.source_folder(given.source) as folder,
        tempfile.TemporaryDirectory(prefix="orchestrion-bench-", dir=given.scratch) as temporary,
    ):
        name = folder.name
        archive = given.archive or Path(temporary) / f"{name}-{given.files}.tar"
        if not archive.exists():
            make_archive(report.midi_files(folder), given.files, archive)
        home = Path(temporary) / "home"
        first = rebuild(archive, home)
        rates = parse_rates(home)
        again = rebuild(archive, home)
        n_bytes = archive.stat().st_size
        record = {
            "ratio": rates["end_over_start"],
            "ratio_means": "files parsed in a second in the last fifth over the first fifth",
            "rounds": 1,
            "files": given.files,
            "archive_bytes": n_bytes,
            **{key: first["result"][key] for key in ("n_accepted", "n_duplicate", "n_rejected", "n_notes", "n_tokens")},
            "seconds": first["seconds"],
            "files_per_second": round(given.files / first["seconds"]),
            "parse_files_per_second": rates["files_per_second"],
            "driver_peak_mib": first["driver_mib"],
            "worker_peak_mib": first["worker_mib"],
            "worker_mib_by_quarter": first["worker_mib_by_quarter"],
            "stages": first["stages"],
            "unchanged_seconds": again["seconds"],
            "unchanged_share": round(again["seconds"] / first["seconds"], 4),
            "unchanged_reused": again["result"]["reused"],
            "unchanged_driver_peak_mib": again["driver_mib"],
            "data_bytes": sum(path.stat().st_size for path in home.rglob("*.parquet")),
        }
    report.save("scale", f"{name}, {given.files}", record, given.results, PACKAGES)


def make_archive(paths: list[Path], n_files: int, archive: Path) -> None:
    """Write `n_files` pieces spliced from the files of `paths`; piece i depends on (i, paths) alone."""
    scores = []
    for path in report.spread(paths, 3000):
        try:
            scores.append(read_midi(path))
        except BadScore:
            continue
    with tarfile.open(archive, "w") as tar:
        for index in range(n_files):
            data = write_midi(splice(scores, index))
            member = tarfile.TarInfo(f"{index // 1000:04d}/{index:07d}.mid")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def splice(scores: list[Score], index: int) -> Score:
    """Return some notes of two random pieces, one after the other, transposed and stretched."""
    random = np.random.default_rng(index)
    columns: dict[str, list[np.ndarray]] = {name: [] for name in ("onset", "duration", "pitch", "velocity")}
    now = 0
    for score in (scores[place] for place in random.integers(0, len(scores), 2)):
        notes = score.notes
        n = int(random.integers(MIN_NOTES, MAX_NOTES))
        first = int(random.integers(0, max(len(notes.pitch) - n, 1)))
        chosen = slice(first, first + n)
        scale = 480 / score.ticks_per_quarter * float(random.choice([0.5, 0.75, 1.0, 1.5]))
        onset = np.floor((notes.onset[chosen] - notes.onset[first]) * scale).astype(np.int64) + now
        pitch = notes.pitch[chosen].astype(np.int64)
        shift = int(random.integers(-5, 7))
        if 0 <= pitch.min() + shift <= pitch.max() + shift <= 127:
            pitch += shift
        columns["onset"].append(onset)
        columns["duration"].append(np.clip((notes.duration[chosen] * scale).astype(np.int64), 1, 1920))
        columns["pitch"].append(pitch)
        columns["velocity"].append(notes.velocity[chosen])
        now = int(onset[-1]) + 480
    flat = {name: np.concatenate(parts) for name, parts in columns.items()}
    n = len(flat["pitch"])
    flat |= {name: np.zeros(n, np.uint8) for name in ("program", "is_drum", "track")}
    return build_score(480, flat)


def rebuild(archive: Path, home: Path) -> dict[str, Any]:
    """Run the command and look at its processes until it ends."""
    command = [
        sys.executable,
        "-m",
        "flows.cli",
        "rebuild",
        "--source",
        str(archive),
        "--home",
        str(home),
        "--json",
    ]
    command += ["--set", "dataset.augment.transpositions=[0]", "--set", "dataset.augment.stretches=[1.0]"]
    command += ["--set", "dataset.leakage.max_leaked_share=1.0"]  # spliced pieces share whole phrases by design
    started = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=report.ROOT, env=dict(os.environ)
    )
    looks: list[tuple[float, float]] = []
    watcher = threading.Thread(target=watch, args=(process.pid, looks))
    watcher.start()
    out, said = process.communicate()
    seconds = time.perf_counter() - started
    watcher.join()
    if process.returncode:
        sys.exit(f"rebuild failed: {said[-2000:]}")
    quarters = np.array_split(np.array([worker for _, worker in looks if worker]), 4)
    return {
        "seconds": round(seconds, 2),
        "result": json.loads(out.splitlines()[-1]),
        "driver_mib": round(max(driver for driver, _ in looks)),
        "worker_mib": round(max(worker for _, worker in looks)),
        "worker_mib_by_quarter": [round(float(quarter.max())) if len(quarter) else 0 for quarter in quarters],
        "stages": [line for line in said.splitlines() if " in " in line],
    }


def watch(pid: int, looks: list[tuple[float, float]]) -> None:
    """Note the resident memory of the driver, and of the largest process below it that works for us, in MiB."""
    driver = psutil.Process(pid)
    while True:
        try:
            mine = driver.memory_info().rss / 2**20
            below = [own_memory(child) for child in driver.children(recursive=True) if is_worker(child)]
        except psutil.Error:
            return
        if driver.status() == psutil.STATUS_ZOMBIE:
            return
        looks.append((mine, max(below, default=0.0)))
        time.sleep(1 / LOOKS_PER_SECOND)


def is_worker(process: psutil.Process) -> bool:
    try:
        words = " ".join(process.cmdline())
    except psutil.Error:
        return False
    return "tasks.runtime.isolation" in words or words.startswith("ray::")


def own_memory(process: psutil.Process) -> float:
    try:
        memory = process.memory_info()
    except psutil.Error:
        return 0.0
    return (memory.rss - memory.shared) / 2**20


def parse_rates(home: Path) -> dict[str, float]:
    """Return the rates at which files became song shards, from the shards' times."""
    shards = sorted((path.stat().st_mtime, pq.read_metadata(path).num_rows) for path in home.glob("datasets/*/songs/*"))
    times, files = np.array([at for at, _ in shards]), np.cumsum([n for _, n in shards])

    def rate(low: float, high: float) -> float:
        begin, end = np.searchsorted(files, [low * files[-1], high * files[-1]])
        end = min(int(end), len(files) - 1)
        return float((files[end] - files[begin]) / max(times[end] - times[begin], 1e-9))

    return {"files_per_second": round(rate(0.05, 1.0)), "end_over_start": round(rate(0.8, 1.0) / rate(0.05, 0.25), 3)}


if __name__ == "__main__":
    main()
