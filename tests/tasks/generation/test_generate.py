"""Batches: the same bytes for any workers, order of units, kill and restart; all of a batch or none of it."""

import hashlib
import io
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import mido
import numpy as np
import psutil
import pytest
import symusic

from models.config import SamplingConfig
from tasks import checkpoints
from tasks.checkpoints import load_model
from tasks.config.serialization import to_json
from tasks.errors import ConfigError
from tasks.generation import batch_files, candidates, generate, selection
from tasks.generation.generate import find_batch, find_whole_batch, generate_batch, read_request
from tasks.generation.selection import render_all, units_of
from tasks.generation.summary import batch_card
from tasks.music.metrics.piece_metrics import piece_statistics
from tasks.music.midi import events
from tasks.music.midi.read_midi import read_midi
from tasks.runtime.progress import Progress
from tasks.storage.home import Home
from tasks.storage.integrity import read_sealed
from tests.conftest import REPOSITORY
from tests.studio import (
    SHORT,
    Setup,
    Studio,
    compose,
    config_of,
    files_of,
    midi_of,
    scores_of,
    sidecars_of,
    silent,
)

pytestmark = pytest.mark.slow  # seconds a test; see `make check`


def test_every_file_is_the_same_for_any_order_of_units(
    home: Home, setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"batch_size": 2, "prompt": str(setup.prompts)}
    first = compose(home, setup, **settings)
    files = files_of(first.folder)
    pieces = [f"pieces/{index:04d}.{kind}" for index in range(5) for kind in ("mid", "json", "png", "ogg")]
    parts = ("prompt", "generated", "original", "continued_original")
    continued = [f"continuations/{index:04d}/{part}.mid" for index in range(5) for part in parts]
    assert sorted(files) == sorted(["manifest.json", "gallery.html", *pieces, *continued])
    begun, write_unit = list[tuple[int, ...]](), candidates.write_unit
    monkeypatch.setattr(selection, "units_of", lambda *given: units_of(*given)[::-1])
    monkeypatch.setattr(
        candidates, "write_unit", lambda plan, unit, *rest: (
            begun.append(tuple(candidate.index for candidate in unit)), write_unit(plan, unit, *rest)
        )
    )  # fmt: skip
    other = compose(home, setup, **settings)
    assert begun == [(4,), (2, 3), (0, 1)]
    assert other.name == first.name
    assert files_of(other.folder) == files


def test_units_are_of_one_attempt_in_the_order_of_the_request() -> None:
    first = selection.first_candidates(config_of(best_of=2))
    units = [[(candidate.index, candidate.attempt) for candidate in unit] for unit in units_of(first, 3)]
    assert units == [[(0, 0), (1, 0), (2, 0)], [(3, 0), (4, 0)], [(0, 1), (1, 1), (2, 1)], [(3, 1), (4, 1)]]
    assert units_of([], 3) == []


def test_a_piece_depends_on_its_unit_alone(home: Home, setup: Setup) -> None:
    few, many = (scores_of(silent(home, setup, n_pieces=n, batch_size=2)) for n in (2, 5))
    for mine, theirs in zip(few, many, strict=False):
        for name in ("onset", "duration", "pitch", "velocity"):
            np.testing.assert_array_equal(getattr(mine.notes, name), getattr(theirs.notes, name))
    assert len({tuple(score.notes.pitch.tolist()) for score in many}) == 5


