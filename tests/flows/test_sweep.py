"""`orchestrion sweep` through the real command line, Prefect, Ray and MLflow included."""

import csv
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.storage.home import Home
from tasks.tracking.mlflow_tracker import Tracker
from tasks.training.metrics_log import read_points
from tests.flows.conftest import last_json, run_flow, start_flow
from tests.samples import small_corpus, small_dataset

pytestmark = pytest.mark.slow

SMALL = [
    "train.n_steps=400", "train.batch_size=4", "train.seq_len=64", "train.validation_windows=4",
    "train.eval_interval=20", "train.checkpoint_interval=20", "train.model.d_model=32", "train.model.n_layers=1",
    "train.model.d_ff=64", "evaluate.n_samples=0", "evaluate.seq_len=64",
]  # fmt: skip
SETTINGS = [argument for setting in SMALL for argument in ("--set", setting)]
POINTS = ["--grid", "train.schedule.max_lr=0.01,1e18,0.0001", "--grid", "evaluate.seq_len=32,64"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    folder = tmp_path_factory.mktemp("sweep")
    where = Home.at(folder / "home")
    small_dataset(where, small_corpus(folder / "midi"))
    return where


def sweep(home: Home, *arguments: str) -> list[str]:
    return ["sweep", "--home", str(home.root), "--json", *SETTINGS, *arguments]


def end_when(home: Home, reached: Callable[[], Any], number: int) -> tuple[int, str]:
    """Start the sweep, send it a signal when something is reached, and return exit code and stderr."""
    said = home.root / "said"
    process = start_flow(home.root, *sweep(home, *POINTS), err=said)
    deadline = time.monotonic() + 240
    while not reached():
        assert process.poll() is None, said.read_text()
        assert time.monotonic() < deadline, f"the sweep does not get there: {said.read_text()}"
        time.sleep(0.02)
    process.send_signal(number)
    return process.wait(120), said.read_text()


def steps_saved(home: Home) -> dict[str, int]:
    """Return the step of each run's last checkpoint."""
    found = {}
    for pointer in home.runs.glob("*/checkpoints/last.json"):
        found[pointer.parent.parent.name] = int(json.loads(pointer.read_text())["checkpoint"].rpartition("-")[2])
    return found


def weights(home: Home) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in home.runs.rglob("*.safetensors")}


Swept = tuple[Home, dict[str, Any], dict[str, int], dict[str, int]]


@pytest.fixture(scope="module")
def swept(home: Home) -> Swept:
    """A sweep that was killed in its first point, stopped by Ctrl-C in its third, then let run to its end."""
    code, _ = end_when(home, lambda: any(step >= 100 for step in steps_saved(home).values()), signal.SIGKILL)
    assert code == -signal.SIGKILL
    after_kill = steps_saved(home)
    assert len(after_kill) == 1
    assert max(after_kill.values()) < 400

    def third_is_under_way() -> bool:
        steps = steps_saved(home)
        return len(steps) > 2 and any(20 < steps[name] < 400 for name in set(steps) - set(after_kill))

    code, said = end_when(home, third_is_under_way, signal.SIGINT)
    assert code == 130, said
    assert "points still to train; saved, the same command goes on" in said
    after_stop = steps_saved(home)
    return home, last_json(run_flow(home.root, *sweep(home, *POINTS))), after_kill, after_stop


def test_points_are_ranked_and_a_diverged_one_is_a_failed_row(swept: Swept) -> None:
    _, result, _, _ = swept
    rows = result["runs"]
    assert [row["status"] for row in rows] == ["finished"] * 4 + ["failed"] * 2
    assert [row["values"]["train.schedule.max_lr"] for row in rows] == [0.01, 0.01, 1e-4, 1e-4, 1e18, 1e18]
    assert rows[0]["bits_per_note"] <= rows[1]["bits_per_note"] < rows[2]["bits_per_note"]
    assert rows[4]["reason"].startswith("val/loss is nan at step 20 of 400")
    assert rows[0] == result["best"]
    assert (result["n_points"], result["n_finished"], result["n_failed"]) == (6, 4, 2)
    assert rows[0]["step"] == 400


