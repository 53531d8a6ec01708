"""Scores to MIDI files of format 1; the same score always gives the same bytes."""

from collections.abc import Sequence

import numpy as np

from tasks.errors import BadScore, RejectReason
from tasks.music.arrays import ByteArray, IntArray
from tasks.music.midi import file_bytes
from tasks.music.score import Score

DRUM_CHANNEL = 9
PITCHED_CHANNELS = [channel for channel in range(16) if channel != DRUM_CHANNEL]


def write_midi(
    score: Score,
    name: str = "",
    part_names: Sequence[str] = (),
    *,
    ends_on_bar_line: bool = False,
    last_tick: int = 0,
) -> bytes:
    """Return a MIDI file of format 1: a conductor track, then one track for each part; the same score, the same bytes.

    Each part has a channel of its own, drums on channel 10. Parts beyond 15, and drum parts beyond the first, go to
    further MIDI ports (meta event 0x21), so that no program or pedal of one part touches another.

    Args:
        name: title in the conductor track.
        part_names: name of the track of each part, or none.
        ends_on_bar_line: end every track where the last bar ends (4/4 without a time signature), as sequencers loop and
            append files by the end of their tracks; otherwise each track ends with its last event.
        last_tick: end every track there, or with its last event where that is later.

    Raises:
        ValueError: ticks or values that a file cannot hold, or names for some of the parts only.
        BadScore: more parts than the channels of 128 ports.
    """
    if not 1 <= score.ticks_per_quarter <= 0x7FFF:
        raise ValueError(f"ticks_per_quarter {score.ticks_per_quarter} outside 1-32767")
    for field, low, high in (("onset", 0, 2**31), ("duration", 1, 2**31), ("pitch", 0, 127), ("velocity", 1, 127)):
        values = getattr(score.notes, field)
        if len(values) and not low <= values.min() <= values.max() <= high:
            raise ValueError(f"{field} {values.min()} to {values.max()} of a note outside {low}-{high}")
    if part_names and len(part_names) != score.n_tracks:
        raise ValueError(f"{len(part_names)} names for {score.n_tracks} parts")
    end = _end_of_last_bar(score) if ends_on_bar_line else last_tick
    names = part_names or [""] * score.n_tracks
    parts = [_write_part(score, track, *place, names[track], end) for track, place in enumerate(part_places(score))]
    return file_bytes.build_file(score.ticks_per_quarter, [_write_conductor(score, name, end), *parts])


