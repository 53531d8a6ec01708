"""The read-only commands: lists, tokens, the state of the installation."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli import completion
from flows.cli.app import app
from flows.cli.options import DEFAULT_HOME, HomeOption, JsonOption, print_facts, print_list, print_result, table_lines
from flows.cli.registry import tracker_of
from flows.services import environment
from tasks.errors import ConfigError, NotFound, plural
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
    model: Annotated[
        list[str],
        typer.Argument(help="Two to eight models: name, name@3 or name@champion.", autocompletion=completion.models),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Page to write.")] = Path("comparison.html"),
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Compare models: figures with intervals, curves, pieces to listen to; also an artifact in MLflow."""
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
    facts = {"page": str(out.absolute()), "run_id": run.run_id, "models": rows, "warnings": warnings_of(contestants)}

    def lines(facts: dict[str, Any]) -> Iterator[str]:
        yield from table_lines(rows, list(rows[0]))
        yield from (f"note: {warning}" for warning in facts["warnings"])
        yield f"page: {out}"

    print_facts(facts, as_json, lines)


@app.command(epilog="Example: orchestrion lineage .orchestrion/generations/BATCH/pieces/0003.mid")
def lineage(
    target: Annotated[
        str, typer.Argument(help="A generated file, a batch, a run id, model@version or dataset@version.")
    ],
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Show the origin of something, back to the training files and their licences, and what was made of it."""
    from tasks.lineage.lineage import Lineage, lineage_rows

    where = Home.at(home)
    facts = Lineage(where, tracker_of(where)).of(target)
    print_facts(facts, as_json, lambda facts: (f"{label:>30}  {text}" for label, text in lineage_rows(facts)))


@app.command(epilog="Example: orchestrion presets mmm_vae --summary")
def presets(
    name: Annotated[str, typer.Argument(help="One preset, to see all its settings; by default a list of all.")] = "",
    summary: Annotated[
        bool, typer.Option("--summary", help="Parameters of each part of the preset's model, and shapes of latents.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List the presets with their encodings and sizes, or show one with all its settings or its model's summary."""
    from tasks.config.presets import preset_facts, preset_rows, preset_summary

    if summary:
        if not name:
            raise ConfigError("--summary is of one preset: orchestrion presets NAME --summary")
        print_facts(preset_summary(name), as_json, _summary_lines)
    elif name:
        print_facts(preset_facts(name), as_json, lambda facts: [json_text(facts, indent=2)])
    else:
        rows = preset_rows()
        print_list(rows, list(rows[0]), as_json, "presets")


def _summary_lines(facts: dict[str, Any]) -> Iterator[str]:
    for key, value in facts.items():
        if key == "parameters":
            yield from (f"{part:>20}  {n:>12,} parameters" for part, n in value.items())
        elif key == "stages":
            yield f"{key:>20}  {' -> '.join(map(_shape, value))}"
        else:
            yield f"{key:>20}  {_shape(value) if isinstance(value, list) else value}"


def _shape(sizes: list[int]) -> str:
    return " x ".join(map(str, sizes))


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
    """Show files as tokens: readable names, or with --json the ids and the encoding of each file."""
    from tasks.dataset.inspect_tokens import encode_file, encoding_config

    config = encoding_config(encoding, overrides or [])
    files = []
    for path in paths:
        tokens = encode_file(path, config)
        files.append({"path": str(path), "ids": tokens.ids, "dropped": tokens.dropped, "encoder": tokens.encoder})
        if not as_json:
            lost = ", ".join(f"{n} {reason}" for reason, n in tokens.dropped.items())
            lost = f"; notes lost or changed: {lost}" if lost else ""
            typer.echo(f"{path}: {plural(len(tokens.ids), 'token')}{lost}")
            typer.echo(tokens.rendering())
    print_facts({"files": files}, as_json, lambda facts: ())


@app.command(epilog="Example: orchestrion stats song.mid")
def stats(
    path: Annotated[list[Path], typer.Argument(help="MIDI files.")],
    as_json: JsonOption = False,
) -> None:
    """Show what a MIDI file holds: tracks, channels, programs, banks, pitches and length in ticks."""
    from tasks.music.midi.event_statistics import midi_statistics
    from tasks.storage.user_paths import read_input

    files = [{"path": str(one), "statistics": midi_statistics(read_input(one), str(one))} for one in path]

    def lines(facts: dict[str, Any]) -> Iterator[str]:
        for file in facts["files"]:
            yield file["path"]
            yield from (f"{name:>24}  {json_text(value)}" for name, value in file["statistics"].items())

    print_facts({"files": files}, as_json, lines)


@app.command(epilog="Example: orchestrion text mine -o songs.txt")
def text(
    dataset: Annotated[
        str,
        typer.Argument(metavar="[NAME[@VERSION]]", help="By default the newest.", autocompletion=completion.datasets),
    ] = "",
    out: Annotated[Path, typer.Option("--out", "-o", help="Text file to write.")] = Path("songs.txt"),
    split: Annotated[str, typer.Option("--split", help="train, validation or test; by default all songs.")] = "",
    augmented: Annotated[
        bool, typer.Option("--augmented", help="Training songs in all variants of the dataset's augmentation.")
    ] = False,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a setting of optimus_txt. Repeatable."),
    ] = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Write a dataset as readable text: ten lines about it, then every song in the encoding optimus_txt."""
    from tasks.dataset.text import dataset_text
    from tasks.dataset.versions import resolve_dataset
    from tasks.storage.user_paths import check_output, write_output

    check_output(out)
    version = resolve_dataset(Home.at(home), dataset)
    written, n_songs = dataset_text(version, overrides or [], split, augmented)
    write_output(out, written.encode())
    facts = {"path": str(out), "dataset_version": version.version, "n_songs": n_songs, "n_characters": len(written)}
    print_result(facts, as_json, list(facts))


@app.command("export-tokens", epilog="Example: orchestrion export-tokens mine -o mine.pt --split train")
def export_tokens(
    dataset: Annotated[
        str,
        typer.Argument(metavar="[NAME[@VERSION]]", help="By default the newest.", autocompletion=completion.datasets),
    ] = "",
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write: .npy, .pt or .parquet.")] = Path(
        "tokens.npy"
    ),
    length: Annotated[
        int, typer.Option("--length", min=0, max=2**20, help="Ids of a window, a sixth more or less; 0: whole rows.")
    ] = 2048,
    split: Annotated[str, typer.Option("--split", help="train, validation or test; by default all rows.")] = "",
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**64 - 1, help="Seed of the windows.")] = 0,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Write the token ids of a dataset as one table: two windows of each row, one from anywhere, one to its end."""
    environment.set_defaults()  # before torch, which asks once how threads wait for each other
    from tasks.dataset.token_export import export_tokens as export
    from tasks.dataset.versions import resolve_dataset

    version = resolve_dataset(Home.at(home), dataset)
    facts = {"path": str(out), "dataset_version": version.version} | export(version, out, length, split, seed)
    print_result(facts, as_json, list(facts))


@app.command(epilog="Example: orchestrion decode tokens.json --out song.mid")
def decode(
    ids: Annotated[
        Path, typer.Argument(help="A JSON file: a list of ids, or the output of encode --json.", metavar="IDS.json")
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
    """Check the installation, the home and the servers, and print a fix for each problem."""
    from flows.cli.doctor import examine

    where = Home.at(home)
    environment.prepare(where)
    checks = examine(where)
    is_ok = all(check["ok"] for check in checks)

    def lines(facts: dict[str, Any]) -> Iterator[str]:
        yield from (f"{'ok  ' if check['ok'] else 'FAIL'}  {check['name']}: {check['detail']}" for check in checks)

    print_facts({"ok": is_ok, "checks": checks}, as_json, lines)
    raise typer.Exit(0 if is_ok else 1)
