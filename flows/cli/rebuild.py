"""`orchestrion rebuild`."""

from flows.cli.app import app
from flows.cli.options import (
    DEFAULT_PRESET,
    PresetOption,
    RunOptions,
    SourceOptions,
    check_sources,
    grouped,
    print_result,
)
from flows.cli.run_flow import run_flow


@app.command(epilog="Example: orchestrion rebuild --source ~/midi --name mine")
@grouped
def rebuild(sources: SourceOptions, run: RunOptions, preset: PresetOption = DEFAULT_PRESET) -> None:
    """Turn sources of MIDI into a dataset version; what has not changed is not built again."""
    config = run.config(preset, sources.settings())
    check_sources(config.dataset.sources)
    result = run_flow(run.prepare(), "rebuild_dataset", config.dataset)
    counts = ("n_files", "n_accepted", "n_duplicate", "n_rejected", "n_notes", "n_tokens")
    print_result(result, run.as_json, ("dataset", "dataset_version", *counts, "ledger", "report", "reused", "seconds"))
