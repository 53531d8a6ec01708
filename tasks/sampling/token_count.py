"""The count of sampled tokens and its upper limit, as progress that long pieces do not hold up."""

import time
from collections.abc import Callable
from pathlib import Path

from tasks.runtime.progress import Progress

# Gets tokens drawn since the last call, and by how many fewer tokens there will be than was said before.
TellTokens = Callable[[int, int], None]
SECONDS_BETWEEN_TALES = 0.25  # a step takes milliseconds


class TokenCount:
    """Passes on what is drawn for some pieces; a piece that ends early takes what it did not need off the total.

    Args:
        tell: gets the numbers, now and then.
    """

    def __init__(self, tell: TellTokens) -> None:
        self.tell = tell
        self.n_drawn = self.n_fewer = 0  # not passed on yet
        self.last = time.monotonic()

    def drawn(self, n_tokens: int) -> None:
        """Count tokens; a number below 0 takes back those that are void."""
        self.n_drawn += n_tokens
        if time.monotonic() - self.last >= SECONDS_BETWEEN_TALES:
            self.flush()

    def ended(self, n_expected: int, n_drawn: int) -> None:
        """Note that a piece is complete."""
        self.n_fewer += n_expected - n_drawn
        self.flush()

    def flush(self) -> None:
        """Pass on what is counted."""
        if self.n_drawn or self.n_fewer:
            self.tell(self.n_drawn, self.n_fewer)
        self.n_drawn = self.n_fewer = 0
        self.last = time.monotonic()


def tell_progress(progress: Progress) -> TellTokens:
    """Return what moves a progress that counts tokens."""

    def tell(n_drawn: int, n_fewer: int) -> None:
        progress.total -= n_fewer
        progress.advance(n_drawn)

    return tell


class TallySheet:
    """The counts of one worker in a file; the reader keeps its last values while the file is partial or missing.

    A worker that begins again begins at 0 again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.n_drawn = self.n_fewer = 0

    def tell(self, n_drawn: int, n_fewer: int) -> None:
        """Add to the numbers in the file."""
        self.n_drawn, self.n_fewer = self.n_drawn + n_drawn, self.n_fewer + n_fewer
        self.path.write_text(f"{self.n_drawn} {self.n_fewer}\n")

    def news(self, tell: TellTokens) -> None:
        """Pass on by how much the numbers in the file have changed."""
        try:
            text = self.path.read_text()
            n_drawn, n_fewer = map(int, text.split())
        except (OSError, ValueError):
            return
        if text.endswith("\n") and (n_drawn, n_fewer) != (self.n_drawn, self.n_fewer):
            tell(n_drawn - self.n_drawn, n_fewer - self.n_fewer)
            self.n_drawn, self.n_fewer = n_drawn, n_fewer
