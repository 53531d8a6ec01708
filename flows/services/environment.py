"""Environment defaults that keep Prefect, Ray and MLflow private, quiet and inside the home. Imports none of them."""

import base64
import http.client
import importlib
import json
import logging
import os
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from flows.services import access
from tasks.errors import ConfigError
from tasks.storage.home import Home

PREFECT_PORT, MLFLOW_PORT = 4200, 5000
PREFECT_KNEW = "the flow runs and schedules it knew"
GRPC_EXCEPTIONS = "no_grpc_proxy"
LOOPBACK = ("127.0.0.1", "localhost", "::1")

DEFAULTS = {
    # privacy
    "DO_NOT_TRACK": "true",  # the word: MLflow does not take "1"
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_V2_ENABLED": "false",  # the newer UI asks an analytics host from the browser
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # or a full disk is a traceback of 150 lines before our one
    "RAY_USAGE_STATS_ENABLED": "0",
    # behaviour
    "PYTHONSAFEPATH": "1",  # no child imports what lies in the folder that a command is run in
    "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",  # the default is pickle
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "90",  # 20 s are short for the first migration
    "PREFECT_LOGGING_EXTRA_LOGGERS": "flows,tasks",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",  # the training thread logs too
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "RAY_AUTH_MODE": "token",  # Ray listens on all interfaces, even when embedded
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process for each attempt, without a reader of its news
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    # Threads of a matrix product that wait for each other by spinning make a training step on two shared cores 4 to 15
    # times slower; asleep they cost nothing.
    "OMP_WAIT_POLICY": "PASSIVE",
    # quiet
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # the command line reports errors in one line
    "PREFECT_CLI_PROMPT": "false",
    "PYTHONWARNINGS": "ignore:::starlette.middleware.wsgi",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
    "GIT_PYTHON_REFRESH": "quiet",
}


def prepare(home: Home, verbosity: int = 0) -> None:
    """Set what is not set yet, before prefect, ray or mlflow is imported; a user's own value wins.

    Where `ui` or `deploy` runs for this home, flows report to its Prefect server.
    """
    set_defaults()
    if verbosity > 0:
        os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "INFO"
    os.environ.setdefault("PREFECT_HOME", str(home.prefect))
    _use_servers(home)


def _use_servers(home: Home) -> None:
    """Have this process's clients use the Prefect server that runs for this home, and know its servers' password.

    A user's own address or password wins.
    """
    running = running_services(home)
    prefect, mlflow = running.get("prefect", ""), running.get("mlflow", "")
    given = os.environ.get("PREFECT_API_URL")
    if prefect and (not given or (_is_at(given, prefect) and "PREFECT_API_AUTH_STRING" not in os.environ)):
        access.use_prefect(home, given or f"{prefect}/api")
    if mlflow and _is_at(os.environ.get("MLFLOW_TRACKING_URI", ""), mlflow):
        os.environ.setdefault("MLFLOW_TRACKING_USERNAME", access.USER)
        os.environ.setdefault("MLFLOW_TRACKING_PASSWORD", access.password_of(home))


def _is_at(address: str, server: str) -> bool:
    """Return whether an address leads to a server on loopback."""
    for host in ("127.0.0.1", "localhost"):
        base = server.replace("127.0.0.1", host)
        if address == base or address.startswith(f"{base}/"):
            return True
    return False


