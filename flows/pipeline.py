"""The story of a run: rebuild, train, evaluate, generate, and the pipeline that chains them."""

import logging
import os
import time
from typing import Any

from prefect import flow
from prefect.runtime import flow_run

from flows.triggers import check_trigger
from tasks import summaries
from tasks.config.dataset import DatasetConfig
from tasks.config.evaluation import EvaluateConfig
from tasks.config.generation import GenerateConfig
from tasks.config.pipeline import PipelineConfig
from tasks.config.serialization import to_json
from tasks.config.training import TrainConfig
from tasks.dataset import steps
from tasks.dataset.card import dataset_card
from tasks.dataset.summary import log_dataset
from tasks.dataset.versions import resolve_dataset
from tasks.runtime.prefect_tasks import artifact_key, publish_summary
from tasks.storage.home import Home
from tasks.tracking.mlflow_tracker import Tracker

Summary = dict[str, Any]

logger = logging.getLogger(__name__)


@flow(name="rebuild-dataset")
def rebuild_dataset(config: DatasetConfig = DatasetConfig(), home: str = "", parent_run_id: str = "") -> Summary:
    """Turn a source into a dataset version; what has not changed is not built again.

    Args:
        config: the source and everything that determines the version.
        home: folder of all results; empty: ORCHESTRION_HOME or `.orchestrion`.
        parent_run_id: MLflow run this one belongs to.
    """
    check_trigger(config)
    where, started = Home.at(home), time.monotonic()
    with where.locked("rebuild-dataset", lock_wait()):
        inputs = steps.find_inputs(config, where)
        dataset = steps.find_whole_version(where, inputs)
        if dataset and not dataset.report.exists():
            dataset = None  # a kill after publishing: nobody was told of it yet
        reused = dataset is not None
        if dataset:
            logger.info("dataset %s is reused: nothing has changed", dataset.reference)
        if dataset is None:
            with Tracker(where).open_run(
                "orchestrion/datasets", f"rebuild-{inputs.config.name}", run_tags(), parent_run_id
            ) as run:
                inputs, songs = steps.read_songs(where, inputs)
                ledger, leakage = steps.account_for_files(inputs, songs)
                dataset = steps.encode_and_publish(where, inputs, songs, ledger, leakage)
                steps.write_dataset_report(dataset, inputs, songs, ledger)
                log_dataset(run, dataset)
        publish_summary(artifact_key("dataset", dataset.name), dataset_card(dataset))
        steps.link_report(dataset)
        return dataset.summary() | {"reused": reused, "seconds": since(started)}


@flow(name="train")
def train(
    config: TrainConfig = TrainConfig(),
    dataset: str = "",
    home: str = "",
    parent_run_id: str = "",
    fresh: bool = False,
) -> Summary:
    """Train a model on a dataset version and register it; a run that was stopped goes on, a finished one is reused.

    Args:
        config: model, schedule and length of the run.
        dataset: `name`, `name@version`, or empty for the newest.
        home: folder of all results; empty: ORCHESTRION_HOME or `.orchestrion`.
        parent_run_id: MLflow run this one belongs to.
        fresh: train anew even if the same run is finished already.
    """
    from tasks import model_steps  # brings torch, which a rebuild can do without
    from tasks.runs import claim_run, finish_run, finished_model
    from tasks.train import make_job

    check_trigger(config)
    where, started = Home.at(home), time.monotonic()
    with where.locked("train", lock_wait()):
        tracker, version = Tracker(where), resolve_dataset(where, dataset)
        claim = claim_run(where, config, version, tracker, fresh)
        job = make_job(config, version, claim.folder)
        model = finished_model(claim, tracker)
        reused = model is not None
        if model:
            logger.info("model %s is reused: run %s is finished; `fresh` trains anew", model.reference, claim.run_id)
        if model is None:
            tags = run_tags() | {"orchestrion.preset": config.preset}
            with tracker.open_run("orchestrion/training", claim.folder.name, tags, parent_run_id, claim.run_id) as run:
                summaries.log_training_start(run, claim, config, version)
                result = model_steps.fit_model(job, run)
                model = model_steps.register_model(run, result, version, where, config)
                finish_run(claim, run, model)
                summaries.log_training_end(run, model, result)
        summary = summaries.training_summary(where, model, claim.folder) | {
            "reused": reused,
            "seconds": since(started),
        }
        publish_summary(artifact_key("train", model.name), summaries.training_card(summary))
        return summary