def _end_of_last_bar(score: Score) -> int:
    """Return the first bar line, in ticks, after which nothing happens."""
    meters = score.time_signatures
    changes = (score.tempos.tick, meters.tick, score.key_signatures.tick)
    last = max(int(ticks.max(initial=0)) for ticks in (*changes, _ends(score), score.pedals.end))
    start, numerator, denominator = 0, 4, 4
    if len(meters.tick):
        start, numerator, denominator = (int(v[-1]) for v in (meters.tick, meters.numerator, meters.denominator))
    bar = 4 * score.ticks_per_quarter * numerator  # times `denominator`, which need not divide it
    n_bars = -(-(last - start) * denominator // bar)
    return start + -(-n_bars * bar // denominator)


def _ends(score: Score) -> IntArray:
    return score.notes.onset + score.notes.duration


def part_places(score: Score) -> list[tuple[int, int]]:
    """Return (port, channel) of each part.

    Raises:
        BadScore: more parts than the channels of 128 ports.
    """
    is_drum = np.zeros(score.n_tracks, dtype=np.bool_)
    is_drum[score.notes.track] = score.notes.is_drum
    n_drums, n_pitched, places = 0, 0, list[tuple[int, int]]()
    for drums in is_drum.tolist():
        places.append((n_drums, DRUM_CHANNEL) if drums else (n_pitched // 15, PITCHED_CHANNELS[n_pitched % 15]))
        n_drums, n_pitched = n_drums + drums, n_pitched + (not drums)
    if places and max(places)[0] > 127:
        raise BadScore(
            RejectReason.OUT_OF_RANGE, f"{score.n_tracks} parts do not fit on 128 ports of 15 channels and one of drums"
        )
    return places


def _write_conductor(score: Score, name: str, end: int) -> bytes:
    events = [(0, 0, 0x03, _text(name))] if name else []
    events += [
        (int(tick), 1, 0x51, int(tempo).to_bytes(3))
        for tick, tempo in zip(score.tempos.tick, score.tempos.microseconds_per_quarter, strict=True)
    ]
    meters, keys = score.time_signatures, score.key_signatures
    events += [
        (int(tick), 2, 0x58, bytes([int(numerator), int(denominator).bit_length() - 1, 24, 8]))
        for tick, numerator, denominator in zip(meters.tick, meters.numerator, meters.denominator, strict=True)
    ]
    events += [
        (int(tick), 3, 0x59, int(key).to_bytes(1, signed=True) + bytes([int(is_minor)]))
        for tick, key, is_minor in zip(keys.tick, keys.key, keys.is_minor, strict=True)
    ]
    events.sort()
    metas = file_bytes.build_metas([(tick, kind, data) for tick, _, kind, data in events])
    return metas + _end_of_track(events[-1][0] if events else 0, end)


def _end_of_track(last: int, end: int) -> bytes:
    """Return the bytes that end a track at tick `end`, or at its last event where that is later."""
    return file_bytes.build_metas([(max(end - last, 0), 0x2F, b"")])


def _as_read(
    onset: IntArray, end: IntArray, pitch: ByteArray, velocity: ByteArray
) -> tuple[IntArray, IntArray, ByteArray, ByteArray]:
    """Return onset, end, pitch and velocity of the notes of a part as a reader will pair them.

    A note-off names no note: of overlapping notes of one pitch, the one that began first ends first. With this pairing
    a file that is read and written again has the same bytes.
    """
    by_onset, by_end = np.lexsort([onset, pitch]), np.lexsort([end, pitch])
    onset, pitch, velocity, end = onset[by_onset], pitch[by_onset], velocity[by_onset], end[by_end]
    order = np.lexsort([velocity, end, pitch, onset])
    return onset[order], end[order], pitch[order], velocity[order]


def _write_part(score: Score, track: int, port: int, channel: int, name: str, end: int) -> bytes:
    notes, pedals = score.notes, score.pedals
    of_part, of_pedal = notes.track == track, pedals.track == track
    onset, end_of_note, pitch, velocity = _as_read(
        notes.onset[of_part], _ends(score)[of_part], notes.pitch[of_part], notes.velocity[of_part]
    )
    zero, sustain = np.zeros_like(pitch), np.full(of_pedal.sum(), file_bytes.SUSTAIN_CONTROL, dtype=np.uint8)
    # Within a tick: notes end, the pedal is lifted, the pedal is pressed, notes begin.
    groups = [
        (end_of_note, 0x80, pitch, zero),
        (pedals.end[of_pedal], 0xB0, sustain, np.zeros_like(sustain)),
        (pedals.onset[of_pedal], 0xB0, sustain, np.full_like(sustain, 127)),
        (onset, 0x90, pitch, velocity),
    ]
    ticks = np.concatenate([tick for tick, *_ in groups])
    messages = np.concatenate(
        [
            np.stack([np.full_like(first, status | channel), first, second], axis=1)
            for _, status, first, second in groups
        ]
    )
    order = np.argsort(ticks, kind="stable")
    program = int(notes.program[of_part][0]) if len(onset) else 0
    head = file_bytes.build_metas([(0, 0x03, _text(name))]) if name else b""
    head += (b"\0\xff\x21\x01" + bytes([port]) if port else b"") + bytes([0, 0xC0 | channel, program])
    last = int(ticks.max(initial=0))
    return head + file_bytes.build_messages(ticks[order], messages[order]) + _end_of_track(last, end)


def _text(name: str) -> bytes:
    return name.encode("utf-8", "backslashreplace")  # a file's name need not be UTF-8
