"""Errors that the caller can fix; each message names the value, the limit and the place."""

import re

_ANSI = re.compile(r"\x1b\[[0-9;]*m")


class OrchestrionError(ValueError):
    """A caller's mistake or bad data: one line, no traceback, and the exit code of the command."""

    exit_code = 2

    def put_before(self, place: str) -> None:
        """Let the message begin with a place that only the caller knows."""
        self.args = (f"{place}: {self.args[0]}", *self.args[1:])


class ConfigError(OrchestrionError):
    """An unknown key, a wrong type or an impossible value in a config."""


class NotFound(OrchestrionError):
    """A path, dataset version, model or batch that does not exist."""


class BadScore(OrchestrionError):
    """A file that cannot be used as music.

    Args:
        reason: one snake_case word for the ledger, such as `not_midi`.
        detail: a sentence with the value, the limit and the place.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)  # both, or the exception does not survive the way back from a Ray worker
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"

    def put_before(self, place: str) -> None:
        self.detail = f"{place}: {self.detail}"
        self.args = (self.reason, self.detail)


class DatasetError(OrchestrionError):
    """A dataset that cannot be built from its sources, or does not hold what is asked of it."""


class CheckpointError(OrchestrionError):
    """A checkpoint that is incomplete, damaged or belongs to another model."""


class DamagedFile(OrchestrionError):
    """A file of the home that is not what was written, or is of no shape that can be used."""


class NoSeal(DamagedFile):
    """A file that could carry a digest of itself and does not: one from before there were digests."""


class HomeError(OrchestrionError):
    """A home folder that is read-only, full or in use."""

    exit_code = 1


class Diverged(OrchestrionError):
    """A training whose gradients or validation losses are no finite numbers any more."""

    exit_code = 1


class BadHome(HomeError):
    """A home that cannot be one, by its name or by what is there: the caller's mistake."""

    exit_code = 2


class DamagedDatabase(HomeError):
    """A database of the home that SQLite cannot use as it is."""


class SweepFailed(OrchestrionError):
    """A sweep without a result for any point."""

    exit_code = 1


class Interrupted(OrchestrionError):
    """The user or the scheduler asked for a stop; what was done is saved."""

    exit_code = 130


def words_of(error: BaseException) -> str:
    """Return a foreign error in one line: the last of a traceback, or the one under a heading."""
    lines = [line.strip() for line in _ANSI.sub("", str(error)).splitlines() if line.strip()]
    if not lines:
        return "out of memory" if isinstance(error, MemoryError) else type(error).__name__
    if any(line.startswith(("Traceback (most recent call last)", 'File "')) for line in lines):
        return lines[-1]
    return f"{lines[0]} {lines[1]}" if lines[0].endswith(":") and len(lines) > 1 else lines[0]


def cause_of(error: BaseException) -> BaseException:
    """Return what went wrong in a worker, errors of ours first, out of what Ray and Ray Train wrapped it in."""
    while True:
        failures = list(getattr(error, "worker_failures", {}).values())
        inner = [getattr(error, name, None) for name in ("controller_failure", "_base_exc", "health_check_failure")]
        if type(error).__name__.startswith("RayTaskError"):
            inner.append(getattr(error, "cause", None))
        wrapped = [found for found in [*failures, *inner] if isinstance(found, BaseException) and found is not error]
        if not wrapped:
            return error
        causes = [getattr(found, "_base_exc", found) for found in wrapped]
        error = next((cause for cause in causes if isinstance(cause, OrchestrionError)), causes[0])


def plural(n: int, noun: str, many: str = "") -> str:
    """Return a count with its noun.

    Args:
        noun: of one.
        many: of several, where that is not the noun and an s.
    """
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {many or noun + 's'}"
