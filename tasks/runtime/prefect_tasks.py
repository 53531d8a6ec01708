"""Retries, progress and summaries of the Prefect tasks of all stages."""

import re
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import FlowRunContext, TaskRunContext
from prefect.tasks import Task

from tasks.errors import OrchestrionError
from tasks.runtime import cluster
from tasks.runtime.progress import Progress
from tasks.storage.files import storage_problem

RETRY_DELAY_SECONDS = 5


def may_heal(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Return whether a retry can help: after a lost worker or a network fault, but not on a full disk."""
    try:
        state.result()
    except OrchestrionError:
        return False
    except Exception as error:
        return storage_problem(error) is None and isinstance(error, (OSError, *cluster.lost_worker_errors()))
    return False


HEALS = {
    "retries": 2,
    "retry_delay_seconds": RETRY_DELAY_SECONDS,
    "retry_condition_fn": may_heal,
    "cache_policy": NO_CACHE,
}


def show_progress(label: str, total: int, unit: str, done: int = 0) -> Progress:
    """Return a progress that Prefect shows too, inside a Prefect task."""
    if TaskRunContext.get() is None or not total:
        return Progress(label, total, unit, done=done)
    key, description = artifact_key("progress", label), f"{label} {total} {unit}"
    artifact = create_progress_artifact(progress=0.0, key=key, description=description)

    def show_share(share: float) -> None:
        update_progress_artifact(artifact_id=artifact, progress=round(100 * share, 1))  # type: ignore[arg-type]

    return Progress(label, total, unit, show_share, done)


def artifact_key(kind: str, name: str) -> str:
    """Return a key for an artifact of Prefect: lowercase letters, digits and dashes."""
    return f"{kind}-{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}"


def publish_summary(key: str, markdown: str) -> None:
    """Show a summary as an artifact of the current flow run in Prefect; do nothing outside of one."""
    if FlowRunContext.get():
        create_markdown_artifact(key=key, markdown=markdown)
