"""MusicXML is read back by a reader of its own, which keeps the cursor of each measure as the format defines it."""

import io
import os
import subprocess
import sys
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import ConfigError
from tasks.music.midi.read_midi import read_midi
from tasks.music.render import notation
from tasks.music.render.notation import NoNotation, Page, check_notation, write_musicxml
from tasks.music.score import Score
from tests.budget import examples
from tests.builders import DRUMS, make_score
from tests.conftest import real_data

LETTERS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
QUARTERS = {"maxima": 32, "long": 16, "breve": 8,
            "whole": 4, "half": 2, "quarter": 1, "eighth": Fraction(1, 2), "16th": Fraction(1, 4),
            "32nd": Fraction(1, 8), "64th": Fraction(1, 16), "128th": Fraction(1, 32)}  # fmt: skip
Row = tuple[int, int, int, int]  # part, onset, duration, pitch


@dataclass
class Reader:
    """Everything that a file says, and what is wrong with its structure."""

    notes: list[Row] = field(default_factory=list)
    bar_lengths: list[list[int]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    divisions: int = 0

    def read(self, page: Page) -> "Reader":
        root = ElementTree.fromstring(page.text)
        (self.divisions,) = {int(element.text or "") for element in root.iter("divisions")}
        keys_of: dict[str | None, int] = {
            sound.get("id"): int(sound.findtext("midi-unpitched", "0")) - 1 for sound in root.iter("midi-instrument")
        }
        for place, part in enumerate(root.findall("part")):
            own = root.findall(f"part-list/score-part[@id='{part.get('id')}']/midi-instrument")
            if len(own) == 1:  # notes need not name it
                keys_of[None] = keys_of[own[0].get("id")]
            self._read_part(place, part, keys_of, self.divisions)
        return self

    def _read_part(self, place: int, part: ElementTree.Element, keys_of: dict, divisions: int) -> None:
        start, beats, lengths = 0, Fraction(4), list[int]()
        tied: list[tuple[int, int, int, set]] = []  # onset, end, pitch and ties; the voice may change
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
                voice = item.findtext("staff", "") + " " + item.findtext("voice", "")
                if item.find("chord") is None:
                    onset, at = at, at + duration
                    voices[voice] += duration
                    furthest = max(furthest, at)
                self._check_shape(item, duration, divisions)
                for bracket in item.iter("tuplet"):
                    tuplets[voice] += 1 if bracket.get("type") == "start" else -1
                self._take(place, item, start + onset, duration, keys_of, tied)
            if any(n != furthest for n in voices.values()):
                self.wrong.append(f"voices of measure {measure.get('number')} last {dict(voices)}, not {furthest}")
            if any(tuplets.values()):
                self.wrong.append(f"tuplets of measure {measure.get('number')} stay open")
            if measure.get("implicit") != "yes" and furthest != beats * divisions:
                self.wrong.append(f"measure {measure.get('number')} lasts {furthest}, not {beats * divisions}")
            lengths.append(furthest)
            start += furthest
        self._join_ties(place, tied)
        self.bar_lengths.append(lengths)

    def _check_shape(self, note: ElementTree.Element, duration: int, divisions: int) -> None:
        kind = note.findtext("type")
        if kind is None:  # a rest as long as its measure
            return
        written = QUARTERS[kind] * (2 - Fraction(1, 2 ** len(note.findall("dot"))))
        if (ratio := note.find("time-modification")) is not None:
            written *= Fraction(int(ratio.findtext("normal-notes", "")), int(ratio.findtext("actual-notes", "")))
        if written * divisions != duration:
            self.wrong.append(f"a {kind} lasts {duration} of {divisions}")

    def _join_ties(self, place: int, tied: list[tuple[int, int, int, set]]) -> None:
        held = list[tuple[int, int, int]]()  # onset, end and pitch
        for onset, end, key, ties in sorted(tied, key=lambda row: row[:3]):
            before = next((row for row in held if row[1:] == (onset, key)), None)
            if ("stop" in ties) != (before is not None):
                self.wrong.append(f"a tie of {key} at {onset} has but one end")
            if before:
                held.remove(before)
            first = before[0] if before else onset
            if "start" in ties:
                held.append((first, end, key))
            else:
                self.notes.append((place, first, end - first, key))
        if held:
            self.wrong.append(f"ties that nothing ends: {held}")

    def _take(self, place: int, note: ElementTree.Element, onset: int, duration: int, keys_of: dict,
              tied: list[tuple[int, int, int, set]]) -> None:  # fmt: skip
        if note.find("rest") is not None:
            return
        if (pitch := note.find("pitch")) is not None:
            key = 12 * (int(pitch.findtext("octave", "")) + 1) + LETTERS[pitch.findtext("step", "")]
            key += int(pitch.findtext("alter", "0"))
        else:
            instrument = note.find("instrument")
            key = keys_of[instrument.get("id") if instrument is not None else None]
        ties = {tie.get("type") for tie in note.findall("tie")}
        if ties != {tie.get("type") for tie in note.findall("notations/tied")}:
            self.wrong.append("a tie sounds and does not show")
        if ties:
            tied.append((onset, onset + duration, key, ties))
        else:
            self.notes.append((place, onset, duration, key))


def check(score: Score) -> tuple[Page, Reader]:
    """Return the page and what reading all of it back gives."""
    page = write_musicxml(score, "title")
    reader = Reader().read(page)
    assert reader.wrong == []
    assert all(lengths == reader.bar_lengths[0] for lengths in reader.bar_lengths)
    assert len(reader.notes) == len(score.notes.pitch) - page.losses.get("notes_doubled", 0)
    return page, reader


def quantised(score: Score, divisions: int) -> list[Row]:
    notes = score.notes
    onset, duration = (ticks * divisions // score.ticks_per_quarter for ticks in (notes.onset, notes.duration))
    return sorted(zip(notes.track.tolist(), onset.tolist(), duration.tolist(), notes.pitch.tolist(), strict=True))


NOTES = st.lists(
    st.tuples(st.integers(0, 2500), st.integers(1, 1500), st.integers(0, 127), st.integers(1, 127), st.integers(0, 2)),
    max_size=40,
)
METERS = st.lists(
    st.tuples(st.integers(0, 2500), st.integers(1, 13), st.sampled_from([1, 2, 4, 8, 16, 32, 64])),
    max_size=4, unique_by=lambda row: row[0],
)  # fmt: skip


@pytest.mark.slow
def test_a_note_that_moves_into_a_later_bar_leaves_no_bar_unfilled() -> None:
    notes = [(2767, 293, 34, 48, 0), (233, 43, 71, 56, 1)]
    for end in range(2940, 3070, 26):
        rows = [*notes, (2767, end - 2767, 40, 48, 0)]
        check(make_score(rows, programs=(0, 40, DRUMS), time_signatures=[(1327, 3, 64)], ticks_per_quarter=480))


@pytest.mark.slow
@examples(12)
@given(NOTES, METERS, st.integers(-7, 7), st.sampled_from([24, 96, 480, 500]))
def test_whatever_is_written_is_read_back(notes: list, meters: list, key: int, ticks_per_quarter: int):
    score = make_score(
        notes, programs=(0, 40, DRUMS), time_signatures=sorted(meters), key_signatures=[(0, key, False)],
        ticks_per_quarter=ticks_per_quarter,
    )  # fmt: skip
    page, reader = check(score)
    # What is not counted is untouched.
    if not page.losses:
        assert sorted(reader.notes) == quantised(score, reader.divisions)


@examples(12)
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
    page, reader = check(score)
    if step == 120:
        assert page.losses == {}
        assert sorted(reader.notes) == quantised(score, reader.divisions)
    else:  # the end of a note may lie in a beat without onsets, which is one of sixteenths
        onsets = [row[1] for row in quantised(score, reader.divisions)]
        assert [row[1] for row in sorted(reader.notes)] == onsets


def test_a_long_note_is_tied_over_bar_lines_and_a_chord_is_one():
    page, reader = check(make_score([(0, 5000, 60, 90), (0, 5000, 64, 90)], programs=(40,)))
    root = ElementTree.fromstring(page.text)
    assert len(reader.bar_lengths[0]) == 3
    assert len(root.findall(".//chord")) == 3
    ties = [
        [tie.get("type") for tie in note.findall("tie")] for note in root.iter("note") if note.find("tie") is not None
    ]
    assert ties == [["start"]] * 2 + [["stop", "start"]] * 2 + [["stop"]] * 2


def test_a_piano_has_two_staves_and_drums_have_instruments():
    score = make_score([(0, 500, 59, 90), (0, 500, 60, 90), (0, 500, 38, 90, 1)], programs=(0, DRUMS))
    root = ElementTree.fromstring(check(score)[0].text)
    staves = {note.findtext("pitch/octave"): note.findtext("staff") for note in root.iter("note") if note.find("pitch")}
    assert staves == {"3": "2", "4": "1"}
    assert [sound.findtext("midi-unpitched") for sound in root.iter("midi-instrument")] == [None, "39"]
    assert [program.text for program in root.iter("midi-program")][:1] == ["1"]


def test_triplets_are_bracketed_and_the_beat_beside_them_is_not():
    """Three notes in a beat of 480 ticks, then two."""
    rows = [(160 * i, 160, 60, 90) for i in range(3)] + [(480 + 240 * i, 240, 60, 90) for i in range(2)]
    page, _ = check(make_score(rows, programs=(40,), ticks_per_quarter=480))
    kinds = [
        (n.findtext("type"), n.find("time-modification") is not None)
        for n in ElementTree.fromstring(page.text).iter("note")
    ]
    assert kinds[:5] == [("eighth", True)] * 3 + [("eighth", False)] * 2


def test_key_meter_and_tempo_are_the_scores_own():
    score = make_score(
        [(0, 500, 66, 90), (6000, 500, 70, 90)], tempos=[(0, 500_000), (3500, 400_000), (4000, 401_000)],
        time_signatures=[(0, 3, 4), (3000, 6, 8)], key_signatures=[(0, 2, False), (3000, -3, True)],
    )  # fmt: skip
    root = ElementTree.fromstring(check(score)[0].text)
    assert [(t.findtext("beats"), t.findtext("beat-type")) for t in root.iter("time")] == [("3", "4"), ("6", "8")]
    assert [(k.findtext("fifths"), k.findtext("mode")) for k in root.iter("key")] == [("2", "major"), ("-3", "minor")]
    assert [float(sound.get("tempo", "")) for sound in root.iter("sound")] == [120, 150]
    names = [(p.findtext("step"), p.findtext("alter")) for p in root.iter("pitch")]
    assert names == [("F", "1"), ("B", "-1")]


def test_what_the_grid_changes_is_counted():
    rows = [(10, 490, 60, 90), (500, 20, 62, 90), (1000, 500, 64, 90), (1000, 500, 64, 80), (2000, 500, 3, 90)]
    assert check(make_score(rows, programs=(40,)))[0].losses == {
        "notes_moved": 2, "notes_doubled": 1, "notes_raised": 1,
    }  # fmt: skip


def test_a_change_of_meter_inside_a_bar_waits_for_the_next():
    score = make_score([(0, 4000, 60, 90)], time_signatures=[(0, 4, 4), (1000, 3, 4)])
    _, reader = check(score)
    assert [n / reader.divisions for n in reader.bar_lengths[0]] == [4, 3, 3]


def test_a_score_without_notes_is_one_bar_of_rest():
    assert len(check(make_score([]))[1].bar_lengths[0]) == 1
    assert len(check(make_score([], programs=()))[1].bar_lengths[0]) == 1


def test_too_many_bars_are_refused():
    with pytest.raises(NoNotation, match=r"\d+ bars, limit 20000"):
        write_musicxml(make_score([(10**7, 500, 60, 90)], time_signatures=[(0, 1, 64)]))


def test_hostile_titles_are_text_and_the_bytes_are_the_same_every_time():
    score = make_score([(0, 500, 60, 90), (0, 500, 38, 90, 1)], programs=(0, DRUMS))
    title = "</work><b>&amp;\x00\ud800 ]]>"
    first, second = write_musicxml(score, title), write_musicxml(score, title)
    assert (first.text, first.packed) == (second.text, second.packed)
    root = ElementTree.fromstring(first.text)
    assert "</work><b>&amp;\ufffd\ufffd ]]>" in [element.text for element in root.iter()]
    archive = zipfile.ZipFile(io.BytesIO(first.packed))
    assert archive.read("score.musicxml") == first.text
    assert b'full-path="score.musicxml"' in archive.read("META-INF/container.xml")


@pytest.mark.slow
def test_two_processes_write_the_same_bytes():
    code = (
        "import hashlib, sys; from tasks.music.render.notation import write_musicxml; from tests.builders import *\n"
        "score = make_score([(0, 500, 60, 90), (300, 700, 50, 90), (0, 500, 38, 90, 1)], programs=(0, DRUMS))\n"
        "print(hashlib.sha256(write_musicxml(score, 'a').packed).hexdigest())"
    )
    digests = [
        subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in "12"
    ]
    assert digests[0] == digests[1]


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(notation, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the extra `notation`: pip install 'orchestrion\[notation\]'"):
        check_notation()


def test_what_the_library_cannot_write_is_named(monkeypatch: pytest.MonkeyPatch):
    def fail(page: object) -> bytes:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(notation, "_export", fail)
    with pytest.raises(NoNotation, match="music21 fails: ZeroDivisionError: by zero"):
        write_musicxml(make_score([(0, 500, 60, 90)]))


@pytest.mark.slow
@pytest.mark.parametrize("every", [4000, pytest.param(800, marks=pytest.mark.nightly)])
def test_real_files_are_read_back(every: int):
    for path in sorted(real_data("dev").rglob("*.mid"))[::every]:
        check(read_midi(path))
