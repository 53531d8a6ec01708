"""Handling of standard streams that are closed, or whose reader or terminal is gone."""

import atexit
import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

import typer

READER_GONE = 128 + 13  # exit code, as of a program that SIGPIPE ends


def open_missing() -> None:
    """Open those of the three that the caller closed, or the next file gets their number and what is printed."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one


def let_go() -> None:
    """Give up what could not be written, or Python complains at exit and turns the exit code into 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream:
                stream.flush()
        except OSError:
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def leave(code: int) -> NoReturn:
    """Run the exit functions and end this process.

    The rest of the interpreter's shutdown is skipped: threads that wait inside Ray may block it for long.
    """
    atexit._run_exitfuncs()
    let_go()
    os._exit(code)


@contextmanager
def reader_gone_told() -> Iterator[None]:
    """Give the exit of a command line whose reader is gone, which typer makes silent, the code that shells know."""
    try:
        yield
    except SystemExit as error:
        cause = error.__context__
        if isinstance(cause, OSError) and cause.errno == errno.EPIPE:
            raise typer.Exit(READER_GONE) from None
        raise
