"""The Prefect tasks of an evaluation."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.checkpoints import LoadedModel, load_model
from tasks.config.evaluation import EvaluateConfig
from tasks.dataset.versions import DatasetVersion
from tasks.evaluation import evaluate as evaluation
from tasks.runtime.prefect_tasks import show_progress
from tasks.runtime.progress import Progress
from tasks.storage.home import Home
from tasks.tracking.mlflow_tracker import ModelVersion, Tracker


@task(name="load-model", cache_policy=NO_CACHE)
def load_registered(model: ModelVersion, home: Home) -> LoadedModel:
    """Load a registered model's weights."""
    with Progress("loading the model"):
        return load_model(Tracker(home).fetch(model))


@task(name="score-model", cache_policy=NO_CACHE)
def score_model(loaded: LoadedModel, dataset: DatasetVersion, config: EvaluateConfig) -> evaluation.Evaluation:
    """Score held-out music and compare free samples with it."""
    return evaluation.evaluate_model(loaded, dataset, config, show=show_progress)
