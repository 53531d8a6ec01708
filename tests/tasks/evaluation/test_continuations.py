"""Held-out pieces continued: which, by what, how alike; as batches would write them, with rows as batches have."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.checkpoints import LoadedModel, load_model
from tasks.config.evaluation import EvaluateConfig
from tasks.config.presets import build_preset
from tasks.dataset.versions import DatasetVersion
from tasks.evaluation.card import report_markdown
from tasks.evaluation.continuations import (
    ContinuationTest,
    added,
    choose_openings,
    continue_pieces,
    distance,
    likeness_of,
    without,
)
from tasks.evaluation.divergence import COMPARISONS, features_of, kl_divergence
from tasks.evaluation.evaluate import evaluate_model
from tasks.evaluation.held_out import pieces_of_rows
from tasks.evaluation.page.page import Decision, evaluation_page
from tasks.music.midi.read_midi import read_midi
from tasks.sampling.sample_ids import opening_ids
from tasks.storage.files import json_bytes
from tasks.storage.home import Home
from tasks.storage.strict_json import read_json
from tasks.training.token_dataset import TokenDataset
from tests.builders import make_score
from tests.samples import small_corpus, small_dataset, small_model
from tests.studio import Studio, model_of

SHORT = EvaluateConfig(split="train", n_samples=0, sample_tokens=40, n_continuations=4, prompt_tokens=24)


@pytest.fixture(scope="module")
def loaded(studio: Studio) -> LoadedModel:
    return load_model(studio.checkpoint)


def store_of(dataset: DatasetVersion, split: str) -> TokenDataset:
    return TokenDataset(dataset.token_shards(split))


def run_test(studio: Studio, loaded: LoadedModel, **settings: Any) -> ContinuationTest:
    config = replace(SHORT, **settings)
    return continue_pieces(loaded, studio.dataset, store_of(studio.dataset, config.split), config)


def untimed(test: ContinuationTest) -> list[dict[str, Any]]:
    return [{name: value for name, value in piece.row.items() if "time" not in name} for piece in test.pieces]


def test_more_pieces_are_the_same_ones_and_more(studio: Studio, loaded: LoadedModel) -> None:
    store = store_of(studio.dataset, "train")

    def chosen(n: int, seed: int = 0) -> list[str]:
        config = replace(SHORT, n_continuations=n, seed=seed)
        return [opening.name for opening in choose_openings(loaded, studio.dataset, store, config)[0]]

    assert chosen(3) == chosen(8)[:3]
    assert len(set(chosen(8))) == 8
    assert chosen(10**6) != chosen(10**6, seed=1)
    names = pieces_of_rows(studio.dataset, "train")
    first_rows = [f"train/{names.index(name):04d}" for name in dict.fromkeys(names)]
    assert len(first_rows) < store.n_rows  # the others are variants of the same pieces
    assert sorted(chosen(10**6)) == sorted(chosen(10**6, seed=1)) == first_rows


def test_the_file_of_a_piece_is_the_one_it_was_read_from(studio: Studio, loaded: LoadedModel) -> None:
    config = replace(SHORT, split="test", n_continuations=100)
    openings, n_too_short = choose_openings(loaded, studio.dataset, store_of(studio.dataset, "test"), config)
    assert openings
    assert n_too_short == 0
    for opening in openings:
        score = read_midi((studio.home.root.parent / "midi" / opening.file).read_bytes())
        assert loaded.tokenizer.encode(score.notes).ids.tolist() == opening.ids.tolist()


def test_pieces_without_anything_behind_the_prompt_are_counted(studio: Studio, loaded: LoadedModel) -> None:
    store = store_of(studio.dataset, "train")
    names = pieces_of_rows(studio.dataset, "train")
    lengths = np.diff(store.offsets)[[names.index(name) for name in dict.fromkeys(names)]]
    prompt_tokens = int(np.sort(lengths)[2]) - 1  # of the third shortest piece it leaves the end alone
    n_long = int((lengths >= prompt_tokens + 2).sum())
    config = replace(SHORT, n_continuations=10**6, prompt_tokens=prompt_tokens)
    openings, n_too_short = choose_openings(loaded, studio.dataset, store, config)
    assert (len(openings), n_too_short) == (n_long, len(lengths) - n_long)
    assert n_too_short >= 3
    for opening in openings:
        assert loaded.tokenizer.end_id not in opening.ids[: opening.n_given + 1]


def test_what_is_written_goes_on_from_the_piece_under_the_grammar(studio: Studio, loaded: LoadedModel) -> None:
    test = run_test(studio, loaded)
    assert (test.kind, len(test.pieces)) == ("continuation", 4)
    for piece in test.pieces:
        opening, row = piece.opening, piece.row
        assert (row["prompt"], row["prompt_length"], row["original_length"]) == (opening.name, 24, len(opening.ids))
        assert 1 <= row["generated_length"] <= 40
        assert row["generated_length"] == 40 or row["ended_with_eos"]
        assert len(row["entropies"]) == row["generated_length"]
        assert all(0 <= entropy <= math.log(loaded.tokenizer.vocab_size) + 0.001 for entropy in row["entropies"])
        assert row["continued_original_length"] == min(40, len(opening.ids) - 24)
        given_notes = {(start, pitch) for start, _, pitch, is_given in piece.notes_of(piece.written) if is_given}
        assert given_notes == {(start, pitch) for start, _, pitch, _ in piece.notes_of(piece.given)}
        assert len(piece.written.notes.pitch) > len(given_notes)
        expected = loaded.tokenizer.decode(opening.ids[: 24 + row["continued_original_length"]])
        assert piece.original.notes.pitch.tolist() == expected.notes.pitch.tolist()
    assert test.metrics["continuation/mean_length"] == np.mean([p.row["generated_length"] for p in test.pieces])
    assert test.metrics["continuation/mean_entropy"] == pytest.approx(
        np.mean([np.mean(piece.row["entropies"]) for piece in test.pieces]), abs=1e-3
    )


@pytest.mark.slow
def test_neither_batch_nor_number_of_pieces_changes_what_is_written(studio: Studio, loaded: LoadedModel) -> None:
    first = untimed(run_test(studio, loaded))
    assert untimed(run_test(studio, loaded)) == first
    for change in ({"batch_size": 3}, {"n_continuations": 6}):
        for row, other in zip(first, untimed(run_test(studio, loaded, **change)), strict=False):
            assert row.pop("entropies") == pytest.approx(other.pop("entropies"), abs=2e-3)
            assert row.pop("entropy") == pytest.approx(other.pop("entropy"), abs=2e-3)
            assert row == other
        first = untimed(run_test(studio, loaded))
    assert untimed(run_test(studio, loaded, seed=5)) != first


@pytest.mark.slow
def test_rows_have_what_those_of_a_batch_have(studio: Studio, loaded: LoadedModel) -> None:
    batch = read_json(studio.compose(n_pieces=1).results)
    found = json.loads(json_bytes(run_test(studio, loaded).to_json()))
    assert set(batch["pieces"][0]) <= set(found["pieces"][0])
    assert {"mean_entropy", "mean_generation_time", "pieces"} <= set(found) & set(batch)
    assert found["tokens_per_second"] > 0
    assert found["kind"] == "continuation"


def test_midi_files_hold_the_prompt_and_both_ways_on(studio: Studio, loaded: LoadedModel, tmp_path: Path) -> None:
    test = run_test(studio, loaded, n_continuations=2)
    test.write_files(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["0000", "0001"]
    for piece in test.pieces:
        folder = tmp_path / piece.row["composition_dir"].removeprefix("continuations/")
        n_notes = {path.stem: len(read_midi(path.read_bytes()).notes.pitch) for path in folder.iterdir()}
        assert sorted(n_notes) == ["continued_original", "generated", "original", "prompt"]
        assert 0 < n_notes["prompt"] < min(n_notes["generated"], n_notes["continued_original"])
        whole = loaded.tokenizer.decode(piece.opening.ids)
        assert n_notes["continued_original"] < n_notes["original"] == len(whole.notes.pitch)
        assert piece.row["prompt_original_path"] == piece.opening.file
    for name in ("pitch_classes.png", "durations.png", "distances.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_divergences_are_of_the_music_beyond_the_prompt(studio: Studio, loaded: LoadedModel) -> None:
    test = run_test(studio, loaded)
    for piece in test.pieces:
        sides = {
            "prompt": features_of(piece.given),
            "generated": features_of(without(piece.written, piece.given)),
            "original": features_of(without(piece.original, piece.given)),
        }
        found = piece.row["divergences"]
        for comparison, (reference, candidate) in COMPARISONS.items():
            expected = kl_divergence(sides[reference].pitch_classes, sides[candidate].pitch_classes)
            assert found["pitch_class_kl"][comparison] == pytest.approx(expected, abs=1e-6)
        n_new = len(piece.written.notes.pitch) - len(piece.given.notes.pitch)
        assert sides["generated"].durations.sum() == n_new
    for measure in ("pitch_class_kl", "duration_kl", "harmony_distance"):
        for comparison in COMPARISONS:
            values = [piece.row["divergences"][measure][comparison] for piece in test.pieces]
            known = [value for value in values if value is not None]
            assert test.metrics[f"continuation/{measure}/{comparison}"] == pytest.approx(np.mean(known))
        assert 0 < test.metrics[f"continuation/{measure}/p_value"] <= 1


counts = st.lists(st.integers(0, 50), min_size=12, max_size=12).map(lambda values: np.array(values, np.float64))


@given(counts, counts, st.integers(1, 9))
def test_a_distance_is_symmetric_bounded_and_of_shares(p: np.ndarray, q: np.ndarray, times: int) -> None:
    found = distance(p, q)
    assert 0 <= found <= 1
    assert found == pytest.approx(distance(q, p))
    assert found == pytest.approx(distance(times * p, q))
    assert distance(p, p) == pytest.approx(0)


def test_distances_by_hand() -> None:
    c, c_and_g, nothing = np.eye(12)[0], np.eye(12)[0] + np.eye(12)[7], np.zeros(12)
    assert distance(c, np.eye(12)[1]) == 1
    assert distance(c, c_and_g) == 0.5
    assert (distance(c, nothing), distance(nothing, c), distance(nothing, nothing)) == (1, 1, 0)


def test_only_what_was_added_counts() -> None:
    given_part = make_score([(0, 480, 60, 64), (480, 480, 64, 64)])
    whole = make_score([(0, 480, 60, 64), (480, 480, 64, 64), (960, 960, 67, 64), (960, 960, 72, 64)])
    found = added(whole, given_part, "pitch_class")
    assert found.tolist() == [1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]
    durations = added(whole, given_part, "duration")
    assert durations.sum() == durations.max() == 2  # both last one second
    assert added(given_part, given_part, "duration").sum() == 0


def test_a_model_that_knows_each_piece_gains_all_that_can_be() -> None:
    originals = [10 * np.eye(12)[k] + 1 for k in range(5)]
    known = likeness_of([(original, original) for original in originals])
    assert known["to_own"].value == 0
    assert known["gain"].value == known["of_others"].value == pytest.approx(10 / 22)
    flat = likeness_of([(np.ones(12), original) for original in originals])
    assert flat["to_own"].value == pytest.approx(0.5 * (11 / 12 * 10 / 22 * 2), abs=0.02)
    alone = likeness_of([(originals[0], originals[1])])
    assert alone["to_own"].value == pytest.approx(10 / 22)
    assert alone["of_others"].value is None


@pytest.mark.slow
def test_it_can_be_off_and_prompts_can_be_too_long(studio: Studio, loaded: LoadedModel) -> None:
    off, too_long = (replace(SHORT, **change) for change in ({"n_continuations": 0}, {"prompt_tokens": 10**6}))
    result = evaluate_model(loaded, studio.dataset, off)
    assert result.continuations is None
    assert not [name for name in result.metrics if name.startswith("continuation")]
    result = evaluate_model(loaded, studio.dataset, too_long)
    assert result.continuations is not None
    assert result.continuations.metrics == {}
    assert result.continuations.to_json()["n_too_short"] == len(set(pieces_of_rows(studio.dataset, "train")))
    assert "No piece of the split has more than 1000000 tokens" in report_markdown(
        result, "m@1", studio.dataset, too_long
    )


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["whole", "generation"])
def test_a_model_with_latents_writes_windows_again(tmp_path: Path, mode: str) -> None:
    preset = build_preset("mmm_vae_tiny")
    home = Home.at(tmp_path / "home")
    given_settings = {name: getattr(preset.dataset, name) for name in ("encoding", "windows")}
    dataset = small_dataset(home, small_corpus(tmp_path / "midi", n_pieces=8), **given_settings)
    shape = replace(preset.train.model, row_mode=mode)  # type: ignore[call-arg]
    checkpoint = small_model(home, dataset, model=shape, n_steps=2, seq_len=preset.train.seq_len)
    loaded = load_model(checkpoint)
    opening = [loaded.tokenizer.names[token] for token in opening_ids(loaded)]
    assert opening == ["[SOS]", "PIECE_START"][: shape.n_given]
    config = EvaluateConfig(n_samples=1, sample_tokens=40, n_continuations=2)
    result = evaluate_model(loaded, dataset, config)
    test = result.continuations
    assert test is not None
    assert test.kind == "from_latents"
    assert "from_latents/mean_entropy" in result.metrics
    assert not [name for name in result.metrics if name.startswith("continuation/")]
    names = pieces_of_rows(dataset, "test")
    assert result.n_held_out == len(set(names)) < len(names)  # rows are windows
    rows = [int(piece.opening.name.removeprefix("test/")) for piece in test.pieces]
    assert rows == [names.index(names[row]) for row in rows]  # the first window of each
    for piece in test.pieces:
        assert piece.row["prompt_length"] == shape.n_given
        assert not any(is_given for *_, is_given in piece.notes_of(piece.written))
        window = piece.opening.ids[: min(104, loaded.model.max_length)]  # type: ignore[operator]
        assert piece.original.notes.pitch.tolist() == loaded.tokenizer.decode(window).notes.pitch.tolist()
    assert "written again from their latents" in report_markdown(result, "m@1", dataset, config)
    page = evaluation_page(
        result, model_of(checkpoint, dataset.reference), dataset, config, Decision(None, False), "0123"
    )
    assert "A model with latents cannot continue a beginning" in page
    assert "cost of another block&#39;s latent" in page