def test_points_that_differ_in_their_evaluation_share_a_training(swept: Swept) -> None:
    home, result, _, _ = swept
    by_peak: dict[float, set[str]] = {}
    for row in result["runs"]:
        by_peak.setdefault(row["values"]["train.schedule.max_lr"], set()).add(row["run_dir"])
    assert [len(folders) for folders in by_peak.values()] == [1, 1, 1]
    assert len([path for path in home.runs.iterdir() if not path.name.startswith(".")]) == 3


def test_a_point_goes_on_where_it_was_killed_or_stopped(swept: Swept) -> None:
    home, _, after_kill, after_stop = swept
    assert sorted(after_stop.values())[-1] == 400
    for name in {**after_kill, **after_stop}:
        steps = [point["step"] for point in read_points(home.runs / name / "metrics.jsonl") if "val/loss" in point]
        assert steps == list(range(20, int(steps[-1]) + 1, 20))
        assert not list((home.runs / name).glob("ray*"))
    assert not (home.runs / ".tune").exists()


def test_the_same_sweep_again_trains_nothing(swept: Swept) -> None:
    home, result, _, _ = swept
    before = weights(home)
    again = last_json(run_flow(home.root, *sweep(home, *POINTS)))
    assert weights(home) == before
    for key in ("sweep", "run_id", "runs", "reused"):
        assert again[key] == (result | {"reused": True})[key]


def test_train_with_the_winning_settings_finds_it_done(swept: Swept) -> None:
    home, result, _, _ = swept
    best = result["best"]
    done = run_flow(
        home.root, "train", "--home", str(home.root), "--json", *SETTINGS, "--set", "train.schedule.max_lr=0.01"
    )
    trained = last_json(done)
    assert trained["reused"]
    assert trained["model_version"] == best["model_version"]
    assert Path(trained["run_dir"]).name == best["run_dir"]


def test_the_tables_and_the_picture_are_files_and_artifacts(swept: Swept) -> None:
    home, result, _, _ = swept
    assert json.loads(Path(result["results"]).read_text())["rows"] == result["runs"]
    with Path(result["table"]).open() as handle:
        lines = list(csv.DictReader(handle))
    assert [line["train.schedule.max_lr"] for line in lines] == ["0.01", "0.01", "0.0001", "0.0001", "1e+18", "1e+18"]
    assert Path(result["plot"]).read_bytes().startswith(b"\x89PNG")
    artifacts = {entry.path for entry in Tracker(home).client.list_artifacts(result["run_id"])}
    assert artifacts == {"results.csv", "results.json", "results.png", "sweep.md"}


def test_each_point_is_a_child_run_with_curves_parameters_and_model(swept: Swept) -> None:
    home, result, _, _ = swept
    client = Tracker(home).client
    experiments = [Tracker(home).experiment(f"orchestrion/{name}") for name in ("training", "evaluation")]
    children = client.search_runs(experiments, f"tags.mlflow.parentRunId = '{result['run_id']}'")
    assert len(children) == 3 + 4
    trained = {run.info.run_id: run for run in children if run.info.experiment_id == experiments[0]}
    assert sorted(run.info.status for run in trained.values()) == ["FAILED", "FINISHED", "FINISHED"]
    for row in result["runs"]:
        run = trained[row["run_id"]]
        assert float(run.data.params["train.schedule.max_lr"]) == row["values"]["train.schedule.max_lr"]
        if row["status"] == "finished":
            assert run.data.tags["orchestrion.model_version"] == row["model_version"]
            assert [point.step for point in client.get_metric_history(row["run_id"], "val/loss")] == [
                *range(20, 401, 20)
            ]
    assert client.get_run(result["run_id"]).info.status == "FINISHED"
    champion = Tracker(home).champion("small-music_transformer_tiny")
    assert champion is not None
    assert champion.reference == result["best"]["model_version"]


def test_a_sweep_of_which_every_point_fails_is_a_failed_one(home: Home) -> None:
    arguments = sweep(home, "--set", "train.n_steps=20", "--grid", "train.schedule.max_lr=1e18,1e19")
    done = run_flow(home.root, *arguments, "--concurrent", str(min(2, os.cpu_count() or 1)))
    assert done.returncode == 1
    complaint = [line for line in done.stderr.splitlines() if line.startswith("orchestrion:")]
    assert len(complaint) == 1
    assert "none of 2 points came to a result; point 1: training diverged at step " in complaint[0]
