"""The stages that work with models as Prefect tasks; see `steps.py`."""

import logging
from collections.abc import Mapping

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks import evaluate as evaluation
from tasks import generate, train
from tasks.checkpoints import LoadedModel, exported, load_model
from tasks.config.evaluation import EvaluateConfig
from tasks.config.generation import GenerateConfig
from tasks.config.training import TrainConfig
from tasks.dataset.versions import DatasetVersion
from tasks.prompts import read_prompts
from tasks.runtime.prefect_tasks import HEALS, show_progress
from tasks.runtime.progress import Progress
from tasks.storage.home import Home
from tasks.tracking.mlflow_tracker import CurveLog, ModelVersion, Run, Tracker

logger = logging.getLogger(__name__)


@task(name="fit-model", **HEALS)
def fit_model(job: train.TrainJob, run: Run) -> train.TrainResult:
    """Train, sending curves to the tracker as they come; a retry goes on from the last checkpoint."""
    done = train.read_progress(job.run_dir)["step"]
    if done:
        logger.info("training goes on from step %d", done)
    with show_progress("training", job.config.n_steps, "steps", done) as progress:
        curves = CurveLog(run)

        def on_points(points: list[dict[str, float]]) -> None:
            curves.add(points)
            for point in points:
                progress.advance(max(int(point["step"]) - progress.done, 0), _said_of(point))

        result = train.fit(job, on_points)
    curves.close()
    return result


def _said_of(point: Mapping[str, float]) -> str:
    if "train/loss" not in point:
        return ""
    return f"loss {point['train/loss']:.3f}, {point['train/tokens_per_second']:,.0f} tokens/s of training"


@task(name="register-model", cache_policy=NO_CACHE)
def register_model(
    run: Run, result: train.TrainResult, dataset: DatasetVersion, home: Home, config: TrainConfig
) -> ModelVersion:
    """Register the best checkpoint's weights, state and card as a new version of `<dataset>-<preset>`."""
    facts = {
        "preset": config.preset,
        "dataset": dataset.reference,
        "checkpoint": str(result.checkpoint.relative_to(home.root)),
        "val_loss": f"{result.metrics.get('val/loss', float('nan')):.5f}",
    }
    with Progress("registering the model"), exported(result.checkpoint, facts) as folder:
        return run.register_model(f"{dataset.name}-{config.preset}", folder, facts)


@task(name="load-model", cache_policy=NO_CACHE)
def load_registered(model: ModelVersion, home: Home) -> LoadedModel:
    """Load a registered model's weights."""
    with Progress("loading the model"):
        return load_model(Tracker(home).fetch(model))


@task(name="score-model", cache_policy=NO_CACHE)
def score_model(loaded: LoadedModel, dataset: DatasetVersion, config: EvaluateConfig) -> evaluation.Evaluation:
    """Score held-out music and compare free samples with it."""
    return evaluation.evaluate_model(loaded, dataset, config, show=show_progress)


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
