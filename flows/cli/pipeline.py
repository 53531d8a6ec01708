"""`orchestrion pipeline` and `orchestrion demo`."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any

import typer

from flows.cli import options
from flows.cli.app import app
from flows.cli.run_flow import run_flow

DEMO = ("orchestrion_small_tiny", "remi")  # preset and encoding of `demo`, and of `pipeline` without --preset
DemoPresetOption = Annotated[
    str, typer.Option("--preset", help=f"A whole-run config by name; by default {DEMO[0]} with --encoding {DEMO[1]}.")
]


@app.command(epilog="Example: orchestrion pipeline --source ~/midi --preset music_transformer_tiny --json")
@options.grouped
def pipeline(
    sources: options.SourceOptions,
    run: options.RunOptions,
    preset: DemoPresetOption = "",
    fresh: options.FreshOption = False,
) -> None:
    """Rebuild, train, evaluate and generate: from a folder of MIDI to a gallery."""
    _run_pipeline(sources, run, preset, fresh)


@app.command(epilog="Example: orchestrion demo --source ~/midi")
@options.grouped
def demo(sources: options.SourceOptions, run: options.RunOptions) -> None:
    """The pipeline with small defaults, on the built-in sample corpus or on your own folder."""
    _run_pipeline(sources, run, "", False)


def _run_pipeline(sources: options.SourceOptions, run: options.RunOptions, preset: str, fresh: bool) -> None:
    if not preset:
        preset, sources = DEMO[0], replace(sources, encoding=sources.encoding or DEMO[1])
    config = run.config(preset, sources.settings())
    options.check_sources(config.dataset.sources)
    where = run.prepare()
    result = run_flow(where, "pipeline", config, fresh=fresh)

    def lines(result: dict[str, Any]) -> Iterator[str]:
        from flows.pipeline_summary import pipeline_rows

        more = [("took", f"{result['seconds']:.0f} s"), ("look around", f"orchestrion ui --home {where.root}")]
        yield from (f"{label:>14}  {text}" for label, text in [*pipeline_rows(result), *more])

    options.print_facts(result, run.as_json, lines)
