"""Dataset versions: finding and reading them."""

import hashlib
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.dataset.manifest import check_manifest
from tasks.dataset.split import SPLITS
from tasks.errors import DamagedFile, DatasetError, NotFound
from tasks.storage.files import write_atomically
from tasks.storage.home import Home
from tasks.storage.integrity import (
    OTHER_BYTES,
    checksum_path,
    read_checksum,
    read_sealed,
    sealed_bytes,
    tell_unverified,
    warn_once,
)
from tasks.storage.strict_json import BadJson, parse_json

logger = logging.getLogger(__name__)

_VERSION = re.compile("[0-9a-f]{16}")
LATEST: dict[str, Any] = {"version": str, "numbers?": {str: int}}  # shape of `latest.json`


@dataclass(frozen=True, slots=True)
class DatasetVersion:
    """A published version: its manifest and where its files are."""

    name: str
    version: str
    folder: Path  # <home>/datasets/<name>
    manifest: dict[str, Any]

    @property
    def version_folder(self) -> Path:
        return self.folder / "versions" / self.version

    @property
    def ledger(self) -> Path:
        return self.version_folder / "pieces.parquet"

    @property
    def manifest_path(self) -> Path:
        return self.version_folder / "manifest.json"

    @property
    def hashes_path(self) -> Path:
        return self.version_folder / "hashes.json"

    @property
    def report(self) -> Path:
        return self.folder / "reports" / self.version / "report.html"

    @property
    def reference(self) -> str:
        return f"{self.name}@{self.version}"

    def shards(self) -> list[Path]:
        """Return every shard of the version: songs, analysis, tokens."""
        stages = [*self.manifest["songs"], *self.manifest["analysis"]]
        tokens = [path for split in SPLITS for path in self.token_shards(split)]
        return [*(self.folder / path for path in stages), *tokens]

    def missing_files(self) -> list[Path]:
        sums = (checksum_path(self.ledger), checksum_path(self.manifest_path))
        return [path for path in [self.ledger, self.hashes_path, *sums, *self.shards()] if not path.exists()]

    def token_shards(self, split: str) -> list[Path]:
        return [self.folder / path for path in self.manifest["splits"][split]["shards"]]

    @property
    def flat_tokens(self) -> Path:
        """Where the tokens of its splits lie flat for the loader, once they were asked for."""
        return Home(self.folder.parents[1]).cache / "tokens"

    def summary(self) -> dict[str, Any]:
        """Return the ids, paths and counts that commands print."""
        return {
            "dataset": self.name,
            "dataset_version": self.version,
            "dataset_dir": str(self.folder),
            "manifest": str(self.manifest_path),
            "ledger": str(self.ledger),
            "report": str(self.report) if self.report.exists() else "",
            **{key: value for key, value in self.manifest["counts"].items() if key.startswith("n_")},
        }


def newest_version(home: Home, name: str) -> DatasetVersion | None:
    """Return the version of a dataset that was built or confirmed last, or None."""
    latest = usable_version(home, name, _latest(home, name)[0])
    return latest or next(iter(list_datasets(home, name)), None)


def usable_version(home: Home, name: str, version: str) -> DatasetVersion | None:
    """Return a published version, or None where there is none or its manifest is damaged; a rebuild makes it again."""
    try:
        return find_version(home, name, version)
    except DatasetError as error:
        logger.warning("%s", error)
        return None


def _latest(home: Home, name: str) -> tuple[str, dict[str, int]]:
    """Return the version that was built or confirmed last, and the number of that event for each version.

    The numbers go through all datasets of a home, so that neither the order of versions nor that of datasets depends
    on a clock. Without a usable record the version is `none`.
    """
    path = home.datasets / name / "latest.json"
    try:
        found = read_sealed(path, LATEST)
        if not _VERSION.fullmatch(found["version"]):
            raise DamagedFile(f"{path} is damaged: {found['version'][:60]!r} is no version")
    except FileNotFoundError:
        return "none", {}  # a kill came between a version and the pointer to it; the manifests' times say as much
    except DamagedFile as error:
        warn_once(f"{error}; the newest version is known by the times of the manifests")
        return "none", {}
    return found["version"], found.get("numbers", {})


