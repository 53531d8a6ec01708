"""`orchestrion ui`: two pages on loopback, found by other commands, and a gallery that plays in MLflow's viewer."""

import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.browser import Browser, skip_without_browser
from tests.flows.conftest import clean_environment, last_json, orchestrion

pytestmark = pytest.mark.slow

Finished = tuple[Path, Path, dict[str, Any]]


@pytest.fixture(scope="module")
def ui(finished: Finished) -> Iterator[dict[str, str]]:
    """`orchestrion ui` over the finished home; yields what it wrote about its servers."""
    home, _, _ = finished
    command = [
        sys.executable,
        "-m",
        "flows.cli",
        "ui",
        "--home",
        str(home),
        "--prefect-port",
        "0",
        "--mlflow-port",
        "0",
    ]
    process = subprocess.Popen(command, env=clean_environment(home), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    services = home / "services.json"
    deadline = time.monotonic() + 150
    while not services.exists():
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        assert time.monotonic() < deadline, "the UIs did not start"
        time.sleep(0.5)
    yield json.loads(services.read_text()) | {"pid": str(process.pid)}
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert not services.exists()


def test_both_servers_listen_on_loopback_alone(ui: dict[str, str]) -> None:
    listening = [
        connection.laddr.ip
        for process in psutil.Process(int(ui["pid"])).children(recursive=True)
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening
    assert set(listening) <= {"127.0.0.1", "::1"}


def test_a_second_ui_of_the_same_home_is_told_where_the_first_is(ui: dict[str, str], finished: Finished) -> None:
    home, _, _ = finished
    done = orchestrion(home, "ui", "--home", str(home))
    assert done.returncode == 1
    assert ui["prefect_url"] in done.stderr


def test_a_command_reports_to_the_running_prefect(ui: dict[str, str], finished: Finished) -> None:
    home, source, _ = finished
    body = json.dumps({"flows": {"name": {"any_": ["rebuild-dataset"]}}}).encode()

    def n_runs() -> int:
        request = urllib.request.Request(
            f"{ui['prefect_api_url']}/flow_runs/count", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            return int(response.read())

    before = n_runs()
    last_json(orchestrion(home, "rebuild", "--home", str(home), "--source", str(source), "--name", "small", "--json"))
    assert n_runs() == before + 1


@skip_without_browser
def test_the_gallery_plays_inside_mlflows_artifact_viewer(ui: dict[str, str], finished: Finished) -> None:
    home, _, summary = finished
    runs = last_json(orchestrion(home, "runs", "--home", str(home), "--json"))["runs"]
    run = next(
        r for r in runs if r["tags"].get("orchestrion.batch") == summary["batch"] and "generat" in r["experiment"]
    )
    address = f"{ui['mlflow_url']}/#/experiments/{run['experiment_id']}/runs/{run['run_id']}/artifacts/gallery.html"
    with Browser(1400, 1000) as browser:
        browser.open(address)
        browser.wait_until("document.querySelector('iframe')", 60)
        browser.enter_frame("iframe")
        browser.wait_until("document.querySelector('.js .play')", 30)
        browser.click("#piece-0 .play")
        browser.wait_until("document.querySelector('#piece-0.playing')", 20)
        browser.wait_until("!document.querySelector('#piece-0 .time').textContent.startsWith('0:00')", 20)
        assert browser.run("return document.querySelectorAll('article.piece').length") == summary["n_pieces"]
