"""The fourteen statistics: typed out for files made by hand, and against mido on real ones."""

import io
import json
from collections import Counter
from typing import Any

import mido
import pytest

from tasks.errors import BadScore
from tasks.music.midi.event_statistics import midi_statistics
from tasks.music.midi.writer import write_midi
from tests.builders import DRUMS, make_score, off, on, program, smf, tempo, track
from tests.conftest import real_data

KEYS = {
    "bank_select", "channels_by_track", "channels_total", "general_midi_mode", "ntracks", "nticks",
    "num_notes_by_channel", "patch_changes_by_track", "patch_changes_total", "percussion", "pitches",
    "pitch_range_by_track", "pitch_range_sum", "ticks_per_quarter",
}  # fmt: skip
GM_ON = b"\xf0\x05\x7e\x7f\x09\x01\xf7"
GM_OFF = b"\xf0\x05\x7e\x7f\x09\x02\xf7"
GM2_ON = b"\xf0\x05\x7e\x7f\x09\x03\xf7"


def bank(controller: int, value: int, channel: int = 0) -> bytes:
    return bytes([0xB0 | channel, controller, value])


def test_two_notes() -> None:
    data = smf(track((0, on(60)), (240, off(60)), (0, on(67)), (480, off(67)), (1000, tempo(500_000))))
    assert midi_statistics(data) == {
        "bank_select": [], "channels_by_track": [[0]], "channels_total": [0], "general_midi_mode": [], "ntracks": 1,
        "nticks": 720, "num_notes_by_channel": {"0": 2}, "patch_changes_by_track": [{}], "patch_changes_total": [],
        "percussion": {}, "pitches": {"60": 1, "67": 1}, "pitch_range_by_track": [[60, 67]], "pitch_range_sum": 7,
        "ticks_per_quarter": 480,
    }  # fmt: skip


def test_several_tracks_channels_and_drums() -> None:
    data = smf(
        track((0, tempo(400_000))),
        track((0, program(24)), (0, on(50)), (10, off(50)), (0, program(30)), (0, on(62)), (10, off(62))),
        track((0, program(0, 9)), (0, on(36, 80, 9)), (5, off(36, 9)), (0, on(36, 80, 9)), (5, off(36, 9))),
        track((0, program(3, 2)), (0, on(70, 80, 2)), (0, on(70, 80, 0)), (90, off(70, 2)), (0, off(70, 0))),
        division=96,
    )
    assert midi_statistics(data) == {
        "bank_select": [], "channels_by_track": [[], [0], [9], [0, 2]], "channels_total": [0, 2, 9],
        "general_midi_mode": [], "ntracks": 4, "nticks": 90, "num_notes_by_channel": {"0": 3, "2": 1, "9": 2},
        "patch_changes_by_track": [{}, {"0": 30}, {"9": 0}, {"2": 3}], "patch_changes_total": [0, 3, 24, 30],
        "percussion": {"36": 2}, "pitches": {"50": 1, "62": 1, "70": 2},
        "pitch_range_by_track": [None, [50, 62], None, [70, 70]], "pitch_range_sum": 12, "ticks_per_quarter": 96,
    }  # fmt: skip


def test_banks_and_general_midi_modes() -> None:
    data = smf(
        track(
            (0, GM_ON), (0, bank(0, 1)), (0, bank(32, 2)), (0, program(5)), (0, program(6)), (0, on(60)),
            (1, off(60)), (0, bank(0, 3)), (0, program(7)), (0, GM2_ON), (0, bank(32, 9, 4)),
        ),
        track((0, GM_OFF), (0, bank(0, 3, 1)), (0, program(1, 1)), (0, b"\xf0\x03\x7e\x7f\x08")),
    )  # fmt: skip
    found = midi_statistics(data)
    assert found["bank_select"] == [[1, 2], [3, 0], [0, 9]]
    assert found["general_midi_mode"] == [1, 2, 0]
    assert found["patch_changes_total"] == [1, 5, 6, 7]


def test_a_file_without_notes_has_all_the_keys() -> None:
    found = midi_statistics(write_midi(make_score([])))
    assert set(found) == KEYS
    assert (found["nticks"], found["pitch_range_sum"], found["num_notes_by_channel"]) == (0, 0, {})


