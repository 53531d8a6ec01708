"""Dataset versions: building one from a source, publishing it in one step, finding it again."""

import json
import logging
import os
import shutil
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from tasks.config import DatasetConfig, digest, to_json
from tasks.encode import TokenShard, plan_token_shards, read_counts
from tasks.errors import DatasetError, NotFound
from tasks.home import Home, json_bytes, publish_folder, read_json, write_atomically
from tasks.ingest import SongShard
from tasks.music.tokenizers.registry import build_tokenizer
from tasks.scan import HashedFile, Scan
from tasks.shards import LEDGER_SCHEMA, SCHEMA_NUMBER, read_table, write_table
from tasks.split import SPLITS, split_groups

logger = logging.getLogger(__name__)

LEDGER_COLUMNS = ["piece", "content_hash", "status", "reason", "detail", "dropped"]
LEDGER_COLUMNS += ["n_notes", "seconds", "ticks_per_quarter", "programs"]


@dataclass(frozen=True, slots=True)
class DatasetVersion:
    """A published version: its manifest and where its files are."""

    name: str
    version: str
    folder: Path  # <home>/datasets/<name>
    manifest: dict[str, Any]

    @property
    def ledger(self) -> Path:
        return self.folder / "versions" / self.version / "pieces.parquet"

    @property
    def manifest_path(self) -> Path:
        return self.folder / "versions" / self.version / "manifest.json"

    @property
    def reference(self) -> str:
        return f"{self.name}@{self.version}"

    def missing_files(self) -> list[Path]:
        """Return the files of the version that are not there any more."""
        shards = [path for split in SPLITS for path in self.token_shards(split)]
        songs = [self.folder / path for path in self.manifest["songs"]]
        return [path for path in [self.ledger, *songs, *shards] if not path.exists()]

    def token_shards(self, split: str) -> list[Path]:
        """Return the token shards of one split, in the manifest's order."""
        return [self.folder / path for path in self.manifest["splits"][split]["shards"]]

    def summary(self) -> dict[str, Any]:
        """Return the ids, paths and counts that commands print."""
        return {
            "dataset": self.name,
            "dataset_version": self.version,
            "dataset_dir": str(self.folder),
            "manifest": str(self.manifest_path),
            "ledger": str(self.ledger),
            **{key: self.manifest["counts"][key] for key in self.manifest["counts"] if key.startswith("n_")},
        }


def dataset_name(config: DatasetConfig) -> str:
    """Return the dataset's name: as given, else made of the source folder's name."""
    if config.name:
        return config.name
    if not config.source:
        return "sample"
    stem = Path(config.source).resolve().name.lower()
    cleaned = "".join(c if c.isascii() and (c.isalnum() or c in "_.-") else "-" for c in stem).strip("-._")
    return cleaned[:64] or "dataset"


def version_of(config: DatasetConfig, hashed: list[HashedFile]) -> str:
    """Return the version that `config` and these inputs determine: 16 hex digits.

    The name, the source's place, the files' names and their order do not count; contents and settings do.
    """
    identity = {
        "schema": SCHEMA_NUMBER,
        "config": to_json(replace(config, name="", source="")),
        "encoder": build_tokenizer(config.encoding).digest,
        "contents": sorted(entry.content_hash or f"unreadable:{entry.file.path}" for entry in hashed),
    }
    return digest(identity)[:16]


def read_song_rows(shards: list[SongShard]) -> dict[str, dict[str, Any]]:
    """Return content hash -> the song shard's row without its notes, plus the shard it is in."""
    rows = {}
    for shard in shards:
        for row in read_table(shard.path, LEDGER_COLUMNS).to_pylist():
            rows[row["content_hash"]] = row | {"shard": shard.path}
    return rows


