"""`orchestrion train`."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli import options
from flows.cli.app import app
from flows.cli.run_flow import run_flow
from flows.services import environment
from tasks.errors import ConfigError
from tasks.storage.home import Home


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TableOptions:
    """Options of a table of token ids that is trained on in place of a dataset."""

    tokens: Annotated[
        Path | None,
        typer.Option(
            "--tokens",
            metavar="FILE",
            help="A table of token ids, a row for each sequence: .npy, .pt or .parquet. It becomes a dataset.",
        ),
    ] = None
    vocab_size: Annotated[
        int | None, typer.Option("--vocab-size", help="Ids of the table, which run from 0; with --tokens.")
    ] = None
    pad_id: Annotated[
        int | None, typer.Option("--pad-id", help="Id that fills rows up; by default one more than the table's ids.")
    ] = None
    end_id: Annotated[int | None, typer.Option("--end-id", help="Id that ends a row, where there is one.")] = None

    def plan(self, home: Home, config: Any, other: str) -> Any:
        """Return the dataset that the table becomes, with nothing written, or None without a table.

        Args:
            other: an option that also says what is trained on; empty: none.
        """
        if self.tokens is None:
            given = [name for name in ("vocab_size", "pad_id", "end_id") if getattr(self, name) is not None]
            if given:
                raise ConfigError(f"--{given[0].replace('_', '-')} is of a table of token ids; name it with --tokens")
            return None
        if self.vocab_size is None:
            raise ConfigError(f"--tokens {self.tokens}: say how many ids there are, such as --vocab-size 416")
        if other:
            raise ConfigError(f"--tokens and {other} both say what is trained on; give one")
        environment.set_defaults()  # before torch, which asks once how threads wait for each other
        from tasks.dataset.token_table import plan_token_dataset, read_token_table

        table = read_token_table(self.tokens, self.vocab_size, self.pad_id, self.end_id)
        return plan_token_dataset(home, self.tokens, table, config)


@app.command(epilog="Example: orchestrion train --dataset mine --preset music_transformer --set train.n_steps=5000")
@options.grouped
def train(
    run: options.RunOptions,
    dataset: options.DatasetOption = "",
    preset: options.PresetOption = options.DEFAULT_PRESET,
    fresh: options.FreshOption = False,
    dry_run: options.DryRunOption = False,
    table: TableOptions = TableOptions(),
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
    settings = run.config(preset, train=parent.config if parent else None)
    config = settings.train
    planned = table.plan(Home.at(run.home), settings.dataset, "--resume" if resume else "--dataset" if dataset else "")
    if parent:
        from tasks.training.resume import check_extension

        check_extension(parent, config, dataset)
        dataset = parent.dataset
    if dry_run:
        _print_plan(Home.at(run.home), config, dataset, fresh, parent, run.as_json, planned and planned.version)
        return
    where = run.prepare()
    if planned:
        with where.locked("orchestrion train --tokens"):
            dataset = planned.publish(where).reference
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


def _print_plan(home: Home, config: Any, dataset: str, fresh: bool, parent: Any, as_json: bool, version: Any) -> None:
    environment.set_defaults()  # before torch, which asks once how threads wait for each other
    from tasks.dataset.versions import resolve_dataset
    from tasks.training.plan import plan_training

    plan = plan_training(home, config, version or resolve_dataset(home, dataset), fresh, parent)
    options.print_result(plan, as_json, [name for name in plan if name != "dry_run"])


def check_dataset(home: Home, reference: str) -> None:
    """Raise NotFound where `reference` names no dataset version of the home."""
    from tasks.dataset.versions import resolve_dataset

    resolve_dataset(home, reference)