def test_weights_are_read_once_and_each_piece_is_written_once_and_parsed_once_in_each_stage(
    home: Home, setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Counter[str]()

    def count(module: Any, name: str) -> None:
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given, **named: calls.update([name]) or function(*given, **named))

    count(checkpoints, "load")
    count(events, "read_events")
    count(candidates, "write_midi")
    silent(home, setup, n_pieces=3)
    assert calls == {"load": 1, "write_midi": 3, "read_events": 2 * 3}  # to check the file, and to draw it


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_notes": 3, "sampling": SamplingConfig(max_tokens=300)},
        {"sampling": replace(SHORT, beams=3, max_tokens=16), "n_pieces": 3},
        {"prompt": "b.mid", "infill_bars": (1, 1), "best_of": 2, "best_by": "join"},
        {"prompt": "b.mid", "variation": 0.5, "best_of": 2, "best_by": "join"},
    ],
    ids=str,
)
def test_progress_counts_tokens_and_then_seconds_of_music(
    home: Home, setup: Setup, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.sampling.token_count.SECONDS_BETWEEN_REPORTS", 0.0)
    shown: list[Watched] = []

    def show(label: str, total: int, unit: str) -> Watched:
        shown.append(Watched(label, total, unit))
        return shown[-1]

    if "prompt" in settings:
        settings = settings | {"prompt": str(setup.prompts / settings["prompt"])}
    config = config_of(**settings)
    batch = generate_batch(read_request(home, setup.model, setup.checkpoint, config), show=show)
    composing, rendering = shown
    assert [(s.label, s.unit) for s in shown] == [("composing", "tokens"), ("rendering", "seconds of music")]
    assert composing.done == composing.total > 0
    assert len(composing.steps) > 5 * batch.manifest["n_pieces"]  # not only when a piece is complete
    n_attempts = batch.manifest["n_attempts"]
    assert composing.note == f"{n_attempts} of {n_attempts} pieces are written"
    assert (
        rendering.done
        == rendering.total
        == sum(max(round(piece["statistics"]["seconds"]), 1) for piece in sidecars_of(batch))
    )


class Watched(Progress):
    """A progress that keeps the steps that it is told."""

    def advance(self, n: int = 1, note: str = "") -> None:
        self.__dict__.setdefault("steps", []).append(n)
        super().advance(n, note)


def test_results_tell_lengths_entropies_and_times(home: Home, setup: Setup) -> None:
    batch = silent(home, setup, prompt=str(setup.prompts), prompt_tokens=20)
    results = json.loads(batch.results.read_text())
    sidecars = sidecars_of(batch)
    published = {
        "composition_dir", "prompt_length", "generated_length", "original_length", "continued_original_length",
        "ended_with_eos", "prompt_original_path", "entropy", "generation_time",
    }  # fmt: skip
    assert all(published <= set(row) for row in results["pieces"])
    assert [row["piece"] for row in results["pieces"]] == [sidecar["name"] for sidecar in sidecars]
    for row, sidecar in zip(results["pieces"], sidecars, strict=True):
        assert row["prompt"] == sidecar["prompt"]["name"]
        assert row["prompt_length"] == sidecar["prompt"]["n_tokens"] <= 20
        assert row["prompt_length"] < row["original_length"]
        assert Path(row["prompt_original_path"]).read_bytes() == (setup.prompts / row["prompt"]).read_bytes()
        most = min(batch.manifest["most_tokens"], row["original_length"])
        assert row["continued_original_length"] == most - row["prompt_length"]
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
    names = ("composition_dir", "prompt_original_path", "continued_original_length")
    assert {row[name] for row in rows for name in names} == {None}
    assert not (alone.folder / "continuations").exists()


def test_each_continued_piece_has_four_midi_files(home: Home, setup: Setup) -> None:
    batch = silent(home, setup, prompt=str(setup.prompts), prompt_tokens=20)
    tokenizer = load_model(setup.checkpoint).tokenizer
    for row in json.loads(batch.results.read_text())["pieces"]:
        folder = batch.folder / row["composition_dir"]
        found = {path.stem: path.read_bytes() for path in folder.iterdir()}
        assert sorted(found) == ["continued_original", "generated", "original", "prompt"]
        assert found["generated"] == (batch.folder / "pieces" / f"{row['piece']}.mid").read_bytes()
        ids = tokenizer.encode(read_midi(Path(row["prompt_original_path"])).notes).ids
        n_given = row["prompt_length"]
        ends = {"prompt": n_given, "continued_original": n_given + row["continued_original_length"], "original": None}
        for part, end in ends.items():
            notes, expected = read_midi(found[part]).notes, tokenizer.decode(ids[:end]).notes
            assert notes.pitch.tolist() == expected.pitch.tolist()
            assert notes.onset_seconds == pytest.approx(expected.onset_seconds, abs=1e-3)
    assert find_whole_batch(home, batch.name) is not None
    (folder / "original.mid").write_bytes(b"MThd")
    assert find_whole_batch(home, batch.name) is None
    silent(home, setup, prompt=str(setup.prompts), prompt_tokens=20)
    assert {path.stem: path.read_bytes() for path in folder.iterdir()} == found


def test_a_batch_is_copied_to_a_folder_and_replaces_its_own_copy_alone(
    home: Home, setup: Setup, tmp_path: Path
) -> None:
    first, other, out = silent(home, setup), silent(home, setup, seed=5), tmp_path / "new" / "out"

    def copy(batch: generate.Batch, out: Path = out) -> None:
        batch_files.copy_batch(batch.folder, batch.results, out)

    copy(first)
    expected = files_of(first.folder) | {"results.json": hashlib.sha256(first.results.read_bytes()).hexdigest()}
    assert files_of(out) == expected
    (out / "pieces" / "0000.mid").write_bytes(b"MThd")
    (out / "gallery.html").unlink()
    copy(first)
    assert files_of(out) == expected
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    with pytest.raises(ConfigError, match=f"holds batch {first.name}, not {other.name}; name another folder"):
        copy(other)
    (tmp_path / "letters").mkdir()
    copy(other, tmp_path / "letters")  # an empty folder
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "song.mid").write_bytes(b"")
    with pytest.raises(ConfigError, match="mine is not empty and holds no batch; name another folder"):
        copy(first, tmp_path / "mine")
    (tmp_path / "mine" / "manifest.json").write_bytes(b"{}")
    with pytest.raises(ConfigError, match="mine holds something that is no whole batch"):
        copy(first, tmp_path / "mine")
    assert (tmp_path / "mine" / "song.mid").exists()


