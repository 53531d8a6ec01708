"""The commands about datasets: list, compare, verify and prune."""

import contextlib
import dataclasses
import importlib
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from flows.cli.options import DEFAULT_HOME, HomeOption, JsonOption, print_facts, print_list, table_lines
from flows.cli.registry import tracker_of
from flows.services import environment
from tasks.errors import ConfigError, plural
from tasks.storage.home import Home

app = typer.Typer(help="List, compare, check and prune dataset versions.", invoke_without_command=True)

ReferenceArgument = Annotated[str, typer.Argument(metavar="[NAME[@VERSION]]", help="By default the newest.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only print what would be deleted.")]
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
    """Show a version: its files by outcome, its splits, leakage, and changes since the version before."""
    from tasks.dataset.card import dataset_card
    from tasks.dataset.versions import resolve_dataset

    dataset = resolve_dataset(Home.at(home), reference)
    facts = dataset.summary() | {"manifest": dataset.manifest}
    print_facts(facts, as_json, lambda facts: [dataset_card(dataset)])


@app.command(epilog="Example: orchestrion datasets diff mine@3f2a mine@91c0")
def diff(
    old: Annotated[str, typer.Argument(metavar="NAME@VERSION", help="The earlier version.")],
    new: ReferenceArgument = "",
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Show what changed between two versions: files, settings, shards."""
    from tasks.dataset.card import changes_card
    from tasks.dataset.changes import diff_versions
    from tasks.dataset.versions import resolve_dataset

    where = Home.at(home)
    before = resolve_dataset(where, old)
    after = resolve_dataset(where, new or before.name)
    changes = diff_versions(before, after)
    result = {"old": before.reference, "new": after.reference, **changes}
    print_facts(result, as_json, lambda facts: [f"{facts['old']} -> {facts['new']}", changes_card(changes)])


@app.command(epilog="Example: orchestrion datasets verify --all")
def verify(
    reference: ReferenceArgument = "",
    everything: Annotated[bool, typer.Option("--all", help="Every version, and every other file of the home.")] = False,
    seal: Annotated[
        bool, typer.Option("--seal", help="As --all, and add digests to files of releases without digests.")
    ] = False,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Hash every file of a version again; exit code 1 if one has other bytes than were written."""
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
    known = {problem["path"] for problem in found}  # flat tokens of a version are checked with it
    more = [finding for finding in findings if finding.problem and str(finding.path) not in known]
    found += [{"dataset": "", "path": str(finding.path), "problem": finding.problem} for finding in more]
    facts: dict[str, Any] = {"ok": not found, "n_versions": len(chosen), "n_files": n_of_versions, "problems": found}
    if others:
        facts |= {"n_other_files": n_others, "n_unverified": sum(f.is_unverified for f in findings)}
        facts |= {"n_sealed": sum(f.got_seal for f in findings)}
    print_facts(facts, as_json, _verified_lines)
    raise typer.Exit(1 if found else 0)


def _verified_lines(facts: dict[str, Any]) -> Iterator[str]:
    for problem in facts["problems"]:
        message = problem["problem"].removeprefix(f"{problem['path']} ")
        yield f"{problem['dataset']}: {problem['path']} {message}".removeprefix(": ")
    hint = "; the same rebuild mends a dataset" if facts["problems"] else ""
    beside = f" and {facts['n_other_files']} other files" if "n_other_files" in facts else ""
    files, versions = plural(facts["n_files"], "file"), plural(facts["n_versions"], "version")
    yield f"{files} of {versions}{beside}, {plural(len(facts['problems']), 'problem')}{hint}"
    if facts.get("n_sealed"):
        yield f"{facts['n_sealed']} files had no digest and have one now, or are made again when needed"
    if facts.get("n_unverified"):
        yield f"{facts['n_unverified']} files have no digest: `orchestrion datasets verify --seal` adds them"


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
    facts = dataclasses.asdict(pruned) | {"versions": list(pruned.versions), "dry_run": dry_run}
    verb = "would delete" if dry_run else "deleted"
    size = f"{plural(pruned.n_files, 'unused shard')}, {pruned.n_bytes / 2**20:.1f} MiB"
    print_facts(facts, as_json, lambda facts: [f"{verb} {item}" for item in (*facts["versions"], size)])


@app.command(epilog="Example: orchestrion datasets catalog")
def catalog(as_json: JsonOption = False) -> None:
    """List the public sets that a rebuild can fetch by name: `orchestrion rebuild --source catalog:NAME`."""
    from tasks.ingest.sources.catalog import CATALOG

    def lines(facts: dict[str, Any]) -> Iterator[str]:
        rows = [
            {
                "name": entry["name"],
                "files": f"{entry['n_files']:,}" if entry["n_files"] else "?",
                "size": f"{entry['n_bytes'] / 2**20:,.0f} MiB" if entry["n_bytes"] else "?",
                "licence": entry["licence"],
                "title": entry["title"],
            }
            for entry in facts["catalog"]
        ]
        yield from table_lines(rows, list(rows[0]))
        yield "\n--json shows addresses, checksums and citations."

    print_facts({"catalog": [dataclasses.asdict(entry) for entry in CATALOG]}, as_json, lines)
