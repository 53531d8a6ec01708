"""The guard of the servers on loopback: host name, origin, and the home's password for every route.

An ASGI application around Prefect's or MLflow's. Neither checks all three: Prefect takes any host name, answers any
origin and leaves its pages open; MLflow has passwords only with a plugin and a database of its own.
"""

import base64
import binascii
import hmac
import json
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs

from flows.services.access import NONCE_HEADER, PROOF_HEADER, SIGN_IN_PATH, USER, proof

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

HOSTS = ("127.0.0.1", "localhost")
LINK_SECONDS = 600.0
MAX_LINKS = 100
NO_STORE: Headers = [(b"cache-control", b"no-store"), (b"referrer-policy", b"no-referrer")]

# The browser keeps the user and password of a request for all others to the same host and port, as if they had been
# typed into its prompt. A cookie would go to every port of 127.0.0.1, other users' programs included.
SIGN_IN_PAGE = """<!DOCTYPE html><meta charset="utf-8"><title>Orchestrion</title><p>Signing in ...</p>
<script nonce="{nonce}">
const request = new XMLHttpRequest();
request.open("GET", {path}, true, {user}, {password});
request.onload = () => location.replace({page});
request.onerror = () => {{ document.querySelector("p").textContent = "The server does not answer."; }};
request.send();
</script>
"""


class Guard:
    """Refuses what does not come from this machine's own pages and clients with the password.

    Args:
        app: the application behind the guard.
        server: `prefect` or `mlflow`.
        port: where it listens.
        password: of the home.
        page: address within the server where a signed-in person begins.
    """

    def __init__(self, app: App, server: str, port: int, password: str, page: str = "/") -> None:
        self._app, self._server, self._port, self._password, self._page = app, server, port, password, page
        self._wanted = f"{USER}:{password}".encode()
        self._links: dict[str, float] = {}  # token -> when it ends

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        refusal = self._foreign(scope, headers)
        if refusal:
            await _refuse(scope, receive, send, 403, refusal)
        elif scope["path"] == SIGN_IN_PATH and scope["type"] == "http" and scope["method"] == "GET":
            await self._sign_in(scope, receive, send, headers)
        elif not self._knows_password(headers):
            await self._ask_for_password(scope, receive, send, headers)
        elif scope["path"] == SIGN_IN_PATH and scope["type"] == "http":
            await _answer(send, 200, self._make_link(), b"text/plain", NO_STORE)
        else:
            await self._app(scope, receive, send)

    def _foreign(self, scope: Scope, headers: dict[str, list[str]]) -> str:
        """Return what is wrong with where a request comes from, or nothing.

        A name that resolves to 127.0.0.1 (DNS rebinding) is not ours. A page of another origin, one of another user's
        program on another port included, may lead here but not make requests.
        """
        hosts = headers.get("host", [])
        name, _, port = hosts[0].rpartition(":") if len(hosts) == 1 and ":" in hosts[0] else ("".join(hosts), "", "0")
        if len(hosts) != 1 or name not in HOSTS or not (port.isascii() and port.isdigit()):
            return f"this server is http://127.0.0.1:{self._port}"
        if any(origin != f"http://{hosts[0]}" for origin in headers.get("origin", [])):
            return "pages of other origins may not use this server"
        leads_here = (headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")) == (["navigate"], ["document"])
        if headers.get("sec-fetch-site", ["none"])[0] not in ("none", "same-origin") and not (
            leads_here and scope["type"] == "http" and scope["method"] == "GET"
        ):
            return "pages of other origins may not use this server"
        return ""

    def _knows_password(self, headers: dict[str, list[str]]) -> bool:
        given = headers.get("authorization", [])
        scheme, _, code = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        if scheme.lower() != "basic":
            return False
        try:
            said = base64.b64decode(code.strip(), validate=True)
        except (binascii.Error, ValueError):
            return False
        return hmac.compare_digest(said, self._wanted)

    async def _ask_for_password(
        self, scope: Scope, receive: Receive, send: Send, headers: dict[str, list[str]]
    ) -> None:
        more: Headers = [(b"www-authenticate", b'Basic realm="orchestrion", charset="UTF-8"')]
        nonce = headers.get(NONCE_HEADER, [""])[0]
        if nonce:
            said = proof(self._password, self._server, self._port, nonce)
            more.append((PROOF_HEADER.encode(), said.encode()))
        text = f"sign in as {USER}; the password is in the file `password` of the home"
        await _refuse(scope, receive, send, 401, text, more)

    def _make_link(self) -> str:
        now = time.monotonic()
        self._links = dict([(t, end) for t, end in self._links.items() if end > now][-MAX_LINKS:])
        token = secrets.token_urlsafe(32)
        self._links[token] = now + LINK_SECONDS
        return token

    async def _sign_in(self, scope: Scope, receive: Receive, send: Send, headers: dict[str, list[str]]) -> None:
        """Give the page that makes a browser remember the password, once for each link; otherwise ask for it."""
        query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
        once = query.get("once", [""])[0]
        if self._links.pop(once, 0.0) > time.monotonic():
            nonce = secrets.token_urlsafe(16)
            text = SIGN_IN_PAGE.format(
                nonce=nonce,
                path=json.dumps(SIGN_IN_PATH),
                user=json.dumps(USER),
                password=json.dumps(self._password),
                page=json.dumps(self._page),
            )
            policy = f"default-src 'none'; connect-src 'self'; script-src 'nonce-{nonce}'; frame-ancestors 'none'"
            more = [*NO_STORE, (b"content-security-policy", policy.encode())]
            await _answer(send, 200, text, b"text/html; charset=utf-8", more)
        elif self._knows_password(headers):
            await _answer(send, 200, "signed in\n", b"text/plain", NO_STORE)
        else:
            await self._ask_for_password(scope, receive, send, headers)


async def _refuse(
    scope: Scope, receive: Receive, send: Send, status: int, text: str, more: Headers | None = None
) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008})  # before it is accepted: the handshake gets 403
        return
    await _answer(
        send, status, f"{text}\n", b"text/plain; charset=utf-8", [*(more or []), *NO_STORE, (b"connection", b"close")]
    )


async def _answer(send: Send, status: int, text: str, content_type: bytes, more: Headers) -> None:
    body = text.encode()
    about = [(b"content-type", content_type), (b"content-length", str(len(body)).encode()), *more]
    await send({"type": "http.response.start", "status": status, "headers": about})
    await send({"type": "http.response.body", "body": body})
