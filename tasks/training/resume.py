"""Extending a run: a new run that goes on from the last checkpoint of another, with more steps."""

import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.config import ConstantSchedule, NoamSchedule
from models.training import learning_rate
from tasks.checkpoints import WHICH, CheckpointFolder, read_state
from tasks.config.serialization import from_json, to_json
from tasks.config.training import TRAIN_WITHOUT_EFFECT, TrainConfig
from tasks.dataset.versions import DatasetVersion
from tasks.errors import ConfigError, DamagedFile, NotFound, plural
from tasks.storage.files import publish_folder
from tasks.storage.home import Home
from tasks.storage.integrity import read_sealed
from tasks.training.job import divergence_of, is_ended
from tasks.training.runs import RUN

logger = logging.getLogger(__name__)

# Settings that an extended run may change; all others are those of its checkpoint.
MAY_CHANGE = (
    "n_steps", "eval_interval", "checkpoint_interval", "interval_unit", "early_stopping_patience",
    "early_stopping_metric", "schedule.min_lr_ratio", *TRAIN_WITHOUT_EFFECT,
)  # fmt: skip
LISTED_RUNS = 3  # earlier runs that a new one is compared with in the log


@dataclass(frozen=True, slots=True)
class Parent:
    """A run that another one extends."""

    folder: Path
    checkpoint: Path  # the last one
    state: dict[str, Any]  # of that checkpoint
    config: TrainConfig
    dataset: str  # name@version

    @property
    def step(self) -> int:
        return int(self.state["step"])


def find_parent(home: Home, reference: str) -> Parent:
    """Return the run that a reference names, ready to be extended.

    Args:
        reference: a run's folder name or path, a checkpoint's path, an MLflow run id, or a registered model.
    Raises:
        NotFound: no run of this home has this name, or it has no checkpoint.
        ConfigError: the run diverged.
        DamagedFile, CheckpointError: its files are damaged.
    """
    folder = _folder_of(home, reference)
    try:
        facts = read_sealed(folder / "run.json", RUN)
    except FileNotFoundError:
        raise NotFound(f"--resume {reference}: {folder} is not a training run: it has no run.json") from None
    except PermissionError as error:
        raise NotFound(f"--resume {reference}: {folder} cannot be read: {error.strerror}") from None
    if divergence_of(folder).exists():
        reason = divergence_of(folder).read_text().partition(";")[0]
        raise ConfigError(f"--resume {reference}: {reason}; train anew with a lower learning rate")
    last = CheckpointFolder(folder / "checkpoints").find("last")
    if last is None:
        raise NotFound(f"--resume {reference}: run {folder.name} has no checkpoint yet; repeat its command to train it")
    config = from_json(TrainConfig, facts["config"], str(folder / "run.json"))
    return Parent(folder, last, read_state(last), config, facts["dataset"])


def _folder_of(home: Home, reference: str) -> Path:
    if "/" not in reference and (home.runs / reference).is_dir() and reference not in ("", ".", ".."):
        return home.runs / reference
    path = Path(reference).resolve()
    for folder in (path, *path.parents):
        if folder.parent == home.runs.resolve():
            return home.runs / folder.name
    for folder, facts in _runs(home):
        if reference in (facts.get("run_id"), facts.get("model")):
            return folder
    known = ", ".join(folder.name for folder, _ in _runs(home)) or "none"
    raise NotFound(f"--resume {reference}: no run of the home {home.root}; known: {known}")


