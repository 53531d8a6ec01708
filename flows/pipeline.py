"""The flow that chains rebuild, train, evaluate and generate.

Deployments registered before 2026-12 name all five flows in this module.
"""

import logging
import time

from prefect import flow

from flows import pipeline_summary
from flows.evaluate import evaluate
from flows.generate import generate
from flows.rebuild_dataset import rebuild_dataset
from flows.run_context import Summary, run_tags, since
from flows.train import train
from flows.triggers import check_trigger
from tasks.config.pipeline import PipelineConfig
from tasks.runtime.prefect_tasks import publish_summary
from tasks.storage.home import Home
from tasks.tracking.mlflow_tracker import Tracker

logger = logging.getLogger(__name__)


@flow(name="pipeline")
def pipeline(config: PipelineConfig = PipelineConfig(), home: str = "", fresh: bool = False) -> Summary:
    """Rebuild the dataset, train on it, evaluate the model, compose a batch.

    Args:
        config: one section for each stage.
        home: folder of all results; empty: ORCHESTRION_HOME or `.orchestrion`.
        fresh: train and compose again even where the same is finished already.
    """
    check_trigger(config)
    where, started = Home.at(home), time.monotonic()
    root = str(where.root)
    with where.locked("pipeline"):
        tags = run_tags() | {"orchestrion.preset": config.train.preset}
        with Tracker(where).open_run("orchestrion/training", f"pipeline-{config.train.preset}", tags) as run:
            dataset = rebuild_dataset(config.dataset, root, run.run_id)
            reference = f"{dataset['dataset']}@{dataset['dataset_version']}"
            trained = train(config.train, reference, root, run.run_id, fresh)
            evaluated = evaluate(config.evaluate, trained["model_version"], reference, root, run.run_id)
            batch = generate(config.generate, trained["model_version"], root, run.run_id, fresh)
            summary = pipeline_summary.pipeline_summary(dataset, trained, evaluated, batch)
            pipeline_summary.log_pipeline(run, summary)
        publish_summary("pipeline", pipeline_summary.pipeline_card(summary))
        return summary | {"pipeline_run_id": run.run_id, "seconds": since(started)}
