"""Prompts: kept note for note, cut as asked for, and every one that cannot be used told in one line."""

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.config import SamplingConfig
from tasks.checkpoints import load_model
from tasks.config.generation import GenerateConfig
from tasks.dataset.versions import resolve_dataset
from tasks.errors import BadScore, ConfigError, DatasetError, NotFound
from tasks.generation.candidates import written_notes
from tasks.generation.generate import generate_batch, read_request
from tasks.generation.prompts import Prompt, read_prompts, warn_of_losses
from tasks.music.midi.read_midi import read_midi
from tasks.music.midi.writer import write_midi
from tasks.music.tokenizers.mmm.tokenizer import MmmTokenizer
from tasks.music.tokenizers.mmm.vocabulary import MmmConfig
from tasks.music.tokenizers.oore import OoreTokenizer
from tasks.music.tokenizers.optimus.int_tokenizer import OptimusIntConfig, OptimusIntTokenizer
from tasks.sampling import sample_ids
from tasks.sampling.sample_ids import check_controls, check_prompt_ids
from tasks.storage.home import Home
from tasks.training.token_dataset import TokenDataset
from tests.builders import DRUMS, make_score
from tests.studio import (
    PROMPT_NOTES,
    SHORT,
    Setup,
    config_of,
    midi_of,
    sidecars_of,
    silent,
)
from tests.tasks.sampling.test_constraints_by_place import untrained


def test_files_of_macos_beside_the_prompts_are_left_out(setup: Setup, tmp_path: Path) -> None:
    (tmp_path / "in" / "__MACOSX").mkdir(parents=True)
    for name in ("a chord.mid", "b.mid"):
        (tmp_path / "in" / name).write_bytes((setup.prompts / name).read_bytes())
    for name in ("._a chord.mid", "0.mid", "__MACOSX/b.mid"):
        (tmp_path / "in" / name).write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        ")
    loaded = load_model(setup.checkpoint)
    prompts = read_prompts(loaded, config_of(prompt=str(tmp_path / "in"), n_pieces=2))
    assert [prompt.name for prompt in prompts] == ["a chord.mid", "b.mid"]
    with pytest.raises(DatasetError, match=r"0\.mid is no song but a file that macOS adds"):
        read_prompts(loaded, config_of(prompt=str(tmp_path / "in" / "0.mid")))
    os.mkfifo(tmp_path / "in" / "a.mid")
    with pytest.raises(NotFound, match=r"prompt a\.mid is no regular file"):
        read_prompts(loaded, config_of(prompt=str(tmp_path / "in"), n_pieces=2))


@pytest.mark.slow
@pytest.mark.parametrize("prompt_tokens", [2, 9, 24, 40])
def test_the_prompt_comes_back_note_for_note(
    home: Home, setup: Setup, monkeypatch: pytest.MonkeyPatch, prompt_tokens: int
) -> None:
    sampled: list[torch.Tensor] = []
    whole_sample = sample_ids.sample

    def spy(*args: Any, **settings: Any) -> None:
        sampled.extend(whole_sample(*args, **settings))

    monkeypatch.setattr(sample_ids, "sample", spy)
    config = config_of(prompt=str(setup.prompts), prompt_tokens=prompt_tokens, n_pieces=3, audio="none")
    loaded = load_model(setup.checkpoint)
    prompts = read_prompts(loaded, config)
    assert [prompt.name for prompt in prompts] == ["a chord.mid", "b.mid"]
    batch = generate_batch(read_request(home, setup.model, setup.checkpoint, config))
    for index, (ids, midi, sidecar) in enumerate(zip(sampled, midi_of(batch), sidecars_of(batch), strict=True)):
        prompt = prompts[index % 2]
        assert len(prompt.ids) <= prompt_tokens
        assert tuple(ids[: len(prompt.ids)].tolist()) == prompt.ids
        assert len(ids) > len(prompt.ids)
        given, made = loaded.tokenizer.decode(np.array(prompt.ids)).notes, read_midi(midi).notes
        n = len(given.pitch)
        for name in ("onset", "pitch", "velocity"):
            np.testing.assert_array_equal(getattr(made, name)[:n], getattr(given, name))
        ended = given.onset + given.duration < (given.onset + given.duration).max(initial=0)
        np.testing.assert_array_equal(made.duration[:n][ended], given.duration[ended])
        data = (setup.prompts / prompt.name).read_bytes()
        assert sidecar["prompt"] | {"seconds": 0} == {
            "name": prompt.name, "sha256": hashlib.sha256(data).hexdigest(), "n_tokens": len(prompt.ids), "seconds": 0,
                "n_file_notes": len(read_midi(data).notes.pitch), "dropped": prompt.dropped,
        }  # fmt: skip