def set_defaults() -> None:
    """Set those of `DEFAULTS` that are not set; Ray reads its own once, when it is first imported."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    _bypass_proxies()


def import_prefect(home: Home) -> None:
    """Import Prefect while the working folder is one of the home.

    It reads its settings from `.env`, `prefect.toml` and `pyproject.toml` of the working folder, and fails where one of
    them is broken. They are the user's, for another program.
    """
    home.prefect.mkdir(parents=True, exist_ok=True)
    before = os.open(".", os.O_RDONLY)  # its name may be gone
    try:
        os.chdir(home.prefect)
        importlib.import_module("prefect.main")
    finally:
        os.fchdir(before)
        os.close(before)


def _bypass_proxies() -> None:
    """Keep traffic on loopback between this process and its children away from the user's proxies.

    A user's exceptions stay. Both spellings get all of them, for the lower case one hides the other.
    """
    hosts = _hosts_of("NO_PROXY", "no_proxy")
    if hosts != ["*"]:
        proxies = urllib.request.getproxies_environment()
        given = [proxies[scheme] for scheme in ("http", "https", "all") if proxies.get(scheme)]
        hosts += [] if all(map(_is_http, given)) else ["*"]
        os.environ["NO_PROXY"] = os.environ["no_proxy"] = ",".join(dict.fromkeys([*hosts, *LOOPBACK]))
    if hosts := _hosts_of(GRPC_EXCEPTIONS):  # gRPC then looks at no other
        os.environ[GRPC_EXCEPTIONS] = ",".join(dict.fromkeys([*hosts, *LOOPBACK]))


def _hosts_of(*names: str) -> list[str]:
    hosts = [host.strip() for name in names for host in os.environ.get(name, "").split(",")]
    return list(dict.fromkeys(filter(None, hosts)))


def _is_http(proxy: str) -> bool:
    """Return whether httpx, which Prefect uses, can be built with a proxy.

    It refuses SOCKS and malformed addresses even where no request would go there, unless one of the exceptions is `*`.
    Beside other exceptions only httpx takes that one for all hosts; downloads still use the proxy or report a mistake.
    """
    try:
        parts = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        return False


def configure_logging(verbosity: int) -> None:
    """Send this project's log lines to stderr: warnings when quiet, one line for each stage, details when verbose."""
    level = {-1: logging.WARNING, 0: logging.INFO}.get(verbosity, logging.DEBUG if verbosity > 0 else logging.WARNING)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    for name in ("flows", "tasks"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level)


def running_prefect(home: Home) -> str | None:
    """Return the API address of the Prefect server that `ui` or `deploy` runs for this home, if it answers."""
    address = running_services(home, ("prefect",)).get("prefect")
    return f"{address}/api" if address else None


def running_services(home: Home, names: Sequence[str] = ("prefect", "mlflow")) -> dict[str, str]:
    """Return the addresses of those of the named servers that run for this home; each proves that it is this home's."""
    known = read_services(home)
    addresses = {name: known[f"{name}_url"] for name in names if f"{name}_url" in known}
    return {name: address for name, address in addresses.items() if access.is_server_of(home, name, address)}


def prefect_database(home: Home) -> Path | None:
    """Return the database of the Prefect servers that commands start; None where another database is set."""
    if os.environ.get("PREFECT_API_DATABASE_CONNECTION_URL") or os.environ.get(
        "PREFECT_SERVER_DATABASE_CONNECTION_URL"
    ):
        return None
    return Path(os.environ.get("PREFECT_HOME") or home.prefect) / "prefect.db"


def read_services(home: Home) -> dict[str, str]:
    """Return what `orchestrion ui` or `orchestrion deploy` wrote about the servers it runs, or nothing."""
    try:
        known = json.loads(home.services.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return {k: v for k, v in known.items() if isinstance(v, str)} if isinstance(known, dict) else {}


def check_prefect() -> str:
    """Return the address of PREFECT_API_URL; ConfigError where it does not answer, or refuses the password."""
    address, auth = os.environ["PREFECT_API_URL"].rstrip("/"), os.environ.get("PREFECT_API_AUTH_STRING")
    key = os.environ.get("PREFECT_API_KEY")
    sent = {"Authorization": f"Bearer {key}"} if key and not auth else {}
    if auth:
        sent = {"Authorization": f"Basic {base64.b64encode(auth.encode()).decode()}"}
    try:
        shown = without_password(address)
    except ValueError:
        raise ConfigError("PREFECT_API_URL is no address, such as http://127.0.0.1:4200/api") from None
    try:
        # `/health` is open to everybody; this route is not.
        with urllib.request.urlopen(urllib.request.Request(f"{address}/admin/version", headers=sent), timeout=30):
            return shown
    except urllib.error.HTTPError as error:
        if error.code not in (401, 403):
            return shown  # Prefect's cloud has no such route
        given = "the password of PREFECT_API_AUTH_STRING" if auth else "a request without PREFECT_API_AUTH_STRING"
        raise ConfigError(f"the Prefect server at PREFECT_API_URL={shown} refuses {given}") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        why = getattr(error, "reason", None) or error
        raise ConfigError(
            f"PREFECT_API_URL={shown} does not answer ({why}); start `orchestrion ui` or unset it"
        ) from None


def without_password(address: str) -> str:
    """Return an address without user, password and query, for messages."""
    parts = urllib.parse.urlsplit(address)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
