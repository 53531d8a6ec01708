"""Deployments on a real Prefect server: scheduled, triggered and cancelled runs, and changed deployments."""

import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tasks.storage.home import Home
from tests.conftest import shared_ray
from tests.flows.conftest import authorized, clean_environment, last_json, orchestrion
from tests.samples import small_corpus

SMALL = [
    "train.n_steps=6", "train.batch_size=4", "train.seq_len=32", "train.validation_windows=4",
    "train.model.d_model=32", "train.model.n_layers=1", "dataset.augment.transpositions=[0]",
    "dataset.augment.stretches=[1.0]",
]  # fmt: skip
FLOWS = {"rebuild", "train", "evaluate", "generate", "pipeline", "sweep"}


@dataclass(frozen=True)
class Deployed:
    """A running `orchestrion deploy` and its server."""

    home: Home
    address: str  # of the API
    process: subprocess.Popen[bytes]
    said: Path
    registered: frozenset[str] = frozenset()  # when it said that it is ready

    def call(self, path: str, body: dict[str, Any] | None = None, method: str = "POST") -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} | authorized(self.home.root)
        request = urllib.request.Request(f"{self.address}{path}", data, headers, method=method)
        for attempt in range(20):
            try:
                with urllib.request.urlopen(request, timeout=60) as response:
                    return json.loads(response.read() or "null")
            except urllib.error.HTTPError as error:
                if error.code != 503 or attempt == 19:  # the database is locked: ask again, as Prefect's clients do
                    raise
                time.sleep(0.5)

    def wait_for(self, what: str, probe: Callable[[], Any], seconds: float = 1200) -> Any:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = probe()
            if found:
                return found
            assert self.process.poll() is None, f"deploy ended before {what}: {self.said.read_text()[-2000:]}"
            time.sleep(0.2)
        pytest.fail(f"no {what} within {seconds:.0f} s: {self.said.read_text()[-2000:]}")

    def deployment(self, name: str) -> dict[str, Any]:
        return next(entry for entry in self.call("/deployments/filter", {}) if entry["name"] == name)

    def runs(self, name: str, *states: str) -> list[dict[str, Any]]:
        wanted = {"deployments": {"name": {"any_": [name]}}, "flow_runs": {"state": {"type": {"any_": list(states)}}}}
        return self.call("/flow_runs/filter", wanted)

    def trigger(self, name: str, **config: Any) -> str:
        """Start a run with the deployment's settings, some of them changed, and return its id."""
        deployment = self.deployment(name)
        parameters = {"config": deployment["parameters"]["config"] | config} if config else {}
        return self.call(f"/deployments/{deployment['id']}/create_flow_run", {"parameters": parameters})["id"]

    def ended(self, run: str, seconds: float = 1200) -> dict[str, Any]:
        """Wait for the end of a run and return its state."""

        def state() -> Any:
            now = self.call(f"/flow_runs/{run}", method="GET")["state"]
            return now if now["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None

        return self.wait_for("end of the run", state, seconds)

    def logged(self, run: str) -> list[dict[str, Any]]:
        return self.call("/logs/filter", {"logs": {"flow_run_id": {"any_": [run]}}})


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """`orchestrion deploy` after its first scheduled rebuild; no second one takes the runner from the tests."""
    folder = tmp_path_factory.mktemp("deploy")
    home, source, said = Home.at(folder / "home"), small_corpus(folder / "midi", 8), folder / "said"
    overrides = [argument for setting in SMALL for argument in ("--set", setting)]
    command = [
        sys.executable, "-m", "flows.cli", "deploy", "--home", str(home.root), "--source", str(source),
        "--name", "small", "--cron", "* * * * *", *overrides,
    ]  # fmt: skip
    environment = clean_environment(home.root) | shared_ray() | {"PREFECT_RUNNER_POLL_FREQUENCY": "1"}
    with said.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stderr=subprocess.STDOUT, stdout=output)
    server = Deployed(home, "", process, said)
    try:
        server.wait_for("word that it is ready", lambda: "Deployments at" in said.read_text())
        server = replace(server, address=json.loads(home.services.read_text())["prefect_api_url"])
        server = replace(server, registered=frozenset(d["name"] for d in server.call("/deployments/filter", {})))
        server.wait_for("scheduled rebuild", lambda: server.runs("rebuild", "SCHEDULED"))
        server.wait_for("finished rebuild", lambda: server.runs("rebuild", "COMPLETED"))
        server.call(f"/deployments/{server.deployment('rebuild')['id']}", {"paused": True}, "PATCH")
        yield server
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


