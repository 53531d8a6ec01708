"""The context of a flow run: its tags and its time."""

import time
from typing import Any

from prefect.runtime import flow_run

Summary = dict[str, Any]


def run_tags() -> dict[str, str]:
    """Return the tags that lead from a run in the tracker to its flow run."""
    return {"prefect.flow_run_id": str(flow_run.id or ""), "prefect.flow_run_name": str(flow_run.name or "")}


def since(started: float) -> float:
    """Return the seconds from a reading of the monotonic clock to now."""
    return round(time.monotonic() - started, 2)
