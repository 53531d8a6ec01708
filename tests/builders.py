"""Scores and MIDI bytes typed out by hand, for tests."""

from collections.abc import Sequence

import numpy as np

from tasks.music.midi.file_bytes import variable_length
from tasks.music.score import KeySignatures, Score, Tempos, TimeSignatures, build_score

DRUMS = -1  # stands for a program where a part is drums
END_OF_TRACK = b"\0\xff\x2f\0"


def make_score(
    notes: Sequence[tuple[int, ...]],
    *,
    pedals: Sequence[tuple[int, ...]] = (),
    programs: Sequence[int] = (0,),
    tempos: Sequence[tuple[int, int]] = ((0, 500_000),),
    time_signatures: Sequence[tuple[int, int, int]] = (),
    key_signatures: Sequence[tuple[int, int, bool]] = (),
    ticks_per_quarter: int = 500,
) -> Score:
    """Return a score; by default a tick is 1 ms.

    Args:
        notes: rows of onset, duration, pitch, velocity and, where it is not 0, track.
        pedals: rows of onset, end and, where it is not 0, track.
        programs: of each track; DRUMS for drums.
        tempos: rows of tick and microseconds per quarter.
        time_signatures: rows of tick, numerator, denominator.
        key_signatures: rows of tick, key, is_minor.
    """
    columns = _columns(notes, 5)
    track = columns[4]
    program = np.array(programs)[track]
    named = dict(zip(("onset", "duration", "pitch", "velocity", "track"), columns, strict=True))
    named |= {"program": np.maximum(program, 0), "is_drum": program == DRUMS}
    meter, key = _columns(time_signatures, 3), _columns(key_signatures, 3)
    return build_score(
        ticks_per_quarter,
        named,
        tempos=Tempos(*_columns(tempos, 2)),
        time_signatures=TimeSignatures(*meter),
        key_signatures=KeySignatures(key[0], key[1], key[2].astype(np.bool_)),
        pedals=dict(zip(("onset", "end", "track"), _columns(pedals, 3), strict=True)),
        n_tracks=len(programs),
    )


def _columns(rows: Sequence[tuple[int, ...]], width: int) -> list[np.ndarray]:
    """Return rows as columns; rows that are too short are filled with 0."""
    filled = [(*row, *(0,) * (width - len(row))) for row in rows]
    return list(np.array(filled, dtype=np.int64).reshape(-1, width).T)


def differences(one: Score, other: Score) -> list[str]:
    """Return the names of all fields in which two scores differ; `dropped` is not compared."""
    found = [name for name in ("ticks_per_quarter", "n_tracks") if getattr(one, name) != getattr(other, name)]
    for group in ("notes", "tempos", "time_signatures", "key_signatures", "pedals"):
        mine, yours = getattr(one, group), getattr(other, group)
        found += [
            f"{group}.{name}"
            for name in mine.__slots__
            if not np.array_equal(getattr(mine, name), getattr(yours, name))
        ]
    return found


def note_rows(score: Score) -> list[tuple[int, int, int, int]]:
    """Return (onset, duration, pitch, velocity) of each note."""
    notes = score.notes
    columns = (notes.onset, notes.duration, notes.pitch, notes.velocity)
    return list(zip(*(values.tolist() for values in columns), strict=True))


def smf(*tracks: bytes, file_format: int = 1, division: int = 480, n_tracks: int | None = None) -> bytes:
    """Return a MIDI file with these track bytes; the header may be made to lie."""
    stated = len(tracks) if n_tracks is None else n_tracks
    header = b"MThd" + (6).to_bytes(4) + file_format.to_bytes(2) + stated.to_bytes(2) + division.to_bytes(2)
    return header + b"".join(b"MTrk" + len(track).to_bytes(4) + track for track in tracks)


def track(*events: tuple[int, bytes]) -> bytes:
    """Return track bytes of (delta, message) events and an End of Track."""
    return b"".join(variable_length(delta) + message for delta, message in events) + END_OF_TRACK


def on(pitch: int, velocity: int = 80, channel: int = 0) -> bytes:
    return bytes([0x90 | channel, pitch, velocity])


def off(pitch: int, channel: int = 0) -> bytes:
    return bytes([0x80 | channel, pitch, 0])


def pedal(value: int, channel: int = 0) -> bytes:
    return bytes([0xB0 | channel, 64, value])


def program(number: int, channel: int = 0) -> bytes:
    return bytes([0xC0 | channel, number])


def tempo(microseconds: int) -> bytes:
    return b"\xff\x51\x03" + microseconds.to_bytes(3)
