"""The count of sampled tokens and its upper limit, as progress that long pieces do not hold up."""

import time
from collections.abc import Callable
from pathlib import Path

from tasks.runtime.progress import Progress

# Gets the tokens drawn since the last call, and the number by which the expected total falls.
ReportTokens = Callable[[int, int], None]
SECONDS_BETWEEN_REPORTS = 0.25  # a step takes milliseconds


class TokenCount:
    """Counts tokens drawn for some pieces and reports them a few times a second.

    A piece that ends early reduces the expected total.
    """

    def __init__(self, report: ReportTokens) -> None:
        self.report = report
        self.n_drawn = self.n_fewer = 0  # not reported yet
        self.last = time.monotonic()

    def drawn(self, n_tokens: int) -> None:
        """Count tokens; a number below 0 subtracts those that are void."""
        self.n_drawn += n_tokens
        if time.monotonic() - self.last >= SECONDS_BETWEEN_REPORTS:
            self.flush()

    def ended(self, n_expected: int, n_drawn: int) -> None:
        """Count a complete piece."""
        self.n_fewer += n_expected - n_drawn
        self.flush()

    def flush(self) -> None:
        """Report the counts since the last report."""
        if self.n_drawn or self.n_fewer:
            self.report(self.n_drawn, self.n_fewer)
        self.n_drawn = self.n_fewer = 0
        self.last = time.monotonic()


def report_to(progress: Progress) -> ReportTokens:
    """Return a function that moves a progress bar of tokens."""

    def report(n_drawn: int, n_fewer: int) -> None:
        progress.total -= n_fewer
        progress.advance(n_drawn)

    return report


class TallySheet:
    """The counts of one worker in a file; the reader keeps its last values while the file is partial or missing.

    A worker that begins again begins at 0 again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.n_drawn = self.n_fewer = 0

    def report(self, n_drawn: int, n_fewer: int) -> None:
        """Add to the numbers in the file."""
        self.n_drawn, self.n_fewer = self.n_drawn + n_drawn, self.n_fewer + n_fewer
        self.path.write_text(f"{self.n_drawn} {self.n_fewer}\n")

    def news(self, report: ReportTokens) -> None:
        """Report the change of the numbers in the file."""
        try:
            text = self.path.read_text()
            n_drawn, n_fewer = map(int, text.split())
        except (OSError, ValueError):
            return
        if text.endswith("\n") and (n_drawn, n_fewer) != (self.n_drawn, self.n_fewer):
            report(n_drawn - self.n_drawn, n_fewer - self.n_fewer)
            self.n_drawn, self.n_fewer = n_drawn, n_fewer
