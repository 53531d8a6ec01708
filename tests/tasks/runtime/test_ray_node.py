"""The embedded Ray: closed to others, on loopback, apart from its command's signals, gone with it, started twice."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY

HANG_SECONDS = 240
NOBODY = 65534
BEGIN = """
import json, os, sys
from flows.services import environment
environment.set_defaults()
environment.configure_logging(0)
from tasks.runtime import cluster
"""


class Driver:
    """A process that starts Ray, with a home and a folder for temporary files of its own."""

    def __init__(self, body: str, folder: Path) -> None:
        self.home, self.temporary = folder / "home", folder / ("t" * (98 - len(str(folder))))
        self.home.mkdir()
        self.temporary.mkdir()
        environment = os.environ | {"HOME": str(self.home), "TMPDIR": str(self.temporary), "ORCHESTRION_CPUS": "1"}
        self.complained = folder / "stderr"
        with self.complained.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-c", BEGIN + textwrap.dedent(body)],
                env=environment, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=err, text=True,
                start_new_session=True,
            )  # fmt: skip

    def read(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line, self.complained.read_text()[-3000:]
        return json.loads(line)

    def keeper(self, but: int = 0) -> int:
        """Wait for the keeper, another one than `but`."""
        return until(lambda: next((p for p in children(self.process.pid, "python") if p != but), 0))


def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + HANG_SECONDS
    while not (met := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return met


def stat_of(folder: Path) -> tuple[int, str, str, int, int]:
    """Return id, name, state, parent and session of a process."""
    text = (folder / "stat").read_text()
    name = text[text.index("(") + 1 : text.rindex(")")]
    state, parent, _, session = text.rpartition(")")[2].split()[:4]
    return int(folder.name), name, state, int(parent), int(session)


def processes() -> list[tuple[int, str, str, int, int]]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            found.append(stat_of(folder))
        except OSError:
            continue
    return [process for process in found if process[2] != "Z"]


def children(parent: int, name: str) -> list[int]:
    return [pid for pid, its_name, _, its_parent, _ in processes() if its_parent == parent and name in its_name]


def of_session(session: int) -> list[int]:
    return [process[0] for process in processes() if process[4] == session]


@pytest.fixture
def drive(tmp_path: Path) -> Iterator[Callable[[str], Driver]]:
    started: list[Driver] = []

    def begin(body: str) -> Driver:
        started.append(Driver(body, tmp_path))
        return started[-1]

    yield begin
    for driver in started:
        driver.process.kill()
        driver.process.communicate()


def as_nobody(command: str) -> subprocess.CompletedProcess[str]:
    ids = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    return subprocess.run(["setpriv", *ids, "sh", "-c", command], capture_output=True, text=True, check=False, cwd="/")


def listening(session: int) -> list[str]:
    """Return the addresses at which the processes of a session and the driver listen."""
    lines = subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True, check=True).stdout.splitlines()
    ours = set(of_session(session))
    return [line.split()[3] for line in lines if ours & set(map(int, re.findall(r"pid=(\d+)", line)))]


LOSE = """
def started():
    node = cluster._nodes[0]
    facts = {"session": node._keeper.pid, "folder": str(node.folder.path), "n": len(cluster._nodes)}
    print(json.dumps(facts), flush=True)

cluster.connect()
started()
sys.stdin.readline()
try:
    cluster.require_servers()
except cluster.RayLost as error:
    print(json.dumps({"said": str(error)}), flush=True)
cluster.connect()
started()
sys.stdin.readline()
"""


@pytest.mark.slow
def test_ray_is_closed_to_others_hears_no_signals_and_ends_with_its_command(
    drive: Callable[[str], Driver],
) -> None:
    """A start that fails is tried once more, and when a server dies later, another Ray is started."""
    driver = drive(LOSE)
    first = driver.keeper()
    os.kill(until(lambda: children(first, "gcs_server"))[0], signal.SIGKILL)
    facts = driver.read()  # TMPDIR of 99 bytes does not matter
    session, folder = facts["session"], Path(facts["folder"])
    assert session != first
    assert of_session(first) == []
    assert "Ray did not start, it is tried once more: its gcs_server died" in driver.complained.read_text()
    assert folder.parent == Path("/tmp")
    token = driver.home / ".ray" / "auth_token"
    assert (token.stat().st_mode & 0o777, folder.stat().st_mode & 0o777) == (0o600, 0o700)
    names = {name for _, name, _, _, its_session in processes() if its_session == session}
    assert {"gcs_server", "raylet"} <= names
    if os.geteuid() == 0:
        for path in (driver.home, driver.home.parent):
            path.chmod(0o755)  # the folders above do not hide it
        assert as_nobody("true").returncode == 0
        for attack in (f"cat {token}", f"ls {folder}", f"ls {folder}/r", f"mv {folder}/r/session_latest {folder}/r/x"):
            assert as_nobody(attack).returncode != 0, attack
    addresses = listening(session)
    assert len(addresses) >= 3
    assert [address for address in addresses if not re.match(r"(\[::ffff:)?127\.0\.0\.1\]?:", address)] == []

    before = of_session(session)
    for pid in before:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            os.kill(pid, number)
    assert set(before) <= set(of_session(session))

    os.kill(children(session, "gcs_server")[0], signal.SIGKILL)
    until(lambda: session not in of_session(session))
    driver.process.stdin.write("\n")
    driver.process.stdin.flush()
    assert driver.read() == {"said": "Ray is gone: its gcs_server died"}
    facts = driver.read()
    again, folder = facts["session"], Path(facts["folder"])
    assert (facts["n"], again != session) == (1, True)
    driver.process.kill()
    driver.process.wait()
    until(lambda: not of_session(again) and not folder.exists())


FAIL = """
from tasks.errors import OrchestrionError
try:
    cluster.connect()
except OrchestrionError as error:
    print(json.dumps({"said": str(error), "code": error.exit_code}), flush=True)
"""


@pytest.mark.slow
def test_two_starts_that_fail_are_one_line(drive: Callable[[str], Driver]) -> None:
    driver = drive(FAIL)
    first = driver.keeper()
    os.kill(until(lambda: children(first, "gcs_server"))[0], signal.SIGKILL)
    second = driver.keeper(but=first)
    os.kill(until(lambda: children(second, "raylet"))[0], signal.SIGKILL)
    said = "Ray did not start, twice: its raylet died; is the machine overloaded?"
    assert driver.read() == {"said": said, "code": 1}
    assert driver.process.wait(HANG_SECONDS) == 0
    assert of_session(second) == []
