"""Every reader stands some mutants of what it reads; longer by hand, see `tests/fuzz/__main__.py`."""

import pytest

from tests.fuzz.harness import find_targets, fuzz, n_inputs

PLACES = find_targets()


@pytest.mark.slow
@pytest.mark.parametrize("name", PLACES)
def test_a_reader_reads_or_refuses_every_mutant(name: str) -> None:
    outcome = fuzz(PLACES[name], n_inputs())
    assert not outcome.failures, str(outcome)
    assert outcome.n_inputs == sum(outcome.counts.values()) == n_inputs()
