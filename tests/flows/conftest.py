"""One small pipeline run through the real command line, shared by the tests that look at what it left."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.services import access
from tasks.storage.home import Home
from tests.samples import small_corpus

SMALL = [
    "train.n_steps=12", "train.batch_size=4", "train.window_tokens=64", "train.validation_windows=4",
    "train.evaluate_every=6", "train.checkpoint_every=6", "train.model.d_model=32", "train.model.n_layers=1",
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
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "flows.cli", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, env=clean_environment(home), check=False
    )


def last_json(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Return the object on the last line of stdout."""
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    """A home after `orchestrion pipeline` on a small corpus with flaws: (home, source, the printed object)."""
    folder = tmp_path_factory.mktemp("pipeline")
    source = small_corpus(folder / "midi", 10, with_flaws=True)
    home = folder / "home"
    done = orchestrion(
        home, "pipeline", "--home", str(home), "--source", str(source), "--name", "small", "--json", *SETTINGS
    )
    return home, source, last_json(done)


def authorized(home: Path) -> dict[str, str]:
    """Return the header with which a client of a home's servers is let in."""
    return {"Authorization": access.basic(access.password_of(Home.at(home)))}
