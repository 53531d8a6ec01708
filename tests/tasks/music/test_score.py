"""Reading and writing MIDI: laws, bytes typed by hand, and the folder of real files where it is present."""

import csv
import io
from pathlib import Path
from typing import Any

import mido
import numpy as np
import pytest
import symusic
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import BadScore, NotFound
from tasks.music.midi.limits import ReadLimits
from tasks.music.midi.read_midi import read_midi
from tasks.music.midi.writer import write_midi
from tasks.music.score import Score, Tempos, seconds_at, ticks_at
from tests.budget import examples
from tests.builders import (
    DRUMS,
    END_OF_TRACK,
    differences,
    make_score,
    note_rows,
    off,
    on,
    pedal,
    program,
    smf,
    tempo,
    track,
)
from tests.conftest import real_data

ONE_NOTE = track((0, on(60)), (480, off(60)))

# --- tempo map


@given(
    st.lists(st.tuples(st.integers(1, 10**6), st.integers(1_000, 0xFFFFFF)), max_size=20),
    st.integers(1, 0x7FFF),
    st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=50),
)
def test_ticks_at_undoes_seconds_at(changes: list[tuple[int, int]], ticks_per_quarter: int, ticks: list[int]) -> None:
    tempos = Tempos(
        np.cumsum([0, *(shift for shift, _ in changes)]), np.array([500_000, *(tempo for _, tempo in changes)])
    )
    times = seconds_at(tempos, ticks_per_quarter, np.array(ticks))
    assert np.array_equal(ticks_at(tempos, ticks_per_quarter, times), ticks)


def test_seconds_follow_every_tempo_change() -> None:
    tempos = Tempos(np.array([0, 480, 960]), np.array([500_000, 1_000_000, 250_000]))
    assert seconds_at(tempos, 480, np.array([0, 240, 480, 720, 960, 1440])).tolist() == [0, 0.25, 0.5, 1, 1.5, 1.75]


def test_tempos_count_on_whichever_track_they_stand() -> None:
    score = read_midi(smf(track((0, on(60)), (960, off(60))), track((480, tempo(1_000_000)))))
    assert score.notes.end_seconds.tolist() == [1.5]


def test_of_several_tempos_at_one_tick_the_last_counts() -> None:
    changes = [event for n in range(40) for event in ((10, tempo(400_000)), (0, tempo(300_000 + n)))]
    score = read_midi(smf(track(*changes), ONE_NOTE))
    assert score.tempos.tick.tolist() == [0, *range(10, 410, 10)]
    assert score.tempos.microseconds_per_quarter.tolist() == [500_000, *range(300_000, 300_040)]


# --- round trip


@st.composite
def scores(draw: st.DrawFn) -> Score:
    """Scores of several parts in which no pitch of a part overlaps itself."""
    programs = draw(st.lists(st.sampled_from([DRUMS, 0, 40, 127]), min_size=1, max_size=20))
    notes, pedals = [], []
    for part in range(len(programs)):
        for pitch in draw(st.sets(st.sampled_from([0, 60, 61, 127]), min_size=1, max_size=3)):
            moments = sorted(draw(st.sets(st.integers(0, 50_000), min_size=2, max_size=8)))
            velocity = draw(st.integers(1, 127))
            notes += [(a, b - a, pitch, velocity, part) for a, b in zip(moments[::2], moments[1::2], strict=False)]
        moments = sorted(draw(st.sets(st.integers(0, 50_000), max_size=6)))
        pedals += [(a, b, part) for a, b in zip(moments[::2], moments[1::2], strict=False)]
    changes = {0: 500_000} | draw(st.dictionaries(st.integers(0, 50_000), st.integers(1_000, 0xFFFFFF), max_size=5))
    meters = draw(st.dictionaries(st.integers(0, 50_000), st.sampled_from([(3, 4), (7, 8), (255, 1)]), max_size=3))
    keys = draw(st.dictionaries(st.integers(0, 50_000), st.tuples(st.integers(-7, 7), st.booleans()), max_size=3))
    return make_score(
        notes,
        pedals=pedals,
        programs=programs,
        tempos=sorted(changes.items()),
        time_signatures=[(tick, *meter) for tick, meter in sorted(meters.items())],
        key_signatures=[(tick, *key) for tick, key in sorted(keys.items())],
        ticks_per_quarter=draw(st.integers(1, 0x7FFF)),
    )


