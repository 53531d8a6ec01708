"""The Prefect tasks of a sweep. Each point is a run as the `train` flow makes it."""

import logging
import math
from collections.abc import Mapping, Sequence, Set
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.checkpoints import read_state
from tasks.dataset.versions import DatasetVersion
from tasks.errors import Interrupted
from tasks.runtime.cluster import n_cpus
from tasks.runtime.prefect_tasks import show_progress
from tasks.runtime.progress import Progress
from tasks.storage.home import Home
from tasks.storage.parquet import check_shards
from tasks.sweep import space
from tasks.sweep.space import Point, Row, SweepConfig, SweepFolder
from tasks.sweep.trials import Event, run_trials, share_cores
from tasks.tracking.mlflow_tracker import CurveLog, ModelVersion, Run
from tasks.training.job import TrainJob, divergence_of, make_job, run_dir_of, settled
from tasks.training.metrics_log import read_points
from tasks.training.runs import Claim, claim_run, finish_run, finished_model, start_run
from tasks.training.steps import register_model
from tasks.training.summary import log_training_end, log_training_start
from tasks.training.trainer import result_of

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Training:
    """One training run of a sweep, which points that differ in their evaluation share."""

    point: Point
    claim: Claim
    rows: list[Row]
    job: TrainJob
    open_run: AbstractContextManager[Run] | None = None
    run: Run | None = None
    curves: CurveLog | None = None
    step: int = 0


@dataclass(slots=True)
class _Sweep:
    """What the handling of events needs at hand."""

    home: Home
    dataset: DatasetVersion
    parent: Run
    tags: Mapping[str, str]
    folder: SweepFolder
    rows: list[Row]
    progress: Progress | None = None
    trainings: dict[int, _Training] = field(default_factory=dict)
    past: dict[int, Path] = field(default_factory=dict)  # run folders of points that have ended


@task(name="train-points", cache_policy=NO_CACHE)
def train_points(
    home: Home,
    dataset: DatasetVersion,
    points: Sequence[Point],
    plan: SweepConfig,
    folder: SweepFolder,
    parent: Run,
    tags: Mapping[str, str],
) -> list[Row]:
    """Train every point that has not ended yet, and return one row for each point, in their order.

    Raises Interrupted after SIGINT or SIGTERM; the work is saved, and the same sweep continues.
    """
    points = [replace(p, config=replace(p.config, train=settled(p.config.train))) for p in points]
    work = _Sweep(home, dataset, parent, tags, folder, folder.read_rows(points))
    _claim_trainings(work, points)
    jobs = share_cores([training.job for training in work.trainings.values()], plan.concurrent)
    for training, job in zip(work.trainings.values(), jobs, strict=True):
        training.job = job
    folder.write_rows(work.rows)
    if work.trainings:
        logger.info("sweep %s: %d of %d points to train", folder.root.name, len(work.trainings), len(points))
        _run(work, plan)
    unfinished = sum(row["status"] in (space.WAITING, space.INTERRUPTED) for row in work.rows)
    if unfinished:
        raise Interrupted(
            f"sweep stopped with {unfinished} of {len(points)} points still to train; saved, the same command goes on"
        )
    return work.rows


def _claim_trainings(work: _Sweep, points: Sequence[Point]) -> None:
    """Find which training run each point needs, and which of them are done already."""
    tracker = work.parent.tracker
    registered = {model.reference for model in tracker.models()}
    by_folder: dict[Path, _Training] = {}
    for place, point in enumerate(points):
        row = work.rows[place]
        folder = work.home.runs / row["run_dir"]
        if _has_ended(row, folder, registered):
            work.past[point.number] = folder
            continue
        row = work.rows[place] = space.new_row(point)
        claim = claim_run(
            run_dir_of(work.home, point.config.train, work.dataset), point.config.train, work.dataset, tracker
        )
        row["run_dir"] = claim.folder.name
        model = finished_model(claim, tracker)
        if model:
            _set_trained(work, row, claim, model)
            work.past[point.number] = claim.folder
        elif claim.folder in by_folder:
            by_folder[claim.folder].rows.append(row)
        else:
            job = make_job(point.config.train, work.dataset, claim.folder)
            by_folder[claim.folder] = _Training(point, claim, [row], job)
    work.trainings = {training.point.number: training for training in by_folder.values()}


def _has_ended(row: Row, folder: Path, registered: Set[str]) -> bool:
    """Return whether a point is not to be tried again; one that failed is, unless it diverged and would do so again."""
    if row["status"] == space.FINISHED:
        return row["model_version"] in registered
    if row["status"] == space.FAILED:
        losses = [point["val/loss"] for point in read_points(folder / "metrics.jsonl") if "val/loss" in point]
        return divergence_of(folder).exists() or (bool(losses) and not math.isfinite(losses[-1]))
    return row["status"] == space.STOPPED


