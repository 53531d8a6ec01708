"""The connection to Ray, started here or joined, and functions that run on it."""

import itertools
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from tasks.errors import OrchestrionError, cause_of, plural, words_of
from tasks.runtime import ray_node
from tasks.runtime.progress import Progress
from tasks.runtime.ray_files import folder_root, secure_token
from tasks.runtime.ray_node import Node
from tasks.runtime.silence import Silence

Result = TypeVar("Result")

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 30.0

_is_abandoned = False
_nodes: list[Node] = []  # those that this process started and has not stopped; at most one


class RayNotStarted(OrchestrionError):
    """Ray did not start twice, or the cluster does not answer."""

    exit_code = 1


class RayLost(ConnectionError):
    """A server of the Ray that this process started was killed or stopped."""


def n_cpus() -> int:
    """Return ORCHESTRION_CPUS, by default the number of cores that this process may use."""
    return int(os.environ.get("ORCHESTRION_CPUS") or len(os.sched_getaffinity(0)))


def n_cluster_cpus() -> int:
    """Return the cores for training: those of the cluster at RAY_ADDRESS, by default `n_cpus`."""
    if not os.environ.get("RAY_ADDRESS"):
        return n_cpus()
    import ray

    connect()
    return int(ray.cluster_resources().get("CPU", 0))


def is_joined() -> bool:
    """Return whether this process works in a Ray that others started: at RAY_ADDRESS, or the one it is connected to."""
    if os.environ.get("RAY_ADDRESS"):
        return True
    ray = sys.modules.get("ray")
    return bool(ray and ray.is_initialized() and not _nodes)


def check_start() -> None:
    """Raise ConfigError or HomeError if Ray has no folder for its sockets or others can read its token."""
    is_new = not os.environ.get("RAY_ADDRESS")
    secure_token(is_new)
    if is_new:
        folder_root()


def connect() -> None:
    """Join the cluster at RAY_ADDRESS, or start Ray on this machine; do nothing when connected to a live one.

    Raises:
        RayNotStarted: Ray did not start twice, or the cluster does not answer.
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
    """Wait until something listens at a cluster's address; Ray itself waits for a quarter of an hour."""
    host, _, port = address.rpartition(":")
    if "://" in address or not port.isdecimal():  # a form that Ray parses
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
    """Start Ray, and start it again if its servers die or are too slow, as on a busy machine."""
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
    if "ray" in sys.modules and not _is_abandoned:
        import ray

        if ray.is_initialized():
            ray.shutdown()
    while _nodes:
        _nodes.pop().stop()


def abandon() -> None:
    """End the Ray that `connect` started though a thread is inside of it, for good; a joined cluster is left."""
    global _is_abandoned  # noqa: PLW0603
    if not _nodes:
        disconnect()
        return
    _is_abandoned = True
    while _nodes:
        _nodes.pop().abandon()


def lost_worker_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions for a lost worker or node."""
    from ray import exceptions

    lost_workers = (exceptions.WorkerCrashedError, exceptions.RayActorError, exceptions.NodeDiedError)
    return (*lost_workers, exceptions.LocalRayletDiedError, RayLost)


def _death() -> str:
    """Return which server of the Ray that this process started died; empty for none."""
    return "".join(node.death() for node in _nodes)


def require_servers() -> None:
    """Raise RayLost if a server of this process's Ray died; Ray itself notices it after a minute and exits."""
    if death := _death():
        raise RayLost(f"Ray is gone: {death}")


def words_of_nodes() -> str:
    """Return the number of nodes of a joined cluster and those that are gone; empty without a cluster."""
    if not os.environ.get("RAY_ADDRESS"):
        return ""
    import ray

    nodes = ray.nodes()
    gone = sorted({node["NodeManagerAddress"] for node in nodes if not node["Alive"]})
    words = f" on {plural(sum(node['Alive'] for node in nodes), 'node')}"
    return words + (f"; gone: {', '.join(gone)}" if gone else "")


def run_over(
    function: Callable[..., Result],
    chunks: Iterable[Any],
    on_result: Callable[[Result], None] | None = None,
    max_in_flight: int = 0,
    on_wait: Callable[[], None] | None = None,
    options: Mapping[str, Any] | None = None,
    shared: Any = None,
) -> list[Result]:
    """Run `function` over `chunks` on Ray and return the results in the order of the chunks.

    Args:
        function: importable by a worker; its results must be small (paths, counts). Its exceptions are raised here.
        on_result: called in the driver with each result, in any order.
        max_in_flight: chunks handed out at once, 0 for two for each core; the others wait in the driver.
        on_wait: called in the driver about once a second.
        options: of Ray's tasks, such as those of a `Placement`.
        shared: given to each call after its chunk, unless it is None; it is sent once.
    Raises:
        RayLost: the Ray of this process died during the work; `connect` starts another.
    """
    import ray

    queue = enumerate(chunks)
    first = list(itertools.islice(queue, 1))
    if not first:
        return []  # without starting Ray
    queue = itertools.chain(first, queue)
    connect()
    known: dict[str, Any] = {"num_cpus": 1, "max_retries": 2, "retry_exceptions": [OSError]}
    remote: Any = ray.remote(**known | dict(options or {}))(function)
    more = () if shared is None else (ray.put(shared),)
    limit = max_in_flight or max(2, 2 * int(ray.cluster_resources().get("CPU", 1)))
    results: dict[int, Result] = {}
    pending: dict[Any, int] = {}
    silence = Silence(
        lambda: f"waiting for {plural(len(pending), 'piece of work', 'pieces of work')}{words_of_nodes()}"
    )
    try:
        while True:
            for index, chunk in itertools.islice(queue, limit - len(pending)):
                pending[remote.remote(chunk, *more)] = index
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
            # No task may write while later work runs. `ray.cancel` of Ray 2.60 aborts this process if a task ends at
            # that moment ("Tried to complete task that was not pending").
            disconnect()
    return [results[index] for index in sorted(results)]


def run_apart(function: Callable[..., Result], *arguments: Any, options: Mapping[str, Any] | None = None) -> Result:
    """Run one function on Ray and return its result, so that its memory is the worker's; options as in `run_over`."""
    return run_over(_call, [(function, arguments)], options=options)[0]


def _call(work: tuple[Callable[..., Any], tuple[Any, ...]]) -> Any:
    function, arguments = work
    return function(*arguments)


def _get(reference: Any) -> Any:
    import ray
    from ray.exceptions import RayTaskError

    try:
        return ray.get(reference)
    except RayTaskError as error:
        raise cause_of(error) from None
