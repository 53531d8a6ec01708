"""Looking after what is stored: hashing the files of versions again, and deleting what no version uses."""

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tasks.cluster import n_cpus
from tasks.datasets import DatasetVersion, checksum_path, file_hash, list_datasets, newest_version
from tasks.home import Home
from tasks.split import SPLITS
from tasks.token_cache import flat_path

logger = logging.getLogger(__name__)

_STAGES = ("songs", "analysis", "tokens")


@dataclass(frozen=True, slots=True)
class Problem:
    """A file of a version that is not what was written."""

    path: str
    problem: str


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was deleted, or would be."""

    versions: tuple[str, ...]
    n_files: int
    n_bytes: int


def verify_version(dataset: DatasetVersion, on_files: Callable[[int], None] | None = None) -> list[Problem]:
    """Hash every file of a version again and compare with what was written when it was published."""
    own = [_compare(path, file_hash(path), _written_hash(path)) for path in (dataset.manifest_path, dataset.ledger)]
    problems = [problem for problem in own if problem]
    try:
        hashes = json.loads(dataset.hashes_path.read_bytes())
    except (OSError, ValueError) as error:
        return [*problems, Problem(str(dataset.hashes_path), f"cannot be read: {error}")]
    if file_hash(dataset.hashes_path) != dataset.manifest["hashes"]:
        return [*problems, Problem(str(dataset.hashes_path), "is not the one the manifest names")]
    if on_files:
        on_files(1)
    with ThreadPoolExecutor(n_cpus()) as pool:
        for relative, found in zip(
            hashes, pool.map(file_hash, (dataset.folder / path for path in hashes)), strict=True
        ):
            if problem := _compare(dataset.folder / relative, found, hashes[relative]):
                problems.append(problem)
            if on_files:
                on_files(1)
    return problems


def _compare(path: Path, found: str, written: str) -> Problem | None:
    if found and found == written:
        return None
    return Problem(str(path), "has other bytes than were written" if found else "is missing or cannot be read")


def _written_hash(path: Path) -> str:
    try:
        return checksum_path(path).read_text().partition(" ")[0]
    except (OSError, ValueError):
        return ""


def prune(home: Home, keep_versions: int = 0, used: Sequence[str] = (), dry_run: bool = False) -> Pruned:
    """Delete the shards that no version uses, and old versions if asked; what an interrupted rebuild left goes too.

    Args:
        keep_versions: of each dataset, how many of the newest to keep; 0: all.
        used: references `name@version` that stay whatever their age, such as those that models were trained on.
        dry_run: only say what would be deleted.
    Raises:
        DatasetError: a manifest is damaged, so that nobody can tell what its version uses.
    """
    versions, n_files, n_bytes = [], 0, 0
    kept: list[DatasetVersion] = []
    of_name: dict[str, int] = {}
    latest = {folder.name: newest_version(home, folder.name) for folder in home.datasets.glob("*") if folder.is_dir()}
    pinned = {*used, *(dataset.reference for dataset in latest.values() if dataset)}
    for dataset in list_datasets(home):
        of_name[dataset.name] = of_name.get(dataset.name, 0) + 1
        if not keep_versions or of_name[dataset.name] <= keep_versions or dataset.reference in pinned:
            kept.append(dataset)
        else:
            versions.append(dataset)
    doomed = [path for folder in sorted(home.datasets.glob("*")) for path in _unused(folder, kept)]
    doomed += _unused_flat(home, kept)
    for path in doomed:
        n_files, n_bytes = n_files + 1, n_bytes + path.stat().st_size
    if not dry_run:
        for dataset in versions:  # before its shards: a kill in between must not leave a version without them
            dataset.manifest_path.unlink()
            shutil.rmtree(dataset.version_folder)
            shutil.rmtree(dataset.report.parent, ignore_errors=True)
        for path in doomed:
            path.unlink()
        for folder in _leftovers(home):
            shutil.rmtree(folder)
    return Pruned(tuple(dataset.reference for dataset in versions), n_files, n_bytes)


def _leftovers(home: Home) -> list[Path]:
    """Return what an interrupted publishing or pruning left: versions without a manifest, and reports of no version."""
    published = {dataset.version_folder for dataset in list_datasets(home)}
    versions = [path for path in home.datasets.glob("*/versions/*") if path.is_dir() and path not in published]
    reports = [path for path in home.datasets.glob("*/reports/*") if path.is_dir()]
    return versions + [path for path in reports if path.parents[1] / "versions" / path.name not in published]


def _unused_flat(home: Home, kept: Sequence[DatasetVersion]) -> list[Path]:
    """Return what the loader laid flat of shards that no version uses."""
    folder = home.cache / "tokens"
    used = {
        flat_path(shards, folder)
        for shards in (dataset.token_shards(split) for dataset in kept for split in SPLITS)
        if all(path.exists() for path in shards)  # else nobody can tell, and it can be made again
    }
    return sorted(path for path in folder.glob("*.tokens") if path not in used)


def _unused(folder: Path, kept: Sequence[DatasetVersion]) -> list[Path]:
    if not (folder / "versions").is_dir() and not any((folder / stage).is_dir() for stage in _STAGES):
        return []
    used = {path for dataset in kept if dataset.folder == folder for path in dataset.shards()}
    found = [path for stage in _STAGES for path in (folder / stage).rglob("*") if path.is_file()]
    return sorted(path for path in found if path not in used)