@flow(name="evaluate")
def evaluate(
    config: EvaluateConfig = EvaluateConfig(),
    model: str = "",
    dataset: str = "",
    home: str = "",
    parent_run_id: str = "",
) -> Summary:
    """Score a model on held-out music, and make it the champion of its name if it is the best so far.

    Args:
        config: split, windows, numbers of free samples and of continuations.
        model: `name`, `name@3`, `name@champion`, or empty for the newest.
        dataset: `name`, `name@version`, or empty for the one the model was trained on.
        home: folder of all results; empty: ORCHESTRION_HOME or `.orchestrion`.
        parent_run_id: MLflow run this one belongs to.
    """
    from tasks import model_steps

    check_trigger(config)
    where, started = Home.at(home), time.monotonic()
    with where.locked("evaluate", lock_wait()):
        tracker = Tracker(where)
        chosen = tracker.model(model)
        version = resolve_dataset(where, dataset or chosen.dataset)
        loaded = model_steps.load_registered(chosen, where)
        with tracker.open_run(
            "orchestrion/evaluation", f"evaluate-{chosen.reference}", run_tags(), parent_run_id
        ) as run:
            run.log_params(to_json(config), "evaluate")
            run.use_dataset(version, "evaluation")
            run.use_model(chosen)
            result = model_steps.score_model(loaded, version, config)
            promoted = summaries.log_evaluation(run, result, chosen, version, config)
        publish_summary(
            artifact_key("evaluate", chosen.name),
            summaries.evaluation_card(result, chosen, version, config),
        )
        return {
            "model_version": chosen.reference,
            "dataset_version": version.version,
            "run_id": run.run_id,
            "report": summaries.report_address(run),
            "promoted": promoted,
            "metrics": result.metrics,
            "seconds": since(started),
        }


@flow(name="generate")
def generate(
    config: GenerateConfig = GenerateConfig(),
    model: str = "",
    home: str = "",
    parent_run_id: str = "",
    fresh: bool = False,
) -> Summary:
    """Compose a batch of pieces with a page to review them; the same request gives the same bytes.

    Args:
        config: how many, which seed, how to sample, which prompts.
        model: `name`, `name@3`, `name@champion`, or empty for the newest.
        home: folder of all results; empty: ORCHESTRION_HOME or `.orchestrion`.
        parent_run_id: MLflow run this one belongs to.
        fresh: compose again even if the same batch is there.
    """
    from tasks import model_steps

    check_trigger(config)
    where, started = Home.at(home), time.monotonic()
    with where.locked("generate", lock_wait()):
        tracker = Tracker(where)
        chosen = tracker.model(model)
        batch = None if fresh else model_steps.find_same_batch(where, chosen, config)
        reused = batch is not None
        run_id = batch.logged_run() if batch else ""
        if reused:
            logger.info("batch %s is reused; `fresh` composes anew", batch.name if batch else "")
        if batch is None or not run_id:
            with tracker.open_run(
                "orchestrion/generation", f"generate-{chosen.reference}", run_tags(), parent_run_id
            ) as run:
                run.log_params(to_json(config), "generate")
                run.use_model(chosen)
                batch = batch or model_steps.compose_batch(where, chosen, config, fresh)
                summaries.log_batch(run, batch)
            run_id = run.run_id
            batch.note_run(run_id)
        summary = summaries.batch_summary(batch) | {"run_id": run_id, "reused": reused, "seconds": since(started)}
        publish_summary(artifact_key("generate", chosen.name), summaries.batch_card(batch))
        return summary


@flow(name="pipeline")
def pipeline(config: PipelineConfig = PipelineConfig(), home: str = "", fresh: bool = False) -> Summary:
    """Rebuild the dataset, train on it, evaluate the model, compose a batch.

    Args:
        config: one section for each stage.
        home: folder of all results; empty: ORCHESTRION_HOME or `.orchestrion`.
        fresh: train and compose anew even where the same is finished already.
    """
    check_trigger(config)
    where, started = Home.at(home), time.monotonic()
    root = str(where.root)
    with where.locked("pipeline", lock_wait()):
        tags = run_tags() | {"orchestrion.preset": config.train.preset}
        with Tracker(where).open_run("orchestrion/training", f"pipeline-{config.train.preset}", tags) as run:
            dataset = rebuild_dataset(config.dataset, root, run.run_id)
            reference = f"{dataset['dataset']}@{dataset['dataset_version']}"
            trained = train(config.train, reference, root, run.run_id, fresh)
            evaluated = evaluate(config.evaluate, trained["model_version"], reference, root, run.run_id)
            batch = generate(config.generate, trained["model_version"], root, run.run_id, fresh)
            summary = summaries.pipeline_summary(dataset, trained, evaluated, batch)
            summaries.log_pipeline(run, summary)
        publish_summary("pipeline", summaries.pipeline_card(summary))
        return summary | {"pipeline_run_id": run.run_id, "seconds": since(started)}


def run_tags() -> dict[str, str]:
    """Return the tags that lead from a run in the tracker to its flow run."""
    return {"prefect.flow_run_id": str(flow_run.id or ""), "prefect.flow_run_name": str(flow_run.name or "")}


def since(started: float) -> float:
    """Return the seconds from a reading of the monotonic clock to now."""
    return round(time.monotonic() - started, 2)


def lock_wait() -> float:
    """Return the seconds to wait for a busy home: none for a person at a terminal, long for runs of a schedule."""
    return float(os.environ.get("ORCHESTRION_LOCK_WAIT_SECONDS", "0"))
