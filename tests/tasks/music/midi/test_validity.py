"""Faults of MIDI files: one file typed out for each, whole ones, and real ones."""

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.music.midi.read_midi import read_midi
from tasks.music.midi.validity import Validity, check_validity, share_valid, wilson_interval
from tasks.music.midi.writer import write_midi
from tests.builders import DRUMS, make_score, off, on, smf, tempo, track
from tests.conftest import real_data


def meter(numerator: int, power: int) -> bytes:
    return b"\xff\x58\x04" + bytes([numerator, power, 24, 8])


NOTE = ((0, on(60)), (480, off(60)))
WHOLE = smf(track(*NOTE))
SCORE = make_score(
    [(0, 500, 60, 80), (250, 500, 64, 90), (2000, 100, 36, 99, 1)],
    programs=(40, DRUMS),
    time_signatures=[(0, 3, 4), (1500, 4, 4)],
)


@pytest.mark.parametrize(
    ("data", "problems"),
    [
        (WHOLE, {}),
        (smf(track((0, meter(3, 2)), (0, tempo(400_000)), *NOTE, (960, meter(4, 2)))), {}),
        (smf(track((0, on(60)), (480, on(60, velocity=0)))), {}),  # ended by a note-on of velocity 0
        (smf(track((0, on(60)), (10, on(60)), (20, off(60)), (30, off(60)))), {}),  # two notes, two ends
        (b"", {"empty_file": 1}),
        (b"<html>", {"not_midi": 1}),
        (smf(track((0, tempo(500_000)))), {"no_notes": 1}),
        (WHOLE[:-9], {"truncated": 1}),
        (smf(track(*NOTE, (0, on(64)))), {"unended_notes": 1}),
        (smf(track((0, off(64)), *NOTE, (0, off(60)), (0, on(61, velocity=0)))), {"orphan_note_offs": 3}),
        (smf(track(*NOTE, (0, on(64)), (0, off(64)))), {"zero_length_notes": 1}),
        (smf(track(*NOTE)[:-4]), {"no_end_of_track": 1}),
        (smf(track(*NOTE), track((0, tempo(500_000)))[:-4]), {"no_end_of_track": 1}),
        (smf(track((0, meter(4, 2)), *NOTE, (0, meter(3, 2)))), {"meter_off_bar_line": 1}),
        (smf(track((0, meter(3, 5)), *NOTE), division=4), {"bar_between_ticks": 1}),  # 1.5 ticks
        (smf(track((0, meter(0, 2)), *NOTE)), {"bad_time_signature": 1}),
        (smf(track((0, on(60, velocity=200)), (480, off(60)))), {"sanitized": 1, "second_reader_refuses": 1}),
        (WHOLE + b"junk", {"trailing_bytes": 4}),
        (smf(track(*NOTE), n_tracks=2), {"missing_tracks": 1}),
    ],
)
def test_each_fault_has_its_name(data: bytes, problems: dict[str, int]) -> None:
    validity = check_validity(data)
    assert validity.problems == problems
    assert validity.ok == (not validity.problems)
    assert bool(validity.detail) == (validity.n_notes == 0)


def test_a_score_is_found_in_its_file() -> None:
    validity = check_validity(write_midi(SCORE), SCORE)
    assert validity == Validity(n_notes=3)
    assert validity.to_json() == {"ok": True, "problems": {}, "n_notes": 3}


@pytest.mark.parametrize("name", ["onset", "duration", "pitch", "velocity", "program", "is_drum"])
def test_a_score_that_differs_is_told_apart_by_every_value(name: str) -> None:
    changed = getattr(SCORE.notes, name).copy()
    changed[0] = not changed[0] if name == "is_drum" else changed[0] + 1
    other = replace(SCORE, notes=replace(SCORE.notes, **{name: changed}))
    assert check_validity(write_midi(SCORE), other).problems == {"score_differs": 1}


