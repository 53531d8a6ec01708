"""The process that reads the inputs of a target: `python -m tests.fuzz.child PLACE SEED BEGIN END CONTROL`.

The number of the input in work stands in the file CONTROL, so that whoever started this process knows what killed it.
Each input has its own limit of CPU time, which the kernel keeps: compiled code that hangs is ended too.
"""

import gc
import json
import mmap
import os
import resource
import sys
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

from tests.fuzz.harness import MAX_FAILURES, MESSAGE_MAX, Target, load_target, make_input

_TELL_EVERY = 256  # inputs


def judge(target: Target, data: bytes) -> tuple[str, str]:
    """Read one input; return a word for the counts, and what is wrong or nothing."""
    try:
        said = target.check(data)
    except target.allowed as error:
        message = str(error)
        word = getattr(error, "reason", type(error).__name__)
        if not message.strip() or len(message.splitlines()) > 1:
            return "failed", f"{type(error).__name__} whose message is not one line: {message[:300]!r}"
        if len(message) > MESSAGE_MAX:
            return "failed", f"{type(error).__name__} with a message of {len(message)} characters: {message[:300]!r}"
        return word, ""
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return "failed", f"{type(error).__name__}: {str(error)[:300]} ({place.filename}:{place.lineno})"
    return said if isinstance(said, str) else "read", ""


def _limit_time(seconds: int) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    soft = int(used.ru_utime + used.ru_stime) + 1 + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _limit_memory(n_bytes: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + n_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main(place: str, seed: int, begin: int, end: int, control: Path) -> None:
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a reader prints does not go between the replies
    target = load_target(place)
    seeds = target.seeds()
    for data in seeds:  # a seed that is refused would make the whole run say nothing; and this compiles the reader
        word, wrong = judge(target, data)
        if wrong:
            raise SystemExit(f"a seed of {target.name} is not read: {wrong}")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _limit_memory(target.memory_bytes)
    counts, failures, n_failures = Counter[str](), list[tuple[int, str]](), 0

    def tell(**more: Any) -> None:
        print(json.dumps({"counts": counts, "failures": failures} | more), file=replies, flush=True)
        counts.clear()
        failures.clear()

    with control.open("r+b") as file, mmap.mmap(file.fileno(), 8) as shared:
        for index in range(begin, end):
            shared[:8] = index.to_bytes(8, "little")
            data = make_input(target, seeds, seed, index)
            _limit_time(target.seconds)
            word, wrong = judge(target, data)
            counts[word] += 1
            if wrong:
                failures.append((index, wrong))
                n_failures += 1
            if wrong or (index + 1) % _TELL_EVERY == 0:
                tell()
                gc.collect()
            if n_failures >= MAX_FAILURES:
                break
    tell(done=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
