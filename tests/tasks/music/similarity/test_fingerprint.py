"""Fingerprints: what must not change them, what must, and real performances of one piece."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.music.midi.read_midi import read_midi
from tasks.music.similarity.fingerprint import (
    GRAM_NOTES,
    MIN_SHINGLES,
    N_PERMUTATIONS,
    N_WORDS,
    SAMPLE,
    PieceSignatures,
    count_equal,
    gram_hashes,
    sign_pieces,
)
from tests.budget import examples
from tests.conftest import real_data

GOLDEN = [2159479550, 3556820015, 1664175391]
GOLDEN_GRAMS = [133044356795572924, 326251499103714944]

Rows = np.ndarray  # onset, pitch, is_drum: int64[N, 3]


def flat(*pieces: Rows) -> tuple[np.ndarray, ...]:
    ordered = [rows[np.lexsort([rows[:, 1], rows[:, 0]])] for rows in pieces]
    offsets = np.concatenate([[0], np.cumsum([len(rows) for rows in pieces])])
    onset, pitch, is_drum = np.concatenate(ordered).T
    return offsets, onset, pitch.astype(np.uint8), is_drum.astype(bool)


def sign(*pieces: Rows) -> PieceSignatures:
    return sign_pieces(*flat(*pieces))


def grams(piece: Rows) -> set[int]:
    return set(gram_hashes(*flat(piece))[1].tolist())


def likeness(one: Rows, other: Rows) -> float:
    """The estimated Jaccard index of two pieces' shingles."""
    signature = sign(one, other).signature
    return count_equal(signature, np.array([0]), np.array([1]))[0] / N_PERMUTATIONS


def music(seed: int, n_notes: int = 400, drums: bool = False) -> Rows:
    """A melody over broken chords, or a beat, by chance."""
    random = np.random.default_rng(seed)
    onset = np.cumsum(random.choice([0, 60, 120, 240], n_notes)) * 2
    pitch = np.where(
        random.random(n_notes) < 0.4, 72 + random.integers(-5, 12, n_notes), 48 + random.integers(-8, 8, n_notes)
    )
    kit = random.choice([36, 38, 42, 46, 47, 49], n_notes)
    return np.stack([onset, kit if drums else pitch, np.full(n_notes, drums)], axis=1).astype(np.int64)


def moved(rows: Rows, ticks: int = 0, semitones: int = 0) -> Rows:
    return rows + np.array([ticks, semitones, 0])


def with_drums(rows: Rows, seed: int) -> Rows:
    beat = music(seed, 100, drums=True)
    return np.concatenate([rows, beat])


SAME: dict[str, Callable[[Rows], Rows]] = {
    "transposed up": lambda rows: moved(rows, semitones=7),
    "transposed down": lambda rows: moved(rows, semitones=-5),
    "another resolution": lambda rows: rows * [5, 1, 1],
    "later": lambda rows: moved(rows, ticks=960),
    "slower": lambda rows: np.stack([np.round(rows[:, 0] * 1.37), rows[:, 1], rows[:, 2]], axis=1).astype(np.int64),
    "merged with a doubling track": lambda rows: np.repeat(rows, 2, axis=0),
    "other drums": lambda rows: with_drums(rows, 9),
    "shuffled before sorting": lambda rows: np.random.default_rng(0).permutation(rows),
}


@pytest.mark.parametrize("change", SAME)
def test_signature_and_n_grams_do_not_change(change: str) -> None:
    piece = music(1)
    one, other = sign(piece), sign(SAME[change](piece))
    assert np.array_equal(one.signature, other.signature)
    assert np.array_equal(one.n_shingles, other.n_shingles)
    assert grams(piece) == grams(SAME[change](piece))


@examples(60)
@given(
    st.lists(st.tuples(st.integers(0, 3000), st.integers(20, 100), st.booleans()), min_size=1, max_size=80),
    st.integers(-20, 27),
    st.integers(1, 9),
)
def test_any_piece_keeps_its_signature_in_another_key_and_resolution(
    notes: list[tuple[int, int, bool]], shift: int, factor: int
) -> None:
    rows = np.array(notes, np.int64)
    moved = rows.copy()
    moved[:, 0] *= factor
    moved[:, 1] += np.where(moved[:, 2] == 1, 0, shift)
    one, other = sign(rows), sign(moved)
    assert np.array_equal(one.signature, other.signature)
    assert np.array_equal(one.n_shingles, other.n_shingles)
    assert grams(rows) == grams(moved)


