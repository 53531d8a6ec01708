"""A home that 96e5a72 made opens, and each thing in it goes on."""

import hashlib
import json
from pathlib import Path

import pytest

from tests.flows.conftest import last_json, orchestrion, run_flow
from tests.homes import unpack_home

pytestmark = pytest.mark.slow

# Under the names that the settings had then.
MODEL = [
    "train.batch_size=4", "train.window_tokens=64", "train.validation_windows=4", "train.evaluate_every=6",
    "train.checkpoint_every=6", "train.model.d_model=16", "train.model.n_heads=2", "train.model.n_layers=1",
    "train.model.d_ff=32",
]  # fmt: skip
DATASET = [
    "dataset.augment.transpositions=[0,1]", "dataset.augment.stretches=[1.0]", "dataset.parse.shard_files=4",
]  # fmt: skip
BATCH = ["generate.sampling.max_tokens=64", "generate.prompt_notes=12", "generate.audio=none"]


def options(*settings: str) -> list[str]:
    return [argument for setting in settings for argument in ("--set", setting)]


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The home and its source files."""
    return unpack_home("96e5a72", tmp_path_factory.mktemp("old"))


def test_its_dataset_is_whole_and_is_rebuilt_from_its_source(old: tuple[Path, Path]) -> None:
    home, source = old
    verified = orchestrion(home, "datasets", "verify", "--home", str(home))
    assert verified.returncode == 0, verified.stderr
    rebuilt = last_json(
        run_flow(home, "rebuild", "--home", str(home), "--source", str(source), "--name", "small", "--json",
                    *options(*DATASET))
    )  # fmt: skip
    assert (rebuilt["n_files"], rebuilt["n_accepted"], rebuilt["n_duplicate"], rebuilt["n_rejected"]) == (13, 8, 1, 4)


def test_its_finished_run_is_found(old: tuple[Path, Path]) -> None:
    home, _ = old
    settings = options(*MODEL, "train.seed=0", "train.n_steps=12")
    asked = ["train", "--home", str(home), "--dataset", "small@251d8e45b1452670", "--json"]
    planned = last_json(orchestrion(home, *asked, *settings, "--dry-run"))
    assert (planned["status"], planned["step"], planned["disk_bytes"]) == ("finished", 12, 0)
    done = run_flow(home, *asked, *settings)
    trained = last_json(done)
    assert trained["reused"]
    assert trained["model_version"] == "small-music_transformer_tiny@1"
    assert Path(trained["run_dir"]).name == "music_transformer_tiny-051897fc9353"
    assert "setting train.window_tokens is now train.seq_len" in done.stderr


def test_its_stopped_run_goes_on_where_it_stopped(old: tuple[Path, Path]) -> None:
    home, _ = old
    (stopped,) = [path.parent for path in (home / "runs").glob("*/run.json") if not is_finished(path)]
    steps_before = [json.loads(line)["step"] for line in (stopped / "metrics.jsonl").read_text().splitlines()]
    settings = options(*MODEL, "train.seed=2", "train.n_steps=200")
    asked = ["train", "--home", str(home), "--dataset", "small@251d8e45b1452670", "--json"]
    planned = last_json(orchestrion(home, *asked, *settings, "--dry-run"))
    assert (planned["status"], planned["step"], planned["run_dir"]) == ("stopped", 19, str(stopped))
    trained = last_json(run_flow(home, *asked, *settings))
    assert Path(trained["run_dir"]) == stopped
    steps = [json.loads(line)["step"] for line in (stopped / "metrics.jsonl").read_text().splitlines()]
    assert steps[: len(steps_before)] == steps_before
    assert max(steps) == 200


def is_finished(run: Path) -> bool:
    return json.loads(run.read_text())["status"] == "finished"


def test_its_batch_is_found_again_and_its_model_scores_and_composes(old: tuple[Path, Path]) -> None:
    home, source = old
    prompt = source / "chorale-000-c-minor.mid"
    asked = ["generate", "--home", str(home), "--model", "small-music_transformer_tiny@1", "--json"]
    evaluated = last_json(
        run_flow(home, "evaluate", "--home", str(home), "--model", "small-music_transformer_tiny@1", "--json",
                    *options("evaluate.n_samples=2", "evaluate.sample_tokens=64", "evaluate.n_continuations=1"))
    )  # fmt: skip
    assert evaluated["metrics"]["bits_per_note"] > 0
    composed = last_json(run_flow(home, *asked, "-n", "2", "--seed", "5", "--prompt", str(prompt), *options(*BATCH)))
    assert Path(composed["batch_dir"]).is_relative_to(home)
    assert len(list((Path(composed["batch_dir"]) / "pieces").glob("*.mid"))) == 2
    piece = home / "generations" / "small-music_transformer_tiny-v1-8267af1d4f" / "pieces" / "0001.mid"
    walked = orchestrion(home, "lineage", str(piece), "--home", str(home))
    assert walked.returncode == 0, walked.stderr
    assert "small@251d8e45b1452670" in walked.stdout


def test_its_session_goes_on(old: tuple[Path, Path], tmp_path: Path) -> None:
    home, _ = old
    proposal = (home / "sessions" / "tune" / "proposal.mid").read_bytes()
    for step in ("accept", "propose"):
        done = orchestrion(home, "compose", step, "tune", "--home", str(home))
        assert done.returncode == 0, done.stderr
    proposed = json.loads((home / "sessions" / "tune" / "session.json").read_text())["proposal"]
    # The ids that 96e5a72 proposes there, whose sessions say nothing of the settings that came later.
    assert hashlib.sha256(json.dumps(proposed["ids"]).encode()).hexdigest().startswith("45c23ff1131a0fa6")
    undone = orchestrion(home, "compose", "undo", "tune", "--home", str(home))
    assert undone.returncode == 0, undone.stderr
    accepted = orchestrion(home, "compose", "save", "tune", "--home", str(home), "-o", str(tmp_path / "tune.mid"))
    assert accepted.returncode == 0, accepted.stderr
    assert (tmp_path / "tune.mid").read_bytes() != proposal  # the accepted second block was undone again
