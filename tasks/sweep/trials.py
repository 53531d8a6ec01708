"""Training runs on Ray Tune: scheduling, cores and early stopping. No arithmetic here.

Each trial is a process that runs `run_steps`, the loop of the `train` flow, in that run's own folder. The points are
fixed before Tune starts; what Tune brings is the queue, the processes, retries of those that die, and ASHA.
"""

import functools
import logging
import math
import os
import queue
import shutil
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from tasks.errors import ConfigError, Diverged, OrchestrionError, words_of
from tasks.runtime import cluster
from tasks.runtime.signals import SAVE_SECONDS, stop_on_signals
from tasks.training.job import TrainJob
from tasks.training.metrics_log import MetricsTail, read_points
from tasks.training.trainer import read_progress
from tasks.training.worker import run_steps

logger = logging.getLogger(__name__)

REDUCTION = 3  # of the points that reach a rung, about one in so many goes on
_GRACE_SHARE = 9  # no point is stopped before this part of the longest run
_QUIET = {  # Tune writes no log files of its own, and prints nothing
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # the last word of a failed trial has no loss
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


@dataclass(frozen=True, slots=True)
class Event:
    """What happened to a trial: it began, wrote points of its curves, or ended.

    Args:
        outcome: of one that ended.
        reason: one line, where it failed.
    """

    index: int
    points: tuple[dict[str, float], ...] = ()
    outcome: Literal["", "trained", "stopped", "interrupted", "failed"] = ""
    reason: str = ""


def share_cores(jobs: Sequence[TrainJob], concurrent: int) -> list[TrainJob]:
    """Return the jobs with their shares of the cores; ConfigError where `concurrent` of them need more cores."""
    n_cores = cluster.n_cluster_cpus()
    shared = []
    for job in jobs:
        n_threads = job.config.cpus_per_worker or max(1, n_cores // concurrent)
        if n_threads * concurrent > n_cores:
            raise ConfigError(
                f"concurrent={concurrent} points x {n_threads} cores each are more than the {n_cores} cores there are"
            )
        shared.append(replace(job, n_threads=n_threads))
    return shared


def run_trials(
    jobs: Mapping[int, TrainJob], concurrent: int, past: Mapping[int, Path] | None = None
) -> Generator[Event, None, None]:
    """Train the jobs and yield what happens, in this thread; SIGINT and SIGTERM save and end all of them.

    Close the iterator when leaving it early, so that no trial is left at work.

    Args:
        jobs: by any number, in the order in which they are to run.
        past: run folders of points that ended in an earlier attempt; if given, ASHA stops what is behind these and
            the others.
    """
    cluster.connect()  # before the handlers below, and in this thread; see tasks/training/trainer.py
    state = _State(jobs)
    tuner = threading.Thread(target=_tune, args=(state, concurrent, past), name="ray-tune", daemon=True)
    tails: dict[int, MetricsTail] = {}
    ended = set[int]()
    gave_up = False
    with stop_on_signals(state.request_stop) as stop:
        tuner.start()
        try:
            while True:
                alive = tuner.is_alive()
                for event in _drain(state.events):
                    if not event.outcome:
                        tails[event.index] = MetricsTail(jobs[event.index].metrics)
                        yield event
                        continue
                    ended.add(event.index)
                    jobs[event.index].begun.unlink(missing_ok=True)
                    yield from _new_points({event.index: tails.pop(event.index)})
                    yield event
                yield from _new_points(tails)
                at_work = [index for index in state.started if index not in ended and jobs[index].begun.exists()]
                gave_up = alive and (stop.is_overdue or (bool(stop) and not at_work))
                if not alive or gave_up:
                    break
                tuner.join(0.25)
                cluster.require_servers()
        finally:
            if tuner.is_alive():
                state.request_stop()
                tuner.join(0 if gave_up else SAVE_SECONDS)
            if tuner.is_alive():  # it waits for a server that died, or for a worker in a long step
                cluster.disconnect()
    if gave_up:
        return  # what had not ended is still to be trained, as its row says
    if state.failure:
        raise state.failure[0]


def _drain(events: "queue.SimpleQueue[Event]") -> Iterator[Event]:
    while not events.empty():
        yield events.get()


def _new_points(tails: Mapping[int, MetricsTail]) -> Iterator[Event]:
    for index, tail in tails.items():
        if points := tail.new_points():
            yield Event(index, tuple(points))


@dataclass(slots=True)
class _State:
    """What the thread of Tune and the one that reads the events share."""

    jobs: Mapping[int, TrainJob]
    events: "queue.SimpleQueue[Event]" = field(default_factory=queue.SimpleQueue)
    started: list[int] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)
    failure: list[BaseException] = field(default_factory=list)

    def __reduce__(self) -> Any:
        return (_State, ({},))  # Tune writes its own state down, to be restored; a sweep goes on from the run folders

    def begin(self, index: int) -> bool:
        """Make a run's folder ready; return False after a request to stop, even one at this moment."""
        self.started.append(index)
        self.jobs[index].prepare()
        return not self.stop.is_set()

    def request_stop(self) -> None:
        self.stop.set()
        for index in list(self.started):
            self.jobs[index].stop_request.touch()

    def outcome(self, index: int, result: Mapping[str, Any] | None) -> Event:
        """Return how a trial ended, from its last report and its files."""
        if reason := (result or {}).get("failed"):
            return Event(index, outcome="failed", reason=reason)
        if read_progress(self.jobs[index].run_dir)["step"] >= self.jobs[index].config.n_steps:
            return Event(index, outcome="trained")
        return Event(index, outcome="interrupted" if self.stop.is_set() else "stopped")


def _tune(state: _State, concurrent: int, past: Mapping[int, Path] | None) -> None:
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    from ray import tune

    first = next(iter(state.jobs.values()))
    storage = first.run_dir.parent / ".tune"
    shutil.rmtree(storage, ignore_errors=True)  # of a sweep that was killed; Tune would take it up again
    scheduler = _asha(list(state.jobs.values()), past) if past is not None else None
    searcher, listener = _queue_classes(state)
    try:
        tune.Tuner(
            tune.with_resources(
                functools.partial(train_point, jobs=dict(state.jobs)), _resources(first.n_threads, concurrent)
            ),
            tune_config=tune.TuneConfig(
                search_alg=searcher, scheduler=scheduler, num_samples=len(state.jobs), max_concurrent_trials=concurrent
            ),
            run_config=tune.RunConfig(
                name="trials",
                storage_path=str(storage),
                verbose=0,
                callbacks=[listener],
                failure_config=tune.FailureConfig(max_failures=first.config.max_failures),
            ),
        ).fit()
    except BaseException as error:
        state.failure.append(error)
    finally:
        shutil.rmtree(storage, ignore_errors=True)


def _resources(n_threads: int, concurrent: int) -> dict[str, float]:
    import ray

    n_gpus = ray.cluster_resources().get("GPU", 0) if torch.cuda.is_available() else 0
    return {"CPU": n_threads} | ({"GPU": min(1.0, n_gpus / concurrent)} if n_gpus else {})


def _asha(jobs: Sequence[TrainJob], past: Mapping[int, Path]) -> Any:
    """Return a scheduler that knows the validation losses of earlier points, as if it had seen them come."""
    from types import SimpleNamespace

    from ray.tune.schedulers import ASHAScheduler

    longest = max(job.config.n_steps for job in jobs)
    grace = max(*(job.config.eval_interval for job in jobs), longest // _GRACE_SHARE, 1)
    scheduler = ASHAScheduler(
        time_attr="step", metric="val/loss", mode="min", max_t=max(longest, grace), grace_period=grace,
        reduction_factor=REDUCTION, stop_last_trials=False,
    )  # fmt: skip
    for number, folder in past.items():
        trial: Any = SimpleNamespace(trial_id=f"past-{number}")
        controller: Any = None
        scheduler.on_trial_add(controller, trial)
        for point in read_points(folder / "metrics.jsonl"):
            if math.isfinite(point.get("val/loss", math.nan)):
                scheduler.on_trial_result(controller, trial, point)
    return scheduler


def _queue_classes(state: _State) -> tuple[Any, Any]:
    """Return a searcher that hands out the jobs in order until a request to stop, and a callback for events."""
    from ray import tune
    from ray.tune.search import Searcher

    class InOrder(Searcher):
        def __init__(self) -> None:
            super().__init__(metric="val/loss", mode="min")
            self.waiting = list(state.jobs)

        def suggest(self, trial_id: str) -> Any:
            if not self.waiting or state.stop.is_set():
                return Searcher.FINISHED
            index = self.waiting.pop(0)
            return {"index": index} if state.begin(index) else Searcher.FINISHED

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            pass

        def save(self, checkpoint_path: str) -> None:
            pass  # a sweep goes on from the run folders, not from Tune's state

        def restore(self, checkpoint_path: str) -> None:
            pass

    class Listener(tune.Callback):
        def __init__(self) -> None:
            self.begun: set[int] = set()

        def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            index = trial.config["index"]
            if index not in self.begun:  # else it is a retry
                self.begun.add(index)
                state.events.put(Event(index))

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            state.events.put(state.outcome(trial.config["index"], trial.last_result))

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            index = trial.config["index"]
            reason = "its process died again and again, perhaps out of memory"
            ended = state.outcome(index, trial.last_result)
            state.events.put(ended if ended.outcome == "trained" else Event(index, outcome="failed", reason=reason))

    return InOrder(), Listener()


def train_point(settings: dict[str, Any], jobs: Mapping[int, TrainJob]) -> None:
    """Run the steps that are left of a trial's job; an error is reported as its last result."""
    from ray import tune

    job = jobs[settings["index"]]

    def on_evaluation(step: int, loss: float) -> None:
        if not math.isfinite(loss):
            raise Diverged(f"val/loss is {loss} at step {step} of {job.config.n_steps}")
        tune.report({"step": step, "val/loss": loss})

    try:
        run_steps(job, device=torch.device("cuda" if torch.cuda.is_available() else "cpu"), on_evaluation=on_evaluation)
    except OrchestrionError as error:
        tune.report({"failed": str(error)})
    except Exception as error:
        logger.exception("point %d failed", settings["index"])
        tune.report({"failed": f"{type(error).__name__}: {words_of(error)}"})
