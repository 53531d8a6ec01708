"""Completion of option values in a shell; nothing heavy is imported."""

import os
from collections.abc import Iterable
from pathlib import Path


def presets(typed: str) -> list[str]:
    """Return the presets that begin with what is typed."""
    from tasks.config.presets import PRESETS

    return _beginning(typed, PRESETS)


def encodings(typed: str) -> list[str]:
    """Return the encodings that begin with what is typed."""
    from tasks.music.tokenizers.registry import ENCODINGS

    return _beginning(typed, ENCODINGS)


def datasets(typed: str) -> list[str]:
    """Return the datasets of ORCHESTRION_HOME or of `.orchestrion`, or the versions of one behind its `@`."""
    folder = Path(os.environ.get("ORCHESTRION_HOME") or ".orchestrion") / "datasets"
    name, at, _ = typed.partition("@")
    if not at:
        return _beginning(typed, sorted(path.name for path in folder.glob("*/")))
    versions = sorted(path.parent.name for path in folder.glob(f"{name}/versions/*/manifest.json"))
    return _beginning(typed, [f"{name}@{version}" for version in versions])


def _beginning(typed: str, values: Iterable[str]) -> list[str]:
    return [value for value in values if value.startswith(typed)]
