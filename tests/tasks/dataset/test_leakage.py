"""The leakage report: a planted copy fails it, common figures do not, and any sample of n-grams says the same."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.config.dataset import LeakageConfig
from tasks.dataset import leakage
from tasks.dataset.leakage import LeakageReport, exceeds, measure_leakage, thin_grams, thinning_for
from tasks.dataset.split import SPLITS
from tasks.music.similarity.fingerprint import gram_hashes
from tests.budget import examples
from tests.tasks.music.similarity.test_fingerprint import flat, moved, music


def names(n: int) -> list[str]:
    return [f"{i:04x}" for i in range(n)]


def report_on(sets: list[list[int]], splits: str, **more: object) -> LeakageReport:
    """A report on n-grams written out; `splits` has a letter for each piece."""
    offsets = np.concatenate([[0], np.cumsum([len(members) for members in sets])]).astype(np.int64)
    by_letter = {name[0]: name for name in ("train", "validation")} | {"s": "test"}
    flat_grams = np.concatenate([np.array(members, np.uint64) for members in sets])
    return measure_leakage(names(len(sets)), offsets, flat_grams, [by_letter[c] for c in splits], **more)


def test_shares_are_counted_as_defined() -> None:
    sets = [list(range(100)), list(range(50, 150)), list(range(140, 240)), list(range(1000, 1010)), [1, 2]]
    found = report_on(sets, "tvsss").splits
    assert found["validation"].mean == 0.5
    assert (found["test"].n_pieces, found["test"].n_rated) == (3, 2)
    assert found["test"].max == 0.0
    assert found["validation"].worst[0].nearest == "0000"
    assert found["validation"].worst[0].share_in_nearest == 0.5


def test_a_copy_is_found_and_shared_figures_are_not() -> None:
    """A piece whose n-grams are spread over twenty others is no copy, however few are its own."""
    train = [list(range(10 * i, 10 * i + 10)) + list(range(10_000 + 100 * i, 10_090 + 100 * i)) for i in range(20)]
    figures, copy = list(range(200)), train[3]
    clean = report_on([*train, figures], "t" * 20 + "v")
    assert clean.splits["validation"].mean == 1.0
    assert clean.splits["validation"].worst[0].share_in_nearest == 0.05
    assert not exceeds(clean)
    leaking = report_on([*train, figures, copy], "t" * 20 + "vs")
    assert leaking.leaked_share == 1.0
    assert leaking.splits["test"].worst[0].nearest == "0003"
    assert exceeds(leaking)
    assert not exceeds(leaking, bound=1.0)


def test_a_transposed_copy_across_the_splits_fails() -> None:
    pieces = [music(seed) for seed in range(30)]
    splits = np.array([0] * 24 + [1] * 3 + [2] * 3)
    clean = measure_leakage(names(30), *gram_hashes(*flat(*pieces)), splits)
    assert not exceeds(clean)
    assert clean.splits["test"].max < 0.1
    pieces[29] = moved(pieces[4], semitones=3)
    planted = measure_leakage(names(30), *gram_hashes(*flat(*pieces)), splits)
    assert exceeds(planted)
    worst = planted.splits["test"].worst[0]
    assert (worst.piece, worst.nearest, worst.share_in_nearest) == ("001d", "0004", 1.0)


def test_the_baseline_keeps_groups_together() -> None:
    sets = [list(range(100 * (i // 2), 100 * (i // 2) + 100)) for i in range(40)]  # twenty pairs of copies
    splits = "t" * 36 + "vvss"
    grouped = report_on(sets, splits, groups=[i // 2 for i in range(40)])
    assert grouped.baseline.mean == 0.0
    assert grouped.baseline.n_pieces > 0
    assert report_on(sets, splits).baseline.mean > 0.5


@examples(50)
@given(st.lists(st.lists(st.integers(0, 60), min_size=8, max_size=40, unique=True), min_size=3, max_size=12), st.data())
def test_figures_agree_with_plain_sets(sets: list[list[int]], data: st.DataObject) -> None:
    splits = data.draw(st.lists(st.sampled_from("tvs"), min_size=len(sets), max_size=len(sets)))
    found = report_on(sets, "".join(splits)).splits
    train = [(i, set(sets[i])) for i, split in enumerate(splits) if split == "t"]
    known = set().union(*(members for _, members in train))
    for name, letter in (("validation", "v"), ("test", "s")):
        held = [i for i, split in enumerate(splits) if split == letter]
        if not held or not train:
            assert found[name].n_rated == 0
            continue
        shares = [len(known & set(sets[i])) / len(sets[i]) for i in held]
        assert found[name].mean == pytest.approx(np.mean(shares), abs=1e-4)
        assert found[name].max == pytest.approx(max(shares), abs=1e-4)
        for piece in found[name].worst:
            mine = set(sets[int(piece.piece, 16)])
            best = max(len(mine & members) for _, members in train) / len(mine)
            assert piece.share_in_nearest == pytest.approx(best, abs=1e-4)


def test_order_does_not_matter() -> None:
    random = np.random.default_rng(0)
    pieces = [random.choice(500, 60, replace=False).tolist() for _ in range(30)]
    splits = "t" * 20 + "v" * 5 + "s" * 5
    order = random.permutation(30)
    one = report_on(pieces, splits).splits["test"]
    other = report_on([pieces[i] for i in order], "".join(splits[i] for i in order)).splits["test"]
    assert (one.mean, one.median, one.p95, one.max) == (other.mean, other.median, other.p95, other.max)
    assert sorted(w.share_in_nearest for w in one.worst) == sorted(w.share_in_nearest for w in other.worst)


def test_a_smaller_sample_says_about_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    values = random.integers(0, 2**63, 4000).astype(np.uint64)
    sets = [random.choice(values, 800, replace=False).tolist() for _ in range(20)]
    whole = report_on(sets, "t" * 10 + "vs" * 5)
    monkeypatch.setattr(leakage, "MOST_GRAMS", 4000)
    sampled = report_on(sets, "t" * 10 + "vs" * 5)
    assert sampled.sampled == 4 * whole.sampled
    assert sampled.splits["test"].mean == pytest.approx(whole.splits["test"].mean, abs=0.1)


def test_thinning_twice_is_thinning_once() -> None:
    grams = np.random.default_rng(0).integers(0, 2**63, 5000).astype(np.uint64)
    offsets = np.array([0, 1000, 1000, 5000])
    once, twice = thin_grams(offsets, grams, 8), thin_grams(*thin_grams(offsets, grams, 4), 8)
    assert np.array_equal(once[0], twice[0])
    assert np.array_equal(once[1], twice[1])
    assert len(once[1]) == pytest.approx(5000 / 8, rel=0.2)
    assert thinning_for(0) == 1
    assert thinning_for(leakage.MOST_GRAMS + 1) == 2


def test_the_report_is_json() -> None:
    report = report_on([list(range(100))] * 6, "tttvss")
    back = json.loads(json.dumps(dataclasses.asdict(report)))
    assert back["splits"]["test"]["worst"][0]["share_in_nearest"] == 1.0
    assert set(back["splits"]) == set(SPLITS[1:])
    assert back["leaked_share"] == 1.0


def test_nothing_to_compare_is_no_leak() -> None:
    assert not exceeds(report_on([[1, 2, 3]], "v"))
    assert not exceeds(report_on([list(range(50)), []], "tv"))


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="piece_bound=2 is above 1"):
        LeakageConfig(piece_bound=2)
