"""Wishes as biases: which ids they touch, what they make of samples, and which controls an encoding cannot hear."""

from typing import Any

import numpy as np
import pytest

from models.config import SamplingConfig
from tasks.config.generation import GenerateConfig
from tasks.errors import ConfigError
from tasks.music.midi.read_midi import read_midi
from tasks.music.tokenizers.mmm.tokenizer import MmmTokenizer
from tasks.music.tokenizers.mmm.vocabulary import MmmConfig
from tasks.music.tokenizers.oore import OoreTokenizer
from tasks.music.tokenizers.registry import build_tokenizer, default_config
from tasks.sampling.constraints import UNWANTED, scale_of, token_bias
from tests.studio import Studio

pytestmark = pytest.mark.slow  # seconds a test; see `make check`


def bias_of(encoding: str, **controls: Any) -> dict[str, float]:
    tokenizer = build_tokenizer(default_config(encoding))
    bias = token_bias(tokenizer, GenerateConfig(**controls))
    assert bias is not None
    return {tokenizer.token_name(token): float(bias[token]) for token in range(tokenizer.vocab_size)}


@pytest.mark.parametrize(
    ("key", "pitch_classes"),
    [
        ("C", [0, 2, 4, 5, 7, 9, 11]),
        ("a minor", [0, 2, 4, 5, 7, 8, 9, 11]),
        ("Am", [0, 2, 4, 5, 7, 8, 9, 11]),
        ("Bb major", [0, 2, 3, 5, 7, 9, 10]),
        ("f# minor", [1, 2, 4, 5, 6, 8, 9, 11]),
        ("Cb", [1, 3, 4, 6, 8, 10, 11]),
        ("EB", [0, 2, 3, 5, 7, 8, 10]),
    ],
)
def test_keys_have_their_scales(key: str, pitch_classes: list[int]) -> None:
    assert scale_of(key) == pitch_classes


def test_a_key_binds_notes_that_begin_with_a_tie() -> None:
    tokenizer = MmmTokenizer(MmmConfig(vocabulary_from="all", across_bars="tie"))
    bias = token_bias(tokenizer, GenerateConfig(key="C"))
    assert bias is not None
    names = ("NOTE_ON=60", "NOTE_ON=61", "TIE=60", "TIE=61", "NOTE_OFF=61")
    assert [bias[tokenizer.token_id(name)] for name in names] == [0.0, UNWANTED, 0.0, UNWANTED, 0.0]


@pytest.mark.parametrize("key", ["H", "C##", "Cis", "major", "C lydian"])
def test_what_is_no_key_is_told(key: str) -> None:
    with pytest.raises(ConfigError, match="is no key; write it like C, F# minor or Bb major"):
        scale_of(key)


def test_each_wish_touches_its_own_ids() -> None:
    bias = bias_of("remi", key="C", programs=(0, 24), density=0.5)
    assert bias["Pitch_60"] == 0.5
    assert bias["Pitch_61"] == UNWANTED
    assert (bias["Program_0"], bias["Program_24"], bias["Program_25"]) == (0.0, 0.0, UNWANTED)
    touched = {name.partition("_")[0] for name, added in bias.items() if added}
    assert touched == {"Pitch", "Program"}
    assert {name.rpartition("_")[0] for name, added in bias_of("oore", density=0.5).items() if added} == {
        "set_velocity"
    }


def test_nothing_asked_for_is_no_bias() -> None:
    assert token_bias(OoreTokenizer(), GenerateConfig()) is None


@pytest.mark.parametrize(
    ("encoding", "controls", "said"),
    [
        ("optimus_int", {"tempo": 90.0}, "generate.tempo: encoding optimus_int has no ids that say it"),
        ("oore", {"programs": (1,)}, "generate.programs: encoding oore has no ids that say it"),
        ("oore", {"tempo": 90.0}, "generate.tempo: encoding oore has no ids that say it"),
        ("oore", {"key": "C", "sampling": SamplingConfig(beams=2)}, "but sampling.beams draws none"),
    ],
)
def test_a_wish_that_an_encoding_cannot_hear_is_told(encoding: str, controls: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        bias_of(encoding, **controls)


@pytest.mark.parametrize(
    ("controls", "said"),
    [
        ({"programs": (128,)}, "programs: 128 is above 127"),
        ({"density": float("nan")}, "density=nan is not a finite number"),
    ],
)
def test_impossible_wishes_are_told(controls: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        GenerateConfig(**controls)


def test_pieces_keep_to_their_key(studio: Studio) -> None:
    free, bound = (
        [read_midi(path.read_bytes()).notes.pitch for path in sorted((batch.folder / "pieces").glob("*.mid"))]
        for batch in (studio.compose(seed=6), studio.compose(seed=6, key="D"))
    )
    scale = scale_of("D")
    assert all(np.isin(pitch % 12, scale).all() for pitch in bound)
    assert not all(np.isin(pitch % 12, scale).all() for pitch in free)


def test_density_makes_more_notes(studio: Studio) -> None:
    thin, dense = (studio.compose(seed=7, density=density).manifest["statistics"] for density in (-1.0, 2.0))
    assert dense["notes_per_second"] > thin["notes_per_second"]