def test_a_short_prompt_is_continued_from_its_end(setup: Setup) -> None:
    loaded = load_model(setup.checkpoint)
    (prompt,) = read_prompts(loaded, config_of(prompt=str(setup.prompts / "a chord.mid"), prompt_tokens=40))
    assert len(prompt.ids) < 40
    assert prompt.ids[0] == loaded.tokenizer.start_id
    assert loaded.tokenizer.end_id not in prompt.ids
    notes = loaded.tokenizer.decode(np.array(prompt.ids)).notes
    rows = zip(notes.onset, notes.duration, notes.pitch, notes.velocity, strict=True)
    assert [tuple(int(value) for value in row) for row in rows] == [
        (onset, -(-duration // 8) * 8, pitch, velocity) for onset, duration, pitch, velocity in PROMPT_NOTES
    ]


@pytest.mark.parametrize(
    ("prompt", "kind", "said"),
    [
        ("gone.mid", NotFound, "gone.mid does not exist"),
        ("nowhere", NotFound, "nowhere does not exist"),
        ("empty", DatasetError, "empty holds no MIDI file"),
        ("words.txt", ConfigError, "words.txt: a text is for models of optimus_txt"),
        ("words.doc", DatasetError, "words.doc is neither a folder nor"),
        ("words.mid", BadScore, "not_midi: prompt words.mid"),
        ("silence.mid", BadScore, "no_notes: prompt silence.mid"),
        ("zero.mid", BadScore, "empty_file: prompt zero.mid"),
        ("mixed", BadScore, "not_midi: prompt sub/bad.mid"),
        ("dangling", NotFound, "prompt link.mid: No such file"),
    ],
)
def test_a_prompt_that_cannot_be_used_is_said_in_one_line_and_leaves_nothing(
    home: Home, setup: Setup, tmp_path: Path, prompt: str, kind: type[Exception], said: str
) -> None:
    for folder in ("empty", "mixed/sub", "dangling"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("words.txt", "words.doc", "words.mid", "mixed/sub/bad.mid"):
        (tmp_path / name).write_text("La la la, no MIDI here.")
    (tmp_path / "silence.mid").write_bytes(write_midi(make_score([])))
    (tmp_path / "zero.mid").touch()
    (tmp_path / "mixed" / "a.mid").write_bytes((setup.prompts / "b.mid").read_bytes())
    (tmp_path / "dangling" / "link.mid").symlink_to(tmp_path / "gone.mid")
    with pytest.raises(kind) as error:
        silent(home, setup, prompt=str(tmp_path / prompt))
    assert said in str(error.value)
    assert "prompt" in str(error.value)
    assert "\n" not in str(error.value)
    assert list(home.generations.glob("*")) == []


@pytest.mark.parametrize(
    ("part", "n_notes"),
    [({"prompt_notes": 3}, 3), ({"prompt_bars": 1}, 4), ({"prompt_seconds": 0.8}, 2), ({"prompt_notes": 99}, 4)],
)
def test_a_prompt_is_cut_by_notes_bars_or_seconds(setup: Setup, part: dict[str, Any], n_notes: int) -> None:
    loaded = load_model(setup.checkpoint)
    (prompt,) = read_prompts(loaded, config_of(prompt=str(setup.prompts / "a chord.mid"), **part))
    notes = loaded.tokenizer.decode(np.array(prompt.ids)).notes
    assert notes.pitch.tolist() == [pitch for _, _, pitch, _ in PROMPT_NOTES[:n_notes]]
    assert prompt.ids[-1] != loaded.tokenizer.end_id


@pytest.mark.parametrize(
    ("limit", "said"),
    [({"max_notes": 4}, "4 notes"), ({"max_seconds": 1.0}, "1 seconds"), ({"max_bars": 1}, "1 bars")],
)
def test_a_prompt_that_leaves_no_room_is_told(setup: Setup, limit: dict[str, Any], said: str) -> None:
    config = config_of(prompt=str(setup.prompts / "a chord.mid"), prompt_notes=4, **limit)
    with pytest.raises(ConfigError, match=f"it already fills the {said} that pieces may have; take less of it"):
        read_prompts(load_model(setup.checkpoint), config)


def test_pieces_of_a_split_are_prompts(home: Home, setup: Setup) -> None:
    loaded = load_model(setup.checkpoint)
    data = Home.at(setup.checkpoint.parents[3])
    dataset = resolve_dataset(data, setup.model.dataset)
    store = TokenDataset(dataset.token_shards("validation"))
    prompts = read_prompts(loaded, config_of(prompt="split:validation", n_pieces=2, prompt_notes=5), data)
    assert len(prompts) == min(2, len(store.offsets) - 1)
    for row, prompt in enumerate(prompts):
        whole = loaded.tokenizer.decode(store.tokens[store.offsets[row] : store.offsets[row + 1]])
        assert prompt.name == f"validation/{row:04d}"
        assert loaded.tokenizer.decode(np.array(prompt.ids)).notes.pitch.tolist() == whole.notes.pitch[:5].tolist()
    with pytest.raises(ConfigError, match="prompt=split:tests: no such split; one of train, validation, test"):
        read_prompts(loaded, config_of(prompt="split:tests"), data)


def test_of_a_folder_as_many_files_are_read_as_pieces_are_wanted(
    setup: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    loaded, config = load_model(setup.checkpoint), config_of(prompt=str(setup.prompts))
    assert [prompt.name for prompt in read_prompts(loaded, replace(config, n_pieces=1))] == ["a chord.mid"]
    assert "the first 1 of 2 files, one for each piece" in caplog.text
    assert len(read_prompts(loaded, config)) == 2


def test_notes_that_the_encoding_leaves_out_are_told(
    setup: Setup, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    notes = [(480 * i, 400, 60 + i, 64, int(i >= 4)) for i in range(6)]
    (tmp_path / "band.mid").write_bytes(write_midi(make_score(notes, programs=(0, DRUMS))))
    (prompt,) = read_prompts(load_model(setup.checkpoint), config_of(prompt=str(tmp_path / "band.mid")))
    assert prompt.dropped == {"drums": 2}
    warn_of_losses([prompt], OoreTokenizer())
    assert "1 of 1 prompts hold notes that encoding oore leaves out or changes (2 drums of 6 notes)" in caplog.text


def test_the_notes_of_a_prompt_are_told_apart_where_later_ones_renumber_its_parts() -> None:
    tokenizer = OptimusIntTokenizer(OptimusIntConfig(instruments=True))
    guitar = [(500 * i, 400, 50 + i, 80, 0) for i in range(6)]
    piano = [(4000 + 500 * i, 400, 70 + i, 80, 1) for i in range(4)]
    given = tokenizer.encode(make_score(guitar, programs=(30,)).notes).ids[:-1]
    whole = tokenizer.encode(make_score([*guitar, *piano], programs=(30, 0)).notes).ids
    assert whole[: len(given)].tolist() == given.tolist()
    new = written_notes(tokenizer.decode(whole), Prompt("guitar", "", tuple(given.tolist())), tokenizer)
    assert sorted(new.notes.pitch.tolist()) == [70, 71, 72, 73]


def test_a_prompt_with_more_tracks_than_are_wanted_is_told() -> None:
    tokenizer = MmmTokenizer(MmmConfig(vocabulary_from="all"))
    ids = tokenizer.encode(make_score(
        [(0, 480, 60, 80, part) for part in range(3)], programs=(0, 1, 2)
    ).notes).ids[:-1]  # fmt: skip
    with pytest.raises(ConfigError, match="prompt band: it has 3 tracks, but n_tracks=2, which counts them too"):
        check_prompt_ids(untrained(tokenizer), GenerateConfig(n_tracks=2), ids.tolist(), "band")


@pytest.mark.parametrize(
    ("controls", "way_out"),
    [
        ({}, "lower prompt_tokens"),
        ({"prompt_bars": 2}, "lower prompt_bars"),
        ({"prompt_notes": 9}, "lower prompt_notes"),
    ],
)
def test_a_prompt_that_is_too_long_is_told_with_the_way_out(controls: dict[str, Any], way_out: str) -> None:
    config = GenerateConfig(sampling=SamplingConfig(max_tokens=20), **controls)
    with pytest.raises(ConfigError, match=f"prompt long: its 20 tokens leave none to draw of 20, .*; {way_out}$"):
        check_prompt_ids(untrained(OoreTokenizer()), config, [10] * 20, "long")


def test_a_prompt_of_tokens_without_a_note_is_told(
    setup: Setup, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "late.mid").write_bytes(write_midi(make_score([(200_000, 400, 60, 64)])))
    prompts = read_prompts(load_model(setup.checkpoint), config_of(prompt=str(tmp_path / "late.mid"), prompt_tokens=5))
    warn_of_losses(prompts, OoreTokenizer())
    assert "1 of 1 prompts have no note among the tokens that are taken of them; the first: late.mid, 5" in caplog.text
    assert "1 of 1 prompt begins with more than 8 s of silence, which the pieces keep; the first: late" in caplog.text


def test_a_wish_that_an_encoding_cannot_say_is_told_by_its_tokenizer_alone() -> None:
    with pytest.raises(ConfigError, match=r"generate\.programs: encoding oore has no ids that say it"):
        check_controls(OoreTokenizer(), GenerateConfig(programs=(0,)))
    check_controls(OoreTokenizer(), GenerateConfig(key="C"))


@pytest.mark.slow
def test_a_piece_that_adds_no_note_to_its_prompt_is_flagged(home: Home, setup: Setup) -> None:
    only_one_id = replace(SHORT, max_tokens=25)
    batch = silent(home, setup, prompt=str(setup.prompts / "b.mid"), prompt_tokens=24, sampling=only_one_id, n_pieces=8)
    sidecars = sidecars_of(batch)
    n_nothing_new = sum(not sidecar["n_new_notes"] for sidecar in sidecars)
    assert n_nothing_new
    assert batch.manifest["n_nothing_new"] == n_nothing_new
    assert all(("nothing new" in sidecar["flags"]) == (not sidecar["n_new_notes"]) for sidecar in sidecars)
    assert f"{n_nothing_new} of 8 pieces add no note to their prompts" in batch.manifest["flags"][0]
    longer = replace(SHORT, max_tokens=200, min_new_tokens=150)
    for sidecar in sidecars_of(silent(home, setup, prompt=str(setup.prompts / "b.mid"), sampling=longer)):
        assert sidecar["n_new_notes"]
        assert "nothing new" not in sidecar["flags"]
        assert sidecar["n_tokens"] >= sidecar["prompt"]["n_tokens"] + 150
