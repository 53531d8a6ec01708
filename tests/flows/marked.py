"""A command whose processes are found by a variable of their environment, which they inherit."""

import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import command_line
from tests.flows.conftest import clean_environment

MARK = "ORCHESTRION_TEST_MARK"
HANG_SECONDS = 300


class Marked:
    """A command in a session of its own."""

    def __init__(self, home: Path, folder: Path, arguments: list[str], variables: dict[str, str]) -> None:
        self.home, self.mark = home, str(uuid.uuid4())
        self.said, self.complained = folder / f"{self.mark}.out", folder / f"{self.mark}.err"
        environment = clean_environment(home) | variables | {MARK: self.mark}
        command = [*arguments, "--home", str(home)]
        self.process = command_line.Process(command, environment, self.said, self.complained)

    def processes(self) -> list[tuple[int, str]]:
        """Return id and command line of all its processes, zombies apart."""
        mark, found = f"{MARK}={self.mark}".encode(), []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                is_own = int(folder.name) == self.process.pid or mark in (folder / "environ").read_bytes().split(b"\0")
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if is_own and command:
                found.append((int(folder.name), command))
        return found

    def wait_until(self, condition: Callable[[], Any]) -> Any:
        """Wait until something is true while the command runs, and return it."""
        deadline = time.monotonic() + HANG_SECONDS
        while not (met := condition()):
            assert self.process.poll() is None, f"ended too early: {self.errors[-3000:]}"
            assert time.monotonic() < deadline, f"nothing came: {self.errors[-3000:]}"
            time.sleep(0.02)
        return met

    @property
    def errors(self) -> str:
        return self.complained.read_text()

    @property
    def complaints(self) -> list[str]:
        return [line for line in self.errors.splitlines() if line.startswith("orchestrion:")]
