"""What the bench scripts share: rounds that alternate between the sides, and a JSON file that says what ran where.

Needs the standard library and this project's files alone, so that a script can run on a box with torch and nothing
else. Import it before torch.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from flows.services.environment import DEFAULTS

# How threads wait for each other decides what two cores are worth: as the command line sets it, before torch comes in.
for _name, _value in DEFAULTS.items():
    if _name.startswith(("OMP_", "GOMP_")):
        os.environ.setdefault(_name, _value)

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
MIDI_SUFFIXES = (".mid", ".midi", ".kar", ".rmi", ".smf")


@dataclass(slots=True)
class Timing:
    """Seconds of each round of one side: on the clock, and of this process's own work."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Median on the clock."""
        return statistics.median(self.wall)

    def as_json(self) -> dict[str, Any]:
        return {
            "median_seconds": round(self.seconds, 4),
            "median_cpu_seconds": round(statistics.median(self.cpu), 4),
            "rounds": [round(seconds, 4) for seconds in self.wall],
        }


def measure(sides: Mapping[str, Callable[[], Any]], rounds: int, warm_up: int = 1) -> dict[str, Timing]:
    """Time each side `rounds` times, the sides taking turns, so that a busy machine disturbs all of them alike."""
    timings = {name: Timing() for name in sides}
    for turn in range(-warm_up, rounds):
        for name, run in sides.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if turn >= 0:
                timings[name].wall.append(wall)
                timings[name].cpu.append(cpu)
    return timings


def parser(description: str, rounds: int, with_source: bool = True) -> argparse.ArgumentParser:
    """Return the options that all scripts have."""
    made = argparse.ArgumentParser(description=description)
    if with_source:
        made.add_argument("--source", type=Path, help="folder of MIDI files; by default the built-in sample corpus")
    made.add_argument("--rounds", type=int, default=rounds, help=f"timed rounds of each side; {rounds} by default")
    made.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON file")
    return made


@contextmanager
def source_folder(given: Path | None) -> Iterator[Path]:
    """Yield the folder to read: the given one, or the sample corpus in a temporary folder."""
    if given is not None:
        if not midi_files(given):
            sys.exit(f"--source {given}: no MIDI file there")
        yield given
        return
    from tasks.ingest.sources.sample_corpus import write_sample_corpus

    with tempfile.TemporaryDirectory(prefix="orchestrion-bench-") as folder:
        corpus = Path(folder) / "sample"
        write_sample_corpus(corpus)
        yield corpus


def midi_files(folder: Path) -> list[Path]:
    """Return the MIDI files below a folder, in order."""
    return sorted(p for p in folder.rglob("*") if p.name.lower().endswith(MIDI_SUFFIXES) and p.is_file())


def spread(items: Sequence[Any], n: int) -> list[Any]:
    """Return at most `n` items, evenly spaced over all of them."""
    if len(items) <= n:
        return list(items)
    return [items[index * len(items) // n] for index in range(n)]


def save(bench: str, case: str, record: Mapping[str, Any], results: Path, packages: Sequence[str]) -> None:
    """Print a record and put it into `<results>/<bench>.json` under `case`, such as the source's name."""
    path = results / f"{bench}.json"
    known = json.loads(path.read_text()) if path.exists() else {"bench": bench, "cases": {}}
    known["cases"][case] = {
        **record,
        "command": _command(),
        "commit": _commit(),
        "versions": {"python": platform.python_version(), **_versions(packages)},
        "machine": _machine(),
    }
    known["cases"] = dict(sorted(known["cases"].items()))
    results.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(known, indent=2, ensure_ascii=False) + "\n")
    print(json.dumps({case: known["cases"][case]}, indent=2, ensure_ascii=False))


def _command() -> str:
    """The command line, with the names of folders in place of their paths."""
    words = [f"bench/{Path(sys.argv[0]).name}", *sys.argv[1:]]
    return "python " + " ".join(word if "/" not in word or word == words[0] else Path(word).name for word in words)


def _commit() -> str:
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--match=NoTagMatches"],
            cwd=ROOT, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return said.stdout.strip()


def _versions(packages: Sequence[str]) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def _machine() -> dict[str, Any]:
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": _gpu(),
        "system": platform.platform(),
        "threads": {name: value for name, value in os.environ.items() if name.startswith(("OMP_", "GOMP_"))},
        "load_average": round(os.getloadavg()[0], 2),  # above `cores`: others were at work too
        "date": time.strftime("%F"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _gpu() -> str | None:
    torch = sys.modules.get("torch")  # only where the bench itself uses it
    return torch.cuda.get_device_name(0) if torch and torch.cuda.is_available() else None
