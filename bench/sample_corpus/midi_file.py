"""A piece as the sample composers make it, and its Standard MIDI File bytes (types 0 and 1, running status or not).

Beats are quarter notes throughout, whatever the time signature.
Source: Standard MIDI Files 1.0, MIDI Manufacturers Association 1996.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field

DRUM_CHANNEL = 9  # channel 10 in the manuals, which count from 1
SUSTAIN = 64


@dataclass(frozen=True, slots=True)
class Note:
    onset_beats: float
    duration_beats: float
    pitch: int
    velocity: int


@dataclass(slots=True)
class Part:
    name: str
    channel: int
    program: int | None = None  # None: no program change is written
    notes: list[Note] = field(default_factory=list)
    pedals: list[tuple[float, float]] = field(default_factory=list)  # (down, up) in beats
    controls: list[tuple[float, int, int]] = field(default_factory=list)  # (beat, controller, value)


@dataclass(slots=True)
class Piece:
    title: str
    parts: list[Part]
    tempos: list[tuple[float, float]]  # (beat, quarter notes per minute)
    meters: list[tuple[float, int, int]]  # (beat, numerator, denominator)
    markers: list[tuple[float, str]] = field(default_factory=list)
    key_signatures: list[tuple[float, int, bool]] = field(default_factory=list)  # (beat, sharps -7..7, is minor)
    ticks_per_quarter: int = 480
    midi_type: int = 1
    running_status: bool = True
    later_tempos_in_first_part: bool = False  # type 1 only: all but the first tempo sit outside track 0


Event = tuple[int, int, bytes]  # tick, rank inside the tick, status and data bytes

# Inside one tick: the end of the old before the start of the new.
NOTE_OFF, META, PROGRAM, CONTROL, NOTE_ON = range(5)


def encode_midi(piece: Piece) -> bytes:
    """Return the bytes of a Standard MIDI File; the same piece always gives the same bytes."""
    conductor = [_meta(0, 0x03, piece.title.encode()), *_signatures(piece)]
    tempos = [_tempo(round(beat * piece.ticks_per_quarter), per_minute) for beat, per_minute in piece.tempos]
    first_part = _part_events(piece.parts[0], piece)
    if piece.later_tempos_in_first_part and piece.midi_type == 1:
        conductor, first_part = conductor + tempos[:1], first_part + tempos[1:]
    else:
        conductor = conductor + tempos
    tracks = [conductor, first_part, *(_part_events(part, piece) for part in piece.parts[1:])]
    if piece.midi_type == 0:
        tracks = [[event for track in tracks for event in track]]
    header = struct.pack(">4sIHHH", b"MThd", 6, piece.midi_type, len(tracks), piece.ticks_per_quarter)
    return header + b"".join(_track_bytes(track, piece.running_status) for track in tracks)


def to_ticks(notes: Iterable[Note], ticks_per_quarter: int) -> list[tuple[int, int, int, int]]:
    """Return (onset, end, pitch, velocity) in ticks, sorted; a pitch struck while it sounds ends the earlier note.

    Of several notes on one pitch and onset the longest stays, so that every note-on has one note-off to itself.
    """
    rows = []
    for note in notes:
        onset = max(0, round(note.onset_beats * ticks_per_quarter))
        end = max(onset + 1, round((note.onset_beats + note.duration_beats) * ticks_per_quarter))
        rows.append((note.pitch, onset, -end, min(127, max(1, note.velocity))))
    kept: list[tuple[int, int, int, int]] = []
    for pitch, onset, minus_end, velocity in sorted(rows):
        if kept and kept[-1][2] == pitch:
            old_onset, old_end, _, old_velocity = kept[-1]
            if old_onset == onset:
                continue
            kept[-1] = (old_onset, min(old_end, onset), pitch, old_velocity)
        kept.append((onset, -minus_end, pitch, velocity))
    return sorted(kept)


def _part_events(part: Part, piece: Piece) -> list[Event]:
    scale, channel = piece.ticks_per_quarter, part.channel
    events = [] if piece.midi_type == 0 else [_meta(0, 0x03, part.name.encode())]
    if part.program is not None:
        events.append((0, PROGRAM, bytes([0xC0 | channel, part.program])))
    controls = [*part.controls, *((down, SUSTAIN, 127) for down, _ in part.pedals)]
    controls += [(up, SUSTAIN, 0) for _, up in part.pedals]
    events += [(round(beat * scale), CONTROL, bytes([0xB0 | channel, which, value])) for beat, which, value in controls]
    for onset, end, pitch, velocity in to_ticks(part.notes, scale):
        events.append((onset, NOTE_ON, bytes([0x90 | channel, pitch, velocity])))
        # A note-on of velocity 0 keeps the running status alive; that is why files use it.
        off = bytes([0x90 | channel, pitch, 0]) if piece.running_status else bytes([0x80 | channel, pitch, 64])
        events.append((end, NOTE_OFF, off))
    return events


def _signatures(piece: Piece) -> list[Event]:
    scale = piece.ticks_per_quarter
    events = []
    for beat, numerator, denominator in piece.meters:
        clocks = 36 if (numerator % 3 == 0 and denominator == 8) else 96 // denominator  # MIDI clocks a metronome click
        data = bytes([numerator, denominator.bit_length() - 1, clocks, 8])
        events.append(_meta(round(beat * scale), 0x58, data))
    for beat, sharps, is_minor in piece.key_signatures:
        events.append(_meta(round(beat * scale), 0x59, struct.pack(">bB", sharps, is_minor)))
    return events + [_meta(round(beat * scale), 0x06, text.encode()) for beat, text in piece.markers]


def _tempo(tick: int, quarters_per_minute: float) -> Event:
    return _meta(tick, 0x51, round(60_000_000 / quarters_per_minute).to_bytes(3, "big"))


def _meta(tick: int, kind: int, data: bytes) -> Event:
    return tick, META, bytes([0xFF, kind]) + _variable_length(len(data)) + data


def _variable_length(number: int) -> bytes:
    groups = [number & 0x7F]
    while number := number >> 7:
        groups.append(0x80 | (number & 0x7F))
    return bytes(reversed(groups))


def _track_bytes(events: list[Event], running_status: bool) -> bytes:
    body, now, status = bytearray(), 0, -1
    for tick, _, message in sorted(events, key=lambda event: event[:2]):
        body += _variable_length(tick - now)
        now = tick
        repeated = running_status and message[0] == status
        body += message[1:] if repeated else message
        status = -1 if message[0] == 0xFF else message[0]  # a meta event ends the running status
    body += b"\x00\xff\x2f\x00"
    return struct.pack(">4sI", b"MTrk", len(body)) + bytes(body)
