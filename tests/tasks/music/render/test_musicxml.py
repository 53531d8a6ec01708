"""MusicXML is read back by a reader of its own, which keeps the cursor of each measure as the format defines it."""

import io
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.music.midi.read_midi import read_midi
from tasks.music.render.musicxml import Engraving, spell, write_musicxml
from tasks.music.score import Score
from tests.builders import DRUMS, make_score
from tests.conftest import real_data

LETTERS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
QUARTERS = {"breve": 8, "whole": 4, "half": 2, "quarter": 1, "eighth": Fraction(1, 2), "16th": Fraction(1, 4),
            "32nd": Fraction(1, 8), "64th": Fraction(1, 16), "128th": Fraction(1, 32)}  # fmt: skip
Row = tuple[int, int, int, int]  # part, onset, duration, pitch


@dataclass
class Reader:
    """Everything that a file says, and what is wrong with its structure."""

    notes: list[Row] = field(default_factory=list)
    bar_lengths: list[list[int]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def read(self, engraving: Engraving) -> "Reader":
        root = ElementTree.fromstring(engraving.text)
        keys_of = {
            sound.get("id"): int(sound.findtext("midi-unpitched", "0")) - 1 for sound in root.iter("midi-instrument")
        }
        for place, part in enumerate(root.findall("part")):
            self._read_part(place, part, keys_of, engraving.divisions)
        return self

    def _read_part(self, place: int, part: ElementTree.Element, keys_of: dict, divisions: int) -> None:
        start, beats, lengths = 0, Fraction(4), list[int]()
        held: dict[tuple[str, int], tuple[int, int]] = {}  # (voice, pitch) -> onset and end of a note with a tie
        for measure in part.findall("measure"):
            if (time := measure.find("attributes/time")) is not None:
                beats = Fraction(4 * int(time.findtext("beats", "")), int(time.findtext("beat-type", "")))
            at, furthest, voices, tuplets = 0, 0, Counter[str](), Counter[str]()
            onset = 0
            for item in measure:
                duration = int(item.findtext("duration", "0"))
                if item.tag == "backup":
                    at -= duration
                    if at < 0:
                        self.wrong.append("a backup leaves the measure")
                if item.tag != "note":
                    continue
                voice = item.findtext("voice", "")
                if item.find("chord") is None:
                    onset, at = at, at + duration
                    voices[voice] += duration
                    furthest = max(furthest, at)
                self._check_shape(item, duration, divisions)
                for bracket in item.iter("tuplet"):
                    tuplets[voice] += 1 if bracket.get("type") == "start" else -1
                self._take(place, item, voice, start + onset, duration, keys_of, held)
            if any(n != furthest for n in voices.values()):
                self.wrong.append(f"voices of measure {measure.get('number')} last {dict(voices)}, not {furthest}")
            if any(tuplets.values()):
                self.wrong.append(f"tuplets of measure {measure.get('number')} stay open")
            if measure.get("implicit") != "yes" and furthest != beats * divisions:
                self.wrong.append(f"measure {measure.get('number')} lasts {furthest}, not {beats * divisions}")
            lengths.append(furthest)
            start += furthest
        if held:
            self.wrong.append(f"ties that nothing ends: {held}")
        self.bar_lengths.append(lengths)

    def _check_shape(self, note: ElementTree.Element, duration: int, divisions: int) -> None:
        kind = note.findtext("type")
        if kind is None:  # a rest as long as its measure
            return
        written = QUARTERS[kind] * (Fraction(3, 2) if note.find("dot") is not None else 1)
        if note.find("time-modification") is not None:
            written *= Fraction(2, 3)
        if written * divisions != duration:
            self.wrong.append(f"a {kind} lasts {duration} of {divisions}")

    def _take(self, place: int, note: ElementTree.Element, voice: str, onset: int, duration: int, keys_of: dict,
              held: dict[tuple[str, int], tuple[int, int]]) -> None:  # fmt: skip
        if note.find("rest") is not None:
            return
        if (pitch := note.find("pitch")) is not None:
            key = 12 * (int(pitch.findtext("octave", "")) + 1) + LETTERS[pitch.findtext("step", "")]
            key += int(pitch.findtext("alter", "0"))
        else:
            instrument = note.find("instrument")
            assert instrument is not None
            key = keys_of[instrument.get("id")]
        ties = {tie.get("type") for tie in note.findall("tie")}
        if ties != {tie.get("type") for tie in note.findall("notations/tied")}:
            self.wrong.append("a tie sounds and does not show")
        first, last = held.pop((voice, key)) if "stop" in ties else (onset, onset)
        if last != onset:
            self.wrong.append(f"a tie of {key} leaves a gap from {last} to {onset}")
        if "start" in ties:
            held[voice, key] = (first, onset + duration)
        else:
            self.notes.append((place, first, onset + duration - first, key))


def check(score: Score) -> Engraving:
    """Return the engraving after reading all of it back."""
    engraving = write_musicxml(score, "title")
    reader = Reader().read(engraving)
    assert reader.wrong == []
    assert sorted(reader.notes) == [tuple(row) for row in engraving.notes.tolist()]
    assert all(lengths == reader.bar_lengths[0] for lengths in reader.bar_lengths)
    assert len(reader.bar_lengths[0]) == engraving.n_bars
    return engraving


def quantised(score: Score, divisions: int) -> list[Row]:
    notes = score.notes
    onset, duration = (ticks * divisions // score.ticks_per_quarter for ticks in (notes.onset, notes.duration))
    return sorted(zip(notes.track.tolist(), onset.tolist(), duration.tolist(), notes.pitch.tolist(), strict=True))


NOTES = st.lists(
    st.tuples(st.integers(0, 9000), st.integers(1, 4000), st.integers(0, 127), st.integers(1, 127), st.integers(0, 2)),
    max_size=60,
)
METERS = st.lists(
    st.tuples(st.integers(0, 9000), st.integers(1, 13), st.sampled_from([1, 2, 4, 8, 16, 32, 64])),
    max_size=4, unique_by=lambda row: row[0],
)  # fmt: skip


@settings(max_examples=40)
@given(NOTES, METERS, st.integers(-7, 7), st.sampled_from([24, 96, 480, 500]))
def test_whatever_is_written_is_read_back(notes: list, meters: list, key: int, ticks_per_quarter: int):
    score = make_score(
        notes, programs=(0, 40, DRUMS), time_signatures=sorted(meters), key_signatures=[(0, key, False)],
        ticks_per_quarter=ticks_per_quarter,
    )  # fmt: skip
    engraving = check(score)
    assert len(engraving.notes) == len(notes) - engraving.losses.get("notes_doubled", 0) or (
        "notes_shortened" in engraving.losses
    )
    # What is not counted is untouched.
    if not engraving.losses:
        assert [tuple(row) for row in engraving.notes.tolist()] == quantised(score, engraving.divisions)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20), st.integers(12, 127)), min_size=1, max_size=30,
             unique_by=lambda row: row[0]),
    st.sampled_from([120, 80]),
)  # fmt: skip
def test_notes_on_one_grid_stay_where_they_are(rows: list, step: int):
    """480 ticks a quarter: 120 is a sixteenth, 80 a triplet of sixteenths; no two overlap."""
    rows = sorted(rows)
    ends = [*(row[0] for row in rows[1:]), 10**6]
    notes = [(step * at, step * min(n, end - at), pitch, 90) for (at, n, pitch), end in zip(rows, ends, strict=True)]
    score = make_score(notes, programs=(40,), ticks_per_quarter=480)
    engraving = check(score)
    if step == 120:
        assert engraving.losses == {}
        assert [tuple(row) for row in engraving.notes.tolist()] == quantised(score, 12)
    else:  # the end of a note may lie in a beat without onsets, which is one of sixteenths
        onsets = [row[1] for row in quantised(score, 12)]
        assert [row[1] for row in engraving.notes.tolist()] == onsets


