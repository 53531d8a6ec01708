"""`orchestrion sweep`."""

from typing import Annotated

import typer

from flows.cli import options
from flows.cli.app import app
from flows.cli.run_flow import note_old_name, run_flow
from flows.cli.train import check_dataset

GridOption = Annotated[
    list[str] | None,
    typer.Option(
        "--grid",
        metavar="KEY=A,B",
        help="A setting and its values; all combinations are trained. Values that hold commas: KEY=[1,2];[3,4]."
        " Repeatable.",
    ),
]
SearchOption = Annotated[
    list[str] | None,
    typer.Option(
        "--search",
        metavar="KEY=DRAW",
        help="A setting to draw: uniform(a,b), loguniform(a,b), randint(a,b) with both ends, or choice(a;b)."
        " Repeatable.",
    ),
]
SamplesOption = Annotated[
    int, typer.Option("--samples", help="Draws for --search; each is combined with every point of the grid.")
]
DrawSeedOption = Annotated[int, typer.Option("--seed", help="Seed of the draws; the same seed gives the same points.")]
EarlyStoppingOption = Annotated[
    bool, typer.Option("--early-stopping", help="Stop points that fall behind the others in validation loss (ASHA).")
]
ConcurrentOption = Annotated[
    int, typer.Option("--concurrent", help="Points trained at the same time; they share the cores.")
]


@app.command(epilog="Example: orchestrion sweep --grid train.model.n_layers=2,3 --grid train.model.n_heads=4,8")
@options.grouped
def sweep(
    run: options.RunOptions,
    grid: GridOption = None,
    search: SearchOption = None,
    samples: SamplesOption = 0,
    seed: DrawSeedOption = 0,
    early_stopping: EarlyStoppingOption = False,
    concurrent: ConcurrentOption = 1,
    dataset: options.DatasetOption = "",
    preset: options.PresetOption = options.DEFAULT_PRESET,
) -> None:
    """Train and score every point of a grid or of a random search, and rank them in one table.

    The same command continues an interrupted sweep. A point is the run that `train` makes with the same settings.
    """
    from tasks.sweep.space import SweepConfig, plan_points

    config = run.config(preset)
    for axis in [*(grid or ()), *(search or ())]:
        note_old_name(axis)
    plan = SweepConfig(
        grid=tuple(grid or ()), search=tuple(search or ()), samples=samples, seed=seed,
        early_stopping=early_stopping, concurrent=concurrent,
    )  # fmt: skip
    plan_points(config, plan)  # validated before anything starts
    where = run.prepare()
    check_dataset(where, dataset)
    result = run_flow(where, "sweep", config, plan, dataset)
    if not run.as_json:
        from tasks.sweep.summary import sweep_table

        typer.echo(sweep_table(result["runs"]))
    facts = ("sweep", "n_points", "n_finished", "n_stopped", "n_failed", "model_version", "metrics", "table", "plot")
    options.print_result(result, run.as_json, (*facts, "run_id", "reused", "seconds"))
