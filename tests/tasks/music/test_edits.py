"""Overlaps of one pitch in one part, against a double loop; what is written is read back the same."""

from hypothesis import given
from hypothesis import strategies as st

from tasks.music.edits import end_at_next
from tasks.music.midi.read_midi import read_midi
from tasks.music.midi.validity import check_validity
from tasks.music.midi.writer import write_midi
from tests.budget import examples
from tests.builders import make_score

NOTES = st.lists(
    st.tuples(st.integers(0, 40), st.integers(1, 30), st.integers(60, 62), st.integers(1, 127), st.integers(0, 1)),
    max_size=12,
)


@examples(200)
@given(NOTES)
def test_a_note_ends_where_its_pitch_is_struck_again(rows: list[tuple[int, int, int, int, int]]) -> None:
    score = make_score(rows, programs=(0, 1))
    found, n_shortened = end_at_next(score)
    expected = 0
    for i in range(len(score.notes.pitch)):
        later = [
            int(score.notes.onset[j] - score.notes.onset[i])
            for j in range(len(score.notes.pitch))
            if score.notes.pitch[j] == score.notes.pitch[i]
            and score.notes.track[j] == score.notes.track[i]
            and score.notes.onset[j] > score.notes.onset[i]
        ]
        expected += bool(later) and min(later) < score.notes.duration[i]
    assert n_shortened == expected
    assert (found.notes.onset == score.notes.onset).all()
    assert sorted(found.notes.pitch.tolist()) == sorted(score.notes.pitch.tolist())
    if rows:
        midi = write_midi(found)
        assert check_validity(midi, found).ok
        assert len(read_midi(midi).notes.pitch) == len(rows)


def test_a_score_without_overlaps_is_the_same_object() -> None:
    score = make_score([(0, 10, 60, 80), (10, 10, 60, 80), (0, 99, 61, 80)])
    assert end_at_next(score) == (score, 0)
