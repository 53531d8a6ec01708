"""`orchestrion settings`."""

from typing import Annotated

import typer

from flows.cli import completion
from flows.cli.app import app
from flows.cli.options import JsonOption, print_facts


@app.command(epilog="Example: orchestrion settings train.schedule --preset rga")
def settings(
    section: Annotated[str, typer.Argument(help="Such as train or train.model; by default all.")] = "",
    preset: Annotated[
        str, typer.Option("--preset", help="Show this preset's values as defaults.", autocompletion=completion.presets)
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """List every setting with its default, type, limits and meaning."""
    from tasks.config.describe import setting_rows, text_lines
    from tasks.config.pipeline import PipelineConfig
    from tasks.config.presets import build_preset

    rows = setting_rows(build_preset(preset) if preset else PipelineConfig(), section)
    print_facts({"settings": rows}, as_json, lambda facts: text_lines(facts["settings"]))
