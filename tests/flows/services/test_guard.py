"""The door of the servers: who is let in, who is not, and links that sign a browser in once."""

import asyncio
import base64
import re
from typing import Any

import pytest

from flows.services import access
from flows.services.guard import LINK_SECONDS, Guard, Receive, Scope, Send

PASSWORD, PORT = "x" * 43, 4200
HOST = "127.0.0.1:4200"
ALLOWED = {"authorization": access.basic(PASSWORD)}


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"inside"})


def ask(
    guard: Guard | None = None, path: str = "/api/x", method: str = "GET", kind: str = "http", query: str = "",
    host: str | None = HOST, **headers: str,
) -> tuple[int, str, dict[str, str]]:  # fmt: skip
    """Return status, body and headers of a request; the status of a refused websocket is that of its handshake."""
    given = [(b"host", host.encode())] if host is not None else []
    given += [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    scope = {"type": kind, "path": path, "method": method, "headers": given, "query_string": query.encode()}
    sent = list[Any]()

    async def receive() -> Any:
        return {"type": "websocket.connect" if kind == "websocket" else "http.request"}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run((guard or Guard(application, "prefect", PORT, PASSWORD))(scope, receive, send))
    if sent[0]["type"] == "websocket.close":
        return 403, "", {}
    answered = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], sent[1].get("body", b"").decode(), answered


def test_the_password_opens_the_door_for_own_names_and_own_origin() -> None:
    assert ask(**ALLOWED)[:2] == (200, "inside")
    for host in (HOST, "localhost:4200", "127.0.0.1:14200", "localhost"):  # 14200: an SSH tunnel
        assert ask(host=host, origin=f"http://{host}", **ALLOWED)[0] == 200
    assert ask(sec_fetch_site="same-origin", method="POST", **ALLOWED)[0] == 200


@pytest.mark.parametrize(
    "authorization",
    ["", "Basic", "Basic ", "Basic !!", "Bearer " + PASSWORD, "Basic " + base64.b64encode(PASSWORD.encode()).decode(),
     access.basic("y" * 43), access.basic(PASSWORD[:-1]), access.basic(PASSWORD + "x"), "Basic \xff",
     "Basic " + base64.b64encode(f"admin:{PASSWORD}".encode()).decode()],
)  # fmt: skip
def test_without_the_password_nothing_is_shown(authorization: str) -> None:
    for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
        for path in ("/", "/api/health", "/health", "/ui-settings", "/static/x", access.SIGN_IN_PATH):
            status, body, headers = ask(path=path, method=method, authorization=authorization)
            assert (status, "inside" in body) == (401, False)
            assert headers["www-authenticate"].startswith("Basic")
            assert not any(name.startswith("access-control") for name in headers)
    assert ask(kind="websocket", authorization=authorization)[0] == 403


@pytest.mark.parametrize(
    "host",
    [None, "", "evil.example", "evil.example:4200", "127.0.0.1.evil.example:4200", "localhost.evil.example",
     "10.0.0.1:4200", "127.0.0.1:4200@evil.example", "[::1]:4200", "127.0.0.1:", "127.0.0.1:x", "LOCALHOST\xa0:4200",
     "0.0.0.0:4200"],
)  # fmt: skip
def test_other_host_names_are_refused_though_the_password_is_right(host: str | None) -> None:
    host = host.encode().decode("latin-1") if host else host
    assert ask(host=host, **ALLOWED)[0] == 403
    assert ask(host=host, kind="websocket", **ALLOWED)[0] == 403


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "http://127.0.0.1:9999", "https://127.0.0.1:4200", "http://localhost:4200", ""],
)
def test_pages_of_other_origins_are_refused_though_the_browser_sends_the_password(origin: str) -> None:
    for method in ("GET", "POST", "OPTIONS"):
        status, _, headers = ask(method=method, origin=origin, **ALLOWED)
        assert status == 403
        assert not any(name.startswith("access-control") for name in headers)
    assert ask(kind="websocket", origin=origin, **ALLOWED)[0] == 403


def test_a_link_from_another_page_leads_here_but_its_scripts_and_forms_do_not() -> None:
    led = {"sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}
    for site in ("cross-site", "same-site"):  # a page on another port of this machine is of the same site
        assert ask(sec_fetch_site=site, **led, **ALLOWED)[0] == 200
        assert ask(sec_fetch_site=site, method="POST", **led, **ALLOWED)[0] == 403
        assert ask(sec_fetch_site=site, sec_fetch_mode="no-cors", sec_fetch_dest="image", **ALLOWED)[0] == 403
        assert ask(sec_fetch_site=site, sec_fetch_mode="navigate", sec_fetch_dest="iframe", **ALLOWED)[0] == 403


def test_headers_given_twice_are_refused() -> None:
    twice = [
        (b"host", HOST.encode()),
        (b"host", b"evil.example"),
        (b"authorization", ALLOWED["authorization"].encode()),
    ]
    sent = list[Any]()

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {}

    scope = {"type": "http", "path": "/", "method": "GET", "headers": twice, "query_string": b""}
    asyncio.run(Guard(application, "prefect", PORT, PASSWORD)(scope, receive, send))
    assert sent[0]["status"] == 403


def test_the_proof_is_of_this_server_at_this_port_and_for_this_number() -> None:
    said = ask(**{access.NONCE_HEADER.replace("-", "_"): "abc"})[2][access.PROOF_HEADER]
    assert said == access.proof(PASSWORD, "prefect", PORT, "abc")
    others = [("y" * 43, "prefect", PORT, "abc"), (PASSWORD, "mlflow", PORT, "abc"),
              (PASSWORD, "prefect", 1, "abc"), (PASSWORD, "prefect", PORT, "abd")]  # fmt: skip
    assert len({said, *(access.proof(*other) for other in others)}) == 5


def test_a_link_signs_in_once() -> None:
    guard = Guard(application, "mlflow", PORT, PASSWORD, "/#/runs")
    once = ask(guard, access.SIGN_IN_PATH, "POST", **ALLOWED)[1]
    assert ask(guard, access.SIGN_IN_PATH, query="once=wrong")[0] == 401
    assert ask(guard, access.SIGN_IN_PATH, query=f"once={once}", host="evil.example")[0] == 403
    status, page, headers = ask(guard, access.SIGN_IN_PATH, query=f"once={once}")
    assert status == 200
    assert PASSWORD in page
    assert 'location.replace("/#/runs")' in page
    nonce = re.search(r"script-src 'nonce-([\w-]+)'", headers["content-security-policy"])
    assert nonce
    assert f'<script nonce="{nonce[1]}">' in page
    assert headers["cache-control"] == "no-store"
    assert ask(guard, access.SIGN_IN_PATH, query=f"once={once}")[0] == 401


def test_a_link_does_not_last(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = Guard(application, "mlflow", PORT, PASSWORD)
    once = ask(guard, access.SIGN_IN_PATH, "POST", **ALLOWED)[1]
    import time

    later = time.monotonic() + LINK_SECONDS + 1
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert ask(guard, access.SIGN_IN_PATH, query=f"once={once}")[0] == 401


def test_links_do_not_pile_up() -> None:
    guard = Guard(application, "mlflow", PORT, PASSWORD)
    made = [ask(guard, access.SIGN_IN_PATH, "POST", **ALLOWED)[1] for _ in range(150)]
    assert len(guard._links) <= 101
    assert ask(guard, access.SIGN_IN_PATH, query=f"once={made[-1]}")[0] == 200
