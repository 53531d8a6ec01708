"""Progress of long work: a bar with rate and remaining time on a terminal, otherwise a line every few seconds.

One thread of the process reports the innermost open stage, even if that counts nothing.
"""

import contextlib
import contextvars
import logging
import math
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import psutil

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 9.0  # the README promises ten; a busy machine is a little late
SECONDS_BETWEEN_SHARES = 5.0
SECONDS_TO_SETTLE = 3.0  # workers that start together count their first units together
SECONDS_OF_SILENCE = 30.0  # after which the line of a stage that counts says when it last counted


class Progress:
    """Counts units of work of one stage; without units it reports how long the stage has taken.

    Rate and time left are those of this process since its first unit, without the start-up.

    Args:
        label: the work, such as `parsing`.
        total: units in all, 0 if unknown; it may change.
        unit: plural, such as `files`.
        on_share: gets the share done, 0 to 1, at intervals and at the end.
        done: units that an earlier process did.
    """

    def __init__(
        self, label: str, total: int = 0, unit: str = "", on_share: Callable[[float], None] | None = None, done: int = 0
    ) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.on_share = on_share
        self.done = self.done_before = done
        self.note = ""
        self.last_inner = ""  # the stage within this one that ended last
        self.started = self.last_share = self.last_unit = time.monotonic()
        self._begun: tuple[float, int] | None = None  # time at the end of the start-up, and the units done by then
        self._is_reported = False
        self.bar: Any = None
        self._task: Any = None
        self._context = contextvars.copy_context()

    def __enter__(self) -> "Progress":
        self._context = contextvars.copy_context()  # lines of the thread belong to the same Prefect task
        if self.total and sys.stderr.isatty() and logger.isEnabledFor(logging.INFO):
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}"),
                TimeRemainingColumn(),
            )  # fmt: skip
            self.bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self.bar.start()
            self._task = self.bar.add_task(self.label, total=self.total, completed=self.done, text="")
        _voice.open(self)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        _voice.close(self)
        if self.bar:
            with contextlib.suppress(OSError):  # the terminal is gone
                self.bar.stop()
        if self.on_share:
            self.on_share(1.0 if error is None else self.share)
        n = self.done - self.done_before
        if error is None and n:
            unit = self.unit.removesuffix("s") if n == 1 else self.unit
            _voice.say("%s: %d %s in %.1f s (%s)", self.label, n, unit, self.seconds, self._words_of_end())
        elif error is None and self._is_reported:
            _voice.say("%s: done in %.1f s", self.label, self.seconds)

    @property
    def seconds(self) -> float:
        return max(time.monotonic() - self.started, 1e-6)

    @property
    def share(self) -> float:
        return min(self.done / self.total, 1.0) if self.total else 0.0

    def begin(self) -> None:
        """End the start-up; without this call the first units end it, and the rate leaves them out."""
        self._begun = (time.monotonic(), self.done)

    def advance(self, n: int = 1, note: str = "") -> None:
        """Count `n` more units; `note` is shown after the rate, such as the present loss."""
        self.done += n
        self.note = note or self.note
        now = self.last_unit = time.monotonic()
        if self._begun is None and n:
            self._begun = (now, self.done)
        if self.on_share and now - self.last_share >= SECONDS_BETWEEN_SHARES:
            self.last_share = now
            self.on_share(self.share)
        if self.bar:
            self.show(f"{self._rate()} {self.note}")

    def show(self, text: str) -> None:
        """Set the text beside the bar."""
        self.bar.update(self._task, completed=self.done, total=self.total, text=text)

    def standing(self) -> str:
        """Return the state of the stage: units done, rate, time left, and what it waits for."""
        n, of = self.done - self.done_before, f" of {self.total}" if self.total else ""
        if n:
            parts = [f"{self.done}{of} {self.unit}", self._rate()]
            if self.total and self._is_settled():
                parts.append(f"{max(self.total - self.done, 0) / self._per_second():.0f} s left")
            idle = time.monotonic() - self.last_unit
            if idle >= SECONDS_OF_SILENCE:
                parts.append(f"the last of them {idle:.0f} s ago")
        elif self.total:
            parts = [f"{self.done}{of} {self.unit}", f"{self.seconds:.0f} s so far"]
        else:
            parts = [f"{self.seconds:.0f} s so far"] + ([f"after {self.last_inner}"] if self.last_inner else [])
        return f"{self.label}: {', '.join(parts + ([self.note] if self.note else []))}"

    def say_standing(self) -> None:
        self._is_reported = True
        self._context.run(_voice.say, "%s", self.standing())

    def _is_settled(self) -> bool:
        """Return whether units were counted long enough after the start-up to estimate their rate."""
        since, before = self._begun or (math.inf, 0)
        return self.done > before and time.monotonic() - since >= SECONDS_TO_SETTLE

    def _per_second(self) -> float:
        """Return the units of this process in a second, without the start-up once the rate after it is known."""
        if self._begun and self._is_settled():
            return (self.done - self._begun[1]) / (time.monotonic() - self._begun[0])
        return (self.done - self.done_before) / self.seconds

    def _words_of_end(self) -> str:
        """Return the rate over the whole stage, or the rate after the start-up if it is a tenth higher."""
        whole = (self.done - self.done_before) / self.seconds
        if self._begun and self._is_settled() and self._per_second() > 1.1 * whole:
            return f"{self._rate()} after a start-up of {self._begun[0] - self.started:.1f} s"
        return self._rate(whole)

    def _rate(self, rate: float | None = None) -> str:
        rate = self._per_second() if rate is None else rate
        return f"{rate:.0f} {self.unit}/s" if rate >= 10 else f"{rate:.2f} {self.unit}/s"