@pytest.mark.slow
def test_all_is_registered_when_deploy_says_that_it_is_ready(deployed: Deployed) -> None:
    assert deployed.registered == FLOWS
    schema = deployed.deployment("train")["parameter_openapi_schema"]
    assert "n_layers" in json.dumps(schema)  # Prefect's form shows the nested settings
    assert f"the password is in {deployed.home.password}" in deployed.said.read_text()


@pytest.mark.slow
def test_there_is_one_server_and_the_runner_listens_to_it(deployed: Deployed) -> None:
    """A runner that was imported before it knew the server once had a hidden one, to which no cancel came."""
    children = Path(f"/proc/{deployed.process.pid}/task/{deployed.process.pid}/children").read_text().split()
    commands = [Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ") for child in children]
    assert len([command for command in commands if "flows.services.server prefect" in command]) == 1
    assert not any("prefect.server.api.server" in command for command in commands)


@pytest.mark.slow
@pytest.mark.parametrize(
    "tampered",
    [
        {"pull_steps": [{"prefect.deployments.steps.run_shell_script": {"script": "touch PROOF"}}]},
        {"entrypoint": "antigravity.geohash"},
        {"entrypoint": "/tmp/evil.py:flow", "path": "/tmp"},
    ],
    ids="+".join,
)
def test_a_deployment_that_was_changed_is_not_run_though_the_password_is_known(
    deployed: Deployed, tampered: dict[str, Any], tmp_path: Path
) -> None:
    proof = tmp_path / "proof"
    before = deployed.deployment("generate")
    tampered = json.loads(json.dumps(tampered).replace("PROOF", str(proof)))
    # Both ways: as the attack did it, a deployment of the same name and flow, and by changing the one that is there.
    body = {"name": "generate", "flow_id": before["flow_id"], "entrypoint": before["entrypoint"]} | tampered
    deployed.call("/deployments/", body)
    after = deployed.deployment("generate")
    assert after["id"] == before["id"]
    assert all(after[name] == value for name, value in tampered.items())
    state = deployed.ended(deployed.trigger("generate"))
    assert state["type"] == "CRASHED"
    assert state["message"].startswith("not run: deployment generate was changed (")
    assert next(iter(tampered)).replace("entrypoint", "entry point") in state["message"]
    assert "\n" not in state["message"]
    assert not proof.exists()
    deployed.call(
        f"/deployments/{before['id']}", {"pull_steps": None, "entrypoint": before["entrypoint"], "path": None}, "PATCH"
    )
    assert deployed.process.poll() is None


def see_run_logged(deployed: Deployed, flow: str, run: str) -> None:
    assert not deployed.runs(flow, "FAILED", "CRASHED")
    lines = deployed.wait_for(
        "log of the run", lambda: [line for line in deployed.logged(run) if line["name"].startswith("tasks.")]
    )
    assert any(line["level"] == 20 for line in lines)


@pytest.mark.slow
def test_a_scheduled_rebuild_finishes_and_logs(deployed: Deployed) -> None:
    assert list((deployed.home.datasets / "small" / "versions").glob("*/manifest.json"))
    (run, *_) = deployed.runs("rebuild", "COMPLETED")
    see_run_logged(deployed, "rebuild", run["id"])


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize("flow", ["rebuild", "train"])
def test_a_triggered_run_finishes_and_logs(deployed: Deployed, flow: str) -> None:
    run = deployed.trigger(flow)
    state = deployed.ended(run)
    assert state["type"] == "COMPLETED", state
    assert flow == "rebuild" or list(deployed.home.runs.glob("*/checkpoints/best.json"))
    see_run_logged(deployed, flow, run)


@pytest.mark.slow
def test_a_trigger_with_a_part_of_the_settings_fails_before_any_work(deployed: Deployed) -> None:
    body = {"parameters": {"config": {"preset": "hourglass_tiny", "n_steps": 30}}}
    run = deployed.call(f"/deployments/{deployed.deployment('train')['id']}/create_flow_run", body)["id"]
    state = deployed.ended(run)
    assert state["type"] == "FAILED"
    assert "config lacks schedule" in state["message"] or "config lacks model" in state["message"], state["message"]
    assert not list(deployed.home.runs.glob("hourglass*"))


@pytest.mark.slow
def test_a_cancelled_training_run_saves_and_ends_cancelled(deployed: Deployed) -> None:
    known = set(deployed.home.runs.glob("*"))
    run = deployed.trigger("train", n_steps=100_000, checkpoint_interval=90_000, log_interval=1)

    def trains() -> Any:
        return [path for path in set(deployed.home.runs.glob("*")) - known if (path / "metrics.jsonl").exists()]

    (folder,) = deployed.wait_for("first step", trains)
    before = set((folder / "checkpoints").glob("step-*"))
    deployed.call(f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}, "force": False})

    def cancelled() -> Any:  # for an instant Prefect calls it crashed: its process has ended, the reason comes later
        state = deployed.call(f"/flow_runs/{run}", method="GET")["state"]
        return state if state["type"] == "CANCELLED" else None

    state = deployed.wait_for("cancelled run", cancelled)
    assert "timed out" not in state["message"]  # the server's own patience: nobody had stopped it
    assert set((folder / "checkpoints").glob("step-*")) - before
    listed = last_json(orchestrion(deployed.home.root, "runs", "--home", str(deployed.home.root), "--json"))["runs"]
    (status,) = {entry["status"] for entry in listed if entry["tags"]["prefect.flow_run_id"] == run}
    assert status == "KILLED"  # in MLflow
    assert not [command for command in commands_below(deployed.process.pid) if "flows.services.deployed" in command]


