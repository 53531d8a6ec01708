"""Variations: other bars in each piece and the same ones whatever the batch, all others kept note for note."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.config import SamplingConfig
from models.vae.latents import slerp
from tasks.checkpoints import load_model
from tasks.config.generation import GenerateConfig
from tasks.config.presets import build_preset
from tasks.errors import ConfigError
from tasks.generation import rewriting
from tasks.generation.candidates import written_notes
from tasks.generation.generate import Batch, generate_batch, read_request
from tasks.generation.infill import GAP_BARS, Canvas, Gap, Span, draw_gaps, make_canvas
from tasks.generation.prompts import read_prompts
from tasks.music.midi.writer import write_midi
from tasks.music.tokenizers.oore import OoreTokenizer
from tasks.music.tokenizers.optimus.int_tokenizer import OptimusIntTokenizer
from tasks.music.tokenizers.remi.tokenizer import RemiTokenizer
from tasks.sampling.latents import LatentPlan, LatentSource, with_latents
from tasks.storage.home import Home
from tests.builders import DRUMS, make_score
from tests.models.vae.small_vae import build_vae, rows
from tests.samples import short_training, small_corpus
from tests.studio import Studio, files_of, model_of, scores_of, sidecars_of
from tests.tasks.config.test_presets import dataset_of, shortened, trained
from tests.tasks.sampling.test_constraints_by_place import untrained

pytestmark = pytest.mark.slow  # seconds a test; see `make check`

BAR_SECONDS = 2.0
NOTES = [(250 * i, 250, 48 + 7 * i % 24, 80) for i in range(128)]  # sixteen bars of eight notes
Note = tuple[float, int]


@pytest.fixture(scope="module")
def song(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("song") / "song.mid"
    path.write_bytes(write_midi(make_score(NOTES)))
    return path


@pytest.fixture(scope="module")
def half(studio: Studio, song: Path) -> Batch:
    """Half of the bars in four pieces."""
    return vary(studio, song, variation=0.5)


def vary(studio: Studio, song: Path, **settings: Any) -> Batch:
    return studio.compose(**{"n_pieces": 4, "seed": 1, "prompt": str(song)} | settings)


def bars_of(notes: list[Note]) -> dict[int, list[Note]]:
    """Return the notes of each bar, the first bar being 1."""
    bars = {bar: list[Note]() for bar in range(1, 17)}
    for onset, pitch in notes:
        bars[int((onset + 0.005) / BAR_SECONDS) + 1].append((onset, pitch))
    return bars


OWN = bars_of([(onset / 1000, pitch) for onset, _, pitch, _ in NOTES])


def new_bars(spans: list[list[int]]) -> list[int]:
    return [bar for first, last in spans for bar in range(first, last + 1)]


@given(st.integers(2, 400), st.floats(0.001, 1.0), st.integers(0, 2**40), st.integers(0, 9999))
def test_gaps_are_of_a_few_bars_with_others_between(n_bars: int, share: float, seed: int, index: int) -> None:
    gaps = draw_gaps(n_bars, share, seed, index)
    bars = new_bars([list(gap) for gap in gaps])
    assert bars == sorted(set(bars))
    assert 1 <= bars[0] <= bars[-1] < n_bars
    assert len(bars) == min(max(round(share * n_bars), 1), n_bars - 1)
    assert all(last + 1 < first for (_, last), (first, _) in pairwise(gaps))
    lengths = [last - first + 1 for first, last in gaps]
    assert max(lengths) - min(lengths) <= 1
    assert max(lengths) <= GAP_BARS or len(gaps) == n_bars - len(bars)  # a gap before each bar that is kept
    assert draw_gaps(n_bars, share, seed, index) == gaps


def test_gaps_are_anywhere() -> None:
    found = [tuple(draw_gaps(16, 0.5, 3, index)) for index in range(200)]
    assert len(set(found)) == math.comb(8, 2)  # before two of the eight bars that are kept
    assert {bar for gaps in found for bar in new_bars([list(gap) for gap in gaps])} == set(range(1, 16))


def test_all_but_the_new_bars_stays(half: Batch) -> None:
    listed = [piece["new_bars"] for piece in half.manifest["pieces"]]
    assert len({str(spans) for spans in listed}) == 4
    n_changed = 0
    for score, sidecar, spans in zip(scores_of(half), sidecars_of(half), listed, strict=True):
        infill, bars = sidecar["infill"], new_bars(spans)
        assert (infill["bars"], infill["share"], len(bars)) == (spans, 0.5, 8)
        assert [gap["bars"] for gap in infill["gaps"]] == spans
        nats = [gap["join_nats_per_token"] for gap in infill["gaps"]]
        assert infill["join_nats_per_token"] == pytest.approx(np.mean(nats), abs=1e-4)
        onsets, pitches = score.notes.onset_seconds, score.notes.pitch
        made = bars_of([(round(float(a), 2), int(b)) for a, b in zip(onsets, pitches, strict=True)])
        assert {bar: made[bar] for bar in OWN if bar not in bars} == {bar: OWN[bar] for bar in OWN if bar not in bars}
        n_changed += sum(made[bar] != OWN[bar] for bar in bars)
        kept = ~np.isin((onsets + 0.005) // BAR_SECONDS + 1, bars)
        assert set(score.notes.velocity[kept].tolist()) == {80}
    assert n_changed > 24


def test_a_filling_knows_those_before_it(studio: Studio, song: Path, half: Batch) -> None:
    loaded = load_model(studio.checkpoint)
    config = GenerateConfig(n_pieces=4, seed=1, prompt=str(song), variation=0.5)
    (prompt,) = read_prompts(loaded, config)
    assert prompt.canvas is not None
    asked, real = list[list[int]](), rewriting.write_ids

    def spy(loaded: Any, prompts: Any, *rest: Any, **options: Any) -> None:
        asked.extend(map(list, prompts))
        real(loaded, prompts, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rewriting, "write_ids", spy)
        made = list[rewriting.Rewritten]()
        rewriting.rewrite(loaded, [prompt.canvas], [2], [0], config, made.append)
    (piece,) = made
    assert len(asked) == len(piece.spans) > 1
    for ids, span in zip(asked, piece.spans, strict=True):
        told, final = loaded.tokenizer.decode(ids).notes, piece.score.notes
        before = final.onset_seconds < span.start_seconds - 0.006
        np.testing.assert_allclose(np.sort(told.onset_seconds), np.sort(final.onset_seconds[before]), atol=0.01)
        np.testing.assert_array_equal(np.sort(told.pitch), np.sort(final.pitch[before]))


def test_the_bytes_do_not_depend_on_the_workers(studio: Studio, song: Path, ray: None) -> None:
    files = files_of(vary(studio, song, variation=0.5, batch_size=2).folder)
    assert files_of(vary(studio, song, variation=0.5, batch_size=2, n_workers=2).folder) == files


def test_an_interrupted_batch_is_gone_on_with(studio: Studio, song: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"variation": 0.4, "best_of": 2, "best_by": "join", "batch_size": 2}
    whole = files_of(vary(studio, song, **settings).folder)
    real, calls = rewriting.join_nats, list[int]()

    def fail(*arguments: Any) -> float:
        calls.append(1)
        if len(calls) > 10:  # two pieces of two gaps with two tries each are done by then
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(rewriting, "join_nats", fail)
    with pytest.raises(KeyboardInterrupt):
        vary(studio, song, **settings)
    (unfinished,) = studio.home.generations.glob(".*.unfinished")
    done = sorted(path.name for path in (unfinished / "candidates").glob("*.json"))
    assert done == ["0000-0.json", "0001-0.json"]
    monkeypatch.undo()
    drawn = list[int]()
    monkeypatch.setattr(rewriting, "join_nats", lambda *arguments: (drawn.append(1), real(*arguments))[1])
    assert files_of(vary(studio, song, **settings).folder) == whole
    assert len(drawn) == 8


def test_of_several_tries_at_each_gap_the_best_is_kept(studio: Studio, song: Path) -> None:
    one = vary(studio, song, variation=0.6)
    best = vary(studio, song, variation=0.6, best_of=4, best_by="join")
    for alone, sidecar in zip(sidecars_of(one), sidecars_of(best), strict=True):
        assert sidecar["chosen_from"] is None
        assert sidecar["infill"]["bars"] == alone["infill"]["bars"]
        for gap in sidecar["infill"]["gaps"]:
            assert len(gap["of_tries"]) == 4
            assert gap["join_nats_per_token"] == min(gap["of_tries"]) < max(gap["of_tries"])
        first, drawn = sidecar["infill"]["gaps"][0], alone["infill"]["gaps"][0]
        assert first["of_tries"][0] == drawn["join_nats_per_token"]
    assert best.manifest["n_attempts"] == 4
    means = [np.mean([s["infill"]["join_nats_per_token"] for s in sidecars_of(batch)]) for batch in (best, one)]
    assert means[0] < means[1]


def test_whole_variations_are_chosen_among_too(studio: Studio, song: Path) -> None:
    batch = vary(studio, song, variation=0.5, n_pieces=2, best_of=2, reject_copies=True)
    for sidecar in sidecars_of(batch):
        assert sidecar["chosen_from"]["n"] >= 2
        assert [len(gap["of_tries"]) for gap in sidecar["infill"]["gaps"]] == [1] * len(sidecar["infill"]["gaps"])
        assert sidecar["copying"]["n_notes"] < sidecar["statistics"]["n_notes"]  # of the new bars alone


@pytest.mark.parametrize("share", [0.01, 1.0])
def test_the_smallest_and_the_largest_share(studio: Studio, song: Path, share: float) -> None:
    batch = vary(studio, song, variation=share, n_pieces=2)
    bars = [new_bars(piece["new_bars"]) for piece in batch.manifest["pieces"]]
    assert [len(some) for some in bars] == ([1, 1] if share < 0.5 else [15, 15])


def test_the_first_notes_are_new_where_the_first_bar_is(studio: Studio, song: Path) -> None:
    batch = vary(studio, song, variation=1.0, n_pieces=4)
    assert any(int(score.notes.pitch[0]) != NOTES[0][2] for score in scores_of(batch))


def test_a_longer_prompt_than_the_pieces_may_be(studio: Studio, song: Path) -> None:
    few = SamplingConfig(max_tokens=150)  # the song has 500 and more
    (sidecar,) = sidecars_of(vary(studio, song, variation=0.2, n_pieces=1, sampling=few))
    assert sidecar["prompt"]["n_tokens"] > 500
    assert all(gap["ended_by"] != "tokens" for gap in sidecar["infill"]["gaps"])


def test_a_gap_without_room_is_left_and_told(studio: Studio, song: Path) -> None:
    loaded = load_model(studio.checkpoint)
    config = GenerateConfig(prompt=str(song), variation=0.5, seed=3, sampling=SamplingConfig(max_tokens=120))
    (prompt,) = read_prompts(loaded, config)
    assert prompt.canvas is not None
    made = list[rewriting.Rewritten]()
    rewriting.rewrite(loaded, [prompt.canvas], [0], [0], config, made.append)
    (piece,) = made
    left = [span for span, gap in zip(piece.spans, piece.gaps, strict=True) if not gap["n_tokens"]]
    assert left
    assert piece.ended_by == "tokens"
    assert f"bars {left[-1].first_bar}-{left[-1].last_bar}: left as they were" in piece.warnings[-1]
    last = left[-1].holds(piece.score)
    assert last.sum() == 8 * (left[-1].last_bar - left[-1].first_bar + 1)
    assert len(piece.new_spans) == len(piece.spans) - len(left)  # what was left is not new
    assert [left[-1].first_bar, left[-1].last_bar] not in piece.to_json(0.5)["bars"]
    assert not (
        written_notes(piece.score, prompt, loaded.tokenizer, piece).notes.onset_seconds
        >= (left[0].start_seconds - left[0].early_seconds)
    ).any()


@pytest.mark.parametrize("tokenizer", [OoreTokenizer(), RemiTokenizer()], ids=lambda tokenizer: tokenizer.name)
def test_a_filling_keeps_ticks_tempos_and_parts(tokenizer: Any) -> None:
    notes = [(240 * i, 240, 60, 80, i % 2) for i in range(32)]
    score = make_score(notes, programs=(DRUMS, 40), tempos=((0, 600_000), (960, 400_000)), ticks_per_quarter=240)
    attempt = make_score([(500 * i, 400, 70, 60) for i in range(40)], programs=(40,))
    gap = Gap(score, Span(2, 2, 2.4, 4.0, 0.006))
    filled = gap.filled(attempt)
    assert filled.tempos.microseconds_per_quarter.tolist() == [600_000, 400_000]
    is_new = filled.notes.pitch == 70
    assert set(filled.notes.track[is_new].tolist()) == {1}
    assert filled.notes.onset_seconds[is_new].tolist() == pytest.approx([2.5, 3.0, 3.5], abs=1e-3)
    kept = score.notes.onset[(score.notes.onset_seconds < 2.4) | (score.notes.onset_seconds >= 4.0)]
    np.testing.assert_array_equal(filled.notes.onset[~is_new] * 240 // filled.ticks_per_quarter, kept)
    assert (gap.prompt_ids(tokenizer)[0], tokenizer.end_id in gap.prompt_ids(tokenizer)) == (tokenizer.start_id, False)


@pytest.mark.parametrize("tokenizer", [OoreTokenizer(), OptimusIntTokenizer()], ids=lambda tokenizer: tokenizer.name)
def test_bars_are_those_of_the_file_whatever_the_encoding_leaves_out(tokenizer: Any) -> None:
    """Drums begin and end the piece; the encoding holds neither, nor perhaps the silence that is left."""
    drums = [(125 * i, 100, 38, 90, 1) for i in range(200)]
    melody = [(2251 + 500 * i, 400, 60 + i % 12, 80) for i in range(32)]  # each 1 ms behind the beat
    score = make_score(melody + drums, programs=(0, DRUMS))
    loaded = untrained(tokenizer)
    canvas = make_canvas(loaded, GenerateConfig(prompt="x", variation=0.5), "x.mid", score)
    moved = 2.251 - canvas.whole.notes.onset_seconds.min()
    assert canvas.line_seconds[0] == pytest.approx(-moved if moved > 0.01 else 0.0, abs=0.005)
    np.testing.assert_allclose(np.diff(canvas.line_seconds), 2.0)
    assert canvas.first_bar == 2
    assert len(canvas.line_seconds) - 1 == 9  # 2.251 + 31 * 0.5 = 17.751
    last = canvas.whole.notes.onset_seconds.max()
    assert canvas.line_seconds[-2] <= last < canvas.line_seconds[-1]


@pytest.mark.parametrize("unit", [0.008, 0.01])
def test_a_downbeat_is_of_its_bar_however_times_are_rounded(unit: float) -> None:
    tokenizer = OoreTokenizer() if unit == 0.008 else OptimusIntTokenizer()
    notes = [(2000 * i, 1900, 60 + i % 12, 80) for i in range(40)]  # bars of 2.125 s, no multiple of the unit
    score = make_score(notes, tempos=((0, 531_250),))
    loaded = untrained(tokenizer)
    canvas = make_canvas(loaded, GenerateConfig(prompt="x", variation=0.5), "x.mid", score)
    for index in range(20):
        for span in canvas.spans(GenerateConfig(prompt="x", variation=0.5), index):
            assert span.holds(canvas.whole).sum() == span.last_bar - span.first_bar + 1


def test_bars_are_counted_from_that_of_the_first_note() -> None:
    canvas = Canvas(make_score(NOTES), np.arange(11) * 2.0, 3, 0.006)
    assert canvas.n_bars == 8
    spans = [span for index in range(50) for span in canvas.spans(GenerateConfig(prompt="x", variation=0.5), index)]
    assert {bar for span in spans for bar in range(span.first_bar, span.last_bar + 1)} == set(range(3, 10))
    for span in spans:
        assert (span.start_seconds, span.end_seconds) == (2.0 * span.first_bar - 2, 2.0 * span.last_bar)


@pytest.mark.parametrize(
    ("controls", "said"),
    [
        ({"variation": 1.5}, r"variation=1\.5 is above 1"),
        ({"variation": float("nan")}, "variation=nan is not a finite number"),
        ({"variation": 0.5, "prompt": ""}, r"variation=0\.5 is of a prompt, and there is none"),
        ({"variation": 0.5, "infill_bars": (1, 2)}, "infill_bars and variation both say which bars"),
        ({"variation": 0.5, "prompt_bars": 4}, r"prompt_bars and variation=0\.5 both say where a piece is cut"),
        ({"variation": 0.5, "latents": "path"}, r"variation=0\.5 is of one prompt, but latents='path'"),
    ],
)
def test_impossible_variations_are_told(controls: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        GenerateConfig(**{"prompt": "x.mid"} | controls)


@pytest.mark.parametrize(
    ("controls", "said"),
    [
        ({"max_bars": 4}, "max_bars and variation: pieces are as long as their prompts"),
        ({"sampling": SamplingConfig(beams=2)}, r"variation=0\.5: bars are filled by decoders .* and by drawing"),
        ({"latents": "prompt"}, "a 'decoder' model has no latents"),
        ({"sampling": SamplingConfig(greedy=True), "best_of": 2}, "beams and greedy make them all the same"),
    ],
)
def test_what_a_decoder_cannot_vary_is_told(studio: Studio, song: Path, controls: dict[str, Any], said: str) -> None:
    config = GenerateConfig(**{"n_pieces": 2, "prompt": str(song), "variation": 0.5} | controls)
    with pytest.raises(ConfigError, match=said):
        read_prompts(load_model(studio.checkpoint), config)


def test_a_single_bar_has_no_variation(studio: Studio, tmp_path: Path) -> None:
    path = tmp_path / "bar.mid"
    path.write_bytes(write_midi(make_score(NOTES[:8])))
    with pytest.raises(ConfigError, match=r"prompt bar\.mid: variation=0\.5 keeps the last bar, and there is no other"):
        read_prompts(load_model(studio.checkpoint), GenerateConfig(prompt=str(path), variation=0.5))


def test_latents_move_from_the_prompt_to_drawn_ones() -> None:
    model, window = build_vae(), rows(20)[0]
    source = LatentSource("a", "0", tuple(window.tolist()), 0)
    own = model.latent(window[None])[0]
    drawn = model.prior_latents(7, [1, 1 << 32])

    def latents(share: float, **more: Any) -> torch.Tensor:
        plan = LatentPlan("prompt", (source,), 2, share)
        return with_latents(model, plan, 7, **{"indices": [1, 0], "streams": [1, 1 << 32]} | more).latents_NZ  # type: ignore[union-attr]

    torch.testing.assert_close(latents(0.0), torch.stack([own, own]))
    torch.testing.assert_close(latents(1.0), drawn)
    torch.testing.assert_close(latents(0.3), torch.stack([slerp(own, end, 0.3) for end in drawn]))
    alone = latents(0.3, indices=[0], streams=[1 << 32])
    assert torch.equal(alone[0], latents(0.3)[1])


def test_a_model_with_latents_varies_by_them(tmp_path: Path) -> None:
    name, home = "mmm_vae_tiny", Home.at(tmp_path / "home")
    corpus = small_corpus(tmp_path / "midi")
    dataset = dataset_of(name, home, corpus)
    checkpoint = trained(home, shortened(build_preset(name)), dataset, "variation")
    prompt = str(sorted(corpus.rglob("*.mid"))[0])

    def compose(**changes: Any) -> Batch:
        given = {"n_pieces": 3, "audio": "none", "prompt": prompt, "variation": 0.4, "max_bars": 2}
        settings = GenerateConfig(**given | {"sampling": SamplingConfig(max_tokens=300)} | changes)
        return generate_batch(read_request(home, model_of(checkpoint, dataset.reference), checkpoint, settings))

    batch = compose()
    assert files_of(compose().folder) == files_of(batch.folder)
    for sidecar in sidecars_of(batch):
        assert sidecar["latent"]["of"] == "prompt"
        assert sidecar["latent"]["variation"] == 0.4
        assert sidecar["infill"] is None
    assert len({sidecar["midi_sha256"] for sidecar in sidecars_of(batch)}) == 3
    statistics = [[s["statistics"] for s in sidecars_of(some)] for some in (batch, compose(latents="prompt"))]
    assert statistics[0] == statistics[1]
    loaded = load_model(checkpoint)
    with pytest.raises(ConfigError, match="judges bars written anew, but a model with latents writes whole pieces"):
        read_prompts(loaded, GenerateConfig(prompt=prompt, variation=0.4, best_of=2, best_by="join"))
    with pytest.raises(ConfigError, match=r"infill_bars=\[1, 1\]: bars are filled by decoders on encodings that"):
        read_prompts(loaded, GenerateConfig(prompt=prompt, infill_bars=(1, 1)))


def test_a_decoder_that_writes_track_by_track_has_no_variations(tmp_path: Path) -> None:
    home = Home.at(tmp_path / "home")
    corpus = small_corpus(tmp_path / "midi")
    checkpoint = trained(home, short_training(n_steps=2), dataset_of("mmm_vae_tiny", home, corpus), "tracks")
    prompt = str(sorted(corpus.rglob("*.mid"))[0])
    with pytest.raises(ConfigError, match=r"variation=0\.5: bars are filled by decoders on encodings that follow time"):
        read_prompts(load_model(checkpoint), GenerateConfig(prompt=prompt, variation=0.5))


def test_a_variation_is_named_by_its_share(studio: Studio, song: Path) -> None:
    names = {vary(studio, song, variation=share, n_pieces=1).name for share in (0.1, 0.2)}
    assert len(names) == 2
