"""Training runs on disk: the folder of a request, its MLflow run, and whether it is finished."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.config.serialization import to_json
from tasks.config.training import TrainConfig
from tasks.dataset.versions import DatasetVersion
from tasks.errors import DamagedFile, NotFound
from tasks.storage.files import write_atomically
from tasks.storage.integrity import read_sealed, sealed_bytes
from tasks.tracking.mlflow_tracker import ModelVersion, Run, Tracker

logger = logging.getLogger(__name__)

RUN = {"run_id": str, "status": str, "config": dict, "dataset": str, "model?": str}  # shape of `run.json`


@dataclass(frozen=True, slots=True)
class Claim:
    """A training run's folder and the current content of its `run.json`."""

    folder: Path
    facts: dict[str, Any]

    @property
    def run_id(self) -> str:
        return self.facts.get("run_id", "")


def claim_run(base: Path, config: TrainConfig, dataset: DatasetVersion, tracker: Tracker, fresh: bool = False) -> Claim:
    """Return the run of a folder (see `run_dir_of`), as it stands; with `fresh`, a new one beside it."""
    folder, attempt = base, 1
    while fresh and folder.exists():
        attempt += 1
        folder = base.with_name(f"{base.name}-{attempt}")
    facts = _read_facts(folder / "run.json")
    if facts and not tracker.has_run(facts["run_id"]):
        facts.pop("run_id")  # the tracking store was cleared: the checkpoints are still good
    facts |= {"config": to_json(config), "dataset": dataset.reference}
    return Claim(folder, facts)


def _read_facts(path: Path) -> dict[str, Any]:
    try:
        return read_sealed(path, RUN)
    except FileNotFoundError:
        return {}
    except DamagedFile as error:
        logger.warning("%s; the run goes on from its checkpoints, under a new run of the tracker", error)
        return {}


def start_run(claim: Claim, run: Run) -> None:
    """Store the MLflow run of the folder, so that a later attempt continues it."""
    write_atomically(claim.folder / "run.json", sealed_bytes(claim.facts | {"run_id": run.run_id, "status": "running"}))


def finish_run(claim: Claim, run: Run, model: ModelVersion) -> None:
    """Write down that the run is finished, and the model it made."""
    done = {"run_id": run.run_id, "status": "finished", "model": model.reference}
    write_atomically(claim.folder / "run.json", sealed_bytes(claim.facts | done))


def finished_model(claim: Claim, tracker: Tracker) -> ModelVersion | None:
    """Return the model that a finished run registered, or None if there is still something to do."""
    if claim.facts.get("status") != "finished" or not claim.run_id:
        return None
    try:
        return tracker.model(claim.facts["model"])
    except NotFound:
        return None
