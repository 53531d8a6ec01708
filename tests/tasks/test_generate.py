"""Batches: the same bytes whatever the speed settings, prompts kept note for note, all of a batch or none of it."""

import hashlib
import io
import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mido
import numpy as np
import pytest
import symusic
import torch

from models.config import SamplingConfig
from tasks import generate, piece_ids, piece_work
from tasks.batches import TokenStore
from tasks.checkpoints import load_model
from tasks.config import GenerateConfig, to_json
from tasks.datasets import resolve_dataset
from tasks.errors import BadScore, ConfigError, DatasetError, NotFound
from tasks.generate import batch_name, find_batch, generate_batch, resolve_batch
from tasks.home import Home
from tasks.music.metrics import piece_statistics
from tasks.music.score import read_midi, write_midi
from tasks.prompts import read_prompts
from tasks.tracking import ModelVersion
from tests.builders import make_score
from tests.samples import small_corpus, small_dataset, small_model
from tests.studio import model_of, sidecars_of

REPOSITORY = Path(__file__).resolve().parents[2]
SHORT = SamplingConfig(max_tokens=48)
PROMPT_NOTES = [(0, 480, 60, 64), (480, 480, 64, 72), (960, 480, 67, 80), (1440, 1500, 72, 88)]  # C4 E4 G4 C5


@dataclass(frozen=True)
class Setup:
    """A trained model, and prompts that begin in different ways."""

    checkpoint: Path
    model: ModelVersion
    prompts: Path


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    folder = tmp_path_factory.mktemp("generate")
    home = Home.at(folder / "home")
    dataset = small_dataset(home, small_corpus(folder / "midi"))
    checkpoint = small_model(home, dataset)
    model = model_of(checkpoint, dataset.reference)
    prompts = folder / "prompts"
    prompts.mkdir()
    (prompts / "a chord.mid").write_bytes(write_midi(make_score(PROMPT_NOTES)))
    (prompts / "b.mid").write_bytes(write_midi(make_score([(160 * i, 80, 50 + i, 60) for i in range(30)])))
    return Setup(checkpoint, model, prompts)


def config_of(**settings: Any) -> GenerateConfig:
    return GenerateConfig(**{"n_pieces": 5, "sampling": SHORT, "prompt_tokens": 24} | settings)


