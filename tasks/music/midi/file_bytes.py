"""Bytes of standard MIDI files for writing: chunks, variable-length numbers, messages and meta events.

Source: MIDI 1.0 Detailed Specification, Standard MIDI Files 1.0.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tasks.music.arrays import IntArray

EMPTY_TEXT = b"\xff\x01\x00"
DELTA_MAX = 2**28 - 1  # the longest time between two events: four bytes of seven bits
SUSTAIN_CONTROL = 64


def build_file(ticks_per_quarter: int, tracks: Sequence[bytes]) -> bytes:
    """Return a file of format 1 with these tracks."""
    parts = [b"MThd", (6).to_bytes(4), (1).to_bytes(2), len(tracks).to_bytes(2), ticks_per_quarter.to_bytes(2)]
    for track in tracks:
        parts += [b"MTrk", len(track).to_bytes(4), track]
    return b"".join(parts)


def build_messages(ticks: IntArray, messages: NDArray[np.uint8]) -> bytes:
    """Return three-byte messages at rising ticks as track bytes: a variable-length delta before each message.

    Args:
        ticks: int64[X], in order; the first is counted from tick 0. Gaps over 2**28 - 1 are bridged by empty texts.
        messages: uint8[X, 3], the status and two data bytes of each.
    """
    deltas = np.diff(ticks, prepend=0)
    if np.any(deltas > DELTA_MAX):
        deltas, messages = _bridge_gaps(deltas, messages)
    sevens = (deltas[:, None] >> np.array([21, 14, 7, 0])) & 0x7F
    n_bytes = 1 + (deltas >= 1 << 7).astype(np.int64) + (deltas >= 1 << 14) + (deltas >= 1 << 21)
    rows = np.concatenate([sevens | np.array([0x80, 0x80, 0x80, 0]), messages], axis=1).astype(np.uint8)
    written = np.ones(rows.shape, dtype=np.bool_)
    written[:, :4] = np.arange(4) >= 4 - n_bytes[:, None]
    return rows[written].tobytes()


def _bridge_gaps(deltas: IntArray, messages: NDArray[np.uint8]) -> tuple[IntArray, NDArray[np.uint8]]:
    n_bridges = np.maximum(deltas - 1, 0) // DELTA_MAX
    places = np.repeat(np.arange(len(deltas)), n_bridges + 1)
    is_message = np.append(np.diff(places) != 0, True)
    bridged = np.where(is_message, deltas[places] - n_bridges[places] * DELTA_MAX, DELTA_MAX)
    return bridged, np.where(is_message[:, None], messages[places], np.frombuffer(EMPTY_TEXT, np.uint8))


def build_metas(events: Sequence[tuple[int, int, bytes]]) -> bytes:
    """Return meta events, given as (tick, type, data) at rising ticks, as track bytes."""
    written, last = list[bytes](), 0
    for tick, kind, data in events:
        while tick - last > DELTA_MAX:
            written += [variable_length(DELTA_MAX), EMPTY_TEXT]
            last += DELTA_MAX
        written += [variable_length(tick - last), bytes([0xFF, kind]), variable_length(len(data)), data]
        last = tick
    return b"".join(written)


def variable_length(value: int) -> bytes:
    """Return `value` (0 to 2**28 - 1) as a variable-length number."""
    sevens = [value >> shift & 0x7F for shift in (21, 14, 7, 0)]
    first = next((place for place, part in enumerate(sevens) if part), 3)
    return bytes([part | 0x80 for part in sevens[first:3]] + sevens[3:])
