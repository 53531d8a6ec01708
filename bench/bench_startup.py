"""Fixed cost of commands: wall time, and CPU time with all child processes.

    python bench/bench_startup.py [HOME] [--repeat 3]

HOME is that of `make demo`, by default `.orchestrion`. A repeated rebuild finds everything unchanged; a batch of one
piece is composed anew.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "--help": ["--help"],
    "presets": ["presets"],
    "models": ["models"],
    "runs": ["runs"],
    "datasets": ["datasets"],
    "rebuild, unchanged": ["rebuild", "--encoding", "remi", "--preset", "orchestrion_small_tiny", "--quiet"],
    "generate -n 1": ["generate", "-n", "1", "--fresh", "--quiet"],
}
WITHOUT_HOME = ("--help", "presets")


def measure(arguments: list[str]) -> tuple[float, float]:
    """Return the wall time and the CPU time of a command with its children."""
    before, started = os.times(), time.perf_counter()
    subprocess.run([sys.executable, "-m", "flows.cli", *arguments], check=True, capture_output=True)
    wall, after = time.perf_counter() - started, os.times()
    return wall, after.children_user - before.children_user + after.children_system - before.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("home", nargs="?", default=".orchestrion")
    parser.add_argument("--repeat", type=int, default=3)
    given = parser.parse_args()
    print("| command | wall, s | CPU, s |\n|---|---:|---:|")
    facts = {}
    for name, arguments in COMMANDS.items():
        options = [] if name in WITHOUT_HOME else ["--home", given.home]
        figures = [measure([*arguments, *options]) for _ in range(given.repeat)]
        facts[name] = [round(statistics.median(column), 2) for column in zip(*figures, strict=True)]
        print(f"| `{name}` | {facts[name][0]} | {facts[name][1]} |", flush=True)
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
