"""The process of one server on loopback: Prefect's or MLflow's application behind the guard.

    python -m flows.services.server prefect HOME SOCKET READY [--without-page]

SOCKET is a listening socket and READY a pipe, both inherited from `servers.py`; a byte on the pipe says that the
server answers. It ends with its parent: its standard input is a pipe that only the parent holds open.
"""

import asyncio
import gc
import logging
import os
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from flows.services.access import PAGES, password_of
from flows.services.guard import Guard
from tasks.storage.home import Home

STOP_SECONDS = 3  # for requests under way


def prefect_app(has_page: bool) -> ASGIApp:
    """Return Prefect's application; its page asks the API of the same address.

    Args:
        has_page: include the page and all background services.
    """
    import prefect
    from prefect.server.api.server import create_app
    from prefect.settings import PREFECT_SERVER_UI_API_URL, temporary_settings

    prefect.__ui_v2_static_path__ = Path(os.devnull) / "none"  # the newer page asks an analytics host
    app = create_app(final=True, ephemeral=not has_page)

    async def at_this_address(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != "/ui-settings":
            await app(scope, receive, send)
            return
        host = dict(scope["headers"])[b"host"].decode("latin-1")  # 127.0.0.1 or localhost: the guard has seen to it
        with temporary_settings({PREFECT_SERVER_UI_API_URL: f"http://{host}/api"}):
            await app(scope, receive, send)

    return at_this_address


class _Server(uvicorn.Server):
    """A server that reports when it is ready, and whose process ends with it."""

    def __init__(self, config: uvicorn.Config, ready: int) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            os.write(self._ready, b"!")
        os.close(self._ready)

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        await super().serve(sockets)
        if self.started:
            # All requests are answered and the application has written what it held. Prefect closes its database when
            # the loop ends. What is left are threads that poll; to wait for them takes 2 to 8 seconds.
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.get_running_loop().shutdown_asyncgens(), STOP_SECONDS)
            logging.shutdown()
            os._exit(0)


def main(arguments: list[str]) -> None:
    """Serve until SIGTERM or the end of the parent."""
    gc.disable()  # a quarter of the time that the imports take
    name, root, number, ready, *options = arguments
    home, listener = Home.at(root), socket.socket(fileno=int(number))
    if name == "prefect":
        app = prefect_app("--without-page" not in options)
    else:
        from tasks.tracking.mlflow_server import server_application
        from tasks.tracking.mlflow_tracker import Tracker

        app = server_application(Tracker(home).uri, (home.mlflow / "artifacts").as_uri())
    guarded: Any = Guard(app, name, listener.getsockname()[1], password_of(home), PAGES[name])
    config = uvicorn.Config(
        guarded, log_level="warning", access_log=False, lifespan="on", timeout_graceful_shutdown=STOP_SECONDS
    )
    server = _Server(config, int(ready))
    gc.freeze()
    gc.enable()

    def end_with_parent() -> None:
        while sys.stdin.buffer.read(1):
            pass
        server.should_exit = True

    threading.Thread(target=end_with_parent, name="end-with-parent", daemon=True).start()
    server.run([listener])


if __name__ == "__main__":
    main(sys.argv[1:])
