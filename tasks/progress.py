"""Progress of long work: a bar with rate and remaining time on a terminal, a plain line now and then elsewhere."""

import logging
import sys
import time
from collections.abc import Callable
from types import TracebackType

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_SHARES = 5.0


class Progress:
    """Counts units of work of one stage; safe to create when nobody looks.

    Args:
        label: what is being done, such as `parsing`.
        total: units in all.
        unit: plural, such as `files`.
        on_share: gets the share done, 0 to 1, now and then and at the end; for whoever else shows progress.
    """

    def __init__(self, label: str, total: int, unit: str, on_share: Callable[[float], None] | None = None) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.on_share = on_share
        self.done = 0
        self.note = ""
        self.started = self.last_line = self.last_share = time.monotonic()
        self._bar = self._task = None

    def __enter__(self) -> "Progress":
        if sys.stderr.isatty() and logger.isEnabledFor(logging.INFO):
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
            )  # fmt: skip
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task(self.label, total=self.total, rate="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        if self.on_share:
            self.on_share(1.0 if error is None else self.share)
        if error is None and self.done:
            logger.info("%s: %d %s in %.1f s (%s)", self.label, self.done, self.unit, self.seconds, self._rate())

    @property
    def seconds(self) -> float:
        return max(time.monotonic() - self.started, 1e-6)

    @property
    def share(self) -> float:
        return min(self.done / self.total, 1.0) if self.total else 0.0

    def advance(self, n: int = 1, note: str = "") -> None:
        """Count `n` more units; `note` is shown behind the rate, such as the present loss."""
        self.done += n
        self.note = note or self.note
        now = time.monotonic()
        if self.on_share and now - self.last_share >= SECONDS_BETWEEN_SHARES:
            self.last_share = now
            self.on_share(self.share)
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=self.done, rate=f"{self._rate()} {self.note}")
        elif now - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = now
            left = self.seconds / max(self.done, 1) * max(self.total - self.done, 0)
            logger.info(
                "%s: %d of %d %s, %s, %.0f s left %s",
                self.label,
                self.done,
                self.total,
                self.unit,
                self._rate(),
                left,
                self.note,
            )

    def _rate(self) -> str:
        rate = self.done / self.seconds
        return f"{rate:.0f} {self.unit}/s" if rate >= 10 else f"{rate:.2f} {self.unit}/s"
