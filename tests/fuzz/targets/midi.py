"""The MIDI reader: any bytes become a song that holds what it says, or a refusal with one word and one line."""

import json

import numpy as np

from tasks.errors import BadScore
from tasks.music.midi.limits import ReadLimits
from tasks.music.midi.read_midi import read_midi
from tasks.music.midi.reader import LOSSES, read_files
from tasks.music.midi.writer import write_midi
from tests.builders import DRUMS, make_score, off, on, pedal, program, smf, tempo, track
from tests.fuzz.harness import Target


def seeds() -> list[bytes]:
    """Return small files with everything the format has: formats 0 to 2, ports, pedals, RIFF, SysEx, running status."""
    written = write_midi(
        make_score(
            [(0, 10, 60, 80), (5, 300, 62, 1, 1), (20, 5, 36, 127, 2)],
            pedals=[(3, 40)],
            programs=(0, 30, DRUMS),
            time_signatures=[(0, 3, 4)],
            key_signatures=[(7, -2, True)],
        ),
        "title",
    )
    note = track((0, on(60)), (480, off(60)))
    modes = [(10, bytes([0xB0 | channel, control, 0])) for control in (120, 121, 123, 126) for channel in (0, 9)]
    banks = [(0, b"\xb5\x00\x7f"), (0, program(0, 5)), (0, on(36, channel=5)), (9, b"\xb5\x00\x00"), (9, off(36, 5))]
    resets = [b"\xf0\x05\x7e\x7f\x09\x01\xf7", b"\xf0\x08\x43\x10\x4c\x00\x00\x7e\x00\xf7"]
    part = b"\xf0\x0a\x41\x10\x42\x12\x40\x1a\x15\x01\x10\xf7"
    drums = track(*((0, message) for message in (*resets, part)), *banks)
    pedals = track((0, pedal(127)), (0, on(60)), (5, b"\xb0\x42\x7f"), (9, off(60)), *modes, (5, pedal(0)))
    running = b"\x00\x90\x3c\x50\x00\xff\x01\x00\x05\x3c\x00\x00\xf0\x01\xf7\x05\x3e\x50\x05\x3e\x00\x00\xff\x2f\x00"
    ports = track((0, b"\xff\x21\x01\x01"), (0, on(60)), (0, b"\xff\x21\x01\x00"), (0, on(60)), (9, off(60)))
    early = note + track((0, tempo(400_000)), (0, on(62)), (5, off(62)))
    riff = b"RMIDdata" + len(written).to_bytes(4, "little") + written
    return [
        written,
        smf(note, file_format=0),
        smf(note, pedals, file_format=2),
        smf(drums, pedals, note),
        smf(running, ports),
        smf(early, n_tracks=3) + b"junk",
        b"RIFF" + len(riff).to_bytes(4, "little") + riff,
    ]


def check(data: bytes) -> str | None:
    """Read a file; what is read fits together, is within MIDI's ranges, and is written and read again as it is."""
    read = read_files([data])
    losses, refusal, notes = json.loads(read.dropped[0]), read.refusals[0], read.notes
    if refusal is not None:
        assert len(notes.onset) == len(notes.pedal_onset) == 0
        assert losses == {}
        raise BadScore(refusal.reason, refusal.detail)
    assert 0 < len(notes.onset) <= len(data)
    assert losses.keys() <= LOSSES.keys() | {"second_reader"}
    assert notes.onset.min() >= 0
    assert notes.duration.min() >= 1
    assert notes.pitch.max() <= 127
    assert 1 <= notes.velocity.min() <= notes.velocity.max() <= 127
    assert notes.program.max() <= 127
    assert np.all(notes.onset_seconds < notes.end_seconds)
    assert int(notes.track.max()) + 1 == int(notes.n_tracks[0])
    assert np.all(notes.pedal_onset < notes.pedal_end)
    score = read_midi(data)
    again = read_midi(write_midi(score), limits=ReadLimits(max_seconds=1e12))
    for name in ("onset", "duration", "pitch", "velocity", "program", "is_drum", "track"):
        assert np.array_equal(getattr(score.notes, name), getattr(again.notes, name)), name
    return "second_reader" if "second_reader" in losses else None


TARGETS = (Target(name="midi", seeds=seeds, check=check, seconds=30),)
