"""Standard streams that are closed, full, or nobody reads: exit codes, and no traceback."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow  # seconds a test; see `make check`

PRESETS = [sys.executable, "-m", "flows.cli", "presets"]


def test_a_reader_that_goes_away_is_no_failure_to_be_explained() -> None:
    to_read, to_write = os.pipe()
    os.close(to_read)
    done = subprocess.run(PRESETS, stdout=to_write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(to_write)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(
    ("closed", "code"), [("<&-", 0), (">&-", 0), ("2>&-", 0), ("2>/dev/full", 0), (">/dev/full", 1)]
)
def test_closed_and_full_streams(closed: str, code: int) -> None:
    shell = f'"$@" {closed}'
    done = subprocess.run(["sh", "-c", shell, "sh", *PRESETS], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert done.stderr == ("orchestrion: the disk is full\n" if code else "")


def test_a_mistake_keeps_its_code_where_nobody_hears_of_it() -> None:
    command = ["sh", "-c", '"$@" 2>/dev/full', "sh", *PRESETS, "--no-such-option"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 2
