"""Extended runs: the bits of a run in one go, the settings that may change, and what is refused."""

import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from models.config import ConstantSchedule, WarmupCosineSchedule
from tasks.checkpoints import CheckpointFolder
from tasks.config.serialization import to_json
from tasks.config.training import TrainConfig
from tasks.dataset.versions import DatasetVersion
from tasks.errors import ConfigError, NotFound
from tasks.storage.files import write_atomically
from tasks.storage.home import Home
from tasks.storage.integrity import sealed_bytes
from tasks.training.job import divergence_of, make_job, run_dir_of
from tasks.training.metrics_log import read_points
from tasks.training.plan import plan_training
from tasks.training.resume import begin_from, check_extension, find_parent, identity, tell_apart
from tasks.training.worker import run_steps
from tests.samples import short_training

pytestmark = pytest.mark.slow

CONSTANT = ConstantSchedule(rate=1e-3)


def trained(home: Home, dataset: DatasetVersion, config: TrainConfig, parent: Any = None) -> Path:
    """Train in this process and leave the `run.json` that the flow leaves; return the run's folder."""
    folder = run_dir_of(home, config, dataset, identity(parent, config))
    if parent:
        folder.mkdir()
        begin_from(parent, config, folder)
    run_steps(make_job(config, dataset, folder))
    facts = {"run_id": f"mlflow-{folder.name}", "status": "finished", "model": "small-small@1"}
    facts |= {"config": to_json(config), "dataset": dataset.reference}
    write_atomically(folder / "run.json", sealed_bytes(facts))
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    last = CheckpointFolder(folder / "checkpoints").find("last")
    assert last is not None
    return {path.name: path.read_bytes() for path in last.iterdir()}


def points_of(folder: Path) -> list[dict[str, float]]:
    points = read_points(folder / "metrics.jsonl")
    return [{key: value for key, value in point.items() if key != "train/tokens_per_second"} for point in points]


@pytest.fixture
def parent_folder(home: Home, dataset: DatasetVersion) -> Path:
    return trained(home, dataset, short_training(schedule=CONSTANT))


def test_a_run_extended_in_one_go_or_two_has_the_bits_of_one_that_was_not(
    home: Home, dataset: DatasetVersion, parent_folder: Path, tmp_path: Path
) -> None:
    straight = tmp_path / "straight"
    whole = short_training(schedule=CONSTANT, n_steps=24)
    run_steps(make_job(whole, dataset, straight))
    once = trained(home, dataset, whole, find_parent(home, parent_folder.name))
    assert files_of(once) == files_of(straight)
    assert points_of(once) == points_of(straight)
    assert once == run_dir_of(home, whole, dataset)  # so `train` with 24 steps finds it finished

    shutil.rmtree(once)
    half = trained(home, dataset, replace(whole, n_steps=18), find_parent(home, parent_folder.name))
    twice = trained(home, dataset, whole, find_parent(home, half.name))
    assert files_of(twice) == files_of(straight)
    assert points_of(twice) == points_of(straight)


def test_the_parent_keeps_its_files(home: Home, dataset: DatasetVersion, parent_folder: Path) -> None:
    before = {path: path.read_bytes() for path in parent_folder.rglob("*") if path.is_file()}
    trained(home, dataset, short_training(schedule=CONSTANT, n_steps=18), find_parent(home, parent_folder.name))
    assert {path: path.read_bytes() for path in parent_folder.rglob("*") if path.is_file()} == before


