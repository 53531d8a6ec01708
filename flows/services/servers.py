"""The servers that run beside the flows: Prefect's and MLflow's, as child processes on loopback behind a password."""

import atexit
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import FrameType

import typer

from flows.services import access, environment, interrupts
from tasks.errors import HomeError
from tasks.runtime.signals import deaf_children, ends
from tasks.storage.databases import check_database
from tasks.storage.files import json_bytes, write_atomically
from tasks.storage.home import Home
from tasks.tracking.mlflow_tracker import EXPERIMENTS, Tracker

logger = logging.getLogger(__name__)

START_TIMEOUT_SECONDS = 300.0  # a busy machine has taken more than 120
SEND_SECONDS = 5.0  # for the last log lines and events of flows
HOST = "127.0.0.1"
SHOWN = {"prefect": ("Prefect", "flows, schedules, triggers"), "mlflow": ("MLflow", "runs, models, galleries")}
# Settings of clients and of other servers: these servers have their own addresses and password.
NOT_FOR_SERVERS = (
    "PREFECT_API_URL", "PREFECT_API_AUTH_STRING", "PREFECT_API_KEY", "PREFECT_CLIENT_CUSTOM_HEADERS",
    "PREFECT_SERVER_API_AUTH_STRING", "PREFECT_SERVER_API_BASE_PATH", "PREFECT_SERVER_UI_API_URL", "PREFECT_UI_API_URL",
    "PREFECT_SERVER_UI_SERVE_BASE", "PREFECT_UI_SERVE_BASE", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Service:
    """A running server: its name, its address for people and its process."""

    name: str
    address: str
    process: subprocess.Popen[bytes]


def listen(port: int) -> socket.socket:
    """Return a socket that listens on loopback at `port`, or at a free one where that is taken.

    The server gets the socket itself, so nobody can take the port between choosing and using it.
    """
    for wanted in (port, 0):
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, wanted))
            listener.listen(128)
            return listener
        except OSError:
            listener.close()
    raise HomeError(f"no free port on {HOST}")


def address_of(listener: socket.socket) -> str:
    """Return the address at which people and clients find a server that gets this socket."""
    return f"http://{HOST}:{listener.getsockname()[1]}"


def start_prefect(home: Home, port: int | socket.socket, has_page: bool = True) -> Service:
    """Start a Prefect server on loopback and wait until it answers; HomeError where it does not.

    Args:
        port: the wanted one, or a socket of `listen`.
        has_page: include the page, schedules and all other background services.
    """
    check_prefect_database(home)
    return _start(home, "prefect", port, [] if has_page else ["--without-page"])


def check_prefect_database(home: Home) -> None:
    """Raise DamagedDatabase where the database of the Prefect servers that commands start is damaged."""
    if path := environment.prefect_database(home):
        check_database(path, environment.PREFECT_KNEW)


def start_mlflow(home: Home, port: int | socket.socket) -> Service:
    """Start an MLflow server on loopback over the home's store and wait for its answer; HomeError without one."""
    tracker = Tracker(home)
    if tracker.uri.startswith(("http://", "https://")):
        raise HomeError("MLFLOW_TRACKING_URI names a server: open its page instead, or unset it")
    for experiment in EXPERIMENTS:
        tracker.experiment(experiment)  # made here, so that their files lie below the home for every client
    return _start(home, "mlflow", port, [])


def stop(service: Service) -> None:
    """End a server and what it started."""
    if service.process.stdin:
        service.process.stdin.close()  # ends it in good order; it is deaf to signals
    try:
        service.process.wait(15)
    except subprocess.TimeoutExpired:
        os.killpg(service.process.pid, signal.SIGKILL)
        service.process.wait()


def ensure_prefect(home: Home) -> Callable[[], None]:
    """Give the flows of this process a Prefect server: that of PREFECT_API_URL, otherwise one of their own.

    The latter ends with this process. Prefect would start one itself, but without a password.

    Returns:
        a function that waits until the server answers, or raises HomeError.
    Raises:
        ConfigError: the server refuses the password.
        DamagedDatabase: its database is damaged.
    """
    if os.environ.get("PREFECT_API_URL"):
        environment.check_prefect()
        return lambda: None
    check_prefect_database(home)
    service, wait = _launch(home, "prefect", 0, ["--without-page"])
    interrupts.servers.append(service.process)
    atexit.register(_end_own_prefect, service)
    access.use_prefect(home, f"{service.address}/api")
    return wait


def _end_own_prefect(service: Service) -> None:
    """Stop the Prefect server of this process once what Prefect's client still holds for it is sent.

    The client sends the rest when the interpreter ends its threads; an interrupted command leaves before that, and the
    client would then try for long to reach a server that is gone.
    """
    if "prefect.logging.handlers" in sys.modules:
        from prefect.logging.handlers import APILogWorker

        APILogWorker.drain_all(timeout=SEND_SECONDS)  # of all of its queues, those of events too
    stop(service)


