"""The summary of a training run for the tracker, Prefect and the command line."""

import math
from typing import TYPE_CHECKING, Any

from tasks.config.serialization import to_json
from tasks.config.training import TrainConfig
from tasks.dataset.versions import DatasetVersion
from tasks.reporting.markdown import table
from tasks.storage.home import Home
from tasks.tracking.mlflow_tracker import ModelVersion, Run

if TYPE_CHECKING:  # this brings torch, which a rebuild can do without
    from tasks.training.job import TrainResult


def log_training_start(run: Run, config: TrainConfig, dataset: DatasetVersion) -> None:
    """Log settings and dataset."""
    run.log_params(to_json(config), "train")
    run.use_dataset(dataset, "training")


def log_training_end(run: Run, model: ModelVersion, result: "TrainResult") -> None:
    """Log metric points, curves, model and checkpoint."""
    from tasks.training.curves import write_curves

    for path in (result.run_dir / "metrics.jsonl", *write_curves(result.run_dir)):
        run.log_file(path)
    run.describe(f"Model `{model.reference}`, step {result.step}, checkpoint `{result.checkpoint}`")


def training_summary(home: Home, model: ModelVersion, folder: Any) -> dict[str, Any]:
    """Return ids, paths and figures of a finished training run."""
    from tasks.checkpoints import read_state

    checkpoint = home.root / model.checkpoint
    state = read_state(checkpoint)
    return {
        "model_version": model.reference,
        "run_id": model.run_id,
        "run_dir": str(folder),
        "checkpoint": str(checkpoint),
        "dataset_version": state["dataset"]["version"],
        "n_parameters": state["n_parameters"],
        "step": state["step"],
        "metrics": {key: math.nan if value is None else value for key, value in state["metrics"].items()},
    }


def training_card(summary: dict[str, Any]) -> str:
    """Return a training summary as Markdown."""
    rows = [(key, f"{value:.4f}") for key, value in sorted(summary["metrics"].items())]
    facts = (
        f"Dataset version {summary['dataset_version']}, {summary['n_parameters']:,} parameters,"
        f" best at step {summary['step']}."
    )
    figures = table(rows, ("figure", "value"))
    return f"# {summary['model_version']}\n\n{facts}\n\n{figures}\n\nCheckpoint: `{summary['checkpoint']}`\n"
