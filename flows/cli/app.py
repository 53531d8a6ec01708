"""The Typer application of the command line, to which every command adds itself."""

import typer

app = typer.Typer(
    name="orchestrion",
    help="Folders of MIDI in, trained music transformers and reviewed compositions out.",
    invoke_without_command=True,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
