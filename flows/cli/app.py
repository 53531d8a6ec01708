"""The Typer application of the command line, to which every command adds itself."""

import typer

app = typer.Typer(
    name="orchestrion",
    invoke_without_command=True,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
