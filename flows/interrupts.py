"""What Ctrl-C and SIGTERM do to a command that runs flows: it ends within half a minute, whatever hangs."""

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

INTERRUPTED = 130  # exit code
SAID_INTERRUPTED = "interrupted; what is finished is kept, and the same command goes on"
GRACE_SECONDS = 25.0  # from a signal to the end of the process, for saying so to Prefect and MLflow and stopping Ray

servers: list[subprocess.Popen[bytes]] = []  # of this process: what hangs may be one of them, which nothing else ends


@contextmanager
def ended_soon(log: Path, grace_seconds: float = GRACE_SECONDS) -> Iterator[None]:
    """While open, SIGINT and SIGTERM raise KeyboardInterrupt, and end this process later if that has not ended it.

    Prefect tries for many minutes to reach a server that hangs, and an exception that is raised while the interpreter
    frees an object goes nowhere. All files are written in one step each, so an end at any moment loses nothing that is
    finished. The time runs on when the block is left, for what runs at exit may hang too.

    Args:
        log: gets the stacks of all threads if it comes to that.
        grace_seconds: from the signal to the end.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    # The handler runs in the midst of anything, perhaps while a lock is held: it writes to a pipe and takes none.
    to_read, to_write = os.pipe()
    threading.Thread(target=_watch, args=(to_read, log, grace_seconds), name="watch-interrupts", daemon=True).start()

    def interrupt(number: int, frame: FrameType | None) -> None:
        os.write(to_write, b"!")
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(to_write)


def _watch(to_read: int, log: Path, grace_seconds: float) -> None:
    """Wait for a signal or for the end of the block; after a signal, end this process when its time is up."""
    if os.read(to_read, 1):
        time.sleep(grace_seconds)  # and leave the pipe open, for a second signal writes to it too
        _give_up(log, grace_seconds)
    os.close(to_read)


def _give_up(log: Path, grace_seconds: float) -> None:
    """End this process and the servers it started, whatever its other threads wait for."""
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as stacks:
            faulthandler.dump_traceback(stacks)
        said = f"orchestrion: {SAID_INTERRUPTED} (it hung for {grace_seconds:.0f} s; where: {log})\n"
        os.write(2, said.encode())
        for server in servers:
            if server.poll() is None:
                server.kill()
    finally:
        os._exit(INTERRUPTED)
