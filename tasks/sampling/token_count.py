"""The count of sampled tokens and its upper limit, as progress that long pieces do not hold up."""

import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tasks.runtime.progress import Progress

SECONDS_BETWEEN_REPORTS = 0.25  # a step takes milliseconds


class TokenCount:
    """Counts tokens drawn for some pieces and reports the sums a few times a second.

    Args:
        report: gets the tokens drawn so far, and the number by which the expected total has fallen.
    """

    def __init__(self, report: Callable[[int, int], object]) -> None:
        self.report = report
        self.n_drawn = self.n_fewer = 0
        self.last = time.monotonic()

    def drawn(self, n_tokens: int) -> None:
        """Count tokens; a number below 0 subtracts those that are void."""
        self.n_drawn += n_tokens
        if time.monotonic() - self.last >= SECONDS_BETWEEN_REPORTS:
            self.flush()

    def ended(self, n_expected: int, n_drawn: int) -> None:
        """Count a complete piece; one that ends early reduces the expected total."""
        self.n_fewer += n_expected - n_drawn
        self.flush()

    def flush(self) -> None:
        """Report the sums."""
        self.report(self.n_drawn, self.n_fewer)
        self.last = time.monotonic()


class TokenProgress:
    """Moves a progress bar of tokens by the sums of several counts."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.n_drawn, self.n_fewer = Counter[Any](), Counter[Any]()  # by the name of the count

    def report(self, name: Any, n_drawn: int, n_fewer: int) -> None:
        """Take the sums of a count; they start at 0 again where a worker starts again."""
        self.progress.total -= n_fewer - self.n_fewer[name]
        self.progress.advance(n_drawn - self.n_drawn[name])
        self.n_drawn[name], self.n_fewer[name] = n_drawn, n_fewer

    def read(self, path: Path) -> None:
        """Take the sums that another process has written; a file that is partial or missing changes nothing."""
        with suppress(OSError, ValueError):
            n_drawn, n_fewer, _ = path.read_text().split(" ")
            self.report(path, int(n_drawn), int(n_fewer))


def write_sums(path: Path, n_drawn: int, n_fewer: int) -> None:
    """Write the sums of a count for `TokenProgress.read`, with an end that a partial file lacks."""
    path.write_text(f"{n_drawn} {n_fewer} .")
