"""Augmentation: which variants a piece gets, that they are what they say, and that nothing is left out uncounted."""

import itertools
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.config.augmentations import AUGMENTATIONS, augmentation
from tasks.config.dataset import AugmentConfig
from tasks.config.serialization import ConfigError
from tasks.dataset.augment import ITSELF, Variant, change_notes, plan_variants
from tasks.dataset.variants import encode_variants
from tasks.music.notes import NoteBatch
from tasks.music.tokenizers.oore import OoreConfig, OoreTokenizer
from tasks.music.tokenizers.remi.tokenizer import RemiTokenizer
from tasks.music.transforms import shift_velocity, stretch_time, transpose
from tasks.storage.parquet import TOKEN_SCHEMA
from tests.budget import examples
from tests.builders import DRUMS, make_score

TOKENIZER = OoreTokenizer()
PLAIN = AugmentConfig(transpositions=(0,), stretches=(1.0,))


def names(n: int) -> list[str]:
    return [f"{7919 * (i + 1):016x}" for i in range(n)]


def batch_of(*pieces: list[tuple[int, ...]], programs: tuple[int, ...] = (0, 30, DRUMS)) -> NoteBatch:
    return NoteBatch.joined([make_score(rows, programs=programs).notes for rows in pieces])


TUNE = [(0, 200, 60, 80), (250, 200, 64, 80), (500, 300, 67, 80)]


def rows_of(augment: AugmentConfig, batch: NoteBatch, tokenizer: Any = TOKENIZER) -> tuple[list[dict[str, Any]], Any]:
    pieces = names(batch.n_pieces)
    rows = encode_variants(tokenizer, augment, batch, pieces)
    return rows.table(pieces).to_pylist(), rows.counts


@pytest.mark.parametrize(("name", "n_variants"), [("none", 1), ("oore", 25), ("maestro", 35)])
def test_published_augmentations(name: str, n_variants: int) -> None:
    assert len(plan_variants(augmentation(name), names(1))) == n_variants
    assert ITSELF in plan_variants(augmentation(name), names(1))


def test_an_unknown_augmentation_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'twelvefold'; known: none, oore, maestro, hourglass"):
        augmentation("twelvefold")


def test_draws_change_each_thing_as_often_as_stated() -> None:
    pieces = names(4000)
    drawn = plan_variants(replace(AUGMENTATIONS["hourglass"], n_sampled=1), pieces)
    moved = sum(mask.sum() for variant, mask in drawn.items() if variant.transposition)
    louder = sum(mask.sum() for variant, mask in drawn.items() if variant.velocity_shift)
    assert moved / 4000 == pytest.approx(0.1 * 24 / 25, abs=0.02)  # no change is among the draws as well
    assert louder / 4000 == pytest.approx(0.1 * 8 / 9, abs=0.02)
    assert {variant.transposition for variant in drawn} == set(range(-12, 13))
    assert drawn[ITSELF].all()


def test_draws_depend_on_the_piece_and_not_on_its_neighbours() -> None:
    config = AugmentConfig(n_sampled=3, velocity_shifts=(-9, 0, 9))
    pieces = names(40)
    together = plan_variants(config, pieces)
    for index, piece in enumerate(pieces):
        alone = plan_variants(config, [piece])
        assert set(alone) == {variant for variant, mask in together.items() if mask[index]}
        assert 1 <= len(alone) <= 4
    assert plan_variants(replace(config, seed=1), pieces).keys() != together.keys()


def test_every_row_is_the_encoding_of_its_changed_notes() -> None:
    batch = batch_of(TUNE, [(10, 90, 30, 5), (10, 90, 100, 127)])
    config = AugmentConfig(transpositions=(-5, 0, 2), stretches=(0.5, 1.0, 2.0), velocity_shifts=(-20, 0, 64))
    found, counts = rows_of(config, batch)
    assert len(found) == counts.n_rows == 2 * 27
    for row in found:
        piece = batch.take(np.array([names(2).index(row["piece"])]))
        changed, _ = shift_velocity(stretch_time(piece, row["stretch"]), row["velocity_shift"])
        expected = TOKENIZER.encode(transpose(changed, row["transposition"])[0])
        assert row["tokens"] == expected.ids.tolist()
        assert (row["n_tokens"], row["n_notes"]) == (len(expected.ids), expected.n_notes[0])
        assert row["seconds"] == pytest.approx(expected.seconds[0])
    assert counts.velocities_clipped == 9 + 9 + 27  # of 5 made softer, 127 and three times 80 made louder
    keys = [(row["piece"], row["stretch"], row["velocity_shift"], row["transposition"]) for row in found]
    assert keys == sorted(keys, key=lambda key: (names(2).index(key[0]), *key[1:]))
    assert len(set(keys)) == len(keys)


