"""The flow that trains a model."""

import logging
import time

from prefect import flow

from flows.run_context import Summary, run_tags, since
from flows.triggers import check_trigger
from tasks.config.training import TrainConfig
from tasks.dataset.versions import resolve_dataset
from tasks.runtime.prefect_tasks import artifact_key, publish_summary
from tasks.storage.home import Home
from tasks.tracking.mlflow_tracker import Tracker
from tasks.training.summary import log_training_end, log_training_start, training_card, training_summary

logger = logging.getLogger(__name__)


@flow(name="train")
def train(
    config: TrainConfig = TrainConfig(),
    dataset: str = "",
    home: str = "",
    parent_run_id: str = "",
    fresh: bool = False,
    resume: str = "",
) -> Summary:
    """Train a model on a dataset version and register it; a stopped run continues, a finished one is reused.

    Args:
        config: model, schedule and length of the run.
        dataset: `name`, `name@version`, or empty for the newest.
        home: folder of all results; empty: ORCHESTRION_HOME or `.orchestrion`.
        parent_run_id: MLflow run this one belongs to.
        fresh: train again even if the same run is finished already.
        resume: run to extend, by folder, MLflow run id or model: it has the same settings, but more `config.n_steps`.
    """
    from tasks.training import resume as resuming  # brings torch, which a rebuild can do without
    from tasks.training import steps
    from tasks.training.job import make_job, run_dir_of, settled
    from tasks.training.runs import claim_run, finish_run, finished_model, start_run

    check_trigger(config)
    where, started = Home.at(home), time.monotonic()
    with where.locked("train"):
        parent = resuming.find_parent(where, resume) if resume else None
        if parent:
            resuming.check_extension(parent, config, dataset)
        tracker, version = Tracker(where), resolve_dataset(where, parent.dataset if parent else dataset)
        config = settled(config)
        if parent and parent.config == config:  # it was stopped: there is nothing to extend, it goes on
            folder, parent = parent.folder, None
        else:
            folder = run_dir_of(where, config, version, resuming.identity(parent, config))
        claim = claim_run(folder, config, version, tracker, fresh)
        job = make_job(config, version, claim.folder)
        model = finished_model(claim, tracker)
        reused = model is not None
        if model:
            logger.info("model %s is reused: run %s is finished; `fresh` trains anew", model.reference, claim.run_id)
        if model is None:
            tags = run_tags() | {"orchestrion.preset": config.preset}
            if parent:
                tags |= {"orchestrion.extends": parent.folder.name}
                resuming.begin_from(parent, config, claim.folder)
            elif not claim.folder.exists():
                resuming.tell_apart(where, claim.folder, config, version)
            with tracker.open_run(
                "orchestrion/training", claim.folder.name, tags, parent_run_id, claim.run_id, watches_machine=True
            ) as run:
                start_run(claim, run)
                log_training_start(run, config, version)
                result = steps.fit_model(job, run)
                model = steps.register_model(run, result, version, where, config)
                finish_run(claim, run, model)
                log_training_end(run, model, result)
        summary = training_summary(where, model, claim.folder) | {
            "reused": reused,
            "seconds": since(started),
        }
        publish_summary(artifact_key("train", model.name), training_card(summary))
        return summary