def test_a_file_that_lacks_notes_of_its_score() -> None:
    fewer = make_score([(0, 500, 60, 80)], programs=(40,))
    assert check_validity(write_midi(fewer), SCORE).problems == {"score_differs": 2}
    assert check_validity(write_midi(SCORE), fewer).problems == {"score_differs": 2}


def test_notes_that_cross_in_one_part_cannot_be_told_apart() -> None:
    crossing = make_score([(0, 1000, 60, 80), (100, 100, 60, 80)])
    validity = check_validity(write_midi(crossing), crossing)
    assert validity.problems == {"score_differs": 2}  # 0-200 and 100-1000 for 0-1000 and 100-200
    in_two_parts = make_score([(0, 1000, 60, 80), (100, 100, 60, 80, 1)], programs=(0, 0))
    assert check_validity(write_midi(in_two_parts), in_two_parts).ok


def test_a_score_with_impossible_values() -> None:
    notes = replace(
        SCORE.notes,
        pitch=np.array([200, 64, 36], np.uint8),
        velocity=np.array([80, 0, 99], np.uint8),
        duration=np.array([0, 500, 0]),
    )
    problems = check_validity(write_midi(SCORE), replace(SCORE, notes=notes)).problems
    assert problems == {"score_differs": 3, "score_out_of_range": 3}


@given(st.binary(max_size=200), st.sampled_from([b"", WHOLE, WHOLE[:30]]))
def test_any_bytes_give_faults_and_never_an_error(tail: bytes, head: bytes) -> None:
    validity = check_validity(head + tail)
    assert all(n > 0 for n in validity.problems.values())
    assert validity.ok <= (validity.n_notes > 0)


@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.integers(0, 127), st.integers(1, 127), st.integers(0, 1)),
        min_size=1,
        max_size=20,
        unique_by=lambda row: (row[0], row[1], row[3]),
    )
)
def test_whatever_is_written_is_valid(rows: list[tuple[int, ...]]) -> None:
    score = make_score(
        [(50 * at, 50, pitch, velocity, part) for at, pitch, velocity, part in rows], programs=(7, DRUMS)
    )
    assert check_validity(write_midi(score), score) == Validity(n_notes=len(rows))


def test_both_readers_agree_on_real_files_and_what_is_written_anew_is_whole() -> None:
    found = sorted(real_data("dev").rglob("*.mid"))
    for path in random.Random(3).sample(found, 25):
        validity = check_validity(path.read_bytes())
        assert not {"readers_differ", "second_reader_refuses", "no_end_of_track"} & set(validity.problems), path
        score = read_midi(path)
        again = check_validity(write_midi(score), score)
        assert set(again.problems) <= {"meter_off_bar_line"}, path
        assert again.n_notes == len(score.notes.pitch)


def test_the_share_of_a_batch() -> None:
    batch = [Validity(), Validity({"unended_notes": 3}), Validity({"unended_notes": 1, "sanitized": 2}), Validity()]
    facts = share_valid(batch)
    assert (facts["n_files"], facts["n_valid"], facts["share_valid"]) == (4, 2, 0.5)
    assert facts["problems"] == {
        "sanitized": {"files": 1, "count": 2},
        "unended_notes": {"files": 2, "count": 4},
    }
    nothing = share_valid([])
    assert (nothing["share_valid"], nothing["low"], nothing["high"]) == (None, None, None)


@pytest.mark.parametrize(
    ("n_true", "n_all", "low", "high"),
    # the bounds are where (share - p)² = z² p (1 - p) / n
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662)],
)
def test_wilson_interval(n_true: int, n_all: int, low: float, high: float) -> None:
    assert wilson_interval(n_true, n_all) == pytest.approx((low, high), abs=1e-4)
    for bound in wilson_interval(n_true, n_all):
        assert bound is not None
        assert (n_true / n_all - bound) ** 2 == pytest.approx(1.96**2 * bound * (1 - bound) / n_all, rel=1e-3, abs=1e-9)
