"""Upkeep of datasets: verification of versions, and deletion of files that no version uses."""

import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tasks.dataset.manifest import STAGES
from tasks.dataset.split import SPLITS
from tasks.dataset.token_cache import check_flat, flat_path
from tasks.dataset.versions import DatasetVersion, list_datasets, newest_version, read_version
from tasks.errors import DamagedFile, DatasetError
from tasks.runtime.cluster import n_cpus
from tasks.storage.home import Home
from tasks.storage.integrity import file_hash, read_checksum
from tasks.storage.strict_json import BadJson, check_shape, read_json

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Problem:
    """A file of a version with other bytes than were written."""

    path: str
    problem: str


@dataclass(frozen=True, slots=True)
class Pruned:
    """The versions and files that were deleted, or would be."""

    versions: tuple[str, ...]
    n_files: int
    n_bytes: int


def verify_version(dataset: DatasetVersion, on_files: Callable[[int], None] | None = None) -> list[Problem]:
    """Hash every file of a version again and compare with the digests of its publication."""
    own = [_compare(path, file_hash(path), read_checksum(path)) for path in (dataset.manifest_path, dataset.ledger)]
    problems = [problem for problem in own if problem]
    try:
        hashes = read_json(dataset.hashes_path)
        check_shape(hashes, {str: str})
    except (OSError, BadJson) as error:
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


def check_datasets(
    chosen: Sequence[DatasetVersion], on_files: Callable[[int], None] | None = None
) -> Iterator[tuple[str, Problem]]:
    """Yield every problem of some versions and of their flat token files, with the version's reference."""
    for dataset in chosen:
        for problem in verify_version(dataset, on_files):
            yield dataset.reference, problem
        for split in SPLITS:
            shards = dataset.token_shards(split)
            flat = flat_path(shards, dataset.flat_tokens) if all(path.exists() for path in shards) else None
            if flat and flat.exists() and (problem := _flat_problem(flat)):
                yield dataset.reference, problem


def _flat_problem(path: Path) -> Problem | None:
    try:
        check_flat(path)
    except (DamagedFile, OSError) as error:
        message = str(error).removeprefix(f"{path} ")
        return Problem(str(path), f"{message}; it is made again when it is asked for")
    return None


def _compare(path: Path, found: str, written: str) -> Problem | None:
    if found and found == written:
        return None
    return Problem(str(path), "has other bytes than were written" if found else "is missing or cannot be read")


def n_files_of(dataset: DatasetVersion) -> int:
    """Return the number of files that `verify_version` counts: shards and ledger."""
    return len(dataset.shards()) + 1


def prune(home: Home, keep_versions: int = 0, used: Sequence[str] = (), dry_run: bool = False) -> Pruned:
    """Delete the shards that no version uses, old versions if wanted, and the remains of interrupted rebuilds.

    Args:
        keep_versions: number of the newest versions of each dataset to keep; 0 keeps all.
        used: references `name@version` to keep at any age, such as those of trained models.
        dry_run: delete nothing.
    Raises:
        DatasetError: a manifest is damaged, so the files of its version are unknown. Its dataset is left alone, and
            the others were pruned.
    """
    versions, n_files, n_bytes = [], 0, 0
    kept: list[DatasetVersion] = []
    of_name: Counter[str] = Counter()
    damaged: list[DatasetError] = []
    listed = list_datasets(home, damaged=damaged)
    folders = [folder for folder in sorted(home.datasets.glob("*")) if folder.is_dir() and not _is_damaged(folder)]
    latest = [newest_version(home, folder.name) for folder in folders]
    pinned = {*used, *(dataset.reference for dataset in latest if dataset)}
    for dataset in listed:
        of_name[dataset.name] += 1
        is_kept = not keep_versions or of_name[dataset.name] <= keep_versions or dataset.reference in pinned
        if is_kept or dataset.folder not in folders:
            kept.append(dataset)
        else:
            versions.append(dataset)
    doomed = [path for folder in folders for path in _unused(folder, kept)]
    doomed += [] if damaged else _unused_flat(home, kept)
    for path in doomed:
        n_files, n_bytes = n_files + 1, n_bytes + path.stat().st_size
    if not dry_run:
        for dataset in versions:  # before its shards, because a kill must not leave a version without them
            dataset.manifest_path.unlink()
            shutil.rmtree(dataset.version_folder)
            shutil.rmtree(dataset.report.parent, ignore_errors=True)
        for path in doomed:
            path.unlink()
        for leftover in [path for folder in folders for path in _leftovers(folder)]:
            shutil.rmtree(leftover)
    if damaged:
        raise DatasetError(f"{damaged[0]}; nothing of that dataset was deleted, the others were pruned")
    return Pruned(tuple(dataset.reference for dataset in versions), n_files, n_bytes)


def _is_damaged(folder: Path) -> bool:
    """Return whether a dataset has a manifest that cannot be used."""
    try:
        for path in folder.glob("versions/[!.]*/manifest.json"):
            read_version(path)
    except DatasetError:
        return True
    return False


def _leftovers(folder: Path) -> list[Path]:
    """Return the remains of interrupted work: versions without a manifest, and reports without a version."""
    published = {path.parent for path in folder.glob("versions/[!.]*/manifest.json")}
    versions = [path for path in folder.glob("versions/*") if path.is_dir() and path not in published]
    reports = [path for path in folder.glob("reports/*") if path.is_dir()]
    return versions + [path for path in reports if path.parents[1] / "versions" / path.name not in published]


def _unused_flat(home: Home, kept: Sequence[DatasetVersion]) -> list[Path]:
    """Return the flat token files that no version uses."""
    folder = home.cache / "tokens"
    used = {
        flat_path(shards, folder)
        for shards in (dataset.token_shards(split) for dataset in kept for split in SPLITS)
        if all(path.exists() for path in shards)  # otherwise it is unknown, and the file can be made again
    }
    return sorted(path for path in folder.glob("*.tokens") if path not in used)


def _unused(folder: Path, kept: Sequence[DatasetVersion]) -> list[Path]:
    if not (folder / "versions").is_dir() and not any((folder / stage).is_dir() for stage in STAGES):
        return []
    used = {path for dataset in kept if dataset.folder == folder for path in dataset.shards()}
    found = [path for stage in STAGES for path in (folder / stage).rglob("*") if path.is_file()]
    return sorted(path for path in found if path not in used)