def test_prompts_of_a_split_have_their_path_in_the_sources(studio: Studio) -> None:
    batch = studio.compose(prompt="split:test", n_pieces=2)
    for row in json.loads(batch.results.read_text())["pieces"]:
        assert (studio.home.root.parent / "midi" / row["prompt_original_path"]).is_file()


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


def find_all(home: Home) -> list[generate.Batch]:
    found = [find_batch(home, path.parent.name) for path in sorted(home.generations.glob("*/manifest.json"))]
    return [batch for batch in found if batch]


@pytest.mark.slow
def test_every_file_is_the_same_for_two_workers(home: Home, setup: Setup, ray: None) -> None:
    one = files_of(compose(home, setup, batch_size=2).folder)
    config = config_of(n_workers=2, batch_size=2)
    stages: list[Progress] = []

    def show(label: str, total: int, unit: str) -> Progress:
        stages.append(Progress(label, total, unit))
        return stages[-1]

    two = generate_batch(read_request(home, setup.model, setup.checkpoint, config), show=show)
    assert files_of(two.folder) == one
    assert stages[0].note == "5 of 5 pieces are written"
    assert [stage.done for stage in stages] == [stage.total for stage in stages]  # what the workers drew and rendered
    assert stages[0].done > 5


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_only_time(home: Home, setup: Setup, ray: None, tmp_path: Path) -> None:
    killed: list[int] = []
    done = threading.Event()

    def kill_one() -> None:
        while not killed and not done.is_set():
            for process in psutil.Process().children(recursive=True):
                if not killed and is_writer(process):
                    process.kill()
                    killed.append(process.pid)
            time.sleep(0.01)

    long = config_of(n_workers=2, batch_size=2, n_pieces=12, audio="none", sampling=SamplingConfig(max_tokens=400))
    killer = threading.Thread(target=kill_one)
    killer.start()
    try:
        batch = generate_batch(read_request(home, setup.model, setup.checkpoint, long))
    finally:
        done.set()
        killer.join()
    assert len(killed) == 1
    alone_config = replace(long, n_workers=1)
    alone = generate_batch(read_request(Home.at(tmp_path / "other"), setup.model, setup.checkpoint, alone_config))
    assert files_of(batch.folder) == files_of(alone.folder)


