"""`orchestrion ui`: two pages on loopback, found by other commands, and a gallery that plays in MLflow's viewer."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.services import access
from tasks.storage.home import Home
from tests.browser import Browser, needs_browser
from tests.flows.conftest import SETTINGS, authorized, clean_environment, last_json, orchestrion

pytestmark = pytest.mark.slow

Finished = tuple[Path, Path, dict[str, Any]]


@pytest.fixture(scope="module")
def ui(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
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
    said = tmp_path_factory.mktemp("ui") / "said"
    with said.open("wb") as output:
        process = subprocess.Popen(command, env=clean_environment(home), stdout=output, stderr=subprocess.STDOUT)
    services = home / "services.json"
    deadline = time.monotonic() + 600
    while not services.exists():
        assert process.poll() is None, said.read_text()
        assert time.monotonic() < deadline, "the UIs did not start"
        time.sleep(0.5)
    yield json.loads(services.read_text()) | {"pid": str(process.pid), "said": str(said)}
    process.send_signal(signal.SIGINT)
    assert process.wait(300) == 130
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
    assert done.returncode == 0  # they run and answer: what was asked for
    assert f"{ui['prefect_url']}/" in done.stdout
    assert f"{ui['mlflow_url']}/#/experiments" in done.stdout
    assert f"Both run already for home {home}" in done.stdout
    assert json.loads((home / "services.json").read_text())["prefect_url"] == ui["prefect_url"]


def test_it_is_said_where_the_pages_are_and_how_to_sign_in(ui: dict[str, str], finished: Finished) -> None:
    said = Path(ui["said"]).read_text()
    assert f"{ui['prefect_url']}/" in said
    assert f"{ui['mlflow_url']}/#/experiments" in said
    assert f"Sign in as user orchestrion; the password is in {finished[0] / 'password'}" in said
    assert access.password_of(Home.at(finished[0])) not in said
    assert "once=" not in said  # it is no terminal: others may read it


def test_a_terminal_gets_links_that_sign_in_once(ui: dict[str, str], finished: Finished) -> None:
    home, _, _ = finished
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "flows.cli", "ui", "--home", str(home)]
    process = subprocess.Popen(command, env=clean_environment(home), stdout=theirs, stderr=subprocess.PIPE)
    os.close(theirs)
    assert process.stderr
    complaint = process.stderr.read().decode()
    assert process.wait(60) == 0
    assert not complaint
    said = os.read(ours, 100_000).decode()
    os.close(ours)
    links = re.findall(rf"(http://\S+{access.SIGN_IN_PATH}\?once=\S+)", said)
    assert [link.split("/orchestrion")[0] for link in links] == [ui["prefect_url"], ui["mlflow_url"]]
    for link in links:
        with urllib.request.urlopen(link, timeout=60) as response:
            assert response.status == 200
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(link, timeout=60)


def test_a_command_reports_to_the_running_prefect(ui: dict[str, str], finished: Finished) -> None:
    home, source, _ = finished
    body = json.dumps({"flows": {"name": {"any_": ["rebuild-dataset"]}}}).encode()

    def n_runs() -> int:
        request = urllib.request.Request(
            f"{ui['prefect_api_url']}/flow_runs/count", body, {"Content-Type": "application/json"} | authorized(home)
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            return int(response.read())

    before = n_runs()
    done = orchestrion(
        home, "rebuild", "--home", str(home), "--source", str(source), "--name", "small", "--json", *SETTINGS
    )
    assert last_json(done)["reused"]  # other tests of this home count its versions
    assert n_runs() == before + 1


def sign_in(browser: Browser, home: Path, address: str) -> None:
    browser.get(access.sign_in_link(Home.at(home), address))
    browser.wait_until(f"!location.pathname.includes({access.SIGN_IN_PATH!r})", 60)


@needs_browser
def test_a_link_opens_prefects_page_signed_in_and_nothing_is_shown_without(
    ui: dict[str, str], finished: Finished
) -> None:
    home, _, _ = finished
    with Browser() as browser:
        browser.get(f"{ui['prefect_url']}/dashboard")
        assert "Dashboard" not in browser.run("return document.body.innerText")
        link = access.sign_in_link(Home.at(home), ui["prefect_url"])
        browser.get(link)
        browser.wait_until("document.body.innerText.includes('Dashboard')", 60)
        browser.get(f"{ui['prefect_url']}/runs")
        browser.wait_until("document.body.innerText.includes('rebuild-dataset')", 60)  # so its API answers it
        opened = """
            const socket = new WebSocket(location.origin.replace('http', 'ws') + '/api/events/out', 'prefect');
            return new Promise(done => { socket.onopen = () => done(true); socket.onerror = () => done(false); });
        """
        assert browser.run(opened)
        assert "once=" not in browser.run("return location.href")
    with Browser() as another:
        another.get(link)
        assert "Dashboard" not in another.run("return document.body.innerText")


@needs_browser
def test_the_gallery_plays_inside_mlflows_artifact_viewer(ui: dict[str, str], finished: Finished) -> None:
    home, _, summary = finished
    runs = last_json(orchestrion(home, "runs", "--home", str(home), "--json"))["runs"]
    run = next(
        r for r in runs if r["tags"].get("orchestrion.batch") == summary["batch"] and "generat" in r["experiment"]
    )
    address = f"{ui['mlflow_url']}/#/experiments/{run['experiment_id']}/runs/{run['run_id']}/artifacts/gallery.html"
    with Browser(1400, 1000) as browser:
        sign_in(browser, home, ui["mlflow_url"])
        browser.get(address)
        browser.wait_until("document.querySelector('iframe')", 60)
        browser.enter_frame("iframe")
        browser.wait_until("document.querySelector('.js .play')", 30)
        browser.click("#piece-0 .play")
        browser.wait_until("document.querySelector('#piece-0.playing')", 20)
        browser.wait_until("!document.querySelector('#piece-0 .time').textContent.startsWith('0:00')", 20)
        assert browser.run("return document.querySelectorAll('article.piece').length") == summary["n_pieces"]
