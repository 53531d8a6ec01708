"""The order of ids of MidiTok 3.0: the published spots and vector, and weights that mean the same in both orders."""

import numpy as np
import pytest

from tasks.music.tokenizers.remi.program_order import (
    ids_from_3_0,
    ids_to_3_0,
    names_of_3_0,
    rows_from_3_0,
    rows_to_3_0,
)
from tasks.music.tokenizers.remi.tokenizer import RemiTokenizer
from tasks.music.tokenizers.remi.vocabulary import RemiConfig
from tests.builders import DRUMS, make_score

TOKENIZER = RemiTokenizer(RemiConfig(time_signatures=False, pitch_max=108, drum_pitches=False))
VOCABULARY = TOKENIZER.vocabulary
# A chord of program 0, a later note of it, and two drums of which one is too low; see `test_the_published_vector`.
PUBLISHED = [
    4, 173, 220, 206, 220, 44, 105, 116, 220, 48, 105, 116, 220, 51, 105, 116, 219, 20, 103, 110,
    4, 181, 220, 56, 96, 112,
]  # fmt: skip


def test_the_published_spots() -> None:
    spots = {
        "PAD_None": 0, "Bar_None": 4, "Pitch_60": 44, "Velocity_127": 108, "Duration_1.0.8": 116, "Position_0": 173,
        "Chord_maj": 206, "Program_0": 220, "Program_-1": 219, "Program_127": 347,
    }  # fmt: skip
    names = names_of_3_0(VOCABULARY)
    assert len(names) == len(set(names)) == 348
    assert {name: names.index(name) for name in spots} == spots
    assert {name: int(ids_to_3_0([TOKENIZER.token_id(name)], VOCABULARY)[0]) for name in spots} == spots


def test_the_published_vector() -> None:
    notes = [(0, 480, pitch, 100, 0) for pitch in (60, 64, 67)]
    notes += [(2400, 240, 72, 33, 0), (0, 120, 36, 90, 1), (0, 120, 20, 90, 1)]
    score = make_score(notes, programs=(0, DRUMS), ticks_per_quarter=480)
    ids = TOKENIZER.encode(score.notes).ids[1:-1]
    assert ids_to_3_0(ids, VOCABULARY).tolist() == PUBLISHED
    assert ids_from_3_0(PUBLISHED, VOCABULARY).tolist() == ids.tolist()
    decoded = TOKENIZER.decode(ids_from_3_0(PUBLISHED, VOCABULARY)).notes
    rows = zip(decoded.onset, decoded.duration, decoded.pitch, decoded.velocity, decoded.is_drum, strict=True)
    assert sorted(tuple(map(int, row)) for row in rows) == [
        (0, 2, 36, 87, 1), (0, 8, 60, 103, 0), (0, 8, 64, 103, 0), (0, 8, 67, 103, 0), (40, 4, 72, 31, 0),
    ]  # fmt: skip


def test_ids_and_weights_there_and_back() -> None:
    ids = np.arange(348)
    assert ids_from_3_0(ids_to_3_0(ids, VOCABULARY), VOCABULARY).tolist() == ids.tolist()
    weights = np.random.default_rng(0).random((348, 5))
    assert np.array_equal(rows_to_3_0(rows_from_3_0(weights, VOCABULARY), VOCABULARY), weights)
    own = rows_from_3_0(weights, VOCABULARY)
    assert np.array_equal(own[ids_from_3_0(PUBLISHED, VOCABULARY)], weights[PUBLISHED])
    hidden = np.ones(5)
    logits = own @ hidden
    assert int(ids_to_3_0([logits.argmax()], VOCABULARY)[0]) == int((weights @ hidden).argmax())
    bias = rows_from_3_0(ids.astype(np.float64), VOCABULARY)
    assert (bias[TOKENIZER.token_id("Program_-1")], bias[TOKENIZER.token_id("Program_127")]) == (219, 347)


def test_what_has_no_place_is_refused() -> None:
    with pytest.raises(ValueError, match="outside 0-347"):
        ids_from_3_0([348], VOCABULARY)
    with pytest.raises(ValueError, match="outside 0-347"):
        ids_to_3_0([-1], VOCABULARY)
    with pytest.raises(ValueError, match="ids of type float64 are no integers"):
        ids_from_3_0([4.5], VOCABULARY)
    assert ids_from_3_0([], VOCABULARY).tolist() == []
    with pytest.raises(ValueError, match=r"weights of shape \[347, 5\], but the vocabulary has 348 ids"):
        rows_from_3_0(np.zeros((347, 5)), VOCABULARY)
    with pytest.raises(ValueError, match="known without time signatures and pitches of drums alone"):
        ids_to_3_0([4], RemiTokenizer().vocabulary)
