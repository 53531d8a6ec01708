"""The note-level F1 score of a reconstruction, by hand."""

import pytest

from tasks.music.score import Score
from tasks.sampling.latents import note_f1
from tests.builders import DRUMS, make_score

TUNE = [(0, 400, 60, 80), (500, 400, 64, 80), (1000, 400, 67, 80), (1500, 400, 72, 80)]


@pytest.mark.parametrize(
    ("found", "f1"),
    [
        (make_score(TUNE), 1.0),
        (make_score([(onset + 40, 10, pitch, 1) for onset, _, pitch, _ in TUNE]), 1.0),  # onsets alone count
        (make_score([(onset + 60, 400, pitch, 80) for onset, _, pitch, _ in TUNE]), 0.0),
        (make_score(TUNE[:2]), 2 * 2 / 6),
        (make_score([*TUNE, (0, 400, 60, 80)]), 2 * 4 / 9),  # each note is matched once
        (make_score([(onset, 400, pitch + 1, 80) for onset, _, pitch, _ in TUNE]), 0.0),
        (make_score(TUNE, programs=(DRUMS,)), 0.0),
        (make_score([]), 0.0),
    ],
)
def test_note_f1_by_hand(found: Score, f1: float) -> None:
    reference = make_score(TUNE)
    assert note_f1(found, reference) == note_f1(reference, found) == pytest.approx(f1)


def test_two_empty_pieces_are_equal() -> None:
    assert note_f1(make_score([]), make_score([])) == 1.0
