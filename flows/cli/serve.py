"""`orchestrion ui` and `orchestrion deploy`."""

import os
from typing import Annotated

import typer

from flows.cli import options
from flows.cli.app import app
from flows.services import environment


@app.command(epilog="Example: orchestrion ui")
def ui(
    home: options.HomeOption = options.DEFAULT_HOME,
    prefect_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of Prefect's UI on 127.0.0.1; another free one if it is taken.")
    ] = environment.PREFECT_PORT,
    mlflow_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of MLflow's UI on 127.0.0.1; another free one if it is taken.")
    ] = environment.MLFLOW_PORT,
    verbose: options.VerboseOption = False,
) -> None:
    """Start the Prefect and MLflow UIs on loopback, those that do not run yet; Ctrl-C stops them."""
    where = options.prepare(home, verbose)
    from flows.services.servers import run_uis

    run_uis(where, prefect_port, mlflow_port)


@app.command(epilog='Example: orchestrion deploy --source ~/midi --cron "0 3 * * *"')
@options.grouped
def deploy(
    sources: options.SourceOptions,
    run: options.ConfigOptions,
    preset: options.PresetOption = options.DEFAULT_PRESET,
    cron: Annotated[str, typer.Option("--cron", help="When to rebuild the dataset.")] = "0 3 * * *",
) -> None:
    """Register all flows with Prefect, the rebuild on a schedule, and run what is triggered; Ctrl-C stops."""
    config = run.config(preset, sources.settings())
    options.check_sources(config.dataset.sources)
    if config.dataset.source_limits.refuse_private_addresses:
        from tasks.config.source_limits import REFUSE_PRIVATE

        os.environ[REFUSE_PRIVATE] = "1"  # for all runs, whatever their parameters
    where = run.prepare()
    from flows.deployments import serve_flows

    serve_flows(where, config, cron)