class _Voice:
    """The open stages of the process, and the thread that reports the innermost one."""

    def __init__(self) -> None:
        self.stages: list[Progress] = []  # outermost first
        self.last_said = 0.0
        self.has_spoken = False
        self._changes = threading.Lock()  # of `stages`
        self._all_closed = threading.Event()

    def open(self, stage: Progress) -> None:
        with self._changes:
            if self.stages:
                self.stages[-1].note = ""
            else:
                self.last_said, self._all_closed = time.monotonic(), threading.Event()
                threading.Thread(target=self._speak, args=(self._all_closed,), name="progress", daemon=True).start()
            self.stages.append(stage)

    def close(self, stage: Progress) -> None:
        with self._changes:
            self.stages.remove(stage)
            if self.stages:
                self.stages[-1].last_inner = stage.label
            else:
                self._all_closed.set()

    def say(self, text: str, *arguments: object) -> None:
        self.last_said, self.has_spoken = time.monotonic(), True
        logger.info(text, *arguments)

    def _speak(self, all_closed: threading.Event) -> None:
        """Report after each silence, until the outermost stage is closed."""
        while not all_closed.wait(min(max(self.last_said + SECONDS_BETWEEN_LINES - time.monotonic(), 0.02), 1.0)):
            if time.monotonic() - self.last_said < SECONDS_BETWEEN_LINES:
                continue
            with self._changes:
                stage = self.stages[-1] if self.stages else None
                bar = next((outer for outer in reversed(self.stages) if outer.bar), None)
            if bar and stage:
                bar.show(stage.standing())
                self.last_said = time.monotonic()
            elif stage:
                stage.say_standing()


_voice = _Voice()


def note(text: str) -> None:
    """Set what the innermost open stage waits for; an empty text removes it."""
    for stage in _voice.stages[-1:]:
        stage.note = text


def count_from_process_start() -> None:
    """Count the silence from the start of this process if nothing was reported yet: the imports may take long."""
    if not _voice.has_spoken:
        _voice.last_said -= max(time.time() - psutil.Process().create_time(), 0.0)
