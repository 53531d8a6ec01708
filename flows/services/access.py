"""The password of a home's servers: created once, readable by its owner alone, verified before it is sent.

Every server that this project starts asks for it (`guard.py`), and every command of the same home finds it here.
"""

import base64
import hmac
import http.client
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.errors import HomeError
from tasks.storage.files import locked, write_atomically
from tasks.storage.home import Home

USER = "orchestrion"
NONCE_HEADER, PROOF_HEADER = "orchestrion-nonce", "orchestrion-proof"
SIGN_IN_PATH = "/orchestrion/sign-in"
PAGES = {"prefect": "/", "mlflow": "/#/experiments?workflowType=machine_learning"}  # where a person begins
ANSWER_SECONDS = 10.0  # of a server on a busy machine; one that is gone refuses at once

_ADDRESS = re.compile(r"http://127\.0\.0\.1:([0-9]{1,5})")
_PASSWORD = re.compile(r"[A-Za-z0-9_-]{43}")


def password_of(home: Home) -> str:
    """Return the password of a home's servers, made by the first call.

    A file that others may read, or that holds no password, is replaced. HomeError where the file system keeps no
    permissions.
    """
    known = _read_password(home.password)
    if known:
        return known
    with servers_locked(home):
        if not _read_password(home.password):
            write_atomically(home.password, f"{secrets.token_urlsafe(32)}\n".encode(), mode=0o600)
    made = _read_password(home.password)
    if not made:
        raise HomeError(f"{home.password} cannot be kept from other users on this file system; give another --home")
    return made


def _read_password(path: Path) -> str | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as handle:
        facts = os.fstat(descriptor)
        is_own = facts.st_uid == os.geteuid() or os.geteuid() == 0
        if not stat.S_ISREG(facts.st_mode) or facts.st_mode & 0o077 or not is_own:
            return None
        text = handle.read(100).decode("ascii", "replace").strip()
    return text if _PASSWORD.fullmatch(text) else None


_held: set[Path] = set()


@contextmanager
def servers_locked(home: Home) -> Iterator[None]:
    """Hold the lock over a home's password and `services.json`; nested calls share it, other processes wait."""
    if home.root in _held:
        yield
        return
    home.root.mkdir(0o700, parents=True, exist_ok=True)
    with locked(home.root / "services.lock"):
        _held.add(home.root)
        try:
            yield
        finally:
            _held.discard(home.root)


def basic(password: str) -> str:
    """Return the value of the header `Authorization` for the servers of a home."""
    return "Basic " + base64.b64encode(f"{USER}:{password}".encode()).decode()


def proof(password: str, server: str, port: int, nonce: str) -> str:
    """Return the proof of the password for a server's name, its port and a number used once."""
    return hmac.new(password.encode(), f"{server} {port} {nonce}".encode(), "sha256").hexdigest()


def is_server_of(home: Home, server: str, address: str) -> bool:
    """Return whether a server of this home answers at an address; the password is not sent.

    The port of a server that has ended may belong to another user's program by now.
    """
    password, nonce, where = _read_password(home.password), secrets.token_hex(16), _ADDRESS.fullmatch(address)
    if not password or not where:
        return False
    port = int(where[1])
    try:
        answer, _ = _request(port, "GET", "/", {NONCE_HEADER: nonce})
    except (OSError, OverflowError, http.client.HTTPException):
        return False
    given = answer.getheader(PROOF_HEADER, "")
    return hmac.compare_digest(given.encode(), proof(password, server, port, nonce).encode())


def sign_in_link(home: Home, address: str) -> str:
    """Return an address of a server of this home that signs a browser in, once and for ten minutes."""
    port = address.rpartition(":")[2]
    answer, once = _request(int(port), "POST", SIGN_IN_PATH, {"Authorization": basic(password_of(home))})
    if answer.status != 200:
        raise HomeError(f"the server at {address} gives no link to sign in: status {answer.status}")
    return f"{address}{SIGN_IN_PATH}?once={once.decode()}"


def _request(port: int, method: str, path: str, headers: dict[str, str]) -> tuple[http.client.HTTPResponse, bytes]:
    """Send a request to a server on loopback, without the proxies of the environment."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer, answer.read()
    finally:
        connection.close()


def use_prefect(home: Home, api_url: str) -> None:
    """Have Prefect's clients in this process and its children use a server of this home.

    To be called before Prefect is imported, which reads its settings once.
    """
    os.environ |= client_variables(home, api_url)


def client_variables(home: Home, api_url: str) -> dict[str, str]:
    """Return what makes Prefect's clients use a server of this home; only its user can read a process's environment.

    The password is also a header, without which some of Prefect's clients open their websockets unauthenticated.
    """
    password = password_of(home)
    try:
        headers = dict(json.loads(os.environ.get("PREFECT_CLIENT_CUSTOM_HEADERS") or "{}"))
    except (ValueError, TypeError):
        headers = {}  # Prefect reports the mistake
    return {
        "PREFECT_API_URL": api_url,
        "PREFECT_API_AUTH_STRING": f"{USER}:{password}",
        "PREFECT_CLIENT_CUSTOM_HEADERS": json.dumps(headers | {"Authorization": basic(password)}),
    }