def test_pieces_do_not_see_their_neighbours() -> None:
    pieces = [music(1), music(2, 5), music(3, drums=True), music(4, 1), np.zeros((0, 3), np.int64), music(5)]
    together, (offsets, hashes) = sign(*pieces), gram_hashes(*flat(*pieces))
    for i, piece in enumerate(pieces):
        alone = sign(piece)
        assert np.array_equal(together.signature[i], alone.signature[0])
        assert together.n_shingles[i] == alone.n_shingles[0]
        assert set(hashes[offsets[i] : offsets[i + 1]].tolist()) == grams(piece)
    assert together.signature.shape == (6, N_WORDS)


@pytest.mark.parametrize("drums", [False, True], ids=["pitched", "drums"])
def test_a_few_other_notes_change_little_and_another_piece_everything(drums: bool) -> None:
    piece = music(1, drums=drums)
    random = np.random.default_rng(0)
    edited = piece[random.random(len(piece)) > 0.02]
    assert likeness(piece, edited) > 0.5
    assert likeness(piece, music(2, drums=drums)) < 0.1
    half = likeness(piece, piece[: len(piece) // 2])
    assert 0.35 < half < 0.65  # of the union the half holds a half


def test_spread_chords_and_uneven_hands_change_little() -> None:
    random = np.random.default_rng(0)
    chords = np.repeat(np.arange(150) * 480, 4)
    roots = random.integers(40, 60, 150)
    pitch = (roots[:, None] + np.sort(random.integers(0, 30, (150, 4)), axis=1)).ravel()
    piece = np.stack([chords, pitch, np.zeros(600, np.int64)], axis=1)
    spread = piece + np.stack([random.integers(0, 60, 600), *np.zeros((2, 600), np.int64)], axis=1)
    assert likeness(piece, spread) > 0.2


def test_the_estimate_is_near_the_truth() -> None:
    """Two pieces that share a passage of known length."""
    shared, one, other = music(1, 2000), music(2, 1000), music(3, 1000)
    for rows in (one, other):
        rows[:, 0] += shared[-1, 0] + 10_000
    assert likeness(np.concatenate([shared, one]), np.concatenate([shared, other])) == pytest.approx(0.5, abs=0.1)


def test_short_pieces_are_alike_only_when_they_are_equal() -> None:
    short = music(1, 20)
    other = short.copy()
    other[10, 1] += 1
    signed = sign(short, moved(short, semitones=3), other, short[:-1])
    assert signed.n_shingles.tolist() == [1, 1, 1, 1]
    equal = count_equal(signed.signature, np.zeros(3, np.int64), np.array([1, 2, 3]))
    assert equal.tolist() == [N_PERMUTATIONS, 0, 0]


def test_one_repeated_note_is_no_shingle() -> None:
    drone = np.stack([np.arange(500) * 240, np.full(500, 60), np.zeros(500)], axis=1).astype(np.int64)
    assert sign(drone).n_shingles[0] == 1
    assert sign(music(1)).n_shingles[0] > MIN_SHINGLES


def test_n_grams_are_a_sample_by_hash() -> None:
    piece = music(1, 4000)
    sampled = grams(piece)
    assert len(sampled) == pytest.approx((4000 - GRAM_NOTES) / SAMPLE, rel=0.1)
    assert all(value % SAMPLE == 0 for value in sampled)
    part = grams(piece[1000:2000])
    assert part <= sampled
    assert not grams(music(2, 4000)) & sampled


def test_constants_are_the_same_everywhere() -> None:
    """A signature made today is compared with those of a shard written years ago on another machine."""
    signature = sign(music(1)).signature[0]
    assert signature[:3].tolist() == GOLDEN
    assert sorted(grams(music(1)))[:2] == GOLDEN_GRAMS


def test_performances_of_one_piece_are_alike() -> None:
    folder = real_data("dev") / "asap" / "Bach" / "Fugue"
    pieces = []
    for path in sorted(folder.glob("bwv_8[58]*/*.mid"))[:24]:
        notes = read_midi(path).notes
        pieces.append((path.parent.name, np.stack([notes.onset, notes.pitch, notes.is_drum], axis=1).astype(np.int64)))
    signature = sign(*(rows for _, rows in pieces)).signature
    same, different = [], []
    for i, (name, _) in enumerate(pieces):
        others = np.array([k for k in range(len(pieces)) if k != i])
        equal = count_equal(signature, np.full(len(others), i), others) / N_PERMUTATIONS
        of_name = np.array([pieces[k][0] == name for k in others])
        same += equal[of_name].tolist()
        different += equal[~of_name].tolist()
    assert min(same) > 0.12
    assert max(different) < 0.1
