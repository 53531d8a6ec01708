"""Windows of bars: every bar is in one, every note too, and a window is a piece of its own."""

import math
from dataclasses import fields
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.music.midi.read_midi import read_midi
from tasks.music.notes import NoteBatch
from tasks.music.score import Score
from tasks.music.tokenizers.mmm.tokenizer import MmmTokenizer
from tasks.music.tokenizers.mmm.vocabulary import MmmConfig
from tasks.music.transforms import stretch_time
from tasks.music.windows import cut_windows
from tests.builders import make_score
from tests.conftest import real_data

BAR = 2000  # ticks of a 4/4 bar; by default a tick is 1 ms


def windows_of(score: Score, window_bars: int, hop_bars: int, units: int = 0) -> tuple[NoteBatch, np.ndarray]:
    batch, piece, n_cut = cut_windows(score.notes, window_bars, hop_bars, units)
    assert set(piece.tolist()) == {0}
    return batch, n_cut


def onsets(batch: NoteBatch) -> list[list[int]]:
    return [part.tolist() for part in np.split(batch.onset, batch.offsets[1:-1])]


@st.composite
def scores(draw: st.DrawFn) -> Score:
    ticks = draw(st.sampled_from([1, 96, 500]))
    times = st.integers(0, 60 * ticks)
    notes = st.tuples(times, st.integers(1, 12 * ticks), st.integers(0, 127), st.integers(1, 127), st.integers(0, 1))
    pedal_times = sorted(draw(st.sets(times, max_size=8)))
    meters = draw(st.dictionaries(times, st.sampled_from([(4, 4), (3, 4), (7, 8), (1, 4)]), max_size=3))
    tempos = draw(st.dictionaries(times, st.integers(300_000, 900_000), max_size=4))
    return make_score(
        draw(st.lists(notes, max_size=25)),
        pedals=list(zip(pedal_times[::2], pedal_times[1::2], strict=False)),
        programs=(0, 5),
        tempos=sorted({0: 500_000, **tempos}.items()),
        time_signatures=[(tick, *meter) for tick, meter in sorted(meters.items())],
        ticks_per_quarter=ticks,
    )


@pytest.mark.slow
def test_the_last_window_reaches_the_end() -> None:
    score = make_score([(bar * BAR, 500, 60, 80) for bar in range(10)])
    batch, n_cut = windows_of(score, 4, 4)
    assert onsets(batch) == [[0, 2000, 4000, 6000]] * 3  # bars 0-3, 4-7, 6-9
    assert batch.onset_seconds[-1] == pytest.approx(6.0)
    assert not n_cut.any()
    assert len(onsets(windows_of(score, 4, 1)[0])) == 7
    assert len(onsets(windows_of(score, 4, 3)[0])) == 3  # bars 0-3, 3-6, 6-9
    assert onsets(windows_of(score, 10, 10)[0]) == [[bar * BAR for bar in range(10)]]
    assert onsets(windows_of(score, 99, 1)[0]) == [[bar * BAR for bar in range(10)]]


def test_notes_end_with_their_window() -> None:
    score = make_score([(0, 3 * BAR, 60, 80), (BAR, 500, 62, 80), (2 * BAR, 3 * BAR, 64, 80)])
    batch, n_cut = windows_of(score, 2, 2)
    assert onsets(batch) == [[0, 2000], [0]]  # bars 0-1 and 2-3; in bars 3-4 no note begins
    assert batch.duration.tolist() == [2 * BAR, 500, 2 * BAR]
    assert batch.end_seconds.tolist() == pytest.approx([4.0, 2.5, 4.0])
    assert n_cut.tolist() == [1, 1]


