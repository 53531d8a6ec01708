"""Dataset versions on disk."""

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
    """A published version: its manifest and the paths of its files."""

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
    def vocabulary(self) -> Path:
        """The names of all ids, one a line."""
        return self.report.with_name("vocabulary.txt")

    @property
    def scatter(self) -> Path:
        """The scatter picture of the notes."""
        return self.report.with_name("scatter.png")

    @property
    def reference(self) -> str:
        return f"{self.name}@{self.version}"

    def shards(self) -> list[Path]:
        """Return the shards of all stages: songs, analysis, tokens."""
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
        """The folder of the memory-mapped token files."""
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
    """Return the version that was built or confirmed last, or None."""
    latest = usable_version(home, name, _latest(home, name)[0])
    return latest or next(iter(list_datasets(home, name)), None)


def usable_version(home: Home, name: str, version: str) -> DatasetVersion | None:
    """Return a published version, or None if there is none or its manifest is damaged."""
    try:
        return find_version(home, name, version)
    except DatasetError as error:
        logger.warning("%s", error)
        return None


def _latest(home: Home, name: str) -> tuple[str, dict[str, int]]:
    """Return the version that was built or confirmed last, and a number for each version.

    The numbers count the builds and confirmations of a home, so that the order of versions depends on no clock. Without
    a usable record the version is `none`.
    """
    path = home.datasets / name / "latest.json"
    try:
        found = read_sealed(path, LATEST)
        if not _VERSION.fullmatch(found["version"]):
            raise DamagedFile(f"{path} is damaged: {found['version'][:60]!r} is no version")
    except FileNotFoundError:
        return "none", {}  # a kill came between a version and the pointer to it; the manifests' times give the order
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
    """Return a published version or None, or raise DatasetError if its manifest is damaged."""
    folder = home.datasets / name
    path = folder / "versions" / version / "manifest.json"
    return read_version(path) if path.exists() else None


def resolve_dataset(home: Home, reference: str = "") -> DatasetVersion:
    """Return the version of a reference: `name`, `name@version` with a unique prefix, or empty for the newest.

    Raises:
        NotFound: no such dataset or version; the message lists the known ones.
        DatasetError: its manifest is damaged.
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
    """Return the version of a manifest, or raise DatasetError if its checksum, shape or paths are wrong."""
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
        damaged: gets the error of each damaged manifest; without it, each is a warning.
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
