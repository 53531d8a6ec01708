"""Training runs side by side on Ray: order, cores, retries and early stopping. No arithmetic of learning here.

Each trial is a process that runs `run_steps`, the loop of the `train` flow, in that run's own folder. A trial that may
be stopped early compares itself with the others by the curves in their folders.
"""

import logging
import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tasks.errors import ConfigError, Diverged, OrchestrionError, words_of
from tasks.runtime import cluster
from tasks.runtime.devices import check_workers, device_of, explained_memory, shared
from tasks.runtime.signals import SAVE_SECONDS, stop_on_signals
from tasks.training.job import TrainJob, is_ended
from tasks.training.metrics_log import MetricsTail
from tasks.training.trainer import read_progress
from tasks.training.worker import less_memory, run_steps

logger = logging.getLogger(__name__)

REDUCTION = 3  # of the points that reach a rung, about one in so many continues
_GRACE_SHARE = 9  # no point is stopped before this part of the longest run


@dataclass(frozen=True, slots=True)
class Event:
    """A trial began, wrote points of its curves, or ended with an outcome and, if it failed, a reason of one line."""

    index: int
    points: tuple[dict[str, float], ...] = ()
    outcome: Literal["", "trained", "stopped", "interrupted", "failed"] = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Halving:
    """Asynchronous successive halving (ASHA, Li et al. 2018).

    Args:
        grace: steps of the first rung; each further one has `REDUCTION` times as many.
        folders: of all runs that are compared.
    """

    grace: int
    folders: tuple[Path, ...]

    @classmethod
    def of(cls, jobs: Sequence[TrainJob], past: Mapping[int, Path]) -> "Halving":
        """Return the rungs of some jobs, compared with each other and with runs of earlier attempts."""
        longest = max(job.config.n_steps for job in jobs)
        grace = max(*(job.config.eval_interval for job in jobs), longest // _GRACE_SHARE, 1)
        return cls(grace, (*past.values(), *(job.run_dir for job in jobs)))

    def is_behind(self, job: TrainJob, step: int, loss: float) -> bool:
        """Return whether a run reaches a rung with a validation loss above the best third of those that did before."""
        rung = self.grace
        while rung * REDUCTION <= step:
            rung *= REDUCTION
        if not rung <= step < min(rung + job.config.eval_interval, job.config.n_steps):
            return False
        others = [_loss_at(folder, rung) for folder in self.folders if folder != job.run_dir]
        known = [other for other in others if other is not None]
        return bool(known) and loss > np.percentile(known, 100 / REDUCTION)


def _loss_at(folder: Path, rung: int) -> float | None:
    points = MetricsTail(folder / "metrics.jsonl").new_points()
    reached = (point["val/loss"] for point in points if point["step"] >= rung and "val/loss" in point)
    return next(filter(math.isfinite, reached), None)


class _Behind(Exception):
    """The trial is stopped early."""


def share_cores(jobs: Sequence[TrainJob], concurrent: int) -> list[TrainJob]:
    """Return the jobs with their shares of cores and GPUs; ConfigError where `concurrent` of them need more cores."""
    n_cores = cluster.n_cluster_cpus()
    shares = []
    for job in jobs:
        n_threads = job.config.cpus_per_worker or max(1, n_cores // concurrent)
        if n_threads * concurrent > n_cores:
            raise ConfigError(
                f"concurrent={concurrent} points x {n_threads} cores each are more than the {n_cores} cores there are"
            )
        shares.append(replace(job, n_threads=n_threads, placement=shared(job.placement, concurrent)))
    return shares


def run_trials(
    jobs: Mapping[int, TrainJob], concurrent: int, past: Mapping[int, Path] | None = None
) -> Generator[Event, None, None]:
    """Train the jobs and yield what happens; SIGINT and SIGTERM save and end all of them.

    Close the iterator when leaving it early, so that no trial is left at work.

    Args:
        jobs: by any number, in the order in which they are to run.
        past: run folders of points that ended in an earlier attempt; if given, ASHA stops what is behind these and
            the others.
    """
    import ray

    cluster.connect()  # before the handlers of signals
    for job in list(jobs.values())[:1]:  # all have the same workers
        check_workers("train.", job.placement)
    halving = Halving.of(list(jobs.values()), past) if past is not None else None
    waiting, tails, pending = list(jobs), dict[int, MetricsTail](), dict[Any, int]()
    patience = SAVE_SECONDS

    def request_stop() -> None:
        for index in tails:
            jobs[index].stop_request.touch()

    with stop_on_signals(request_stop) as stop:
        try:
            while pending or (waiting and not stop):
                if waiting and len(pending) < concurrent and not stop:
                    index = waiting.pop(0)
                    jobs[index].prepare()
                    tails[index] = MetricsTail(jobs[index].metrics)
                    if not stop:  # even at this moment
                        pending[_trial(jobs[index]).remote(jobs[index], halving)] = index
                        yield Event(index)
                    continue
                done, _ = ray.wait(list(pending), timeout=0.25)
                yield from _new_points(tails)
                cluster.require_servers()
                for reference in done:
                    index = pending.pop(reference)
                    jobs[index].begun.unlink(missing_ok=True)
                    yield from _new_points({index: tails.pop(index)})
                    yield _outcome(index, jobs[index], reference, bool(stop))
                is_any_begun = any(jobs[index].begun.exists() for index in pending.values())
                if stop.is_overdue or (stop and not is_any_begun):  # what has not ended is trained by the next sweep
                    patience = 0.0
                    break
        except cluster.RayLost:
            patience = 0.0
            raise
        except SystemError as error:  # wraps what a signal's handler raised inside Ray's compiled code
            raise (error.__cause__ or error) from None
        finally:
            if pending:
                request_stop()
                left = ray.wait(list(pending), num_returns=len(pending), timeout=patience)[1] if patience else pending
                if left:  # they wait for a server that died, or are in a long step
                    cluster.disconnect()


def _trial(job: TrainJob) -> Any:
    """Return `train_trial` for Ray, in a process of its own, begun again as often as the job's settings allow."""
    import ray

    options = {"num_cpus": job.n_threads, "max_calls": 1, "max_retries": job.config.max_failures}
    return ray.remote(**options, **job.placement.ray_options)(train_trial)


def _new_points(tails: Mapping[int, MetricsTail]) -> Iterator[Event]:
    for index, tail in tails.items():
        if points := tail.new_points():
            yield Event(index, tuple(points))


def _outcome(index: int, job: TrainJob, reference: Any, is_stopped: bool) -> Event:
    """Return how a trial ended, from what it returned and from its files."""
    import ray
    from ray.exceptions import RayError

    is_lost = False
    try:
        reason = str(ray.get(reference))
    except RayError:
        is_lost, reason = True, "its process died again and again, perhaps out of memory"
    if (is_lost or not reason) and is_ended(job.config, read_progress(job.run_dir)):
        return Event(index, outcome="trained")
    if reason:
        return Event(index, outcome="failed", reason=reason)
    return Event(index, outcome="interrupted" if is_stopped else "stopped")


def train_trial(job: TrainJob, halving: Halving | None) -> str:
    """Run the steps that are left of a job, and return why it failed; empty if it did not."""

    def on_evaluation(step: int, loss: float) -> None:
        if not math.isfinite(loss):
            raise Diverged(f"val/loss is {loss} at step {step} of {job.config.n_steps}")
        if halving and halving.is_behind(job, step, loss):
            raise _Behind

    try:
        with explained_memory(less_memory(job.config)):
            run_steps(job, device=device_of(job.placement.device), on_evaluation=on_evaluation)
    except _Behind:
        return ""
    except OrchestrionError as error:
        return str(error)
    except Exception as error:
        logger.exception("the run in %s failed", job.run_dir)
        return f"{type(error).__name__}: {words_of(error)}"
    return ""
