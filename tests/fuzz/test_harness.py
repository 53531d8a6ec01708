"""The harness sees every fault a reader can have; a harness that sees none would pass every target."""

import random
from pathlib import Path

import pytest

from tests.fuzz import harness, mutators
from tests.fuzz.harness import fuzz, load_target, make_input

FAULTS = {
    b"crash": "SIGABRT",
    b"hang": "more CPU time",
    b"exit": "exit status 3",
    b"eat": "MemoryError",
    b"raise": "KeyError: 'counts'",
    b"lines": "not one line",
}


@pytest.mark.slow
def test_every_fault_is_seen_named_and_written_to_a_file(tmp_path: Path) -> None:
    outcome = fuzz("tests.fuzz.deliberate:every_fault", 20, seed=3, folder=tmp_path)
    target = load_target("tests.fuzz.deliberate:every_fault")
    inputs = [make_input(target, target.seeds(), 3, index) for index in range(20)]
    seen = {failure.path.read_bytes() for failure in outcome.failures}
    assert seen == set(inputs) & FAULTS.keys() == FAULTS.keys()
    for failure in outcome.failures:
        assert FAULTS[inputs[failure.index]] in failure.what
        assert str(failure.path) in str(outcome)
    assert len(outcome.failures) == sum(data in FAULTS for data in inputs)
    assert outcome.n_inputs == 20


@pytest.mark.slow
def test_a_reader_that_waits_for_ever_without_work_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "IDLE_SECONDS", 5)
    (failure,) = fuzz("tests.fuzz.deliberate:waits", 1, seed=1, folder=tmp_path).failures
    assert "no CPU time" in failure.what


def test_an_input_depends_on_its_seed_and_number_alone() -> None:
    target = load_target("tests.fuzz.targets.midi:midi")
    seeds = target.seeds()
    inputs = [make_input(target, seeds, 1, index) for index in range(50)]
    assert inputs[::-1] == [make_input(target, seeds, 1, index) for index in reversed(range(50))]
    assert len(set(inputs)) > 40


def test_json_mutants_hold_hostile_numbers_deep_nesting_and_lost_keys() -> None:
    whole = b'{"a": {"b": [1, 2, {"c": 3}]}, "d": "x"}'
    mutants = [mutators.mutate([whole], mutators.JSON, random.Random(seed)) for seed in range(2_000)]
    assert any(b"1" * mutators.DIGITS_MANY in mutant for mutant in mutants)
    assert any(b"[" * mutators.DEPTH in mutant for mutant in mutants)
    assert any(b"NaN" in mutant for mutant in mutants)
    assert any(b'"d"' not in mutant and b'"c": 3' in mutant for mutant in mutants)
