"""Roman numerals, keys, Word2Vec and harmony distance: values by hand and laws."""

import math

import numpy as np
import pytest

from tasks.music.metrics.harmony import VECTOR_SIZE, harmony_distance, key_of, roman_numerals, train_vectors
from tasks.music.score import Score
from tests.builders import DRUMS, make_score

MAJOR, MINOR = (0, 4, 7), (0, 3, 7)
CADENCE = [(60, MAJOR), (65, MAJOR), (67, MAJOR), (57, MINOR), (60, MAJOR)]  # C F G Am C


def bars(chords: list[tuple[int, tuple[int, ...]]], shift: int = 0) -> Score:
    return make_score(
        [(2000 * bar, 2000, root + step + shift, 64) for bar, (root, chord) in enumerate(chords) for step in chord]
    )


@pytest.mark.parametrize("shift", [0, 1, 5, -7])
def test_numerals_are_relative_to_the_key(shift: int) -> None:
    assert roman_numerals(bars(CADENCE, shift)) == ["I", "IV", "V", "vi", "I"]
    minor = [(57, MINOR), (62, MINOR), (64, MAJOR), (60, MAJOR), (57, MINOR)]  # Am Dm E C Am
    assert roman_numerals(bars(minor, shift)) == ["i", "iv", "V", "III", "i"]


def test_bars_without_pitches_have_no_numeral() -> None:
    drums = make_score([(0, 480, 36, 64, 0)], programs=(DRUMS,))
    assert roman_numerals(drums) == []
    late = make_score([(0, 2000, 60, 64), (0, 2000, 64, 64), (0, 2000, 67, 64), (4000, 2000, 67, 64)])
    assert len(roman_numerals(late)) == 2  # the empty bar between them has none


def test_keys() -> None:
    for tonic in range(12):
        scale = np.zeros(12)
        scale[[(tonic + step) % 12 for step in (0, 2, 4, 5, 7, 9, 11)]] = 1
        scale[[tonic, (tonic + 7) % 12]] += 1
        assert key_of(scale) == (tonic, False)
        scale = np.zeros(12)
        scale[[(tonic + step) % 12 for step in (0, 2, 3, 5, 7, 8, 11)]] = 1
        scale[[tonic, (tonic + 7) % 12]] += 1
        assert key_of(scale) == (tonic, True)


def test_harmony_distance_by_hand() -> None:
    vectors = {"I": np.array([2.0, 0.0]), "V": np.array([0.0, 2.0]), "IV": np.array([-1.0, 0.0])}
    assert harmony_distance(["I"], ["V"], vectors) == pytest.approx(1)
    assert harmony_distance(["I"], ["IV"], vectors) == pytest.approx(2)
    assert harmony_distance(["I", "V"], ["V"], vectors) == pytest.approx(1 - math.sqrt(0.5))
    assert harmony_distance(["I", "I", "V"], ["I"], vectors) == pytest.approx(1 - 2 / math.sqrt(5))
    assert harmony_distance(["I", "V", "bVII"], ["V", "I", "I", "V"], vectors) == 0  # one has no vector
    assert harmony_distance(["bVII"], ["I"], vectors) is None


def test_vectors_are_those_of_numerals_that_occur_twice_and_the_same_each_time() -> None:
    pieces = [["I", "IV", "V", "I"], ["I", "bVII", "V"]]
    vectors = train_vectors(pieces)
    assert sorted(vectors) == ["I", "V"]
    assert {vector.shape for vector in vectors.values()} == {(VECTOR_SIZE,)}
    again = train_vectors(pieces)
    assert all(vectors[name].tobytes() == again[name].tobytes() for name in vectors)
    assert train_vectors([]) == {}
    assert sorted(train_vectors([["I"], ["I"]])) == ["I"]  # there is no neighbour to learn from


@pytest.mark.slow
def test_numerals_with_the_same_neighbours_become_alike() -> None:
    rng = np.random.default_rng(0)
    pieces = [["I", ("IV", "ii")[rng.integers(2)], "V", "I", "vi", "bVI", "bVII", "vi"] for _ in range(1500)]
    vectors = {name: vector / np.linalg.norm(vector) for name, vector in train_vectors(pieces).items()}
    alike = {name: float(vectors["IV"] @ vector) for name, vector in vectors.items() if name != "IV"}
    assert max(alike, key=alike.__getitem__) == "ii"
    assert alike["ii"] > 0.9
