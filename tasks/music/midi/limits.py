"""Limits of reading, in a file of their own so that configs load no compiled code."""

import math
from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadLimits:
    """What is read of a file, and where reading stops: a file above a limit is refused.

    Args:
        max_bytes: bytes of a file.
        max_notes: notes of a file.
        max_seconds: length of a file.
        max_tracks: tracks of a file; a header states 65,535 at most.
        max_pedals: pedal spans, those of a channel counted for each part on it.
        channels: channels whose notes are read, 0-15; -1: all but the drums on channel 9; empty: all.
        median_pitch: MIDI pitch to which the median of each piece is moved, drums apart; 0: none is moved.
    """

    max_bytes: int = 64 * 2**20
    max_notes: int = 1_000_000
    max_seconds: float = 24 * 3600.0
    max_tracks: int = 0xFFFF
    max_pedals: int = 1_000_000
    channels: tuple[int, ...] = ()
    median_pitch: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))  # JSON has lists
        if wrong := [channel for channel in self.channels if not -1 <= channel <= 15]:
            raise ValueError(f"channels: {wrong[0]} is not a channel from 0 to 15, or -1 for all but the drums")
        if not 0 <= self.median_pitch <= 127:
            raise ValueError(f"median_pitch={self.median_pitch} is not a pitch from 1 to 127, or 0 for none")
        for field in fields(self):
            if field.name != "channels" and not 0 <= getattr(self, field.name) < math.inf:
                raise ValueError(f"{field.name}={getattr(self, field.name)} is not a number from 0 on")
