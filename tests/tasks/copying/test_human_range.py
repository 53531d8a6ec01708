"""The human range: limits that hold for any distribution, and batches of human music that pass."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.copying.human_range import FOUND_BY_CHANCE, HumanRange, human_range, judge_batch
from tests.budget import examples

Run = tuple[int, int]  # first note and number of notes


def measured(n_notes: int, *runs: Run) -> tuple[int, np.ndarray, np.ndarray]:
    first, n = np.array(runs, np.int64).reshape(-1, 2).T
    return n_notes, first, n


def range_of(runs: list[int], n_notes: int = 1024) -> HumanRange:
    """A human range of pieces of one length whose longest runs are given."""
    values, counts = np.unique(runs, return_counts=True)
    return HumanRange(len(runs), len(runs), {n_notes: dict(zip(values.tolist(), counts.tolist(), strict=True))})


pieces_of_runs = st.integers(1, 300).flatmap(
    lambda n: st.tuples(
        st.just(n),
        st.lists(st.integers(0, n - 1).flatmap(lambda first: st.tuples(st.just(first), st.integers(1, n - first)))),
    )
)


@examples(100)
@given(st.lists(pieces_of_runs, max_size=5))
def test_excerpts_hold_the_part_of_a_run_that_lies_in_them(pieces: list[tuple[int, list[Run]]]) -> None:
    found = human_range(9, [measured(n, *runs) for n, runs in pieces])
    assert (found.n_held_out, found.n_measured) == (9, len(pieces))
    for length in (32, 64, 128, 256, 512, 1024):
        expected = []
        for n, runs in pieces:
            if n > length // 2:
                middle = range(n)[max(0, (n - length) // 2) :][:length]
                expected.append(max((len(set(middle) & set(range(a, a + k))) for a, k in runs), default=0))
        counted = found.runs.get(length, {})
        assert sorted(expected) == [run for run, count in counted.items() for _ in range(count)]


def test_pieces_are_compared_with_excerpts_of_their_length() -> None:
    runs = {32: {0: 30}, 64: {20: 25}, 128: {40: 18}, 256: {60: 19}}
    human = HumanRange(100, 100, runs)
    assert [human.length_for(n) for n in (16, 17, 32, 33, 64, 65, 256, 257, 5000)] == [
        None, 32, 32, 64, 64, 256, 256, 256, 256,
    ]  # fmt: skip
    assert [human.limit(n) for n in (16, 20, 40, 300)] == [None, FOUND_BY_CHANCE, 20, 60]


@pytest.mark.parametrize("n", [19, 20, 38, 39, 99, 100, 199, 1000])
def test_a_human_piece_goes_beyond_the_limit_once_in_twenty_times_at_most(n: int) -> None:
    """Of n + 1 different runs each is the new one with equal chance; the others are the human range."""
    runs = list(range(100, 101 + n))
    limits = [range_of(runs[:new] + runs[new + 1 :]).limit(1000) for new in range(n + 1)]
    n_beyond = sum(run > limit for run, limit in zip(runs, limits, strict=True) if limit is not None)
    assert 0 < n_beyond / (n + 1) <= 0.05
    verdict = judge_batch(range_of(runs[:-1]), [(1000, runs[-1])])
    assert verdict.p_value == pytest.approx(n_beyond / (n + 1), abs=1e-6)


def test_with_few_human_pieces_nothing_is_said() -> None:
    human = range_of(list(range(18)))
    assert human.limit(1000) is None
    verdict = judge_batch(human, [(1000, 900)] * 10)
    assert (verdict.n_pieces, verdict.n_judged, verdict.p_value, verdict.is_beyond) == (10, 0, None, None)
    assert judge_batch(HumanRange(0, 0, {}), []).is_beyond is None


def test_batches_by_people_pass_and_copies_do_not() -> None:
    random = np.random.default_rng(0)
    flagged = 0
    for _ in range(400):
        runs = random.geometric(0.02, 90).tolist()
        human, batch = range_of(runs[:60]), [(1000, run) for run in runs[60:]]
        flagged += bool(judge_batch(human, batch).is_beyond)
    assert 0 < flagged <= 0.05 * 400
    verdict = judge_batch(human, [(1000, 600)] * 6 + batch[:24])
    assert verdict.is_beyond
    assert verdict.n_beyond >= 6
    assert verdict.p_value is not None
    assert verdict.p_value < 0.01


def test_pieces_of_several_lengths_are_judged_together() -> None:
    human = HumanRange(99, 99, {length: dict.fromkeys(range(14, 113), 1) for length in (64, 512)})
    one = judge_batch(human, [(50, 112)] * 3).p_value
    both = judge_batch(human, [(50, 112)] * 2 + [(500, 112)]).p_value
    short = judge_batch(human, [(10, 0)] * 5 + [(50, 112)] * 3)
    assert one is not None
    assert both is not None
    assert both < one  # other people's runs are the limit, so one lenient limit does not explain all
    assert (short.n_pieces, short.n_judged, short.p_value) == (8, 3, one)


def test_it_survives_json() -> None:
    human = human_range(7, [measured(300, (3, 40), (100, 120)), measured(40), measured(5, (0, 3))])
    assert HumanRange.from_json(json.loads(json.dumps(human.as_json(), sort_keys=True))) == human
    assert list(human.runs) == [32, 64, 128, 256, 512]
    json.dumps(judge_batch(human, [(20, 3)]).as_json())
    with pytest.raises(KeyError):
        HumanRange.from_json({})
