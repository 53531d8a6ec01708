"""Isolation of work that may crash, hang or fill the memory, in limited child processes.

A host process imports what the work needs once and forks a child for each piece of work. The child has limits on memory
and time. When it dies, the host reports the cause, and the next piece of work gets a fresh child.

    python -P -m tasks.runtime.isolation     (the host; started by `Host`, speaks on its standard input and output)
"""

import atexit
import importlib
import json
import math
import os
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from tasks.errors import RejectReason
from tasks.runtime.signals import die_with_parent

Item = TypeVar("Item")

_OUT_OF_MEMORY = 77  # exit status of a child

# A child lives for seconds and always touches fresh memory. Pages of 2 MiB and kept freed memory save a quarter of the
# time of reading.
_HOST_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "MALLOC_TOP_PAD_": str(64 * 2**20),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkLimits:
    """Limits of one piece of work."""

    seconds: float = 300.0  # of CPU time, or of waiting without any; never of waiting for a core
    memory_bytes: int = 4 * 2**30  # of address space, beyond what the host itself uses


@dataclass(frozen=True, slots=True)
class Death:
    """The end of unfinished work: `CRASHED`, `TIMED_OUT` or `OUT_OF_MEMORY`, and the evidence."""

    reason: RejectReason
    detail: str


class WorkError(Exception):
    """An exception of the work: its type, message and error number (0 unless it is an OSError)."""

    def __init__(self, kind: str, message: str, errno: int = 0) -> None:
        super().__init__(kind, message, errno)
        self.kind, self.message, self.errno = kind, message, errno

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


