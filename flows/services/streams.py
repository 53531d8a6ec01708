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
    """Open the standard streams that the caller closed; otherwise the next file gets their number and their output."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one


def let_go() -> None:
    """Discard unwritten output; otherwise Python prints an error at exit and the exit code becomes 120."""
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
def exit_code_of_lost_reader() -> Iterator[None]:
    """Exit with the code of SIGPIPE where the reader of the output is gone, for which typer exits with 1."""
    try:
        yield
    except SystemExit as error:
        cause = error.__context__
        if isinstance(cause, OSError) and cause.errno == errno.EPIPE:
            raise typer.Exit(READER_GONE) from None
        raise
