"""Bars written anew: all around them stays, attempts differ, the one that leads on best is kept."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.config import SamplingConfig
from tasks.checkpoints import load_model
from tasks.config.generation import GenerateConfig
from tasks.errors import ConfigError
from tasks.generation.prompts import read_prompts
from tasks.music.midi.writer import write_midi
from tasks.music.score import Score
from tests.builders import make_score
from tests.studio import Studio, scores_of, sidecars_of

pytestmark = pytest.mark.slow  # seconds a test; see `make check`

NOTES = [(250 * i, 250, 60 + 7 * i % 12, 80) for i in range(64)]  # eight bars of two seconds


@pytest.fixture
def song(tmp_path: Path) -> Path:
    path = tmp_path / "song.mid"
    path.write_bytes(write_midi(make_score(NOTES)))
    return path


def rows(score: Score, start: float, end: float) -> list[tuple[float, int]]:
    onset = score.notes.onset_seconds
    is_in = (onset >= start - 0.005) & (onset < end - 0.005)
    return [(round(float(a), 2), int(b)) for a, b in zip(onset[is_in], score.notes.pitch[is_in], strict=True)]


@pytest.mark.parametrize(("bars", "start", "end"), [((3, 4), 4.0, 8.0), ((1, 2), 0.0, 4.0), ((7, 7), 12.0, 14.0)])
def test_all_around_the_bars_stays(
    studio: Studio,
    song: Path,
    bars: tuple[int, int],
    start: float,
    end: float,
) -> None:
    batch = studio.compose(seed=1, prompt=str(song), infill_bars=bars, sampling=SamplingConfig(max_tokens=900))
    own = [(a / 1000, pitch) for a, _, pitch, _ in NOTES]
    for score, sidecar in zip(scores_of(batch), sidecars_of(batch), strict=True):
        assert rows(score, 0, start) == [(a, pitch) for a, pitch in own if a < start]
        assert rows(score, end, 99) == [(a, pitch) for a, pitch in own if a >= end]
        (gap,) = sidecar["infill"]["gaps"]
        assert (gap["bars"], gap["start_seconds"], gap["end_seconds"]) == (list(bars), start, end)
        assert sidecar["infill"]["join_nats_per_token"] == gap["join_nats_per_token"] > 0
        crossing = (score.notes.onset_seconds < end - 0.005) & (score.notes.onset_seconds >= start)
        assert (score.notes.end_seconds[crossing] <= end + 0.001).all()
    filled = [rows(score, start, end) for score in scores_of(batch)]
    assert len({tuple(notes) for notes in filled}) == 3
    again = studio.compose(
        seed=1, prompt=str(song), infill_bars=bars, sampling=SamplingConfig(max_tokens=900), batch_size=1
    )
    assert [rows(score, start, end) for score in scores_of(again)] == filled


def test_the_attempt_that_leads_on_best_is_kept(studio: Studio, song: Path) -> None:
    settings = {"prompt": str(song), "infill_bars": (3, 4), "sampling": SamplingConfig(max_tokens=900)}
    batch = studio.compose(seed=2, best_of=4, best_by="join", **settings)
    for sidecar in sidecars_of(batch):
        scores = sidecar["chosen_from"]["scores"]
        assert len(set(scores.values())) > 1
        assert -sidecar["infill"]["join_nats_per_token"] == scores[str(sidecar["attempt"])] == max(scores.values())


@pytest.mark.parametrize(
    ("controls", "said"),
    [
        ({"infill_bars": (2, 1)}, r"infill_bars=\[2, 1\]: the first bar is 1, and the last no earlier"),
        ({"infill_bars": (0, 1)}, r"infill_bars=\[0, 1\]: the first bar is 1"),
        ({"infill_bars": (1, 1), "max_bars": 4}, r"max_bars and infill_bars=\[1, 1\] both say where a piece is cut"),
        ({"best_by": "join"}, "best_by='join' is of bars written anew, but neither infill_bars nor variation is set"),
    ],
)
def test_impossible_bars_are_told(controls: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        GenerateConfig(prompt="x.mid", **controls)
    if "infill_bars" in controls:
        with pytest.raises(ValueError, match="bar"):
            GenerateConfig(infill_bars=(1, 1))


@pytest.mark.parametrize(
    ("controls", "said"),
    [
        (
            {"infill_bars": (7, 8)},
            r"song\.mid: infill_bars=\[7, 8\], but it has 8 bars, and one must follow; prompt_bars=6 goes on freely",
        ),
        ({"infill_bars": (50, 51)}, r"infill_bars=\[50, 51\], but it has 8 bars, and one must follow$"),
        ({"infill_bars": (2, 3), "sampling": SamplingConfig(beams=2)}, "bars are filled by decoders .* and by drawing"),
    ],
)
def test_bars_that_cannot_be_filled_are_told(
    studio: Studio,
    song: Path,
    controls: dict[str, Any],
    said: str,
) -> None:
    with pytest.raises(ConfigError, match=said):
        read_prompts(load_model(studio.checkpoint), GenerateConfig(n_pieces=2, prompt=str(song), **controls))


def test_a_piece_that_begins_late_keeps_its_bars(studio: Studio, tmp_path: Path) -> None:
    late = [(onset + 4000, duration, pitch, velocity) for onset, duration, pitch, velocity in NOTES]
    path = tmp_path / "late.mid"
    path.write_bytes(write_midi(make_score(late)))
    (prompt,) = read_prompts(load_model(studio.checkpoint), GenerateConfig(prompt=str(path), infill_bars=(5, 6)))
    assert prompt.canvas is not None
    (span,) = prompt.canvas.spans(GenerateConfig(prompt=str(path), infill_bars=(5, 6)), 0)
    moved = float(prompt.canvas.whole.notes.onset_seconds.min()) - 4.0
    np.testing.assert_allclose([span.start_seconds, span.end_seconds], [8.0 + moved, 12.0 + moved], atol=0.01)
    assert (prompt.canvas.first_bar, prompt.canvas.n_bars) == (3, 8)
