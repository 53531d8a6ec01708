"""Sustain, transposition and time stretch: laws, and a slow definition of sustain to compare with."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.music.notes import NoteBatch
from tasks.music.transforms import apply_sustain, stretch_time, transpose
from tests.budget import examples
from tests.builders import DRUMS, make_score


@st.composite
def batches(draw: st.DrawFn) -> NoteBatch:
    """A few pieces of two pitched parts and drums, with pedals; notes may overlap in every way."""
    scores = []
    for _ in range(draw(st.integers(1, 4))):
        rows = draw(
            st.lists(
                st.tuples(
                    st.integers(0, 400),
                    st.integers(1, 200),
                    st.integers(58, 62),
                    st.integers(1, 127),
                    st.integers(0, 2),
                ),
                max_size=25,
            )
        )
        pedals = []
        for part in range(3):
            moments = sorted(draw(st.sets(st.integers(0, 600), max_size=8)))
            pedals += [(a, b, part) for a, b in zip(moments[::2], moments[1::2], strict=False)]
            if draw(st.booleans()):  # pressed again in the moment it is lifted
                pedals += [(moments[-1], moments[-1] + 50, part)] if len(moments) % 2 == 0 and moments else []
        scores.append(make_score(rows, pedals=pedals, programs=(0, 30, DRUMS)))
    return NoteBatch.joined([score.notes for score in scores])


def slow_ends(batch: NoteBatch) -> list[float]:
    """The definition of sustain, one note at a time."""
    ends = []
    for piece in range(batch.n_pieces):
        part = batch.pieces(piece, piece + 1)
        spans = list(zip(part.pedal_track, part.pedal_onset_seconds, part.pedal_end_seconds, strict=True))
        for i in range(part.n_notes):
            end = part.end_seconds[i]
            held = [up for track, down, up in spans if track == part.track[i] and down < end < up]
            if held and not part.is_drum[i]:
                later = [
                    part.onset_seconds[k]
                    for k in range(i + 1, part.n_notes)
                    if (part.track[k], part.pitch[k]) == (part.track[i], part.pitch[i])
                ]
                end = max(end, min([held[0], *later]))
            ends.append(end)
    return ends


@examples(150)
@given(batches())
def test_sustain_is_its_definition(batch: NoteBatch) -> None:
    assert apply_sustain(batch).end_seconds.tolist() == slow_ends(batch)


@given(batches())
def test_sustain_lengthens_and_leaves_the_rest(batch: NoteBatch) -> None:
    before = batch.end_seconds.copy()
    after = apply_sustain(batch)
    assert np.all(after.end_seconds >= before)
    assert np.array_equal(batch.end_seconds, before)
    assert after.onset_seconds is batch.onset_seconds
    assert after.pitch is batch.pitch


def test_sustain_ends_with_the_pedal_or_at_the_next_strike() -> None:
    score = make_score(
        [
            (0, 100, 60, 80),  # released at 100 under the pedal, struck again at 300
            (300, 50, 60, 80),  # released at 350 under the pedal, which lifts at 500
            (0, 500, 62, 80),  # released as the pedal lifts
            (0, 50, 64, 80),  # released as the pedal falls
            (450, 300, 65, 80),  # outlasts the pedal
        ],
        pedals=[(50, 500)],
    )
    batch = apply_sustain(score.notes)
    ends = dict(
        zip(zip(batch.pitch.tolist(), batch.onset_seconds.tolist(), strict=True), batch.end_seconds, strict=True)
    )
    assert ends == {(60, 0.0): 0.3, (60, 0.3): 0.5, (62, 0.0): 0.5, (64, 0.0): 0.05, (65, 0.45): 0.75}


def test_sustain_of_one_piece_does_not_reach_the_next() -> None:
    with_pedal = make_score([(0, 100, 60, 80)], pedals=[(50, 900)])
    without = make_score([(0, 100, 60, 80)])
    batch = apply_sustain(NoteBatch.joined([score.notes for score in [without, with_pedal, without]]))
    assert batch.end_seconds.tolist() == [0.1, 0.9, 0.1]


@given(batches(), st.integers(-130, 130))
def test_up_then_down_is_the_identity(batch: NoteBatch, semitones: int) -> None:
    moved, fits = transpose(batch, semitones)
    back, fits_back = transpose(moved, -semitones)
    fits_note = fits[batch.piece_of_note]
    assert np.array_equal(back.pitch[fits_note], batch.pitch[fits_note])
    assert np.array_equal(moved.pitch[~fits_note], batch.pitch[~fits_note])
    assert np.array_equal(moved.pitch[batch.is_drum], batch.pitch[batch.is_drum])
    assert np.all(fits_back[fits])


def test_transposition_tells_which_pieces_fit() -> None:
    scores = [
        make_score([(0, 1, 127, 80)]),
        make_score([(0, 1, 126, 80), (0, 1, 0, 80)]),
        make_score([(0, 1, 127, 80)], programs=[DRUMS]),
        make_score([]),
    ]
    moved, fits = transpose(NoteBatch.joined([score.notes for score in scores]), 1)
    assert fits.tolist() == [False, True, True, True]
    assert moved.pitch.tolist() == [127, 1, 127, 127]


@given(batches(), st.floats(0.25, 4))
def test_stretching_there_and_back(batch: NoteBatch, factor: float) -> None:
    back = stretch_time(stretch_time(batch, factor), 1 / factor)
    for name in ("onset_seconds", "end_seconds", "pedal_onset_seconds", "pedal_end_seconds"):
        assert np.allclose(getattr(back, name), getattr(batch, name), rtol=1e-12, atol=0)


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_stretching_by_nonsense_is_refused(factor: float) -> None:
    with pytest.raises(ValueError, match="stretch factor"):
        stretch_time(NoteBatch.joined([]), factor)


@given(batches())
def test_pieces_are_views_that_add_up(batch: NoteBatch) -> None:
    middle = batch.n_pieces // 2
    halves = [batch.pieces(0, middle), batch.pieces(middle, batch.n_pieces)]
    assert [half.n_pieces for half in halves] == [middle, batch.n_pieces - middle]
    assert np.array_equal(np.concatenate([half.pitch for half in halves]), batch.pitch)
    assert np.array_equal(np.concatenate([half.pedal_track for half in halves]), batch.pedal_track)
    assert halves[1].offsets[0] == halves[1].pedal_offsets[0] == 0
