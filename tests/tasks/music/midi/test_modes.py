"""Channel mode messages, resets and banks: what ends a note, what lifts the pedal, what is a drum."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tasks.errors import BadScore
from tasks.music.midi.read_midi import read_midi
from tasks.music.midi.reader import read_files
from tasks.music.midi.second_reader import second_reading
from tasks.music.midi.writer import write_midi
from tasks.music.score import Score
from tests.budget import examples
from tests.builders import differences, note_rows, off, on, pedal, program, smf, track
from tests.tasks.music.midi.slow_midi import Event, bytes_of, read_slowly

GM_ON, GM_OFF, GM2_ON = (bytes([0xF0, 5, 0x7E, 0x7F, 9, number, 0xF7]) for number in (1, 2, 3))
XG_ON = b"\xf0\x08\x43\x10\x4c\x00\x00\x7e\x00\xf7"
GS_RESET = b"\xf0\x0a\x41\x10\x42\x12\x40\x00\x7f\x00\x41\xf7"
GS_OFF = b"\xf0\x0a\x41\x10\x42\x12\x40\x00\x7f\x7f\x42\xf7"
ALL_NOTES_OFF, ALL_SOUND_OFF, RESET_CONTROLLERS = 123, 120, 121


def control(number: int, value: int = 0, channel: int = 0) -> bytes:
    return bytes([0xB0 | channel, number, value])


def gs_rhythm(part: int, value: int) -> bytes:
    checksum = -(0x40 + 0x10 + part + 0x15 + value) & 0x7F
    return bytes([0xF0, 10, 0x41, 0x10, 0x42, 0x12, 0x40, 0x10 | part, 0x15, value, checksum, 0xF7])


def xg_part_mode(channel: int, value: int) -> bytes:
    return bytes([0xF0, 8, 0x43, 0x10, 0x4C, 8, channel, 7, value, 0xF7])


def drums(score: Score) -> list[bool]:
    return score.notes.is_drum.tolist()


def spans(score: Score) -> list[tuple[int, int]]:
    return list(zip(score.pedals.onset.tolist(), score.pedals.end.tolist(), strict=True))


# --- against a slow reader that does one event after another

channels = st.sampled_from([0, 9, 10])
pitches = st.sampled_from([36, 60])
messages = st.one_of(
    st.builds(on, pitches, st.sampled_from([1, 90]), channels),
    st.builds(on, pitches, st.sampled_from([1, 90]), channels),
    st.builds(off, pitches, channels),
    st.builds(off, pitches, channels),
    st.builds(on, pitches, st.just(0), channels),
    st.builds(pedal, st.sampled_from([0, 63, 64, 127]), channels),
    st.builds(control, st.sampled_from(range(120, 128)), st.sampled_from([0, 1]), channels),
    st.builds(control, st.just(0), st.sampled_from([0, 64, 120, 121, 126, 127]), channels),
    st.builds(program, st.sampled_from([0, 5]), channels),
    st.sampled_from([GM_ON, GM_OFF, GM2_ON, XG_ON, GS_RESET, GS_OFF]),
    st.builds(gs_rhythm, st.sampled_from([0, 1, 10]), st.sampled_from([0, 1, 2])),
    st.builds(xg_part_mode, st.sampled_from([0, 9, 10]), st.sampled_from([0, 1])),
)
tracks_of_events = st.lists(
    st.tuples(st.lists(st.tuples(st.sampled_from([0, 0, 1, 2]), messages), max_size=30), st.sampled_from([0, 0, 2])),
    min_size=1,
    max_size=3,
)


@pytest.mark.slow
@examples(1_000)
@given(tracks_of_events, st.sampled_from([0, 1, 1, 2]))
@example([([(0, on(60)), (2, control(123)), (0, on(60)), (1, off(60)), (1, off(60))], 0)], 0)
@example([([(0, on(60)), (3, off(60)), (0, on(60)), (3, off(60))], 0), ([(2, control(120))], 0)], 1)
def test_what_messages_mean_is_what_a_slow_reader_makes_of_them(
    given_tracks: list[tuple[list[Event], int]], file_format: int
) -> None:
    tracks, ports = [events for events, _ in given_tracks], [port for _, port in given_tracks]
    expected = read_slowly(tracks, ports, file_format)
    data = bytes_of(tracks, ports, file_format)
    if not expected.notes:
        with pytest.raises(BadScore, match=r"no_notes|unreadable_notes"):
            read_midi(data)
        return
    score = read_midi(data)
    held: dict[int, list[tuple[int, int]]] = {}
    for part, span in zip(score.pedals.track.tolist(), spans(score), strict=True):
        held.setdefault(part, []).append(span)
    rows = zip(note_rows(score), drums(score), score.notes.track.tolist(), strict=True)
    assert Counter((*row, is_drum, tuple(held.get(part, []))) for row, is_drum, part in rows) == expected.notes
    assert score.dropped.get("unended_notes", 0) == expected.n_unended
    assert differences(read_midi(write_midi(score)), score) == []


# --- what ends notes


@pytest.mark.parametrize("number", [120, 123, 124, 125, 126, 127])
def test_keys_that_only_a_mode_message_lifts_end_there(number: int) -> None:
    data = smf(track((0, on(60)), (0, on(64)), (0, on(64, channel=1)), (480, control(number)), (20, off(64, 1))))
    score = read_midi(data)
    assert note_rows(score) == [(0, 480, 60, 80), (0, 480, 64, 80), (0, 500, 64, 80)]
    assert score.dropped == {}


def test_local_control_and_reset_all_controllers_lift_no_key() -> None:
    score = read_midi(smf(track((0, on(60)), (100, control(121)), (100, control(122)), (280, off(60)))))
    assert note_rows(score) == [(0, 480, 60, 80)]


def test_a_mode_message_on_another_track_ends_notes_too_but_not_those_that_begin_with_it() -> None:
    notes = track((0, on(60)), (100, on(62)), (50, on(60)), (50, off(60)), (50, off(62)), (50, off(60)))
    score = read_midi(smf(track((100, control(123))), notes))
    assert note_rows(score) == [(0, 100, 60, 80), (100, 150, 62, 80), (150, 50, 60, 80)]
    assert score.dropped == {}


def test_all_notes_off_leaves_the_pedal_down_and_all_sound_off_ends_what_it_holds() -> None:
    begin = [(0, pedal(127)), (0, on(60))]
    kept = read_midi(smf(track(*begin, (100, control(123)), (100, on(62)), (100, off(62)), (100, pedal(0)))))
    assert spans(kept) == [(0, 400)]
    ended = read_midi(smf(track(*begin, (50, off(60)), (50, control(120)), (100, on(62)), (100, off(62)))))
    assert spans(ended) == [(0, 100), (100, 300)]


def test_reset_all_controllers_lifts_the_pedal_of_its_channel() -> None:
    events = [(0, pedal(127)), (0, pedal(127, 1)), (0, on(60)), (0, on(61, channel=1)), (50, control(121))]
    score = read_midi(smf(track(*events, (50, off(60)), (100, off(61, 1)))))
    assert [(span, part) for span, part in zip(spans(score), score.pedals.track.tolist(), strict=True)] == [
        ((0, 50), 0),
        ((0, 200), 1),
    ]


@pytest.mark.parametrize("message", [GM_ON, GM_OFF, GM2_ON, XG_ON, GS_RESET])
def test_a_reset_ends_notes_and_lifts_pedals_of_all_channels_of_its_port(message: bytes) -> None:
    other = track((0, b"\xff\x21\x01\x01"), (0, pedal(127, 3)), (0, on(65, channel=3)), (300, off(65, 3)))
    score = read_midi(smf(track((200, message)), track((0, pedal(127, 3)), (0, on(60, channel=3))), other))
    assert note_rows(score) == [(0, 200, 60, 80), (0, 300, 65, 80)]
    assert spans(score) == [(0, 200), (0, 300)]


# --- pedals that are never lifted


def test_a_pedal_that_is_never_lifted_holds_to_the_last_key_up_and_not_to_events_behind_it() -> None:
    late = [(100_000, b"\xff\x51\x03\x07\xa1\x20"), (100_000, control(7, 100))]
    score = read_midi(smf(track(*late), track((0, pedal(127)), (0, on(60)), (480, off(60)), *late)))
    assert spans(score) == [(0, 480)]


def test_parts_of_one_channel_have_the_same_spans() -> None:
    notes = [track((number, on(60 + number)), (480, off(60 + number))) for number in range(5)]
    moves = track((10, pedal(127)), (20, pedal(0)), (20, pedal(127)))
    score = read_midi(smf(moves, *notes))
    assert spans(score) == [(10, 30), (50, 484)] * 5
    assert score.pedals.track.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


# --- where drums are


def hits(channel: int = 10, *before: bytes) -> bytes:
    """Return a track with messages at its begin and two notes."""
    notes = [[(0, on(pitch, channel=channel)), (240, off(pitch, channel))] for pitch in (36, 38)]
    return track(*((0, message) for message in before), *notes[0], *notes[1])


def bank(value: int, channel: int = 10) -> bytes:
    return control(0, value, channel)


@pytest.mark.parametrize(
    ("are_drums", "data"),
    [
        pytest.param(True, hits(9), id="channel 10"),
        pytest.param(True, hits(10, bank(127), program(0, 10)), id="XG bank without a reset"),
        pytest.param(True, hits(10, XG_ON, bank(127), program(0, 10)), id="XG drum kit"),
        pytest.param(True, hits(10, XG_ON, bank(126), program(0, 10)), id="XG effects kit"),
        pytest.param(True, hits(10, XG_ON, xg_part_mode(10, 1)), id="XG part mode"),
        pytest.param(False, hits(9, XG_ON, bank(0, 9), program(0, 9)), id="XG melody bank on channel 10"),
        pytest.param(True, hits(9, bank(0, 9), program(0, 9)), id="bank 0 on channel 10 without XG"),
        pytest.param(False, hits(10, XG_ON, bank(64), program(0, 10)), id="XG effects voice"),
        pytest.param(True, hits(10, GM2_ON, bank(120), program(0, 10)), id="GM2 rhythm bank"),
        pytest.param(True, hits(10, bank(120), program(0, 10)), id="GM2 rhythm bank without a reset"),
        pytest.param(False, hits(9, GM2_ON, bank(121, 9), program(0, 9)), id="GM2 melody bank on channel 10"),
        pytest.param(True, hits(10, GS_RESET, gs_rhythm(10, 1)), id="GS part 11 is channel 11"),
        pytest.param(True, hits(10, gs_rhythm(10, 2)), id="GS second drum map, without a reset"),
        pytest.param(True, hits(0, GS_RESET, gs_rhythm(1, 1)), id="GS part 1 is channel 1"),
        pytest.param(False, hits(9, GS_RESET, gs_rhythm(0, 0)), id="GS part 10 is number 0"),
        pytest.param(False, hits(10, GS_RESET, bank(127), program(0, 10)), id="GS bank 127 is a variation"),
        pytest.param(False, hits(10, bank(127)), id="a bank waits for a program"),
        pytest.param(False, hits(10, program(0, 10), bank(127)), id="a program before the bank"),
        pytest.param(False, hits(10, bank(127), program(0, 10), bank(0), program(0, 10)), id="and back"),
        pytest.param(False, hits(10, bank(127), program(0, 10), GM_ON), id="GM on"),
        pytest.param(False, hits(10, gs_rhythm(10, 1), GS_RESET), id="GS reset"),
        pytest.param(True, hits(9, gs_rhythm(0, 0), XG_ON), id="XG on"),
        pytest.param(True, hits(9, GM2_ON, bank(121, 9), program(0, 9), GM_OFF), id="GM off"),
        pytest.param(False, hits(10, b"\xff\x21\x01\x01", bank(127), b"\xff\x21\x01\x00", program(0, 10)), id="port"),
        pytest.param(False, smf(track((0, bank(127)), (0, program(0, 10))), hits(), file_format=2), id="sequence"),
        pytest.param(True, smf(track((0, bank(127)), (0, program(0, 10))), hits()), id="another track"),
        pytest.param(True, hits(10, b"\xf7\x09\xf0\x43\x10\x4c\x08\x0a\x07\x01\xf7"), id="in an escape"),
    ],
)  # fmt: skip
def test_drums_are_where_the_messages_say(are_drums: bool, data: bytes) -> None:
    score = read_midi(data if data.startswith(b"MThd") else smf(data))
    assert drums(score) == [are_drums] * 2


def test_a_channel_becomes_drums_in_mid_piece_and_its_program_is_kept() -> None:
    events = [(0, on(60, channel=3)), (9, off(60, 3)), (0, bank(127, 3)), (0, program(8, 3)), (0, on(36, channel=3))]
    score = read_midi(smf(track(*events, (9, off(36, 3)))))
    assert drums(score) == [False, True]
    assert score.notes.program.tolist() == [0, 8]
    assert score.notes.track.tolist() == [0, 1]


def test_one_program_as_drums_and_as_pitched_notes_is_two_parts_and_programs_name_the_pitched_ones() -> None:
    events = [(0, program(5, 3)), (0, on(60, channel=3)), (9, off(60, 3)), (0, xg_part_mode(3, 1))]
    data = smf(track(*events, (0, on(36, channel=3)), (9, off(36, 3))))
    assert read_midi(data).n_tracks == 2
    (programs,) = read_files([data]).programs
    assert np.flatnonzero(programs).tolist() == [5]


def test_drums_of_another_channel_are_written_on_channel_10() -> None:
    data = write_midi(read_midi(smf(hits(10, bank(127), program(0, 10)))))
    assert b"\x99\x24" in data
    assert drums(read_midi(data)) == [True, True]


def test_the_second_reader_keeps_drums_that_a_bank_chose() -> None:
    begin = hits(10, bank(127), program(0, 10))
    second = second_reading(smf(begin, track((0, on(60)), (5, off(60)))), 0, 100)
    assert second is not None
    assert sorted(zip(read_midi(second).notes.pitch.tolist(), drums(read_midi(second)), strict=True)) == [
        (36, True), (38, True), (60, False),
    ]  # fmt: skip
