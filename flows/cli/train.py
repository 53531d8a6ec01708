"""`orchestrion train`."""

from typing import Annotated, Any

import typer

from flows.cli import options
from flows.cli.app import app
from flows.cli.run_flow import run_flow
from flows.services import environment
from tasks.errors import ConfigError
from tasks.storage.home import Home


@app.command(epilog="Example: orchestrion train --dataset mine --preset music_transformer --set train.n_steps=5000")
@options.grouped
def train(
    run: options.RunOptions,
    dataset: options.DatasetOption = "",
    preset: options.PresetOption = options.DEFAULT_PRESET,
    fresh: options.FreshOption = False,
    dry_run: options.DryRunOption = False,
    resume: Annotated[
        str,
        typer.Option(
            "--resume",
            "--load-checkpoint",
            metavar="RUN",
            help="Run to extend: its folder, checkpoint, MLflow run id or model. Its settings hold; give it more steps,"
            " such as --set train.n_steps=10000.",
        ),
    ] = "",
) -> None:
    """Train a model and register it; Ctrl-C saves, and the same command continues."""
    parent = _parent(Home.at(run.home), resume, preset) if resume else None
    config = run.config(preset, train=parent.config if parent else None).train
    if parent:
        from tasks.training.resume import check_extension

        check_extension(parent, config, dataset)
        dataset = parent.dataset
    if dry_run:
        _print_plan(Home.at(run.home), config, dataset, fresh, parent, run.as_json)
        return
    where = run.prepare()
    check_dataset(where, dataset)
    result = run_flow(where, "train", config, dataset, fresh=fresh, resume=resume)
    facts = ("model_version", "dataset_version", "n_parameters", "step", "metrics")
    options.print_result(result, run.as_json, (*facts, "checkpoint", "run_id", "reused", "seconds"))


def _parent(home: Home, reference: str, preset: str) -> Any:
    """Return the run to extend; a preset that is named beside it must be its own."""
    environment.set_defaults()
    from tasks.training.resume import find_parent

    parent = find_parent(home, reference)
    if preset not in (options.DEFAULT_PRESET, parent.config.preset):
        raise ConfigError(f"--preset {preset}: run {parent.folder.name} is of the preset {parent.config.preset}")
    return parent


def _print_plan(home: Home, config: Any, dataset: str, fresh: bool, parent: Any, as_json: bool) -> None:
    environment.set_defaults()  # before torch, which asks once how threads wait for each other
    from tasks.dataset.versions import resolve_dataset
    from tasks.training.plan import plan_training

    plan = plan_training(home, config, resolve_dataset(home, dataset), fresh, parent)
    options.print_result(plan, as_json, [name for name in plan if name != "dry_run"])


def check_dataset(home: Home, reference: str) -> None:
    """Raise NotFound where `reference` names no dataset version of the home."""
    from tasks.dataset.versions import resolve_dataset

    resolve_dataset(home, reference)
