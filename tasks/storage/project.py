"""The root of the project's code, and the digest of that code."""

import hashlib
import subprocess
from functools import cache, lru_cache
from pathlib import Path

import tasks

ROOT = Path(tasks.__file__).resolve().parent.parent


@lru_cache(maxsize=1)
def git_commit() -> str:
    """Return the commit of the code that runs, `-dirty` added where the tree differs from it, or `unknown`."""
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--match=NoTagMatches"],
            cwd=ROOT, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return said.stdout.strip()


@cache
def code_digest() -> str:
    """Return a digest of the code that makes pieces; a commit does not identify a changed tree."""
    digest_of_all = hashlib.sha256()
    for folder in ("models", "tasks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest_of_all.update(path.read_bytes())
    return digest_of_all.hexdigest()