def test_the_table_is_as_the_schema_says() -> None:
    pieces = names(2)
    rows = encode_variants(TOKENIZER, AugmentConfig(), batch_of(TUNE, TUNE[:1]), pieces)
    assert rows.table(pieces).schema == TOKEN_SCHEMA
    assert rows.counts.n_tokens == pa.compute.sum(rows.table(pieces)["n_tokens"]).as_py()


def test_variants_that_leave_the_range_are_left_out_and_counted() -> None:
    batch = batch_of(TUNE, [(0, 100, 126, 80), (200, 100, 60, 80)])
    config = AugmentConfig(transpositions=(-1, 0, 1, 2), stretches=(1.0,))
    found, counts = rows_of(config, batch)
    assert Counter(row["piece"] for row in found) == {names(2)[0]: 4, names(2)[1]: 3}
    assert (counts.variants_out_of_range, counts.notes_out_of_range) == (1, 0)


def test_notes_that_leave_the_range_are_left_out_and_counted() -> None:
    batch = batch_of(TUNE, [(0, 100, 126, 80), (200, 100, 60, 80)])
    config = AugmentConfig(transpositions=(0, 2), stretches=(1.0,), out_of_range="leave_notes_out")
    found, counts = rows_of(config, batch)
    assert len(found) == 4
    assert (counts.variants_out_of_range, counts.notes_out_of_range) == (0, 1)
    assert [row["n_notes"] for row in found if row["piece"] == names(2)[1]] == [2, 1]


def test_flipped_rows_are_the_encoding_of_the_mirrored_notes() -> None:
    band = [(0, 50, 38, 90, 2), (0, 400, 60, 90, 0), (0, 400, 64, 80, 0), (0, 300, 64, 70, 1)]
    tokenizer = OoreTokenizer(OoreConfig(drums="keep"))
    config = replace(PLAIN, transpositions=(0, 3), flip=True)
    found, counts = rows_of(config, batch_of(TUNE, band, band[:1]), tokenizer)
    assert [(row["transposition"], row["is_flipped"]) for row in found][:4] == [
        (0, False), (0, True), (3, False), (3, True),
    ]  # fmt: skip
    assert counts.variants_unchanged == 3  # of the drums
    for row in found:
        rows = (TUNE, band, band[:1])[names(3).index(row["piece"])]
        mirrored = [(*note[:2], 127 - note[2] + row["transposition"], *note[3:]) for note in rows if note[-1] != 2]
        drums = [note for note in rows if note[-1] == 2]
        if row["is_flipped"]:
            expected = tokenizer.encode(batch_of([*mirrored, *drums]))
            assert row["tokens"] == expected.ids.tolist()
    assert config.flip
    assert rows_of(PLAIN, batch_of(TUNE))[0][0].keys() == set(TOKEN_SCHEMA.names)


def test_flips_that_leave_the_range_of_the_encoding_are_left_out_and_counted() -> None:
    batch = batch_of(TUNE, [(0, 100, 107, 80), (200, 100, 60, 80)])  # remi has 21 to 109, and 127 - 107 = 20
    found, counts = rows_of(replace(PLAIN, flip=True), batch, RemiTokenizer())
    assert [row["is_flipped"] for row in found] == [False, True, False]
    assert (counts.variants_out_of_range, counts.notes_out_of_range) == (1, 0)
    config = replace(PLAIN, flip=True, out_of_range="leave_notes_out")
    found, counts = rows_of(config, batch, RemiTokenizer())
    assert [row["n_notes"] for row in found] == [3, 3, 2, 1]
    assert (counts.variants_out_of_range, counts.notes_out_of_range) == (0, 1)


def test_half_of_the_drawn_variants_are_flipped_and_the_others_as_before() -> None:
    pieces = names(2000)
    config = replace(AUGMENTATIONS["hourglass"], n_sampled=1, change_probability=1.0)
    plain, drawn = (plan_variants(replace(config, flip=flip), pieces) for flip in (False, True))
    flipped = sum(mask.sum() for variant, mask in drawn.items() if variant.is_flipped)
    assert flipped / 2000 == pytest.approx(0.5, abs=0.04)
    assert not any(variant.is_flipped for variant in plain)
    upright = {replace(variant, is_flipped=False) for variant in drawn}
    assert upright <= plain.keys() | {ITSELF}


