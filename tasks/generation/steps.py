"""The Prefect tasks of a batch."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.checkpoints import load_model
from tasks.config.generation import GenerateConfig
from tasks.generation import generate
from tasks.generation.prompts import read_prompts
from tasks.runtime.prefect_tasks import HEALS, show_progress
from tasks.runtime.progress import Progress
from tasks.storage.home import Home
from tasks.tracking.mlflow_tracker import ModelVersion, Tracker


@task(name="find-batch", cache_policy=NO_CACHE)
def find_same_batch(home: Home, model: ModelVersion, config: GenerateConfig) -> generate.Batch | None:
    """Return the batch if the very same was composed already."""
    with Progress("loading the model and the prompts"):
        checkpoint = Tracker(home).fetch(model)
        prompts = read_prompts(load_model(checkpoint), config, home)
    return generate.find_whole_batch(home, generate.batch_name(model, config, prompts, checkpoint))


@task(name="compose-batch", **HEALS)
def compose_batch(home: Home, model: ModelVersion, config: GenerateConfig, fresh: bool = False) -> generate.Batch:
    """Compose, render and publish a batch."""
    return generate.generate_batch(home, model, Tracker(home).fetch(model), config, fresh=fresh, show=show_progress)
