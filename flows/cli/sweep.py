"""`orchestrion sweep`."""

import typer

from flows.cli.app import app
from flows.cli.options import (
    DEFAULT_HOME,
    DEFAULT_PRESET,
    ConcurrentOption,
    ConfigFileOption,
    DatasetOption,
    DrawSeedOption,
    EarlyStoppingOption,
    GridOption,
    HomeOption,
    JsonOption,
    PresetOption,
    QuietOption,
    SamplesOption,
    SearchOption,
    SetOption,
    VerboseOption,
    prepare,
    print_result,
)
from flows.cli.run_flow import build_config, note_old_name, run_flow
from flows.cli.train import check_dataset


@app.command(epilog="Example: orchestrion sweep --grid train.model.n_layers=2,3 --grid train.model.n_heads=4,8")
def sweep(
    grid: GridOption = None,
    search: SearchOption = None,
    samples: SamplesOption = 0,
    seed: DrawSeedOption = 0,
    early_stopping: EarlyStoppingOption = False,
    concurrent: ConcurrentOption = 1,
    dataset: DatasetOption = "",
    preset: PresetOption = DEFAULT_PRESET,
    overrides: SetOption = None,
    config_file: ConfigFileOption = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train and score every point of a grid or of a random search, and rank them in one table.

    The same command again goes on where it was stopped. A point is the run that `train` makes with the same settings.
    """
    from tasks.sweep.space import SweepConfig, plan_points

    config = build_config(preset, overrides or [], config_file)
    for axis in [*(grid or ()), *(search or ())]:
        note_old_name(axis)
    plan = SweepConfig(
        grid=tuple(grid or ()), search=tuple(search or ()), samples=samples, seed=seed,
        early_stopping=early_stopping, concurrent=concurrent,
    )  # fmt: skip
    plan_points(config, plan)  # validated before anything starts
    where = prepare(home, verbose, quiet)
    check_dataset(where, dataset)
    result = run_flow(where, "sweep", config, plan, dataset)
    if not as_json:
        from tasks.sweep.summary import sweep_table

        typer.echo(sweep_table(result["runs"]))
    facts = ("sweep", "n_points", "n_finished", "n_stopped", "n_failed", "model_version", "metrics", "table", "plot")
    print_result(result, as_json, (*facts, "run_id", "reused", "seconds"))