def _runs(home: Home) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the folders and facts of all runs that can be read, the newest first."""
    files = ((path.stat().st_mtime_ns, path) for path in home.runs.glob("*/run.json"))
    for _, path in sorted(files, reverse=True):
        try:
            yield path.parent, read_sealed(path, RUN)
        except (DamagedFile, OSError):
            continue


def check_extension(parent: Parent, config: TrainConfig, dataset: str) -> None:
    """Check that a run with these settings can go on from `parent`.

    Raises:
        ConfigError: it has no step left, or a setting or the dataset differs that must not; both values are named.
    """
    if dataset not in ("", parent.dataset, parent.dataset.partition("@")[0]):
        raise ConfigError(f"--dataset {dataset}: run {parent.folder.name} was trained on {parent.dataset}")
    changes = changed_settings(to_json(parent.config), to_json(config))
    fixed = {name: values for name, values in changes.items() if name not in MAY_CHANGE}
    if fixed:
        named = ", ".join(f"train.{name}={new!r}, there {old!r}" for name, (old, new) in list(fixed.items())[:3])
        allowed = ", ".join(f"train.{name}" for name in MAY_CHANGE)
        raise ConfigError(
            f"{named}: an extended run keeps the settings of {parent.folder.name}; these may change: {allowed}"
        )
    if is_ended(config, parent.state):
        way = f"--set train.n_steps={2 * parent.step}"
        if config.n_steps > parent.step:
            way = f"--set train.early_stopping_patience={2 * config.early_stopping_patience}"
        raise ConfigError(
            f"train.n_steps={config.n_steps}: run {parent.folder.name} has ended after {plural(parent.step, 'step')};"
            f" to extend it, set for example {way}"
        )


def changed_settings(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ, as dotted path to (old, new)."""
    changes: dict[str, tuple[Any, Any]] = {}
    for name in sorted({*old, *new}):
        one, other = old.get(name), new.get(name)
        if isinstance(one, Mapping) and isinstance(other, Mapping) and one.get("name") == other.get("name"):
            changes |= changed_settings(one, other, f"{prefix}{name}.")
        elif one != other:
            changes[prefix + name] = (one, other)
    return changes


def is_total_free(config: TrainConfig) -> bool:
    """Return whether learning rates do not depend on the number of steps: extended or not, the bits are the same."""
    schedule = config.schedule
    return isinstance(schedule, (ConstantSchedule, NoamSchedule)) or bool(schedule.total_steps)


def identity(parent: Parent | None, config: TrainConfig) -> str:
    """Return what the name of a run holds of its parent: nothing where the weights are those of a run in one go."""
    return "" if parent is None or is_total_free(config) else f"{parent.folder.name}@{parent.step}"


def begin_from(parent: Parent, config: TrainConfig, folder: Path) -> None:
    """Put the parent's checkpoints and metric points into a run's folder, unless it has checkpoints of its own.

    The parent's files are linked, not copied, where the file system can.
    """
    changes = changed_settings(to_json(parent.config), to_json(config))
    named = ", ".join(f"train.{name} {old} -> {new}" for name, (old, new) in changes.items())
    logger.info("run %s goes on from step %d of %s and keeps its settings; changed: %s",
                folder.name, parent.step, parent.folder.name, named)  # fmt: skip
    if not is_total_free(config):
        rates = (learning_rate(one.schedule, parent.step, one.model.d_model, one.n_steps)
                 for one in (parent.config, config))  # fmt: skip
        logger.info("the schedule depends on train.n_steps: at step %d the learning rate was %.3g, now it is %.3g",
                    parent.step, *rates)  # fmt: skip
    target = folder / "checkpoints"
    if target.exists():
        return
    temporary = folder / f".checkpoints-{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    source = CheckpointFolder(parent.folder / "checkpoints")
    pointed = {which: checkpoint for which in WHICH if (checkpoint := source.find(which))}
    for checkpoint in set(pointed.values()):
        shutil.copytree(checkpoint, temporary / checkpoint.name, copy_function=_link)
    for which in pointed:
        shutil.copyfile(source.root / f"{which}.json", temporary / f"{which}.json")
    shutil.copyfile(parent.folder / "metrics.jsonl", folder / "metrics.jsonl")
    publish_folder(temporary, target)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def tell_apart(home: Home, folder: Path, config: TrainConfig, dataset: DatasetVersion) -> None:
    """Log which earlier runs of the preset a new run does not continue, and which settings differ."""
    values = to_json(config)
    near: list[tuple[int, str]] = []
    for other, facts in _runs(home):
        try:
            earlier = from_json(TrainConfig, facts["config"])
        except ConfigError:  # of another release
            continue
        if other == folder or earlier.preset != config.preset:
            continue
        changes = changed_settings(to_json(earlier), values)
        reasons = [f"train.{name} {old} -> {new}" for name, (old, new) in changes.items()]
        if facts["dataset"] != dataset.reference:
            reasons.insert(0, f"dataset {facts['dataset']} -> {dataset.reference}")
        if not reasons:
            continue
        can_extend = facts["dataset"] == dataset.reference and all(name in MAY_CHANGE for name in changes)
        way = f"; `--resume {other.name}` goes on from it" if can_extend else ""
        near.append((len(reasons), f"{other.name}: {', '.join(reasons[:3])}{way}"))
    for _, words in sorted(near)[:LISTED_RUNS]:
        logger.info("a new run; it does not continue %s", words)
