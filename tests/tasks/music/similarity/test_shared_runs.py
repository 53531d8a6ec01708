"""Runs that two pieces share: found whole and nowhere else, in any key, at any tempo, on the grid of an encoding."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.music.arrays import offsets_of
from tasks.music.midi.read_midi import read_midi
from tasks.music.notes import NoteBatch
from tasks.music.similarity.shared_runs import (
    MOST_PLACES,
    SEED_INTERVALS,
    SURE_NOTES,
    Lines,
    Runs,
    draw_lines,
    find_runs,
    seeds_between,
)
from tasks.music.tokenizers.oore import OoreConfig, OoreTokenizer
from tasks.music.tokenizers.remi.tokenizer import RemiTokenizer
from tasks.music.tokenizers.remi.vocabulary import RemiConfig
from tasks.music.transforms import stretch_time, transpose_within
from tests.budget import examples
from tests.conftest import real_data

Piece = tuple[Any, Any]  # onsets in seconds and pitches


def lines_of(*pieces: Piece) -> Lines:
    """Lines of pieces that are given as onsets and pitches in any order."""
    ordered = [np.array(sorted(zip(*piece, strict=True)), np.float64).reshape(-1, 2) for piece in pieces]
    onset, pitch = np.concatenate([np.zeros((0, 2)), *ordered]).T
    return draw_lines(offsets_of([len(piece) for piece in ordered]), onset, pitch, np.zeros(len(pitch), np.bool_))


def search(sought: Piece, *pieces: Piece) -> Runs:
    line, train = lines_of(sought), lines_of(*pieces)
    seeds = seeds_between(train.offsets, train.pitch)
    return find_runs(line.onset, line.pitch, seeds, train.offsets, train.onset, train.pitch)


def longest(sought: Piece, *pieces: Piece) -> int:
    return int(search(sought, *pieces).n_notes.max(initial=0))


def steps(pitches: list[int], gap: float = 0.25) -> Piece:
    """A melody of equal gaps."""
    return gap * np.arange(len(pitches)), np.array(pitches, np.int64)


def melody(seed: int, n_notes: int = 200) -> Piece:
    """A melody of its own: any intervals, gaps that are clearly apart."""
    random = np.random.default_rng(seed)
    gaps = random.choice([0.3, 0.9, 2.7], n_notes)
    return np.cumsum(gaps), random.integers(40, 80, n_notes)


def common_run(one: list[int], other: list[int]) -> int:
    """The longest run of equal intervals, in notes, by looking at all pairs of places."""
    best = 0
    for i in range(len(one)):
        for j in range(len(other)):
            n = 0
            while (
                i + n < len(one) and j + n < len(other) and one[i + n] - one[i] == other[j + n] - other[j]
            ):  # fmt: skip
                n += 1
            best = max(best, n)
    return best


few_pitches = st.lists(st.integers(60, 62), min_size=0, max_size=60)


@examples(200)
@given(few_pitches, st.lists(few_pitches, min_size=1, max_size=4), st.integers(-12, 12), st.data())
def test_the_longest_run_is_that_of_all_pairs_of_places(
    sought: list[int], pieces: list[list[int]], semitones: int, data: st.DataObject
) -> None:
    if data.draw(st.booleans()) and len(pieces[0]) > 4:  # a passage in common, or there would hardly be one
        first = data.draw(st.integers(0, len(pieces[0]) - 1))
        sought = [*sought[:20], *(pitch + semitones for pitch in pieces[0][first:]), *sought[20:]]
    found = longest(steps(sought), *(steps(piece) for piece in pieces))
    true = max(common_run(sought, piece) for piece in pieces)
    if true >= SURE_NOTES:
        assert found == true
    else:
        assert found == 0 or SEED_INTERVALS < found <= true


@examples(50)
@given(
    st.integers(0, 10_000), st.integers(SURE_NOTES, 60), st.integers(0, 100), st.integers(-20, 20), st.floats(0.5, 2)
)
def test_a_passage_of_14_notes_is_found_wherever_it_stands(
    seed: int, n_notes: int, first: int, semitones: int, stretch: float
) -> None:
    onset, pitch = melody(seed)
    before, after = melody(seed + 1, 30), melody(seed + 2, 30)
    passage = slice(first, first + n_notes)
    own = stretch * (onset[passage] - onset[first])
    sought = (
        np.concatenate([before[0], before[0][-1] + 1 + own, before[0][-1] + 2 + own[-1] + after[0]]),
        np.concatenate([before[1], pitch[passage] + semitones, after[1]]),
    )
    runs = search(sought, melody(seed + 3), (onset, pitch))
    best = int(runs.n_notes.argmax())
    assert runs.n_notes[best] >= n_notes
    begin = int(runs.first[best])
    assert begin <= 30 < 30 + n_notes <= begin + runs.n_notes[best]
    assert runs.source[best] - begin == 200 + first - 30


def test_unrelated_melodies_share_nothing() -> None:
    assert longest(melody(0), *(melody(seed) for seed in range(1, 50))) == 0


def test_runs_do_not_cross_from_piece_to_piece() -> None:
    onset, pitch = melody(0, 60)
    whole = longest((onset, pitch), (onset, pitch))
    parted = longest((onset, pitch), (onset[:30], pitch[:30]), (onset[30:], pitch[30:]))
    assert (whole, parted) == (60, 30)


def test_the_same_pitches_in_another_rhythm_are_another_tune() -> None:
    onset, pitch = melody(0)
    other = np.cumsum(np.random.default_rng(9).permutation(np.diff(onset, prepend=0)))
    assert longest((other, pitch), (onset, pitch)) < 30
    slower = np.where(onset > onset[100], 3 * onset - 2 * onset[100], onset)
    assert 100 <= longest((slower, pitch), (onset, pitch)) < 110


def test_six_times_as_slow_is_too_slow_to_be_the_same() -> None:
    onset, pitch = melody(0)
    assert longest((4 * onset, pitch), (onset, pitch)) == 200
    assert longest((6 * onset, pitch), (onset, pitch)) == 0


def chorale(seed: int, n_chords: int = 40) -> Piece:
    """Chords of four, each note of its own pitch."""
    random = np.random.default_rng(seed)
    pitch = np.array([random.choice(40, 4, replace=False) for _ in range(n_chords)]) + 40
    return np.repeat(0.5 * np.arange(n_chords), 4), pitch.ravel()


def test_a_spread_chord_is_the_chord() -> None:
    onset, pitch = chorale(0)
    spread = onset + np.random.default_rng(1).uniform(0, 0.03, len(onset))
    assert longest((spread, pitch), (onset, pitch)) == 160
    assert longest((np.round(spread, 2), pitch), (spread, pitch)) == 160
    assert longest(chorale(2), (onset, pitch)) == 0


def test_a_note_more_ends_a_run() -> None:
    onset, pitch = chorale(0)
    more = np.append(onset, onset[80]), np.append(pitch, 99)
    assert longest(more, (onset, pitch)) == 84  # the chord of the new note, which is its highest, is whole


def test_doubled_notes_and_drums_do_not_count() -> None:
    onset, pitch = chorale(0)
    doubled = np.repeat(onset, 2), np.repeat(pitch, 2)
    assert longest(doubled, (onset, pitch)) == 160
    order = np.lexsort([pitch, onset])
    notes = np.array([0, len(onset)]), onset[order], pitch[order]
    assert len(draw_lines(*notes, np.ones(len(onset), np.bool_)).pitch) == 0
    is_drum = np.random.default_rng(0).random(len(onset)) < 0.3
    line = draw_lines(*notes, is_drum)
    assert line.pitch.tolist() == notes[2][line.note].tolist() == notes[2][~is_drum].tolist()


@pytest.mark.parametrize("n_notes", [0, 1, 2, 3, SEED_INTERVALS])
def test_few_notes_share_nothing(n_notes: int) -> None:
    onset, pitch = melody(0)
    assert longest((onset[:n_notes], pitch[:n_notes]), (onset, pitch)) == 0
    assert longest((onset, pitch), (onset[:n_notes], pitch[:n_notes])) == 0
    assert longest((onset, pitch)) == 0


@examples(30)
@given(st.lists(st.integers(0, 80), max_size=6), st.integers(1, 7))
def test_seeds_are_the_same_in_any_number_of_passes(sizes: list[int], n_passes: int) -> None:
    line = lines_of(*(melody(seed, size) for seed, size in enumerate(sizes)))
    whole = seeds_between(line.offsets, line.pitch)
    borders = [k * (1 << 32) // n_passes for k in range(n_passes + 1)]
    parts = [seeds_between(line.offsets, line.pitch, *borders[k : k + 2]) for k in range(n_passes)]
    assert np.concatenate(parts).tolist() == whole.tolist() == sorted(whole.tolist())
    assert len(whole) == sum(max(0, -(-(size - SEED_INTERVALS) // 4)) for size in sizes)


def test_very_common_seeds_are_looked_at_in_part() -> None:
    repeated = steps([60] * 40)
    runs = search(repeated, *[repeated] * 1000)  # each seed stands at 8 places of each piece
    assert runs.n_notes.max() == 40
    assert len(runs.n_notes) <= 30 * MOST_PLACES


def test_arguments_stay_as_they_are_and_may_be_read_only() -> None:
    onset, pitch = melody(0)
    columns = np.array([0, 200]), onset, pitch.astype(np.uint8), np.zeros(200, np.bool_)
    for column in columns:
        column.flags.writeable = False
    assert draw_lines(*columns).pitch.tolist() == pitch.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("part", ["pop909", "piano-midi-de", "js-fakes", "nottingham"])
def test_real_pieces_are_found_after_an_encoding(part: str) -> None:
    """Transposed by up to six semitones, stretched by half to double, encoded and decoded: the source is found."""
    paths = sorted((real_data("dev") / part).rglob("*.mid"))
    scores = [read_midi(path) for path in paths[:: len(paths) // 60][:60]]
    batch = NoteBatch.joined([score.notes for score in scores])
    train = draw_lines(batch.offsets, batch.onset_seconds, batch.pitch, batch.is_drum)
    seeds = seeds_between(train.offsets, train.pitch)
    random = np.random.default_rng(0)
    for tokenizer in (OoreTokenizer(OoreConfig()), RemiTokenizer(RemiConfig())):
        for source in random.permutation(60)[:15].tolist():
            copy, _ = transpose_within(batch.pieces(source, source + 1), int(random.integers(-6, 7)))
            copy = stretch_time(copy, 2 ** random.uniform(-1, 1))
            notes = tokenizer.decode(tokenizer.encode(copy).ids).notes
            bounds = np.array([0, len(notes.pitch)])
            line = draw_lines(bounds, notes.onset_seconds, notes.pitch, notes.is_drum)
            runs = find_runs(line.onset, line.pitch, seeds, train.offsets, train.onset, train.pitch)
            best = int(runs.n_notes.argmax())
            assert np.searchsorted(train.offsets, runs.source[best], side="right") - 1 == source
            assert runs.n_notes[best] > 60
