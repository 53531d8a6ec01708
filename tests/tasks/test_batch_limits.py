"""Where pieces end, and what is refused before anything is sampled."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from models.config import SamplingConfig
from tasks.checkpoints import load_model
from tasks.errors import ConfigError
from tasks.home import Home
from tasks.music.score import read_midi
from tasks.prompts import read_prompts
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
    assert files_of(silent(home, setup, sampling=long, batch_size=1, **limit).folder) == files_of(batch.folder)


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
        ({"max_bars": -1}, "max_bars=-1 is not a number from 0 on"),
        ({"max_seconds": math.inf}, "max_seconds=inf is not a number from 0 on"),
    ],
)
def test_impossible_requests_are_told(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        config_of(**settings)
