"""Publication of a dataset version: its name, its number, its token shards and its manifest."""

import hashlib
import shutil
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.config.dataset import DatasetConfig
from tasks.config.serialization import digest, to_json
from tasks.dataset.analyse import AnalysisShard
from tasks.dataset.changes import compare_versions
from tasks.dataset.encode import TokenShard, plan_token_shards, read_counts
from tasks.dataset.leakage import LeakageReport
from tasks.dataset.ledger import Ledger, count_losses, count_notes, count_reasons, count_values
from tasks.dataset.split import SPLITS
from tasks.dataset.versions import DatasetVersion, newest_version, note_latest, read_version, usable_version
from tasks.errors import ConfigError, DamagedFile, DatasetError
from tasks.ingest.song_shards import SongShard, hash_words, hex_strings
from tasks.ingest.sources.spec import source_name
from tasks.music.tokenizers.optimus.characters import song_name
from tasks.music.tokenizers.registry import build_tokenizer, writes_names
from tasks.runtime.cluster import n_cpus
from tasks.storage.files import json_bytes, json_digest, publish_folder, sync, write_atomically
from tasks.storage.home import Home
from tasks.storage.integrity import checksum_path, file_hash
from tasks.storage.parquet import SCHEMA_NUMBER, read_table, write_table


def dataset_name(config: DatasetConfig) -> str:
    """Return the dataset's name: as given, otherwise made of the first source's."""
    if config.name:
        return config.name
    return source_name(config.sources[0]) if config.sources else "sample"


def settings_of(config: DatasetConfig) -> dict[str, Any]:
    """Return the settings that are part of a version, as JSON: all but names and places."""
    plain = to_json(config)
    for name in config.source_limits.NOT_IN_VERSION:
        del plain["source_limits"][name]
    return {key: value for key, value in plain.items() if key not in ("name", "sources", "rehash")}


def version_of(config: DatasetConfig, files: pa.Table) -> str:
    """Return the version that `config` and these scan rows determine: 16 hex digits.

    Contents, the licences and splits that the sources state, and settings count. Places and order do not, nor do names
    unless the encoding writes them.

    Raises:
        ConfigError: the encoding holds no flipped pitch, but pieces are to be flipped.
    """
    tokenizer = build_tokenizer(config.encoding)
    low, high = tokenizer.pitch_range
    if config.augment.flip and max(low, 127 - high) > min(high, 127 - low):
        raise ConfigError(
            f"dataset.augment.flip: {tokenizer.name} holds pitches {low}-{high} and none of their flips,"
            f" {127 - high}-{127 - low}"
        )
    files = files.select(["path", "reason", "content_hash", "licence", "split"])  # a filter copies every column
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
        "encoder": tokenizer.digest,
        "contents": hashlib.sha256(words[order].astype(">u8").tobytes()).hexdigest(),
        "stated": sorted(facts.dictionary.to_pylist()),
        "stated_of": hashlib.sha256(rank[order].astype(">u4").tobytes()).hexdigest(),
        "refused": sorted(f"{row['reason']}:{row['path']}" for row in refused.select(["reason", "path"]).to_pylist()),
    }
    if writes_names(config.encoding):
        named = files.filter(pc.is_valid(files.column("content_hash")))
        names = [song_name(path.rpartition("/")[2]) for path in named.column("path").to_pylist()]
        hashes = [content.hex() for content in named.column("content_hash").to_pylist()]
        identity["names"] = json_digest(sorted(zip(hashes, names, strict=True)))
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
    names = None
    if writes_names(config.encoding):
        accepted = ledger.table.filter(pc.equal(ledger.table["status"], "accepted"))
        paths = [path.rpartition("/")[2] for path in accepted["path"].to_pylist()]
        names = dict(zip(accepted["piece"].to_pylist(), paths, strict=True))
    return plan_token_shards(wanted, config.encoding, config.augment, folder / "tokens", config.windows, names)


