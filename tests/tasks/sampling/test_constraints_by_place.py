"""Wishes in encodings whose ids mean something by their place in a note: all that is drawn keeps to them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.config import SamplingConfig
from models.registry import build_model
from models.sampling.sliding_context import SlidingContext
from tasks.checkpoints import LoadedModel
from tasks.config.generation import GenerateConfig
from tasks.errors import ConfigError
from tasks.generation.infill import ids_of
from tasks.generation.prompts import read_prompts
from tasks.music.midi.writer import write_midi
from tasks.music.score import Score
from tasks.music.tokenizers.note_boundaries import random_ids, walk
from tasks.music.tokenizers.optimus.int_tokenizer import OptimusIntConfig, OptimusIntTokenizer
from tasks.music.tokenizers.optimus.text_tokenizer import OptimusTxtConfig, OptimusTxtTokenizer
from tasks.sampling.constraints import BoundTables, bind, scale_of, token_bias
from tasks.sampling.latents import FROM_PRIOR
from tasks.sampling.sample_ids import WrittenIds, grammar_tables, write_ids
from tests.budget import examples
from tests.builders import DRUMS, make_score
from tests.samples import SMALL_MODEL

pytestmark = pytest.mark.slow  # seconds a test; see `make check`

Tokenizer = OptimusIntTokenizer | OptimusTxtTokenizer
BAND = make_score([(100 * i, 90, 40 + i, 70, i % 3) for i in range(40)], programs=(0, 32, DRUMS))  # every pitch class


def txt(**settings: Any) -> OptimusTxtTokenizer:
    config = OptimusTxtConfig(max_milliseconds=3000, **settings)
    values = (chr(value + 33) for value in range(301))
    return OptimusTxtTokenizer(config.with_symbols(values))


TOKENIZERS = {
    "int": OptimusIntTokenizer(),
    "int split": OptimusIntTokenizer(OptimusIntConfig(long_notes="split")),
    "int band": OptimusIntTokenizer(OptimusIntConfig(instruments=True)),
    "txt": txt(),
    "txt chords": txt(chordify=True, velocities=True),
    "txt band": txt(channels=True, velocities=True, header="none"),
    "txt melody": txt(channels=True, melody_conditioned=True),
}
EVERY = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS.keys())
BANDS = pytest.mark.parametrize(
    "tokenizer", [TOKENIZERS[name] for name in ("int band", "txt band", "txt melody")], ids=lambda t: t.name
)


def untrained(tokenizer: Tokenizer) -> LoadedModel:
    torch.manual_seed(0)
    model = build_model(SMALL_MODEL, tokenizer.vocab_size, tokenizer.pad_id).eval()
    return LoadedModel(model, tokenizer, {}, Path(), "")


def draw(tokenizer: Tokenizer, prompt: tuple[int, ...] = (), batch_size: int = 4, **controls: Any) -> list[np.ndarray]:
    """Return the ids of four pieces."""
    config = GenerateConfig(sampling=SamplingConfig(max_tokens=500), batch_size=batch_size, **controls)
    found = dict[int, np.ndarray]()

    def keep(piece: WrittenIds) -> None:
        found[piece.place] = piece.ids

    prompts = [prompt or (tokenizer.start_id,)] * 4
    write_ids(untrained(tokenizer), prompts, range(4), [0] * 4, FROM_PRIOR, config, keep)
    return [found[place] for place in range(4)]


def notes_drawn(tokenizer: Tokenizer, **controls: Any) -> list[Score]:
    scores = [tokenizer.decode(ids) for ids in draw(tokenizer, **controls)]
    assert sum(len(score.notes.pitch) for score in scores) > 60
    return scores


@EVERY
def test_all_notes_are_in_the_key(tokenizer: Tokenizer) -> None:
    scale, tells_drums_apart = scale_of("Eb minor"), tokenizer is TOKENIZERS["int band"]
    for score in notes_drawn(tokenizer, key="Eb minor"):
        is_bound = ~(score.notes.is_drum & tells_drums_apart)
        assert np.isin(score.notes.pitch[is_bound] % 12, scale).all()
    free = np.concatenate([score.notes.pitch for score in notes_drawn(tokenizer)])
    assert not np.isin(free % 12, scale).all()


def test_drums_have_no_key_where_the_channel_stands_before_the_pitch() -> None:
    scores = notes_drawn(TOKENIZERS["int band"], key="C", programs=(24,))
    drums = np.concatenate([score.notes.pitch[score.notes.is_drum] for score in scores])
    others = np.concatenate([score.notes.pitch[~score.notes.is_drum] for score in scores])
    assert not np.isin(drums % 12, scale_of("C")).all()
    assert np.isin(others % 12, scale_of("C")).all()


@BANDS
def test_all_notes_are_of_the_programs(tokenizer: Tokenizer) -> None:
    scores = notes_drawn(tokenizer, programs=(24, 40, 99))
    programs = np.concatenate([score.notes.program[~score.notes.is_drum] for score in scores])
    assert set(programs.tolist()) == {24, 40}
    assert any(score.notes.is_drum.any() for score in scores)


@BANDS
def test_programs_that_no_channel_has_are_told(tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match=r"programs=\(5,\): no id of the encoding is that; known: 0, 24, 32, 40, 42"):
        grammar_tables(tokenizer, GenerateConfig(programs=(5,)))


@EVERY
def test_a_prompt_need_not_obey(tokenizer: Tokenizer) -> None:
    prompt = ids_of(tokenizer, BAND)
    assert not np.isin(tokenizer.decode(prompt).notes.pitch % 12, scale_of("C")).all()
    for ids in draw(tokenizer, prompt, key="C"):
        assert tuple(ids[: len(prompt)].tolist()) == prompt
        drawn = tokenizer.decode(ids).notes
        behind = drawn.onset > tokenizer.decode(prompt).notes.onset.max()
        is_bound = behind & ~drawn.is_drum
        assert is_bound.any()
        assert np.isin(drawn.pitch[is_bound] % 12, scale_of("C")).all()


@EVERY
def test_a_context_that_slides_begins_where_it_would(tokenizer: Tokenizer) -> None:
    ids, sliding = ids_of(tokenizer, BAND), SamplingConfig(max_tokens=300, context_tokens=64)
    contexts = [
        SlidingContext.of(sliding, None, grammar_tables(tokenizer, config), tokenizer.end_id)
        for config in (GenerateConfig(), GenerateConfig(key="C"))
    ]
    free, bound = (context.after_prompt(np.array(ids)) for context in contexts)
    assert free == bound
    assert free.index > 0


@EVERY
@examples(10)
@given(seed=st.integers(0, 2**32))
def test_the_bound_grammar_forbids_unwanted_pitches_alone(tokenizer: Tokenizer, seed: int) -> None:
    config = GenerateConfig(key="G")
    bound = bind(tokenizer, tokenizer.grammar, config)
    assert bound is not None
    n_states = len(tokenizer.grammar.next_state_SV)
    ids = random_ids(tokenizer.grammar, np.random.default_rng(seed), 200, tokenizer.end_id, tokenizer.pad_id)
    states, _ = walk(tokenizer.grammar, ids)
    np.testing.assert_array_equal(walk(bound, ids)[0], states)  # the first half is the grammar as it is
    (pitches,) = (where for where in tokenizer.value_states if where.kind == "pitch")
    for state, token in zip(states[:-1].tolist(), ids, strict=True):
        is_out = state in pitches.states and pitches.values[token] % 12 not in scale_of("G")
        assert (bound.next_state_SV[state + n_states, token] < 0) == is_out
    tables = grammar_tables(tokenizer, config)
    assert isinstance(tables.to("cpu"), BoundTables)
    assert tables.follow(ids)[0] == states[-1] + n_states


@pytest.mark.parametrize("name", ["int", "txt", "txt chords"])
def test_density_is_how_many_notes_begin_together(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    shares = []
    for density in (-2.0, 0.0, 4.0):
        onsets = [score.notes.onset for score in notes_drawn(tokenizer, density=density)]
        shares.append(np.mean(np.concatenate([np.diff(some) == 0 for some in onsets])))
    assert shares[0] <= shares[1] < shares[2] - 0.05


@pytest.mark.parametrize(
    ("name", "controls", "said"),
    [
        ("int", {"programs": (0,)}, "generate.programs: encoding optimus_int has no ids that say it"),
        ("txt", {"programs": (0,)}, "generate.programs: encoding optimus_txt has no ids that say it"),
        ("int", {"tempo": 90.0}, "generate.tempo: encoding optimus_int has no ids that say it"),
        ("int band", {"density": 1.0}, "generate.density: encoding optimus_int has no ids that say it"),
        ("int split", {"density": 1.0}, "generate.density: encoding optimus_int has no ids that say it"),
        ("txt band", {"density": 1.0}, "generate.density: encoding optimus_txt has no ids that say it"),
        ("int", {"key": "H"}, "generate.key='H' is no key"),
        ("int", {"key": "C", "sampling": SamplingConfig(beams=2)}, "but sampling.beams draws none"),
    ],
)
def test_what_these_encodings_cannot_hear_is_told(
    name: str, controls: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "band.mid"
    path.write_bytes(write_midi(BAND))
    with pytest.raises(ConfigError, match=said):
        read_prompts(untrained(TOKENIZERS[name]), GenerateConfig(n_pieces=1, prompt=str(path), **controls))


def test_nothing_wished_for_is_no_other_grammar() -> None:
    tokenizer = TOKENIZERS["int"]
    assert bind(tokenizer, tokenizer.grammar, GenerateConfig(density=1.0)) is None
    assert token_bias(tokenizer, GenerateConfig()) is None
    assert not isinstance(grammar_tables(tokenizer, GenerateConfig()), BoundTables)