def commands_below(pid: int) -> list[str]:
    import psutil

    found = []
    for process in psutil.Process(pid).children(recursive=True):
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


@pytest.mark.slow
def test_ui_beside_deploy_starts_what_is_missing_and_stops_only_that(deployed: Deployed) -> None:
    command = [
        sys.executable, "-m", "flows.cli", "ui", "--home", str(deployed.home.root), "--prefect-port", "0",
        "--mlflow-port", "0",
    ]  # fmt: skip
    before = json.loads(deployed.home.services.read_text())
    process = subprocess.Popen(
        command, env=clean_environment(deployed.home.root), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:

        def listed() -> Any:
            assert process.poll() is None, process.stdout.read() if process.stdout else ""
            return json.loads(deployed.home.services.read_text()).get("mlflow_url")

        address = deployed.wait_for("MLflow's address", listed)
        assert json.loads(deployed.home.services.read_text()) == before | {"mlflow_url": address}
        request = urllib.request.Request(f"{address}/version", headers=authorized(deployed.home.root))
        with urllib.request.urlopen(request, timeout=60) as response:
            assert response.status == 200
    finally:
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[0]
    assert process.returncode == 130
    assert before["prefect_url"] in said
    assert "Ctrl-C stops mlflow." in said
    assert json.loads(deployed.home.services.read_text()) == before
    assert deployed.call("/flow_runs/count", {}) > 0


@pytest.mark.slow
def test_a_bad_cron_is_told_before_a_server_is_started(home: Home) -> None:
    done = orchestrion(home.root, "deploy", "--home", str(home.root), "--cron", "whenever")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "--cron 'whenever' is not a cron expression" in done.stderr
    assert not (home.root / "logs" / "prefect.log").exists()
    assert not (home.root / "prefect" / "prefect.db").exists()