def test_a_schedule_that_depends_on_the_total_makes_another_run(
    home: Home, dataset: DatasetVersion, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    parent = find_parent(home, trained(home, dataset, short_training()).name)
    longer = short_training(n_steps=18, schedule=WarmupCosineSchedule(max_lr=1e-2, warmup_steps=4, min_lr_ratio=0.5))
    check_extension(parent, longer, "")
    folder = trained(home, dataset, longer, parent)
    assert folder != run_dir_of(home, longer, dataset)
    assert "at step 12 the learning rate was 0.001, now it is 0.00" in caplog.text
    assert "train.schedule.min_lr_ratio 0.1 -> 0.5" in caplog.text
    rates = {point["step"]: point["train/learning_rate"] for point in points_of(folder) if "train/loss" in point}
    assert list(rates) == list(range(2, 19, 2))
    assert rates[18] == pytest.approx(0.005)
    plan = plan_training(home, replace(longer, n_steps=30), dataset, parent=parent)
    assert (plan["status"], plan["step"]) == ("extended", 12)


def test_a_run_is_found_by_folder_checkpoint_mlflow_run_and_model(
    home: Home, parent_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home.root)
    last = CheckpointFolder(parent_folder / "checkpoints").find("last")
    references = (parent_folder.name, parent_folder, f"runs/{parent_folder.name}", last,
                  f"mlflow-{parent_folder.name}", "small-small@1")  # fmt: skip
    for reference in references:
        parent = find_parent(home, str(reference))
        assert (parent.folder, parent.step, parent.config.n_steps) == (parent_folder, 12, 12)


def test_a_reference_to_no_run_is_refused(home: Home, parent_folder: Path, tmp_path: Path) -> None:
    other = Home.at(tmp_path / "other")
    other.prepare()
    shutil.copytree(parent_folder, other.runs / "stranger")
    for reference in ("unknown", "..", ".", "", str(other.runs / "stranger"), str(home.runs), "small-small@2"):
        with pytest.raises(NotFound, match=rf"--resume {reference}: no run of the home .*{parent_folder.name}"):
            find_parent(home, reference)
    (home.runs / "empty").mkdir()
    with pytest.raises(NotFound, match=r"it has no run\.json"):
        find_parent(home, "empty")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_run_that_another_user_closed_is_refused(home: Home, parent_folder: Path) -> None:
    (parent_folder / "run.json").chmod(0)
    with pytest.raises(NotFound, match="cannot be read"):
        find_parent(home, parent_folder.name)


def test_a_run_without_a_checkpoint_and_a_diverged_one_are_refused(home: Home, parent_folder: Path) -> None:
    divergence_of(parent_folder).write_text("training diverged at step 9 of 12: the loss is nan; no model\n")
    with pytest.raises(ConfigError, match="training diverged at step 9 of 12: the loss is nan; train anew"):
        find_parent(home, parent_folder.name)
    divergence_of(parent_folder).unlink()
    shutil.rmtree(parent_folder / "checkpoints")
    with pytest.raises(NotFound, match="has no checkpoint yet"):
        find_parent(home, parent_folder.name)


def test_settings_that_must_stay_are_named_with_both_values(
    home: Home, dataset: DatasetVersion, parent_folder: Path
) -> None:
    parent = find_parent(home, parent_folder.name)
    longer = replace(parent.config, n_steps=18, n_workers=2, eval_interval=3, checkpoint_interval=3, log_interval=1)
    check_extension(parent, longer, dataset.reference)
    check_extension(parent, longer, dataset.name)
    refused: list[tuple[dict[str, object], str]] = [
        ({"batch_size": 8}, "train.batch_size=8, there 4: an extended run keeps the settings of"),
        ({"model": replace(parent.config.model, n_layers=3)}, "train.model.n_layers=3, there 2"),  # type: ignore[type-var]
        ({"schedule": ConstantSchedule(rate=1.0)}, "train.schedule.rate=1.0, there 0.001"),
        (
            {"n_steps": 12},
            "train.n_steps=12: run .* has ended after 12 steps; to extend it, set for example --set train.n_steps=24",
        ),
        ({"n_steps": 5}, "train.n_steps=5: run .* has ended after 12 steps"),
    ]
    for changes, message in refused:
        with pytest.raises(ConfigError, match=message):
            check_extension(parent, replace(longer, **changes), "")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=f"--dataset other: run .* was trained on {dataset.reference}"):
        check_extension(parent, longer, "other")


def test_a_new_run_names_the_runs_that_it_does_not_continue(
    home: Home, dataset: DatasetVersion, parent_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    config = short_training(schedule=CONSTANT, n_steps=24)
    tell_apart(home, run_dir_of(home, config, dataset), config, dataset)
    name = parent_folder.name
    assert caplog.messages == [
        f"a new run; it does not continue {name}: train.n_steps 12 -> 24; `--resume {name}` goes on from it"
    ]
    caplog.clear()
    tell_apart(home, home.runs / "x", replace(config, batch_size=8), dataset)
    assert caplog.messages == [
        f"a new run; it does not continue {name}: train.batch_size 4 -> 8, train.n_steps 12 -> 24"
    ]
    caplog.clear()
    tell_apart(home, home.runs / "x", replace(config, preset="another"), dataset)
    (parent_folder / "run.json").write_bytes(b"{")  # damaged: the new run does without the comparison
    tell_apart(home, home.runs / "x", config, dataset)
    assert caplog.messages == []


def test_a_stopped_run_goes_on_and_one_that_stopped_early_wants_more_patience(
    home: Home, dataset: DatasetVersion
) -> None:
    # The metric falls behind at once: without a learning rate no validation is better than the first.
    config = short_training(
        schedule=ConstantSchedule(rate=1e-30), n_steps=60, eval_interval=2, early_stopping_patience=3
    )
    folder = trained(home, dataset, config)
    parent = find_parent(home, folder.name)
    assert parent.step == 8  # a first validation, then three without a gain
    with pytest.raises(ConfigError, match=r"has ended after 8 steps; .* --set train\.early_stopping_patience=6"):
        check_extension(parent, config, "")
    check_extension(parent, replace(config, early_stopping_patience=6), "")
    longer = trained(home, dataset, replace(config, early_stopping_patience=6), parent)
    assert find_parent(home, longer.name).step == 14