def note_latest(home: Home, name: str, version: str) -> None:
    """Record `version` as the newest of its dataset, with the next number of the home."""
    names = [path.parent.name for path in home.datasets.glob("*/latest.json")]
    numbers = {other: _latest(home, other)[1] for other in {*names, name}}
    last = max((number for some in numbers.values() for number in some.values()), default=0)
    following = last if last and numbers[name].get(version) == last else last + 1
    here = {path.name for path in (home.datasets / name / "versions").glob("[!.]*")}
    kept = {known: number for known, number in numbers[name].items() if known in here}
    record = {"version": version, "numbers": kept | {version: following}}
    write_atomically(home.datasets / name / "latest.json", sealed_bytes(record))


def find_version(home: Home, name: str, version: str) -> DatasetVersion | None:
    """Return a published version, or None.

    Raises:
        DatasetError: its manifest is damaged.
    """
    folder = home.datasets / name
    path = folder / "versions" / version / "manifest.json"
    return read_version(path) if path.exists() else None


def resolve_dataset(home: Home, reference: str = "") -> DatasetVersion:
    """Return the dataset version that `name`, `name@version` (or a unique prefix of it) or nothing (the newest) means.

    Raises:
        NotFound: no such dataset or version; the message lists what there is.
        DatasetError: it is the one that is meant whose manifest is damaged.
    """
    name, _, wanted = reference.partition("@")
    damaged: list[DatasetError] = []
    known = list_datasets(home, name or "*", damaged)
    if not known and damaged:
        raise damaged[0]
    if not known and not name:
        raise NotFound(f"home {home.root} holds no dataset yet; run `orchestrion rebuild` first")
    if not name:
        return known[0]
    if not known:
        others = sorted({entry.name for entry in list_datasets(home)})
        if not others:
            raise NotFound(f"home {home.root} holds no dataset yet; run `orchestrion rebuild` first")
        raise NotFound(f"no dataset {name!r} in {home.root}; known: {', '.join(others)}")
    if not wanted:
        latest = _latest(home, name)[0]
        return find_version(home, name, latest) or known[0]
    if damaged and _VERSION.fullmatch(wanted):
        find_version(home, name, wanted)  # raises where it is the damaged one
    matching = [entry for entry in known if entry.version.startswith(wanted)]
    if len(matching) != 1:
        listed = ", ".join(entry.version for entry in known)
        raise NotFound(f"dataset {name!r} has {len(matching)} versions like {wanted!r}; known: {listed}")
    return matching[0]


def read_version(path: Path) -> DatasetVersion:
    """Return the version of a manifest, checked by its checksum, its shape and the places that it names.

    Raises:
        DatasetError: it is damaged or no manifest of ours.
    """
    try:
        data = path.read_bytes()
        manifest = parse_json(data)
        check_manifest(manifest)
        written = read_checksum(path)
        if written and written != hashlib.sha256(data).hexdigest():
            raise BadJson(OTHER_BYTES)
    except BadJson as error:
        raise DatasetError(f"{path} is damaged ({error}); delete its folder and rebuild") from None
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from None
    if not written:
        tell_unverified(path)
    return DatasetVersion(path.parents[2].name, path.parent.name, path.parents[2], manifest)


def list_datasets(home: Home, name: str = "*", damaged: list[DatasetError] | None = None) -> list[DatasetVersion]:
    """Return every published version of every dataset or of one, the one built or confirmed last first.

    Args:
        damaged: gets the error of each manifest that cannot be used; without it, each is a warning.
    """
    found: list[tuple[DatasetVersion, Path]] = []
    for path in sorted(home.datasets.glob("*/versions/[!.]*/manifest.json")):
        if name not in ("*", path.parents[2].name):
            continue
        try:  # a dot before a name: not finished, or replaced
            found.append((read_version(path), path))
        except DatasetError as error:
            warn_once(f"{error}; it is left out")
            if damaged is not None:
                damaged.append(error)
    numbers = {name: _latest(home, name)[1] for name in {version.name for version, _ in found}}

    def place(entry: tuple[DatasetVersion, Path]) -> tuple[int, int]:
        version, path = entry
        return -numbers[version.name].get(version.version, 0), -path.stat().st_mtime_ns

    return [version for version, _ in sorted(found, key=place)]


def confirm(dataset: DatasetVersion) -> None:
    """Make an existing version the latest of its name again, because a rebuild reproduced it."""
    note_latest(Home(dataset.folder.parents[1]), dataset.name, dataset.version)
