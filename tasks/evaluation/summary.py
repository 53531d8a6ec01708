"""The summary of an evaluation for the tracker and Prefect."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import url2pathname

from tasks.config.evaluation import EvaluateConfig
from tasks.dataset.versions import DatasetVersion
from tasks.evaluation.card import report_markdown
from tasks.evaluation.champions import against_champion, champion_tags
from tasks.evaluation.page.page import Decision, evaluation_page
from tasks.storage.files import json_bytes
from tasks.storage.integrity import sealed_bytes
from tasks.tracking.mlflow_tracker import PIECE_SCORES, ModelVersion, Run

if TYPE_CHECKING:  # these bring torch, which a rebuild can do without
    from tasks.evaluation.continuations import ContinuationTest
    from tasks.evaluation.evaluate import Evaluation
EVALUATION_PAGE = "evaluation.html"


def log_evaluation(
    run: Run, result: "Evaluation", model: ModelVersion, dataset: DatasetVersion, config: EvaluateConfig
) -> bool:
    """Send an evaluation to the tracker; return whether the model became the champion of its name.

    How they compare: see `against_champion`. Scores on music that the model was trained on, and of
    ids without music, are only shown.
    """
    rivalry = None
    if config.split != "train" and "bits_per_note" in result.metrics:
        rivalry = against_champion(run.tracker, result, model, dataset, config)
    is_promoted = bool(rivalry and rivalry.is_won and config.promote)
    card = report_markdown(result, model.reference, dataset, config) + (rivalry.paragraph if rivalry else "")
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
    """Return the path of an evaluation's page, or its address where it is no file of this machine."""
    address = f"{run.tracker.client.get_run(run.run_id).info.artifact_uri}/{EVALUATION_PAGE}"
    return url2pathname(urlsplit(address).path) if address.startswith("file://") else address