def test_tempo_meter_and_pedal_come_along() -> None:
    score = make_score(
        [(0, 100, 60, 80), (1500, 100, 60, 80), (4000, 100, 60, 80)],
        pedals=[(1000, 2000), (3500, 4200)],
        tempos=[(0, 500_000), (1000, 1_000_000), (4000, 250_000)],
        time_signatures=[(0, 3, 4)],
    )
    batch, _ = windows_of(score, 1, 1)
    assert onsets(batch) == [[0], [0], [1000]]
    assert batch.onset_seconds.tolist() == pytest.approx([0.0, 0.0, 2.0])
    assert np.split(batch.tempo_microseconds_per_quarter, batch.tempo_offsets[1:-1])[1].tolist() == [1e6]
    assert np.split(batch.tempo_tick, batch.tempo_offsets[1:-1])[2].tolist() == [0, 1000]
    assert batch.time_signature_tick.tolist() == [0, 0, 0]
    assert batch.time_signature_numerator.tolist() == [3, 3, 3]
    assert batch.pedal_onset_seconds.tolist() == pytest.approx([1.0, 0.0, 1.0])
    assert batch.pedal_end_seconds.tolist() == pytest.approx([2.0, 1.0, 2.1])
    assert batch.pedal_offsets.tolist() == [0, 1, 2, 3]


def test_a_meter_takes_hold_at_a_bar_line() -> None:
    score = make_score(
        [(0, 1, 60, 80), (2000, 1, 60, 80), (4400, 1, 60, 80)], time_signatures=[(500, 3, 4), (3000, 1, 8)]
    )
    assert onsets(windows_of(score, 1, 1)[0]) == [[0], [0], [150]]  # bars begin at 0, 2000, 3500, 3750, 4000, 4250


def test_notes_played_early_belong_to_the_bar_they_are_rounded_to() -> None:
    score = make_score([(0, 500, 60, 80), (BAR - 20, 500, 70, 80), (BAR, 500, 50, 80), (2 * BAR - 20, 15, 50, 80)])
    batch, _ = windows_of(score, 1, 1, units=4)
    assert onsets(batch) == [[0], [0, 0], [0]]
    assert batch.pitch.tolist() == [60, 50, 70, 50]
    assert batch.duration.tolist() == [500, 500, 480, 1]
    assert np.all(batch.end_seconds >= batch.onset_seconds)
    assert onsets(windows_of(score, 1, 1)[0]) == [[0, BAR - 20], [0, BAR - 20]]


def test_a_long_silence_makes_no_windows() -> None:
    score = make_score([(0, 1, 60, 80), (10**6 * BAR + 5, 1, 60, 80)])
    assert onsets(windows_of(score, 4, 3)[0]) == [[0], [5 + 3 * BAR]]


@pytest.mark.parametrize(("window", "hop", "units"), [(4, 5, 0), (0, 0, 0), (4, 0, 0), (4, 4, -1)])
def test_numbers_are_checked(window: int, hop: int, units: int) -> None:
    with pytest.raises(ValueError, match=r"hop_bars=.* outside|units_per_quarter=-1"):
        cut_windows(NoteBatch.joined([]), window, hop, units)


@given(st.lists(scores(), max_size=3), st.integers(1, 5), st.integers(1, 5), st.sampled_from([0, 4]))
def test_every_note_is_in_as_many_windows_as_reach_over_it(
    pieces: list[Score], window: int, hop: int, units: int
) -> None:
    batch, hop = NoteBatch.joined([score.notes for score in pieces]), min(window, hop)
    cut, piece, n_cut = cut_windows(batch, window, hop, units)
    assert np.array_equal(np.unique(piece), np.arange(len(pieces)))
    assert np.all(np.diff(piece) >= 0)
    assert len(piece) == len(n_cut) == cut.n_pieces
    held = np.bincount(piece, weights=np.diff(cut.offsets), minlength=len(pieces))
    n_notes = np.diff(batch.offsets)
    assert np.all(held >= n_notes)
    if window == hop and units == 0:  # only the last two windows overlap
        assert np.all(held <= 2 * n_notes)
    assert np.all(cut.onset >= 0)
    assert np.all(cut.duration >= 1)
    assert np.all(cut.onset_seconds >= 0)
    assert np.all(cut.end_seconds >= cut.onset_seconds)
    assert np.all(cut.tempo_tick[cut.tempo_offsets[:-1]] == 0)
    assert np.all(cut.pedal_end_seconds > cut.pedal_onset_seconds)


def bar_lines(score: Score, n_bars: int) -> list[int]:
    """Return the ticks of the first bar lines, found bar by bar."""
    meters = score.time_signatures
    changes = list(zip(meters.tick.tolist(), meters.numerator.tolist(), meters.denominator.tolist(), strict=True))
    lines, base, since, over, under = list[int](), 0, 0, 4, 4
    for _ in range(n_bars):
        now = base + math.ceil(since * Fraction(4 * score.ticks_per_quarter * over, under))
        while changes and changes[0][0] <= now:
            _, over, under = changes.pop(0)
            base, since = now, 0
        lines.append(now)
        since += 1
    return lines