def test_a_long_note_is_tied_over_bar_lines_and_a_chord_is_one():
    engraving = check(make_score([(0, 5000, 60, 90), (0, 5000, 64, 90)], programs=(40,)))
    root = ElementTree.fromstring(engraving.text)
    assert engraving.n_bars == 3
    assert len(root.findall(".//chord")) == 3
    assert [tie.get("type") for tie in root.findall(".//tie")] == ["start"] * 2 + ["stop", "start"] * 2 + ["stop"] * 2


def test_a_piano_has_two_staves_and_drums_have_instruments():
    score = make_score([(0, 500, 59, 90), (0, 500, 60, 90), (0, 500, 38, 90, 1)], programs=(0, DRUMS))
    root = ElementTree.fromstring(check(score).text)
    staves = {note.findtext("pitch/octave"): note.findtext("staff") for note in root.iter("note") if note.find("pitch")}
    assert staves == {"3": "2", "4": "1"}
    assert [sign.text for sign in root.iter("sign")] == ["G", "F", "percussion"]
    assert [sound.findtext("midi-unpitched") for sound in root.iter("midi-instrument")] == [None, "39"]


def test_triplets_are_bracketed_and_the_beat_beside_them_is_not():
    """Three notes in a beat of 480 ticks, then two."""
    rows = [(160 * i, 160, 60, 90) for i in range(3)] + [(480 + 240 * i, 240, 60, 90) for i in range(2)]
    root = ElementTree.fromstring(check(make_score(rows, programs=(40,), ticks_per_quarter=480)).text)
    kinds = [(n.findtext("type"), n.find("time-modification") is not None) for n in root.iter("note")]
    assert kinds[:5] == [("eighth", True)] * 3 + [("eighth", False)] * 2


