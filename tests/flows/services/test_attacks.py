"""The attacks on our servers, played: another user, a web page of another origin, a rebinding host name."""

import base64
import contextlib
import http.client
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from flows.services import access, environment, servers
from tasks.storage.home import Home
from tests import command_line
from tests.conftest import REPOSITORY
from tests.flows.conftest import clean_environment

pytestmark = pytest.mark.slow

NOBODY = 65534
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD")
SOCKETS = (
    "/api/events/in", "/api/events/out", "/api/logs/out", "/api/task_runs/subscriptions/scheduled",
    "/api/work_pools/x/workers/connect",
)  # fmt: skip
Request = tuple[str, str]  # method, path


@dataclass(frozen=True)
class Running:
    """Both servers of a home that other users may reach."""

    home: Home
    addresses: dict[str, str]
    processes: list[psutil.Process]

    def ask(self, server: str, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, str, list[str]]:
        """Return status, body and header names of an answer."""
        return ask(self.addresses[server], method, path, body, headers)


def ask(address: str, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, str, list[str]]:
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    with contextlib.closing(connection):
        connection.request(method, path, body or None, headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode("latin-1"), [name.lower() for name, _ in answer.getheaders()]


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with tempfile.TemporaryDirectory(prefix="attacked-") as folder:
        Path(folder).chmod(0o755)
        home = Home.at(Path(folder) / "home")
        home.prepare()
        with servers.served(home, {"prefect": 0, "mlflow": 0}) as started:
            (home.mlflow / "artifacts").mkdir(exist_ok=True)
            (home.mlflow / "artifacts" / "piece.mid").write_bytes(b"MThd")
            yield Running(
                home,
                {service.name: service.address for service in started},
                [psutil.Process(service.process.pid) for service in started],
            )


def as_nobody(work: Callable[[], Any]) -> Any:
    """Return what a function gives that runs in a process of another user."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")
    to_read, to_write = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            said: Any = work()
        except BaseException as error:
            said = repr(error)
        os.write(to_write, json.dumps(said).encode())
        os._exit(0)
    os.close(to_write)
    with os.fdopen(to_read, "rb") as pipe:
        said = json.loads(pipe.read())
    os.waitpid(child, 0)
    return said


def routes_of(running: Running, server: str) -> list[Request]:
    """Return every route of a server, its parameters filled in, and some that it has beside its API."""
    if server == "prefect":
        status, text, _ = running.ask("prefect", "GET", "/openapi.json", Authorization=password(running))
        assert status == 200
        templates = {path if path.startswith("/api") else f"/api{path}" for path in json.loads(text)["paths"]}
        assert len(templates) > 100
        more = ["/", "/ui-settings", "/dashboard", "/v2/", "/openapi.json", "/docs", "/api/docs",
                "/api/health", "/api/ready", "/api/version", "/api/static/x", "/assets/x.js"]  # fmt: skip
    else:
        from mlflow.server import app as flask_app
        from mlflow.server.fastapi_app import app as fastapi_app

        templates = {rule.rule.replace("<", "{").replace(">", "}") for rule in flask_app.url_map.iter_rules()}
        templates |= {str(getattr(route, "path", "/")) for route in fastapi_app.routes}
        assert len(templates) > 100
        more = ["/", "/health", "/version", "/metrics", "/static-files/x", "/graphql", "/get-artifact?path=x",
                "/api/2.0/mlflow-artifacts/artifacts/piece.mid", "/ajax-api/2.0/mlflow-artifacts/artifacts/piece.mid",
                "/ajax-api/3.0/mlflow/assistant/x", "/gateway/x/mlflow/invocations", "/v1/traces"]  # fmt: skip
    filled = {template.replace("{", "").replace("}", "").replace(":", "") for template in templates}
    return [(method, path) for path in sorted(filled | set(more)) for method in METHODS]


def password(running: Running) -> str:
    return access.basic(access.password_of(running.home))


@pytest.mark.parametrize("server", ["prefect", "mlflow"])
def test_another_user_gets_nothing_from_any_route(running: Running, server: str) -> None:
    address, requests = running.addresses[server], routes_of(running, server)

    def attack() -> Any:
        return [[*request, ask(address, *request, b"", {})[0]] for request in requests]

    answered = as_nobody(attack)
    assert len(answered) == len(requests)
    assert [entry for entry in answered if entry[2] not in (401, 403)] == []


def test_another_user_opens_no_websocket(running: Running) -> None:
    address = running.addresses["prefect"]
    handshake = {
        "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Protocol": "prefect", "Sec-WebSocket-Key": base64.b64encode(bytes(16)).decode(),
    }  # fmt: skip
    assert set(as_nobody(lambda: [ask(address, "GET", path, b"", handshake)[0] for path in SOCKETS])) == {403}
    signed_in = handshake | {"Authorization": password(running)}
    with socket.create_connection(("127.0.0.1", urlsplit(address).port or 0), 60) as connection:
        lines = "".join(f"{name}: {value}\r\n" for name, value in signed_in.items())
        connection.sendall(f"GET {SOCKETS[1]} HTTP/1.1\r\nHost: {urlsplit(address).netloc}\r\n{lines}\r\n".encode())
        assert connection.recv(64).startswith(b"HTTP/1.1 101")  # so it was the password that was missing


def test_another_user_reads_no_password_and_holds_no_lock(running: Running) -> None:
    files = [running.home.password, running.home.services, running.home.root / "services.lock"]

    def attack() -> Any:
        said = []
        for path in files:
            try:
                said.append(path.read_text())
            except PermissionError:
                said.append("refused")
        return said

    assert as_nobody(attack) == ["refused"] * 3


def test_the_password_is_in_no_command_line_and_no_log(running: Running) -> None:
    secret = access.password_of(running.home)
    for process in running.processes:
        assert secret not in " ".join(process.cmdline())
        assert secret not in " ".join(process.environ().values())
    logs = list((running.home.root / "logs").glob("*"))
    assert logs
    assert not any(secret in path.read_text(errors="replace") for path in logs)


@pytest.mark.parametrize(
    "foreign",
    [{"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1:1"}, {"Host": "evil.example"},
     {"Host": "evil.example:4200", "Origin": "http://evil.example:4200"}, {"Sec-Fetch-Site": "cross-site"}],
    ids=str,
)  # fmt: skip
def test_a_foreign_page_changes_and_reads_nothing_though_the_browser_sends_the_password(
    running: Running, foreign: dict[str, str]
) -> None:
    given = {"Content-Type": "application/json", "Authorization": password(running)}
    body = json.dumps({"name": "planted"}).encode()
    posts = {"prefect": ("/api/flows/", "/api/flows/name/planted"),
             "mlflow": ("/api/2.0/mlflow/experiments/create",
                        "/api/2.0/mlflow/experiments/get-by-name?experiment_name=planted")}  # fmt: skip
    preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    for server, (path, made) in posts.items():
        for method, more in (("POST", given), ("GET", given), ("OPTIONS", preflight), ("OPTIONS", given | preflight)):
            status, _, names = running.ask(server, method, path, body if method == "POST" else b"", **more | foreign)
            assert status in (401, 403), (server, method)
            assert not any(name.startswith("access-control") for name in names)
        assert running.ask(server, "GET", made, Authorization=password(running))[0] == 404


def test_own_page_and_own_clients_do_what_they_could_before(running: Running) -> None:
    for server, path in (("prefect", "/api/flows/"), ("mlflow", "/api/2.0/mlflow/experiments/create")):
        own = {"Origin": running.addresses[server], "Sec-Fetch-Site": "same-origin", "Content-Type": "application/json"}
        body = json.dumps({"name": "ours"}).encode()
        assert running.ask(server, "POST", path, body, Authorization=password(running), **own)[0] in (200, 201)
    artifact = "/api/2.0/mlflow-artifacts/artifacts/piece.mid"
    assert running.ask("mlflow", "GET", artifact, Authorization=password(running))[:2] == (200, "MThd")


def test_prefects_page_asks_its_own_server_and_offers_no_page_that_asks_others(running: Running) -> None:
    address = running.addresses["prefect"]
    for host in (urlsplit(address).netloc, urlsplit(address).netloc.replace("127.0.0.1", "localhost")):
        status, text, _ = running.ask("prefect", "GET", "/ui-settings", Authorization=password(running), Host=host)
        settings = json.loads(text)
        assert (status, settings["api_url"]) == (200, f"http://{host}/api")
        assert settings["available_uis"] == ["v1"]
        assert settings["auth"] is None  # the browser has asked for the password already


def test_a_link_signs_in_once(running: Running) -> None:
    for server, address in running.addresses.items():
        link = access.sign_in_link(running.home, address).removeprefix(address)
        status, text, _ = running.ask(server, "GET", link)
        assert status == 200
        assert access.password_of(running.home) in text
        assert running.ask(server, "GET", link)[0] == 401


def test_the_server_of_a_plain_command_asks_too_and_ends_with_it_even_by_kill_9(home: Home) -> None:
    program = """
import sys
from flows.services import environment, servers
from tasks.storage.home import Home
home = Home.at(sys.argv[1])
environment.prepare(home)
servers.ensure_prefect(home)
import os
print(os.environ["PREFECT_API_URL"], flush=True)
sys.stdin.read()
"""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(home.root)],
        cwd=REPOSITORY, env=kept, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout
        address = process.stdout.readline().strip()
        assert address.endswith("/api")
        for method, path in [
            ("GET", "/api/health"),
            ("GET", "/"),
            ("POST", "/api/flow_runs/filter"),
            ("OPTIONS", "/api/x"),
        ]:
            status, _, names = ask(address, method, path, b"", {"Origin": f"http://{urlsplit(address).netloc}"})
            assert status == 401
            assert not any(name.startswith("access-control") for name in names)
        signed_in = {"Authorization": access.basic(access.password_of(home)), "Content-Type": "application/json"}
        assert ask(address, "POST", "/api/flow_runs/filter", b"{}", signed_in)[:2] == (200, "[]")
        assert ask(address, "GET", "/dashboard", b"", signed_in)[0] == 404  # no page
        assert environment.running_services(home) == {}  # and not announced: it is this command's own
        (server,) = psutil.Process(process.pid).children()
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    server.wait(60)


@pytest.mark.parametrize(
    ("given", "arguments", "code", "said"),
    [
        ({"PREFECT_API_URL": "prefect/api", "PREFECT_API_AUTH_STRING": "orchestrion:wrong"}, ["doctor"], 1,
         "refuses the password of PREFECT_API_AUTH_STRING"),
        ({"PREFECT_API_URL": "prefect/api", "PREFECT_API_AUTH_STRING": "orchestrion:wrong"}, ["rebuild"], 2,
         "refuses the password of PREFECT_API_AUTH_STRING"),
        ({"PREFECT_API_URL": "prefect/api", "PREFECT_API_AUTH_STRING": "orchestrion:wrong"}, ["deploy"], 2,
         "refuses the password of PREFECT_API_AUTH_STRING"),
        ({"PREFECT_API_URL": "prefect/api"}, ["doctor"], 0, ""),  # it is the home's own: the password is found
        ({"MLFLOW_TRACKING_URI": "mlflow", "MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "wrong"},
         ["runs"], 2, "refuses the user or password of MLFLOW_TRACKING_USERNAME"),
        ({"MLFLOW_TRACKING_URI": "mlflow"}, ["runs"], 0, ""),
    ],
)  # fmt: skip
def test_a_wrong_password_is_told_in_one_line(
    running: Running, given: dict[str, str], arguments: list[str], code: int, said: str
) -> None:
    variables = {
        name: value.replace("prefect", running.addresses["prefect"], 1).replace(
            "mlflow", running.addresses["mlflow"], 1
        )
        if name.endswith(("URL", "URI"))
        else value
        for name, value in given.items()
    }
    home = running.home.root
    done = command_line.run([*arguments, "--home", str(home)], clean_environment(home) | variables, 1200)
    assert done.returncode == code, done.stderr + done.stdout
    lines = [line for line in (done.stderr + done.stdout).splitlines() if "refuses" in line]
    assert len(lines) == bool(said)
    assert said in "".join(lines)
    assert "wrong" not in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def serve_beside(home: Home, together: Any) -> int:
    """Start what does not run yet, wait for the other process to have done so too, and return how many were started."""
    environment.prepare(home)
    with servers.served(home, {"prefect": 0}) as started:
        together.wait(300)
        assert list(environment.running_services(home)) == ["prefect"]
        together.wait(300)
    return len(started)


def test_of_two_starts_at_once_one_starts_a_server_and_the_other_finds_it(home: Home) -> None:
    spawned = multiprocessing.get_context("spawn")
    with spawned.Manager() as manager, spawned.Pool(2) as pool:
        assert sorted(pool.starmap(serve_beside, [(home, manager.Barrier(2))] * 2, chunksize=1)) == [0, 1]
    assert not home.services.exists()
