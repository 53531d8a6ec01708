"""The difference between two dataset versions: files, pieces and shards."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.dataset.manifest import STAGES
from tasks.dataset.split import SPLITS
from tasks.errors import DamagedFile, DatasetError, words_of
from tasks.storage.parquet import read_table

if TYPE_CHECKING:
    from tasks.dataset.versions import DatasetVersion

_EXAMPLES = 5
_COLUMNS = ["path", "content_hash", "status", "split"]


def compare_versions(old: "DatasetVersion", manifest: Mapping[str, Any], ledger: pa.Table) -> dict[str, Any]:
    """Return the changes from `old` to the version of `manifest` and `ledger`.

    `changed` files have other contents under the same path. `moved_pieces` are contents in another split. `new` shards
    are those that the old version does not use.
    """
    files = _compare_files(_read_ledger(old), ledger.select(_COLUMNS))
    before = old.manifest["config"]
    settings = {key: [before.get(key), now] for key, now in manifest["config"].items() if before.get(key) != now}
    return {
        "previous": old.version,
        "settings": settings,
        **files,
        "shards": {stage: _compare_shards(old.manifest, manifest, stage) for stage in STAGES},
    }


def diff_versions(old: "DatasetVersion", new: "DatasetVersion") -> dict[str, Any]:
    """Return the changes between any two versions, as `compare_versions` does."""
    return compare_versions(old, new.manifest, _read_ledger(new))


def _read_ledger(dataset: "DatasetVersion") -> pa.Table:
    try:
        return read_table(dataset.ledger, _COLUMNS)
    except (OSError, DamagedFile) as error:
        raise DatasetError(
            f"{dataset.ledger} is missing or damaged ({words_of(error)}); delete {dataset.version_folder}, and"
            " build it anew if it is still needed"
        ) from None


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
    is_changed = _differ(old.column("content_hash"), both, new.column("content_hash"), new_place[both])
    added = np.flatnonzero(old_place < 0)
    removed = np.flatnonzero(new_place < 0)
    paths = {"added": (new, added), "removed": (old, removed), "changed": (old, both[is_changed])}
    return {
        **{f"n_{kind}": len(rows) for kind, (_, rows) in paths.items()},
        "n_unchanged": int(len(both) - is_changed.sum()),
        "n_moved_pieces": _moved_pieces(old, new),
        "examples": {
            kind: table.column("path").take(pa.array(rows[:_EXAMPLES])).to_pylist()
            for kind, (table, rows) in paths.items()
            if len(rows)
        },
    }


def _matched(old: pa.ChunkedArray, new: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Return for each new value its row among the old ones, and for each old one its row among the new; -1: none."""
    old_place = np.asarray(pc.index_in(new, value_set=old.combine_chunks()).fill_null(-1))
    new_place = np.full(len(old), -1)
    new_place[old_place[old_place >= 0]] = np.flatnonzero(old_place >= 0)
    return old_place, new_place


def _moved_pieces(old: pa.Table, new: pa.Table) -> int:
    old, new = (table.filter(pc.equal(table.column("status"), "accepted")) for table in (old, new))
    old_place, _ = _matched(old.column("content_hash"), new.column("content_hash"))
    both = np.flatnonzero(old_place >= 0)
    return int(_differ(old.column("split"), old_place[both], new.column("split"), both).sum())


def _differ(left: pa.ChunkedArray, left_rows: np.ndarray, right: pa.ChunkedArray, right_rows: np.ndarray) -> np.ndarray:
    """Return for each pair of rows whether the values differ, two nulls being equal."""
    one, other = left.take(pa.array(left_rows)), right.take(pa.array(right_rows))
    return ~np.asarray(pc.equal(pc.fill_null(one, ""), pc.fill_null(other, "")), np.bool_)
