"""Signal handling of commands that run flows: Ctrl-C, SIGTERM or a closed terminal ends them within 30 seconds."""

import faulthandler
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from tasks.runtime.signals import ENDS, ends, is_repeat, must_wait, say_last_words

INTERRUPTED = 130  # exit code
INTERRUPTED_MESSAGE = "interrupted; what is finished is kept, and the same command goes on"
GRACE_SECONDS = 25.0  # from a signal to the end, to report it to Prefect and MLflow and to stop Ray

servers: list[subprocess.Popen[bytes]] = []  # of this process; if one of them hangs, nothing else ends it


is_reported = threading.Event()  # set when the interrupt is reported, which happens once


def ignore_repeats() -> None:
    """Let Prefect, which handles SIGTERM while a flow runs, take two of them in a row for one; see `is_repeat`."""
    from prefect.exceptions import TerminationSignal
    from prefect.utilities import engine

    def terminate(number: int, *_: object) -> None:
        if not must_wait(number) and not is_repeat():
            raise TerminationSignal(signal=number)

    engine._prefect_sigterm_handler = terminate


@contextmanager
def ended_soon(log: Path, grace_seconds: float = GRACE_SECONDS) -> Iterator[None]:
    """Turn SIGINT, SIGTERM and SIGHUP into KeyboardInterrupt, and end the process by force if it still runs later.

    SIGHUP stays ignored under nohup. Prefect tries for many minutes to reach a server that hangs, and an exception
    raised while the interpreter frees an object is lost. Each file is written in one step, so an end at any moment
    loses nothing finished. The time starts at the first signal and continues after the block, for exit functions may
    hang too.

    Args:
        log: gets the stacks of all threads before a forced end.
        grace_seconds: from the signal to the end.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    # Python writes the number of each signal to a pipe before any handler runs; so it does for those of Prefect and of
    # the training, which take the place of this one.
    to_read, to_write = os.pipe()
    os.set_blocking(to_write, False)
    threading.Thread(target=_watch, args=(to_read, log, grace_seconds), name="watch-interrupts", daemon=True).start()
    wakeup_before = signal.set_wakeup_fd(to_write, warn_on_full_buffer=False)
    before = {number: signal.signal(number, _interrupt) for number in ends()}
    try:
        yield
    except BaseException as error:
        if type(error).__name__ == "TerminationSignal":  # what Prefect makes of SIGTERM
            raise KeyboardInterrupt from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup_before)
        os.close(to_write)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if not must_wait(number) and not is_repeat():
        raise KeyboardInterrupt


def _watch(to_read: int, log: Path, grace_seconds: float) -> None:
    """Wait for a signal or for the end of the block; after a signal, end this process when its time is up."""
    while numbers := os.read(to_read, 64):
        if any(number in numbers for number in ENDS):
            time.sleep(grace_seconds)  # and leave the pipe open, for a second signal writes to it too
            _give_up(log, grace_seconds)
    os.close(to_read)


def _give_up(log: Path, grace_seconds: float) -> None:
    """End this process and the servers it started, whatever its other threads wait for."""
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as stacks:
            faulthandler.dump_traceback(stacks)
        message = f"orchestrion: {INTERRUPTED_MESSAGE} (it hung for {grace_seconds:.0f} s; where: {log})\n"
        if not is_reported.is_set():
            os.write(2, message.encode())
        say_last_words()
        for server in servers:
            if server.poll() is None:
                server.kill()
    finally:
        os._exit(INTERRUPTED)
