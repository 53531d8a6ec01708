"""The root of the project's code, and the digest of that code."""

import hashlib
import subprocess
from functools import cache, lru_cache
from pathlib import Path

import tasks

ROOT = Path(tasks.__file__).resolve().parent.parent


@lru_cache(maxsize=1)
def git_commit() -> str:
    """Return the commit of the code that runs, with `-dirty` where the tree differs from it, or `unknown`."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--match=NoTagMatches"],
            cwd=ROOT, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return described.stdout.strip()


@cache
def code_digest() -> str:
    """Return a digest of the code that makes pieces; a commit does not identify a changed tree."""
    paths = [path for folder in ("models", "tasks") for path in sorted((ROOT / folder).rglob("*.py"))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()
