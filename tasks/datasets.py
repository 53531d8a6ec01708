"""Dataset versions: what determines one, building its manifest, publishing it in one step, finding it again."""

# pyarrow.compute makes its functions when it is imported, so the type checker does not see them.
# pyright: reportAttributeAccessIssue=false

import hashlib
import logging
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.analyse import AnalysisShard
from tasks.cluster import n_cpus
from tasks.config import DatasetConfig, digest, to_json
from tasks.dataset_changes import compare_versions
from tasks.encode import TokenShard, plan_token_shards, read_counts
from tasks.errors import DatasetError, NotFound
from tasks.home import Home, json_bytes, publish_folder, read_json, sync_folder, write_atomically
from tasks.ingest import SongShard, hash_words, hex_strings
from tasks.leakage import LeakageReport
from tasks.ledger import Ledger, count_losses, count_notes, count_reasons, count_values
from tasks.music.tokenizers.registry import TokenizerConfig, build_tokenizer
from tasks.shards import SCHEMA_NUMBER, read_table, write_table
from tasks.sources.spec import source_name
from tasks.split import SPLITS

logger = logging.getLogger(__name__)


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
        """Return the files of the version that are not there any more."""
        sums = (checksum_path(self.ledger), checksum_path(self.manifest_path))
        return [path for path in [self.ledger, self.hashes_path, *sums, *self.shards()] if not path.exists()]

    def token_shards(self, split: str) -> list[Path]:
        """Return the token shards of one split, in the manifest's order."""
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


def dataset_name(config: DatasetConfig) -> str:
    """Return the dataset's name: as given, else made of the first source's."""
    if config.name:
        return config.name
    return source_name(config.sources[0]) if config.sources else "sample"


def settings_of(config: DatasetConfig) -> dict[str, Any]:
    """Return the settings that are part of a version, as JSON: all but names and places."""
    plain = to_json(replace(config, name="", sources=(), rehash=False))
    return {key: value for key, value in plain.items() if key not in ("name", "sources", "rehash")}


def version_of(config: DatasetConfig, files: pa.Table) -> str:
    """Return the version that `config` and these scan rows determine: 16 hex digits.

    The dataset's name, the sources' places, the files' names and their order do not count; contents, what the sources
    state of them, and settings do.
    """
    files = files.select(["path", "reason", "content_hash", "licence", "split"])  # a filter copies what it sees
    readable = files.drop_columns(["path", "reason"]).filter(pc.is_valid(files.column("content_hash")))
    words = hash_words(readable.column("content_hash").combine_chunks())
    stated = [pc.fill_null(readable.column(name).cast(pa.string()), "") for name in ("licence", "split")]
    facts = pc.binary_join_element_wise(*stated, "|").combine_chunks().dictionary_encode()
    rank = np.argsort(np.argsort(np.array(facts.dictionary.to_pylist(), object)))[facts.indices.to_numpy()]
    order = np.lexsort([rank, *words.T[::-1]])
    refused = files.filter(pc.is_null(files.column("content_hash")))
    identity = {
        "schema": SCHEMA_NUMBER,
        "config": settings_of(config),
        "encoder": build_tokenizer(config.encoding).digest,
        "contents": hashlib.sha256(words[order].astype(">u8").tobytes()).hexdigest(),
        "stated": sorted(facts.dictionary.to_pylist()),
        "stated_of": hashlib.sha256(rank[order].astype(">u4").tobytes()).hexdigest(),
        "refused": sorted(f"{row['reason']}:{row['path']}" for row in refused.select(["reason", "path"]).to_pylist()),
    }
    return digest(identity)[:16]


def plan_tokens(config: DatasetConfig, ledger: Ledger, songs: Sequence[SongShard], folder: Path) -> list[TokenShard]:
    """Return the token shards that the ledger's accepted pieces need."""
    wanted = []
    split_of = np.asarray(pc.index_in(ledger.pieces.column("split"), pa.array(SPLITS)))
    for number in range(len(songs)):
        begin, end = np.searchsorted(ledger.shard, [number, number + 1])
        pieces = ledger.pieces.column("piece").slice(begin, end - begin).combine_chunks()
        for split in range(len(SPLITS)):
            chosen = pieces.filter(pa.array(split_of[begin:end] == split))
            if len(chosen):
                wanted.append((songs[number].path, SPLITS[split], chosen))
    return plan_token_shards(wanted, config.encoding, config.augment, folder / "tokens", config.windows)


