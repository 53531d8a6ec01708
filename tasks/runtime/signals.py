"""Signals that end a command, and their effect while models train."""

import ctypes
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

logger = logging.getLogger(__name__)

ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
REPEAT_SECONDS = 3.0
SAVE_SECONDS = 15.0  # of the 25 s that a command has to end
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # a child must not load it between fork and exec
LAST_WORDS_SECONDS = 2.0
_holds: list[None] = []
_waiting: list[int] = []  # signals that came while held
_last_words: list[Callable[[], object]] = []
_last_heard = [float("-inf")]


def ends() -> list[signal.Signals]:
    """Return the signals that end a command: `ENDS`, without SIGHUP if it is ignored, as under nohup.

    A shell starts its background jobs with SIGINT ignored; a SIGINT sent to one still ends it.
    """
    return [number for number in ENDS if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN]


def is_repeat() -> bool:
    """Return whether this signal repeats the last one, which came just before.

    timeout(1) sends two, to the process and to its group; systemd and a shell whose terminal is closed add a SIGHUP.
    The second one must not interrupt the effect of the first.
    """
    now = time.monotonic()
    if now - _last_heard[0] < REPEAT_SECONDS:
        return True
    _last_heard[0] = now
    return False


def _forget_last() -> None:
    _last_heard[0] = float("-inf")


def must_wait(number: int) -> bool:
    """Return whether a signal has to wait for the end of `held`, which raises it again."""
    if _holds:
        _waiting.append(number)
    return bool(_holds)


@contextmanager
def held() -> Iterator[None]:
    """Delay signals while open, for steps that leave no record until all are done."""
    _holds.append(None)
    try:
        yield
    finally:
        _holds.pop()
        if _waiting and not _holds:
            number = _waiting[0]
            _waiting.clear()
            signal.raise_signal(number)


@contextmanager
def last_words(say: Callable[[], object]) -> Iterator[None]:
    """Call `say` before a forced end of the process while open; see `say_last_words`."""
    _last_words.append(say)
    try:
        yield
    finally:
        _last_words.remove(say)


def say_last_words() -> None:
    """Call the functions of `last_words` before a forced end, each with a time limit."""
    for say in reversed(_last_words):
        thread = threading.Thread(target=say, daemon=True)
        thread.start()
        thread.join(LAST_WORDS_SECONDS)


@contextmanager
def deaf_children(*also: signal.Signals) -> Iterator[None]:
    """Block SIGTERM, SIGHUP and `also` in processes that this thread starts while open, and in their children.

    A terminal, a batch system or a service manager signals all processes of a command. The command needs its servers
    until it has saved, and ends them itself.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGHUP, *also})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def die_with_parent() -> None:
    """Ask the kernel to end this process with the thread that started it; only Linux does so."""
    if _LIBC:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Stop:
    """A request to stop by a signal, with a time limit for saving."""

    def __init__(self) -> None:
        self.signal = ""
        self._since = 0.0

    def __bool__(self) -> bool:
        return bool(self.signal)

    def begin(self, number: int) -> None:
        self.signal, self._since = signal.Signals(number).name, time.monotonic()

    @property
    def is_overdue(self) -> bool:
        return bool(self.signal) and time.monotonic() - self._since > SAVE_SECONDS


@contextmanager
def stop_on_signals(request: Callable[[], object]) -> Iterator[Stop]:
    """Call `request`, which saves and stops, on a signal while open; a second signal interrupts at once."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if must_wait(number) or is_repeat():
            return
        if stop:
            raise KeyboardInterrupt
        stop.begin(number)
        logger.warning("%s: saving a checkpoint, then stopping (again: stop at once)", stop.signal)
        request()

    _forget_last()
    before = {number: signal.signal(number, ask) for number in ends()}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    terminate = before.get(signal.SIGTERM)
    if stop.signal == "SIGTERM" and callable(terminate):
        _forget_last()
        terminate(signal.SIGTERM, None)  # a cancel from Prefect goes on after the state is saved
