"""The Prefect tasks of a batch."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.config.generation import GenerateConfig
from tasks.generation import generate
from tasks.runtime.prefect_tasks import HEALS, show_progress
from tasks.runtime.progress import Progress
from tasks.storage.home import Home
from tasks.tracking.mlflow_tracker import ModelVersion, Tracker


@task(name="read-request", cache_policy=NO_CACHE)
def read_request(home: Home, model: ModelVersion, config: GenerateConfig) -> generate.Request:
    """Load the model and the prompts of a batch."""
    with Progress("loading the model and the prompts"):
        return generate.read_request(home, model, Tracker(home).fetch(model), config)


@task(name="compose-batch", **HEALS)
def compose_batch(request: generate.Request, fresh: bool = False) -> generate.Batch:
    """Compose, render and publish a batch."""
    return generate.generate_batch(request, fresh=fresh, show=show_progress)
