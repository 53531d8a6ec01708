"""What each flow says at its end: to MLflow, to Prefect as a card, and to the command line as figures."""

import math
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from tasks.batch_files import RESULTS
from tasks.champions import against_champion, champion_tags
from tasks.config.evaluation import EvaluateConfig
from tasks.config.training import TrainConfig
from tasks.dataset.versions import DatasetVersion
from tasks.evaluation_card import report_markdown
from tasks.report_page.evaluation import Decision, evaluation_page
from tasks.reporting.markdown import table
from tasks.storage.files import json_bytes, write_atomically
from tasks.storage.home import Home
from tasks.storage.integrity import read_sealed, sealed_bytes
from tasks.sweep import FAILED, FINISHED, STOPPED, Row, SweepFolder
from tasks.sweep_plot import draw_sweep
from tasks.tracking.mlflow_tracker import PIECE_SCORES, ModelVersion, Run

if TYPE_CHECKING:  # these bring torch, which a rebuild can do without
    from tasks.continuations import ContinuationTest
    from tasks.evaluate import Evaluation
    from tasks.generate import Batch
    from tasks.runs import Claim
    from tasks.train import TrainResult

Summary = dict[str, Any]
EVALUATION_PAGE = "evaluation.html"


def log_training_start(run: Run, claim: "Claim", config: TrainConfig, dataset: DatasetVersion) -> None:
    """Tell the tracker what is about to be trained on what."""
    from tasks.runs import start_run

    start_run(claim, run)
    run.log_params(claim.facts["config"], "train")
    run.use_dataset(dataset, "training")


def log_training_end(run: Run, model: ModelVersion, result: "TrainResult") -> None:
    """Tell the tracker what came out."""
    run.log_file(result.run_dir / "metrics.jsonl")
    run.describe(f"Model `{model.reference}`, step {result.step}, checkpoint `{result.checkpoint}`")


def training_summary(home: Home, model: ModelVersion, folder: Any) -> Summary:
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


def training_card(summary: Summary) -> str:
    """Return a training summary as Markdown."""
    rows = [(key, f"{value:.4f}") for key, value in sorted(summary["metrics"].items())]
    facts = (
        f"Dataset version {summary['dataset_version']}, {summary['n_parameters']:,} parameters,"
        f" best at step {summary['step']}."
    )
    figures = table(rows, ("figure", "value"))
    return f"# {summary['model_version']}\n\n{facts}\n\n{figures}\n\nCheckpoint: `{summary['checkpoint']}`\n"


def log_evaluation(
    run: Run, result: "Evaluation", model: ModelVersion, dataset: DatasetVersion, config: EvaluateConfig
) -> bool:
    """Send an evaluation to the tracker; return whether the model became the champion of its name.

    How they compare: see `against_champion`. Scores on music that the model was trained on are only shown.
    """
    rivalry = None if config.split == "train" else against_champion(run.tracker, result, model, dataset, config)
    is_promoted = bool(rivalry and rivalry.is_won and config.promote)
    card = evaluation_card(result, model, dataset, config) + (rivalry.said if rivalry else "")
    run.log_metrics({f"{config.split}/{name}": value for name, value in result.metrics.items()})
    if result.tokens_per_second:
        run.log_metrics({"samples_tokens_per_second": result.tokens_per_second})
    run.log_text(card, "report.md")
    run.log_text(json_bytes(result.metrics).decode(), "metrics.json")
    run.log_text(json_bytes(result.judgement).decode(), "judgement.json")
    run.log_text(sealed_bytes({"nats": result.piece_nats}).decode(), PIECE_SCORES)
    run.log_text(json_bytes(result.copying).decode(), "copying.json")
    if result.continuations:
        _log_continuations(run, result.continuations, config)
    decision = Decision(rivalry, is_promoted)
    run.log_text(evaluation_page(result, model, dataset, config, decision, run.run_id), EVALUATION_PAGE)
    run.describe(card)
    if rivalry is None:
        return False
    run.tracker.set_model_tags(model, champion_tags(result, dataset, config, run.run_id))
    if is_promoted:
        run.tracker.promote(model)
    return is_promoted


def _log_continuations(run: Run, test: "ContinuationTest", config: EvaluateConfig) -> None:
    run.log_text(json_bytes(test.to_json()).decode(), "continuations.json")
    if not test.pieces:
        return
    run.log_metrics({f"{config.split}/{test.kind}/tokens_per_second": test.tokens_per_second})
    with tempfile.TemporaryDirectory() as folder:
        test.write_files(Path(folder))
        run.log_folder(Path(folder), "continuations")


def report_address(run: Run) -> str:
    """Return where the page of an evaluation lies: its path, or where it is no file of this machine, its address."""
    address = f"{run.tracker.client.get_run(run.run_id).info.artifact_uri}/{EVALUATION_PAGE}"
    return url2pathname(urlsplit(address).path) if address.startswith("file://") else address


def evaluation_card(result: "Evaluation", model: ModelVersion, dataset: DatasetVersion, config: EvaluateConfig) -> str:
    """Return an evaluation as Markdown."""
    return report_markdown(result, model.reference, dataset, config)


def batch_summary(batch: "Batch") -> Summary:
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
        "metrics": batch.manifest["statistics"] | batch_verdict(batch),
    }


def batch_verdict(batch: "Batch") -> dict[str, float]:
    """Return the figures by which a batch is set beside real music; those that there are."""
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
    return (
        f"# {batch.name}\n\n{batch.manifest['n_pieces']} pieces by {batch.manifest['model_version']}"
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
    files = f"{summary['n_accepted']} accepted, {summary['n_duplicate']} duplicates, {summary['n_rejected']} rejected"
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


def log_sweep(run: Run, folder: SweepFolder, rows: Sequence[Row]) -> list[Row]:
    """Write a sweep's table and picture, send them to its run, and return the rows best first."""
    ranked = folder.write_rows(rows)
    if ranked[0]["status"] == FINISHED:
        write_atomically(folder.picture, draw_sweep(folder.root.name, ranked))
        run.log_file(folder.picture)
        run.log_metrics({"sweep/best_bits_per_note": ranked[0]["bits_per_note"]})
    run.log_file(folder.results)
    run.log_file(folder.table)
    run.log_text(sweep_table(ranked), "sweep.md")
    run.describe(sweep_table(ranked))
    return ranked


def sweep_summary(folder: SweepFolder, run: Run, dataset: DatasetVersion, rows: Sequence[Row]) -> Summary:
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
