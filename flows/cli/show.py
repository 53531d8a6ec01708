"""The read-only commands: lists, tokens, the state of the installation."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.app import app
from flows.cli.options import DEFAULT_HOME, HomeOption, JsonOption, print_list, print_result
from flows.cli.registry import tracker_of
from flows.services import environment
from tasks.errors import NotFound, plural
from tasks.storage.files import json_text
from tasks.storage.home import Home


@app.command(epilog="Example: orchestrion runs -n 5")
def runs(
    limit: Annotated[int, typer.Option("-n", help="How many of the newest.", min=1)] = 20,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """List the newest tracked runs of all flows."""
    tracker = tracker_of(Home.at(home))
    rows = tracker.recent_runs(limit) if tracker else []
    print_list(rows, ("run_id", "experiment", "name", "status", "seconds"), as_json, "runs")


@app.command(epilog="Example: orchestrion models --json")
def models(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """List the registered model versions, newest first."""
    where = Home.at(home)
    tracker = tracker_of(where)
    rows = [
        {
            "model_version": model.reference,
            "aliases": list(model.aliases),
            "dataset": model.dataset,
            "run_id": model.run_id,
            "checkpoint": str(where.root / model.checkpoint),
        }
        for model in (tracker.models() if tracker else [])
    ]
    print_list(rows, ("model_version", "aliases", "dataset", "run_id"), as_json, "models")


@app.command(epilog="Example: orchestrion compare mine-music_transformer@champion mine-music_transformer@4")
def compare(
    model: Annotated[list[str], typer.Argument(help="Two to eight models: name, name@3 or name@champion.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Page to write.")] = Path("comparison.html"),
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Set models side by side: figures with intervals, curves, pieces to listen to; also an artifact in MLflow."""
    from tasks.review.comparison import build_comparison, difference_of, gather_contestants, warnings_of
    from tasks.storage.user_paths import check_output, write_output

    check_output(out)
    where = Home.at(home)
    tracker = tracker_of(where)
    if tracker is None:
        raise NotFound(f"home {home} holds no trained model yet; run `orchestrion train` first")
    contestants = gather_contestants(where, tracker, model)
    page = build_comparison(contestants)
    write_output(out, page.encode())
    names = [contestant.model.reference for contestant in contestants]
    with tracker.open_run("orchestrion/evaluation", f"compare-{names[0]}-and-{len(names) - 1}-more") as run:
        run.log_tags({"orchestrion.compared": ", ".join(names)})
        run.log_text(page, "comparison.html")
    rows = [
        {
            "model_version": contestant.model.reference,
            "scored_on": contestant.scored_on,
            "bits_per_note": contestant.metrics.get("bits_per_note"),
            "above_the_first": difference_of(contestant, contestants[0]),
        }
        for contestant in contestants
    ]
    if as_json:
        facts = {
            "page": str(out.absolute()),
            "run_id": run.run_id,
            "models": rows,
            "warnings": warnings_of(contestants),
        }
        typer.echo(json_text(facts))
        return
    print_list(rows, ("model_version", "scored_on", "bits_per_note", "above_the_first"), False, "models")
    for warning in warnings_of(contestants):
        typer.echo(f"note: {warning}")
    typer.echo(f"page: {out}")


@app.command(epilog="Example: orchestrion lineage .orchestrion/generations/BATCH/pieces/0003.mid")
def lineage(
    target: Annotated[
        str, typer.Argument(help="A generated file, a batch, a run id, model@version or dataset@version.")
    ],
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Tell where something comes from, back to the training files and their licences, and what was made of it."""
    from tasks.lineage.lineage import Lineage, lineage_rows

    where = Home.at(home)
    facts = Lineage(where, tracker_of(where)).of(target)
    if as_json:
        typer.echo(json_text(facts))
        return
    for label, text in lineage_rows(facts):
        typer.echo(f"{label:>30}  {text}")


@app.command(epilog="Example: orchestrion presets mmm_vae")
def presets(
    name: Annotated[str, typer.Argument(help="One preset, to see all its settings; by default all in short.")] = "",
    as_json: JsonOption = False,
) -> None:
    """List the presets with their encodings and sizes, or show one with all its settings."""
    from tasks.config.presets import preset_facts, preset_rows

    if name:
        facts = preset_facts(name)
        typer.echo(json_text(facts) if as_json else json_text(facts, indent=2))
        return
    print_list(preset_rows(), ("name", "system", "encoding", "vocab_size", "n_parameters"), as_json, "")


@app.command(epilog="Example: orchestrion encode song.mid --encoding remi --set use_rests=true")
def encode(
    paths: Annotated[list[Path], typer.Argument(help="MIDI files.", metavar="FILE...")],
    encoding: Annotated[str, typer.Option("--encoding", help="Name of the encoding.")] = "oore",
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a setting of the encoding. Repeatable."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show files as tokens: readable names, or with --json ids and what they mean, one line for each file."""
    from tasks.dataset.inspect_tokens import encode_file, encoding_config

    config = encoding_config(encoding, overrides or [])
    for path in paths:
        tokens = encode_file(path, config)
        if as_json:
            facts = {"path": str(path), "ids": tokens.ids, "dropped": tokens.dropped, "encoder": tokens.encoder}
            typer.echo(json_text(facts))
        else:
            lost = ", ".join(f"{n} {reason}" for reason, n in tokens.dropped.items())
            typer.echo(
                f"{path}: {plural(len(tokens.ids), 'token')}{f'; notes lost or changed: {lost}' if lost else ''}"
            )
            typer.echo(tokens.rendering())


@app.command(epilog="Example: orchestrion decode tokens.json --out song.mid")
def decode(
    ids: Annotated[
        Path, typer.Argument(help="A JSON file: a list of ids, or what encode --json printed.", metavar="IDS.json")
    ],
    out: Annotated[Path, typer.Option("--out", help="MIDI file to write.")],
    encoding: Annotated[
        str, typer.Option("--encoding", help="Name of the encoding, where the file does not state it.")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Turn token ids back into a MIDI file."""
    from tasks.dataset.inspect_tokens import decode_file, encoding_config

    n_notes = decode_file(ids, encoding_config(encoding) if encoding else None, out)
    print_result({"path": str(out), "n_notes": n_notes}, as_json, ("path", "n_notes"))


@app.command(epilog="Example: orchestrion doctor")
def doctor(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Check the installation, the home and the servers, and say how to mend what is wrong."""
    from flows.cli.doctor import examine

    where = Home.at(home)
    environment.prepare(where)
    checks = examine(where)
    if as_json:
        typer.echo(json_text({"ok": all(c.ok for c in checks), "checks": [c.as_json() for c in checks]}))
    else:
        for check in checks:
            typer.echo(f"{'ok  ' if check.ok else 'FAIL'}  {check.name}: {check.detail}")
    raise typer.Exit(0 if all(c.ok for c in checks) else 1)
