"""Registered models for the commands that name one."""

import os
from typing import Any

from flows.services import environment
from tasks.errors import NotFound
from tasks.storage.home import Home


def tracker_of(home: Home) -> Any:
    """Return the home's tracker, or None where nothing was ever tracked: looking must not make a store."""
    if not os.environ.get("MLFLOW_TRACKING_URI") and not (home.mlflow / "mlflow.db").exists():
        return None
    environment.prepare(home)
    from tasks.tracking.mlflow_tracker import Tracker

    return Tracker(home)


def find_model(home: Home, reference: str) -> Any:
    """Return the registered model that a reference names; NotFound where there is none."""
    from tasks.runtime.progress import Progress

    with Progress("looking for the model"):
        tracker = tracker_of(home)
        if tracker is None:
            raise NotFound(f"home {home.root} holds no trained model yet; run `orchestrion train` first")
        return tracker.model(reference)


def check_controls(home: Home, model: Any, config: Any) -> None:
    """Check, before Prefect starts, that a model's encoding has ids for the controls of a batch; see `sample_ids`."""
    folder = home.root / model.checkpoint
    if not (config.key or config.programs or config.tempo or config.density) or not folder.exists():
        return
    from tasks.checkpoints import read_tokenizer
    from tasks.sampling.sample_ids import check_controls as check

    check(read_tokenizer(folder), config)
