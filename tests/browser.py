"""A headless Chromium of Debian's for tests, driven by Selenium.

    with Browser() as browser:
        browser.get("http://127.0.0.1:8000/")
        browser.click("button.play")
        assert browser.run("return document.title") == "..."

`needs_browser` marks tests that use it: they skip where chromium or chromedriver is not on PATH.
"""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--mute-audio",
)  # fmt: skip


def needs_browser(test: Any) -> Any:
    """Mark a test with `slow` and `browser`, and skip it where there is none."""
    missing = "chromium" if CHROMIUM is None else "chromedriver"
    skip = pytest.mark.skipif(None in (CHROMIUM, DRIVER), reason=f"needs a browser: {missing} is not on PATH")
    return pytest.mark.slow(pytest.mark.browser(skip(test)))


class Browser(webdriver.Chrome):
    """One Chromium window with a profile of its own, closed with everything it started on leaving `with`."""

    def __init__(self, width: int = 1200, height: int = 900, *, dark: bool = False) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM or ""
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        for flag in (*FLAGS, f"--window-size={width},{height}"):
            options.add_argument(flag)
        super().__init__(options, webdriver.ChromeService(DRIVER))
        self.prefer_colours("dark" if dark else "light")

    def run(self, script: str, *arguments: Any) -> Any:
        """Run JavaScript as the body of a function in the current frame and return its value; promises are awaited."""
        return self.execute_script(script, *arguments)

    def click(self, selector: str) -> None:
        """Click the first element that `selector` finds, as a user would: it must be visible and not covered."""
        self.find_element(By.CSS_SELECTOR, selector).click()

    def click_at(self, selector: str, x: int, y: int) -> None:
        """Click a point of an element, in pixels from its centre, after bringing it into view."""
        element = self.find_element(By.CSS_SELECTOR, selector)
        self.run("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
        webdriver.ActionChains(self).move_to_element_with_offset(element, x, y).click().perform()

    def press(self, keys: str) -> None:
        """Press and release each key in turn, wherever the focus is; see `selenium.webdriver.Keys`."""
        webdriver.ActionChains(self).send_keys(keys).perform()

    def enter_frame(self, selector: str) -> None:
        """Make a frame the one that later commands act on."""
        self.switch_to.frame(self.find_element(By.CSS_SELECTOR, selector))

    def prefer_colours(self, scheme: str) -> None:
        """Report `light` or `dark` as the user's preferred colours."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def errors(self) -> list[str]:
        """Return the console's errors and warnings since the last look at it."""
        return [entry["message"] for entry in self.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]

    def wait_until(self, condition: str, seconds: float = 10.0) -> None:
        """Wait until the JavaScript expression is true; TimeoutException after `seconds`."""
        message = f"{condition} is still false after {seconds} s"
        WebDriverWait(self, seconds, 0.05).until(lambda _: self.run(f"return Boolean({condition})"), message)


class _QuietHandler(SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        """Answer a request for an icon with nothing, which is no error in the console."""
        if self.path == "/favicon.ico":
            self.send_response(204)
            self.end_headers()
        else:
            super().do_GET()

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


@contextmanager
def serve_folder(folder: Path) -> Iterator[str]:
    """Serve a folder over HTTP on a free port of this machine and yield its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_QuietHandler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
