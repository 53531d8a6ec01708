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
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from flows.services.access import NONCE_HEADER, PROOF_HEADER, SIGN_IN_PATH, USER, proof

HOSTS = ("127.0.0.1", "localhost")
LINK_SECONDS = 600.0
MAX_LINKS = 100
NO_STORE = {"cache-control": "no-store", "referrer-policy": "no-referrer"}

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
    """Refuses requests except those of this machine's own pages and clients that have the password.

    Args:
        server: `prefect` or `mlflow`.
        page: address within the server where a signed-in person begins.
    """

    def __init__(self, app: ASGIApp, server: str, port: int, password: str, page: str = "/") -> None:
        self._app, self._server, self._port, self._password, self._page = app, server, port, password, page
        self._wanted = f"{USER}:{password}".encode()
        self._links: dict[str, float] = {}  # token -> when it ends

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self._app if scope["type"] == "lifespan" else self._answer(scope, Headers(scope=scope))
        await answer(scope, receive, send)

    def _answer(self, scope: Scope, headers: Headers) -> ASGIApp:
        """Return what answers a request: the application, or a response of the guard."""
        is_sign_in = scope["type"] == "http" and scope["path"] == SIGN_IN_PATH
        if refusal := self._foreign(scope, headers):
            return _refusal(scope, 403, refusal)
        if is_sign_in and scope["method"] == "GET":
            return self._sign_in(scope, headers)
        if not self._knows_password(headers):
            return self._ask_for_password(scope, headers)
        return PlainTextResponse(self._make_link(), headers=NO_STORE) if is_sign_in else self._app

    def _foreign(self, scope: Scope, headers: Headers) -> str:
        """Return what is wrong with the origin of a request, or nothing.

        A name that resolves to 127.0.0.1 (DNS rebinding) is not ours. A page of another origin, one of another user's
        program on another port included, may lead here but not make requests.
        """
        hosts = headers.getlist("host")
        name, _, port = hosts[0].rpartition(":") if len(hosts) == 1 and ":" in hosts[0] else ("".join(hosts), "", "0")
        if len(hosts) != 1 or name not in HOSTS or not (port.isascii() and port.isdigit()):
            return f"this server is http://127.0.0.1:{self._port}"
        if any(origin != f"http://{hosts[0]}" for origin in headers.getlist("origin")):
            return "pages of other origins may not use this server"
        leads_here = (headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")) == ("navigate", "document")
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not (
            leads_here and scope["type"] == "http" and scope["method"] == "GET"
        ):
            return "pages of other origins may not use this server"
        return ""

    def _knows_password(self, headers: Headers) -> bool:
        given = headers.getlist("authorization")
        scheme, _, code = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        if scheme.lower() != "basic":
            return False
        try:
            known = base64.b64decode(code.strip(), validate=True)
        except (binascii.Error, ValueError):
            return False
        return hmac.compare_digest(known, self._wanted)

    def _ask_for_password(self, scope: Scope, headers: Headers) -> ASGIApp:
        more = {"www-authenticate": 'Basic realm="orchestrion", charset="UTF-8"'}
        if nonce := headers.get(NONCE_HEADER):
            more[PROOF_HEADER] = proof(self._password, self._server, self._port, nonce)
        return _refusal(scope, 401, f"sign in as {USER}; the password is in the file `password` of the home", more)

    def _make_link(self) -> str:
        now = time.monotonic()
        self._links = dict([(t, end) for t, end in self._links.items() if end > now][-MAX_LINKS:])
        token = secrets.token_urlsafe(32)
        self._links[token] = now + LINK_SECONDS
        return token

    def _sign_in(self, scope: Scope, headers: Headers) -> ASGIApp:
        """Return the page that makes a browser remember the password, once for each link; otherwise ask for it."""
        query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
        once = query.get("once", [""])[0]
        if self._links.pop(once, 0.0) > time.monotonic():
            nonce = secrets.token_urlsafe(16)
            texts = {"path": SIGN_IN_PATH, "user": USER, "password": self._password, "page": self._page}
            page = SIGN_IN_PAGE.format(nonce=nonce, **{name: json.dumps(text) for name, text in texts.items()})
            policy = f"default-src 'none'; connect-src 'self'; script-src 'nonce-{nonce}'; frame-ancestors 'none'"
            return HTMLResponse(page, headers=NO_STORE | {"content-security-policy": policy})
        if self._knows_password(headers):
            return PlainTextResponse("signed in\n", headers=NO_STORE)
        return self._ask_for_password(scope, headers)


def _refusal(scope: Scope, status: int, text: str, more: dict[str, str] | None = None) -> ASGIApp:
    if scope["type"] == "websocket":
        return WebSocketClose(1008)  # before it is accepted: the handshake gets 403
    return PlainTextResponse(f"{text}\n", status, NO_STORE | {"connection": "close"} | (more or {}))
