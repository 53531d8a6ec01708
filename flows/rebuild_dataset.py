"""The flow that turns sources into a dataset version."""

import logging
import time

from prefect import flow

from flows.run_context import Summary, run_tags, since
from flows.triggers import check_trigger
from tasks.config.dataset import DatasetConfig
from tasks.dataset import steps
from tasks.dataset.card import dataset_card
from tasks.dataset.summary import log_dataset
from tasks.runtime.prefect_tasks import artifact_key, publish_summary
from tasks.storage.home import Home
from tasks.tracking.mlflow_tracker import Tracker

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
    with where.locked("rebuild-dataset"):
        inputs = steps.find_inputs(config, where)
        dataset = steps.find_whole_version(where, inputs)
        if dataset and not dataset.report.exists():
            dataset = None  # killed after publishing: it is not yet reported
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
