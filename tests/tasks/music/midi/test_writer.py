"""What a sequencer or a notation program finds in a written file, through readers of others."""

import io
from typing import Any

import mido
import numpy as np
import pytest
import symusic
from hypothesis import example, given
from hypothesis import strategies as st

from tasks.music.midi.read_midi import read_midi
from tasks.music.midi.writer import write_midi
from tasks.music.render.pianoroll import part_labels
from tests.budget import examples
from tests.builders import DRUMS, make_score


def tracks_of(data: bytes) -> list[mido.MidiTrack]:
    return mido.MidiFile(file=io.BytesIO(data)).tracks


def test_a_file_names_everything_that_programs_ask_for():
    score = make_score(
        [(0, 500, 60, 80, 0), (1000, 500, 40, 80, 1), (1000, 100, 38, 80, 2)], programs=(0, 32, DRUMS),
        tempos=[(0, 400_000), (1000, 500_000)], time_signatures=[(0, 3, 4)], key_signatures=[(0, -3, True)],
    )  # fmt: skip
    conductor, *parts = tracks_of(write_midi(score, "batch 0001", part_labels(score), ends_on_bar_line=True))
    assert [message.type for message in conductor] == [
        "track_name", "set_tempo", "time_signature", "key_signature", "set_tempo", "end_of_track",
    ]  # fmt: skip
    assert conductor[0].name == "batch 0001"
    assert (conductor[1].tempo, conductor[4].tempo) == (400_000, 500_000)
    assert (conductor[2].numerator, conductor[2].denominator, conductor[3].key) == (3, 4, "Cm")
    assert [part.name for part in parts] == ["1 piano", "2 bass", "3 drums"]
    programs = [next(message for message in part if message.type == "program_change") for part in parts]
    assert [(message.channel, message.program) for message in programs] == [(0, 0), (1, 32), (9, 0)]
    assert {sum(message.time for message in track) for track in (conductor, *parts)} == {1500}  # one bar of 3/4


def test_other_readers_take_names_programs_and_drums_over():
    score = make_score([(0, 500, 60, 80, 0), (0, 100, 38, 80, 1)], programs=(24, DRUMS))
    theirs: Any = symusic.Score.from_midi(write_midi(score, "t", part_labels(score), ends_on_bar_line=True))
    assert [(track.name, track.program, track.is_drum) for track in theirs.tracks] == [
        ("1 guitar", 24, False),
        ("2 drums", 0, True),
    ]
    assert [tempo.qpm for tempo in theirs.tempos] == [120]


@examples(60)
@example([(0, 171, 0, 1)], [(1, 3, 8)], 1)
@example([(0, 2, 0, 2), (0, 3, 0, 1), (1, 1, 0, 1)], [], 1)  # a note within a note of its pitch
@example([(0, 10, 60, 1), (5, 2, 60, 1), (3, 7, 61, 1)], [], 1)  # and another pitch that ends with the longer one
@given(
    st.lists(st.tuples(st.integers(0, 9000), st.integers(1, 4000), st.integers(0, 127), st.integers(1, 9)), max_size=9),
    st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 13), st.sampled_from([1, 2, 4, 8, 16])), max_size=3,
             unique_by=lambda row: row[0]),
    st.sampled_from([1, 96, 500]),
)  # fmt: skip
def test_every_track_ends_at_the_first_bar_line_behind_the_music(notes: list, meters: list, ticks_per_quarter: int):
    score = make_score(notes, time_signatures=sorted(meters), ticks_per_quarter=ticks_per_quarter)
    data = write_midi(score, "t", ["part"], ends_on_bar_line=True)
    (end,) = {sum(message.time for message in track) for track in tracks_of(data)}
    last = max([onset + duration for onset, duration, *_ in notes] + [tick for tick, *_ in meters] + [0])
    start, numerator, denominator = max(meters, default=(0, 4, 4))
    bar = 4 * ticks_per_quarter * numerator / denominator
    lines = start + bar * np.arange((last - start) / bar + 2)  # bars may end between ticks
    assert end == np.ceil(lines[lines >= last][0])
    if notes:
        assert write_midi(read_midi(data)) == write_midi(score)


def test_names_for_some_parts_are_refused():
    with pytest.raises(ValueError, match="1 names for 2 parts"):
        write_midi(make_score([(0, 1, 60, 1, 1)], programs=(0, 0)), "", ["one"])
