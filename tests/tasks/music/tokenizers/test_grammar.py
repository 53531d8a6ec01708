"""The rules of a small language, and what the checker says of its sentences."""

import numpy as np
import pytest

from tasks.music.tokenizers.grammar import Grammar

START, OPEN, CLOSE, END = range(4)


@pytest.fixture
def brackets() -> Grammar:
    """<start>, then one bracket opened and closed at will, then <end>."""
    next_state = np.full((3, 4), -1, dtype=np.int16)
    next_state[0, START], next_state[1, [OPEN, CLOSE]], next_state[1, END] = 1, 1, 2
    return Grammar(
        next_state,
        opens_V=np.array([-1, 0, -1, -1], dtype=np.int16),
        closes_V=np.array([-1, -1, 0, -1], dtype=np.int16),
        needs_all_closed_V=np.array([False, False, False, True]),
        time_V=np.zeros(4, dtype=np.int16),
        n_slots=1,
    )


@pytest.mark.parametrize(
    ("ids", "first", "count"),
    [
        ([], None, 0),
        ([START], None, 0),
        ([START, OPEN, CLOSE, OPEN, CLOSE, END], None, 0),
        ([OPEN], 0, 1),  # before <start>
        ([START, CLOSE], 1, 1),  # nothing is open
        ([START, OPEN, OPEN, CLOSE, END], 2, 1),  # already open; the second is skipped
        ([START, OPEN, END], 2, 1),  # an open bracket at the end
        ([START, OPEN, END, CLOSE, END, START], 2, 2),
        ([START, 4, -1, END], 1, 2),  # no such ids
        ([START, START, END, END], 1, 2),
    ],
)
def test_violations(brackets: Grammar, ids: list[int], first: int | None, count: int) -> None:
    assert brackets.first_violation(ids) == first
    assert brackets.n_violations(np.array(ids, dtype=np.int64)) == count
