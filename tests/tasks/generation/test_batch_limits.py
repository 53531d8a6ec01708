"""Where pieces end, and what is refused before anything is sampled."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from models.config import SamplingConfig
from tasks.checkpoints import load_model
from tasks.errors import ConfigError
from tasks.generation.prompts import read_prompts
from tasks.generation.summary import batch_card
from tasks.music.midi.read_midi import read_midi
from tasks.storage.home import Home
from tests.studio import SHORT, Setup, config_of, files_of, midi_of, sidecars_of, silent

pytestmark = pytest.mark.slow  # seconds a test; see `make check`


@pytest.mark.parametrize(
    ("limit", "measure"),
    [
        ({"max_notes": 7}, lambda score: len(score.notes.pitch)),
        ({"max_seconds": 2.5}, lambda score: score.notes.end_seconds.max()),
        ({"max_bars": 2}, lambda s: (s.notes.onset + s.notes.duration).max() / (4 * s.ticks_per_quarter)),
    ],
)
def test_pieces_end_at_the_limit(home: Home, setup: Setup, limit: dict[str, float], measure: Any) -> None:
    long = SamplingConfig(max_tokens=200)
    free = [read_midi(midi) for midi in midi_of(silent(home, setup, sampling=long))]
    batch = silent(home, setup, sampling=long, **limit)
    (wanted,) = limit.values()
    n_cut = 0
    for midi, sidecar, whole in zip(midi_of(batch), sidecars_of(batch), free, strict=True):
        score = read_midi(midi)
        assert measure(score) <= wanted
        np.testing.assert_array_equal(score.notes.pitch, whole.notes.pitch[: len(score.notes.pitch)])
        np.testing.assert_array_equal(score.notes.onset, whole.notes.onset[: len(score.notes.onset)])
        assert (sidecar["ended_by"] == "limit") == (len(score.notes.pitch) < len(whole.notes.pitch))
        n_cut += sidecar["ended_by"] == "limit"
    assert n_cut
    assert files_of(silent(home, setup, sampling=long, **limit).folder) == files_of(batch.folder)


@pytest.mark.parametrize("limit", [{"max_bars": 24}, {"max_notes": 900}, {"max_seconds": 300.0}], ids=str)
def test_a_piece_that_the_most_tokens_cut_short_is_flagged(
    home: Home, setup: Setup, limit: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    few = SamplingConfig(max_tokens=80, min_new_tokens=60)
    batch = silent(home, setup, sampling=few, n_pieces=4, **limit)
    sidecars = sidecars_of(batch)
    wanted = {"max_bars": "24 bars", "max_notes": "900 notes", "max_seconds": "300 seconds"}[next(iter(limit))]
    n_cut = sum(sidecar["ended_by"] == "tokens" for sidecar in sidecars)
    assert n_cut
    for sidecar in sidecars:
        is_cut = sidecar["ended_by"] == "tokens"
        assert sidecar["short_of"] == ([wanted] if is_cut else [])
        assert ("cut short" in sidecar["flags"]) == is_cut
        assert (f"cut at 80 tokens: {wanted} are not reached" in sidecar["warnings"]) == is_cut
    said = f"{n_cut} of 4 pieces reached the most tokens, 80, before the {wanted}"
    assert any(line.startswith(said) for line in batch.manifest["flags"])
    assert said in batch.gallery.read_text()
    assert said in caplog.text
    assert said in batch_card(batch)
    # Where no length is asked for, or it is reached, the most tokens are what a piece may have.
    for settings in ({"sampling": few}, {"sampling": replace(few, max_tokens=200), "max_notes": 2}):
        plain = silent(home, setup, n_pieces=4, **settings)
        assert plain.manifest["n_cut_short"] == 0
        assert not any("most tokens" in line for line in plain.manifest["flags"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sampling": replace(SHORT, beams=8, max_tokens=20), "prompt_tokens": 19}, None),
        ({"sampling": replace(SHORT, context_tokens=16, kept_tokens=15)}, None),
        ({"n_tracks": 2}, "n_tracks=2: encoding oore does not write track by track"),
        ({"latents": "prompt"}, "a 'decoder' model has no latents"),
    ],
    ids=str,
)
def test_what_a_model_cannot_do_is_told_before_it_is_sampled(
    setup: Setup, changes: dict[str, Any], said: str | None
) -> None:
    loaded, config = load_model(setup.checkpoint), config_of(prompt=str(setup.prompts), **changes)
    if said is None:
        assert len(read_prompts(loaded, config)) == 2
        return
    with pytest.raises(ConfigError, match=said):
        read_prompts(loaded, config)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"best_of": 2, "sampling": replace(SHORT, greedy=True)}, "beams and greedy make them all the same"),
        ({"max_bars": 2, "sampling": replace(SHORT, beams=2), "n_pieces": 2}, "max_bars: beam search ends at"),
    ],
)
def test_wishes_that_would_have_no_effect_are_told(setup: Setup, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_prompts(load_model(setup.checkpoint), config_of(**changes))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"n_pieces": 10_001}, "n_pieces=10001 is above 10000"),
        ({"prompt_bars": 2, "prompt_notes": 3}, "prompt_notes and prompt_bars both say how much"),
        ({"max_bars": -1}, "max_bars=-1 is below 0"),
        ({"max_seconds": math.inf}, "max_seconds=inf is not a finite number"),
    ],
)
def test_impossible_requests_are_told(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        config_of(**settings)
