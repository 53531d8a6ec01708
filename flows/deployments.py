"""Deployments: flows that Prefect schedules or people trigger, served by one process."""

import asyncio
import os
from contextlib import ExitStack
from typing import Any

import typer

from flows.services import access, environment, servers
from tasks.config.pipeline import PipelineConfig
from tasks.config.serialization import to_json
from tasks.errors import ConfigError
from tasks.runtime.progress import Progress
from tasks.storage.home import LOCK_WAIT, Home

LOCK_WAIT_SECONDS = 24 * 3600  # a triggered run waits for the one before it; a person gets an error at once


def check_cron(cron: str) -> None:
    """Raise ConfigError where a cron expression is not valid."""
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

    from flows.evaluate import evaluate
    from flows.generate import generate
    from flows.pipeline import pipeline
    from flows.rebuild_dataset import rebuild_dataset
    from flows.sweep import sweep
    from flows.train import train

    root = str(home.root)
    parameters = {
        "rebuild": (rebuild_dataset, {"config": to_json(config.dataset)}),
        "train": (train, {"config": to_json(config.train), "dataset": ""}),
        "evaluate": (evaluate, {"config": to_json(config.evaluate)}),
        "generate": (generate, {"config": to_json(config.generate)}),
        "pipeline": (pipeline, {"config": to_json(config)}),
        "sweep": (sweep, {"config": to_json(config), "dataset": ""}),
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
    os.environ.setdefault(LOCK_WAIT, str(LOCK_WAIT_SECONDS))
    with ExitStack() as stack, ExitStack() as starting:
        starting.enter_context(Progress("starting Prefect"))  # otherwise nothing is printed for up to 25 s
        listener = None
        with access.servers_locked(home):
            # Prefect reads the address when it is imported: a client without one would start a server of its own, to
            # which no cancel ever comes.
            if os.environ.get("PREFECT_API_URL"):
                environment.check_prefect()
            elif address := environment.running_prefect(home):
                access.use_prefect(home, address)
            else:
                listener = servers.listen(environment.PREFECT_PORT)
                access.use_prefect(home, f"{servers.address_of(listener)}/api")
            environment.import_prefect(home)
            check_cron(cron)
            if listener:
                stack.enter_context(servers.served(home, {"prefect": listener}))
        starting.close()
        _serve(home, config, cron)


def _serve(home: Home, config: PipelineConfig, cron: str) -> None:
    from flows.services.runner import FlowRunner

    with Progress("registering the deployments"):
        # The schedule stays active when this process stops: another one that serves the same server continues it.
        runner = FlowRunner(home, name="orchestrion", limit=1, pause_on_shutdown=False)
        for deployment in build_deployments(home, config, cron):
            runner.register(deployment)
    address = environment.without_password(os.environ["PREFECT_API_URL"]).removesuffix("/api")
    if environment.running_prefect(home):
        typer.echo(f"Sign in as user {access.USER}; the password is in {home.password}")
    typer.echo(f"Deployments at {address}/deployments; rebuild runs by cron '{cron}'. Ctrl-C stops.")
    asyncio.run(runner.start())
