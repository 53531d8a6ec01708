"""The command line: each command builds one config and calls one flow; heavy imports wait until then."""

import io
import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated

import typer
from typer.exceptions import TyperException

from flows.cli import compose, datasets, evaluate, generate, pipeline, rebuild, serve, settings, show, sweep, train
from flows.cli.app import app
from flows.cli.run_flow import complain
from flows.services import environment, interrupts, streams
from flows.services.interrupts import INTERRUPTED, INTERRUPTED_MESSAGE
from tasks.errors import OrchestrionError, words_of
from tasks.runtime.signals import ends
from tasks.storage.files import storage_problem
from tasks.storage.home import Home

PANELS = {
    "Build": ("demo", "pipeline", "rebuild", "train", "evaluate", "sweep", "datasets"),
    "Compose": ("generate", "compose", "encode", "decode", "stats", "text", "export-tokens"),
    "Look": ("runs", "models", "compare", "lineage", "presets", "settings", "doctor"),
    "Serve": ("ui", "deploy"),
}
COMMANDS = (rebuild, train, evaluate, generate, pipeline, sweep, serve, settings, show)  # imported, they are registered


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", is_eager=True, help="Print version and commit.")] = False,
) -> None:
    """Folders of MIDI in, trained music transformers and reviewed compositions out."""
    if version:
        from importlib import metadata

        from tasks.storage.project import git_commit

        typer.echo(f"orchestrion {metadata.version('orchestrion')} ({git_commit()})")
        raise typer.Exit


app.add_typer(datasets.app, name="datasets")
app.add_typer(compose.app, name="compose")
_places = {name: (place, panel) for panel, names in PANELS.items() for place, name in enumerate(names)}
for command in (*app.registered_commands, *app.registered_groups):
    command.name = command.name or command.callback.__name__  # type: ignore[union-attr]
    command.rich_help_panel = _places[command.name][1]
app.registered_commands.sort(key=lambda command: list(_places).index(str(command.name)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; every mistake becomes one line on stderr and an exit code."""
    for number in ends():  # all end as Ctrl-C does, and leave nothing running
        signal.signal(number, signal.default_int_handler)
    streams.open_missing()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names may not fit its encoding
    environment.configure_logging(-1)  # warnings; commands that run flows print more
    if arguments is None:
        _hide_queries()
    code = _run(list(sys.argv[1:] if arguments is None else arguments))
    if code == INTERRUPTED:
        streams.leave(code)
    streams.let_go()
    sys.exit(code)


def _hide_queries() -> None:
    """Restart without the queries of sources' addresses among the arguments, which `ps` and Ray's records show."""
    from tasks.ingest.sources.secrets import keep_queries, public_address, use_key

    given = sys.orig_argv[1:]
    if keep_queries(given, public_address) == given:
        return
    with suppress(OrchestrionError):  # the command reports later what is wrong with the home
        use_key(Home.at(_home_of(given)).address_key)
    os.execv(sys.executable, [sys.orig_argv[0], *keep_queries(given)])


def _home_of(arguments: Sequence[str]) -> str | None:
    for before, argument in zip(("", *arguments), arguments, strict=False):
        if before == "--home" or argument.startswith("--home="):
            return argument.removeprefix("--home=")
    return None


def _run(arguments: list[str]) -> int:
    try:
        with streams.exit_code_of_lost_reader():
            returned = app(args=arguments, standalone_mode=False)
        if returned == INTERRUPTED:  # typer turns Ctrl-C into a number without a message
            raise KeyboardInterrupt
        return returned if isinstance(returned, int) else 0
    except typer.Exit as error:
        return error.exit_code
    except TyperException as error:  # a wrong option: `format_message` names it
        complain(getattr(error, "format_message", error.__str__)())
        return 2
    except (KeyboardInterrupt, typer.Abort):
        _report_interrupt()
        return INTERRUPTED
    except OrchestrionError as error:
        complain(str(error))
        return error.exit_code
    except Exception as error:
        return _explain(error, is_verbose=bool({"-v", "--verbose"} & set(arguments)))


def _explain(error: Exception, is_verbose: bool) -> int:
    """Print one line about an unexpected error, and return the exit code."""
    if _was_interrupted(error):
        _report_interrupt()
        return INTERRUPTED
    if is_verbose:
        logging.getLogger("flows").error("failed", exc_info=error)
    message = f"failed: {type(error).__name__}: {words_of(error)} (-v shows where)"
    complain(storage_problem(error) or message)
    return 1


def _was_interrupted(error: BaseException | None) -> bool:
    """Return whether an error arose from the handling of Ctrl-C, which ends Prefect's server too."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def _report_interrupt() -> None:
    interrupts.is_reported.set()
    complain(INTERRUPTED_MESSAGE)
