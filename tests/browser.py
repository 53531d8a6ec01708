"""A headless Chromium for tests, driven through chromedriver's WebDriver protocol over plain HTTP.

    with Browser() as browser:
        browser.open("http://127.0.0.1:8000/")
        browser.click("button.play")
        assert browser.run("return document.title") == "..."

`skip_without_browser` marks tests that need it: they skip where chromium or chromedriver is not on PATH.
"""

import base64
import json
import queue
import re
import shutil
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key under which WebDriver wraps an element (W3C, section 12.1)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--mute-audio",
)  # fmt: skip

skip_without_browser = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None,
    reason=f"needs a browser: {'chromium' if CHROMIUM is None else 'chromedriver'} is not on PATH",
)


class BrowserError(AssertionError):
    """The browser refused a command; the message is the driver's own."""


class Browser:
    """One Chromium window with a profile of its own, closed with everything it started on leaving `with`."""

    def __init__(self, width: int = 1200, height: int = 900, *, dark: bool = False) -> None:
        self._size, self._dark = (width, height), dark

    def __enter__(self) -> "Browser":
        assert DRIVER, "skip_without_browser guards tests that come here"
        self._profile = tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
        self._driver = subprocess.Popen(
            [DRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        try:
            self._root = f"http://127.0.0.1:{self._read_port()}"
            arguments = [
                *FLAGS,
                f"--user-data-dir={self._profile.name}",
                f"--window-size={','.join(map(str, self._size))}",
            ]
            always = {
                "goog:chromeOptions": {"binary": CHROMIUM, "args": arguments},
                "goog:loggingPrefs": {"browser": "ALL"},
            }
            session = self._call("POST", "/session", {"capabilities": {"alwaysMatch": always}})
            self._root += f"/session/{session['sessionId']}"
            self.prefer_colours("dark" if self._dark else "light")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if "/session/" in getattr(self, "_root", ""):
                self._call("DELETE", "")
        finally:
            self._driver.terminate()
            self._driver.wait(10)
            self._driver.stdout.close()  # type: ignore[union-attr]
            self._profile.cleanup()

    def open(self, url: str) -> None:
        """Load `url` and wait until it has finished."""
        self._call("POST", "/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """Run JavaScript as the body of a function in the current frame and return its value; promises are awaited."""
        return self._call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def click(self, selector: str) -> None:
        """Click the first element that `selector` finds, as a user would: it must be visible and not covered."""
        self._call("POST", f"/element/{self._find(selector)}/click", {})

    def type(self, selector: str, text: str) -> None:
        """Send key strokes to an element; keys without a letter have WebDriver's private code points."""
        self._call("POST", f"/element/{self._find(selector)}/value", {"text": text})

    def press(self, keys: str) -> None:
        """Press and release each key in turn, wherever the focus is."""
        strokes = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self._call("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": strokes}]})

    def click_at(self, selector: str, x: int, y: int) -> None:
        """Click a point of an element, in pixels from its centre, after bringing it into view."""
        self.run(
            "document.querySelector(arguments[0]).scrollIntoView({block: 'center', behavior: 'instant'})", selector
        )
        origin = {ELEMENT: self._find(selector)}
        steps = [
            {"type": "pointerMove", "origin": origin, "x": x, "y": y},
            {"type": "pointerDown", "button": 0},
            {"type": "pointerUp", "button": 0},
        ]
        self._call("POST", "/actions", {"actions": [{"type": "pointer", "id": "mouse", "actions": steps}]})

    def enter_frame(self, selector: str | None) -> None:
        """Make a frame the one that later commands act on; None goes back to the page."""
        target = None if selector is None else {ELEMENT: self._find(selector)}
        self._call("POST", "/frame", {"id": target})

    def prefer_colours(self, scheme: str) -> None:
        """Report `light` or `dark` as the user's preferred colours."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.devtools("Emulation.setEmulatedMedia", {"features": features})

    def devtools(self, command: str, parameters: dict[str, Any]) -> Any:
        """Send a command of the Chrome DevTools protocol."""
        return self._call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def screenshot(self, path: Path | None = None) -> bytes:
        """Return what the window shows as PNG bytes, and write them to `path` where one is given."""
        picture = base64.b64decode(self._call("GET", "/screenshot"))
        if path is not None:
            path.write_bytes(picture)
        return picture

    def console(self) -> list[dict[str, Any]]:
        """Return what the console gained since the last call: entries with `level`, `message` and `source`."""
        return self._call("POST", "/se/log", {"type": "browser"})

    def errors(self) -> list[str]:
        """Return the console's errors and warnings since the last look at it."""
        return [entry["message"] for entry in self.console() if entry["level"] in ("SEVERE", "WARNING")]

    def wait_until(self, condition: str, seconds: float = 10.0) -> None:
        """Wait until the JavaScript expression is true.

        Raises:
            BrowserError: it stays false for `seconds`.
        """
        deadline = time.monotonic() + seconds
        while not self.run(f"return Boolean({condition})"):
            if time.monotonic() > deadline:
                raise BrowserError(f"{condition} is still false after {seconds} s")
            time.sleep(0.05)

    def _find(self, selector: str) -> str:
        return self._call("POST", "/element", {"using": "css selector", "value": selector})[ELEMENT]

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._root + path, data, {"Content-Type": "application/json"}, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the driver is on this machine
        try:
            with opener.open(request, timeout=60) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:
            raise BrowserError(f"{method} {path}: {json.load(error)['value']['message']}") from None

    def _read_port(self, seconds: float = 120.0) -> int:
        lines: queue.Queue[str] = queue.Queue()

        def forward() -> None:
            for line in self._driver.stdout:  # type: ignore[union-attr]
                lines.put(line)

        threading.Thread(target=forward, daemon=True).start()
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            try:
                line = lines.get(timeout=left)
            except queue.Empty:
                break
            if started := re.search(r"successfully on port (\d+)", line):
                return int(started[1])
        raise BrowserError(f"chromedriver named no port within {seconds} s")


@contextmanager
def serve_folder(folder: Path) -> Iterator[str]:
    """Serve a folder over HTTP on a free port of this machine and yield its address."""
    handler: Callable[..., SimpleHTTPRequestHandler] = partial(_QuietHandler, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _QuietHandler(SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        """Answer a browser's wish for an icon with nothing, which is no error in its console."""
        if self.path == "/favicon.ico":
            self.send_response(204)
            self.end_headers()
        else:
            super().do_GET()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""
