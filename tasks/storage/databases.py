"""Integrity checks of the SQLite databases of MLflow and Prefect, before a server or client opens them.

The checks find a file that is cut, overwritten or emptied, and tables that differ from their indexes. SQLite keeps no
checksums, so a flipped bit of a text is not found.
"""

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from tasks.errors import DamagedDatabase

QUICK_BYTES = 256 * 2**20  # a larger database is not read as a whole before a command
_MAGIC = b"SQLite format 3\0"
_PATIENCE_SECONDS = 5.0


def check_database(path: Path, what_is_lost: str, thorough: bool = False) -> None:
    """Raise DamagedDatabase if a database is damaged; one that is missing or in use passes.

    Args:
        what_is_lost: without the database, for the message.
        thorough: compare indexes with tables too, at any size: a second for some hundred megabytes.
    """
    problem = _problem_of(path, thorough)
    if problem:
        raise DamagedDatabase(
            f"{path} is damaged: {problem}; put a copy of it back, or move it away (mv '{path}' '{path}.damaged') and"
            f" go on without {what_is_lost}"
        )


def _problem_of(path: Path, thorough: bool) -> str:  # noqa: PLR0911  (one for each problem)
    try:
        with path.open("rb") as handle:
            head = handle.read(len(_MAGIC))
            size = handle.seek(0, 2)
        if not head and not _is_used(path.parent):
            return ""  # a kill came between making the file and writing to it
        if not head:
            return "it is empty"
        if head != _MAGIC:
            return "it is no SQLite database"
        if size > QUICK_BYTES and not thorough:
            return ""
        address = f"file:{quote(str(path))}?mode=ro"
        with closing(sqlite3.connect(address, uri=True, timeout=_PATIENCE_SECONDS)) as connection:
            found = connection.execute(f"PRAGMA {'integrity_check' if thorough else 'quick_check'}(1)").fetchone()
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    except sqlite3.DatabaseError as error:
        return "" if "locked" in str(error) else str(error)
    return "" if found and found[0] == "ok" else " ".join(str(found[0] if found else "no answer").split())


def _is_used(folder: Path) -> bool:
    """Return whether a folder holds more than SQLite's own files."""
    return any(not entry.name.endswith((".db", "-wal", "-shm", "-journal")) for entry in folder.iterdir())