def test_key_meter_and_tempo_are_the_scores_own():
    score = make_score(
        [(0, 500, 66, 90), (6000, 500, 70, 90)], tempos=[(0, 500_000), (3500, 400_000)],
        time_signatures=[(0, 3, 4), (3000, 6, 8)], key_signatures=[(0, 2, False), (3000, -3, True)],
    )  # fmt: skip
    root = ElementTree.fromstring(check(score).text)
    assert [(t.findtext("beats"), t.findtext("beat-type")) for t in root.iter("time")] == [("3", "4"), ("6", "8")]
    assert [(k.findtext("fifths"), k.findtext("mode")) for k in root.iter("key")] == [("2", "major"), ("-3", "minor")]
    assert [sound.get("tempo") for sound in root.iter("sound")] == ["120", "150"]
    assert root.findtext(".//offset") == "12"
    names = [(p.findtext("step"), p.findtext("alter")) for p in root.iter("pitch")]
    assert names == [("F", "1"), ("B", "-1")]


@pytest.mark.parametrize("fifths", range(-7, 8))
def test_a_name_means_its_pitch(fifths: int):
    for pitch in range(12, 128):
        name = ElementTree.fromstring(spell(pitch, fifths))
        octave = int(name.findtext("octave", ""))
        assert 0 <= octave <= 9
        assert 12 * (octave + 1) + LETTERS[name.findtext("step", "")] + int(name.findtext("alter", "0")) == pitch


def test_what_the_grid_changes_is_counted():
    rows = [(10, 490, 60, 90), (500, 20, 62, 90), (1000, 500, 64, 90), (1000, 300, 64, 90), (2000, 500, 3, 90)]
    assert check(make_score(rows, programs=(40,))).losses == {
        "notes_moved": 3, "notes_lengthened": 1, "notes_doubled": 1, "notes_raised": 1,
    }  # fmt: skip
    crowd = [(125 * i, 3000, 60 + i, 90) for i in range(6)]
    assert check(make_score(crowd, programs=(40,))).losses == {"notes_shortened": 2}


def test_a_change_of_meter_inside_a_bar_cuts_it():
    score = make_score([(0, 4000, 60, 90)], time_signatures=[(0, 4, 4), (1000, 3, 4)])
    root = ElementTree.fromstring(check(score).text)
    assert [measure.get("implicit") for measure in root.iter("measure")] == ["yes", None, None]


def test_a_score_without_notes_is_one_bar_of_rest():
    assert check(make_score([])).n_bars == 1
    assert check(make_score([], programs=())).n_bars == 1


def test_too_many_bars_are_refused():
    with pytest.raises(ValueError, match=r"bars of 1/64, limit 20000"):
        write_musicxml(make_score([(10**7, 500, 60, 90)], time_signatures=[(0, 1, 64)]))


def test_hostile_titles_are_text_and_the_bytes_are_the_same_every_time():
    score = make_score([(0, 500, 60, 90)])
    title = "</work><b>&amp;\x00\ud800 ]]>"
    first, second = write_musicxml(score, title), write_musicxml(score, title)
    assert (first.text, first.packed) == (second.text, second.packed)
    root = ElementTree.fromstring(first.text)
    assert root.findtext("work/work-title") == "</work><b>&amp;\ufffd\ufffd ]]>"
    archive = zipfile.ZipFile(io.BytesIO(first.packed))
    assert archive.read("score.musicxml") == first.text
    assert b'full-path="score.musicxml"' in archive.read("META-INF/container.xml")


@pytest.mark.slow
def test_real_files_are_read_back():
    paths = sorted(real_data("dev").rglob("*.mid"))[::400]
    for path in paths:
        score = read_midi(path)
        check(score)
