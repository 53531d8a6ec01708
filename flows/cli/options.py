"""What the commands share: options, the home, and printing of results and lists."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.services import environment
from tasks.storage.files import json_text
from tasks.storage.home import Home

SHOWN_FIGURES = 8  # of a result's metrics; all are in MLflow and in --json

DEFAULT_HOME = ".orchestrion"
DEFAULT_PRESET = "music_transformer_tiny"
DEMO = ("orchestrion_small_tiny", "remi")  # preset and encoding of `demo`, and of `pipeline` without --preset

HomeOption = Annotated[
    str, typer.Option("--home", help="Folder of all results.", envvar="ORCHESTRION_HOME", show_envvar=True)
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="End with one JSON object on stdout; all else goes to stderr.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, such as train.n_steps=500. Repeatable."),
]
ConfigFileOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="A TOML file of settings, in tables as --set names them."),
]
VerboseOption = Annotated[bool, typer.Option("-v", "--verbose", help="Say more, tracebacks included.")]
QuietOption = Annotated[bool, typer.Option("-q", "--quiet", help="Say only what goes wrong.")]
PresetOption = Annotated[str, typer.Option("--preset", help="A whole-run config by name; see `orchestrion presets`.")]
DemoPresetOption = Annotated[
    str, typer.Option("--preset", help=f"A whole-run config by name; by default {DEMO[0]} with --encoding {DEMO[1]}.")
]
ModelPresetOption = Annotated[str, typer.Option("--preset", help="Where settings come from; by default the model's.")]
SourceOption = Annotated[
    list[str] | None,
    typer.Option(
        "--source",
        metavar="SOURCE",
        help="Folder, MIDI file, list of files, archive, address (https, s3, gs, ...) or name in the catalog;"
        " repeatable; without it, the built-in sample corpus.",
    ),
]
LicenceOption = Annotated[
    list[str] | None,
    typer.Option("--licence", help="Accept only files whose source states this licence. Repeatable."),
]
NameOption = Annotated[str, typer.Option("--name", help="Name of the dataset; by default that of the first source.")]
EncodingOption = Annotated[
    str,
    typer.Option("--encoding", help="Encoding by name; the preset's, unless given. dataset.encoding has its settings."),
]
AugmentOption = Annotated[
    str,
    typer.Option(
        "--augment",
        help="Published augmentation of the training split: none, oore, maestro or hourglass; else the preset's."
        " dataset.augment has its settings.",
    ),
]
DatasetOption = Annotated[str, typer.Option("--dataset", help="name or name@version; by default the newest.")]
ModelOption = Annotated[str, typer.Option("--model", help="name, name@3 or name@champion; by default the newest.")]
GridOption = Annotated[
    list[str] | None,
    typer.Option(
        "--grid",
        metavar="KEY=A,B",
        help="A setting and its values; all combinations are trained. Values that hold commas: KEY=[1,2];[3,4]."
        " Repeatable.",
    ),
]
SearchOption = Annotated[
    list[str] | None,
    typer.Option(
        "--search",
        metavar="KEY=DRAW",
        help="A setting that is drawn: uniform(a,b), loguniform(a,b), randint(a,b) with both ends, or choice(a;b)."
        " Repeatable.",
    ),
]
SamplesOption = Annotated[
    int, typer.Option("--samples", help="Draws for --search; each is combined with every point of the grid.")
]
DrawSeedOption = Annotated[int, typer.Option("--seed", help="Of the draws; the same seed gives the same points.")]
EarlyStoppingOption = Annotated[
    bool, typer.Option("--early-stopping", help="Stop points that fall behind the others in validation loss (ASHA).")
]
ConcurrentOption = Annotated[
    int, typer.Option("--concurrent", help="Points trained at the same time; they share the cores.")
]
FreshOption = Annotated[bool, typer.Option("--fresh", help="Do it anew even if the same is finished already.")]


def prepare(home: str, verbose: bool = False, quiet: bool = False) -> Home:
    """Make the home ready and set the environment, before anything heavy is imported."""
    where = Home.at(home)
    where.prepare()
    environment.configure_logging(1 if verbose else -1 if quiet else 0)
    environment.prepare(where, 1 if verbose else 0)
    return where


def print_result(result: dict[str, Any], as_json: bool, shown: Sequence[str]) -> None:
    """Print a flow's summary: all of it as JSON, or the named lines for people."""
    if as_json:
        typer.echo(json_text(result))
        return
    for key in shown:
        value = result.get(key)
        if isinstance(value, dict):
            figures = [f"{name} {number:.4g}" for name, number in value.items()]
            more = [f"and {len(figures) - SHOWN_FIGURES} more"] if len(figures) > SHOWN_FIGURES else []
            value = ", ".join(figures[:SHOWN_FIGURES] + more)
        elif isinstance(value, list):
            value = "; ".join(map(str, value)) or "none"
        typer.echo(f"{key:>16}  {value}")


def print_list(rows: list[dict[str, Any]], columns: Sequence[str], as_json: bool, key: str) -> None:
    """Print rows as a table for people, or as JSON: a list of `key`, inside an object unless `key` is empty."""
    if as_json:
        typer.echo(json_text({key: rows} if key else rows))
        return
    if not rows:
        typer.echo(f"no {key} yet")
        return
    cells = [[_cell(row[column]) for column in columns] for row in rows]
    widths = [max(len(column), *(len(line[i]) for line in cells)) for i, column in enumerate(columns)]
    for line in [list(columns), *cells]:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _cell(value: Any) -> str:
    return ",".join(value) if isinstance(value, list) else f"{value:.6g}" if isinstance(value, float) else str(value)
