"""Near-duplicate groups: laws of the components, planted copies, and the guard against chains."""

import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.config.dataset import GroupConfig
from tasks.dataset.near_duplicates import Groups, group_pieces
from tasks.music.midi.read_midi import read_midi
from tasks.music.similarity.fingerprint import N_WORDS, sign_pieces
from tests.budget import examples
from tests.conftest import real_data
from tests.tasks.music.similarity.test_fingerprint import flat, moved, music


def ids(n: int) -> list[str]:
    return [f"{i:08x}" for i in range(n)]


def partition(groups: Groups, names: list[str]) -> set[frozenset[str]]:
    return {frozenset(np.array(names)[groups.component == c].tolist()) for c in np.unique(groups.component)}


def signatures_of(sets: list[set[int]]) -> tuple[np.ndarray, np.ndarray]:
    """True MinHash signatures of small sets, through a random order for each value."""
    random = np.random.default_rng(0)
    ranks = random.permuted(np.tile(np.arange(20_000, dtype=np.uint32), (2 * N_WORDS, 1)), axis=1)
    lowest = np.stack([ranks[:, sorted(members)].min(axis=1) for members in sets])
    return lowest[:, ::2] << 16 | lowest[:, 1::2], np.array([len(members) for members in sets])


def some_pieces() -> list[np.ndarray]:
    """Four pieces and changed copies of three: 0 1 2 3, then 0 up a fourth, half of 1, 2 with notes left out."""
    originals = [music(seed) for seed in range(4)]
    random = np.random.default_rng(0)
    copies = [moved(originals[0], semitones=5), originals[1][:200], originals[2][random.random(400) > 0.03]]
    return originals + copies


def test_changed_copies_are_grouped_and_others_are_not() -> None:
    signed = sign_pieces(*flat(*some_pieces()))
    groups = group_pieces(ids(7), signed.signature, signed.n_shingles)
    assert groups.component.tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert groups.representative.tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert (groups.n_groups, groups.largest, groups.n_links) == (4, 2, 3)


@examples(25)
@given(st.permutations(range(7)))
def test_order_does_not_matter(order: list[int]) -> None:
    names, signed = ids(7), sign_pieces(*flat(*some_pieces()))
    expected = group_pieces(names, signed.signature, signed.n_shingles)
    shuffled = [names[i] for i in order]
    groups = group_pieces(shuffled, signed.signature[order], signed.n_shingles[order])
    assert partition(groups, shuffled) == partition(expected, names)
    assert groups.component.tolist() == expected.component[order].tolist()
    named = [shuffled[i] for i in groups.representative]
    assert named == [names[expected.representative[i]] for i in order]


def test_a_group_is_called_by_its_smallest_piece_id() -> None:
    names = ["ff", "aa", "0c", "b0"]
    signature, n_shingles = signatures_of([{1, 2, 3}, {4, 5, 6}, {1, 2, 3}, {7, 8}])
    groups = group_pieces(names, signature, n_shingles)
    assert [names[i] for i in groups.representative] == ["0c", "aa", "0c", "b0"]
    assert groups.component.tolist() == [0, 1, 0, 2]


def test_an_unrelated_piece_moves_no_other() -> None:
    pieces = some_pieces()
    signed = sign_pieces(*flat(*pieces))
    before = partition(group_pieces(ids(7), signed.signature, signed.n_shingles), ids(7))
    for place in range(8):
        names = [*ids(7)[:place], f"{place - 1:08x}5" if place else "0", *ids(7)[place:]]
        more = sign_pieces(*flat(*pieces[:place], music(99), *pieces[place:]))
        after = partition(group_pieces(names, more.signature, more.n_shingles), names)
        assert after == before | {frozenset([names[place]])}


def test_containment_counts_not_size() -> None:
    """An excerpt of a fifth is found; what shares a twelfth is not."""
    signature, n_shingles = signatures_of(
        [set(range(500)), set(range(100)), set(range(1000, 1500)), set(range(1460, 1960))]
    )
    assert group_pieces(ids(4), signature, n_shingles).component.tolist() == [0, 0, 1, 2]


def test_small_pieces_need_more() -> None:
    large = [set(range(400)), set(range(260, 660))]  # 35 % shared
    small = [set(range(2000, 2020)), set(range(2013, 2033))]  # the same share of twenty
    assert group_pieces(ids(4), *signatures_of(large + small)).component.tolist() == [0, 0, 1, 2]


