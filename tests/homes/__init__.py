"""Homes that earlier versions of the code made, packed, so that tests see today's code open them."""

import sqlite3
import tarfile
from contextlib import closing
from pathlib import Path

HERE = Path(__file__).resolve().parent
MADE_AT = "/tmp/old"  # MLflow's database holds absolute addresses


def unpack_home(commit: str, folder: Path) -> tuple[Path, Path]:
    """Unpack the home that `commit` made below `folder`, and return it and the folder of its source files."""
    with tarfile.open(HERE / f"{commit}.tar.xz") as packed:
        packed.extractall(folder, filter="data")
    _move_addresses(folder / "home" / "mlflow" / "mlflow.db", str(folder))
    return folder / "home", folder / "midi"


def _move_addresses(database: Path, folder: str) -> None:
    with closing(sqlite3.connect(database)) as connection, connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            for column in [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]:
                connection.execute(
                    f'UPDATE "{table}" SET "{column}" = replace("{column}", ?, ?) WHERE "{column}" LIKE ?',
                    (MADE_AT, folder, f"%{MADE_AT}%"),
                )
