"""The command line in processes that have imported everything already.

A fresh interpreter spends five seconds of CPU and more on imports, a hundred times in the suite. Here one process
imports all modules and forks a child for each command; there Prefect reads its settings anew.
The child has an environment, files, exit code and end of its own, so no command can change the test's process.

`python -m tests.command_line` is the process that forks. It answers each line of JSON with one.
"""

import atexit
import contextlib
import gc
import importlib
import json
import logging
import os
import pkgutil
import random
import select
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from tests import tracking_store

REPOSITORY = Path(__file__).resolve().parent.parent
HEAVY = (
    "mlflow.pyfunc", "numba", "ray.train", "sqlalchemy.orm", "httpx", "fastapi", "matplotlib.pyplot",
)  # fmt: skip


class Process:
    """A command that runs, with what the tests use of `subprocess.Popen`; it leads a session of its own.

    In `/proc` it has the command line and the first environment of the process that forked it.
    """

    def __init__(self, arguments: Sequence[str], environment: dict[str, str], out: Path, err: Path) -> None:
        self.args = list(arguments)
        self.returncode: int | None = None
        self.pid = _server().ask(
            {"start": self.args, "environment": environment, "cwd": str(Path.cwd()), "out": str(out), "err": str(err)}
        )
        self._handle = os.pidfd_open(self.pid)  # of a zombie too: only `_reap` ends it

    def poll(self) -> int | None:
        return self._reap() if select.select([self._handle], [], [], 0)[0] else self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None and not select.select([self._handle], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self._reap()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            signal.pidfd_send_signal(self._handle, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _reap(self) -> int:
        if self.returncode is None:
            self.returncode = int(_server().ask({"reap": self.pid}))
        return self.returncode


def run(arguments: Sequence[str], environment: dict[str, str], timeout: float) -> subprocess.CompletedProcess[str]:
    """Run `orchestrion ARGUMENTS` and return what `subprocess.run` would.

    Raises:
        TimeoutExpired: it lasts longer than `timeout` seconds, and was killed.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = Process(arguments, environment, out, err)
        try:
            code = process.wait(timeout)
        except BaseException:
            process.kill()
            process.wait()
            raise
        return subprocess.CompletedProcess(process.args, code, out.read_text(), err.read_text())


class _Server:
    """The process that forks, as long as this one lives."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.command_line"], cwd=REPOSITORY, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        atexit.register(self._close)

    def ask(self, request: dict[str, Any]) -> int:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the process that forks has ended"
        return json.loads(answer)

    def _close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


@cache
def _server() -> _Server:
    return _Server()


class _FreshPrefect:
    """An import hook: Prefect reads its settings and sets up its log when a command imports it."""

    @staticmethod
    def find_spec(name: str, *_: object) -> None:
        if name == "prefect.main":
            from prefect.context import refresh_global_settings_context
            from prefect.logging.configuration import PROCESS_LOGGING_CONFIG

            refresh_global_settings_context()
            PROCESS_LOGGING_CONFIG.clear()


def _import_all() -> None:
    from flows.services import environment

    environment.set_defaults()  # some are read when a library is imported
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # as in `shared_ray`
    for package in map(importlib.import_module, ("models", "tasks", "flows")):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith(".__main__"):
                with contextlib.suppress(ImportError):  # of an extra that is not installed
                    importlib.import_module(module.name)
    for name in HEAVY:
        importlib.import_module(name)
    tracking_store.copy_new_stores()
    del sys.modules["prefect.main"]
    logging.root.handlers.clear()  # Prefect's; it will set them again
    sys.meta_path.insert(0, _FreshPrefect)  # type: ignore[arg-type]
    gc.collect()
    gc.freeze()


def _serve() -> None:
    """Fork a child for each request; returns in the child, which then runs the command."""
    _import_all()
    answers = os.dup(1)
    os.dup2(2, 1)  # nobody but this function answers
    requests = os.fdopen(os.dup(0))
    while line := requests.readline():
        request = json.loads(line)
        if "reap" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["reap"], 0)[1])
        elif (answer := os.fork()) == 0:
            os.close(answers)
            requests.close()
            _become(request)
            return
        os.write(answers, f"{answer}\n".encode())
    sys.exit()


def _become(request: dict[str, Any]) -> None:
    """Turn a forked child into the process that `python -m flows.cli` would be."""
    os.setsid()
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    flags = os.O_CREAT | os.O_TRUNC | os.O_WRONLY
    for number, path, mode in ((0, os.devnull, os.O_RDONLY), (1, request["out"], flags), (2, request["err"], flags)):
        handle = os.open(path, mode, 0o600)
        os.dup2(handle, number)
        os.close(handle)
    random.seed()
    sys.argv = ["orchestrion", *request["start"]]
    sys.orig_argv = [sys.executable, "-m", "flows.cli", *request["start"]]


def _run_command() -> NoReturn:
    """Run the command and end as an interpreter does, but for taking its modules apart, which takes half a second."""
    from flows.cli.main import main

    code: object = 1
    try:
        main()
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    _serve()
    _run_command()
