"""`orchestrion rebuild`."""

import tempfile
from pathlib import Path
from typing import Any

from flows.cli import options
from flows.cli.app import app
from flows.cli.run_flow import run_flow
from tasks.storage.home import Home


@app.command(epilog="Example: orchestrion rebuild --source ~/midi --name mine")
@options.grouped
def rebuild(
    sources: options.SourceOptions,
    run: options.RunOptions,
    preset: options.PresetOption = options.DEFAULT_PRESET,
    dry_run: options.DryRunOption = False,
) -> None:
    """Turn sources of MIDI into a dataset version; unchanged parts are reused."""
    config = run.config(preset, sources.settings())
    options.check_sources(config.dataset.sources)
    if dry_run:
        _print_plan(Home.at(run.home), config.dataset, run.as_json)
        return
    result = run_flow(run.prepare(), "rebuild_dataset", config.dataset)
    counts = ("n_files", "n_accepted", "n_duplicate", "n_rejected", "n_notes", "n_tokens")
    options.print_result(
        result, run.as_json, ("dataset", "dataset_version", *counts, "ledger", "report", "reused", "seconds")
    )


def _print_plan(home: Home, config: Any, as_json: bool) -> None:
    from tasks.dataset.plan import plan_rebuild

    with tempfile.TemporaryDirectory(prefix="orchestrion-plan-") as empty:
        plan = plan_rebuild(home if home.root.exists() else Home.at(Path(empty)), config)
    options.print_result(plan, as_json, [name for name in plan if name != "dry_run"])
