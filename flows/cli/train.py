"""`orchestrion train`."""

from flows.cli.app import app
from flows.cli.options import (
    DEFAULT_PRESET,
    DatasetOption,
    FreshOption,
    PresetOption,
    RunOptions,
    grouped,
    print_result,
)
from flows.cli.run_flow import run_flow
from tasks.storage.home import Home


@app.command(epilog="Example: orchestrion train --dataset mine --preset music_transformer --set train.n_steps=5000")
@grouped
def train(
    run: RunOptions, dataset: DatasetOption = "", preset: PresetOption = DEFAULT_PRESET, fresh: FreshOption = False
) -> None:
    """Train a model and register it; Ctrl-C saves, and the same command goes on from there."""
    config = run.config(preset)
    where = run.prepare()
    check_dataset(where, dataset)
    result = run_flow(where, "train", config.train, dataset, fresh=fresh)
    facts = ("model_version", "dataset_version", "n_parameters", "step", "metrics")
    print_result(result, run.as_json, (*facts, "checkpoint", "run_id", "reused", "seconds"))


def check_dataset(home: Home, reference: str) -> None:
    """Raise NotFound where `reference` names no dataset version of the home."""
    from tasks.dataset.versions import resolve_dataset

    resolve_dataset(home, reference)
