"""The catalog of public datasets, read from catalog.toml."""

import difflib
import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import Any

from tasks.errors import NotFound


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogEntry:
    """One public set."""

    name: str
    title: str
    page: str  # for people
    addresses: tuple[str, ...]  # tried in turn; none for a set to fetch by hand
    licence: str  # SPDX identifier where there is one, otherwise words
    citation: str
    n_files: int | None = None  # MIDI files, as the publisher counts them
    n_bytes: int | None = None  # of the download; None: not published
    sha256: str = ""  # empty: not published
    checksum_from: str = ""  # where size and checksum were read
    split_table: str = ""  # member of the archive with the official split
    split_columns: tuple[str, str] = ("", "")  # its columns: file, relative to the table's folder; split
    split_folders: bool = False  # folders named train, valid, test are the official split
    address_checked: bool = False
    remarks: str = ""

    def check_downloadable(self) -> None:
        """Raise NotFound if a user has to fetch the set by hand."""
        if not self.addresses:
            raise NotFound(
                f"catalog entry {self.name} has to be fetched by hand ({self.remarks}); get it from {self.page} and"
                f" give the file's path, with #licence={self.licence}"
            )


def _read_catalog() -> tuple[CatalogEntry, ...]:
    table = tomllib.loads((resources.files(__package__ or "") / "catalog.toml").read_text("utf-8"))
    entries = []
    for name, row in table.items():
        values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in row.items()}
        entries.append(CatalogEntry(name=name, **values))
    return tuple(entries)


CATALOG = _read_catalog()


def catalog_names() -> list[str]:
    """Return the names of all entries."""
    return [entry.name for entry in CATALOG]


def find_entry(name: str) -> CatalogEntry:
    """Return the entry of that name, in any case."""
    for entry in CATALOG:
        if entry.name == name.strip().lower():
            return entry
    near = difflib.get_close_matches(name.lower(), catalog_names(), n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(catalog_names())}"
    raise NotFound(f"catalog has no entry {name!r}; {hint}")
