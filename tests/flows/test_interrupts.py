"""Ctrl-C ends a command, also one that swallows it or waits for something that hangs."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY


def run_and_signal(body: str, log: Path, number: int) -> tuple[int, str, float]:
    """Run `body` in the block, signal it when it prints `ready`, and return exit code, what it said and the seconds."""
    program = "from flows.interrupts import ended_soon\nfrom pathlib import Path\nimport signal, sys, time\n"
    program += f"with ended_soon(Path({str(log)!r}), grace_seconds=1.0):\n"
    program += textwrap.indent(textwrap.dedent(body), "    ")
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    started = time.monotonic()
    os.kill(process.pid, number)
    said = process.communicate(timeout=30)[1]
    return process.returncode, said, time.monotonic() - started


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_swallows_the_interrupt_is_ended_all_the_same_and_told_where_it_was(tmp_path: Path, number: int):
    body = """
    try:
        print("ready", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        time.sleep(50)
    """
    log = tmp_path / "logs" / "hung.txt"
    status, said, seconds = run_and_signal(body, log, number)
    assert (status, said) == (
        130,
        "orchestrion: interrupted; what is finished is kept, and the same command goes on "
        f"(it hung for 1 s; where: {log})\n",
    )
    assert 1 <= seconds < 20
    assert 'File "<string>"' in log.read_text()  # where its main thread was


def test_what_ends_by_itself_leaves_no_log(tmp_path: Path):
    log = tmp_path / "hung.txt"
    status, said, _ = run_and_signal("print('ready', flush=True)\ntime.sleep(60)", log, signal.SIGINT)
    assert status == -signal.SIGINT  # as Python ends what nobody catches
    assert said.endswith("KeyboardInterrupt\n")
    assert not log.exists()


def test_a_second_signal_interrupts_what_the_first_one_set_off(tmp_path: Path):
    body = """
    try:
        print("ready", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        try:
            signal.raise_signal(signal.SIGINT)
            time.sleep(60)
        except KeyboardInterrupt:
            print("twice", file=sys.stderr)
    """
    status, said, _ = run_and_signal(body, tmp_path / "hung.txt", signal.SIGINT)
    assert (status, said) == (0, "twice\n")


def test_the_handlers_from_before_come_back(tmp_path: Path):
    from flows.interrupts import ended_soon

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with ended_soon(tmp_path / "hung.txt"):
        assert signal.getsignal(signal.SIGINT) not in before
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