def publish_version(
    home: Home, config: DatasetConfig, version: str, n_other_files: int, ledger: Ledger, leakage: LeakageReport,
    songs: Sequence[SongShard], analysis: Sequence[AnalysisShard], tokens: Sequence[TokenShard], n_homes: int = 0,
) -> DatasetVersion:  # fmt: skip
    """Publish the version of a rebuild; DatasetError where the encoding keeps no note of a split."""
    name = dataset_name(config)
    folder = home.datasets / name
    notes, tokenizer = count_notes(ledger.table), build_tokenizer(tokens[0].encoding)
    manifest = {
        "schema": SCHEMA_NUMBER,
        "name": name,
        "version": version,
        "config": settings_of(config),
        "encoder": {"name": tokenizer.name, "digest": tokenizer.digest, "settings": tokenizer.to_json()},
        "counts": _counts(ledger, n_other_files, n_homes),
        "notes": notes,
        "groups": _group_facts(ledger),
        "leakage": asdict(leakage),
        "splits": {split: _split_facts(split, ledger, tokens, folder) for split in SPLITS},
        "songs": [str(shard.path.relative_to(folder)) for shard in songs],
        "analysis": [str(shard.path.relative_to(folder)) for shard in analysis],
    }
    _refuse_empty_splits(config, manifest["splits"])
    manifest["counts"]["n_notes"] = notes["kept"]
    manifest["counts"]["n_tokens"] = sum(facts["n_tokens"] for facts in manifest["splits"].values())
    return write_version(home, DatasetVersion(name, version, folder, manifest), ledger.table)


def write_version(home: Home, dataset: DatasetVersion, ledger: pa.Table) -> DatasetVersion:
    """Write ledger and manifest of a version whose shards are written, and rename them into place in one step.

    Args:
        dataset: its manifest gets `changes` and `hashes`.
    """
    name, version, manifest = dataset.name, dataset.version, dataset.manifest
    final = dataset.version_folder
    temporary = final.with_name(f".{version}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    previous, earlier = newest_version(home, name), usable_version(home, name, version)
    if earlier:  # published before, but damaged or under other names since; its changes stay
        manifest["changes"] = earlier.manifest["changes"]
    else:
        manifest["changes"] = compare_versions(previous, manifest, ledger) if previous else None
    write_table(temporary / "pieces.parquet", ledger, {"dataset_version": version})
    hashes = _hash_shards(dataset)
    # The ledger has paths of this machine; the other hashes are the same on all machines.
    _write_checksum(temporary / "pieces.parquet")
    write_atomically(temporary / "hashes.json", json_bytes(hashes))
    manifest["hashes"] = file_hash(temporary / "hashes.json")
    write_atomically(temporary / "manifest.json", json_bytes(manifest))
    _write_checksum(temporary / "manifest.json")
    for stage in {path.parent for path in dataset.shards()}:
        sync(stage)
    publish_folder(temporary, final)
    note_latest(home, name, version)
    return read_version(final / "manifest.json")


def _hash_shards(dataset: DatasetVersion) -> dict[str, str]:
    """Return path -> SHA-256 of every shard."""
    paths = dataset.shards()
    with ThreadPoolExecutor(n_cpus()) as pool:
        hashes = list(pool.map(file_hash, paths))
    return {str(path.relative_to(dataset.folder)): found for path, found in zip(paths, hashes, strict=True)}


def _write_checksum(path: Path) -> None:
    write_atomically(checksum_path(path), f"{file_hash(path)}  {path.name}\n".encode())


def _counts(ledger: Ledger, n_other_files: int, n_homes: int) -> dict[str, Any]:
    table = ledger.table
    status = count_values(table, "status")
    return {
        "n_files": table.num_rows,
        "n_other_files": n_other_files,
        "n_homes_left_out": n_homes,
        "n_accepted": status["accepted"],
        "n_duplicate": status["duplicate"],
        "n_rejected": status["rejected"],
        "rejected_by_reason": dict(count_reasons(table, "rejected")),
        "duplicate_by_reason": dict(count_reasons(table, "duplicate")),
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


def holds_names(dataset: DatasetVersion, files: pa.Table) -> bool:
    """Return whether the ledger has the paths, sources and contents of the scan."""
    try:
        ledger = read_table(dataset.ledger, ["path", "source", "content_hash"])
    except (OSError, DamagedFile):
        return False  # publishing the version again repairs it
    hashes = hex_strings(files.column("content_hash").combine_chunks())
    scanned = [files.column("path"), files.column("source").cast(pa.string()), hashes]
    return ledger.equals(pa.table(scanned, names=ledger.column_names))
