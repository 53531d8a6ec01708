"""The summary of a pipeline: for MLflow, as a card for Prefect, and as figures for the command line."""

from typing import Any

from tasks.errors import plural
from tasks.reporting.markdown import table
from tasks.tracking.mlflow_tracker import Run

Summary = dict[str, Any]


def pipeline_summary(dataset: Summary, trained: Summary, evaluated: Summary, batch: Summary) -> Summary:
    """Return one object for the whole pipeline."""
    return {
        **{key: value for key, value in dataset.items() if key not in ("seconds", "reused")},
        **{key: trained[key] for key in ("model_version", "run_id", "run_dir", "checkpoint", "n_parameters")},
        **{key: batch[key] for key in ("batch", "batch_dir", "gallery", "n_pieces")},
        "metrics": {**trained["metrics"], **evaluated["metrics"]},
        "promoted": evaluated["promoted"],
        "reused": {"dataset": dataset["reused"], "model": trained["reused"], "batch": batch["reused"]},
        "stage_seconds": {
            "rebuild": dataset["seconds"], "train": trained["seconds"], "evaluate": evaluated["seconds"],
            "generate": batch["seconds"],
        },
    }  # fmt: skip


def pipeline_card(summary: Summary) -> str:
    """Return a pipeline summary as Markdown."""
    return table(pipeline_rows(summary), ("", "")) + "\n"


def pipeline_rows(summary: Summary) -> list[tuple[str, str]]:
    """Return the lines of the short table that ends a pipeline."""
    metrics = summary["metrics"]
    duplicates = plural(summary["n_duplicate"], "duplicate")
    files = f"{summary['n_accepted']} accepted, {duplicates}, {summary['n_rejected']} rejected"
    champion = ", champion" if summary["promoted"] else ""
    held_out = f"{metrics['nll_per_token']:.3f} nats a token, {metrics['bits_per_note']:.2f} bits a note"
    return [
        ("dataset", f"{summary['dataset']}@{summary['dataset_version']}"),
        ("files", f"{summary['n_files']}: {files}"),
        ("notes, tokens", f"{summary['n_notes']:,}, {summary['n_tokens']:,} with augmentation"),
        ("model", f"{summary['model_version']} ({summary['n_parameters']:,} parameters){champion}"),
        ("held out", f"{held_out}, accuracy {metrics['accuracy']:.3f}"),
        ("compositions", f"{summary['n_pieces']} pieces in batch {summary['batch']}"),
        ("listen", summary["gallery"]),
    ]


def log_pipeline(run: Run, summary: Summary) -> None:
    """Send the pipeline's summary to its parent run."""
    run.log_metrics(summary["metrics"])
    run.log_tags(
        {
            "orchestrion.dataset_version": summary["dataset_version"],
            "orchestrion.model_version": summary["model_version"],
            "orchestrion.batch": summary["batch"],
        }
    )
    run.describe(pipeline_card(summary))
