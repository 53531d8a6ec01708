"""Labels of a source beside the music: licences by pattern, and an official split."""

import csv
import io
import posixpath
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from tasks.errors import DatasetError

LICENCE_FILE = "licences.csv"
_NAMES = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
_SPLITS = {name: split for split, names in _NAMES.items() for name in names}


def read_licences(path: Path) -> list[tuple[str, str]]:
    """Return the patterns and licences of a `licences.csv`, in order."""
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: {error}") from None
    reader = csv.DictReader(io.StringIO(text))
    names = reader.fieldnames or []
    if "pattern" not in names or "licence" not in names:
        raise DatasetError(f"{path}: columns are {', '.join(names) or 'none'}; it needs pattern and licence")
    pairs = []
    for row in reader:
        pattern, licence = (row["pattern"] or "").strip(), (row["licence"] or "").strip()
        if not pattern or not licence:
            raise DatasetError(f"{path}, line {reader.line_num}: a pattern and a licence are needed")
        pairs.append((pattern, licence))
    return pairs


def licence_column(paths: pa.Array, pairs: list[tuple[str, str]], default: str) -> pa.Array:
    """Return the licence of the first matching pattern for each path, or the default, or null.

    Args:
        paths: within the source, `/` between folders.
        pairs: pattern and licence; `*` matches anything, `/` included, `?` one character, `[ab]` one of some.
    """
    chosen = pa.repeat(pa.scalar(default or None, pa.string()), len(paths))
    for pattern, licence in reversed(pairs):
        chosen = pc.if_else(pc.match_substring_regex(paths, _as_regex(pattern)), licence, chosen)
    return chosen.dictionary_encode()


def _as_regex(pattern: str) -> str:
    pieces = re.split(r"(\*|\?|\[[^]]+\])", pattern)
    inner = "".join(
        {"*": ".*", "?": "."}.get(p) or (_as_class(p) if p.startswith("[") else re.escape(p)) for p in pieces
    )
    return f"(?s)^{inner}$"


def _as_class(pattern: str) -> str:
    inside = pattern[1:-1].replace("\\", "\\\\")
    return f"[^{inside[1:]}]" if inside.startswith("!") else f"[{inside}]"


def split_by_table(members: pa.Array, table: bytes, place: str, columns: tuple[str, str]) -> pa.Array:
    """Return the split of each archive member that an official table names; null for the others.

    Args:
        members: names in the archive.
        table: the CSV file's bytes.
        place: the CSV file's name in the archive; its file names are relative to its folder.
        columns: names of the columns for file and split.
    """
    reader = csv.DictReader(io.StringIO(table.decode("utf-8-sig")))
    file_column, split_column = columns
    if not {file_column, split_column} <= set(reader.fieldnames or []):
        raise DatasetError(f"{place}: no columns {file_column} and {split_column} in {reader.fieldnames}")
    names, splits = [], []
    for row in reader:
        split = _SPLITS.get((row[split_column] or "").strip().lower())
        if split is None:
            raise DatasetError(f"{place}, line {reader.line_num}: unknown split {row[split_column]!r}")
        names.append(posixpath.join(posixpath.dirname(place), row[file_column]).encode())
        splits.append(split)
    index = pc.index_in(members, value_set=pa.array(names, pa.binary()))
    return pa.array(splits, pa.string()).take(index).dictionary_encode()


def split_by_folders(members: pa.Array) -> pa.Array:
    """Return the split named by a folder in each member's path, or null."""
    found = [
        next((_SPLITS[part] for part in name.decode("latin-1").lower().split("/")[:-1] if part in _SPLITS), None)
        for name in members.to_pylist()
    ]
    return pa.array(found, pa.string()).dictionary_encode()