def _run(work: _Sweep, plan: SweepConfig) -> None:
    jobs = {number: training.job for number, training in work.trainings.items()}
    check_shards([shard for job in list(jobs.values())[:1] for shard in job.shards], n_cpus())  # the same of all
    total = sum(job.config.n_steps for job in jobs.values())
    events = run_trials(jobs, plan.concurrent, work.past if plan.early_stopping else None)
    error: BaseException = Interrupted("the sweep was stopped before their first step")  # of runs without an outcome
    with show_progress("sweep", total, "steps") as work.progress, closing(events):
        try:
            for event in events:
                training = work.trainings[event.index]
                if event.points:
                    _log_points(work, training, event)
                elif event.outcome:
                    _end(work, training, event)
                    work.folder.write_rows(work.rows)
                else:
                    _begin(work, training)
        except BaseException as raised:
            error = raised
            raise
        finally:
            for training in work.trainings.values():
                _close(training, error)


def _begin(work: _Sweep, training: _Training) -> None:
    tracker, claim, config = work.parent.tracker, training.claim, training.point.config.train
    tags = {**work.tags, "orchestrion.preset": config.preset, "orchestrion.sweep": work.folder.root.name}
    training.open_run = tracker.open_run(
        "orchestrion/training", claim.folder.name, tags, work.parent.run_id, claim.run_id
    )
    training.run = training.open_run.__enter__()
    training.curves = CurveLog(training.run)
    if claim.run_id:  # begun by an earlier attempt, or by `train`
        training.run.log_tags({"mlflow.parentRunId": work.parent.run_id, "orchestrion.sweep": work.folder.root.name})
    start_run(claim, training.run)
    log_training_start(training.run, config, work.dataset)
    for row in training.rows:
        row["run_id"] = training.run.run_id
    logger.info("point %d begins: %s", training.point.number, training.point.settings)


def _log_points(work: _Sweep, training: _Training, event: Event) -> None:
    assert training.curves is not None
    training.curves.add(event.points)
    last = event.points[-1]
    loss = next((point["val/loss"] for point in reversed(event.points) if "val/loss" in point), None)
    note = f"point {training.point.number}" + (f" val/loss {loss:.3f}" if loss is not None else "")
    if work.progress:
        work.progress.advance(max(int(last["step"]) - training.step, 0), note)
    training.step = max(training.step, int(last["step"]))


def _end(work: _Sweep, training: _Training, event: Event) -> None:
    if event.outcome == "trained":
        _register(work, training)
        return
    logger.info("point %d %s: %s %s", training.point.number, event.outcome, training.point.settings, event.reason)
    for row in training.rows:
        row.update(_progress_of(training.claim.folder), status=event.outcome)
        if event.outcome == "failed":
            space.set_failed(row, event.reason)
    if training.run:
        training.run.log_tags({"orchestrion.outcome": event.outcome})
    error = RuntimeError(event.reason) if event.outcome == "failed" else Interrupted(event.outcome)
    _close(training, error)


def _register(work: _Sweep, training: _Training) -> None:
    assert training.run is not None
    assert training.curves is not None
    training.curves.close()
    result = result_of(training.claim.folder)
    model = register_model(training.run, result, work.dataset, work.home, training.point.config.train)
    finish_run(training.claim, training.run, model)
    log_training_end(training.run, model, result)
    _close(training, None)
    for row in training.rows:
        _set_trained(work, row, training.claim, model)


def _close(training: _Training, error: BaseException | None) -> None:
    """Close a training's run in the tracker; `error` decides how it is marked."""
    open_run, training.open_run = training.open_run, None
    if open_run:
        open_run.__exit__(type(error) if error else None, error, None)


def _set_trained(work: _Sweep, row: Row, claim: Claim, model: ModelVersion) -> None:
    state = read_state(work.parent.tracker.fetch(model))
    row |= {
        "status": space.TRAINED,
        "model_version": model.reference,
        "run_id": model.run_id,
        "n_parameters": state["n_parameters"],
        **_progress_of(claim.folder),
    }


def _progress_of(run_dir: Path) -> Row:
    """Return the step a run reached and its lowest validation loss."""
    points = read_points(run_dir / "metrics.jsonl")
    losses = [point["val/loss"] for point in points if math.isfinite(point.get("val/loss", math.nan))]
    return {"step": int(max((p["step"] for p in points), default=0)), "val_loss": min(losses, default=None)}
