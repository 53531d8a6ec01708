"""The flow that composes a batch of pieces."""

import logging
import time

from prefect import flow

from flows.run_context import Summary, run_tags, since
from flows.triggers import check_trigger
from tasks.config.generation import GenerateConfig
from tasks.config.serialization import to_json
from tasks.generation.summary import batch_card, batch_summary, log_batch
from tasks.runtime.prefect_tasks import artifact_key, publish_summary
from tasks.storage.home import Home
from tasks.tracking.mlflow_tracker import Tracker

logger = logging.getLogger(__name__)


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
    from tasks.generation import steps
    from tasks.generation.generate import find_whole_batch

    check_trigger(config)
    where, started = Home.at(home), time.monotonic()
    with where.locked("generate"):
        tracker = Tracker(where)
        chosen = tracker.model(model)
        request = steps.read_request(where, chosen, config)
        batch = None if fresh else find_whole_batch(where, request.name)
        reused = batch is not None
        run_id = batch.logged_run() if batch else ""
        if reused:
            logger.info("batch %s is reused; `fresh` composes again", batch.name if batch else "")
        if batch is None or not run_id:
            with tracker.open_run(
                "orchestrion/generation", f"generate-{chosen.reference}", run_tags(), parent_run_id
            ) as run:
                run.log_params(to_json(config), "generate")
                run.use_model(chosen)
                batch = batch or steps.compose_batch(request, fresh)
                log_batch(run, batch)
            run_id = run.run_id
            batch.note_run(run_id)
        summary = batch_summary(batch) | {
            "run_id": run_id,
            "reused": reused,
            "seconds": since(started),
        }
        publish_summary(artifact_key("generate", chosen.name), batch_card(batch))
        return summary