def files_of(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def compose(home: Home, setup: Setup, **settings: Any) -> generate.Batch:
    return generate_batch(home, setup.model, setup.checkpoint, config_of(**settings))


def silent(home: Home, setup: Setup, **settings: Any) -> generate.Batch:
    return compose(home, setup, audio="none", **settings)


def midi_of(batch: generate.Batch) -> list[bytes]:
    return [path.read_bytes() for path in sorted((batch.folder / "pieces").glob("*.mid"))]


def test_every_file_is_the_same_for_any_batch_size(home: Home, setup: Setup) -> None:
    first = compose(home, setup, batch_size=8, prompt=str(setup.prompts))
    files = files_of(first.folder)
    stems = [f"pieces/{index:04d}" for index in range(5)]
    assert sorted(files) == sorted(
        ["manifest.json", "gallery.html", *(f"{s}.{kind}" for s in stems for kind in ("mid", "json", "png", "ogg"))]
    )
    for batch_size in (1, 3):
        other = compose(home, setup, batch_size=batch_size, prompt=str(setup.prompts))
        assert other.name == first.name
        assert files_of(other.folder) == files


def test_results_tell_lengths_entropies_and_times(home: Home, setup: Setup) -> None:
    batch = silent(home, setup, prompt=str(setup.prompts), prompt_tokens=20)
    results = json.loads(batch.results.read_text())
    sidecars = sidecars_of(batch)
    assert [row["piece"] for row in results["pieces"]] == [sidecar["name"] for sidecar in sidecars]
    for row, sidecar in zip(results["pieces"], sidecars, strict=True):
        assert row["prompt"] == sidecar["prompt"]["name"]
        assert row["prompt_length"] == sidecar["prompt"]["n_tokens"] <= 20
        assert row["prompt_length"] < row["original_length"]
        assert row["prompt_length"] + row["generated_length"] == sidecar["n_tokens"]
        assert row["ended_with_eos"] == sidecar["ended"]
        assert len(row["entropies"]) == row["generated_length"]
        assert row["entropy"] == pytest.approx(np.mean(row["entropies"]), abs=1e-3)
        assert 0 < row["entropy"] < np.log(416)
        assert row["generation_time"] > 0
    assert results["mean_entropy"] == pytest.approx(np.mean([row["entropy"] for row in results["pieces"]]), abs=1e-4)
    alone = silent(home, setup)
    rows = json.loads(alone.results.read_text())["pieces"]
    assert {(row["prompt"], row["original_length"], row["prompt_length"]) for row in rows} == {(None, None, 1)}


def test_beams_are_the_same_for_any_seed_and_batch_size(home: Home, setup: Setup) -> None:
    beams = replace(SHORT, beams=3, max_tokens=30)
    first, other = (
        midi_of(silent(home, setup, sampling=beams, seed=seed, n_pieces=3, batch_size=batch_size))
        for seed, batch_size in ((0, 3), (5, 2))
    )
    notes = [[read_midi(midi).notes.pitch.tolist() for midi in batch if b"\x90" in midi] for batch in (first, other)]
    assert notes[0] == notes[1]
    assert len({sidecar["midi_sha256"] for sidecar in sidecars_of(find_all(home)[-1])}) == 3
    with pytest.raises(ConfigError, match="beams=3 give 3 pieces for each prompt, but n_pieces=4 are 4 for each"):
        silent(home, setup, sampling=beams, n_pieces=4)


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


def find_all(home: Home) -> list[generate.Batch]:
    return [resolve_batch(home, path.parent.name) for path in sorted(home.generations.glob("*/manifest.json"))]


@pytest.mark.slow
def test_every_file_is_the_same_for_two_workers(home: Home, setup: Setup, ray: None) -> None:
    one = files_of(compose(home, setup).folder)
    seen: list[int] = []
    config = config_of(n_workers=2, batch_size=2)
    two = generate_batch(home, setup.model, setup.checkpoint, config, seen.append)
    assert files_of(two.folder) == one
    assert sum(seen) == 5


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_only_time(home: Home, setup: Setup, ray: None, tmp_path: Path) -> None:
    killed: list[int] = []

    def kill_one(n: int) -> None:
        workers = [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/comm") if is_writer(path)]
        if not killed and len(workers) == 2:
            os.kill(workers[0], signal.SIGKILL)
            killed.append(workers[0])

    long = config_of(n_workers=2, batch_size=2, n_pieces=12, audio="none", sampling=SamplingConfig(max_tokens=400))
    batch = generate_batch(home, setup.model, setup.checkpoint, long, kill_one)
    assert len(killed) == 1
    alone = generate_batch(
        Home.at(tmp_path / "other"), setup.model, setup.checkpoint, replace(long, n_workers=1, batch_size=12)
    )
    assert files_of(batch.folder) == files_of(alone.folder)


def is_writer(comm: Path) -> bool:
    try:
        return comm.read_text().startswith("ray::write_cand")
    except OSError:  # it has just ended
        return False


CHILD = """
import sys
from pathlib import Path
from tasks.generate import generate_batch
from tasks.home import Home
from tests.studio import model_of
from tests.tasks.test_generate import config_of
home, checkpoint, dataset, prompts = sys.argv[1:]
model = model_of(Path(checkpoint), dataset)
generate_batch(Home.at(home), model, Path(checkpoint), config_of(batch_size=2, prompt=prompts))
"""


@pytest.mark.slow
def test_every_file_is_the_same_in_another_process_and_home(home: Home, setup: Setup, tmp_path: Path) -> None:
    batch = compose(home, setup, prompt=str(setup.prompts))
    elsewhere = tmp_path / "prompts elsewhere"
    elsewhere.mkdir()
    for path in setup.prompts.iterdir():
        (elsewhere / path.name).write_bytes(path.read_bytes())
    arguments = [str(tmp_path / "other"), str(setup.checkpoint), setup.model.dataset, str(elsewhere)]
    subprocess.run([sys.executable, "-c", CHILD, *arguments], cwd=REPOSITORY, check=True, timeout=300)
    assert files_of(Home.at(tmp_path / "other").generations / batch.name) == files_of(batch.folder)


def test_a_piece_does_not_depend_on_its_neighbours(home: Home, setup: Setup) -> None:
    few, many = silent(home, setup, n_pieces=2), silent(home, setup, n_pieces=5)
    for mine, theirs in zip(midi_of(few), midi_of(many), strict=False):
        one, other = read_midi(mine).notes, read_midi(theirs).notes
        for name in ("onset", "duration", "pitch", "velocity"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert len({tuple(read_midi(data).notes.pitch.tolist()) for data in midi_of(many)}) == 5


def test_what_changes_the_bytes_changes_the_name(home: Home, setup: Setup, tmp_path: Path) -> None:
    def name(**settings: Any) -> str:
        config = config_of(**settings)
        prompts = read_prompts(load_model(setup.checkpoint), config)
        return batch_name(setup.model, config, prompts, setup.checkpoint)

    renamed = tmp_path / "other name.mid"
    renamed.write_bytes((setup.prompts / "b.mid").read_bytes())
    names = [
        name(), name(seed=1), name(n_pieces=4), name(audio="none"), name(sampling=replace(SHORT, temperature=0.9)),
        name(prompt=str(setup.prompts)), name(prompt=str(setup.prompts / "b.mid")), name(prompt=str(renamed)),
        name(prompt=str(setup.prompts), prompt_tokens=12),
    ]  # fmt: skip
    assert len(set(names)) == len(names)
    assert name(batch_size=1) == name(n_workers=4) == name()
    other = replace(setup.model, version="2")
    assert batch_name(other, config_of(), [], setup.checkpoint) != batch_name(
        setup.model, config_of(), [], setup.checkpoint
    )
    assert all(found.startswith("small-small-v1-") for found in names)


@pytest.mark.parametrize("prompt_tokens", [2, 9, 24, 40])
def test_the_prompt_comes_back_note_for_note(
    home: Home, setup: Setup, monkeypatch: pytest.MonkeyPatch, prompt_tokens: int
) -> None:
    sampled: list[torch.Tensor] = []
    whole_sample = piece_ids.sample

    def spy(*args: Any, **settings: Any) -> None:
        sampled.extend(whole_sample(*args, **settings))

    monkeypatch.setattr(piece_ids, "sample", spy)
    config = config_of(prompt=str(setup.prompts), prompt_tokens=prompt_tokens, n_pieces=3, audio="none")
    loaded = load_model(setup.checkpoint)
    prompts = read_prompts(loaded, config)
    assert [prompt.name for prompt in prompts] == ["a chord.mid", "b.mid"]
    batch = generate_batch(home, setup.model, setup.checkpoint, config)
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


def test_pieces_read_the_same_in_mido_and_symusic(home: Home, setup: Setup) -> None:
    batch = silent(home, setup, prompt=str(setup.prompts))
    for data, sidecar in zip(midi_of(batch), sidecars_of(batch), strict=True):
        notes = read_midi(data).notes
        events = [message for track in mido.MidiFile(file=io.BytesIO(data)).tracks for message in track]
        starts = [event for event in events if event.type == "note_on" and event.velocity]
        theirs = [note for track in symusic.Score.from_midi(data).tracks for note in track.notes]
        assert len(starts) == len(theirs) == len(notes.pitch) == sidecar["statistics"]["n_notes"] > 0
        assert sorted(event.note for event in starts) == sorted(note.pitch for note in theirs) == sorted(notes.pitch)


def test_manifest_and_sidecars_tell_where_a_piece_comes_from(home: Home, setup: Setup) -> None:
    batch = silent(home, setup, seed=7)
    manifest = json.loads((batch.folder / "manifest.json").read_text())
    assert manifest == batch.manifest
    assert manifest["n_pieces"] == len(manifest["pieces"]) == 5
    lineage = {
        "batch": batch.name, "model_version": "small-small@1", "model_run_id": "0123456789abcdef",
        "dataset_version": setup.model.dataset,
    }  # fmt: skip
    assert manifest | lineage == manifest
    assert manifest["config"]["seed"] == 7
    for index, (sidecar, listed, data) in enumerate(
        zip(sidecars_of(batch), manifest["pieces"], midi_of(batch), strict=True)
    ):
        assert sidecar | lineage == sidecar
        assert sidecar["code_commit"] == manifest["code_commit"] != ""
        assert (sidecar["index"], sidecar["name"], sidecar["seed"]) == (index, f"{index:04d}", 7)
        assert sidecar["sampling"] == to_json(SHORT)
        assert sidecar["prompt"] is None
        assert sidecar["midi_sha256"] == listed["midi_sha256"] == hashlib.sha256(data).hexdigest()
        assert listed["name"] == sidecar["name"]
        assert sidecar["statistics"] == pytest.approx(piece_statistics(read_midi(data)))
        assert 1 < sidecar["n_tokens"] <= SHORT.max_tokens
        assert sidecar["ended"] or sidecar["n_tokens"] == SHORT.max_tokens
    means = {name: np.mean([s["statistics"][name] for s in sidecars_of(batch)]) for name in manifest["statistics"]}
    assert manifest["statistics"] == pytest.approx(means)
    assert manifest["n_ended"] == sum(sidecar["ended"] for sidecar in sidecars_of(batch))


def test_the_manifest_names_no_folder_of_the_machine(home: Home, setup: Setup, tmp_path: Path) -> None:
    batch = silent(home, setup, n_pieces=2, prompt=str(setup.prompts))
    for path in batch.folder.rglob("*"):
        if path.is_file():
            assert str(tmp_path.parent).encode() not in path.read_bytes()
            assert str(setup.prompts.parent).encode() not in path.read_bytes()


def test_pieces_without_notes_make_a_batch_all_the_same(home: Home, setup: Setup) -> None:
    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is no JSON")

    batch = compose(home, setup, n_pieces=2, sampling=SamplingConfig(max_tokens=2))  # one id after <start>: no note
    assert len(files_of(batch.folder)) == 2 + 2 * 4
    for path in batch.folder.rglob("*.json"):
        json.loads(path.read_text(), parse_constant=refuse)
    assert [sidecar["statistics"]["n_notes"] for sidecar in sidecars_of(batch)] == [0, 0]
    for data in midi_of(batch):
        assert sum(len(track.notes) for track in symusic.Score.from_midi(data).tracks) == 0
        assert mido.MidiFile(file=io.BytesIO(data)).tracks
    assert batch.gallery.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("prompt", "kind", "said"),
    [
        ("gone.mid", NotFound, "gone.mid does not exist"),
        ("nowhere", NotFound, "nowhere does not exist"),
        ("empty", DatasetError, "empty holds no MIDI file"),
        ("words.txt", DatasetError, "words.txt is neither a folder nor"),
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
    for name in ("words.txt", "words.mid", "mixed/sub/bad.mid"):
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


def test_a_failure_half_way_keeps_what_is_written_and_the_same_call_goes_on(
    home: Home, setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, written = piece_work._write_candidate, list[int]()

    def fail_at_third(job: Any, candidate: Any, *rest: Any) -> None:
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        whole(job, candidate, *rest)
        written.append(candidate.index)

    monkeypatch.setattr(piece_work, "_write_candidate", fail_at_third)
    with pytest.raises(OSError, match="No space left"):
        silent(home, setup, batch_size=2)
    assert find_all(home) == []
    monkeypatch.setattr(
        piece_work, "_write_candidate", lambda job, candidate, *rest: (
            written.append(candidate.index), whole(job, candidate, *rest)
        )
    )  # fmt: skip
    seen: list[int] = []
    config = config_of(audio="none", batch_size=3)
    batch = generate_batch(home, setup.model, setup.checkpoint, config, seen.append)
    assert sorted(written) == [0, 1, 2, 3, 4]
    assert sum(seen) == 5
    assert files_of(batch.folder) == files_of(silent(Home.at(tmp_path / "other"), setup).folder)
    assert {path.name for path in home.generations.iterdir()} == {batch.name, batch.results.name}


def test_what_other_code_began_is_not_gone_on_with(home: Home, setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "render_all", refuse)
    with pytest.raises(KeyboardInterrupt):
        silent(home, setup, n_pieces=2)
    monkeypatch.undo()
    (unfinished,) = home.generations.iterdir()
    candidate = unfinished / "candidates" / "0000-0.json"
    assert candidate.exists()
    candidate.write_text("{}")  # stands for what other code would have made of it
    monkeypatch.setattr(generate, "git_commit", lambda: "0" * 40)
    batch = silent(home, setup, n_pieces=2)
    assert batch.manifest["code_commit"] == "0" * 40
    assert len(batch.manifest["pieces"]) == 2


@pytest.mark.parametrize("fresh", [False, True])
def test_an_interrupted_batch_is_gone_on_with_unless_it_shall_be_fresh(
    home: Home, setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: bool
) -> None:
    def stop(plan: Any, *_: Any) -> None:
        (piece_work.pieces_folder(plan.folder) / ".0001.png.77-1.tmp").write_bytes(b"half a picture")
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "render_all", stop)
    with pytest.raises(KeyboardInterrupt):
        silent(home, setup, n_pieces=2)
    monkeypatch.undo()
    written: list[int] = []
    whole = piece_work._write_candidate
    monkeypatch.setattr(
        piece_work, "_write_candidate", lambda job, c, *rest: (written.append(c.index), whole(job, c, *rest))
    )
    config = config_of(audio="none", n_pieces=2)
    batch = generate_batch(home, setup.model, setup.checkpoint, config, fresh=fresh)
    assert sorted(written) == ([0, 1] if fresh else [])
    assert files_of(batch.folder) == files_of(silent(Home.at(tmp_path / "other"), setup, n_pieces=2).folder)


def test_a_batch_remembers_the_run_that_holds_it(home: Home, setup: Setup) -> None:
    batch = silent(home, setup, n_pieces=1)
    assert batch.logged_run() == ""
    batch.note_run("ab" * 16)
    found = find_batch(home, batch.name)
    assert found is not None
    assert found.logged_run() == "ab" * 16


def test_what_a_kill_left_does_not_get_into_the_batch(home: Home, setup: Setup) -> None:
    first = silent(home, setup, n_pieces=2)
    files = files_of(first.folder)
    leftover = home.generations / f".{first.name}.unfinished" / "candidates"
    leftover.mkdir(parents=True)
    (leftover / "0001-0.mid").write_bytes(b"half")
    (first.folder / "pieces" / "0009.mid").write_bytes(b"not of this batch")
    assert files_of(silent(home, setup, n_pieces=2).folder) == files
    assert {path.name for path in home.generations.iterdir()} == {first.name, first.results.name}


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


def test_pieces_of_a_split_are_prompts(home: Home, setup: Setup) -> None:
    loaded = load_model(setup.checkpoint)
    data = Home.at(setup.checkpoint.parents[3])
    dataset = resolve_dataset(data, setup.model.dataset)
    store = TokenStore(dataset.token_shards("validation"))
    prompts = read_prompts(loaded, config_of(prompt="split:validation", n_pieces=2, prompt_notes=5), data)
    assert len(prompts) == min(2, len(store.offsets) - 1)
    for row, prompt in enumerate(prompts):
        whole = loaded.tokenizer.decode(store.tokens[store.offsets[row] : store.offsets[row + 1]])
        assert prompt.name == f"validation/{row:04d}"
        assert loaded.tokenizer.decode(np.array(prompt.ids)).notes.pitch.tolist() == whole.notes.pitch[:5].tolist()
    with pytest.raises(ConfigError, match="prompt=split:tests: no such split; one of train, validation, test"):
        read_prompts(loaded, config_of(prompt="split:tests"), data)


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


def test_batches_are_found_by_name_and_path(home: Home, setup: Setup) -> None:
    assert find_batch(home, "small-small-v1-0000000000") is None
    with pytest.raises(NotFound, match="known: none yet"):
        resolve_batch(home, "nonesuch")
    batch = silent(home, setup, n_pieces=1)
    assert find_batch(home, batch.name) == batch
    assert resolve_batch(home, str(batch.folder)).manifest == batch.manifest
    assert batch.gallery == batch.folder / "gallery.html"
    with pytest.raises(NotFound, match=f"no batch 'nonesuch' in .*known: {batch.name}"):
        resolve_batch(home, "nonesuch")


def test_a_batch_without_its_manifest_does_not_exist(home: Home, setup: Setup) -> None:
    batch = silent(home, setup, n_pieces=1)
    (batch.folder / "manifest.json").unlink()
    assert find_batch(home, batch.name) is None
