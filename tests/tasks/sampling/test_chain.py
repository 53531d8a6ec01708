"""Chains of windows: whole bars in all tracks, bars carried on, latents along a path or a walk, and refusals."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.config import SamplingConfig, VaeConfig
from models.registry import build_model
from models.vae.latents import slerp
from tasks.checkpoints import LoadedModel
from tasks.config.generation import GenerateConfig
from tasks.errors import ConfigError
from tasks.music.tokenizers.mmm.joining import Track, bar_start_of, piece_of, tracks_of
from tasks.music.tokenizers.mmm.tokenizer import MmmTokenizer, words_in
from tasks.music.tokenizers.mmm.vocabulary import Kind, MmmConfig
from tasks.music.tokenizers.oore import OoreTokenizer
from tasks.sampling import chain
from tasks.sampling.chain import chain_latents, chain_shape, write_chains
from tasks.sampling.latents import (
    FROM_PRIOR,
    LatentPlan,
    LatentSource,
    check_latents,
    latent_of,
    path_rows,
    steps_on_way,
)
from tasks.sampling.sample_ids import WrittenIds
from tests.builders import make_score

pytestmark = pytest.mark.slow

WINDOW = 4
SONGS = [
    [(0, 4, 60), (4, 4, 64), (8, 8, 67), (16, 12, 60), (28, 8, 64), (40, 24, 72)],
    [(0, 16, 67), (16, 16, 64), (32, 8, 60), (40, 8, 64), (48, 16, 72)],
]


def notes_of(song: list[tuple[int, int, int]]) -> Any:
    rows = [(start, length, pitch, 80) for start, length, pitch in song]
    return make_score(rows, ticks_per_quarter=4).notes


def build(window_bars: int = WINDOW, block: int = 256, **encoding: Any) -> LoadedModel:
    config = MmmConfig(across_bars="tie", **encoding)
    tokenizer = MmmTokenizer(config.with_symbols({word for song in SONGS for word in words_in(config, notes_of(song))}))
    torch.manual_seed(0)
    shape = VaeConfig(block=block, d_model=16, n_heads=2, n_layers=1, channels=(12, 8))
    model = build_model(shape, tokenizer.vocab_size, tokenizer.pad_id).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)  # decided opinions
    return LoadedModel(model, tokenizer, {"dataset": {"window_bars": window_bars}}, Path(), "")


LOADED = build()


def plan_of(kind: str, loaded: LoadedModel = LOADED) -> LatentPlan:
    if kind == "prior":
        return FROM_PRIOR
    ids = [tuple(loaded.tokenizer.encode(notes_of(song)).ids.tolist()) for song in SONGS]
    sources = tuple(LatentSource(str(place), "0", some, 0) for place, some in enumerate(ids))
    return LatentPlan(kind, sources if kind == "path" else sources[:1], 2)


def config_of(chain_bars: int, **settings: Any) -> GenerateConfig:
    return GenerateConfig(chain_bars=chain_bars, sampling=SamplingConfig(max_tokens=257), **settings)


def write(
    config: GenerateConfig, plan: LatentPlan, n: int = 2, loaded: LoadedModel = LOADED, first: int = 0
) -> list[WrittenIds]:
    found: list[WrittenIds] = []
    n_counted = [0]

    def count(n_tokens: int) -> None:
        n_counted[0] += n_tokens

    write_chains(loaded, range(first, first + n), [0] * n, plan, config, found.append, count)
    assert n_counted[0] == sum(len(piece.ids) - loaded.model.config.n_given for piece in found)
    return found


def bar_sums(loaded: LoadedModel, tracks: list[Track]) -> Iterator[int]:
    words = loaded.tokenizer.words
    for track in tracks:
        for bar in track.bars:
            yield int(sum(words.value[token] for token in bar if words.kind[token] == Kind.TIME_DELTA))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n_bars", "hop", "kind"),
    [(5, 0, "prior"), (8, 2, "prompt"), (9, 1, "path"), (13, 4, "path"), (17, 3, "prior"), (6, 2, "path")],
)
def test_a_chain_is_a_whole_piece_of_so_many_bars(n_bars: int, hop: int, kind: str) -> None:
    words, grammar = LOADED.tokenizer.words, LOADED.tokenizer.grammar
    for piece in write(config_of(n_bars, chain_hop_bars=hop), plan_of(kind)):
        tracks = tracks_of(piece.ids, words)
        assert grammar.first_violation(piece.ids) is None
        assert piece_of(tracks, words).tolist() == piece.ids.tolist()
        assert tracks
        assert {len(track.bars) for track in tracks} == {n_bars}
        assert max(bar_sums(LOADED, tracks)) <= 16
        score = LOADED.tokenizer.decode(piece.ids)
        assert len(score.notes.pitch)
        ends = (score.notes.onset + score.notes.duration) * 4 // score.ticks_per_quarter
        assert ends.max() <= 16 * n_bars  # none hangs beyond the last bar line


@pytest.mark.slow
@pytest.mark.parametrize("hop", [1, 2, 4])
def test_a_window_begins_with_bars_of_the_one_before(hop: int) -> None:
    words = LOADED.tokenizer.words
    (piece,) = write(config_of(9, chain_hop_bars=hop), plan_of("path"), n=1)
    assert piece.chain is not None
    windows = [tracks_of(ids, words) for ids in piece.chain["windows"]]
    assert {len(track.bars) for window in windows for track in window} == {WINDOW}
    for before, after in pairwise(windows):
        assert [track.head for track in before] == [track.head for track in after]
        for one, other in zip(before, after, strict=True):
            assert one.bars[hop:] == other.bars[: WINDOW - hop]
    whole = tracks_of(piece.ids, words)
    for place, begin in enumerate([0, *piece.chain["joins"]]):
        at = begin - (WINDOW - hop if place else 0)
        for one, other in zip(windows[place], whole, strict=True):
            assert other.bars[at : at + WINDOW] == one.bars[: len(other.bars) - at]


def test_a_chain_is_the_same_alone_and_among_others() -> None:
    config, plan = config_of(8), plan_of("prompt")
    both, (second,) = write(config, plan), write(config, plan, n=1, first=1)
    assert both[1].ids.tolist() == second.ids.tolist()
    assert both[0].ids.tolist() != both[1].ids.tolist()
    assert write(replace(config, seed=1), plan)[0].ids.tolist() != both[0].ids.tolist()


def test_tracks_and_controls_hold_in_all_windows() -> None:
    (piece,) = write(config_of(8, n_tracks=2), plan_of("prompt"), n=1)
    assert len(tracks_of(piece.ids, LOADED.tokenizer.words)) == 2
    loaded = build(density_bins=3, piece_end=True, style="S")
    (piece,) = write(config_of(6, n_tracks=2), plan_of("path", loaded), n=1, loaded=loaded)
    assert loaded.tokenizer.grammar.first_violation(piece.ids) is None
    with pytest.raises(ConfigError, match="n_tracks=200 outside 1-128"):
        write(config_of(8, n_tracks=200), plan_of("prompt"))


def test_the_decoder_of_the_mode_generation_chains_too() -> None:
    shape = replace(LOADED.model.config, row_mode="generation")  # type: ignore[call-arg]
    model = build_model(shape, LOADED.model.vocab_size, LOADED.model.pad_id).eval()
    model.load_state_dict(LOADED.model.state_dict())
    loaded = replace(LOADED, model=model)
    (piece,) = write(config_of(7), plan_of("path", loaded), n=1, loaded=loaded)
    assert loaded.tokenizer.grammar.first_violation(piece.ids) is None


def test_bars_without_room_are_empty_and_counted() -> None:
    loaded = build(block=48)
    config = replace(config_of(8), sampling=SamplingConfig(max_tokens=40))
    pieces = write(config, plan_of("prompt", loaded), n=4, loaded=loaded)
    assert all(loaded.tokenizer.grammar.first_violation(piece.ids) is None for piece in pieces)
    assert any(piece.chain["n_empty_bars"] for piece in pieces if piece.chain)
    (nothing,) = write(
        replace(config, sampling=SamplingConfig(max_tokens=4)), plan_of("prompt", loaded), n=1, loaded=loaded
    )
    assert [loaded.tokenizer.names[token] for token in nothing.ids] == ["[SOS]", "PIECE_START", "[EOS]"]


@pytest.mark.parametrize(("n_bars", "hop"), [(5, 4), (6, 3), (9, 2)])
def test_empty_bars_beyond_the_end_and_given_ones_are_not_counted(n_bars: int, hop: int) -> None:
    loaded = build(block=64)
    pieces = write(config_of(n_bars, chain_hop_bars=hop), plan_of("prompt", loaded), n=6, loaded=loaded)
    counts = [piece.chain["n_empty_bars"] for piece in pieces if piece.chain]
    empty = [
        sum(len(bar) == 2 for track in tracks_of(piece.ids, loaded.tokenizer.words) for bar in track.bars)
        for piece in pieces
    ]
    assert any(counts)
    assert all(counted <= there for counted, there in zip(counts, empty, strict=True))


def test_bars_have_the_meter_of_the_prompt() -> None:
    loaded = build(meters=True)
    words, tokenizer = loaded.tokenizer.words, loaded.tokenizer
    assert tokenizer.names[bar_start_of((), words)] == "BAR_START=4/4"
    (piece,) = write(config_of(6), plan_of("prompt", loaded), n=1, loaded=loaded)
    starts = {tokenizer.names[bar[0]] for track in tracks_of(piece.ids, words) for bar in track.bars}
    assert starts == {"BAR_START=4/4"}


# Latents


def test_a_path_leads_between_two_prompts() -> None:
    with pytest.raises(ConfigError, match=r"leads from one prompt to another; --prompt and prompt_to give 1 prompt$"):
        check_latents(LOADED.model, GenerateConfig(latents="path", prompt="a.mid"), 1)


def test_the_latents_of_a_path_go_from_end_to_end() -> None:
    plan = plan_of("path")
    latents = chain_latents(LOADED, plan, config_of(8), 4, 0, 0)
    ends = [latent_of(LOADED.model, source.ids) for source in plan.sources]  # type: ignore[arg-type]
    assert torch.equal(latents[0], ends[0])
    assert torch.equal(latents[3], ends[1])
    torch.testing.assert_close(latents[1], slerp(*ends, 1 / 3))


def test_a_window_has_the_latent_of_the_bars_it_is_given_and_of_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, words, real = plan_of("path"), LOADED.tokenizer.words, chain._write_window
    drawn: list[tuple[torch.Tensor, np.ndarray]] = []

    def spy(loaded: LoadedModel, latent: torch.Tensor, *rest: Any) -> tuple[np.ndarray, np.ndarray]:
        ids, entropies = real(loaded, latent, *rest)
        drawn.append((latent, ids))
        return ids, entropies

    monkeypatch.setattr(chain, "_write_window", spy)
    path = chain_latents(LOADED, plan, config_of(6), 2, 0, 0)
    write(config_of(6), plan, n=1)
    (first, before), (of_draft, draft), (second, _) = drawn
    assert torch.equal(torch.stack([first, of_draft]), path)
    both = [
        Track(old.head, old.bars[2:] + new.bars[2:])
        for old, new in zip(tracks_of(before, words), tracks_of(draft, words), strict=True)
    ]
    torch.testing.assert_close(second, latent_of(LOADED.model, piece_of(both, words).tolist()))  # type: ignore[arg-type]
    drawn.clear()
    write(config_of(8, chain_hop_bars=4), plan, n=1)
    assert torch.equal(torch.stack([latent for latent, _ in drawn]), path)


@pytest.mark.parametrize("kind", ["prior", "prompt"])
def test_a_walk_goes_by_its_step(kind: str) -> None:
    plan, model = plan_of(kind), LOADED.model
    latents = chain_latents(LOADED, plan, config_of(8), 3, 5, 5)
    drawn = model.prior_latents(0, [5, 5 + (1 << 44), 5 + (2 << 44)])  # type: ignore[union-attr]
    begin = drawn[0] if kind == "prior" else latent_of(model, plan.sources[0].ids)  # type: ignore[arg-type]
    torch.testing.assert_close(latents[0], begin)
    torch.testing.assert_close(latents[1], slerp(begin, drawn[1], 0.2))
    torch.testing.assert_close(latents[2], slerp(latents[1], drawn[2], 0.2))
    still = chain_latents(LOADED, plan, config_of(8, chain_step=0.0), 3, 5, 5)
    torch.testing.assert_close(still, begin.expand(3, *begin.shape))


def test_distances_along_a_path_are_monotone_in_the_latents() -> None:
    plan = plan_of("path")
    scores = [LOADED.tokenizer.decode(np.array(source.ids)) for source in plan.sources]
    shares = [0.0, 0.25, 0.5, 1.0]
    rows = path_rows(LOADED, plan.sources, shares, [scores[0], scores[0], scores[1], scores[1]])
    assert [row["share"] for row in rows] == shares
    assert (rows[0]["latent_to_start"], rows[0]["latent_to_end"]) == (0, 1)
    assert (rows[-1]["latent_to_start"], rows[-1]["latent_to_end"]) == (1, 0)
    assert (rows[0]["notes_to_start"], rows[-1]["notes_to_end"]) == (0, 0)
    for measure in ("latent", "notes"):
        assert steps_on_way(rows, measure) == (3, 3)
        assert steps_on_way(rows[::-1], measure)[0] < 3
    assert path_rows(LOADED, (plan.sources[0],) * 2, [0.5], [scores[0]])[0]["latent_to_start"] == 0


# Refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chain_bars": -1}, "chain_bars=-1 is below 0"),
        ({"chain_bars": 10_001}, "chain_bars=10001 is above 10000"),
        ({"chain_hop_bars": 2}, "chain_hop_bars=2 is of a chain, but chain_bars=0"),
        ({"chain_bars": 8, "chain_hop_bars": -1}, "chain_hop_bars=-1 is below 0"),
        ({"chain_bars": 8, "chain_step": 1.5}, "chain_step=1.5 is above 1"),
        ({"chain_bars": 8, "max_bars": 4}, "max_bars and chain_bars=8 both say how long a piece is"),
        ({"chain_bars": 8, "prompt": "a.mid"}, "chain_bars=8 continues no prompt; set latents=prompt"),
        ({"chain_bars": 8, "sampling": SamplingConfig(beams=2)}, "sampling.beams and chain_bars=8 do not go together"),
        (
            {"chain_bars": 8, "prompt": "a.mid", "infill_bars": (1, 2)},
            "infill_bars and chain_bars=8 do not go together",
        ),
    ],
)
def test_settings_that_make_no_chain_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GenerateConfig(**settings)


def test_chains_that_a_model_cannot_write_are_refused() -> None:
    others = replace(LOADED, state={"dataset": {}}), replace(LOADED, tokenizer=OoreTokenizer())
    for loaded, config, message in (
        (LOADED, config_of(1), "chain_bars=1 is no more than one window of 4 bars; leave it at 0"),
        (LOADED, config_of(4), "chain_bars=4 is no more than one window of 4 bars; leave it at 0"),
        (build(window_bars=1), config_of(1), "chain_bars=1 is no more than one window of 1 bar; leave it at 0"),
        (LOADED, config_of(8, chain_hop_bars=5), "chain_hop_bars=5 is above 4, the bars of a window"),
        (others[0], config_of(8), "chain_bars=8: the model was trained on whole pieces, not on windows of bars"),
        (others[1], config_of(8), "chain_bars=8: windows are joined in encoding mmm, but this model's is oore"),
    ):
        with pytest.raises(ConfigError, match=message):
            chain_shape(loaded, config)
    shape = chain_shape(LOADED, config_of(9))
    assert (shape.n_windows, shape.joins) == (4, [4, 6, 8])
    assert chain_shape(build(window_bars=1), config_of(3)).n_windows == 3