def test_drums_have_no_transpositions() -> None:
    drums, band = [(0, 50, 38, 90, 2), (100, 50, 36, 90, 2)], [(0, 50, 38, 90, 2), (0, 400, 60, 90, 0)]
    found, counts = rows_of(
        AugmentConfig(stretches=(1.0,)), batch_of(drums, band), OoreTokenizer(OoreConfig(drums="keep"))
    )
    assert counts.variants_unchanged == 4
    assert [row["transposition"] for row in found if row["piece"] == names(2)[0]] == [0]
    moved = [row["tokens"] for row in found if row["piece"] == names(2)[1]]
    assert len(moved) == 5
    assert all(TOKENIZER.token_id("note_on_38") in tokens for tokens in moved)
    assert [TOKENIZER.token_id(f"note_on_{58 + k}") in tokens for k, tokens in enumerate(moved)] == [True] * 5


def test_a_change_that_the_encoding_cannot_tell_is_left_out_and_counted() -> None:
    found, counts = rows_of(AugmentConfig(transpositions=(0,), stretches=(1.0, 1.0001)), batch_of(TUNE))
    assert len(found) == 1
    assert counts.variants_unchanged == 1
    assert found[0]["stretch"] == 1.0


def test_a_piece_without_notes_has_no_row() -> None:
    found, counts = rows_of(AugmentConfig(), batch_of(TUNE, []))
    assert {row["piece"] for row in found} == {names(2)[0]}
    assert (counts.n_pieces, counts.pieces_without_notes) == (2, 1)


ROW = st.tuples(st.integers(0, 400), st.integers(1, 200), st.integers(40, 80), st.integers(1, 127), st.integers(0, 2))


@examples(60)
@given(
    st.lists(st.lists(ROW, max_size=12), min_size=1, max_size=4), st.floats(0, 1), st.floats(0, 1), st.integers(0, 99)
)
def test_swapped_and_dropped_parts(pieces: list[Any], swap: float, drop: float, seed: int) -> None:
    batch = batch_of(*pieces, programs=(0, 30, DRUMS))
    config = replace(PLAIN, swap_probability=swap, drop_probability=drop, seed=seed, velocity_shifts=(0, 1))
    variant = Variant(velocity_shift=1, redraws_parts=True)
    changed, _ = change_notes(config, batch, names(batch.n_pieces), variant)
    again, _ = change_notes(config, batch, names(batch.n_pieces), variant)
    for index in range(batch.n_pieces):
        before, after = batch.pieces(index, index + 1), changed.pieces(index, index + 1)
        assert after.n_notes > 0 or before.n_notes == 0
        stays = np.isin(before.track, after.track)
        for name in ("pitch", "onset", "end_seconds", "track", "is_drum"):
            assert np.array_equal(getattr(before, name)[stays], getattr(after, name))
        assert np.array_equal(before.program[stays] // 8, after.program // 8)
        assert np.array_equal(before.program[stays][after.is_drum], after.program[after.is_drum])
        for part in np.unique(after.track):
            assert len(np.unique(after.program[after.track == part])) == 1
    assert np.array_equal(changed.program, again.program)
    assert np.array_equal(changed.offsets, again.offsets)


def test_certain_swaps_and_drops_happen() -> None:
    batch = batch_of([(0, 50, 60, 90, 0), (0, 50, 64, 90, 1), (9, 50, 38, 90, 2)])
    variant = Variant(velocity_shift=1, redraws_parts=True)
    swapped, _ = change_notes(replace(PLAIN, swap_probability=1.0), batch, names(1), variant)
    assert all(swapped.program[~batch.is_drum] != batch.program[~batch.is_drum])
    dropped, _ = change_notes(replace(PLAIN, drop_probability=1.0), batch, names(1), variant)
    assert dropped.n_notes == 1


def test_the_piece_itself_is_never_redrawn() -> None:
    plan = plan_variants(replace(PLAIN, velocity_shifts=(0, 4), drop_probability=0.5), names(1))
    assert list(plan) == [ITSELF, Variant(velocity_shift=4, redraws_parts=True)]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"velocity_shifts": ()}, "velocity_shifts is empty"),
        ({"velocity_shifts": (65,)}, "velocity_shifts: 65 is above 64"),
        ({"n_sampled": -1}, "n_sampled=-1 is below 0"),
        ({"drop_probability": 1.5}, "drop_probability=1.5 is above 1"),
        ({"stretches": (1.0, 1.0)}, "names a value twice"),
    ],
)
def test_bad_settings_are_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**setting)


def test_taking_pieces_is_laying_them_end_to_end() -> None:
    batch = batch_of(TUNE, [], TUNE[:2], TUNE[1:])
    for places in itertools.permutations(range(4), 2):
        taken = batch.take(np.array(places))
        for index, place in enumerate(places):
            for name in ("pitch", "onset", "tempo_tick", "ticks_per_quarter"):
                ours, theirs = taken.pieces(index, index + 1), batch.pieces(place, place + 1)
                assert np.array_equal(getattr(ours, name), getattr(theirs, name))