def is_writer(process: psutil.Process) -> bool:
    try:
        return process.name().startswith("ray::_write_unit")
    except psutil.Error:  # it has just ended
        return False


CHILD = """
import sys
from pathlib import Path
from tasks.generation.generate import generate_batch, read_request
from tasks.storage.home import Home
from tests.studio import config_of, model_of
home, checkpoint, dataset, prompts = sys.argv[1:]
model = model_of(Path(checkpoint), dataset)
generate_batch(read_request(Home.at(home), model, Path(checkpoint), config_of(prompt=prompts)))
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


def test_what_changes_the_bytes_changes_the_name(home: Home, setup: Setup, tmp_path: Path) -> None:
    def name(**settings: Any) -> str:
        config = config_of(**settings)
        return read_request(home, setup.model, setup.checkpoint, config).name

    renamed = tmp_path / "other name.mid"
    renamed.write_bytes((setup.prompts / "b.mid").read_bytes())
    names = [
        name(), name(seed=1), name(n_pieces=4), name(audio="none"), name(sampling=replace(SHORT, temperature=0.9)),
        name(prompt=str(setup.prompts)), name(prompt=str(setup.prompts / "b.mid")), name(prompt=str(renamed)),
        name(prompt=str(setup.prompts), prompt_tokens=12), name(batch_size=1), name(sampling=replace(SHORT, threads=2)),
    ]  # fmt: skip
    assert len(set(names)) == len(names)
    assert name(n_workers=4) == name(n_workers=0) == name(device="cpu") == name(gpus_per_worker=0.5) == name()
    other = replace(setup.model, version="2")
    assert read_request(home, other, setup.checkpoint, config_of()).name != name()
    assert all(found.startswith("small-small-v1-") for found in names)


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
    batch = silent(home, setup, seed=7, batch_size=3)
    manifest = read_sealed(batch.folder / "manifest.json")
    assert manifest == batch.manifest
    assert manifest["n_pieces"] == len(manifest["pieces"]) == 5
    lineage = {
        "batch": batch.name, "model_version": "small-small@1", "model_run_id": "0123456789abcdef",
        "dataset_version": setup.model.dataset,
    }  # fmt: skip
    assert manifest | lineage == manifest
    asked = manifest["config"]
    assert (asked["seed"], asked["batch_size"], asked["sampling"]["threads"], asked["n_workers"]) == (7, 3, 1, None)
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


def test_a_failure_half_way_keeps_what_is_written_and_the_same_call_goes_on(
    home: Home, setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, written = candidates._write_candidate, list[int]()

    def fail_at_third(job: Any, candidate: Any, *rest: Any) -> None:
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        whole(job, candidate, *rest)
        written.append(candidate.index)

    monkeypatch.setattr(candidates, "_write_candidate", fail_at_third)
    with pytest.raises(OSError, match="No space left"):
        silent(home, setup, batch_size=3)
    assert find_all(home) == []
    monkeypatch.setattr(
        candidates, "_write_candidate", lambda job, candidate, *rest: (
            written.append(candidate.index), whole(job, candidate, *rest)
        )
    )  # fmt: skip
    stages: list[Progress] = []

    def show(label: str, total: int, unit: str) -> Progress:
        stages.append(Progress(label, total, unit))
        return stages[-1]

    config = config_of(audio="none", batch_size=3)
    batch = generate_batch(read_request(home, setup.model, setup.checkpoint, config), show=show)
    assert sorted(written) == [0, 1, 2, 3, 4]
    assert stages[0].note == "5 of 5 pieces are written"
    assert stages[0].done == stages[0].total
    assert files_of(batch.folder) == files_of(silent(Home.at(tmp_path / "other"), setup, batch_size=3).folder)
    assert {path.name for path in home.generations.iterdir()} == {batch.name, batch.results.name}


def test_what_other_code_began_is_refused_and_left_as_it_is(
    home: Home, setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "render_all", refuse)
    with pytest.raises(KeyboardInterrupt):
        silent(home, setup, n_pieces=2)
    monkeypatch.undo()
    (unfinished,) = home.generations.iterdir()
    files = files_of(unfinished)
    assert "candidates/0000-0.json" in files
    name = unfinished.name.removeprefix(".").removesuffix(".unfinished")
    monkeypatch.setattr(generate, "git_commit", lambda: "0" * 40)
    with pytest.raises(
        ConfigError,
        match=f"the unfinished batch {name} was begun with another code commit, .*; --fresh begins it again",
    ) as said:
        silent(home, setup, n_pieces=2)
    assert said.value.exit_code == 2
    assert files_of(unfinished) == files
    (unfinished / "candidates" / "0000-0.json").write_text("{}")  # stands for what other code would have made of it
    config = config_of(audio="none", n_pieces=2)
    batch = generate_batch(read_request(home, setup.model, setup.checkpoint, config), fresh=True)
    assert batch.manifest["code_commit"] == "0" * 40
    assert len(batch.manifest["pieces"]) == 2


@pytest.mark.parametrize("damage", ["mid", "json"])
def test_a_damaged_piece_has_its_unit_sampled_again_and_others_are_left(
    home: Home, setup: Setup, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    files = files_of(silent(home, setup, batch_size=2).folder)

    def stop(plan: Any, *_: Any) -> None:
        piece = candidates.Candidate(2).path(plan.folder, damage)
        piece.write_bytes(piece.read_bytes()[:-9])
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "render_all", stop)
    with pytest.raises(KeyboardInterrupt):
        silent(home, setup, batch_size=2)
    (unfinished,) = home.generations.glob(".*.unfinished")
    before = {path.name: path.stat().st_mtime_ns for path in (unfinished / "candidates").iterdir()}
    after = dict[str, int]()

    def look(plan: Any, *rest: Any) -> Any:
        after.update({path.name: path.stat().st_mtime_ns for path in (plan.folder / "candidates").iterdir()})
        return render_all(plan, *rest)

    monkeypatch.setattr(generate, "render_all", look)
    assert files_of(silent(home, setup, batch_size=2).folder) == files
    assert {name for name in after if after[name] != before[name]} == {"0002-0.mid", "0002-0.json"}


@pytest.mark.parametrize("fresh", [False, True])
def test_an_interrupted_batch_is_gone_on_with_unless_it_shall_be_fresh(
    home: Home, setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: bool
) -> None:
    def stop(plan: Any, *_: Any) -> None:
        (candidates.pieces_folder(plan.folder) / ".0001.png.77-1.tmp").write_bytes(b"half a picture")
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "render_all", stop)
    with pytest.raises(KeyboardInterrupt):
        silent(home, setup, n_pieces=2)
    monkeypatch.undo()
    written: list[int] = []
    whole = candidates._write_candidate
    monkeypatch.setattr(
        candidates, "_write_candidate", lambda job, c, *rest: (written.append(c.index), whole(job, c, *rest))
    )
    config = config_of(audio="none", n_pieces=2)
    batch = generate_batch(read_request(home, setup.model, setup.checkpoint, config), fresh=fresh)
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


def test_batches_are_found_by_name(home: Home, setup: Setup) -> None:
    assert find_batch(home, "small-small-v1-0000000000") is None
    batch = silent(home, setup, n_pieces=1)
    assert find_batch(home, batch.name) == batch
    assert batch.gallery == batch.folder / "gallery.html"
    assert "1 piece, " in batch.gallery.read_text()
    assert "\n\n1 piece by " in batch_card(batch)
    assert find_batch(home, "nonesuch") is None


def test_a_batch_without_its_manifest_does_not_exist(home: Home, setup: Setup) -> None:
    batch = silent(home, setup, n_pieces=1)
    (batch.folder / "manifest.json").unlink()
    assert find_batch(home, batch.name) is None
