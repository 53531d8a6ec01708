"""Messages about work that gives no sign of life."""

import threading
import time
from collections.abc import Callable

from tasks.runtime import progress

SECONDS = 30.0


class Silence:
    """Watches work for signs of life and adds what it waits for to the lines of the open stage.

    Args:
        describe: called in a thread after each `SECONDS` of silence, because a cluster may not answer.
    """

    def __init__(self, describe: Callable[[], str]) -> None:
        self.describe = describe
        self._heard = self._asked = time.monotonic()
        self._asking: threading.Thread | None = None
        self._is_noted = False

    def heard(self) -> None:
        self._heard = self._asked = time.monotonic()
        if self._is_noted:
            progress.note("")
            self._is_noted = False

    def look(self) -> None:
        """Show what the work waits for after each `SECONDS` of silence."""
        now = time.monotonic()
        if min(now - self._heard, now - self._asked) < SECONDS:
            return
        self._asked, self._is_noted = now, True
        if self._asking and self._asking.is_alive():
            progress.note("waiting for the cluster, whose head does not answer")
            return
        self._asking = threading.Thread(target=self._ask, args=(self._heard,), name="silence", daemon=True)
        self._asking.start()

    def _ask(self, heard: float) -> None:
        message = self.describe()
        if heard == self._heard:
            progress.note(message)
