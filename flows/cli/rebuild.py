"""`orchestrion rebuild`."""

import tempfile
from pathlib import Path
from typing import Any

from flows.cli.app import app
from flows.cli.options import (
    DEFAULT_PRESET,
    DryRunOption,
    PresetOption,
    RunOptions,
    SourceOptions,
    check_sources,
    grouped,
    print_result,
)
from flows.cli.run_flow import run_flow
from tasks.storage.home import Home


@app.command(epilog="Example: orchestrion rebuild --source ~/midi --name mine")
@grouped
def rebuild(
    sources: SourceOptions, run: RunOptions, preset: PresetOption = DEFAULT_PRESET, dry_run: DryRunOption = False
) -> None:
    """Turn sources of MIDI into a dataset version; what has not changed is not built again."""
    config = run.config(preset, sources.settings())
    check_sources(config.dataset.sources)
    if dry_run:
        _print_plan(Home.at(run.home), config.dataset, run.as_json)
        return
    result = run_flow(run.prepare(), "rebuild_dataset", config.dataset)
    counts = ("n_files", "n_accepted", "n_duplicate", "n_rejected", "n_notes", "n_tokens")
    print_result(result, run.as_json, ("dataset", "dataset_version", *counts, "ledger", "report", "reused", "seconds"))


def _print_plan(home: Home, config: Any, as_json: bool) -> None:
    from tasks.dataset.plan import plan_rebuild

    with tempfile.TemporaryDirectory(prefix="orchestrion-plan-") as empty:
        plan = plan_rebuild(home if home.root.exists() else Home.at(Path(empty)), config)
    print_result(plan, as_json, [name for name in plan if name != "dry_run"])
