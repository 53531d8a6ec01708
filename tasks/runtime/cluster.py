"""Starting or joining Ray, and running a function over many chunks on it."""

import itertools
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from tasks.errors import OrchestrionError, cause_of, plural, words_of
from tasks.runtime import ray_node
from tasks.runtime.progress import Progress
from tasks.runtime.ray_files import folder_root, secure_token
from tasks.runtime.ray_node import Node
from tasks.runtime.silence import Silence

Chunk = TypeVar("Chunk")
Result = TypeVar("Result")

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 30.0

_nodes: list[Node] = []  # those that this process started and has not stopped: one at most


class RayNotStarted(OrchestrionError):
    """Ray did not start, twice, or the cluster does not answer."""

    exit_code = 1


class RayLost(ConnectionError):
    """The Ray that this process started is gone: one of its servers was killed or stopped."""


def n_cpus() -> int:
    """Return the cores this process may use, or ORCHESTRION_CPUS where that is set."""
    return int(os.environ.get("ORCHESTRION_CPUS") or len(os.sched_getaffinity(0)))


def n_cluster_cpus() -> int:
    """Return the cores that training may use: the cluster's where RAY_ADDRESS names one, otherwise this machine's."""
    if not os.environ.get("RAY_ADDRESS"):
        return n_cpus()
    import ray

    connect()
    return int(ray.cluster_resources().get("CPU", 0))


def check_start() -> None:
    """Check that Ray can be started here, without importing it.

    Raises:
        ConfigError, HomeError: there is no folder for its sockets, or others can read its token.
    """
    is_new = not os.environ.get("RAY_ADDRESS")
    secure_token(is_new)
    if is_new:
        folder_root()


def connect() -> None:
    """Join the cluster of RAY_ADDRESS, or start Ray on this machine; does nothing when connected to one that lives.

    Raises:
        RayNotStarted: it did not start, and neither did a second one; or the cluster does not answer.
    """
    import ray

    if ray.is_initialized() and not _death():
        return
    disconnect()
    address = os.environ.get("RAY_ADDRESS")
    secure_token(is_new=not address)
    with Progress(f"joining Ray at {address}" if address else "starting Ray"):
        if address:
            _await_answer(address)
            ray_node.join(address)
        else:
            _start()
    logger.info(
        "ray is %s with %s",
        f"joined at {address}" if address else "started",
        plural(int(ray.cluster_resources().get("CPU", 0)), "core"),
    )


def _await_answer(address: str) -> None:
    """Wait until something listens at a cluster's address; Ray itself would wait for a quarter of an hour.

    Raises:
        RayNotStarted: nothing does.
    """
    host, _, port = address.rpartition(":")
    if "://" in address or not port.isdecimal():  # for Ray to understand
        return
    deadline = time.monotonic() + ANSWER_SECONDS
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
            return
        except (OSError, OverflowError) as error:
            if time.monotonic() > deadline:
                raise RayNotStarted(
                    f"no Ray at RAY_ADDRESS={address} after {ANSWER_SECONDS:.0f} s: {error}; without RAY_ADDRESS one is"
                    " started on this machine"
                ) from None
        time.sleep(1.0)


def _start() -> None:
    """Start Ray, a second time if its servers die or are too slow: on a busy machine that may help."""
    for attempt in (1, 2):
        try:
            _nodes.append(Node(n_cpus()))
            ray_node.join(_nodes[-1].wait(), is_own=True)
        except Exception as error:
            disconnect()
            if attempt == 2:
                raise RayNotStarted(
                    f"Ray did not start, twice: {words_of(error)}; is the machine overloaded?"
                ) from error
            logger.warning("Ray did not start, it is tried once more: %s", words_of(error))
        except BaseException:
            disconnect()
            raise
        else:
            return


def disconnect() -> None:
    """Leave the cluster, or stop the Ray that `connect` started."""
    if "ray" in sys.modules:
        import ray

        if ray.is_initialized():
            ray.shutdown()
    while _nodes:
        _nodes.pop().stop()


def lost_worker_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that mean a worker or node went away, not that the work was wrong."""
    from ray import exceptions

    lost_workers = (exceptions.WorkerCrashedError, exceptions.RayActorError, exceptions.NodeDiedError)
    return (*lost_workers, exceptions.LocalRayletDiedError, RayLost)


def _death() -> str:
    """Return what died of the Ray that this process started; empty while all live, and for a cluster."""
    return "".join(node.death() for node in _nodes)


def require_servers() -> None:
    """Check that the Ray that this process started is still there.

    Raises:
        RayLost: it is not. Ray itself notices after a minute, and ends this process.
    """
    if death := _death():
        raise RayLost(f"Ray is gone: {death}")


def words_of_nodes() -> str:
    """Return how many nodes a joined cluster has and which of them are gone; empty for a Ray of this machine alone."""
    if not os.environ.get("RAY_ADDRESS"):
        return ""
    import ray

    nodes = ray.nodes()
    gone = sorted({node["NodeManagerAddress"] for node in nodes if not node["Alive"]})
    words = f" on {plural(sum(node['Alive'] for node in nodes), 'node')}"
    return words + (f"; gone: {', '.join(gone)}" if gone else "")


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

    queue = enumerate(chunks)
    first = list(itertools.islice(queue, 1))
    if not first:
        return []  # without starting Ray
    queue = itertools.chain(first, queue)
    connect()
    options: dict[str, Any] = {"num_cpus": 1, "max_retries": 2, "retry_exceptions": [OSError]}
    remote = ray.remote(**options)(function)
    limit = max_in_flight or max(2, 2 * int(ray.cluster_resources().get("CPU", 1)))
    results: dict[int, Result] = {}
    pending: dict[Any, int] = {}
    silence = Silence(
        lambda: f"waiting for {plural(len(pending), 'piece of work', 'pieces of work')}{words_of_nodes()}"
    )
    try:
        while True:
            for index, chunk in itertools.islice(queue, limit - len(pending)):
                pending[remote.remote(chunk)] = index
            if not pending:
                break
            done, _ = ray.wait(list(pending), num_returns=1, timeout=1.0)
            if on_wait:
                on_wait()
            require_servers()
            silence.look()
            for reference in done:
                silence.heard()
                index = pending.pop(reference)
                results[index] = _get(reference)
                if on_result:
                    on_result(results[index])
    except SystemError as error:  # wraps what a signal's handler raised inside Ray's compiled code
        raise (error.__cause__ or error) from None
    finally:
        if pending:
            # None of them may write while later work runs. `ray.cancel` of Ray 2.60 aborts this process if a task ends
            # at that moment ("Tried to complete task that was not pending").
            disconnect()
    return [results[index] for index in sorted(results)]


def run_apart(function: Callable[..., Result], *arguments: Any) -> Result:
    """Run one function on Ray and return its result; its memory is the worker's."""
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
        raise cause_of(error) from None
