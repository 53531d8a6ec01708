"""`orchestrion pipeline` and `orchestrion demo`."""

import typer

from flows.cli.app import app
from flows.cli.options import (
    DEFAULT_HOME,
    DEMO,
    AugmentOption,
    ConfigFileOption,
    DemoPresetOption,
    EncodingOption,
    FreshOption,
    HomeOption,
    JsonOption,
    LicenceOption,
    NameOption,
    QuietOption,
    SetOption,
    SourceOption,
    VerboseOption,
    prepare,
)
from flows.cli.rebuild import check_sources, dataset_overrides
from flows.cli.run_flow import build_config, run_flow
from tasks.storage.files import json_text


@app.command(epilog="Example: orchestrion pipeline --source ~/midi --preset music_transformer_tiny --json")
def pipeline(
    source: SourceOption = None,
    name: NameOption = "",
    licence: LicenceOption = None,
    encoding: EncodingOption = "",
    augment: AugmentOption = "",
    preset: DemoPresetOption = "",
    overrides: SetOption = None,
    config_file: ConfigFileOption = None,
    fresh: FreshOption = False,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
) -> None:
    """Rebuild, train, evaluate, generate: the whole way from a folder to a gallery."""
    if not preset:
        preset, encoding = DEMO[0], encoding or DEMO[1]
    given = dataset_overrides(source, name, licence, encoding, augment)
    config = build_config(preset, given + (overrides or []), config_file)
    check_sources(config.dataset.sources)
    where = prepare(home, verbose, quiet)
    result = run_flow(where, "pipeline", config, fresh=fresh)
    if as_json:
        typer.echo(json_text(result))
        return
    from flows.pipeline_summary import pipeline_rows

    rows = [*pipeline_rows(result), ("took", f"{result['seconds']:.0f} s")]
    for label, text in [*rows, ("look around", f"orchestrion ui --home {where.root}")]:
        typer.echo(f"{label:>14}  {text}")


@app.command(epilog="Example: orchestrion demo --source ~/midi")
def demo(
    source: SourceOption = None,
    overrides: SetOption = None,
    config_file: ConfigFileOption = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
) -> None:
    """The pipeline with small defaults, on the built-in sample corpus or on your own folder."""
    pipeline(source, "", None, "", "", "", overrides, config_file, False, home, as_json, verbose, quiet)
