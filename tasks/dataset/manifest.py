"""Validation of a dataset's manifest: keys, types and paths."""

from pathlib import PurePosixPath
from typing import Any

from tasks.dataset.split import SPLITS
from tasks.storage.strict_json import BadJson, check_shape

STAGES = ("songs", "analysis", "tokens")

_COUNT = ("n_files", "n_other_files", "n_accepted", "n_duplicate", "n_rejected", "n_notes", "n_tokens")
_SPLIT = ("n_rows", "n_pieces", "n_groups", "n_tokens", "n_notes", "max_tokens")
_CHANGES = {
    "previous": str,
    "settings": {str: list},
    "examples": {str: [str]},
    "shards": {stage: dict.fromkeys(("new", "kept", "gone"), int) for stage in STAGES},
} | dict.fromkeys(("n_added", "n_removed", "n_changed", "n_unchanged", "n_moved_pieces"), int)
_MANIFEST: dict[str, Any] = {
    "schema": int,
    "name": str,
    "version": str,
    "config": {"windows": {"bars": int}},
    "encoder": {"name": str, "digest": str, "settings": dict},
    "counts": dict.fromkeys(_COUNT, int)
    | {"rejected_by_reason": {str: int}, "duplicate_by_reason": {str: int}, "left_out_by_reader": {str: int}},
    "notes": {"found": int, "kept": int, "dropped": {str: int}},
    "groups": {"n_groups": int, "largest": int},
    "leakage": {"leaked_share": float, "max_leaked_share": float},
    "splits": {
        split: dict.fromkeys(_SPLIT, int) | {"seconds": float, "notes_dropped": {str: int}, "shards": [str]}
        for split in SPLITS
    },
    "songs": [str],
    "analysis": [str],
    "changes": (_CHANGES, None),
    "hashes": str,
}


def check_manifest(manifest: Any) -> None:
    """Raise BadJson if a manifest lacks a key, has a wrong type, or a path leads out of the dataset's folder."""
    check_shape(manifest, _MANIFEST)
    places = {stage: manifest[stage] for stage in ("songs", "analysis")}
    places["tokens"] = [path for split in SPLITS for path in manifest["splits"][split]["shards"]]
    for stage, paths in places.items():
        for path in paths:
            parts = PurePosixPath(path).parts  # an absolute one begins with /
            is_name = path.isprintable() and path.endswith(".parquet") and max(map(len, parts), default=0) < 120
            if not is_name or len(parts) > 5 or parts[:1] != (stage,) or ".." in parts:
                raise BadJson(f"it names {path[:100]!r}, which is no shard below {stage}/")
    for old_and_new in manifest["changes"]["settings"].values() if manifest["changes"] else ():
        if len(old_and_new) != 2:
            raise BadJson(f"changes.settings has {len(old_and_new)} values, not the old one and the new one")
