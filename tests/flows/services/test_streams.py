"""Standard streams that are closed, full, or nobody reads: exit codes, and no traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # seconds a test; see `make check`


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """A command that imports little and prints a line."""
    return [sys.executable, "-m", "flows.cli", "datasets", "--home", str(tmp_path)]


def test_a_reader_that_goes_away_is_no_failure_to_be_explained(command: list[str]) -> None:
    to_read, to_write = os.pipe()
    os.close(to_read)
    done = subprocess.run(command, stdout=to_write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(to_write)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(
    ("closed", "code"), [("<&-", 0), (">&-", 0), ("2>&-", 0), ("2>/dev/full", 0), (">/dev/full", 1)]
)
def test_closed_and_full_streams(command: list[str], closed: str, code: int) -> None:
    shell = f'"$@" {closed}'
    done = subprocess.run(["sh", "-c", shell, "sh", *command], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert done.stderr == ("orchestrion: the disk is full\n" if code else "")


def test_a_mistake_keeps_its_code_where_nobody_hears_of_it(command: list[str]) -> None:
    shell = ["sh", "-c", '"$@" 2>/dev/full', "sh", *command, "--no-such-option"]
    assert subprocess.run(shell, capture_output=True, check=False).returncode == 2
