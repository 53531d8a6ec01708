"""Ray Train around models/training.py: workers, checkpoints, clean stops. No arithmetic of learning here."""

import logging
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tasks.checkpoints import CheckpointFolder, read_state
from tasks.errors import Diverged, HomeError, Interrupted, OutOfMemory, cause_of, plural
from tasks.runtime import cluster
from tasks.runtime.devices import check_workers
from tasks.runtime.signals import SAVE_SECONDS, stop_on_signals
from tasks.runtime.silence import Silence
from tasks.storage.files import storage_problem
from tasks.storage.parquet import check_shards
from tasks.training.job import TrainJob, TrainResult, is_ended
from tasks.training.metrics_log import MetricsTail
from tasks.training.worker import worker_loop

logger = logging.getLogger(__name__)

RESIZE_SECONDS = 60.0  # between looks whether there is room for more workers of an elastic run


def fit(job: TrainJob, on_points: Callable[[list[dict[str, float]]], None]) -> TrainResult:
    """Train to the end on Ray Train, going on from the last checkpoint where there is one.

    Args:
        on_points: gets the metric points as they are written, in order, in this thread.
    Raises:
        DamagedFile: a token shard has other bytes than were written; the message names it.
        Interrupted: SIGINT or SIGTERM came; the state was saved first.
        Diverged: see `run_steps`; the last checkpoint is from before.
        OutOfMemory: a GPU's memory does not suffice; the message names what lowers the need.
        HomeError: the disk is full or cannot be written to; the last checkpoint is kept.
    """
    check_shards(job.shards, cluster.n_cpus())
    job.prepare()
    shutil.rmtree(job.run_dir / "ray", ignore_errors=True)  # of an attempt that was killed
    cluster.connect()
    check_workers("train.", job.placement)
    failure: list[BaseException] = []
    trainer = threading.Thread(target=_fit_in_thread, args=(job, failure), name="ray-train", daemon=True)
    with stop_on_signals(job.stop_request.touch) as stop:
        tail, silence = MetricsTail(job.metrics), Silence(lambda: _words_of_wait(job))
        trainer.start()
        try:
            while trainer.is_alive() and not stop.is_overdue:
                if stop and not job.begun.exists():  # it looks for the request after it has made this file
                    break
                trainer.join(0.25)
                points = tail.new_points()
                on_points(points)
                cluster.require_servers()
                silence.heard() if points else silence.look()
            on_points(tail.new_points())
        except cluster.RayLost:
            raise
        except Exception:  # the tracker's: a retry must not find this training still at work in the same folder
            job.stop_request.touch()
            trainer.join(SAVE_SECONDS)
            raise
        finally:
            if trainer.is_alive():  # it waits for a server that died, or for a worker in a long step
                cluster.abandon() if stop else cluster.disconnect()
            job.begun.unlink(missing_ok=True)
    return _outcome(job, stop.signal if stop else "", failure)


def _outcome(job: TrainJob, stopped_by: str, failure: list[BaseException]) -> TrainResult:
    """Return where a run ended; raise what ended it before its last step."""
    state = read_progress(job.run_dir)
    is_over = is_ended(job.config, state)
    if stopped_by and not is_over:
        raise Interrupted(f"training stopped by {stopped_by} {_words_of_progress(job, state['step'])}")
    if job.memory_note.exists():
        raise OutOfMemory(job.memory_note.read_text())
    if failure and not is_over:  # a worker that is lost after the last save has left nothing to do
        error = cause_of(failure[0])
        if problem := storage_problem(error):
            saved = f"{state['step']} of {job.config.n_steps}"
            raise HomeError(f"training stopped after step {saved}, which is saved: {problem}")
        raise error
    if job.divergence.exists():
        raise Diverged(job.divergence.read_text())
    if not is_over:
        raise Interrupted(f"training stopped by request {_words_of_progress(job, state['step'])}")
    if state["step"] < job.config.n_steps:
        n, metric = job.config.early_stopping_patience, job.config.early_stopping_metric
        logger.info(
            "training ended at step %d: %s in a row without a better %s", state["step"], plural(n, "validation"), metric
        )
    return result_of(job.run_dir)


def _words_of_progress(job: TrainJob, step: int) -> str:
    return f"at step {step} of {job.config.n_steps}; saved" if step else "before there was a step to save"


def _words_of_wait(job: TrainJob) -> str:
    """Return what a training that writes no points waits for."""
    import ray

    there, workers = ray.cluster_resources(), job.config.min_workers
    for noun, resource, each in (("core", "CPU", job.n_threads), ("GPU", "GPU", job.placement.gpus)):
        if (n := there.get(resource, 0)) < workers * each:
            wanted = f"{plural(workers, 'worker')} of {each:g} {noun}{'s' if each > 1 else ''} each"
            return f"waiting for {wanted}; {plural(int(n), noun)} there{cluster.words_of_nodes()}"
    return f"waiting for the next point{cluster.words_of_nodes()}"


def result_of(run_dir: Path) -> TrainResult:
    """Return where a finished run ended."""
    state = read_progress(run_dir)
    best = CheckpointFolder(run_dir / "checkpoints").find("best")
    assert best is not None
    return TrainResult(run_dir, best, state["step"], state["metrics"])


def read_progress(run_dir: Path) -> dict[str, Any]:
    """Return step and metrics of a run's last checkpoint; step 0 where there is none."""
    last = CheckpointFolder(run_dir / "checkpoints").find("last")
    return read_state(last) if last else {"step": 0, "metrics": {}}


def _fit_in_thread(job: TrainJob, failure: list[BaseException]) -> None:
    # In a thread, because fit() blocks and would put its own SIGINT handler in the main one, which aborts unsaved.
    storage = job.run_dir / "ray" / str(time.time_ns())  # one of its own: what is left of an attempt removes only that
    try:
        torch_trainer(job, storage).fit()
    except BaseException as error:
        failure.append(error)
    finally:
        shutil.rmtree(storage, ignore_errors=True)
        with suppress(OSError):  # another attempt's folder is there
            storage.parent.rmdir()


def torch_trainer(job: TrainJob, storage: Path) -> Any:
    """Return Ray's trainer for a run; `storage` is for what Ray writes.

    A lost worker counts as one of `max_failures`, a node that was taken away with a notice does not.
    """
    import ray.train
    from ray.train.torch import TorchTrainer

    use_gpu, gpus = job.placement.device == "cuda", job.placement.gpus
    return TorchTrainer(
        worker_loop,
        train_loop_config={"job": job},
        scaling_config=ray.train.ScalingConfig(
            num_workers=job.config.n_workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": job.n_threads} | ({"GPU": gpus} if use_gpu else {}),
            accelerator_type=job.placement.accelerator_type or None,
            elastic_resize_monitor_interval_s=RESIZE_SECONDS,
        ),
        run_config=ray.train.RunConfig(
            name="attempt",
            storage_path=str(storage),
            failure_config=ray.train.FailureConfig(max_failures=job.config.max_failures),
        ),
    )
