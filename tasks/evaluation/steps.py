"""The Prefect tasks of an evaluation."""

from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.checkpoints import LoadedModel, load_model
from tasks.config.evaluation import EvaluateConfig
from tasks.dataset.versions import DatasetVersion
from tasks.evaluation import evaluate as evaluation
from tasks.runtime import cluster
from tasks.runtime.devices import check_workers, device_of, explained_memory, place_here_or_on_ray
from tasks.runtime.prefect_tasks import show_progress
from tasks.runtime.progress import Progress
from tasks.storage.home import Home
from tasks.tracking.mlflow_tracker import ModelVersion, Tracker

PREFIX = "evaluate."
LESS_MEMORY = "lower evaluate.batch_size, evaluate.n_samples or evaluate.seq_len"


@task(name="load-model", cache_policy=NO_CACHE)
def load_registered(model: ModelVersion, home: Home, config: EvaluateConfig) -> LoadedModel:
    """Load a registered model's weights onto the device of the settings, or in a cluster into this process."""
    placement = place_here_or_on_ray(PREFIX, config.device)
    check_workers(PREFIX, placement)
    with Progress("loading the model"):
        return load_model(Tracker(home).fetch(model), device_of(placement.own_device))


@task(name="score-model", cache_policy=NO_CACHE)
def score_model(loaded: LoadedModel, dataset: DatasetVersion, config: EvaluateConfig) -> evaluation.Evaluation:
    """Score held-out music and compare free samples with it."""
    placement = place_here_or_on_ray(PREFIX, config.device)
    if placement.on_ray:
        with Progress("evaluating on Ray"):
            return cluster.run_apart(_score, loaded.folder, dataset, config, options=placement.ray_options)
    with explained_memory(LESS_MEMORY):
        return evaluation.evaluate_model(loaded, dataset, config, show=show_progress)


def _score(checkpoint: Path, dataset: DatasetVersion, config: EvaluateConfig) -> evaluation.Evaluation:
    with explained_memory(LESS_MEMORY):
        return evaluation.evaluate_model(load_model(checkpoint, device_of("cuda")), dataset, config)
