"""New tracking stores as copies of one that MLflow made: its migrations take a second of CPU and some of waiting."""

import contextlib
import os
import sqlite3
import tempfile
from contextlib import closing
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tasks.tracking.mlflow_tracker import Tracker

_MADE_BY_MLFLOW = Path(tempfile.gettempdir()) / f"orchestrion-tests-{os.getuid()}-mlflow-{version('mlflow')}.db"


def copy_new_stores() -> None:
    """Let the trackers of this process copy the store that an earlier one made, and keep the first that is made."""
    make = Tracker.client.func

    def client(tracker: Tracker) -> Any:
        if not tracker.uri.startswith("sqlite:///"):
            return make(tracker)
        path = Path(tracker.uri.removeprefix("sqlite:///"))
        is_new = not path.exists()
        if is_new:
            _copy(_MADE_BY_MLFLOW, path)
        made = make(tracker)
        if is_new:
            _copy(path, _MADE_BY_MLFLOW)
        return made

    Tracker.client = cached_property(client)
    Tracker.client.__set_name__(Tracker, "client")


def _copy(source: Path, target: Path) -> None:
    """Copy a database, unless the source is missing or the target is there."""
    if target.exists() or not source.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        whole = Path(folder) / target.name
        with closing(sqlite3.connect(source)) as ours, closing(sqlite3.connect(whole)) as copy:
            ours.backup(copy)
        with contextlib.suppress(FileExistsError):  # another process was first
            os.link(whole, target)
