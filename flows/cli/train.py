"""`orchestrion train`."""

from typing import Any

from flows.cli.app import app
from flows.cli.options import (
    DEFAULT_PRESET,
    DatasetOption,
    DryRunOption,
    FreshOption,
    PresetOption,
    RunOptions,
    grouped,
    print_result,
)
from flows.cli.run_flow import run_flow
from flows.services import environment
from tasks.storage.home import Home


@app.command(epilog="Example: orchestrion train --dataset mine --preset music_transformer --set train.n_steps=5000")
@grouped
def train(
    run: RunOptions,
    dataset: DatasetOption = "",
    preset: PresetOption = DEFAULT_PRESET,
    fresh: FreshOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Train a model and register it; Ctrl-C saves, and the same command goes on from there."""
    config = run.config(preset)
    if dry_run:
        _print_plan(Home.at(run.home), config.train, dataset, fresh, run.as_json)
        return
    where = run.prepare()
    check_dataset(where, dataset)
    result = run_flow(where, "train", config.train, dataset, fresh=fresh)
    facts = ("model_version", "dataset_version", "n_parameters", "step", "metrics")
    print_result(result, run.as_json, (*facts, "checkpoint", "run_id", "reused", "seconds"))


def _print_plan(home: Home, config: Any, dataset: str, fresh: bool, as_json: bool) -> None:
    environment.set_defaults()  # before torch, which asks once how threads wait for each other
    from tasks.dataset.versions import resolve_dataset
    from tasks.training.plan import plan_training

    plan = plan_training(home, config, resolve_dataset(home, dataset), fresh)
    print_result(plan, as_json, [name for name in plan if name != "dry_run"])


def check_dataset(home: Home, reference: str) -> None:
    """Raise NotFound where `reference` names no dataset version of the home."""
    from tasks.dataset.versions import resolve_dataset

    resolve_dataset(home, reference)