def build_ledger(
    config: DatasetConfig, hashed: list[HashedFile], rows: dict[str, dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return one ledger row for each file found, each accepted, duplicate or rejected.

    Raises:
        DatasetError: no usable file, fewer than one for each split, or more rejected than `max_reject_share`.
    """
    first_path: dict[str, str] = {}
    ledger = []
    for entry in hashed:
        base = {"path": entry.file.path, "content_hash": entry.content_hash or None, "n_bytes": entry.file.n_bytes}
        row = rows.get(entry.content_hash)
        if row is None:
            ledger.append(base | {"status": "rejected", "reason": "unreadable_file", "detail": entry.problem})
            continue
        facts = {key: row[key] for key in ("piece", "n_notes", "seconds", "ticks_per_quarter", "programs")}
        if row["status"] == "rejected":
            ledger.append(
                base | {"status": "rejected", "reason": row["reason"], "detail": row["detail"], "piece": row["piece"]}
            )
        elif entry.content_hash in first_path:
            original = first_path[entry.content_hash]
            ledger.append(
                base
                | facts
                | {"status": "duplicate", "reason": "same_content", "duplicate_of": original, "group": row["piece"]}
            )
        else:
            first_path[entry.content_hash] = entry.file.path
            ledger.append(base | facts | {"status": "accepted", "group": row["piece"]})
    _refuse_unusable(config, ledger)
    groups = Counter(row["group"] for row in ledger if row["status"] == "accepted")
    splits = split_groups(groups, config.validation_share, config.test_share, config.split_seed)
    for row in ledger:
        row["split"] = splits[row["group"]] if row["status"] == "accepted" else None
    return ledger


def _refuse_unusable(config: DatasetConfig, ledger: list[dict[str, Any]]) -> None:
    n_rejected = sum(row["status"] == "rejected" for row in ledger)
    reasons = Counter(row["reason"] for row in ledger if row["status"] == "rejected")
    said = ", ".join(f"{n} {reason}" for reason, n in reasons.most_common(4))
    if n_rejected == len(ledger):
        raise DatasetError(f"source {config.source}: none of its {len(ledger)} files is usable ({said})")
    if n_rejected / len(ledger) > config.max_reject_share:
        raise DatasetError(
            f"source {config.source}: {n_rejected} of {len(ledger)} files rejected ({said}), more than"
            f" dataset.max_reject_share={config.max_reject_share}"
        )


def plan_tokens(
    config: DatasetConfig, ledger: list[dict[str, Any]], rows: dict[str, dict[str, Any]], folder: Path
) -> list[TokenShard]:
    """Return the token shards that the ledger's accepted pieces need."""
    by_shard: dict[Path, dict[str, str]] = {}
    for entry in ledger:
        if entry["status"] == "accepted":
            by_shard.setdefault(rows[entry["content_hash"]]["shard"], {})[entry["piece"]] = entry["split"]
    return plan_token_shards(by_shard, config.encoding, config.augment, folder / "tokens")


def publish(
    home: Home, config: DatasetConfig, version: str, scan: Scan, ledger: list[dict[str, Any]],
    rows: dict[str, dict[str, Any]], songs: list[SongShard], tokens: list[TokenShard],
) -> DatasetVersion:  # fmt: skip
    """Write ledger and manifest into a temporary folder and rename it into place: all of a version or none of it.

    Raises:
        DatasetError: nothing is left for the encoding in a split.
    """
    name = dataset_name(config)
    folder = home.datasets / name
    final = folder / "versions" / version
    temporary = folder / "versions" / f".{version}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    manifest = _manifest(config, name, version, scan, ledger, rows, songs, tokens, folder)
    write_table(
        temporary / "pieces.parquet", pa.Table.from_pylist(ledger, schema=LEDGER_SCHEMA), {"dataset_version": version}
    )
    write_atomically(temporary / "manifest.json", json_bytes(manifest))
    publish_folder(temporary, final)
    write_atomically(folder / "latest.json", json_bytes({"version": version}))
    return DatasetVersion(name, version, folder, manifest)


def _manifest(
    config: DatasetConfig, name: str, version: str, scan: Scan, ledger: list[dict[str, Any]],
    rows: dict[str, dict[str, Any]], songs: list[SongShard], tokens: list[TokenShard], folder: Path,
) -> dict[str, Any]:  # fmt: skip
    tokenizer = build_tokenizer(config.encoding)
    splits = {split: _split_facts(config, split, tokens, folder) for split in SPLITS}
    status = Counter(row["status"] for row in ledger)
    read_losses: Counter[str] = Counter()
    for row in rows.values():
        if row["dropped"]:
            read_losses.update(json.loads(row["dropped"]))
    return {
        "schema": SCHEMA_NUMBER,
        "name": name,
        "version": version,
        "config": to_json(replace(config, name="", source="")),
        "encoder": {"name": tokenizer.name, "digest": tokenizer.digest, "settings": tokenizer.to_json()},
        "counts": {
            "n_files": len(ledger),
            "n_other_files": scan.n_other_files,
            "n_accepted": status["accepted"],
            "n_duplicate": status["duplicate"],
            "n_rejected": status["rejected"],
            "n_notes": sum(row["n_notes"] for row in ledger if row["status"] == "accepted"),
            "n_tokens": sum(facts["n_tokens"] for facts in splits.values()),
            "rejected_by_reason": dict(
                sorted(Counter(r["reason"] for r in ledger if r["status"] == "rejected").items())
            ),
            "left_out_by_reader": dict(sorted(read_losses.items())),
        },
        "splits": splits,
        "songs": [str(shard.path.relative_to(folder)) for shard in songs],
    }


def _split_facts(config: DatasetConfig, split: str, tokens: list[TokenShard], folder: Path) -> dict[str, Any]:
    shards = [shard for shard in tokens if shard.split == split]
    counts = [asdict(read_counts(shard.path)) for shard in shards]
    dropped: Counter[str] = Counter()
    for shard_counts in counts:
        dropped.update(shard_counts.pop("notes_dropped"))
    max_tokens = max(shard_counts.pop("max_tokens") for shard_counts in counts)
    totals = {key: sum(shard_counts[key] for shard_counts in counts) for key in counts[0]}
    if totals["n_rows"] == 0:
        raise DatasetError(
            f"source {config.source}: no piece of split {split} has a note that encoding {config.encoding.name} keeps"
            f" ({', '.join(f'{n} {reason}' for reason, n in dropped.items() if n)} dropped)"
        )
    paths = [str(shard.path.relative_to(folder)) for shard in shards]
    return totals | {
        "seconds": round(totals["seconds"], 3),
        "max_tokens": max_tokens,
        "notes_dropped": dict(dropped),
        "shards": paths,
    }


def find_version(home: Home, name: str, version: str) -> DatasetVersion | None:
    """Return a published version, or None."""
    folder = home.datasets / name
    path = folder / "versions" / version / "manifest.json"
    return _read_version(path) if path.exists() else None


def resolve_dataset(home: Home, reference: str = "") -> DatasetVersion:
    """Return the dataset version that `name`, `name@version` (or a unique prefix of it) or nothing (the newest) means.

    Raises:
        NotFound: no such dataset or version; the message lists what there is.
    """
    name, _, wanted = reference.partition("@")
    known = list_datasets(home)
    if not known:
        raise NotFound(f"home {home.root} holds no dataset yet; run `orchestrion rebuild` first")
    if not name:
        return known[0]
    versions = [entry for entry in known if entry.name == name]
    if not versions:
        raise NotFound(f"no dataset {name!r} in {home.root}; known: {', '.join(sorted({d.name for d in known}))}")
    if not wanted:
        latest = read_json(home.datasets / name / "latest.json")["version"]
        return next(entry for entry in versions if entry.version == latest)
    matching = [entry for entry in versions if entry.version.startswith(wanted)]
    if len(matching) != 1:
        listed = ", ".join(entry.version for entry in versions)
        raise NotFound(f"dataset {name!r} has {len(matching)} versions like {wanted!r}; known: {listed}")
    return matching[0]


def _read_version(path: Path) -> DatasetVersion:
    try:
        manifest = read_json(path)
    except ValueError as error:
        raise DatasetError(f"{path} is damaged ({error}); delete its folder and rebuild") from None
    return DatasetVersion(path.parents[2].name, path.parent.name, path.parents[2], manifest)


def list_datasets(home: Home) -> list[DatasetVersion]:
    """Return every published version, the one built or confirmed last first."""
    manifests = sorted(home.datasets.glob("*/versions/*/manifest.json"), key=lambda p: (-p.stat().st_mtime_ns, str(p)))
    return [_read_version(path) for path in manifests]


def confirm(dataset: DatasetVersion) -> None:
    """Make an existing version the latest of its name again: a rebuild found that its source still says so."""
    write_atomically(dataset.folder / "latest.json", json_bytes({"version": dataset.version}))
    os.utime(dataset.manifest_path)
