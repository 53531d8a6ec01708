"""Tests of the number of threads in sampling."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

from models.config import DecoderConfig, SamplingConfig
from models.registry import build_model
from models.sampling.sample import sample
from models.sampling.threads import STEPS_BETWEEN_TRIALS, ThreadCount, tuned_threads


@contextmanager
def as_many_threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def used(threads: ThreadCount, seconds: Callable[[int], float], n_steps: int) -> list[int]:
    """Return the counts of some steps that take as long as `seconds` says."""
    counts = []
    for _ in range(n_steps):
        counts.append(threads.use())
        threads.observe(seconds(counts[-1]))
    return counts


@pytest.mark.parametrize("fastest", [1, 2, 4, 8, 16])
def test_the_fastest_of_the_counts_is_found(fastest: int) -> None:
    with as_many_threads_as_before():
        counts = used(ThreadCount(16), lambda count: abs(count - fastest), 200)
    assert counts[-1] == fastest


def test_a_count_that_cannot_be_halved_for_ever_ends_at_one() -> None:
    with as_many_threads_as_before():
        counts = used(ThreadCount(6), lambda count: count, 100)
    assert set(counts) == {6, 3, 2, 1}
    assert counts[-1] == 1


def test_the_count_follows_when_another_one_becomes_faster() -> None:
    with as_many_threads_as_before():
        threads = ThreadCount(2)
        assert used(threads, lambda count: count, 50)[-1] == 1
        assert set(used(threads, lambda count: 1 / count, STEPS_BETWEEN_TRIALS + 20)[-5:]) == {2}


def test_a_slow_step_now_and_then_changes_nothing() -> None:
    with as_many_threads_as_before():
        threads, n = ThreadCount(4), iter(range(1000))
        counts = used(threads, lambda count: 9.0 if next(n) % 6 == 0 else 1 / count, 500)
    assert counts.count(4) > 400


def test_few_steps_are_spent_on_trials() -> None:
    with as_many_threads_as_before():
        counts = used(ThreadCount(2), lambda count: 1 / count, 2000)
    assert 0 < counts.count(1) < 50


def test_a_single_thread_is_left_alone() -> None:
    with as_many_threads_as_before():
        assert set(used(ThreadCount(1), lambda count: count, 600)) == {1}


def fail_with_one_thread() -> None:
    with tuned_threads(torch.device("cpu")) as threads:
        assert not torch.backends.mkldnn.enabled
        used(threads, lambda count: count, 30)
        raise KeyError(torch.get_num_threads())


def test_torch_has_as_many_threads_as_before_after_an_error_too() -> None:
    with as_many_threads_as_before():
        torch.set_num_threads(2)
        with pytest.raises(KeyError, match="1"):
            fail_with_one_thread()
        assert torch.get_num_threads() == 2
        assert torch.backends.mkldnn.enabled


def test_an_accelerator_leaves_the_threads_as_they_are() -> None:
    with as_many_threads_as_before():
        torch.set_num_threads(2)
        with tuned_threads(torch.device("meta")) as threads:
            used(threads, lambda count: count, 30)
            assert torch.get_num_threads() == 2


def test_ids_do_not_depend_on_threads() -> None:
    torch.manual_seed(1)
    model = build_model(DecoderConfig(d_model=64, n_heads=4, n_layers=2, d_ff=128, max_relative_distance=64), 50, 0)

    def pieces(n_threads: int) -> list[list[int]]:
        torch.set_num_threads(n_threads)
        config = SamplingConfig(max_tokens=80)
        prompts = [torch.tensor([i + 2]) for i in range(5)]
        found = sample(model, prompts, range(5), 3, config, end_id=1, batch_size=3)
        return [piece.tolist() for piece in found]

    with as_many_threads_as_before():
        assert pieces(1) == pieces(2)
