"""Cuts tear no note in any encoding, contexts keep their end and their place in the grammar."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.music.edits import added_notes
from tasks.music.score import Score
from tasks.music.tokenizers.base import Tokenizer
from tasks.music.tokenizers.mmm.vocabulary import MmmConfig
from tasks.music.tokenizers.note_boundaries import boundary_places, random_ids, without_ending
from tasks.music.tokenizers.oore import OoreConfig, OoreTokenizer
from tasks.music.tokenizers.optimus.int_tokenizer import OptimusIntConfig
from tasks.music.tokenizers.optimus.text_tokenizer import OptimusTxtConfig
from tasks.music.tokenizers.registry import build_tokenizer, needs_vocabulary, symbols_in
from tasks.music.tokenizers.remi.vocabulary import RemiConfig
from tests.budget import examples
from tests.builders import DRUMS, make_score, note_rows

BATCH = make_score(
    [(240 * i, 100 + 60 * (i % 7), 40 + 5 * i % 50, 80, i % 3) for i in range(64)], programs=(0, 40, DRUMS)
).notes


def built(config: Any) -> Tokenizer:
    return build_tokenizer(config.with_symbols(symbols_in(config, BATCH)) if needs_vocabulary(config) else config)


TOKENIZERS = [
    built(config)
    for config in (
        OoreConfig(), RemiConfig(), OptimusIntConfig(instruments=True), OptimusTxtConfig(channels=True),
        OptimusTxtConfig(channels=True, chordify=True, header="none"), MmmConfig(piece_end=True),
    )
]  # fmt: skip
NAMES = [f"{tokenizer.name}-{place}" for place, tokenizer in enumerate(TOKENIZERS)]


def sample_ids(tokenizer: Tokenizer, seed: int, n_ids: int = 200) -> list[int]:
    return random_ids(tokenizer.grammar, np.random.default_rng(seed), n_ids, tokenizer.end_id, tokenizer.pad_id)


def notes_of(score: Score) -> Counter[tuple[int, ...]]:
    return Counter(note_rows(score))


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=NAMES)
@pytest.mark.parametrize("source", ["music", "walk"])
def test_a_cut_at_a_boundary_tears_no_note(tokenizer: Tokenizer, source: str) -> None:
    ids = tokenizer.encode(BATCH).ids.tolist() if source == "music" else sample_ids(tokenizer, 3)
    places = boundary_places(tokenizer.grammar, ids, tokenizer.end_id).tolist()
    assert len(places) > 2
    whole = notes_of(tokenizer.decode(np.array(ids)))
    for place in places:
        assert notes_of(tokenizer.decode(np.array(ids[:place]))) <= whole


def test_boundaries_typed_out() -> None:
    tokenizer = OoreTokenizer()
    names = ["set_velocity_20", "note_on_60", "time_shift_9", "set_velocity_20", "note_on_64", "note_off_60",
             "time_shift_3", "note_off_64", "time_shift_3"]  # fmt: skip
    ids = [tokenizer.start_id, *map(tokenizer.token_id, names), tokenizer.end_id]
    assert boundary_places(tokenizer.grammar, ids, tokenizer.end_id).tolist() == [1, 9, 10]
    with pytest.raises(ValueError, match="forbids id 60 at position 1"):
        boundary_places(tokenizer.grammar, [tokenizer.start_id, 60], tokenizer.end_id)


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=NAMES)
@examples(10)
@given(seed=st.integers(0, 2**32), n_ids=st.integers(1, 200))
def test_a_random_walk_is_allowed_and_ends_between_notes(tokenizer: Tokenizer, seed: int, n_ids: int) -> None:
    ids = sample_ids(tokenizer, seed, n_ids)
    assert len(ids) >= n_ids
    assert tokenizer.end_id not in ids
    assert boundary_places(tokenizer.grammar, ids, tokenizer.end_id)[-1] == len(ids)
    opened = without_ending(tokenizer.grammar, ids, tokenizer.end_id, tokenizer.pad_id)
    assert opened == ids


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=NAMES)
def test_a_piece_without_its_ending_can_go_on(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(BATCH).ids.tolist()
    opened = without_ending(tokenizer.grammar, ids, tokenizer.end_id, tokenizer.pad_id)
    assert ids[: len(opened)] == opened
    assert len(ids) - len(opened) == (2 if tokenizer.name == "mmm" else 1)
    assert notes_of(tokenizer.decode(np.array(opened))) == notes_of(tokenizer.decode(np.array(ids)))


def test_added_notes_begin_at_once_under_their_tempo_and_meter() -> None:
    settings = {"tempos": [(0, 500_000), (1000, 250_000), (3000, 400_000)], "time_signatures": [(0, 3, 4)]}
    before = make_score([(0, 10, 60, 80), (5, 10, 60, 80)], **settings)
    after = make_score(
        [(0, 10, 60, 80), (5, 10, 60, 80), (0, 10, 60, 80), (2000, 10, 50, 70), (2500, 5, 52, 70)], **settings
    )
    added = added_notes(before, after)
    assert note_rows(added) == [(0, 10, 60, 80), (2000, 10, 50, 70), (2500, 5, 52, 70)]
    later = added_notes(make_score([(0, 10, 60, 80)] * 2 + [(5, 10, 60, 80)], **settings), after)
    assert note_rows(later) == [(0, 10, 50, 70), (500, 5, 52, 70)]
    assert (later.tempos.tick.tolist(), later.tempos.microseconds_per_quarter.tolist()) == (
        [0, 1000],
        [250_000, 400_000],
    )
    assert later.time_signatures.numerator.tolist() == [3]
    assert note_rows(added_notes(after, after)) == []