def publish(
    home: Home, config: DatasetConfig, version: str, n_other_files: int, ledger: Ledger, leakage: LeakageReport,
    songs: Sequence[SongShard], analysis: Sequence[AnalysisShard], tokens: Sequence[TokenShard],
) -> DatasetVersion:  # fmt: skip
    """Write ledger and manifest into a temporary folder and rename it into place: all of a version or none of it.

    Raises:
        DatasetError: nothing is left for the encoding in a split.
    """
    name = dataset_name(config)
    folder = home.datasets / name
    final, temporary = folder / "versions" / version, folder / "versions" / f".{version}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    notes = count_notes(ledger.table)
    manifest = {
        "schema": SCHEMA_NUMBER,
        "name": name,
        "version": version,
        "config": settings_of(config),
        "encoder": _encoder_facts(tokens[0].encoding),
        "counts": _counts(ledger, n_other_files),
        "notes": notes,
        "groups": _group_facts(ledger),
        "leakage": leakage.as_json(),
        "splits": {split: _split_facts(split, ledger, tokens, folder) for split in SPLITS},
        "songs": [str(shard.path.relative_to(folder)) for shard in songs],
        "analysis": [str(shard.path.relative_to(folder)) for shard in analysis],
    }
    _refuse_empty_splits(config, manifest["splits"])
    manifest["counts"]["n_notes"] = notes["kept"]
    manifest["counts"]["n_tokens"] = sum(facts["n_tokens"] for facts in manifest["splits"].values())
    previous, earlier = newest_version(home, name), find_version(home, name, version)
    if earlier:  # published before, but damaged or under other names since: what it said of changes stands
        manifest["changes"] = earlier.manifest["changes"]
    else:
        manifest["changes"] = compare_versions(previous, manifest, ledger.table) if previous else None
    write_table(temporary / "pieces.parquet", ledger.table, {"dataset_version": version})
    hashes = _hash_shards(DatasetVersion(name, version, folder, manifest), earlier or previous)
    # The ledger names paths of this machine, so its hash is kept apart from what is the same on all of them.
    _write_checksum(temporary / "pieces.parquet")
    write_atomically(temporary / "hashes.json", json_bytes(hashes))
    manifest["hashes"] = file_hash(temporary / "hashes.json")
    write_atomically(temporary / "manifest.json", json_bytes(manifest))
    _write_checksum(temporary / "manifest.json")
    for stage in {path.parent for path in DatasetVersion(name, version, folder, manifest).shards()}:
        sync_folder(stage)
    publish_folder(temporary, final)
    write_atomically(folder / "latest.json", json_bytes({"version": version}))
    return _read_version(final / "manifest.json")


def _hash_shards(dataset: DatasetVersion, previous: DatasetVersion | None) -> dict[str, str]:
    """Return path -> SHA-256 of every shard; a shard of the previous version is known already."""
    known = _known_hashes(previous) if previous else {}
    paths = {str(path.relative_to(dataset.folder)): path for path in dataset.shards()}
    if previous and known:  # a shard that is younger was built again, perhaps by another version of pyarrow
        written = previous.hashes_path.stat().st_mtime_ns
        known = {n: value for n, value in known.items() if n in paths and paths[n].stat().st_mtime_ns <= written}
    new = [name for name in paths if name not in known]
    with ThreadPoolExecutor(n_cpus()) as pool:
        hashed = dict(zip(new, pool.map(file_hash, (paths[name] for name in new)), strict=True))
    return {name: hashed.get(name) or known[name] for name in paths}


def _known_hashes(dataset: DatasetVersion) -> dict[str, str]:
    is_whole = file_hash(dataset.hashes_path) == dataset.manifest["hashes"]
    return read_json(dataset.hashes_path) if is_whole else {}


def checksum_path(path: Path) -> Path:
    """Return where the SHA-256 of a version's own file is written, as `sha256sum --check` reads it."""
    return path.with_name(f"{path.name}.sha256")


