"""What changed from one dataset version to another: files, pieces and shards."""

# pyarrow.compute makes its functions when it is imported, so the type checker does not see them.
# pyright: reportAttributeAccessIssue=false

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tasks.shards import read_table
from tasks.split import SPLITS

if TYPE_CHECKING:
    from tasks.datasets import DatasetVersion

_EXAMPLES = 5
_COLUMNS = ["path", "content_hash", "status", "split"]


def compare_versions(old: "DatasetVersion", manifest: Mapping[str, Any], ledger: pa.Table) -> dict[str, Any]:
    """Return what changed from `old` to the version that `manifest` and `ledger` describe; the same for both machines.

    Files are told apart by their path: `changed` have other contents under the same path. `moved_pieces` are contents
    that are in another split now. Of the shards, `new` are those the old version does not use.
    """
    before = read_table(old.ledger, _COLUMNS)
    files = _compare_files(before, ledger.select(_COLUMNS))
    settings = {
        key: [old.manifest["config"].get(key), value]
        for key, value in manifest["config"].items()
        if old.manifest["config"].get(key) != value
    }
    return {
        "previous": old.version,
        "settings": settings,
        **files,
        "shards": {stage: _compare_shards(old.manifest, manifest, stage) for stage in ("songs", "analysis", "tokens")},
    }


def diff_versions(old: "DatasetVersion", new: "DatasetVersion") -> dict[str, Any]:
    """Return what changed between any two versions, as `compare_versions` does."""
    return compare_versions(old, new.manifest, read_table(new.ledger, _COLUMNS))


def _compare_shards(old: Mapping[str, Any], new: Mapping[str, Any], stage: str) -> dict[str, int]:
    before, after = set(_shard_paths(old, stage)), set(_shard_paths(new, stage))
    return {"new": len(after - before), "kept": len(after & before), "gone": len(before - after)}


def _shard_paths(manifest: Mapping[str, Any], stage: str) -> list[str]:
    if stage == "tokens":
        return [path for split in SPLITS for path in manifest["splits"][split]["shards"]]
    return list(manifest[stage])


def _compare_files(old: pa.Table, new: pa.Table) -> dict[str, Any]:
    old_place, new_place = _matched(old.column("path"), new.column("path"))
    both = np.flatnonzero(new_place >= 0)
    old_hash, new_hash = _strings(old, "content_hash"), _strings(new, "content_hash")
    is_changed = old_hash[both] != new_hash[new_place[both]]
    added = np.flatnonzero(old_place < 0)
    removed = np.flatnonzero(new_place < 0)
    moved = _moved_pieces(old, new)
    paths = {"added": (new, added), "removed": (old, removed), "changed": (old, both[is_changed])}
    return {
        **{f"n_{kind}": len(rows) for kind, (_, rows) in paths.items()},
        "n_unchanged": int(len(both) - is_changed.sum()),
        "n_moved_pieces": moved,
        "examples": {
            kind: table.column("path").take(pa.array(rows[:_EXAMPLES])).to_pylist()
            for kind, (table, rows) in paths.items()
            if len(rows)
        },
    }


def _matched(old: pa.ChunkedArray, new: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Return for each new value its row among the old ones, and for each old one its row among the new; -1: none."""
    old_place = np.asarray(pa.compute.index_in(new, value_set=old.combine_chunks()).fill_null(-1))
    new_place = np.full(len(old), -1)
    new_place[old_place[old_place >= 0]] = np.flatnonzero(old_place >= 0)
    return old_place, new_place


def _moved_pieces(old: pa.Table, new: pa.Table) -> int:
    """Count accepted contents that are in another split than before."""
    old, new = (table.filter(pa.compute.equal(table.column("status"), "accepted")) for table in (old, new))
    old_place, _ = _matched(old.column("content_hash"), new.column("content_hash"))
    both = np.flatnonzero(old_place >= 0)
    return int(np.sum(_strings(old, "split")[old_place[both]] != _strings(new, "split")[both]))


def _strings(table: pa.Table, name: str) -> np.ndarray:
    return np.array(pa.compute.fill_null(table.column(name), "").to_pylist(), object)
