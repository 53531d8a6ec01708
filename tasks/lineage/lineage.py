"""Lineage of a file, batch, run, model or dataset version: its ancestors and its descendants."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.dataset.versions import DatasetVersion, list_datasets, resolve_dataset
from tasks.errors import NotFound, OrchestrionError
from tasks.generation.batch_files import list_manifests, read_manifest, read_sidecar
from tasks.storage.home import Home
from tasks.storage.integrity import examine
from tasks.storage.parquet import read_table
from tasks.storage.strict_json import BadJson, read_json
from tasks.storage.user_paths import is_file

if TYPE_CHECKING:
    from tasks.tracking.mlflow_tracker import ModelVersion, Tracker

SHOWN_FILES = 5  # of a training split, by name
LEAST_RUN_ID = 6  # letters of an abbreviated run id


@dataclass(frozen=True, slots=True)
class Lineage:
    """Finds the ancestors and descendants of something in one home; `tracker` is None where nothing was tracked."""

    home: Home
    tracker: "Tracker | None"

    def of(self, target: str) -> dict[str, Any]:
        """Return the ancestors and descendants of `target`, ready for JSON.

        Args:
            target: a MIDI file or sidecar of a batch, or a copy of one; a batch or its folder; `dataset@version`; the
                id of a run, or six letters or more of it; `model@version` or `model@alias`, or the name of either.
        Raises:
            NotFound: none of these; the message says what was looked for.
        """
        for find in (self._of_file, self._of_batch, self._of_dataset, self._of_run, self._of_model):
            found = find(target) if target else None  # an empty name means the newest elsewhere
            if found is not None:
                return {"target": target} | found
        raise NotFound(
            f"{target!r} is no file of a batch, no batch, no dataset version, no run and no model version of"
            f" {self.home.root}; see `orchestrion runs`, `orchestrion models` and `orchestrion datasets`"
        )

    # --- targets

    def _of_file(self, target: str) -> dict[str, Any] | None:
        path = Path(target)
        if not is_file(path):
            return None
        if path.suffix == ".json" and {"midi_sha256", "batch", "copying"} <= _dict_of(path).keys():
            return self._piece(read_sidecar(path), path)
        sha256 = examine(path).sha256
        for _, manifest in list_manifests(self.home):
            for piece in manifest["pieces"]:
                if piece["midi_sha256"] == sha256:
                    sidecar = self.home.generations / manifest["batch"] / "pieces" / f"{piece['name']}.json"
                    return self._piece(read_sidecar(sidecar), sidecar)
        raise NotFound(f"no batch of {self.home.root} holds {path.name} (sha256 {sha256[:16]})")

    def _of_batch(self, target: str) -> dict[str, Any] | None:
        name = Path(target).name
        manifest = self.home.generations / name / "manifest.json"
        if not name or not is_file(manifest):
            return None
        return {"kind": "batch"} | self._batch(read_manifest(manifest))

    def _of_dataset(self, target: str) -> dict[str, Any] | None:
        try:
            dataset = resolve_dataset(self.home, target)
        except OrchestrionError:
            return None
        return {"kind": "dataset"} | self._dataset(dataset.reference) | self._made_of_dataset(dataset)

    def _of_run(self, target: str) -> dict[str, Any] | None:
        if self.tracker is None or len(target) < LEAST_RUN_ID or not set(target) <= set("0123456789abcdef"):
            return None
        found = self.tracker.find_runs(target)
        if len(found) > 1:
            raise NotFound(f"{len(found)} runs begin with {target!r}; give more of the id")
        if not found:
            return None
        run = found[0]
        made = [model for model in self.tracker.models() if model.run_id == run["run_id"]]
        chain: dict[str, Any] = {"kind": "run", "run": run}
        if made:
            return chain | self._model(made[0])
        tags = run["tags"]
        if batch := tags.get("orchestrion.batch"):
            chain |= self._of_batch(batch) or {}
        elif model := tags.get("orchestrion.model_version"):
            chain |= self._of_model(model) or {}
        elif version := tags.get("orchestrion.dataset_version"):
            chain |= next((self._dataset(d.reference) for d in list_datasets(self.home) if d.version == version), {})
        return chain | {"kind": "run"}

    def _of_model(self, target: str) -> dict[str, Any] | None:
        if self.tracker is None:
            return None
        try:
            model = self.tracker.model(target)
        except NotFound:
            return None
        return {"kind": "model"} | self._model(model) | {"batches": self._batches_of(model.reference)}

    # --- ancestors

    def _piece(self, sidecar: Mapping[str, Any], path: Path) -> dict[str, Any]:
        piece = {
            "name": sidecar["name"],
            "sidecar": str(path),
            "midi_sha256": sidecar["midi_sha256"],
            "seed": sidecar["seed"],
            "attempt": sidecar["attempt"],
            "prompt": sidecar["prompt"],
            "nearest_training_piece": (sidecar["copying"] or {}).get("match"),
        }
        manifest = self.home.generations / sidecar["batch"] / "manifest.json"
        batch = self._batch(read_manifest(manifest) if manifest.is_file() else sidecar)
        return {"kind": "piece", "piece": piece} | batch

    def _batch(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        batch = {
            "name": facts["batch"],
            "folder": str(self.home.generations / facts["batch"]),
            "n_pieces": facts.get("n_pieces"),
            "code_commit": facts["code_commit"],
        }
        models = self.tracker.models() if self.tracker else []
        model = next((model for model in models if model.reference == facts["model_version"]), None)
        if model is None:
            gone = {"model_version": facts["model_version"], "run_id": facts["model_run_id"], "is_there": False}
            return {"batch": batch, "model": gone} | self._dataset(facts["dataset_version"])
        return {"batch": batch} | self._model(model)

    def _model(self, model: "ModelVersion") -> dict[str, Any]:
        checkpoint = self.home.root / model.checkpoint
        facts = {
            "model_version": model.reference,
            "aliases": list(model.aliases),
            "preset": model.preset,
            "run_id": model.run_id,
            "checkpoint": str(checkpoint),
            "is_there": checkpoint.exists(),
        }
        return {"model": facts} | self._dataset(model.dataset)

    def _dataset(self, reference: str) -> dict[str, Any]:
        try:
            dataset = resolve_dataset(self.home, reference)
        except OrchestrionError:
            return {"dataset": {"dataset_version": reference, "is_there": False}}
        ledger = read_table(dataset.ledger, ["path", "status", "split", "licence"])
        rows = zip(*(ledger.column(name).to_pylist() for name in ledger.column_names), strict=True)
        train = [(path, licence) for path, status, split, licence in rows if (status, split) == ("accepted", "train")]
        facts = {
            "dataset_version": dataset.reference,
            "is_there": True,
            "manifest": str(dataset.manifest_path),
            "ledger": str(dataset.ledger),
            "n_training_files": len(train),
            "training_files": sorted(path for path, _ in train)[:SHOWN_FILES],
            "licences": dict(Counter(licence or "not stated" for _, licence in train)),
        }
        return {"dataset": facts}

    # --- descendants

    def _made_of_dataset(self, dataset: DatasetVersion) -> dict[str, Any]:
        models = self.tracker.models() if self.tracker else []
        trained = [model.reference for model in models if model.dataset == dataset.reference]
        return {"models": trained, "batches": [batch for model in trained for batch in self._batches_of(model)]}

    def _batches_of(self, model: str) -> list[str]:
        return [facts["batch"] for _, facts in list_manifests(self.home) if facts["model_version"] == model]


def _dict_of(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except (OSError, BadJson):
        return {}
    return found if isinstance(found, dict) else {}


def lineage_rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the result of `Lineage.of` as lines of text."""
    rows = [("target", f"{facts['target']} ({facts['kind']})")]
    for part in ("piece", "batch", "run", "model", "dataset"):
        for key, value in (facts.get(part) or {}).items():
            if value not in (None, "", [], {}):
                rows.append((f"{part} {key}".replace("_", " "), _shown(value)))
    rows += [(part, _shown(facts[part])) for part in ("models", "batches") if part in facts]
    return rows


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_shown(item)}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return str(value)
