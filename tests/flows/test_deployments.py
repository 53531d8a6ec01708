"""Deployments on a real Prefect server: a scheduled rebuild appears and finishes, a triggered training run too."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.home import Home
from tests.samples import small_corpus

SMALL = [
    "train.n_steps=6", "train.batch_size=4", "train.window_tokens=32", "train.validation_windows=4",
    "train.model.d_model=32", "train.model.n_layers=1", "dataset.augment.transpositions=[0]",
    "dataset.augment.stretches=[1.0]",
]  # fmt: skip


def call(address: str, path: str, body: dict[str, Any]) -> Any:
    data = json.dumps(body).encode()
    request = urllib.request.Request(f"{address}{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.loads(response.read())


def wait_for(what: str, probe: Callable[[], Any], process: subprocess.Popen[str], seconds: float) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = probe()
        if found:
            return found
        assert process.poll() is None, f"deploy ended with {process.returncode} before {what}"
        time.sleep(1)
    pytest.fail(f"no {what} within {seconds:.0f} s")


@pytest.fixture
def served(home: Home, tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`orchestrion deploy` with a rebuild every minute; yields the address of its Prefect API."""
    source = small_corpus(tmp_path / "midi", 8)
    overrides = [argument for setting in SMALL for argument in ("--set", setting)]
    command = [
        sys.executable, "-m", "flows.cli", "deploy", "--home", str(home.root), "--source", str(source),
        "--name", "small", "--cron", "* * * * *", *overrides,
    ]  # fmt: skip
    environment = os.environ | {"PREFECT_RUNNER_POLL_FREQUENCY": "2", "PREFECT_HOME": str(home.prefect)}
    environment.pop("PREFECT_API_URL", None)
    process = subprocess.Popen(command, env=environment, text=True, stderr=subprocess.STDOUT, stdout=subprocess.PIPE)
    try:
        services = wait_for("services.json", lambda: home.services.exists() and home.services.read_text(), process, 120)
        yield json.loads(services)["prefect_api_url"], process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def runs_of(address: str, deployment: str, *states: str) -> list[dict[str, Any]]:
    body = {"deployments": {"name": {"any_": [deployment]}}, "flow_runs": {"state": {"type": {"any_": list(states)}}}}
    return call(address, "/flow_runs/filter", body)


@pytest.mark.slow
def test_a_scheduled_rebuild_and_a_triggered_training_run_finish(
    served: tuple[str, subprocess.Popen[str]], home: Home
) -> None:
    address, process = served
    wait_for("scheduled rebuild", lambda: runs_of(address, "rebuild", "SCHEDULED"), process, 60)
    wait_for("finished rebuild", lambda: runs_of(address, "rebuild", "COMPLETED"), process, 180)
    assert list((home.datasets / "small" / "versions").glob("*/manifest.json"))
    deployments = call(address, "/deployments/filter", {})
    assert {entry["name"] for entry in deployments} == {"rebuild", "train", "evaluate", "generate", "pipeline", "sweep"}
    train = next(entry for entry in deployments if entry["name"] == "train")
    schema = train["parameter_openapi_schema"]
    assert "n_layers" in json.dumps(schema)  # Prefect's form shows the nested settings
    call(address, f"/deployments/{train['id']}/create_flow_run", {})
    wait_for("finished training run", lambda: runs_of(address, "train", "COMPLETED"), process, 240)
    assert list(home.runs.glob("*/checkpoints/best.json"))
    assert not runs_of(address, "train", "FAILED", "CRASHED")
