"""Completion of option values in a shell; nothing heavy is imported."""

import os
import sqlite3
from collections.abc import Iterable
from pathlib import Path

import typer


def presets(incomplete: str) -> list[str]:
    """Return the presets that begin with what is typed."""
    from tasks.config.presets import PRESETS

    return _beginning(incomplete, PRESETS)


def encodings(incomplete: str) -> list[str]:
    """Return the encodings that begin with what is typed."""
    from tasks.music.tokenizers.registry import ENCODINGS

    return _beginning(incomplete, ENCODINGS)


def datasets(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the datasets of the home, or behind an `@` the versions of one."""
    folder = _home(ctx) / "datasets"
    name, at, _ = incomplete.partition("@")
    if not at:
        return _beginning(incomplete, sorted(path.name for path in folder.glob("*/")))
    versions = sorted(path.parent.name for path in folder.glob(f"{name}/versions/*/manifest.json"))
    return _beginning(incomplete, [f"{name}@{version}" for version in versions])


def models(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the registered models of the home, or behind an `@` the versions and aliases of one.

    They are read from MLflow's SQLite file; a tracking server is not asked.
    """
    from tasks.tracking.sqlite_store import read_versions

    path = _home(ctx) / "mlflow" / "mlflow.db"
    if os.environ.get("MLFLOW_TRACKING_URI") or not path.exists():
        return []
    try:
        entries = read_versions(path)
    except sqlite3.Error:
        return []
    name, at, _ = incomplete.partition("@")
    references = [label for entry in entries if entry.name == name for label in (entry.version, *entry.aliases)]
    names = [f"{name}@{label}" for label in references] if at else [entry.name for entry in entries]
    return _beginning(incomplete, dict.fromkeys(names))


def _home(ctx: typer.Context) -> Path:
    return Path(ctx.params.get("home") or os.environ.get("ORCHESTRION_HOME") or ".orchestrion")


def _beginning(incomplete: str, values: Iterable[str]) -> list[str]:
    return [value for value in values if value.startswith(incomplete)]
