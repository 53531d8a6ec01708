"""Options that commands share, in groups, and printing of results and lists."""

import dataclasses
import functools
import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli import completion
from flows.cli.run_flow import build_config, early_config
from flows.services import environment
from tasks.storage.files import json_text
from tasks.storage.home import Home

SHOWN_FIGURES = 8  # metrics of a result; MLflow and --json have all

Facts = dict[str, Any]
DEFAULT_HOME = ".orchestrion"
DEFAULT_PRESET = "music_transformer_tiny"

HomeOption = Annotated[
    str, typer.Option("--home", help="Folder of all results.", envvar="ORCHESTRION_HOME", show_envvar=True)
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout as the last line; other output goes to stderr.")
]
VerboseOption = Annotated[bool, typer.Option("-v", "--verbose", help="Print more, tracebacks included.")]
PresetOption = Annotated[
    str,
    typer.Option(
        "--preset", help="A whole-run config by name; see `orchestrion presets`.", autocompletion=completion.presets
    ),
]
ModelPresetOption = Annotated[
    str,
    typer.Option(
        "--preset", help="Where settings come from; by default the model's.", autocompletion=completion.presets
    ),
]
DatasetOption = Annotated[
    str,
    typer.Option("--dataset", help="name or name@version; by default the newest.", autocompletion=completion.datasets),
]
ModelOption = Annotated[
    str,
    typer.Option(
        "--model", help="name, name@3 or name@champion; by default the newest.", autocompletion=completion.models
    ),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Print what would be done, with an estimate of disk and time; make nothing.")
]
FreshOption = Annotated[bool, typer.Option("--fresh", help="Start again even if the same run is finished.")]


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command with an option for each field of its dataclass parameters; those of `run` come last."""
    parameters = dict(inspect.signature(command).parameters)
    parameters["run"] = parameters.pop("run")
    groups: dict[str, Any] = {
        name: one.annotation for name, one in parameters.items() if dataclasses.is_dataclass(one.annotation)
    }
    options: list[inspect.Parameter] = []
    for name, one in parameters.items():
        fields = dataclasses.fields(groups[name]) if name in groups else ()
        found = [one.replace(name=f.name, default=f.default, annotation=f.type) for f in fields]
        options += [option.replace(kind=one.KEYWORD_ONLY) for option in (found or [one])]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        for name, kind in groups.items():
            given[name] = kind(**{field.name: given.pop(field.name) for field in dataclasses.fields(kind)})
        command(**given)

    run.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in options}
    return run


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ConfigOptions:
    """Options of every command that builds a config."""

    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, such as train.n_steps=500. Repeatable."),
    ] = None
    config_file: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="A TOML file of settings, in tables as --set names them."),
    ] = None
    home: HomeOption = DEFAULT_HOME
    verbose: VerboseOption = False
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print only errors.")] = False

    def config(self, preset: str, given: Sequence[str] = (), train: Any = None) -> Any:
        """Return a preset with the settings of the file, of `given` and of --set, in this order; see `build_config`."""
        return build_config(preset, [*given, *(self.overrides or ())], self.config_file, train)

    def early_config(self, section: str, preset: str, given: Sequence[str] = ()) -> Any:
        """Return the same, or None where the model decides the preset; see `run_flow.early_config`."""
        return early_config(section, preset, [*given, *(self.overrides or ())], self.config_file)

    def prepare(self) -> Home:
        """Return the home, made ready, with the environment set before anything heavy is imported."""
        return prepare(self.home, self.verbose, self.quiet)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RunOptions(ConfigOptions):
    """Options of every command that runs a flow."""

    as_json: JsonOption = False


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SourceOptions:
    """Options of every command that makes a dataset version."""

    source: Annotated[
        list[str] | None,
        typer.Option(
            "--source",
            metavar="SOURCE",
            help="Folder, MIDI file, list of files, archive, address (https, s3, gs, ...) or name in the catalog;"
            " repeatable; without it, the built-in sample corpus.",
        ),
    ] = None
    name: Annotated[str, typer.Option("--name", help="Name of the dataset; by default that of the first source.")] = ""
    licence: Annotated[
        list[str] | None,
        typer.Option("--licence", help="Accept only files whose source states this licence. Repeatable."),
    ] = None
    encoding: Annotated[
        str,
        typer.Option(
            "--encoding",
            help="Encoding by name; by default the preset's. See dataset.encoding.",
            autocompletion=completion.encodings,
        ),
    ] = ""
    augment: Annotated[
        str,
        typer.Option(
            "--augment",
            help="Published augmentation of the training split: none, oore, maestro or hourglass; by default the"
            " preset's. See dataset.augment.",
        ),
    ] = ""

    def settings(self) -> list[str]:
        """Return the settings, as `a.b=value`, that the options represent."""
        from tasks.ingest.sources.spec import absolute_source

        values: dict[str, Any] = {"encoding.name": self.encoding, "name": self.name, "licences": self.licence}
        if self.augment:
            from tasks.config.augmentations import augmentation
            from tasks.config.serialization import to_json

            values["augment"] = to_json(augmentation(self.augment))
        values["sources"] = [absolute_source(source) for source in self.source or ()]
        return [f"dataset.{key}={json.dumps(value)}" for key, value in values.items() if value]


def check_sources(sources: Sequence[str]) -> None:
    """Raise as `check_source` does for the first source that cannot be one; nothing is opened."""
    from tasks.ingest.sources.spec import check_source

    for source in sources:
        check_source(source)


def prepare(home: str, verbose: bool = False, quiet: bool = False) -> Home:
    """Make the home ready and set the environment, before anything heavy is imported."""
    where = Home.at(home)
    where.prepare()
    environment.configure_logging(1 if verbose else -1 if quiet else 0)
    environment.prepare(where, 1 if verbose else 0)
    return where


def print_facts(facts: Facts, as_json: bool, lines_of: Callable[[Facts], Iterable[str]]) -> None:
    """Print facts as one JSON object, or as lines for people."""
    for line in [json_text(facts)] if as_json else lines_of(facts):
        typer.echo(line)


def print_result(result: Facts, as_json: bool, shown: Sequence[str]) -> None:
    """Print a flow's summary: all of it as JSON, or the named lines for people."""
    print_facts(result, as_json, lambda facts: (f"{key:>16}  {_shown(facts.get(key))}" for key in shown))


def _shown(value: Any) -> Any:
    if isinstance(value, dict):
        figures = [f"{name} {number:.4g}" for name, number in value.items()]
        more = [f"and {len(figures) - SHOWN_FIGURES} more"] if len(figures) > SHOWN_FIGURES else []
        return ", ".join(figures[:SHOWN_FIGURES] + more)
    value = "; ".join(map(str, value)) if isinstance(value, list) else value
    return "none" if value in (None, "") else value


def print_list(rows: list[dict[str, Any]], columns: Sequence[str], as_json: bool, key: str) -> None:
    """Print rows as a table for people, or as JSON: an object with the list under `key`."""
    print_facts({key: rows}, as_json, lambda facts: table_lines(facts[key], columns) if rows else [f"no {key} yet"])


def table_lines(rows: list[dict[str, Any]], columns: Sequence[str]) -> Iterator[str]:
    """Yield rows as lines with aligned columns, the names of the columns first."""
    cells = [list(columns), *([_cell(row[column]) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for line in cells:
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()


def _cell(value: Any) -> str:
    return ",".join(value) if isinstance(value, list) else f"{value:.6g}" if isinstance(value, float) else str(value)
