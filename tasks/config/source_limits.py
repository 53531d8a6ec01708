"""Limits on archives and downloads."""

from dataclasses import dataclass, fields
from typing import ClassVar

from tasks.errors import ConfigError

REFUSE_PRIVATE = "ORCHESTRION_REFUSE_PRIVATE_ADDRESSES"  # a variable; "1": refuse them, whatever the settings say
FREE_EXPANSION = 2**20  # bytes that may come out of anything, however little went in: a ratio says nothing about less


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceLimits:
    """Bounds on archives and downloads; what passes one of them is refused by name, never read in part."""

    max_archive_members: int = 5_000_000
    max_member_bytes: int = 64 * 2**20  # one file inside an archive, or one object of a store, expanded
    max_expanded_bytes: int = 256 * 2**30  # all that one archive expands to
    max_expansion_ratio: float = 200.0  # expanded over stored bytes, beyond the first MiB
    archive_seconds: float = 60.0  # of the process that reads one archive, besides 2 s for each MiB of the archive
    archive_memory_bytes: int = 4 * 2**30  # of that process
    max_download_bytes: int = 64 * 2**30
    download_attempts: int = 5  # in a row without a new byte
    download_timeout_seconds: float = 60.0  # without an answer or a byte
    retry_wait_seconds: float = 1.0  # before the second attempt; doubles with each further one, a minute at most
    download_seconds: float = 6 * 3600.0  # for all of one download, its attempts and waits included
    download_min_bytes_per_second: float = 1024.0  # over any download_timeout_seconds; slower is as bad as no answer
    refuse_private_addresses: bool = False  # loopback, private, link-local and the like, also behind a redirect
    # What bounds a process or a transfer changes no contents, so it is no part of a version.
    NOT_IN_VERSION: ClassVar[frozenset[str]] = frozenset(
        (
            "archive_seconds", "archive_memory_bytes", "download_seconds", "download_min_bytes_per_second",
            "refuse_private_addresses",
        )
    )  # fmt: skip

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool):
                continue
            least = 0.001 if field.name.endswith("_seconds") else 1
            if field.name in ("retry_wait_seconds", "download_min_bytes_per_second"):
                least = 0
            if not value >= least:
                raise ConfigError(f"{field.name}={value} is below {least}")

    def expansion_limit(self, n_stored: int) -> int:
        """Return how many bytes `n_stored` stored ones may become."""
        return max(FREE_EXPANSION, int(n_stored * self.max_expansion_ratio))