@given(scores(), st.integers(1, 4), st.integers(1, 4))
def test_windows_hold_what_begins_between_their_bar_lines(score: Score, window: int, hop: int) -> None:
    hop, lines = min(window, hop), bar_lines(score, 300)
    end = score.notes.onset + score.notes.duration
    n_bars = sum(line < end.max(initial=1) for line in lines)
    last = max(n_bars - window, 0)
    expected = []
    for start in sorted({*range(0, last, hop), last}):
        limit = lines[start + window] if start < last else 10**9
        is_in = (score.notes.onset >= lines[start]) & (score.notes.onset < limit)
        if is_in.any() or not len(end):
            rows = np.stack([score.notes.onset[is_in], np.minimum(end[is_in], limit), score.notes.pitch[is_in]])
            expected.append(sorted((rows.T - [lines[start], lines[start], 0]).tolist()))
    batch, _ = windows_of(score, window, hop)
    columns = np.stack([batch.onset, batch.onset + batch.duration, batch.pitch])
    found = [sorted(part.T.tolist()) for part in np.split(columns, batch.offsets[1:-1], axis=1)]
    assert found == expected


@given(scores())
def test_a_window_longer_than_the_piece_is_the_piece(score: Score) -> None:
    batch = score.notes
    whole, _, n_cut = cut_windows(batch, 10**6, 10**6)
    assert n_cut.tolist() == [0]
    for field in fields(NoteBatch):
        assert np.array_equal(getattr(whole, field.name), getattr(batch, field.name)), field.name


@given(st.lists(scores(), min_size=1, max_size=3), st.integers(1, 4), st.integers(1, 4))
def test_a_piece_has_the_same_windows_in_any_company(pieces: list[Score], window: int, hop: int) -> None:
    hop = min(window, hop)
    together, piece, _ = cut_windows(NoteBatch.joined([score.notes for score in pieces]), window, hop)
    for index, score in enumerate(pieces):
        alone, _, _ = cut_windows(score.notes, window, hop)
        places = np.flatnonzero(piece == index)
        same = together.pieces(int(places[0]), int(places[-1]) + 1)
        for field in fields(NoteBatch):
            assert np.array_equal(getattr(alone, field.name), getattr(same, field.name)), field.name


@given(scores(), st.integers(1, 4), st.sampled_from([0.8, 1.25]))
def test_stretching_before_or_after_is_the_same(score: Score, window: int, factor: float) -> None:
    batch = score.notes
    before, after = (
        cut_windows(stretch_time(batch, factor), window, 1)[0],
        stretch_time(cut_windows(batch, window, 1)[0], factor),
    )
    for field in fields(NoteBatch):
        assert np.allclose(getattr(before, field.name), getattr(after, field.name)), field.name


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(1, 20)), min_size=1), st.integers(1, 4), st.integers(1, 4))
def test_the_words_of_a_window_have_its_bars(rows: list[tuple[int, int]], window: int, hop: int) -> None:
    score = make_score([(onset * 33, length * 33, 60, 80) for onset, length in rows])
    batch, _ = windows_of(score, window, min(window, hop), units=4)
    tokenizer = MmmTokenizer(MmmConfig(vocabulary_from="all", across_bars="tie"))
    tokens = tokenizer.encode(batch)
    starts = [np.sum(ids == tokenizer.token_id("BAR_START")) for ids in np.split(tokens.ids, tokens.offsets[1:-1])]
    assert max(starts) <= window
    assert tokens.n_notes.min() > 0


def test_real_pieces() -> None:
    paths = sorted((real_data("dev") / "asap").rglob("*.mid"))[::60]
    batch = NoteBatch.joined([read_midi(path).notes for path in paths])
    cut, piece, _ = cut_windows(batch, 8, 4, 4)
    assert np.array_equal(np.unique(piece), np.arange(len(paths)))
    assert cut.n_notes > batch.n_notes
    assert cut.end_seconds.max() < batch.end_seconds.max()
    assert np.all(cut.pedal_end_seconds > cut.pedal_onset_seconds)