def _write_checksum(path: Path) -> None:
    write_atomically(checksum_path(path), f"{file_hash(path)}  {path.name}\n".encode())


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file as hex, empty if it cannot be read."""
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError:
        return ""


def _encoder_facts(encoding: TokenizerConfig) -> dict[str, Any]:
    tokenizer = build_tokenizer(encoding)
    return {"name": tokenizer.name, "digest": tokenizer.digest, "settings": tokenizer.to_json()}


def _counts(ledger: Ledger, n_other_files: int) -> dict[str, Any]:
    table = ledger.table
    status = count_values(table, "status")
    reasons = {state: dict(count_reasons(table, state)) for state in ("rejected", "duplicate")}
    return {
        "n_files": table.num_rows,
        "n_other_files": n_other_files,
        "n_accepted": status["accepted"],
        "n_duplicate": status["duplicate"],
        "n_rejected": status["rejected"],
        "rejected_by_reason": reasons["rejected"],
        "duplicate_by_reason": reasons["duplicate"],
        "left_out_by_reader": count_losses(table),
    }


def _group_facts(ledger: Ledger) -> dict[str, int]:
    groups = ledger.groups
    return {
        "n_groups": groups.n_groups,
        "largest": groups.largest,
        "n_pieces_in_larger_groups": int(np.sum(np.bincount(groups.component)[groups.component] > 1)),
        "n_links": groups.n_links,
        "n_candidates": groups.n_candidates,
        "n_guarded": groups.n_guarded,
        "n_parted": groups.n_parted,
    }


def _split_facts(split: str, ledger: Ledger, tokens: Sequence[TokenShard], folder: Path) -> dict[str, Any]:
    shards = [shard for shard in tokens if shard.split == split]
    counts = [asdict(read_counts(shard.path)) for shard in shards]
    dropped: Counter[str] = Counter()
    for shard_counts in counts:
        dropped.update(shard_counts.pop("notes_dropped"))
    max_tokens = max((shard_counts.pop("max_tokens") for shard_counts in counts), default=0)
    totals = {key: sum(shard_counts[key] for shard_counts in counts) for key in (counts[0] if counts else ("n_rows",))}
    in_split = ledger.pieces.filter(pc.equal(ledger.pieces.column("split"), split))
    return totals | {
        "n_groups": len(pc.unique(in_split.column("group"))),
        "seconds": round(totals.get("seconds", 0.0), 3),
        "max_tokens": max_tokens,
        "notes_dropped": dict(dropped),
        "shards": [str(shard.path.relative_to(folder)) for shard in shards],
    }


def _refuse_empty_splits(config: DatasetConfig, splits: dict[str, dict[str, Any]]) -> None:
    for split, facts in splits.items():
        if facts["n_rows"] == 0:
            dropped = ", ".join(f"{n} {reason}" for reason, n in facts["notes_dropped"].items() if n) or "no notes"
            raise DatasetError(
                f"no piece of split {split} has a note that encoding {config.encoding.name} keeps ({dropped} dropped)"
            )


def newest_version(home: Home, name: str) -> DatasetVersion | None:
    """Return the version of a dataset that was built or confirmed last, or None."""
    latest = find_version(home, name, _latest(home, name))
    return latest or next(iter(list_datasets(home, name)), None)


def _latest(home: Home, name: str) -> str:
    try:
        return read_json(home.datasets / name / "latest.json")["version"]
    except (OSError, ValueError, KeyError):
        return "none"  # a kill came between a version and the pointer to it; the manifests' times say as much


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
        return next((entry for entry in versions if entry.version == _latest(home, name)), versions[0])
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


def list_datasets(home: Home, name: str = "*") -> list[DatasetVersion]:
    """Return every published version of every dataset or of one, the one built or confirmed last first."""
    found = home.datasets.glob(f"{name}/versions/[!.]*/manifest.json")  # a dot: not finished, or replaced
    return [_read_version(path) for path in sorted(found, key=lambda p: (-p.stat().st_mtime_ns, str(p)))]


def holds_names(dataset: DatasetVersion, files: pa.Table) -> bool:
    """Tell whether the ledger calls the files as the scan does; contents may be the same under other names."""
    try:
        ledger = read_table(dataset.ledger, ["path", "source", "content_hash"])
    except (OSError, pa.ArrowException):
        return False  # damaged; publishing it again mends it
    if not ledger.column("path").equals(files.column("path")):
        return False
    if not ledger.column("source").equals(files.column("source").cast(pa.string())):
        return False
    return (
        ledger.column("content_hash")
        .combine_chunks()
        .equals(hex_strings(files.column("content_hash").combine_chunks()))
    )


def confirm(dataset: DatasetVersion) -> None:
    """Make an existing version the latest of its name again: a rebuild found that its sources still say so."""
    write_atomically(dataset.folder / "latest.json", json_bytes({"version": dataset.version}))
    os.utime(dataset.manifest_path)
