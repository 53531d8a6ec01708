"""Connections of downloads, with limits on hosts, speed and time."""

import ipaddress
import os
import socket
import threading
import time
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from tasks.config.source_limits import REFUSE_PRIVATE, SourceLimits
from tasks.errors import DatasetError

_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def refuses_private(limits: SourceLimits) -> bool:
    """Return whether private addresses are refused, by settings or by the environment."""
    return limits.refuse_private_addresses or os.environ.get(REFUSE_PRIVATE) == "1"


def is_public(address: str) -> bool:
    """Return whether an IP address is public; an IPv4 address inside an IPv6 address must be public too."""
    ip: Any = ipaddress.ip_address(address.partition("%")[0])
    if ip.version == 6:
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in _NAT64 or int(ip) < 2**32:  # IPv4-compatible, :: and ::1
            inner = ipaddress.ip_address(int(ip) & 0xFFFFFFFF)
        if inner is not None and not is_public(str(inner)):
            return False
    return ip.is_global and not ip.is_multicast


def require_public(host: str, port: int | None, shown: str) -> None:
    """Raise DatasetError if a host has a private address; an unknown host fails at the connection."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return
    for *_, place in found:
        _require_public_ip(str(place[0]), host, shown)


def _require_public_ip(address: str, host: str, shown: str) -> None:
    if not is_public(address):
        raise DatasetError(
            f"source {shown}: {host} is {address}, which is no public address"
            " (dataset.source_limits.refuse_private_addresses)"
        )


class Watch:
    """Ends a download after `download_seconds`, and an attempt that is too slow.

    A socket's timeout is for each read, so a server that sends single bytes never reaches it. A thread shuts the
    connection down, in the headers and in the body.
    """

    def __init__(self, limits: SourceLimits) -> None:
        self.limits = limits
        self.deadline = time.monotonic() + limits.download_seconds
        self.n_bytes = 0  # of bodies, counted by their reader
        self.is_slow = False  # the present attempt
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._attempt: tuple[float, int] | None = None  # time and n_bytes at the begin of the current window
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="download-watch", daemon=True)

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self.deadline

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()
        self.end_attempt()

    def begin_attempt(self) -> None:
        with self._lock:
            self.is_slow, self._attempt = False, (time.monotonic(), self.n_bytes)

    def end_attempt(self) -> None:
        with self._lock:
            self._attempt = None
            for opened in self._sockets:
                opened.close()
            self._sockets.clear()

    def add(self, connected: socket.socket) -> None:
        """Watch a connection through a copy of its socket, because TLS detaches the socket."""
        with self._lock:
            self._sockets.append(connected.dup())

    def wait(self, seconds: float) -> None:
        """Wait before another attempt, at most until the deadline."""
        self._ended.wait(max(0.0, min(seconds, self.deadline - time.monotonic())))

    def _run(self) -> None:
        pause = min(1.0, self.limits.download_timeout_seconds / 4, self.limits.download_seconds / 4)
        while not self._ended.wait(pause):
            with self._lock:
                if self._attempt and (self.is_over or self._falls_behind(*self._attempt)):
                    for opened in self._sockets:
                        with suppress(OSError):  # the other side has done so
                            opened.shutdown(socket.SHUT_RDWR)

    def _falls_behind(self, began: float, n_bytes: int) -> bool:
        now, window = time.monotonic(), self.limits.download_timeout_seconds
        if now - began < window:
            return self.is_slow
        self.is_slow = self.is_slow or self.n_bytes - n_bytes < self.limits.download_min_bytes_per_second * window
        self._attempt = (now, self.n_bytes)
        return self.is_slow


def make_session(limits: SourceLimits, watch: Watch, shown: str) -> requests.Session:
    """Return a session with watched connections, limited to public addresses if `limits` demand it."""
    adapter = _Adapter(limits, watch, shown)
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, adapter)
    return session


class _Adapter(HTTPAdapter):
    def __init__(self, limits: SourceLimits, watch: Watch, shown: str) -> None:
        self._refuses, self._shown = refuses_private(limits), shown
        self._pools = _pool_classes(self._refuses, watch, shown)
        super().__init__()

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        super().init_poolmanager(*arguments, **options)
        self.poolmanager.pool_classes_by_scheme = self._pools

    def proxy_manager_for(self, *arguments: Any, **options: Any) -> Any:
        manager = super().proxy_manager_for(*arguments, **options)
        manager.pool_classes_by_scheme = self._pools
        return manager

    def send(self, request: Any, *arguments: Any, **options: Any) -> Any:
        """Send one request of a chain of redirects; a private host is refused before the request."""
        if self._refuses:
            parts = urlsplit(request.url)
            require_public(parts.hostname or "", parts.port, self._shown)
        return super().send(request, *arguments, **options)


def _pool_classes(refuses: bool, watch: Watch, shown: str) -> dict[str, Any]:
    def opened(connection: Any, connected: socket.socket) -> socket.socket:
        watch.add(connected)
        if refuses and connection.proxy is None:  # the host may have another address since the check
            try:
                _require_public_ip(str(connected.getpeername()[0]), connection.host, shown)
            except DatasetError:
                connected.close()
                raise
        return connected

    class Watched(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            return opened(self, super()._new_conn())

    def pool_of(pool: Any, connection: Any) -> Any:
        return type(pool.__name__, (pool,), {"ConnectionCls": type(connection.__name__, (Watched, connection), {})})

    return {"http": pool_of(HTTPConnectionPool, HTTPConnection), "https": pool_of(HTTPSConnectionPool, HTTPSConnection)}
