"""Limits of reading, in a file of their own so that configs load no compiled code."""

import math
from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadLimits:
    """Where reading stops: a file above any of these is refused.

    Args:
        max_bytes: bytes of a file.
        max_notes: notes of a file.
        max_seconds: length of a file.
        max_tracks: tracks of a file; a header states 65,535 at most.
        max_pedals: pedal spans, those of a channel counted for each part on it.
    """

    max_bytes: int = 64 * 2**20
    max_notes: int = 1_000_000
    max_seconds: float = 24 * 3600.0
    max_tracks: int = 0xFFFF
    max_pedals: int = 1_000_000

    def __post_init__(self) -> None:
        for field in fields(self):
            if not 0 <= getattr(self, field.name) < math.inf:
                raise ValueError(f"{field.name}={getattr(self, field.name)} is not a number from 0 on")