@examples(60)
@given(scores())
def test_reading_undoes_writing(score: Score) -> None:
    data = write_midi(score, "title")
    again = read_midi(data, limits=ReadLimits(max_seconds=1e12))
    assert differences(score, again) == []
    assert again.dropped == {}
    assert write_midi(score, "title") == data


@examples(30)
@given(scores())
def test_other_readers_see_the_same_notes(score: Score) -> None:
    data = write_midi(score)
    theirs: Any = symusic.Score.from_midi(data)
    assert theirs.note_num() == len(score.notes.pitch)
    assert len(theirs.tracks) == score.n_tracks
    sounding = mido.MidiFile(file=io.BytesIO(data))
    assert sounding.type == 1
    assert sum(message.type == "note_on" for part in sounding.tracks for message in part) == len(score.notes.pitch)


def test_each_part_gets_a_channel_and_then_a_port() -> None:
    score = make_score([(0, 10, 60, 80, part) for part in range(19)], programs=[5] * 17 + [DRUMS] * 2)
    parts = mido.MidiFile(file=io.BytesIO(write_midi(score))).tracks[1:]
    channels = [next(message.channel for message in part if message.type == "note_on") for part in parts]
    ports = [sum(message.port for message in part if message.type == "midi_port") for part in parts]
    assert channels == [*range(9), *range(10, 16), 0, 1, 9, 9]
    assert ports == [0] * 15 + [1, 1, 0, 1]


def test_gaps_longer_than_a_delta_can_hold_survive() -> None:
    far = 2**28 + 10  # ticks; a delta holds 2**28 - 1
    score = make_score(
        [(0, far, 60, 80), (2 * far + 2**28, 5, 61, 80)],
        tempos=[(0, 500_000), (3 * far, 1_000)],
        ticks_per_quarter=32767,
    )
    assert differences(read_midi(write_midi(score)), score) == []


