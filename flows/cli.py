"""The command line. Each command builds one config, then calls one flow; heavy imports wait until then."""

import importlib
import io
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException

from flows import cli_compose, cli_datasets, cli_look
from flows.cli_options import (
    DEFAULT_HOME,
    DEFAULT_PRESET,
    AugmentOption,
    ConcurrentOption,
    DatasetOption,
    DrawSeedOption,
    EarlyStoppingOption,
    EncodingOption,
    FreshOption,
    GridOption,
    HomeOption,
    JsonOption,
    LicenceOption,
    ModelOption,
    ModelPresetOption,
    NameOption,
    PresetOption,
    QuietOption,
    SamplesOption,
    SearchOption,
    SetOption,
    SourceOption,
    VerboseOption,
    prepare,
    print_result,
)
from flows.services import environment, interrupts, streams
from flows.services.interrupts import INTERRUPTED, SAID_INTERRUPTED
from tasks.errors import ConfigError, HomeError, Interrupted, OrchestrionError, words_of
from tasks.runtime.signals import ends
from tasks.storage.files import json_text, storage_problem
from tasks.storage.home import Home

START_RAY = ("rebuild_dataset", "train", "pipeline", "sweep")  # `evaluate` and `generate` mostly do without
LONGEST_MESSAGE = 4000  # characters; what a user gave may be longer than anybody reads
BATCH_FACTS = ("batch", "model_version", "n_pieces", "flags", "batch_dir", "gallery", "reused", "seconds")