class Host:
    """A process that runs functions in limited children, one at a time; it ends with this process or by `close`."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, function: str, payload: bytes, limits: WorkLimits = WorkLimits()) -> bytes | Death:
        """Run `module:name`, a function of bytes that returns bytes, in a child; its exception is a WorkError."""
        process = self._running()
        assert process.stdin
        assert process.stdout
        try:
            _send(process.stdin, {"function": function} | asdict(limits), payload)
            reply, result = _receive(process.stdout)
        except (EOFError, BrokenPipeError):
            code = process.wait()
            self.close()
            return Death(RejectReason.CRASHED, f"the host process ended with {_exit_words(code)}")
        if "error" in reply:
            raise WorkError(*reply["error"])
        return Death(RejectReason(reply["death"][0]), reply["death"][1]) if "death" in reply else result

    def close(self) -> None:
        if self._process:
            self._process.kill()
            with suppress(BrokenPipeError), self._process:  # closes its pipes and waits
                self._process = None

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            command = [sys.executable, "-P", "-m", "tasks.runtime.isolation"]  # -P: without the working folder
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | _HOST_ENVIRONMENT
            )
            atexit.register(self.close)
        return self._process


def find_culprits(items: Sequence[Item], attempt: Callable[[Sequence[Item]], Death | None]) -> list[tuple[Item, Death]]:
    """Return the items for which `attempt` alone returns a death, by halving; about 2·log2(n) attempts for each."""
    death = attempt(items)
    if death is None:
        return []
    if len(items) == 1:
        return [(items[0], death)]
    half = len(items) // 2
    return find_culprits(items[:half], attempt) + find_culprits(items[half:], attempt)


def _send(stream: IO[bytes], header: Mapping[str, object], payload: bytes) -> None:
    stream.write(json.dumps({**header, "n_bytes": len(payload)}).encode() + b"\n")
    stream.write(payload)
    stream.flush()


def _receive(stream: IO[bytes]) -> tuple[dict[str, Any], bytes]:
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    header = json.loads(line)
    payload = stream.read(header["n_bytes"])
    if len(payload) < header["n_bytes"]:
        raise EOFError
    return header, payload


def _exit_words(code: int) -> str:
    names = {number.value: f" ({number.name})" for number in signal.Signals}
    return f"exit status {code}" if code >= 0 else f"signal {-code}{names.get(-code, '')}"


# --- in the host process


class _WithoutPandas:
    """An import hook: pyarrow looks for pandas with its first array, and its import takes 0.3 s of CPU."""

    @staticmethod
    def find_spec(name: str, *_: object) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(name)


def _serve(requests: IO[bytes], replies: IO[bytes]) -> None:
    die_with_parent()
    while True:
        try:
            header, payload = _receive(requests)
        except EOFError:
            return
        try:
            function = _load(header["function"])
        except Exception as error:
            _send(replies, {"error": [type(error).__name__, str(error)]}, b"")
            continue
        reply, result = _run_in_child(function, payload, float(header["seconds"]), int(header["memory_bytes"]))
        _send(replies, reply, result)


def _load(name: str) -> Callable[[bytes], bytes]:
    """Import a function; `prepare` of a new module runs once, so that children find compiled code."""
    module_name, _, attribute = name.partition(":")
    is_new = module_name not in sys.modules
    module = importlib.import_module(module_name)
    if is_new and hasattr(module, "prepare"):
        module.prepare()
    return getattr(module, attribute)


def _run_in_child(
    function: Callable[[bytes], bytes], payload: bytes, seconds: float, memory_bytes: int
) -> tuple[dict[str, object], bytes]:
    reading, writing = os.pipe()
    host, child = os.getpid(), os.fork()
    if child == 0:
        os.close(reading)
        die_with_parent()
        if os.getppid() != host:  # it died before the kernel was asked
            os._exit(1)
        _work(function, payload, writing, seconds, memory_bytes)
    os.close(writing)
    watch, parts = _Watch(child, seconds), list[bytes]()
    while True:
        if not select.select([reading], [], [], watch.interval)[0]:
            watch.look()
            continue
        part = os.read(reading, 1 << 20)
        if not part:
            break
        parts.append(part)
    os.close(reading)
    _, status, used = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status)
    kind, _, rest = b"".join(parts).partition(b"\n")
    if code == 0 and kind in (b"result", b"error"):
        return ({}, rest) if kind == b"result" else (json.loads(rest), b"")
    limit = "limit of one piece of work"
    if watch.is_idle:
        death = [RejectReason.TIMED_OUT, f"not done after {seconds:g} s of waiting without CPU time, {limit}"]
    elif code == -signal.SIGXCPU or (code == -signal.SIGKILL and used.ru_utime + used.ru_stime >= seconds):
        death = [RejectReason.TIMED_OUT, f"not done after {seconds:g} s of CPU time, {limit}"]
    elif code == _OUT_OF_MEMORY:
        death = [RejectReason.OUT_OF_MEMORY, f"needs more than {memory_bytes >> 20} MiB, {limit}"]
    else:
        death = [RejectReason.CRASHED, f"the reader {'died of' if code < 0 else 'ended with'} {_exit_words(code)}"]
    return {"death": death}, b""


class _Watch:
    """Kills a child that sleeps too long without CPU time; waiting for a core or a disk is no sleep."""

    def __init__(self, child: int, seconds: float) -> None:
        self.child, self.seconds = child, seconds
        self.interval = min(1.0, seconds / 4)
        self.is_idle = False
        self._n_idle, self._used = 0, -1

    def look(self) -> None:
        """Check the child once an interval; a late check counts like any other."""
        try:
            fields = Path(f"/proc/{self.child}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return  # without Linux
        used = int(fields[11]) + int(fields[12])
        self._n_idle = self._n_idle + 1 if fields[0] == "S" and used == self._used else 0
        self._used = used
        if self._n_idle * self.interval >= self.seconds and not self.is_idle:
            self.is_idle = True
            os.kill(self.child, signal.SIGKILL)


def _limit(which: int, soft: int, hard: int) -> None:
    """Set a limit of this process; a lower one stays."""
    highest = resource.getrlimit(which)[1]
    if highest != resource.RLIM_INFINITY:
        soft, hard = min(soft, highest), min(hard, highest)
    resource.setrlimit(which, (soft, hard))


def _work(function: Callable[[bytes], bytes], payload: bytes, writing: int, seconds: float, memory_bytes: int) -> None:
    """Do the work in the child; never returns."""
    code = 1
    try:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        _limit(resource.RLIMIT_AS, used + memory_bytes, used + memory_bytes)
        _limit(resource.RLIMIT_CORE, 0, 0)
        _limit(resource.RLIMIT_CPU, math.ceil(seconds), math.ceil(seconds) + 1)  # SIGXCPU, then SIGKILL
        answer, code = b"result\n" + function(payload), 0
    except MemoryError:
        answer, code = b"", _OUT_OF_MEMORY
    except BaseException as error:
        message = getattr(error, "strerror", None) or str(error)  # the text of an OSError repeats its number
        facts = [type(error).__name__, message, getattr(error, "errno", None) or 0]
        answer, code = b"error\n" + json.dumps({"error": facts}).encode(), 0
    try:
        while answer:
            answer = answer[os.write(writing, answer) :]
    finally:
        os._exit(code)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what the work prints goes to stderr, not between the replies
    sys.meta_path.insert(0, _WithoutPandas)  # type: ignore[arg-type]
    _serve(requests, replies)
