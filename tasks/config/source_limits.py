"""Limits on archives and downloads."""

from dataclasses import dataclass
from typing import ClassVar

from models.settings import Settings, setting

REFUSE_PRIVATE = "ORCHESTRION_REFUSE_PRIVATE_ADDRESSES"  # a variable; "1" overrides the settings
FREE_EXPANSION = 2**20  # bytes that any member may expand to; the ratio counts beyond them


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceLimits(Settings):
    """Bounds on archives and downloads; what passes one of them is refused by name, never read in part."""

    max_archive_members: int = setting(5_000_000, "Members of an archive.", ge=1)
    max_member_bytes: int = setting(64 * 2**20, "One file inside an archive, expanded, or one object of a store.", ge=1)
    max_expanded_bytes: int = setting(256 * 2**30, "All that one archive expands to.", ge=1)
    max_expansion_ratio: float = setting(200.0, "Expanded over stored bytes, beyond the first MiB.", ge=1)
    archive_seconds: float = setting(
        60.0, "Time to read one archive, besides 2 s for each MiB of the archive.", ge=0.001
    )
    archive_memory_bytes: int = setting(4 * 2**30, "Memory of the process that reads one archive.", ge=1)
    max_download_bytes: int = setting(64 * 2**30, "Bytes of one download.", ge=1)
    download_attempts: int = setting(5, "Attempts in a row without a new byte.", ge=1)
    download_timeout_seconds: float = setting(60.0, "Wait for an answer or a byte.", ge=0.001)
    retry_wait_seconds: float = setting(
        1.0, "Wait before the second attempt; doubles with each further one, up to a minute.", ge=0
    )
    download_seconds: float = setting(6 * 3600.0, "Time of one download, attempts and waits included.", ge=0.001)
    download_min_bytes_per_second: float = setting(
        1024.0, "Least speed over any `download_timeout_seconds`; a slower server counts as silent.", ge=0
    )
    refuse_private_addresses: bool = setting(
        False, "Refuse loopback, private, link-local and similar addresses, behind a redirect too."
    )
    # What bounds a process or a transfer changes no contents, so it is no part of a version.
    NOT_IN_VERSION: ClassVar[frozenset[str]] = frozenset(
        (
            "archive_seconds", "archive_memory_bytes", "download_seconds", "download_min_bytes_per_second",
            "refuse_private_addresses",
        )
    )  # fmt: skip

    def expansion_limit(self, n_stored: int) -> int:
        """Return how many bytes `n_stored` stored ones may become."""
        return max(FREE_EXPANSION, int(n_stored * self.max_expansion_ratio))
