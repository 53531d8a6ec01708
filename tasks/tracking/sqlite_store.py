"""Runs and model versions as MLflow's SQLite file holds them, read without MLflow, whose import takes a second."""

import math
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

_PATIENCE_SECONDS = 60.0  # while another process writes

_VERSIONS = """
    SELECT name, version, creation_time, coalesce(run_id, '') FROM model_versions
    WHERE current_stage != 'Deleted_Internal' ORDER BY name, version DESC"""
_RUNS = """
    SELECT run_uuid, e.name, e.experiment_id, r.name, status, start_time, end_time
    FROM runs r JOIN experiments e USING (experiment_id)
    WHERE r.lifecycle_stage = 'active' AND e.name IN ({names}) AND run_uuid LIKE ?
    ORDER BY start_time DESC, run_uuid LIMIT ?"""


@dataclass(frozen=True, slots=True)
class StoredVersion:
    """A model version with the names that MLflow's own entity has for its parts."""

    name: str
    version: str
    creation_timestamp: int
    run_id: str
    tags: dict[str, str]
    aliases: Sequence[str]


def read_versions(path: Path) -> list[StoredVersion]:
    """Return every registered model version; sqlite3.DatabaseError where the file is of an MLflow with other tables."""
    with _opened(path) as query:
        tags, aliases = dict[tuple[str, int], dict[str, str]](), dict[tuple[str, int], list[str]]()
        for name, version, key, value in query("SELECT name, version, key, value FROM model_version_tags"):
            tags.setdefault((name, version), {})[key] = value
        for name, version, alias in query("SELECT name, version, alias FROM registered_model_aliases ORDER BY alias"):
            aliases.setdefault((name, version), []).append(alias)
        return [
            StoredVersion(
                name, str(version), created, run_id, tags.get((name, version), {}), aliases.get((name, version), [])
            )
            for name, version, created, run_id in query(_VERSIONS)
        ]


def read_runs(path: Path, experiments: Sequence[str], beginning: str = "", limit: int = -1) -> list[dict[str, Any]]:
    """Return the runs of some experiments, newest first, with their tags and latest metrics; errors as `read_versions`.

    Args:
        beginning: of their ids.
        limit: -1: all.
    """
    runs = []
    with _opened(path) as query:
        for run_id, experiment, experiment_id, name, status, started, ended in query(
            _RUNS.format(names=",".join("?" * len(experiments))), *experiments, f"{beginning}%", limit
        ):
            tags = dict(query("SELECT key, value FROM tags WHERE run_uuid = ?", run_id))
            metrics = query("SELECT key, value, is_nan FROM latest_metrics WHERE run_uuid = ?", run_id)
            values = {key: math.nan if is_nan else value for key, value, is_nan in metrics}
            runs.append(run_facts(run_id, experiment, str(experiment_id), name, status, started, ended, tags, values))
    return runs


def run_facts(
    run_id: str, experiment: str, experiment_id: str, name: str, status: str, started: int, ended: int | None,
    tags: Mapping[str, str], metrics: Mapping[str, float],
) -> dict[str, Any]:  # fmt: skip
    """Return what lists and lineage show of a run; times are in milliseconds."""
    return {
        "run_id": run_id,
        "experiment": experiment,
        "experiment_id": experiment_id,
        "name": name,
        "status": status,
        "started": started,
        "seconds": round(((ended or started) - started) / 1000, 1),
        "tags": {key: value for key, value in tags.items() if key.startswith(("orchestrion.", "prefect."))},
        "metrics": {key: value for key, value in metrics.items() if not key.startswith("system/")},  # of the machine
    }


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a database that exists; also for writing, because what a killed writer left has to be rolled back."""
    with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True, timeout=_PATIENCE_SECONDS)) as database:
        yield lambda text, *values: database.execute(text, values).fetchall()
