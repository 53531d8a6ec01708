"""The command line. Each command builds one config, then calls one flow; heavy imports wait until then."""

import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException

from flows import environment
from tasks.errors import ConfigError, NotFound, OrchestrionError
from tasks.home import Home, storage_problem

app = typer.Typer(
    name="orchestrion",
    help="Folders of MIDI in, trained music transformers and reviewed compositions out.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
logger = logging.getLogger("flows.cli")

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
VerboseOption = Annotated[bool, typer.Option("-v", "--verbose", help="Say more, tracebacks included.")]
QuietOption = Annotated[bool, typer.Option("-q", "--quiet", help="Say only what goes wrong.")]
PresetOption = Annotated[str, typer.Option("--preset", help="A whole-run config by name; see `orchestrion presets`.")]
SourceOption = Annotated[
    str, typer.Option("--source", help="Folder of MIDI files; without it, the built-in sample corpus.")
]
NameOption = Annotated[str, typer.Option("--name", help="Name of the dataset; by default that of the source folder.")]
DatasetOption = Annotated[str, typer.Option("--dataset", help="name or name@version; by default the newest.")]
ModelOption = Annotated[str, typer.Option("--model", help="name, name@3 or name@champion; by default the newest.")]
FreshOption = Annotated[bool, typer.Option("--fresh", help="Do it anew even if the same is finished already.")]

DEFAULT_PRESET = "music_transformer_tiny"


@app.command(epilog="Example: orchestrion rebuild --source ~/midi --name mine")
def rebuild(
    source: SourceOption = "",
    name: NameOption = "",
    overrides: SetOption = None,
    home: HomeOption = ".orchestrion",
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
) -> None:
    """Turn a folder of MIDI into a dataset version; what has not changed is not built again."""
    config = _config(DEFAULT_PRESET, _source_overrides(source, name) + (overrides or []))
    _check_source(config.dataset.source)
    where = _prepare(home, verbose, quiet)

    def run() -> dict[str, Any]:
        from flows.pipeline import rebuild_dataset

        return rebuild_dataset(config.dataset, str(where.root))

    _finish(
        _locked(where, "orchestrion rebuild", run),
        as_json,
        (
            "dataset",
            "dataset_version",
            "n_files",
            "n_accepted",
            "n_duplicate",
            "n_rejected",
            "n_notes",
            "n_tokens",
            "ledger",
            "reused",
            "seconds",
        ),
    )


@app.command(epilog="Example: orchestrion train --dataset mine --preset music_transformer --set train.n_steps=5000")
def train(
    dataset: DatasetOption = "",
    preset: PresetOption = DEFAULT_PRESET,
    overrides: SetOption = None,
    fresh: FreshOption = False,
    home: HomeOption = ".orchestrion",
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train a model and register it; Ctrl-C saves, and the same command goes on from there."""
    config = _config(preset, overrides or [])
    where = _prepare(home, verbose, quiet)
    _check_dataset(where, dataset)

    def run() -> dict[str, Any]:
        from flows.pipeline import train as train_flow

        return train_flow(config.train, dataset, str(where.root), fresh=fresh)

    _finish(
        _locked(where, "orchestrion train", run),
        as_json,
        (
            "model_version",
            "dataset_version",
            "n_parameters",
            "step",
            "metrics",
            "checkpoint",
            "run_id",
            "reused",
            "seconds",
        ),
    )


@app.command(epilog="Example: orchestrion evaluate --model sample-music_transformer_tiny@champion")
def evaluate(
    model: ModelOption = "",
    dataset: DatasetOption = "",
    preset: PresetOption = DEFAULT_PRESET,
    overrides: SetOption = None,
    home: HomeOption = ".orchestrion",
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
) -> None:
    """Score a model on held-out music and make it the champion if it is the best so far."""
    config = _config(preset, overrides or [])
    where = _prepare(home, verbose, quiet)
    _check_model(where, model)

    def run() -> dict[str, Any]:
        from flows.pipeline import evaluate as evaluate_flow

        return evaluate_flow(config.evaluate, model, dataset, str(where.root))

    _finish(
        _locked(where, "orchestrion evaluate", run),
        as_json,
        ("model_version", "dataset_version", "promoted", "metrics", "run_id", "seconds"),
    )


@app.command(
    epilog="Example: orchestrion generate --model mine-music_transformer@champion -n 16 --seed 7 --prompt theme.mid"
)
def generate(
    model: ModelOption = "",
    n_pieces: Annotated[int | None, typer.Option("-n", "--n-pieces", help="Pieces to compose.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="The same seed gives the same bytes.")] = None,
    prompt: Annotated[str, typer.Option("--prompt", help="A MIDI file, or a folder of them, to continue.")] = "",
    preset: PresetOption = DEFAULT_PRESET,
    overrides: SetOption = None,
    fresh: FreshOption = False,
    home: HomeOption = ".orchestrion",
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compose a batch of pieces with a page to review them."""
    given = [
        f"generate.{key}={json.dumps(value)}"
        for key, value in (("n_pieces", n_pieces), ("seed", seed), ("prompt", prompt or None))
        if value is not None
    ]
    config = _config(preset, given + (overrides or []))
    if config.generate.prompt and not Path(config.generate.prompt).exists():
        raise NotFound(f"prompt {config.generate.prompt} does not exist")
    where = _prepare(home, verbose, quiet)
    _check_model(where, model)

    def run() -> dict[str, Any]:
        from flows.pipeline import generate as generate_flow

        return generate_flow(config.generate, model, str(where.root), fresh=fresh)

    _finish(
        _locked(where, "orchestrion generate", run),
        as_json,
        ("batch", "model_version", "n_pieces", "batch_dir", "gallery", "reused", "seconds"),
    )


@app.command(epilog="Example: orchestrion pipeline --source ~/midi --preset music_transformer_tiny --json")
def pipeline(
    source: SourceOption = "",
    name: NameOption = "",
    preset: PresetOption = DEFAULT_PRESET,
    overrides: SetOption = None,
    fresh: FreshOption = False,
    home: HomeOption = ".orchestrion",
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
) -> None:
    """Rebuild, train, evaluate, generate: the whole way from a folder to a gallery."""
    _run_pipeline(
        "orchestrion pipeline",
        preset,
        _source_overrides(source, name) + (overrides or []),
        fresh,
        home,
        as_json,
        verbose,
        quiet,
    )


@app.command(epilog="Example: orchestrion demo --source ~/midi")
def demo(
    source: SourceOption = "",
    overrides: SetOption = None,
    home: HomeOption = ".orchestrion",
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
) -> None:
    """The pipeline with small defaults, on the built-in sample corpus or on your own folder."""
    _run_pipeline(
        "orchestrion demo",
        DEFAULT_PRESET,
        _source_overrides(source, "") + (overrides or []),
        False,
        home,
        as_json,
        verbose,
        quiet,
    )


@app.command(epilog="Example: orchestrion sweep --grid train.schedule.peak=0.001,0.003 --grid train.model.n_layers=2,3")
def sweep(
    grid: Annotated[list[str], typer.Option("--grid", metavar="KEY=A,B", help="A setting and its values. Repeatable.")],
    dataset: DatasetOption = "",
    preset: PresetOption = DEFAULT_PRESET,
    overrides: SetOption = None,
    home: HomeOption = ".orchestrion",
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train and evaluate every combination of some settings, and print one table."""
    config = _config(preset, overrides or [])
    for axis in grid:
        key, equals, values = axis.partition("=")
        if not equals or not values:
            raise ConfigError(f"--grid {axis}: write it as key=a,b,c, for example train.schedule.peak=0.001,0.003")
        for value in values.split(","):
            _config(preset, [*(overrides or []), f"{key}={value}"])  # a typo is told before anything is trained
    where = _prepare(home, verbose, quiet)
    _check_dataset(where, dataset)

    def run() -> dict[str, Any]:
        from flows.pipeline import sweep as sweep_flow

        return sweep_flow(config, grid, dataset, str(where.root))

    result = _locked(where, "orchestrion sweep", run)
    if not as_json:
        from tasks.summaries import sweep_table

        typer.echo(sweep_table(result["runs"]))
    _finish(result, as_json, ("run_id", "seconds"))


@app.command(epilog="Example: orchestrion datasets --json")
def datasets(home: HomeOption = ".orchestrion", as_json: JsonOption = False) -> None:
    """List the dataset versions, newest first."""
    from tasks.datasets import list_datasets

    rows = [entry.summary() for entry in list_datasets(Home.at(home))]
    _list(
        rows,
        ("dataset", "dataset_version", "n_files", "n_accepted", "n_duplicate", "n_rejected", "n_notes", "n_tokens"),
        as_json,
        "datasets",
    )


@app.command(epilog="Example: orchestrion runs -n 5")
def runs(
    limit: Annotated[int, typer.Option("-n", help="How many of the newest.", min=1)] = 20,
    home: HomeOption = ".orchestrion",
    as_json: JsonOption = False,
) -> None:
    """List the newest tracked runs of all flows."""
    rows = _tracker(home).recent_runs(limit) if _has_tracking(home) else []
    _list(rows, ("run_id", "experiment", "name", "status", "seconds"), as_json, "runs")


@app.command(epilog="Example: orchestrion models --json")
def models(home: HomeOption = ".orchestrion", as_json: JsonOption = False) -> None:
    """List the registered model versions, newest first."""
    found = _tracker(home).models() if _has_tracking(home) else []
    root = Home.at(home).root
    rows = [
        {
            "model_version": model.reference,
            "aliases": list(model.aliases),
            "dataset": model.dataset,
            "run_id": model.run_id,
            "checkpoint": str(root / model.checkpoint),
        }
        for model in found
    ]
    _list(rows, ("model_version", "aliases", "dataset", "run_id"), as_json, "models")


@app.command(epilog="Example: orchestrion presets --json")
def presets(as_json: JsonOption = False) -> None:
    """List the presets with their encodings and sizes."""
    from tasks.model_sizes import preset_rows

    _list(preset_rows(), ("name", "system", "encoding", "vocab_size", "n_parameters"), as_json, "presets", whole=True)


@app.command(epilog="Example: orchestrion encode song.mid --encoding oore --json")
def encode(
    paths: Annotated[list[Path], typer.Argument(help="MIDI files.", metavar="FILE...")],
    encoding: Annotated[str, typer.Option("--encoding", help="Name of the encoding.")] = "oore",
    as_json: JsonOption = False,
) -> None:
    """Show a file as tokens: readable names, or ids with --json (one line for each file)."""
    from tasks.inspect_tokens import encode_file

    for path in paths:
        tokens = encode_file(path, encoding)
        typer.echo(
            json.dumps({"path": str(path), "ids": tokens.ids}) if as_json else f"{path}\n{' '.join(tokens.names)}"
        )


@app.command(epilog="Example: orchestrion decode ids.json --encoding oore --out song.mid")
def decode(
    ids: Annotated[
        Path, typer.Argument(help="A JSON file: a list of ids, or an object with `ids`.", metavar="IDS.json")
    ],
    out: Annotated[Path, typer.Option("--out", help="MIDI file to write.")],
    encoding: Annotated[str, typer.Option("--encoding", help="Name of the encoding.")] = "oore",
    as_json: JsonOption = False,
) -> None:
    """Turn token ids back into a MIDI file."""
    from tasks.inspect_tokens import decode_file

    n_notes = decode_file(ids, encoding, out)
    _finish({"path": str(out), "n_notes": n_notes}, as_json, ("path", "n_notes"))


@app.command(epilog="Example: orchestrion doctor")
def doctor(home: HomeOption = ".orchestrion", as_json: JsonOption = False) -> None:
    """Check the installation, the home and the servers, and say how to mend what is wrong."""
    from flows.doctor import examine

    where = Home.at(home)
    environment.prepare(where)
    checks = examine(where)
    if as_json:
        typer.echo(json.dumps({"ok": all(c.ok for c in checks), "checks": [c.as_json() for c in checks]}))
    else:
        for check in checks:
            typer.echo(f"{'ok  ' if check.ok else 'FAIL'}  {check.name}: {check.detail}")
    raise typer.Exit(0 if all(c.ok for c in checks) else 1)


@app.command(epilog="Example: orchestrion ui")
def ui(
    home: HomeOption = ".orchestrion",
    prefect_port: Annotated[
        int, typer.Option(help="Port of Prefect's UI on 127.0.0.1; another free one if it is taken.")
    ] = environment.PREFECT_PORT,
    mlflow_port: Annotated[
        int, typer.Option(help="Port of MLflow's UI on 127.0.0.1; another free one if it is taken.")
    ] = environment.MLFLOW_PORT,
    verbose: VerboseOption = False,
) -> None:
    """Start the Prefect and MLflow UIs on loopback; Ctrl-C stops both."""
    where = _prepare(home, verbose, False)
    from flows.services import run_uis

    run_uis(where, prefect_port, mlflow_port)


@app.command(epilog='Example: orchestrion deploy --source ~/midi --cron "0 3 * * *"')
def deploy(
    source: SourceOption = "",
    name: NameOption = "",
    preset: PresetOption = DEFAULT_PRESET,
    overrides: SetOption = None,
    cron: Annotated[str, typer.Option("--cron", help="When to rebuild the dataset.")] = "0 3 * * *",
    home: HomeOption = ".orchestrion",
    verbose: VerboseOption = False,
) -> None:
    """Register all flows with Prefect, the rebuild on a schedule, and run what is triggered; Ctrl-C stops."""
    config = _config(preset, _source_overrides(source, name) + (overrides or []))
    where = _prepare(home, verbose, False)
    from flows.deployments import serve_flows

    serve_flows(where, config, cron)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; every mistake becomes one line on stderr and an exit code."""
    sys.exit(_run(list(sys.argv[1:] if arguments is None else arguments)))


def _run(arguments: list[str]) -> int:
    try:
        returned = app(args=arguments, standalone_mode=False)
        return returned if isinstance(returned, int) else 0
    except typer.Exit as error:
        return error.exit_code
    except TyperException as error:  # a wrong option: `format_message` names it
        _complain(getattr(error, "format_message", error.__str__)())
        return 2
    except (KeyboardInterrupt, typer.Abort):
        _complain("interrupted; nothing half-done is left in the home")
        return 130
    except OrchestrionError as error:
        _complain(str(error))
        return error.exit_code
    except Exception as error:
        if {"-v", "--verbose"} & set(arguments):
            logging.getLogger("flows").exception("failed")
        said = str(error).strip().splitlines() or ["no message"]
        _complain(storage_problem(error) or f"failed: {type(error).__name__}: {said[0]} (-v shows where)")
        return 1


def _complain(message: str) -> None:
    typer.echo(f"orchestrion: {' '.join(message.split())}", err=True)


def _prepare(home: str, verbose: bool, quiet: bool) -> Home:
    where = Home.at(home)
    where.prepare()
    environment.configure_logging(1 if verbose else -1 if quiet else 0)
    environment.prepare(where, 1 if verbose else 0)
    return where


# What can be told to be wrong before Prefect and Ray are started is told before.


def _check_source(source: str) -> None:
    if source:
        from tasks.scan import check_source

        check_source(Path(source))


def _check_dataset(home: Home, reference: str) -> None:
    from tasks.datasets import resolve_dataset

    resolve_dataset(home, reference)


def _check_model(home: Home, reference: str) -> None:
    if not _has_tracking(str(home.root)):
        raise NotFound(f"home {home.root} holds no trained model yet; run `orchestrion train` first")
    _tracker(str(home.root)).model(reference)


def _locked(home: Home, purpose: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    with home.locked(purpose, float(os.environ.get("ORCHESTRION_LOCK_WAIT_SECONDS", "0"))):
        from tasks import cluster

        try:
            return run()
        finally:
            cluster.disconnect()


def _config(preset: str, overrides: Sequence[str]) -> Any:
    from tasks.config import apply_overrides
    from tasks.presets import build_preset

    return apply_overrides(build_preset(preset), overrides)


def _source_overrides(source: str, name: str) -> list[str]:
    given = []
    if source:
        given.append(f"dataset.source={json.dumps(str(Path(source).expanduser().absolute()))}")
    if name:
        given.append(f"dataset.name={json.dumps(name)}")
    return given


def _run_pipeline(
    purpose: str, preset: str, overrides: list[str], fresh: bool, home: str, as_json: bool, verbose: bool, quiet: bool
) -> None:
    config = _config(preset, overrides)
    _check_source(config.dataset.source)
    where = _prepare(home, verbose, quiet)

    def run() -> dict[str, Any]:
        from flows.pipeline import pipeline as pipeline_flow

        return pipeline_flow(config, str(where.root), fresh)

    result = _locked(where, purpose, run)
    if as_json:
        typer.echo(json.dumps(result))
        return
    from tasks.summaries import pipeline_rows

    for label, text in [
        *pipeline_rows(result),
        ("took", f"{result['seconds']:.0f} s"),
        ("look around", f"orchestrion ui --home {where.root}"),
    ]:
        typer.echo(f"{label:>14}  {text}")


def _has_tracking(home: str) -> bool:
    return bool(os.environ.get("MLFLOW_TRACKING_URI")) or (Home.at(home).mlflow / "mlflow.db").exists()


def _tracker(home: str) -> Any:
    where = Home.at(home)
    environment.prepare(where)
    from tasks.tracking import Tracker

    return Tracker(where)


def _finish(result: dict[str, Any], as_json: bool, shown: Sequence[str]) -> None:
    if as_json:
        typer.echo(json.dumps(result))
        return
    for key in shown:
        value = result.get(key)
        if isinstance(value, dict):
            value = ", ".join(f"{name} {number:.4g}" for name, number in value.items())
        typer.echo(f"{key:>16}  {value}")


def _list(rows: list[dict[str, Any]], columns: Sequence[str], as_json: bool, key: str, whole: bool = False) -> None:
    if as_json:
        typer.echo(json.dumps(rows if whole else {key: rows}))
        return
    if not rows:
        typer.echo(f"no {key} yet")
        return
    cells = [[str(row[c] if not isinstance(row[c], list) else ",".join(row[c])) for c in columns] for row in rows]
    widths = [max(len(column), *(len(line[i]) for line in cells)) for i, column in enumerate(columns)]
    for line in [list(columns), *cells]:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


if __name__ == "__main__":
    main()