@pytest.mark.parametrize(
    ("notes", "message"),
    [([(0, 10, 60, 0)], "velocity"), ([(-5, 10, 60, 80)], "onset"), ([(0, 0, 60, 80)], "duration")],
)
def test_writing_refuses_what_no_file_can_hold(notes: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_midi(make_score(notes))


def test_more_parts_than_a_file_has_channels_are_refused_in_one_line() -> None:
    score = make_score([(0, 10, 36, 80, part) for part in range(129)], programs=[DRUMS] * 129)
    with pytest.raises(BadScore, match="129 parts do not fit on 128 ports"):
        write_midi(score)


# --- what becomes of odd but readable files


def test_zero_length_notes_get_one_tick() -> None:
    score = read_midi(smf(track((0, on(60)), (0, off(60)), (10, on(62)), (5, off(62)))))
    assert note_rows(score) == [(0, 1, 60, 80), (10, 5, 62, 80)]


def test_overlapping_notes_of_one_pitch_end_in_the_order_they_began() -> None:
    score = read_midi(smf(track((0, on(60, 80)), (10, on(60, 70)), (10, off(60)), (30, off(60)))))
    assert note_rows(score) == [(0, 20, 60, 80), (10, 40, 60, 70)]


def test_notes_that_never_end_are_counted() -> None:
    score = read_midi(smf(track((0, on(60)), (0, on(62)), (0, on(62)), (480, off(60)))))
    assert note_rows(score) == [(0, 480, 60, 80)]
    assert score.dropped == {"unended_notes": 2}


def test_music_behind_an_early_end_of_track_is_read() -> None:
    score = read_midi(smf(ONE_NOTE + track((0, on(62)), (5, off(62)))))
    assert note_rows(score) == [(0, 480, 60, 80), (480, 5, 62, 80)]
    assert score.dropped == {"early_ends": 1}


def test_junk_behind_an_early_end_of_track_is_counted() -> None:
    score = read_midi(smf(ONE_NOTE + b"\x00\xf4 junk"))
    assert note_rows(score) == [(0, 480, 60, 80)]
    assert score.dropped == {"bytes_after_end": 7}


def test_running_status_goes_on_over_system_exclusive_events() -> None:
    events = b"\x00\x90\x3c\x50" + b"\x00\xf0\x01\xf7" + b"\x05\x3c\x00" + b"\x05\x3e\x50\x05\x3e\x00"
    assert note_rows(read_midi(smf(events + END_OF_TRACK))) == [(0, 5, 60, 80), (10, 5, 62, 80)]


@pytest.mark.parametrize("stated", [0, 5, 10_000], ids=["too small", "inside an event", "behind the end of the file"])
def test_a_wrong_chunk_size_costs_no_music(stated: int) -> None:
    data = bytearray(smf(ONE_NOTE, ONE_NOTE))
    last = data.rindex(b"MTrk")
    data[last + 4 : last + 8] = stated.to_bytes(4)
    score = read_midi(bytes(data))
    assert note_rows(score) == [(0, 480, 60, 80)] * 2
    assert score.dropped == {"mended_chunks": 1}


def test_a_chunk_that_swallows_the_next_track_ends_where_that_begins() -> None:
    data = bytearray(smf(ONE_NOTE, ONE_NOTE, ONE_NOTE))
    data[18:22] = (len(ONE_NOTE) + 9).to_bytes(4)
    score = read_midi(bytes(data))
    assert len(score.notes.pitch) == 3
    assert score.dropped == {"mended_chunks": 1}


def test_a_program_set_on_another_track_holds_for_the_channel() -> None:
    score = read_midi(
        smf(track((0, program(40)), (480, program(41))), track((0, on(60)), (480, off(60)), (0, on(62)), (9, off(62))))
    )
    assert score.notes.program.tolist() == [40, 41]


def test_a_track_that_sets_its_own_program_keeps_it() -> None:
    tracks = [track((0, program(number)), (0, on(60 + number)), (480, off(60 + number))) for number in (1, 2)]
    assert read_midi(smf(*tracks)).notes.program.tolist() == [1, 2]


def test_running_status_goes_on_over_meta_events() -> None:
    score = read_midi(
        smf(b"\x00\x90\x3c\x50" + b"\x00\xff\x01\x00" + b"\x05\x3c\x00\x05\x3e\x50\x05\x3e\x00" + END_OF_TRACK)
    )
    assert note_rows(score) == [(0, 5, 60, 80), (10, 5, 62, 80)]


def test_tracks_that_the_header_hides_are_read() -> None:
    score = read_midi(smf(ONE_NOTE, ONE_NOTE, n_tracks=0))
    assert len(score.notes.pitch) == score.n_tracks == 2


def test_missing_tracks_and_trailing_bytes_are_counted() -> None:
    score = read_midi(smf(ONE_NOTE, n_tracks=3) + b"junk")
    assert score.dropped == {"missing_tracks": 2, "trailing_bytes": 4}
    joined = smf(ONE_NOTE) + smf(ONE_NOTE)
    assert read_midi(joined).dropped == {"trailing_bytes": len(joined) // 2}


def test_unknown_chunks_are_skipped() -> None:
    data = smf(ONE_NOTE)
    assert note_rows(read_midi(data[:14] + b"XFIH\0\0\0\2ab" + data[14:])) == [(0, 480, 60, 80)]


def test_riff_wrapping_is_taken_off() -> None:
    inner = smf(ONE_NOTE)
    chunks = b"RMIDINFO\3\0\0\0abc\0data" + len(inner).to_bytes(4, "little") + inner
    assert note_rows(read_midi(b"RIFF" + len(chunks).to_bytes(4, "little") + chunks)) == [(0, 480, 60, 80)]


def test_impossible_meta_values_are_dropped_and_counted() -> None:
    bad = [
        (0, tempo(0)),
        (0, b"\xff\x58\x04\x00\x02\x18\x08"),  # 0/4
        (0, b"\xff\x58\x04\x04\x08\x18\x08"),  # 4/256
        (0, b"\xff\x59\x02\x08\x00"),  # eight sharps
        (0, b"\xff\x59\x02\x00\x02"),  # neither major nor minor
        (0, b"\xff\x58\x04\x06\x03\x18\x08"),  # 6/8
        (0, b"\xff\x59\x02\xfd\x01"),  # three flats, minor
    ]
    score = read_midi(smf(track(*bad), ONE_NOTE))
    assert score.dropped == {"bad_key_signature": 2, "bad_tempo": 1, "bad_time_signature": 2}
    assert score.tempos.microseconds_per_quarter.tolist() == [500_000]
    assert (score.time_signatures.numerator.tolist(), score.time_signatures.denominator.tolist()) == ([6], [8])
    assert (score.key_signatures.key.tolist(), score.key_signatures.is_minor.tolist()) == ([-3], [True])


def test_data_bytes_over_127_are_clamped_and_counted() -> None:
    score = read_midi(smf(track((0, on(60, 200)), (480, off(60)))))
    assert note_rows(score) == [(0, 480, 60, 127)]
    assert score.dropped == {"sanitized": 1}


def test_sequences_of_format_2_follow_one_another() -> None:
    first = track((0, tempo(250_000)), (0, on(60)), (480, off(60)), (480, b"\xff\x01\x00"))  # ends at tick 960
    score = read_midi(smf(first, ONE_NOTE, file_format=2))
    assert note_rows(score) == [(0, 480, 60, 80), (960, 480, 60, 80)]
    assert score.notes.onset_seconds.tolist() == [0, 0.5]
    assert score.notes.end_seconds.tolist() == [0.25, 1.0]


def test_drums_and_programs_and_parts() -> None:
    score = read_midi(
        smf(
            track((0, program(40)), (0, on(60)), (10, off(60)), (0, program(41)), (0, on(62)), (10, off(62))),
            track((0, on(36, channel=9)), (10, off(36, channel=9))),
        )
    )
    assert score.notes.program.tolist() == [0, 40, 41]
    assert score.notes.is_drum.tolist() == [True, False, False]
    assert score.notes.track.tolist() == [2, 0, 1]
    assert score.n_tracks == 3


# --- pedals


def spans(score: Score) -> list[tuple[int, int, int]]:
    pedals = score.pedals
    return list(zip(pedals.track.tolist(), pedals.onset.tolist(), pedals.end.tolist(), strict=True))


def test_pedal_of_a_track_without_notes_holds_the_notes_of_its_channel() -> None:
    pedals = track((10, pedal(127, channel=1)), (90, pedal(0, channel=1)))
    hands = [track((0, on(pitch, channel=1)), (50, off(pitch, channel=1))) for pitch in (60, 40)]
    other = track((0, on(72, channel=2)), (50, off(72, channel=2)))
    assert spans(read_midi(smf(pedals, *hands, other))) == [(0, 10, 100), (1, 10, 100)]


def test_pedal_stays_down_over_a_program_change_and_to_the_end_of_the_music() -> None:
    score = read_midi(
        smf(
            track(
                (0, program(3)),
                (0, on(60)),
                (10, pedal(64)),
                (10, off(60)),
                (0, program(4)),
                (10, on(62)),
                (10, off(62)),
                (60, pedal(63)),
                (20, pedal(100)),
                (10, on(64)),
                (20, off(64)),  # the last key up, at tick 150
                (50, b"\xff\x01\x00"),  # at tick 200
            )
        )
    )
    assert spans(score) == [(0, 10, 100), (0, 120, 150), (1, 10, 100), (1, 120, 150)]


def test_pedal_moves_without_effect_make_no_spans() -> None:
    moves = track((0, pedal(0)), (10, pedal(127)), (0, pedal(0)), (10, pedal(70)), (5, pedal(90)), (5, pedal(10)))
    assert spans(read_midi(smf(moves, ONE_NOTE))) == [(0, 20, 30)]


# --- what is refused, and why


HUGE = b"\xff\xff\xff\x7f"  # the longest delta: 2**28 - 1 ticks


@pytest.mark.parametrize(
    ("reason", "data"),
    [
        pytest.param("empty_file", b"", id="no bytes"),
        pytest.param("not_midi", b"PK\x03\x04 not music at all", id="a zip file"),
        pytest.param("not_midi", b"version https://git-lfs.github.com/spec/v1\n", id="a Git LFS pointer"),
        pytest.param("not_midi", b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        ", id="an AppleDouble file"),
        pytest.param("not_midi", b"RIFF\x10\0\0\0RMIDnone\4\0\0\0abcd", id="RIFF without data"),
        pytest.param("not_midi", b"RIFF\x10\0\0\0WAVEdata\4\0\0\0abcd", id="RIFF of sound"),
        pytest.param("truncated", b"MThd", id="four bytes of header"),
        pytest.param("bad_header", b"MThd\0\0\0\4\0\1\0\1\1\xe0" + smf(ONE_NOTE)[14:], id="header too short"),
        pytest.param("bad_header", b"MThd\xff\xff\xff\xff\0\1\0\1\1\xe0" + smf(ONE_NOTE)[14:], id="header too long"),
        pytest.param("bad_header", smf(ONE_NOTE, file_format=3), id="format 3"),
        pytest.param("truncated", smf(ONE_NOTE)[:14], id="cut behind the header"),
        pytest.param("truncated", smf(ONE_NOTE)[:-4], id="cut inside a track"),
        pytest.param("bad_event", smf(b"\x00\x3c\x50" + ONE_NOTE), id="running status without a status"),
        pytest.param("bad_event", smf(b"\0\xff\1\0\0\x3c\x50" + ONE_NOTE), id="the same behind a meta event"),
        pytest.param("bad_event", smf(b"\x00\xf4" + ONE_NOTE), id="undefined status"),
        pytest.param("bad_event", smf(b"\x00\xff\x01\x7fx" + ONE_NOTE), id="meta event past the end"),
        pytest.param("unsupported_division", smf(ONE_NOTE, division=0xE728), id="SMPTE frames"),
        pytest.param("out_of_range", smf(ONE_NOTE, division=0), id="0 ticks per quarter"),
        pytest.param("out_of_range", smf((HUGE + b"\xff\1\0") * 9 + ONE_NOTE), id="overflow"),
        pytest.param("too_long", smf(HUGE + b"\xff\1\0" + ONE_NOTE), id="three days"),
        pytest.param("no_notes", smf(track((0, tempo(500_000)))), id="no note-on"),
        pytest.param("no_notes", smf(), id="no tracks"),
        pytest.param("no_notes", smf(track((0, off(60)), (5, on(60, 0)))), id="note-offs alone"),
        pytest.param("unreadable_notes", smf(track((0, on(60)))), id="a note without end"),
    ],
)
def test_malformed_files_are_refused_with_a_reason(reason: str, data: bytes) -> None:
    with pytest.raises(BadScore) as caught:
        read_midi(data, "a.mid")
    assert caught.value.reason == reason
    assert "a.mid" in caught.value.detail
    assert "\n" not in caught.value.detail


def test_limits() -> None:
    data = smf(track(*[(1, message) for _ in range(20) for message in (on(60), off(60))]))
    for limits, reason in (
        (ReadLimits(max_notes=19), "too_many_notes"),
        (ReadLimits(max_bytes=100), "too_long"),
        (ReadLimits(max_seconds=0.01), "too_long"),
        (ReadLimits(max_tracks=0), "out_of_range"),
    ):
        with pytest.raises(BadScore, match=reason):
            read_midi(data, limits=limits)
    assert len(read_midi(data, limits=ReadLimits(max_notes=20)).notes.pitch) == 20


def test_paths(tmp_path: Path) -> None:
    (tmp_path / "näme.mid").write_bytes(smf(ONE_NOTE))
    assert note_rows(read_midi(tmp_path / "näme.mid")) == [(0, 480, 60, 80)]
    with pytest.raises(NotFound, match=r"none\.mid"):
        read_midi(tmp_path / "none.mid")
    with pytest.raises(BadScore, match="limit 5"):
        read_midi(tmp_path / "näme.mid", limits=ReadLimits(max_bytes=5))


@examples(300)
@given(st.data())
def test_no_bytes_crash_the_reader(data: st.DataObject) -> None:
    """Flip, cut and double bytes of a file with everything in it: a score, or a BadScore."""
    whole = write_midi(
        make_score(
            [(0, 10, 60, 80), (5, 300, 62, 1, 1), (20, 5, 36, 127, 2)],
            pedals=[(3, 40)],
            programs=(0, 30, DRUMS),
            time_signatures=[(0, 3, 4)],
            key_signatures=[(7, -2, True)],
        )
    )
    mutant = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(mutant) - 1))
        kind = data.draw(st.sampled_from(["set", "cut", "insert"]))
        if kind == "set":
            mutant[place] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del mutant[place : place + data.draw(st.integers(1, 4))]
        else:
            mutant[place:place] = data.draw(st.binary(min_size=1, max_size=4))
        if not mutant:
            break
    try:
        score = read_midi(bytes(mutant))
    except BadScore:
        return
    assert len(score.notes.pitch) > 0
    assert differences(read_midi(write_midi(score), limits=ReadLimits(max_seconds=1e12)), score) == []


# --- the bytes


@given(st.integers(0, 2**28 - 1))
def test_variable_length_numbers_come_back(value: int) -> None:
    score = read_midi(smf(track((0, tempo(1_000)), (value, on(60)), (1, off(60)))), limits=ReadLimits(max_seconds=1e9))
    assert score.notes.onset.tolist() == [value]


# --- real files


def manifest(folder: Path) -> list[dict[str, str]]:
    with (folder / "MANIFEST.tsv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


@pytest.mark.slow
def test_every_good_file_reads_with_every_note() -> None:
    folder = real_data("dev")
    rows = manifest(folder)
    wrong, unended = [], 0
    for row in rows:
        score = read_midi(folder / row["path"])
        unended += score.dropped.get("unended_notes", 0)
        if len(score.notes.pitch) != int(row["n_notes"]) or {"bytes_after_end", "second_reader"} & score.dropped.keys():
            wrong.append(row["path"])
    assert wrong == []
    assert unended == 3  # the three notes that never end, of 6.07 million


@pytest.mark.slow
def test_every_bad_file_is_read_or_refused() -> None:
    folder = real_data("bad")
    reasons = {}
    for row in manifest(folder):
        try:
            score = read_midi(folder / row["path"])
        except BadScore as error:
            reasons[row["path"]] = error.reason
        else:
            assert len(score.notes.pitch) > 0
    kinds = {path.split("/")[0]: reason for path, reason in reasons.items()}
    assert kinds["zero_byte"] == "empty_file"
    assert kinds["not_midi"] == kinds["midi2_clip_file"] == "not_midi"
    assert kinds["smpte_division"] == "unsupported_division"
    assert kinds["zero_tpq"] == "out_of_range"
    assert kinds["empty_tracks"] == "no_notes"
    # An early End of Track: other readers stop there and find none of 3,113 notes.
    (morrissette,) = folder.rglob("*MORRISSETTE*")
    score = read_midi(morrissette)
    assert len(score.notes.pitch) + score.dropped["unended_notes"] == 3_113
    valid = ("edge_valid_smf", "overlapping_notes", "kar_extension", "riff_rmid", "unicode_filenames")
    assert not set(valid) & kinds.keys()
    assert {reason for path, reason in reasons.items() if path.startswith("edge_valid")} == {
        "no_notes",
        "unreadable_notes",
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "asap/Bach/Fugue/bwv_854/LuA01M.mid",
        "pop909/001/001.mid",
        "piano-midi-de/Beethoven/waldstein_1.mid",
        "piano-midi-de/Brahms/brahms_opus117_2.mid",  # two tempos at one tick among 507
        "freedoom/d_dm01.mid",
        "simutrans/48-Techno-movement.mid",
    ],
)
def test_seconds_are_those_of_mido(name: str) -> None:
    path = real_data("dev") / name
    file = mido.MidiFile(path)
    now, onsets = 0.0, []
    for message in file:
        now += message.time
        if message.type == "note_on" and message.velocity > 0:
            onsets.append(now)
    assert np.allclose(np.sort(onsets), read_midi(path).notes.onset_seconds, rtol=0, atol=1e-6)


def test_pedals_kept_on_a_track_of_their_own_are_found() -> None:
    score = read_midi(real_data("dev") / "piano-midi-de/Beethoven/waldstein_1.mid")
    assert len(score.pedals.onset) > 200


def test_real_scores_come_back() -> None:
    folder = real_data("dev")
    for row in manifest(folder)[::50]:
        score = read_midi(folder / row["path"])
        assert differences(read_midi(write_midi(score)), score) == [], row["path"]


def test_a_million_early_ends_are_read_in_one_go() -> None:
    score = read_midi(smf(b"\0\xff\x2f\0" * 500_000 + ONE_NOTE))
    assert note_rows(score) == [(0, 480, 60, 80)]
    assert score.dropped == {"early_ends": 1}


def test_notes_of_two_ports_in_one_track_end_on_their_own_port() -> None:
    ports = [b"\xff\x21\x01\x00", b"\xff\x21\x01\x01"]
    begins = [(0, ports[0]), (0, on(60, 64)), (0, ports[1]), (0, on(60, 80))]
    ends = [(96, off(60)), (0, ports[0]), (96, off(60))]
    notes = sorted(note_rows(read_midi(smf(track(*begins, *ends)))))
    assert notes == [(0, 96, 60, 80), (0, 192, 60, 64)]


def test_a_pedal_of_a_format_2_sequence_ends_with_it() -> None:
    first = track((0, pedal(127)), (0, on(60)), (96, off(60)))
    second = track((0, on(62)), (960, off(62)))
    assert [span[1:] for span in spans(read_midi(smf(first, second, file_format=2)))] == [(0, 96)]


@pytest.mark.parametrize("limits", [ReadLimits(max_pedals=1), ReadLimits(max_seconds=0.01)])
def test_a_file_that_is_refused_late_has_no_rows_and_the_next_one_is_whole(limits: ReadLimits) -> None:
    from tasks.music.midi.reader import read_files

    bad = smf(track(*[(5, pedal(v)) for v in (127, 0, 127, 0)], (0, on(60)), (480, off(60))))
    good = smf(track((0, on(60)), (5, off(60))))
    batch = read_files([good, bad, good], limits)
    assert [refusal is None for refusal in batch.refusals] == [True, False, True]
    assert np.diff(batch.notes.offsets).tolist() == [1, 0, 1]
    assert np.diff(batch.notes.pedal_offsets).tolist() == [0, 0, 0]
    assert np.diff(batch.notes.tempo_offsets).tolist() == [1, 0, 1]
    assert batch.programs.sum(axis=1).tolist() == [1, 0, 1]


def test_the_place_of_a_fault_counts_from_its_own_file() -> None:
    from tasks.music.midi.reader import read_files

    refusal = read_files([smf(ONE_NOTE), b"RIFF\0\0\0\0RMID"]).refusals[1]
    assert refusal is not None
    assert refusal.detail.endswith("at byte 12")
