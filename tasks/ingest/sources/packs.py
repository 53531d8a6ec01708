"""Packs: contents without random access (a compressed stream, a store), concatenated in one file."""

import os
from pathlib import Path

from tasks.ingest.sources.cache import replace_synced, temporary_path


class PackWriter:
    """Writes a pack under a temporary name; `publish` renames it, leaving the block without that removes it."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.n_bytes = 0
        self._temporary = temporary_path(path)
        self._handle = self._temporary.open("wb", buffering=2**20)

    def append(self, data: bytes) -> int:
        """Write `data` and return the offset at which it begins."""
        offset = self.n_bytes
        self._handle.write(data)
        self.n_bytes += len(data)
        return offset

    def publish(self) -> os.stat_result:
        """Rename the pack into place and return its status."""
        self._handle.close()
        replace_synced(self._temporary, self.path)
        return self.path.stat()

    def __enter__(self) -> "PackWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self._handle.close()
        self._temporary.unlink(missing_ok=True)
