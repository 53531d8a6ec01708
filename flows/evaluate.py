"""The flow that scores a model on held-out music."""

import time

from prefect import flow

from flows.run_context import Summary, run_tags, since
from flows.triggers import check_trigger
from tasks.config.evaluation import EvaluateConfig
from tasks.config.serialization import to_json
from tasks.dataset.versions import resolve_dataset
from tasks.evaluation.card import report_markdown
from tasks.evaluation.summary import log_evaluation, report_address
from tasks.runtime.prefect_tasks import artifact_key, publish_summary
from tasks.storage.home import Home
from tasks.tracking.mlflow_tracker import Tracker


@flow(name="evaluate")
def evaluate(
    config: EvaluateConfig = EvaluateConfig(),
    model: str = "",
    dataset: str = "",
    home: str = "",
    parent_run_id: str = "",
) -> Summary:
    """Score a model on held-out music, and make it the champion of its name if it is the best.

    Args:
        config: split, windows, numbers of free samples and of continuations.
        model: `name`, `name@3`, `name@champion`, or empty for the newest.
        dataset: `name`, `name@version`, or empty for the one the model was trained on.
        home: folder of all results; empty: ORCHESTRION_HOME or `.orchestrion`.
        parent_run_id: MLflow run this one belongs to.
    """
    from tasks.evaluation import steps

    check_trigger(config)
    where, started = Home.at(home), time.monotonic()
    with where.locked("evaluate"):
        tracker = Tracker(where)
        chosen = tracker.model(model)
        version = resolve_dataset(where, dataset or chosen.dataset)
        loaded = steps.load_registered(chosen, where, config)
        with tracker.open_run(
            "orchestrion/evaluation", f"evaluate-{chosen.reference}", run_tags(), parent_run_id
        ) as run:
            run.log_params(to_json(config), "evaluate")
            run.use_dataset(version, "evaluation")
            run.use_model(chosen)
            result = steps.score_model(loaded, version, config)
            promoted = log_evaluation(run, result, chosen, version, config)
        publish_summary(
            artifact_key("evaluate", chosen.name),
            report_markdown(result, chosen.reference, version, config),
        )
        return {
            "model_version": chosen.reference,
            "dataset_version": version.version,
            "run_id": run.run_id,
            "report": report_address(run),
            "promoted": promoted,
            "metrics": result.metrics,
            "seconds": since(started),
        }