def test_a_chain_of_weak_links_is_parted_and_counted() -> None:
    chain = [set(range(60 * i, 60 * i + 140)) for i in range(150)]  # each shares 57 % with the next, nothing further on
    copies = [set(range(15_000, 15_140))] * 150
    signature, n_shingles = signatures_of(chain + copies)
    free = group_pieces(ids(300), signature, n_shingles, GroupConfig(max_group_pieces=1000))
    assert free.largest >= 150
    assert np.bincount(free.component[:150]).max() > 100
    assert (free.n_guarded, free.n_parted) == (0, 0)
    guarded = group_pieces(ids(300), signature, n_shingles, GroupConfig(max_group_pieces=20))
    assert np.bincount(guarded.component[:150]).max() <= 20
    assert len(np.unique(guarded.component[150:])) == 1  # copies stay together, however many
    assert guarded.n_guarded >= 2
    assert guarded.n_parted > 100
    assert len(np.intersect1d(guarded.component[:150], guarded.component[150:])) == 0


@pytest.mark.slow
def test_a_huge_bucket_costs_linear_work() -> None:
    signature, n_shingles = signatures_of([{1, 2, 3}])
    n = 20_000
    groups = group_pieces(ids(n), np.repeat(signature, n, axis=0), np.repeat(n_shingles, n))
    assert groups.largest == n
    assert groups.n_candidates < 9 * 6 * n  # so large a group is looked at with each of eight stricter bounds
    assert (groups.n_guarded, groups.n_parted) == (1, 0)


@pytest.mark.slow
def test_twenty_thousand_pieces_take_seconds() -> None:
    random = np.random.default_rng(0)
    signature = random.integers(0, 2**12, (20_000, N_WORDS)).astype(np.uint32)  # every bucket holds some five pieces
    signature[10_000:10_500] = signature[:500]
    started = time.process_time()
    groups = group_pieces(ids(20_000), signature, np.full(20_000, 300))
    assert time.process_time() - started < 15
    assert groups.component[10_000:10_500].tolist() == groups.component[:500].tolist()
    assert groups.largest == 2
    assert groups.n_candidates < 64 * 20_000 * 5


def test_off_means_one_group_each() -> None:
    signature, n_shingles = signatures_of([{1, 2, 3}] * 3)
    groups = group_pieces(ids(3), signature, n_shingles, GroupConfig(enabled=False))
    assert groups.component.tolist() == groups.representative.tolist() == [0, 1, 2]
    assert groups.largest == 1


@pytest.mark.parametrize("n", [0, 1])
def test_none_and_one(n: int) -> None:
    groups = group_pieces(ids(n), np.zeros((n, N_WORDS), np.uint32), np.ones(n, np.int32))
    assert (groups.n_groups, groups.largest, len(groups.component)) == (n, n, n)


def test_mistakes_are_named() -> None:
    signature, n_shingles = signatures_of([{1}, {2}])
    with pytest.raises(ValueError, match="3 piece ids, 2 signatures and 2 counts differ"):
        group_pieces(ids(3), signature, n_shingles)
    with pytest.raises(ValueError, match="not distinct"):
        group_pieces(["b", "b"], signature, n_shingles)
    with pytest.raises(ValueError, match=r"min_containment=1.5 is above 1"):
        GroupConfig(min_containment=1.5)


def test_grouping_loads_no_more_than_the_settings_do() -> None:
    code = (
        "import sys, tasks.config.dataset; before = set(sys.modules); import tasks.dataset.near_duplicates,"
        " tasks.dataset.leakage; print({'numba', 'scipy', 'pyarrow'} & (set(sys.modules) - before) or set())"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert said.stdout.strip() == "set()"


def test_performances_are_grouped_and_tunes_are_not() -> None:
    root = real_data("dev")
    paths = sorted((root / "asap" / "Bach").rglob("*.mid"))[:60] + sorted((root / "nottingham").glob("jigs1*.mid"))[:60]
    pieces = []
    for path in paths:
        notes = read_midi(path).notes
        pieces.append(np.stack([notes.onset, notes.pitch, notes.is_drum], axis=1).astype(np.int64))
    signed = sign_pieces(*flat(*pieces))
    component = group_pieces(ids(len(pieces)), signed.signature, signed.n_shingles).component
    together = apart = 0
    for i, path in enumerate(paths):
        for k in range(i):
            if paths[k].parent == path.parent and path.parent.name != "nottingham":
                together += component[i] == component[k]
                apart += component[i] != component[k]
    assert together / (together + apart) > 0.95
    assert len(np.unique(component[60:])) >= 57
    assert not set(component[:60]) & set(component[60:])
