"""The Prefect tasks of a training run."""

import logging
from collections.abc import Mapping

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.checkpoints import exported
from tasks.config.training import TrainConfig
from tasks.dataset.versions import DatasetVersion
from tasks.runtime.prefect_tasks import HEALS, show_progress
from tasks.runtime.progress import Progress
from tasks.storage.home import Home
from tasks.tracking.mlflow_tracker import CurveLog, ModelVersion, Run
from tasks.training import trainer

logger = logging.getLogger(__name__)


@task(name="fit-model", **HEALS)
def fit_model(job: trainer.TrainJob, run: Run) -> trainer.TrainResult:
    """Train, sending curves to the tracker as they grow; a retry continues from the last checkpoint."""
    done = trainer.read_progress(job.run_dir)["step"]
    if done:
        logger.info("training goes on from step %d", done)
    with show_progress("training", job.config.n_steps, "steps", done) as progress:
        curves = CurveLog(run)

        def on_points(points: list[dict[str, float]]) -> None:
            curves.add(points)
            for point in points:
                progress.advance(max(int(point["step"]) - progress.done, 0), _said_of(point))

        result = trainer.fit(job, on_points)
    curves.close()
    return result


def _said_of(point: Mapping[str, float]) -> str:
    if "train/loss" not in point:
        return ""
    return f"loss {point['train/loss']:.3f}, {point['train/tokens_per_second']:,.0f} tokens/s of training"


@task(name="register-model", cache_policy=NO_CACHE)
def register_model(
    run: Run, result: trainer.TrainResult, dataset: DatasetVersion, home: Home, config: TrainConfig
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
