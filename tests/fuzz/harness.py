"""Fuzzing: many mutants of well-formed inputs, each read by one function, with a verdict on each.

A target is one reader: a module in `tests/fuzz/targets/` with a `TARGETS` tuple. The inputs of a target follow from a
seed and their number, so that a failure is repeated by `python -m tests.fuzz NAME --file FILE`, or by its number. They
are read in a process of their own (`tests.fuzz.child`), which may die without harm. An input fails if its reader

- raises anything but the errors that the target allows, or an allowed one whose message is not one line;
- uses more CPU time than the target allows, or uses no CPU time and comes to no end;
- kills its process, or needs more memory than the target allows.

The verdict does not depend on wall-clock time, so it does not depend on how busy the machine is.
"""

import importlib
import json
import os
import pkgutil
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tasks.errors import OrchestrionError
from tests.fuzz import targets
from tests.fuzz.mutators import BINARY, Mutator, mutate

REPOSITORY = Path(__file__).resolve().parent.parent.parent
N_INPUTS = 300  # of each target in `make test`; ORCHESTRION_FUZZ_INPUTS sets another number
SEED = 20261130
MAX_FAILURES = 20  # where a target is stopped: more would say nothing new
MESSAGE_MAX = 2_000  # characters of an error that is still one line to read
IDLE_SECONDS = 120  # without a new input, and without any CPU time used in all of it: the reader waits for nothing


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """One reader and what it is given.

    Args:
        name: as in `python -m tests.fuzz NAME`.
        seeds: returns well-formed inputs, the same in every process.
        check: reads one input; what it asserts of the result is part of the verdict. A returned string is counted.
        mutators: what is done to the seeds.
        allowed: the errors that refuse an input; their message must be one line.
        seconds: of CPU time for one input.
        memory_bytes: of address space beyond what the process has before the first input.
    """

    name: str
    seeds: Callable[[], Sequence[bytes]]
    check: Callable[[bytes], object]
    mutators: Sequence[Mutator] = BINARY
    allowed: tuple[type[Exception], ...] = (OrchestrionError,)
    seconds: int = 20
    memory_bytes: int = 4 * 2**30


@dataclass(frozen=True, slots=True)
class Failure:
    """An input that a reader did not stand: its number, what happened, and the file it was written to."""

    index: int
    what: str
    path: Path

    def __str__(self) -> str:
        return f"input {self.index}: {self.what}\n    {self.path}"


@dataclass(slots=True)
class Outcome:
    """What a run gave: how many inputs were read, refused (by the word or class of the error) or failed.

    Where a process died, the inputs before the fatal one are in `n_inputs`, and up to 255 of them not in `counts`.
    """

    target: str
    seed: int
    n_inputs: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)

    def __str__(self) -> str:
        counts = ", ".join(f"{name} {n:,}" for name, n in self.counts.most_common())
        head = f"{self.target}: {self.n_inputs:,} inputs of seed {self.seed}, {len(self.failures)} failed ({counts})"
        return "\n".join([head, *map(str, self.failures)])


def n_inputs() -> int:
    """Return how many inputs a test gives each target."""
    return int(os.environ.get("ORCHESTRION_FUZZ_INPUTS", N_INPUTS))


def find_targets() -> dict[str, str]:
    """Return name -> place (`module:name`) of every target in `tests/fuzz/targets/`."""
    found = {}
    for module in pkgutil.iter_modules(targets.__path__, f"{targets.__name__}."):
        for target in importlib.import_module(module.name).TARGETS:
            found[target.name] = f"{module.name}:{target.name}"
    return found


def load_target(place: str) -> Target:
    """Return the target at `module:name`."""
    module_name, _, name = place.partition(":")
    return next(target for target in importlib.import_module(module_name).TARGETS if target.name == name)


def make_input(target: Target, seeds: Sequence[bytes], seed: int, index: int) -> bytes:
    """Return one input; it depends on nothing but the target, its seeds and the two numbers."""
    return mutate(seeds, target.mutators, random.Random(f"{seed}/{index}"))


def fuzz(place: str, n_inputs: int, seed: int = SEED, folder: Path | None = None) -> Outcome:
    """Give a target its inputs 0 to `n_inputs` - 1.

    Args:
        folder: where failing inputs are written; a new temporary folder without it.
    """
    target = load_target(place)
    outcome, seeds = Outcome(target.name, seed), target.seeds()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        control = Path(scratch) / "index"
        begin = 0
        while begin < n_inputs and len(outcome.failures) < MAX_FAILURES:
            control.write_bytes(begin.to_bytes(8, "little"))
            found, death = _run_child(place, seed, begin, n_inputs, control, outcome.counts)
            if death:
                found.append((int.from_bytes(control.read_bytes(), "little"), death))
            for index, what in found:
                folder = folder or Path(tempfile.mkdtemp(prefix="fuzz-failures-"))
                folder.mkdir(parents=True, exist_ok=True)
                path = folder / f"{target.name}-{seed}-{index}.bin"
                path.write_bytes(make_input(target, seeds, seed, index))
                outcome.failures.append(Failure(index, what, path))
            begin = int.from_bytes(control.read_bytes(), "little") + 1
        outcome.n_inputs = min(begin, n_inputs)
    return outcome


def _run_child(
    place: str, seed: int, begin: int, end: int, control: Path, counts: Counter[str]
) -> tuple[list[tuple[int, str]], str]:
    """Run one child; return the failures it told of, and what it died of or nothing."""
    command = [sys.executable, "-m", "tests.fuzz.child", place, str(seed), str(begin), str(end), str(control)]
    found, said, is_done = list[tuple[int, str]](), b"", False
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as child:
        assert child.stdout is not None
        watch = _Watch(child.pid, control)
        while True:
            if not select.select([child.stdout], [], [], 5)[0]:
                if watch.is_idle():
                    child.send_signal(signal.SIGKILL)
                    child.wait()
                    return found, f"comes to no end and uses no CPU time ({IDLE_SECONDS} s)"
                continue
            part = os.read(child.stdout.fileno(), 1 << 16)
            if not part:
                break
            *lines, said = (said + part).split(b"\n")
            for line in lines:
                message = json.loads(line)
                counts.update(message.get("counts", {}))
                found.extend((index, what) for index, what in message.get("failures", []))
                is_done = is_done or message.get("done", False)
    if is_done:
        return found, ""
    code = child.returncode
    if code == -signal.SIGXCPU:
        return found, "uses more CPU time than its target allows"
    return found, f"its process ended with {signal.Signals(-code).name if code < 0 else f'exit status {code}'}"


class _Watch:
    """Tells whether a process has used no CPU time, and begun no input, for a long while."""

    def __init__(self, pid: int, control: Path) -> None:
        self._process, self._control = psutil.Process(pid), control
        self._state, self._since = None, time.monotonic()

    def is_idle(self) -> bool:
        try:
            used = self._process.cpu_times()
        except psutil.NoSuchProcess:
            return False
        state = (self._control.read_bytes(), used.user + used.system)
        if state != self._state:
            self._state, self._since = state, time.monotonic()
        return time.monotonic() - self._since > IDLE_SECONDS
