"""One small pipeline run through the real command line, shared by the tests that look at what it left."""

import atexit
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from flows.services import access, servers
from tasks.storage.home import Home
from tests import command_line
from tests.conftest import shared_ray
from tests.samples import small_corpus

SMALL = [
    "train.n_steps=12", "train.batch_size=4", "train.seq_len=64", "train.validation_windows=4",
    "train.eval_interval=6", "train.checkpoint_interval=6", "train.model.d_model=32", "train.model.n_layers=1",
    "train.model.d_ff=64", "dataset.augment.transpositions=[-1,0,1]", "dataset.augment.stretches=[1.0,1.1]",
    "evaluate.n_samples=2", "evaluate.sample_tokens=64", "generate.n_pieces=3",
    "generate.sampling.max_tokens=96",
]  # fmt: skip
SETTINGS = [argument for setting in SMALL for argument in ("--set", setting)]

Command = Callable[..., subprocess.CompletedProcess[str]]


def clean_environment(home: Path) -> dict[str, str]:
    """Return the environment without what other tests set for Prefect and MLflow."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "ORCHESTRION_"))}
    return kept | {"PREFECT_HOME": str(home / "prefect")}


def orchestrion(home: Path, *arguments: str, timeout: float = 1800) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process forked from one that has its imports."""
    return command_line.run(arguments, clean_environment(home), timeout)


def run_flow(home: Path, *arguments: str, timeout: float = 1800) -> subprocess.CompletedProcess[str]:
    """Run a command that runs a flow, as `orchestrion` does, with one Prefect server and one Ray for all of them."""
    return command_line.run(arguments, clean_environment(home) | shared_servers(), timeout)


def fresh_orchestrion(home: Path, *arguments: str, timeout: float = 1800) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does: a new interpreter, which finds or starts its own Prefect server."""
    command = [sys.executable, "-m", "flows.cli", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, env=clean_environment(home), check=False
    )


def start_flow(home: Path, *arguments: str, err: Path) -> command_line.Process:
    """Begin a command that runs a flow and leads a session of its own; what it says on stderr goes into a file."""
    return command_line.Process(arguments, clean_environment(home) | shared_servers(), Path(os.devnull), err)


def shared_servers() -> dict[str, str]:
    """Return the variables of clients of the Prefect server and the Ray of this process."""
    return shared_prefect() | shared_ray()


def shared_prefect() -> dict[str, str]:
    """Return the variables of clients of the Prefect server of this process."""
    return prefect_server()[1]


@cache
def prefect_server() -> tuple[Home, dict[str, str]]:
    """Start a Prefect server that lives as long as this process; return its home and the variables of its clients."""
    folder = tempfile.TemporaryDirectory(prefix="prefect")
    home = Home.at(Path(folder.name))
    home.prepare()
    service = servers.start_prefect(home, 0, has_page=False)
    atexit.register(folder.cleanup)
    atexit.register(servers.stop, service)  # before the other: the last one registered runs first
    return home, access.client_variables(home, f"{service.address}/api")


def last_json(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Return the object on the last line of stdout."""
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def pipeline_command(home: Path, source: Path) -> list[str]:
    """Return the arguments of the pipeline that `finished` has run."""
    command = ["pipeline", "--home", str(home), "--source", str(source), "--name", "small"]
    return [*command, "--preset", "music_transformer_tiny", "--json", *SETTINGS]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    """A home after `orchestrion pipeline` on a small corpus with flaws: (home, source, the printed object)."""
    folder = tmp_path_factory.mktemp("pipeline")
    source = small_corpus(folder / "midi", 10, with_flaws=True)
    home = folder / "home"
    done = run_flow(home, *pipeline_command(home, source))
    return home, source, last_json(done)


def authorized(home: Path) -> dict[str, str]:
    """Return the header with which a client of a home's servers is let in."""
    return {"Authorization": access.basic(access.password_of(Home.at(home)))}