def test_running_status_other_chunks_and_an_rmid_file() -> None:
    plain = smf(track((0, program(8)), (0, on(60)), (10, bytes([60, 0])), (0, bytes([64, 80])), (10, bytes([64, 0]))))
    with_chunk = plain[:14] + b"JUNK\0\0\0\3abc" + plain[14:]
    riff = b"RIFF" + (len(plain) + 12).to_bytes(4, "little") + b"RMIDdata" + len(plain).to_bytes(4, "little") + plain
    found = midi_statistics(plain)
    assert (found["num_notes_by_channel"], found["patch_changes_by_track"]) == ({"0": 2}, [{"0": 8}])
    assert midi_statistics(with_chunk) == midi_statistics(riff) == found


def test_what_is_written_for_a_score() -> None:
    score = make_score([(0, 100, 60, 80), (50, 100, 35, 80, 1), (100, 300, 72, 80, 2)], programs=(0, DRUMS, 40))
    found = midi_statistics(write_midi(score))
    assert set(found) == KEYS
    assert json.loads(json.dumps(found)) == found
    assert found["nticks"] == 400
    assert found["patch_changes_by_track"] == [{}, {"0": 0}, {"9": 0}, {"1": 40}]
    assert found["percussion"] == {"35": 1}


def test_rubbish_is_one_clear_error() -> None:
    with pytest.raises(BadScore, match=r"not_midi: .*\(words\.mid\)"):
        midi_statistics(b"La la la, no MIDI here.", "words.mid")


def notes_by_mido(messages: mido.MidiTrack) -> list[tuple[int, int, int]]:
    """Return (channel, pitch, end) of the ended notes of a track; the note that began first ends first."""
    tick, begun, notes = 0, dict[tuple[int, int], list[int]](), []
    for message in messages:
        tick += message.time
        if message.type not in ("note_on", "note_off"):
            continue
        voice = (message.channel, message.note)
        if message.type == "note_on" and message.velocity:
            begun.setdefault(voice, []).append(tick)
        elif begun.get(voice):
            notes.append((*voice, max(tick, begun[voice].pop(0) + 1)))
    return notes


def by_mido(data: bytes) -> dict[str, Any]:
    """Return what another reader says of all but banks and modes."""
    file = mido.MidiFile(file=io.BytesIO(data))
    tracks = [notes_by_mido(messages) for messages in file.tracks]
    notes = [note for track_notes in tracks for note in track_notes]
    pitched = [[pitch for channel, pitch, _ in track_notes if channel != 9] for track_notes in tracks]
    changes = [[m for m in messages if m.type == "program_change"] for messages in file.tracks]
    return {
        "channels_by_track": [sorted({channel for channel, _, _ in track_notes}) for track_notes in tracks],
        "channels_total": sorted({channel for channel, _, _ in notes}),
        "ntracks": len(file.tracks),
        "nticks": max(end for _, _, end in notes),
        "num_notes_by_channel": dict(Counter(str(channel) for channel, _, _ in notes)),
        "patch_changes_by_track": [{str(m.channel): m.program for m in of_track} for of_track in changes],
        "patch_changes_total": sorted({m.program for of_track in changes for m in of_track}),
        "percussion": dict(Counter(str(pitch) for channel, pitch, _ in notes if channel == 9)),
        "pitches": dict(Counter(str(pitch) for channel, pitch, _ in notes if channel != 9)),
        "pitch_range_by_track": [[min(pitches), max(pitches)] if pitches else None for pitches in pitched],
        "pitch_range_sum": sum(max(pitches) - min(pitches) for pitches in pitched if pitches),
        "ticks_per_quarter": file.ticks_per_beat,
    }


@pytest.mark.slow
def test_real_files_say_the_same_to_mido() -> None:
    files = sorted(real_data("dev").rglob("*.mid"))
    chosen = files[:: max(1, len(files) // 60)]
    n_compared = 0
    for path in chosen:
        data = path.read_bytes()
        try:
            theirs = by_mido(data)
        except (OSError, EOFError, ValueError, KeyError, IndexError):  # what mido cannot read is no witness
            continue
        ours = midi_statistics(data, str(path))
        assert {key: ours[key] for key in theirs} == theirs, path
        n_compared += 1
    assert n_compared > len(chosen) * 0.8
