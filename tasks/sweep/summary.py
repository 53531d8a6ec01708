"""The summary of a sweep for the tracker and the command line."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from tasks.dataset.versions import DatasetVersion
from tasks.reporting.markdown import table
from tasks.storage.files import write_atomically
from tasks.sweep.plot import draw_sweep
from tasks.sweep.space import FAILED, FINISHED, STOPPED, Row, SweepFolder
from tasks.tracking.mlflow_tracker import Run


def sweep_table(rows: Sequence[Row]) -> str:
    """Return a sweep as Markdown, in the order of its rows."""
    keys = list(rows[0]["values"])
    header = ("point", *keys, "status", "step", "val loss", "bits per note", "nats per token", "accuracy", "model")
    cells = []
    for row in rows:
        status = row["status"] + (f": {row['reason']}" if row["reason"] else "")
        values = [str(row["values"][key]) for key in keys]
        figures = [
            "" if row[name] is None else f"{row[name]:.4f}"
            for name in ("val_loss", "bits_per_note", "nll_per_token", "accuracy")
        ]
        line = (row["point"], *values, status, row["step"], *figures, row["model_version"])
        cells.append([str(cell).replace("|", "\\|") for cell in line])
    return table(cells, header) + "\n"


def log_sweep(run: Run, folder: SweepFolder, rows: Sequence[Row]) -> None:
    """Draw a sweep's picture, and log it with the tables; `rows` are best first."""
    if rows[0]["status"] == FINISHED:
        write_atomically(folder.picture, draw_sweep(folder.root.name, rows))
        run.log_file(folder.picture)
        run.log_metrics({"sweep/best_bits_per_note": rows[0]["bits_per_note"]})
    run.log_file(folder.results)
    run.log_file(folder.table)
    run.log_text(sweep_table(rows), "sweep.md")
    run.describe(sweep_table(rows))


def sweep_summary(folder: SweepFolder, run: Run, dataset: DatasetVersion, rows: Sequence[Row]) -> dict[str, Any]:
    """Return ids, paths and rows of a sweep, best first."""
    counts = Counter(row["status"] for row in rows)
    return {
        "sweep": folder.root.name,
        "sweep_dir": str(folder.root),
        "results": str(folder.results),
        "table": str(folder.table),
        "plot": str(folder.picture),
        "dataset_version": dataset.version,
        "model_version": rows[0]["model_version"],
        "metrics": {name: rows[0][name] for name in ("bits_per_note", "nll_per_token", "accuracy")},
        "run_id": run.run_id,
        "n_points": len(rows),
        **{f"n_{status}": counts[status] for status in (FINISHED, STOPPED, FAILED)},
        "runs": list(rows),
        "best": rows[0],
    }