app = typer.Typer(
    name="orchestrion",
    help="Folders of MIDI in, trained music transformers and reviewed compositions out.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)


@app.command(epilog="Example: orchestrion rebuild --source ~/midi --name mine")
def rebuild(
    source: SourceOption = None,
    name: NameOption = "",
    licence: LicenceOption = None,
    encoding: EncodingOption = "",
    augment: AugmentOption = "",
    preset: PresetOption = DEFAULT_PRESET,
    overrides: SetOption = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
) -> None:
    """Turn sources of MIDI into a dataset version; what has not changed is not built again."""
    config = _config(preset, _dataset_overrides(source, name, licence, encoding, augment) + (overrides or []))
    _check_sources(config.dataset.sources)
    result = _run_flow(prepare(home, verbose, quiet), "rebuild_dataset", config.dataset)
    counts = ("n_files", "n_accepted", "n_duplicate", "n_rejected", "n_notes", "n_tokens")
    print_result(result, as_json, ("dataset", "dataset_version", *counts, "ledger", "report", "reused", "seconds"))


@app.command(epilog="Example: orchestrion train --dataset mine --preset music_transformer --set train.n_steps=5000")
def train(
    dataset: DatasetOption = "",
    preset: PresetOption = DEFAULT_PRESET,
    overrides: SetOption = None,
    fresh: FreshOption = False,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train a model and register it; Ctrl-C saves, and the same command goes on from there."""
    config = _config(preset, overrides or [])
    where = prepare(home, verbose, quiet)
    _check_dataset(where, dataset)
    result = _run_flow(where, "train", config.train, dataset, fresh=fresh)
    facts = ("model_version", "dataset_version", "n_parameters", "step", "metrics")
    print_result(result, as_json, (*facts, "checkpoint", "run_id", "reused", "seconds"))


@app.command(epilog="Example: orchestrion evaluate --model sample-music_transformer_tiny@champion")
def evaluate(
    model: ModelOption = "",
    dataset: DatasetOption = "",
    preset: ModelPresetOption = "",
    overrides: SetOption = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
) -> None:
    """Score a model on held-out music and make it the champion if it is the best so far."""
    _config(preset or DEFAULT_PRESET, overrides or [])  # a typo is told before the model is looked for
    where = prepare(home, verbose, quiet)
    config = _config(preset or cli_look.find_model(where, model).preset, overrides or [])
    result = _run_flow(where, "evaluate", config.evaluate, model, dataset)
    print_result(
        result, as_json, ("model_version", "dataset_version", "promoted", "metrics", "report", "run_id", "seconds")
    )


@app.command(epilog="Example: orchestrion generate --model mine-music_transformer@champion -n 16 --prompt theme.mid")
def generate(
    model: ModelOption = "",
    n_pieces: Annotated[int | None, typer.Option("-n", "--n-pieces", help="Pieces to compose.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="The same seed gives the same bytes.")] = None,
    prompt: Annotated[
        str, typer.Option("--prompt", help="To continue: a MIDI file, a folder of them, or split:test of the dataset.")
    ] = "",
    variation: Annotated[
        float | None,
        typer.Option("--variation", help="Share of the prompt's bars to write anew, other ones in each piece; 0-1."),
    ] = None,
    best_of: Annotated[int | None, typer.Option("--best-of", help="Attempts at each piece; the best is kept.")] = None,
    reject_copies: Annotated[
        bool,
        typer.Option("--reject-copies", help="Write anew what shares more with the training music than people do."),
    ] = False,
    request: Annotated[
        Path | None, typer.Option("--request", help="A TOML or JSON file that describes several batches.")
    ] = None,
    preset: ModelPresetOption = "",
    overrides: SetOption = None,
    fresh: FreshOption = False,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compose a batch of pieces with a page to review them; Ctrl-C keeps what is written, the same command goes on."""
    environment.set_defaults(environment.SAMPLING)
    given = {
        "n_pieces": n_pieces, "seed": seed, "prompt": _absolute_prompt(prompt) or None, "variation": variation,
        "best_of": best_of, "reject_copies": reject_copies or None,
    }  # fmt: skip
    settings = [f"generate.{key}={json.dumps(value)}" for key, value in given.items() if value is not None]
    settings += overrides or []
    if request is not None:
        if settings or model or preset:
            raise ConfigError(f"--request {request.name} says all; leave out --model, --preset and all settings")
        _generate_all(request, prepare(home, verbose, quiet), fresh, as_json)
        return
    _check_prompt(_config(preset or DEFAULT_PRESET, settings).generate.prompt)
    where = prepare(home, verbose, quiet)
    found = cli_look.find_model(where, model)
    config = _config(preset or found.preset, settings)
    cli_look.check_wishes(where, found, config.generate)
    print_result(_run_flow(where, "generate", config.generate, model, fresh=fresh), as_json, BATCH_FACTS)


def _generate_all(request: Path, where: Home, fresh: bool, as_json: bool) -> None:
    """Compose all batches of a request file, once all its settings, models and prompts are known to be there.

    A job that fails for a reason of its own does not keep the others from being composed; all such are told at the end,
    whatever ends it, and the last of them decides the exit code.
    """
    from flows.requests import read_request

    models = dict[str, Any]()

    def settings_of(model: str) -> Any:
        models[model] = models.get(model) or cli_look.find_model(where, model)
        return _config(models[model].preset, ()).generate

    jobs = read_request(request, settings_of)
    for job in jobs:
        _check_prompt(job.config.prompt)
        try:
            cli_look.check_wishes(where, models[job.model], job.config)
        except OrchestrionError as error:
            error.put_before(f"{request.name}: {job.name}")
            raise
    results, failed = [], list[OrchestrionError]()
    try:
        for job in jobs:
            try:
                result = _run_flow(where, "generate", job.config, job.model, fresh=fresh)
            except OrchestrionError as error:
                error.put_before(f"{request.name}: {job.name}")
                if isinstance(error, (HomeError, Interrupted)):  # of all jobs
                    raise
                failed.append(error)
                continue
            results.append({"name": job.name} | result)
            if not as_json:
                print_result(results[-1], as_json, ("name", *BATCH_FACTS))
    finally:
        if as_json:
            typer.echo(json_text({"jobs": results}))
        for error in failed:
            _complain(str(error))
    if failed:
        raise typer.Exit(failed[-1].exit_code)


def _absolute_prompt(prompt: str) -> str:
    from tasks.storage.user_paths import as_text, path_of

    return prompt if not prompt or prompt.startswith("split:") else as_text(path_of(prompt).absolute())


def _check_prompt(prompt: str) -> None:
    from tasks.storage.user_paths import check_there, path_of

    if prompt and not prompt.startswith("split:"):
        check_there(path_of(prompt), "prompt")


@app.command(epilog="Example: orchestrion pipeline --source ~/midi --preset music_transformer_tiny --json")
def pipeline(
    source: SourceOption = None,
    name: NameOption = "",
    licence: LicenceOption = None,
    encoding: EncodingOption = "",
    augment: AugmentOption = "",
    preset: PresetOption = DEFAULT_PRESET,
    overrides: SetOption = None,
    fresh: FreshOption = False,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
) -> None:
    """Rebuild, train, evaluate, generate: the whole way from a folder to a gallery."""
    config = _config(preset, _dataset_overrides(source, name, licence, encoding, augment) + (overrides or []))
    _check_sources(config.dataset.sources)
    where = prepare(home, verbose, quiet)
    result = _run_flow(where, "pipeline", config, fresh=fresh)
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
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
) -> None:
    """The pipeline with small defaults, on the built-in sample corpus or on your own folder."""
    pipeline(source, "", None, "", "", DEFAULT_PRESET, overrides, False, home, as_json, verbose, quiet)


@app.command(epilog="Example: orchestrion sweep --grid train.model.n_layers=2,3 --grid train.model.n_heads=4,8")
def sweep(
    grid: GridOption = None,
    search: SearchOption = None,
    samples: SamplesOption = 0,
    seed: DrawSeedOption = 0,
    early_stopping: EarlyStoppingOption = False,
    concurrent: ConcurrentOption = 1,
    dataset: DatasetOption = "",
    preset: PresetOption = DEFAULT_PRESET,
    overrides: SetOption = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train and score every point of a grid or of a random search, and rank them in one table.

    The same command again goes on where it was stopped. A point is the run that `train` makes with the same settings.
    """
    from tasks.sweep.space import SweepConfig, plan_points

    config = _config(preset, overrides or [])
    plan = SweepConfig(
        grid=tuple(grid or ()), search=tuple(search or ()), samples=samples, seed=seed,
        early_stopping=early_stopping, concurrent=concurrent,
    )  # fmt: skip
    plan_points(config, plan)  # a mistake is told before anything is started
    where = prepare(home, verbose, quiet)
    _check_dataset(where, dataset)
    result = _run_flow(where, "sweep", config, plan, dataset)
    if not as_json:
        from tasks.sweep.summary import sweep_table

        typer.echo(sweep_table(result["runs"]))
    facts = ("sweep", "n_points", "n_finished", "n_stopped", "n_failed", "model_version", "metrics", "table", "plot")
    print_result(result, as_json, (*facts, "run_id", "reused", "seconds"))


app.registered_commands += cli_look.app.registered_commands
app.add_typer(cli_datasets.app, name="datasets")
app.add_typer(cli_compose.app, name="compose")


@app.command(epilog="Example: orchestrion ui")
def ui(
    home: HomeOption = DEFAULT_HOME,
    prefect_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of Prefect's UI on 127.0.0.1; another free one if it is taken.")
    ] = environment.PREFECT_PORT,
    mlflow_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of MLflow's UI on 127.0.0.1; another free one if it is taken.")
    ] = environment.MLFLOW_PORT,
    verbose: VerboseOption = False,
) -> None:
    """Start the Prefect and MLflow UIs on loopback, those that do not run yet; Ctrl-C stops them."""
    where = prepare(home, verbose)
    from flows.services.servers import run_uis

    run_uis(where, prefect_port, mlflow_port)


@app.command(epilog='Example: orchestrion deploy --source ~/midi --cron "0 3 * * *"')
def deploy(
    source: SourceOption = None,
    name: NameOption = "",
    licence: LicenceOption = None,
    preset: PresetOption = DEFAULT_PRESET,
    overrides: SetOption = None,
    cron: Annotated[str, typer.Option("--cron", help="When to rebuild the dataset.")] = "0 3 * * *",
    home: HomeOption = DEFAULT_HOME,
    verbose: VerboseOption = False,
) -> None:
    """Register all flows with Prefect, the rebuild on a schedule, and run what is triggered; Ctrl-C stops."""
    config = _config(preset, _dataset_overrides(source, name, licence) + (overrides or []))
    _check_sources(config.dataset.sources)
    if config.dataset.source_limits.refuse_private_addresses:
        from tasks.config.source_limits import REFUSE_PRIVATE

        os.environ[REFUSE_PRIVATE] = "1"  # for all runs, whatever the parameters that trigger them say
    where = prepare(home, verbose)
    from flows.deployments import serve_flows

    serve_flows(where, config, cron)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; every mistake becomes one line on stderr and an exit code."""
    for number in ends():  # all end as Ctrl-C does, so that nothing is left running
        signal.signal(number, signal.default_int_handler)
    streams.open_missing()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names need not fit its encoding
    if arguments is None:
        _hide_queries()
    code = _run(list(sys.argv[1:] if arguments is None else arguments))
    if code == INTERRUPTED:
        streams.leave(code)
    streams.let_go()
    sys.exit(code)


def _hide_queries() -> None:
    """Start anew without the queries of sources' addresses among the arguments, which `ps` and Ray's records show."""
    from tasks.ingest.sources.secrets import keep_queries

    given = sys.orig_argv[1:]
    if (hidden := keep_queries(given)) != given:
        os.execv(sys.executable, [sys.orig_argv[0], *hidden])


def _run(arguments: list[str]) -> int:
    try:
        with streams.reader_gone_told():
            returned = app(args=arguments, standalone_mode=False)
        if returned == INTERRUPTED:  # typer turns Ctrl-C into a number without a word
            raise KeyboardInterrupt
        return returned if isinstance(returned, int) else 0
    except typer.Exit as error:
        return error.exit_code
    except TyperException as error:  # a wrong option: `format_message` names it
        _complain(getattr(error, "format_message", error.__str__)())
        return 2
    except (KeyboardInterrupt, typer.Abort):
        _say_interrupted()
        return INTERRUPTED
    except OrchestrionError as error:
        _complain(str(error))
        return error.exit_code
    except Exception as error:
        return _explain(error, is_verbose=bool({"-v", "--verbose"} & set(arguments)))


def _explain(error: Exception, is_verbose: bool) -> int:
    """Say in one line what went wrong that nobody thought of, and return the exit code."""
    if _was_interrupted(error):
        _say_interrupted()
        return INTERRUPTED
    if is_verbose:
        logging.getLogger("flows").error("failed", exc_info=error)
    said = f"failed: {type(error).__name__}: {words_of(error)} (-v shows where)"
    _complain(storage_problem(error) or said)
    return 1


def _was_interrupted(error: BaseException | None) -> bool:
    """Tell whether an error arose while Ctrl-C was dealt with, which reaches Prefect's server too and ends it."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def _say_interrupted() -> None:
    interrupts.told.set()
    _complain(SAID_INTERRUPTED)


def _complain(message: str) -> None:
    """Say something in one line, which control characters and names that are not UTF-8 leave one."""
    line = " ".join(message.split())
    if len(line) > LONGEST_MESSAGE:
        line = f"{line[: LONGEST_MESSAGE // 2]} ... {line[-LONGEST_MESSAGE // 2 :]}"
    shown = "".join(character if character.isprintable() else repr(character)[1:-1] for character in line)
    with suppress(OSError):  # the terminal is gone
        typer.echo(f"orchestrion: {shown}", err=True)


def _config(preset: str, overrides: Sequence[str]) -> Any:
    from tasks.config.overrides import apply_overrides
    from tasks.config.presets import build_preset

    return apply_overrides(build_preset(preset), overrides)


def _dataset_overrides(
    sources: Sequence[str] | None,
    name: str,
    licences: Sequence[str] | None,
    encoding: str = "",
    augment: str = "",
) -> list[str]:
    from tasks.ingest.sources.spec import absolute_source

    given = []
    if encoding:
        given.append(f"dataset.encoding.name={json.dumps(encoding)}")
    if augment:
        from tasks.config.augmentations import augmentation
        from tasks.config.serialization import to_json

        given.append(f"dataset.augment={json.dumps(to_json(augmentation(augment)))}")
    if sources:
        given.append(f"dataset.sources={json.dumps([absolute_source(source) for source in sources])}")
    if name:
        given.append(f"dataset.name={json.dumps(name)}")
    if licences:
        given.append(f"dataset.licences={json.dumps(licences)}")
    return given


# What can be told to be wrong before Prefect and Ray are started is told before.


def _check_sources(sources: Sequence[str]) -> None:
    from tasks.ingest.sources.spec import check_source

    for source in sources:
        check_source(source)


def _check_dataset(home: Home, reference: str) -> None:
    from tasks.dataset.versions import resolve_dataset

    resolve_dataset(home, reference)


def _run_flow(home: Home, name: str, *arguments: Any, **options: Any) -> dict[str, Any]:
    wait_seconds = float(os.environ.get("ORCHESTRION_LOCK_WAIT_SECONDS", "0"))
    with (
        interrupts.ended_soon(home.root / "logs" / "hung.txt"),
        home.locked(f"orchestrion {name.replace('_', '-')}", wait_seconds),
    ):
        from flows.services import servers
        from tasks.runtime import cluster
        from tasks.runtime.progress import Progress

        if name in START_RAY:
            cluster.check_start()
        with Progress(name.replace("_", "-")) as whole:
            whole.note = "starting Prefect"
            servers.ensure_prefect(home)
            environment.import_prefect(home)
            interrupts.ignore_repeats()
            flow = getattr(importlib.import_module(f"flows.{name}"), name)
            try:
                return flow(*arguments, home=str(home.root), **options)
            finally:
                cluster.disconnect()


if __name__ == "__main__":
    main()
