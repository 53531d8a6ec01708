"""Ctrl-C ends a command, also one that swallows it or waits for something that hangs."""

import os
import pty
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY


def run_and_signal(body: str, log: Path, number: int, *arguments: str) -> tuple[int, str, float]:
    """Run `body` in the block, signal it when it prints `ready`, and return exit code, what it said and the seconds."""
    program = "from flows.services.interrupts import ended_soon\nfrom pathlib import Path\nimport signal, sys, time\n"
    program += "from tasks.runtime import signals\n"
    program += f"with ended_soon(Path({str(log)!r}), grace_seconds=1.0):\n"
    program += textwrap.indent(textwrap.dedent(body), "    ")
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    started = time.monotonic()
    os.kill(process.pid, number)
    said = process.communicate(timeout=30)[1]
    return process.returncode, said, time.monotonic() - started


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
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
        signals.REPEAT_SECONDS = 0  # as if the user had waited
        try:
            signal.raise_signal(signal.SIGINT)
            time.sleep(60)
        except KeyboardInterrupt:
            print("twice", file=sys.stderr)
    """
    status, said, _ = run_and_signal(body, tmp_path / "hung.txt", signal.SIGINT)
    assert (status, said) == (0, "twice\n")


def test_two_signals_in_a_row_are_one(tmp_path: Path):
    """timeout(1) signals the process and then its group."""
    body = """
    try:
        print("ready", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGHUP)
        print("once", file=sys.stderr)
    """
    status, said, _ = run_and_signal(body, tmp_path / "hung.txt", signal.SIGTERM)
    assert (status, said) == (0, "once\n")


def test_the_time_runs_though_another_handler_takes_the_signal(tmp_path: Path):
    body = """
    signal.signal(signal.SIGTERM, lambda *_: None)
    print("ready", flush=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        time.sleep(0.1)
    """
    status, said, _ = run_and_signal(body, tmp_path / "hung.txt", signal.SIGTERM)
    assert status == 130
    assert "it hung for 1 s" in said


def test_what_prefect_makes_of_a_termination_is_an_interrupt(tmp_path: Path):
    from flows.services.interrupts import ended_soon

    class TerminationSignal(BaseException):
        pass

    with pytest.raises(KeyboardInterrupt), ended_soon(tmp_path / "hung.txt"):
        raise TerminationSignal


def test_nohup_is_honoured(tmp_path: Path):
    body = """
    print("ready", flush=True)
    time.sleep(0.2)
    print("whole", file=sys.stderr)
    """
    ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        status, said, _ = run_and_signal(body, tmp_path / "hung.txt", signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, ignored)
    assert (status, said) == (0, "whole\n")


CLOSED = """
import os, sys, time
from flows.cli import main
from flows.services import environment, interrupts
from pathlib import Path
from tasks.runtime.progress import Progress
environment.configure_logging(0)
def work(arguments):
    try:
        with interrupts.ended_soon(Path(sys.argv[1])), Progress("work", 5, "steps") as progress:
            progress.advance()
            os.write(3, b"ready")
            time.sleep(60)
    except KeyboardInterrupt:
        main.complain("interrupted")
        return 130
main._run = work
main.main()
"""


def test_a_terminal_that_is_closed_ends_a_command_in_good_order(tmp_path: Path):
    to_read, to_write = os.pipe()
    child, terminal = pty.fork()
    if child == 0:  # the child has the terminal as its own
        os.dup2(to_write, 3)
        os.execv(sys.executable, [sys.executable, "-c", CLOSED, str(tmp_path / "hung.txt")])
    os.close(to_write)
    assert os.read(to_read, 5) == b"ready"
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
    assert not (tmp_path / "hung.txt").exists()


def test_the_handlers_from_before_come_back(tmp_path: Path):
    from flows.services.interrupts import ended_soon

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with ended_soon(tmp_path / "hung.txt"):
        assert signal.getsignal(signal.SIGINT) not in before
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.slow
def test_a_signal_waits_while_it_is_held_and_last_words_are_said(tmp_path: Path):
    body = """
    said = Path(sys.argv[1])
    try:
        with signals.held():
            print("ready", flush=True)
            deadline = time.monotonic() + 60
            while not signals._waiting and time.monotonic() < deadline:
                time.sleep(0.01)
            print("whole", file=sys.stderr)
    except KeyboardInterrupt:
        with signals.last_words(lambda: said.write_text("closed")), signals.last_words(lambda: time.sleep(60)):
            time.sleep(60)
    """
    said = tmp_path / "said"
    status, text, _ = run_and_signal(body, tmp_path / "hung.txt", signal.SIGTERM, str(said))
    assert status == 130
    assert text.startswith("whole\n")
    assert said.read_text() == "closed"
