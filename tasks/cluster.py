"""Starting or joining Ray, and running a function over many chunks on it. The one file that calls `ray.init`."""

import itertools
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

Chunk = TypeVar("Chunk")
Result = TypeVar("Result")

logger = logging.getLogger(__name__)


class RayLost(ConnectionError):
    """The Ray that this process started is gone: one of its servers was killed or stopped."""


def n_cpus() -> int:
    """Return the cores this process may use, or ORCHESTRION_CPUS where that is set."""
    return int(os.environ.get("ORCHESTRION_CPUS") or len(os.sched_getaffinity(0)))


def n_cluster_cpus() -> int:
    """Return the cores that training may use: the cluster's where RAY_ADDRESS names one, else this machine's."""
    if not os.environ.get("RAY_ADDRESS"):
        return n_cpus()
    import ray

    connect()
    return int(ray.cluster_resources().get("CPU", 0))


def connect() -> None:
    """Join the cluster of RAY_ADDRESS, or start Ray on this machine; does nothing when connected to one that lives.

    Ray takes over SIGTERM; the handler that was there before is put back, so that Prefect still learns of a cancel.
    """
    import ray

    if ray.is_initialized() and not _dead_servers():
        return
    disconnect()
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM) if in_main_thread else None
    address = os.environ.get("RAY_ADDRESS")
    if address:
        ray.init(
            address=address,
            job_config=_job_config(),
            namespace="orchestrion",
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    else:
        ray.init(
            address="local",
            job_config=_job_config(),
            namespace="orchestrion",
            num_cpus=n_cpus(),
            include_dashboard=False,
            object_store_memory=256 * 2**20,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    if in_main_thread:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
    logger.info(
        "ray is %s with %d cores",
        f"joined at {address}" if address else "started",
        ray.cluster_resources().get("CPU", 0),
    )


def _job_config() -> Any:
    """Return Ray's settings of a job whose workers import nothing from the folder that this process was started in.

    Ray puts the driver's working folder in front of its workers' `sys.path`, unless a runtime environment has one.
    """
    from ray.job_config import JobConfig

    class OwnPath(JobConfig):
        def _runtime_env_has_working_dir(self) -> bool:
            return True

    return OwnPath()


def disconnect() -> None:
    """Leave the cluster, or stop the Ray that `connect` started."""
    import ray

    if ray.is_initialized():
        ray.shutdown()


def lost_worker_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that mean a worker or node went away, not that the work was wrong."""
    from ray import exceptions

    lost_workers = (exceptions.WorkerCrashedError, exceptions.RayActorError, exceptions.NodeDiedError)
    return (*lost_workers, exceptions.LocalRayletDiedError, RayLost)


def _dead_servers() -> list[str]:
    """Return which servers of the Ray that this process started are dead; none where it joined a cluster.

    Without asking, one learns of it after a minute, when Ray ends this process without a word of ours.
    """
    from ray._private import worker

    node: Any = worker._global_node
    dead = [name for name, _ in node.dead_processes()] if node else []
    return [name for name in dead if name in ("gcs_server", "raylet")]  # it does without the others


def _require_servers() -> None:
    if dead := _dead_servers():
        raise RayLost(f"Ray is gone: its {' and '.join(dead)} died")


def run_over(
    function: Callable[[Chunk], Result],
    chunks: Iterable[Chunk],
    on_result: Callable[[Result], None] | None = None,
    max_in_flight: int = 0,
    on_wait: Callable[[], None] | None = None,
) -> list[Result]:
    """Run `function` over `chunks` on Ray and return the results in the order of the chunks.

    Args:
        function: importable, so that a worker finds it; its results must be small (paths, counts).
        on_result: called in the driver as each result arrives, in any order; for progress.
        max_in_flight: chunks handed out at once, 0 for two a core; the rest wait in the driver.
        on_wait: called in the driver about once a second, for progress within the chunks.
    Raises:
        what `function` raised, as the same class. A worker that dies is retried twice.
        RayLost: the Ray of this process died under the work; `connect` starts another.
    """
    import ray

    remaining = iter(chunks)
    first = list(itertools.islice(remaining, 1))
    if not first:
        return []  # nothing to do is no reason to start Ray
    connect()
    options: dict[str, Any] = {"num_cpus": 1, "max_retries": 2, "retry_exceptions": [OSError]}
    remote = ray.remote(**options)(function)
    limit = max_in_flight or max(2, 2 * int(ray.cluster_resources().get("CPU", 1)))
    results: dict[int, Result] = {}
    pending: dict[Any, int] = {}
    queue: Iterator[tuple[int, Chunk]] = enumerate(itertools.chain(first, remaining))
    exhausted = False
    try:
        while pending or not exhausted:
            while not exhausted and len(pending) < limit:
                item = next(queue, None)
                if item is None:
                    exhausted = True
                else:
                    pending[remote.remote(item[1])] = item[0]
            if not pending:
                break
            done, _ = ray.wait(list(pending), num_returns=1, timeout=1.0)
            if on_wait:
                on_wait()
            _require_servers()
            for reference in done:
                index = pending.pop(reference)
                results[index] = _get(reference)
                if on_result:
                    on_result(results[index])
    except SystemError as error:  # what a signal's handler raised inside of Ray's compiled code arrives wrapped
        raise (error.__cause__ or error) from None
    finally:
        if pending:
            # None of them may write behind the back of what comes next. `ray.cancel` would do for Ray 2.60 only if no
            # task ended at that moment: then it aborts this process ("Tried to complete task that was not pending").
            disconnect()
    return [results[index] for index in sorted(results)]


def run_apart(function: Callable[..., Result], *arguments: Any) -> Result:
    """Run one function on Ray and return its result: what it needs of memory is given back, and none of it is ours."""
    return run_over(_call, [(function, arguments)])[0]


def _call(work: tuple[Callable[..., Result], tuple[Any, ...]]) -> Result:
    function, arguments = work
    return function(*arguments)


def _get(reference: Any) -> Any:
    import ray
    from ray.exceptions import RayTaskError

    try:
        return ray.get(reference)
    except RayTaskError as error:
        raise (error.cause if isinstance(error.cause, Exception) else error) from None
