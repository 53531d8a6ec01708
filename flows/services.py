"""The servers that run beside the flows: Prefect's and MLflow's, as child processes on loopback."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import typer

from flows import environment
from tasks.errors import HomeError
from tasks.home import Home, json_bytes, write_atomically
from tasks.tracking import EXPERIMENTS, Tracker

logger = logging.getLogger(__name__)

START_TIMEOUT_SECONDS = 120.0
HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Service:
    """A running server: its name, its address for people and its process."""

    name: str
    address: str
    process: subprocess.Popen[bytes]


def start_prefect(home: Home, port: int) -> Service:
    """Start a Prefect server on loopback and wait until it answers.

    Raises:
        HomeError: it ended or stayed silent; the message names its log.
    """
    port = environment.free_port(port)
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)]
    return _start(home, "prefect", command, f"http://{HOST}:{port}", f"http://{HOST}:{port}/api/health")


def start_mlflow(home: Home, port: int) -> Service:
    """Start an MLflow server on loopback over the home's store and wait until it answers.

    Raises:
        HomeError: it ended or stayed silent; the message names its log.
    """
    port = environment.free_port(port)
    tracker = Tracker(home)
    for experiment in EXPERIMENTS:
        tracker.experiment(experiment)  # made here, so that their files lie below the home for every client
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1",
        "--backend-store-uri", tracker.uri, "--artifacts-destination", (home.mlflow / "artifacts").as_uri(),
    ]  # fmt: skip
    return _start(home, "mlflow", command, f"http://{HOST}:{port}", f"http://{HOST}:{port}/health")


def stop(service: Service) -> None:
    """End a server and what it started."""
    if service.process.poll() is None:
        os.killpg(service.process.pid, signal.SIGTERM)
        try:
            service.process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(service.process.pid, signal.SIGKILL)
            service.process.wait()


@contextmanager
def announced(home: Home, services: list[Service]) -> Iterator[None]:
    """Write down where the servers are, so that other commands of this home find them; forget it on leaving."""
    addresses = {f"{service.name}_url": service.address for service in services}
    prefect = [service for service in services if service.name == "prefect"]
    if prefect:
        addresses["prefect_api_url"] = f"{prefect[0].address}/api"
    write_atomically(home.services, json_bytes(addresses))
    try:
        yield
    finally:
        home.services.unlink(missing_ok=True)
        for service in services:
            stop(service)


def run_uis(home: Home, prefect_port: int, mlflow_port: int) -> None:
    """Start both UIs, say where they are, and wait until interrupted or until one of them ends.

    Raises:
        HomeError: the UIs of this home run already, or one of the servers failed.
    """
    running = environment.running_prefect(home)
    if running:
        raise HomeError(f"the servers of home {home.root} run already at {running.removesuffix('/api')}")
    _stop_on_terminate()
    services: list[Service] = []
    try:
        services.append(start_prefect(home, prefect_port))
        services.append(start_mlflow(home, mlflow_port))
    except BaseException:
        for service in services:
            stop(service)
        raise
    with announced(home, services):
        typer.echo(f"Prefect  {services[0].address}   flows, schedules, triggers")
        typer.echo(
            f"MLflow   {services[1].address}/#/experiments?workflowType=machine_learning   runs, models, galleries"
        )
        typer.echo("Ctrl-C stops both.")
        while all(service.process.poll() is None for service in services):
            time.sleep(0.5)
        ended = next(service for service in services if service.process.poll() is not None)
        raise HomeError(f"{ended.name} ended by itself; its log is {home.root / 'logs' / f'{ended.name}.log'}")


def _stop_on_terminate() -> None:
    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


def _start(home: Home, name: str, command: list[str], address: str, health: str) -> Service:
    log = home.root / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=log.parent,  # uvicorn imports from the working folder first; this one holds no modules
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    service = Service(name, address, process)
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    try:
        while not environment.answers(health):
            if process.poll() is not None:
                raise HomeError(f"{name} ended with status {process.returncode} while starting; its log is {log}")
            if time.monotonic() > deadline:
                raise HomeError(
                    f"{name} does not answer at {health} after {START_TIMEOUT_SECONDS:.0f} s; its log is {log}"
                )
            time.sleep(0.2)
    except BaseException:
        stop(service)
        raise
    logger.info("%s is at %s", name, address)
    return service
