"""The bytes of a tar in order, from a plain file or out of gzip or zstd, counted against the limits."""

import os
import zlib
from typing import Any, Protocol

import pyarrow as pa

from tasks.sources.limits import SourceLimits


class Stream(Protocol):
    """Bytes in order; `position` counts those read or skipped."""

    position: int

    def read(self, n_bytes: int) -> bytes: ...
    def skip(self, n_bytes: int) -> bool: ...


class PlainStream:
    """A tar as it lies on the disk: skipping costs nothing."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.size = os.fstat(descriptor).st_size
        self.position = 0

    def read(self, n_bytes: int) -> bytes:
        data = os.pread(self.descriptor, n_bytes, self.position)
        self.position += len(data)
        return data

    def skip(self, n_bytes: int) -> bool:
        self.position += n_bytes
        return self.position <= self.size


class ExpansionStop(Exception):
    """The stream expands past a limit; the message says which."""


class CompressedStream:
    """What a gzip or zstd file expands to, counted against the limits as it comes."""

    def __init__(self, path: str, codec: str, limits: SourceLimits) -> None:
        stored = os.stat(path).st_size  # noqa: PTH116
        self._stream: Any = _GzipFile(path) if codec == "gzip" else pa.CompressedInputStream(pa.OSFile(path), codec)
        ratio = max(64 * 2**20, int(stored * limits.max_expansion_ratio))
        self._limit = min(limits.max_expanded_bytes, ratio)
        self._name = "max_expanded_bytes" if self._limit < ratio else "max_expansion_ratio"
        self._value = limits.max_expanded_bytes if self._limit < ratio else limits.max_expansion_ratio
        self.position = 0

    def read(self, n_bytes: int) -> bytes:
        data = self._stream.read(n_bytes)
        self.position += len(data)
        if self.position > self._limit:
            raise ExpansionStop(f"it expands to more than {self._limit} bytes, {self._name}={self._value:g}")
        return data

    def skip(self, n_bytes: int) -> bool:
        while n_bytes > 0:
            data = self.read(min(n_bytes, 2**20))
            if not data:
                return False
            n_bytes -= len(data)
        return True

    def close(self) -> None:
        self._stream.close()


class _GzipFile:
    """A gzip stream that gives all that comes before a damaged place, which Arrow's and Python's own do not."""

    def __init__(self, path: str) -> None:
        self._handle = open(path, "rb")  # noqa: SIM115, PTH123  (closed with the stream)
        self._inflate = zlib.decompressobj(31)
        self._input = b""
        self._ready = b""  # expanded, of which `_given` bytes have been given away
        self._given = 0
        self._error: EOFError | None = None
        self._done = False

    def read(self, n_bytes: int) -> bytes:
        """Return that many bytes, or fewer at the end; damage is raised once all before it was given."""
        parts, missing = [], n_bytes
        while missing:
            if self._given == len(self._ready) and not self._fill():
                break
            part = self._ready[self._given : self._given + missing]
            self._given += len(part)
            parts.append(part)
            missing -= len(part)
        if self._error and missing == n_bytes > 0:
            raise self._error
        return b"".join(parts)

    def _fill(self) -> bool:
        self._ready, self._given = b"", 0
        while not (self._ready or self._done):
            self._input = self._input or self._handle.read(2**16)
            if self._inflate.eof:  # another stream may follow, or zeros that fill the last block of a tape
                self._input = self._input.lstrip(b"\0")
                if self._input:
                    self._inflate = zlib.decompressobj(31)
                elif not (following := self._handle.read(2**16)):
                    self._done = True
                else:
                    self._input = following
                continue
            if not self._input:
                self._fail("the gzip stream ends early")
                break
            before = self._inflate.copy()
            try:
                self._ready = self._inflate.decompress(self._input, 2**18)
            except zlib.error as error:
                self._ready = _up_to_damage(before, self._input)
                self._fail(str(error))
                break
            self._input = self._inflate.unused_data if self._inflate.eof else self._inflate.unconsumed_tail
        return bool(self._ready)

    def _fail(self, problem: str) -> None:
        self._error, self._done = EOFError(problem), True

    def close(self) -> None:
        self._handle.close()


def _up_to_damage(inflate: Any, data: bytes) -> bytes:
    """Return what comes out before the byte at which decompression fails."""
    parts = []
    try:
        for at in range(len(data)):
            parts.append(inflate.decompress(data[at : at + 1]))  # noqa: PERF401  (what came before the error counts)
    except zlib.error:
        pass
    return b"".join(parts)
