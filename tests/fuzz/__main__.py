"""Long runs by hand: `python -m tests.fuzz TARGET --inputs 100000 --seed 7`; `--file INPUT` reads one input again."""

import argparse
import sys
from pathlib import Path

from tests.fuzz.child import judge
from tests.fuzz.harness import SEED, find_targets, fuzz, load_target


def main() -> int:
    places = find_targets()
    options = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    options.add_argument("target", choices=[*places, "all"], help="the reader that is tried")
    options.add_argument("--inputs", type=int, default=100_000)
    options.add_argument("--seed", type=int, default=SEED)
    options.add_argument("--failures", type=Path, help="folder for the inputs that fail; else a new one")
    options.add_argument("--file", type=Path, help="read this input alone and say the verdict")
    given = options.parse_args()
    if given.file:
        word, wrong = judge(load_target(places[given.target]), given.file.read_bytes())
        print(wrong or word)
        return bool(wrong)
    outcomes = [
        fuzz(places[name], given.inputs, given.seed, given.failures)
        for name in (places if given.target == "all" else [given.target])
    ]
    print("\n".join(map(str, outcomes)))
    return any(outcome.failures for outcome in outcomes)


if __name__ == "__main__":
    sys.exit(main())
