"""Deployments: the flows as things that Prefect schedules and people trigger, served by one process."""

import os
from typing import Any

import typer

from flows import environment
from flows.services import Service, announced, start_prefect
from tasks.config import PipelineConfig, to_json
from tasks.errors import ConfigError
from tasks.home import Home

LOCK_WAIT_SECONDS = 24 * 3600  # a triggered run waits for the one before it; a person at a terminal is told at once


def check_cron(cron: str) -> None:
    """See that a cron expression is one.

    Raises:
        ConfigError: it is not.
    """
    from prefect.client.schemas.schedules import CronSchedule

    try:
        CronSchedule(cron=cron)
    except ValueError:
        raise ConfigError(
            f"--cron {cron!r} is not a cron expression of five fields, such as '0 3 * * *' (daily at 3)"
        ) from None


def build_deployments(home: Home, config: PipelineConfig, cron: str) -> list[Any]:
    """Return one deployment for each flow; the rebuild runs by `cron`, the others when triggered."""
    from prefect.types.entrypoint import EntrypointType

    from flows import pipeline, sweep

    root = str(home.root)
    parameters = {
        "rebuild": (pipeline.rebuild_dataset, {"config": to_json(config.dataset)}),
        "train": (pipeline.train, {"config": to_json(config.train), "dataset": ""}),
        "evaluate": (pipeline.evaluate, {"config": to_json(config.evaluate)}),
        "generate": (pipeline.generate, {"config": to_json(config.generate)}),
        "pipeline": (pipeline.pipeline, {"config": to_json(config)}),
        "sweep": (sweep.sweep, {"config": to_json(config), "dataset": ""}),
    }
    return [
        flow.to_deployment(
            name=name,
            cron=cron if name == "rebuild" else None,
            parameters=given | {"home": root},
            tags=["orchestrion"],
            description=flow.description,
            entrypoint_type=EntrypointType.MODULE_PATH,
        )
        for name, (flow, given) in parameters.items()
    ]


def serve_flows(home: Home, config: PipelineConfig, cron: str) -> None:
    """Register the deployments and run what is scheduled or triggered, one at a time, until interrupted.

    Uses the Prefect server of PREFECT_API_URL or of `orchestrion ui`; where there is none, starts one.
    """
    check_cron(cron)
    os.environ.setdefault("ORCHESTRION_LOCK_WAIT_SECONDS", str(LOCK_WAIT_SECONDS))
    services: list[Service] = []
    if not os.environ.get("PREFECT_API_URL"):
        services.append(start_prefect(home, environment.PREFECT_PORT))
        os.environ["PREFECT_API_URL"] = f"{services[0].address}/api"
    if services:
        with announced(home, services):
            _serve(home, config, cron)
    else:
        _serve(home, config, cron)


def _serve(home: Home, config: PipelineConfig, cron: str) -> None:
    from prefect import serve

    address = os.environ["PREFECT_API_URL"].removesuffix("/api")
    typer.echo(f"Deployments at {address}/deployments; rebuild runs by cron '{cron}'. Ctrl-C stops.")
    # The schedule stays active when this process stops: it goes on where another one serves the same server.
    serve(*build_deployments(home, config, cron), limit=1, pause_on_shutdown=False, print_starting_message=False)
