"""The command line's one Typer object, on which every command registers itself."""

import typer

app = typer.Typer(
    name="orchestrion",
    help="Folders of MIDI in, trained music transformers and reviewed compositions out.",
    invoke_without_command=True,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
