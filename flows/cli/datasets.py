"""The commands about datasets: list, compare, verify and prune."""

import contextlib
import importlib
from typing import Annotated, Any

import typer

from flows.cli.options import DEFAULT_HOME, HomeOption, JsonOption, print_list
from flows.cli.registry import tracker_of
from flows.services import environment
from tasks.errors import ConfigError, plural
from tasks.storage.files import json_text
from tasks.storage.home import Home

app = typer.Typer(help="List, compare, check and clean up dataset versions.", invoke_without_command=True)

ReferenceArgument = Annotated[str, typer.Argument(metavar="[NAME[@VERSION]]", help="By default the newest.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")]
_COLUMNS = ("dataset", "dataset_version", "n_files", "n_accepted", "n_duplicate", "n_rejected", "n_notes", "n_tokens")


@app.callback(epilog="Example: orchestrion datasets list --json")
def datasets(context: typer.Context, home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Dataset versions: list, show, diff, verify, prune, catalog. Alone, it lists them."""
    if context.invoked_subcommand is None:
        list_versions(home, as_json)
    elif as_json or str(context.get_parameter_source("home")).endswith("COMMANDLINE"):
        raise ConfigError(
            f"write --home and --json behind the subcommand: orchestrion datasets {context.invoked_subcommand} ..."
        )


@app.command("list", epilog="Example: orchestrion datasets list --json")
def list_versions(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """List the dataset versions, newest first."""
    from tasks.dataset.versions import list_datasets

    print_list([entry.summary() for entry in list_datasets(Home.at(home))], _COLUMNS, as_json, "datasets")


@app.command(epilog="Example: orchestrion datasets show mine")
def show(reference: ReferenceArgument = "", home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Show a version: where its files went, its splits, what leaks between them, what changed before it."""
    from tasks.dataset.card import dataset_card
    from tasks.dataset.versions import resolve_dataset

    dataset = resolve_dataset(Home.at(home), reference)
    typer.echo(json_text(dataset.summary() | {"manifest": dataset.manifest}) if as_json else dataset_card(dataset))


@app.command(epilog="Example: orchestrion datasets diff mine@3f2a mine@91c0")
def diff(
    old: Annotated[str, typer.Argument(metavar="NAME@VERSION", help="The earlier version.")],
    new: ReferenceArgument = "",
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Say what changed from one version to another: files, settings, shards."""
    from tasks.dataset.card import changes_card
    from tasks.dataset.changes import diff_versions
    from tasks.dataset.versions import resolve_dataset

    where = Home.at(home)
    before = resolve_dataset(where, old)
    after = resolve_dataset(where, new or before.name)
    changes = diff_versions(before, after)
    result = {"old": before.reference, "new": after.reference, **changes}
    typer.echo(json_text(result) if as_json else f"{before.reference} -> {after.reference}\n{changes_card(changes)}")


@app.command(epilog="Example: orchestrion datasets verify --all")
def verify(
    reference: ReferenceArgument = "",
    everything: Annotated[bool, typer.Option("--all", help="Every version, and every other file of the home.")] = False,
    seal: Annotated[
        bool, typer.Option("--seal", help="As --all; files of before there were digests get theirs.")
    ] = False,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Hash every file of a version again; exit code 1 if one is not what was written."""
    from tasks.dataset.upkeep import check_datasets
    from tasks.dataset.versions import list_datasets, resolve_dataset
    from tasks.errors import DatasetError
    from tasks.runtime.progress import Progress

    where = Home.at(home)
    environment.configure_logging(0)
    damaged: list[DatasetError] = []
    chosen = list_datasets(where, damaged=damaged) if everything or seal else [resolve_dataset(where, reference)]
    n_of_versions = sum(len(dataset.shards()) + 1 for dataset in chosen)  # and the ledger
    others = importlib.import_module("tasks.upkeep.home_files") if everything or seal else None  # brings torch
    n_others = others.n_files(where) if others else 0
    found = [{"dataset": "", "path": str(error).partition(" ")[0], "problem": str(error)} for error in damaged]
    findings: list[Any] = []
    with Progress("verifying", n_of_versions + n_others, "files") as progress:
        for reference_of, problem in check_datasets(chosen, progress.advance):
            found.append({"dataset": reference_of, "path": problem.path, "problem": problem.problem})
        if others:
            with where.locked("orchestrion datasets verify") if seal else contextlib.nullcontext():
                findings = others.check_files(where, seal, progress.advance)
    told = {problem["path"] for problem in found}  # flat tokens of a version are looked at with it
    more = [finding for finding in findings if finding.problem and str(finding.path) not in told]
    found += [{"dataset": "", "path": str(finding.path), "problem": finding.problem} for finding in more]
    facts: dict[str, Any] = {"ok": not found, "n_versions": len(chosen), "n_files": n_of_versions, "problems": found}
    if others:
        facts |= {"n_other_files": n_others, "n_unverified": sum(f.is_unverified for f in findings)}
        facts |= {"n_sealed": sum(f.got_seal for f in findings)}
    if as_json:
        typer.echo(json_text(facts))
    else:
        for problem in found:
            said = problem["problem"].removeprefix(f"{problem['path']} ")
            typer.echo(f"{problem['dataset']}: {problem['path']} {said}".removeprefix(": "))
        hint = "; the same rebuild mends a dataset" if found else ""
        beside = f" and {n_others} other files" if others else ""
        typer.echo(
            f"{plural(n_of_versions, 'file')} of {plural(len(chosen), 'version')}{beside},"
            f" {plural(len(found), 'problem')}{hint}"
        )
        if facts.get("n_sealed"):
            typer.echo(f"{facts['n_sealed']} files had no digest and have one now, or are made again when needed")
        if facts.get("n_unverified"):
            typer.echo(f"{facts['n_unverified']} files have no digest: `orchestrion datasets verify --seal` adds them")
    raise typer.Exit(1 if found else 0)


@app.command(epilog="Example: orchestrion datasets prune --keep 3 --dry-run")
def prune(
    keep: Annotated[int, typer.Option("--keep", min=0, help="Versions to keep of each dataset; 0: all.")] = 0,
    dry_run: DryRunOption = False,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Delete shards that no version uses, and old versions if asked; those that models were trained on stay."""
    from tasks.dataset.upkeep import prune as prune_datasets

    where = Home.at(home)
    tracker = tracker_of(where)
    used = [model.dataset for model in tracker.models()] if tracker else []
    with where.locked("orchestrion datasets prune"):
        pruned = prune_datasets(where, keep, used, dry_run)
    if as_json:
        counts = {"n_files": pruned.n_files, "n_bytes": pruned.n_bytes}
        typer.echo(json_text({"versions": list(pruned.versions), **counts, "dry_run": dry_run}))
        return
    verb = "would delete" if dry_run else "deleted"
    for version in pruned.versions:
        typer.echo(f"{verb} {version}")
    typer.echo(f"{verb} {plural(pruned.n_files, 'unused shard')}, {pruned.n_bytes / 2**20:.1f} MiB")


@app.command(epilog="Example: orchestrion datasets catalog")
def catalog(as_json: JsonOption = False) -> None:
    """List the public sets that a rebuild can fetch by name: `orchestrion rebuild --source catalog:NAME`."""
    import dataclasses

    from tasks.ingest.sources.catalog import CATALOG

    if as_json:
        typer.echo(json_text({"catalog": [dataclasses.asdict(entry) for entry in CATALOG]}))
        return
    rows = [
        {
            "name": entry.name,
            "files": f"{entry.n_files:,}" if entry.n_files else "?",
            "size": f"{entry.n_bytes / 2**20:,.0f} MiB" if entry.n_bytes else "?",
            "licence": entry.licence,
            "title": entry.title,
        }
        for entry in CATALOG
    ]
    print_list(rows, ("name", "files", "size", "licence", "title"), False, "catalog")
    typer.echo("\n--json shows addresses, checksums and citations.")
