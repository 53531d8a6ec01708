"""The summary of a batch for the tracker, Prefect and the command line."""

from typing import TYPE_CHECKING, Any

from tasks.errors import plural
from tasks.generation.batch_files import RESULTS, asked_words
from tasks.reporting.markdown import table
from tasks.storage.integrity import read_sealed
from tasks.tracking.mlflow_tracker import Run

if TYPE_CHECKING:  # these bring torch, which a rebuild can do without
    from tasks.generation.generate import Batch


def batch_summary(batch: "Batch") -> dict[str, Any]:
    """Return ids and paths of a batch."""
    return {
        "batch": batch.name,
        "batch_dir": str(batch.folder),
        "gallery": str(batch.gallery),
        "model_version": batch.manifest["model_version"],
        "dataset_version": batch.manifest["dataset_version"].partition("@")[2],
        "n_pieces": batch.manifest["n_pieces"],
        "n_attempts": batch.manifest["n_attempts"],
        "flags": batch.manifest["flags"],
        "asked_notes": asked_words(batch.manifest),
        "metrics": batch.manifest["statistics"] | batch_verdict(batch),
    }


def batch_verdict(batch: "Batch") -> dict[str, float]:
    """Return the available figures that compare a batch with real music."""
    judgement, copying = batch.manifest["judgement"], batch.manifest["copying"]
    figures = {"share_valid": batch.manifest["validity"]["share_valid"]}
    if judgement:
        figures |= {
            "fd_feat": judgement["fd_feat"]["value"],
            "typicality": judgement["typicality"]["generated"]["value"],
            "share_beyond_human_copying": copying["share_beyond"] if copying["n_judged"] else None,
        }
    return {name: float(value) for name, value in figures.items() if value is not None}


def batch_card(batch: "Batch") -> str:
    """Return a batch as Markdown."""
    figures = batch_verdict(batch) | batch.manifest["statistics"]
    rows = [(name, f"{value:.3f}") for name, value in figures.items()]
    flags = "".join(f"**{flag}**\n\n" for flag in batch.manifest["flags"])
    if asked := asked_words(batch.manifest):
        flags += f"{asked}\n\n"
    return (
        f"# {batch.name}\n\n{plural(batch.manifest['n_pieces'], 'piece')} by {batch.manifest['model_version']}"
        f" (dataset {batch.manifest['dataset_version']}), {batch.manifest['n_ended']} of them ended by themselves.\n\n"
        f"{flags}{table(rows, ('figure', 'value'))}\n\nListen: `{batch.gallery}`\n"
    )


def log_batch(run: Run, batch: "Batch") -> None:
    """Send a batch to the tracker; its gallery opens in MLflow's artifact viewer."""
    name, _, version = batch.manifest["dataset_version"].partition("@")
    run.log_tags({"orchestrion.batch": batch.name, "orchestrion.dataset": name, "orchestrion.dataset_version": version})
    figures = batch.manifest["statistics"] | batch_verdict(batch)
    run.log_metrics({f"batch/{name}": value for name, value in figures.items()})
    results = read_sealed(batch.results, RESULTS)
    means = {name: results[name] for name in ("mean_entropy", "mean_generation_time") if results[name] is not None}
    run.log_metrics({f"batch/{name}": value for name, value in means.items()})
    run.log_folder(batch.folder)
    run.log_file(batch.results)
    run.describe(batch_card(batch))