@contextmanager
def served(home: Home, ports: Mapping[str, int | socket.socket]) -> Iterator[list[Service]]:
    """Start those of the named servers that do not run yet, and record their addresses; stop and forget them after.

    The records of other processes stay. Of two starts at once, the second waits and finds the servers of the first.
    """
    with ExitStack() as stack:
        started: list[Service] = []
        with access.servers_locked(home):
            running = environment.running_services(home)
            for name, port in ports.items():
                if name not in running:
                    started.append(start_prefect(home, port) if name == "prefect" else start_mlflow(home, port))
                    stack.callback(stop, started[-1])
            stack.callback(_forget, home, started)
            lines = {key: line for service in started for key, line in _lines_of(service).items()}
            _write_services(home, environment.read_services(home) | lines)
        yield started


def _forget(home: Home, services: Sequence[Service]) -> None:
    """Remove these servers from `services.json`."""
    lines = [line for service in services for line in _lines_of(service).items()]
    with access.servers_locked(home):
        _write_services(home, {k: v for k, v in environment.read_services(home).items() if (k, v) not in lines})


def _lines_of(service: Service) -> dict[str, str]:
    api = {"prefect_api_url": f"{service.address}/api"} if service.name == "prefect" else {}
    return {f"{service.name}_url": service.address, **api}


def _write_services(home: Home, lines: dict[str, str]) -> None:
    if lines:
        write_atomically(home.services, json_bytes(lines), mode=0o600)
    else:
        home.services.unlink(missing_ok=True)


def run_uis(home: Home, prefect_port: int, mlflow_port: int) -> None:
    """Start the pages that do not run yet, print their addresses, and wait until one that it started ends.

    Raises HomeError where one of the servers fails. Returns at once where both run already.
    """
    _stop_on_terminate()
    with served(home, {"prefect": prefect_port, "mlflow": mlflow_port}) as services:
        running = environment.running_services(home)
        _say_where(home, running)
        if not services:
            typer.echo(f"Both run already for home {home.root}; they stop with the commands that started them.")
            return
        typer.echo(f"Ctrl-C stops {' and '.join(service.name for service in services)}.")
        while all(service.process.poll() is None for service in services):
            time.sleep(0.5)
        ended = next(service for service in services if service.process.poll() is not None)
        raise HomeError(f"{ended.name} ended by itself; its log is {home.root / 'logs' / f'{ended.name}.log'}")


def _say_where(home: Home, running: dict[str, str]) -> None:
    """Say where the pages are and how to sign in; a terminal gets links that sign in, each of them once."""
    if sys.stdout.isatty():
        pages = {name: access.sign_in_link(home, address) for name, address in running.items()}
    else:  # perhaps a log that others read
        pages = {name: address + access.PAGES[name] for name, address in running.items()}
    for name, page in pages.items():
        typer.echo(f"{SHOWN[name][0]:8} {page}   {SHOWN[name][1]}")
    once = "These links sign in once, within ten minutes. Otherwise sign" if sys.stdout.isatty() else "Sign"
    typer.echo(f"{once} in as user {access.USER}; the password is in {home.password}")


def _stop_on_terminate() -> None:
    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for number in ends():
        signal.signal(number, interrupt)


def _start(home: Home, name: str, port: int | socket.socket, options: list[str]) -> Service:
    """Start a server as a child that ends with this process, and wait until it is ready."""
    service, wait = _launch(home, name, port, options)
    wait()
    return service


def _launch(home: Home, name: str, port: int | socket.socket, options: list[str]) -> tuple[Service, Callable[[], None]]:
    """Start a server as a child that ends with this process; return what waits until it is ready too."""
    access.password_of(home)  # made before the server asks for it
    log = home.root / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    to_read, to_write = os.pipe()
    listener = listen(port) if isinstance(port, int) else port
    address = address_of(listener)
    own = {key: value for key, value in os.environ.items() if key not in NOT_FOR_SERVERS}
    own |= {"PREFECT_SERVER_UI_API_URL": f"{address}/api", "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": address}
    try:
        descriptors = (listener.fileno(), to_write)
        with log.open("ab") as output, deaf_children(signal.SIGINT):
            process = subprocess.Popen(
                [sys.executable, "-m", "flows.services.server", name, str(home.root), *map(str, descriptors), *options],
                cwd=log.parent,  # uvicorn imports from the working folder first; this one holds no modules
                env=own,
                pass_fds=descriptors,
                stdin=subprocess.PIPE,  # closed by the end of this process, however it ends, which ends the server
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    finally:
        os.close(to_write)
        listener.close()  # the server has its own
    service = Service(name, address, process)

    def wait() -> None:
        try:
            _wait_until_ready(service, to_read, log)
        except BaseException:
            stop(service)
            raise
        finally:
            os.close(to_read)
        logger.debug("%s is at %s", name, service.address)

    return service, wait


def _wait_until_ready(service: Service, ready: int, log: os.PathLike[str]) -> None:
    if not select.select([ready], [], [], START_TIMEOUT_SECONDS)[0]:
        raise HomeError(f"{service.name} does not answer after {START_TIMEOUT_SECONDS:.0f} s; its log is {log}")
    if not os.read(ready, 1):  # closed without a word
        status = service.process.wait(15)
        raise HomeError(f"{service.name} ended with status {status} while starting; its log is {log}")
