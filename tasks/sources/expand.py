"""Compressed bytes -> bytes, never more of them than asked for."""

import bz2
import lzma
import struct
import zlib

import pyarrow as pa

from tasks.sources.listing import BZIP2, DEFLATE, LZMA, SLICE, ZSTD

EXPANSION_ERRORS = (zlib.error, OSError, EOFError, lzma.LZMAError, struct.error, ValueError, pa.ArrowException)


class TooMuch(Exception):
    """More bytes come out than the limit."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.limit = limit


def expand(data: bytes, kind: int, limit: int) -> bytes:
    """Return the contents of an archive member.

    Raises:
        TooMuch: there are more than `limit` bytes; no more than that were made.
        one of EXPANSION_ERRORS: the stream is damaged, or ends early.
    """
    if kind == SLICE:
        result, ended = data, True
    elif kind == DEFLATE:
        inflate = zlib.decompressobj(-15)
        result = inflate.decompress(data, limit + 1)
        ended = inflate.eof
        if not ended and len(result) <= limit:  # the last bytes may still sit in the window
            result += inflate.flush()
            ended = inflate.eof
    elif kind == BZIP2:
        unpack = bz2.BZ2Decompressor()
        result = unpack.decompress(data, limit + 1)
        ended = unpack.eof
    elif kind == LZMA:
        result, ended = _expand_lzma(data, limit)
    elif kind == ZSTD:
        with pa.CompressedInputStream(pa.BufferReader(data), "zstd") as stream:
            result = stream.read(limit + 1)
        ended = True
    else:
        raise ValueError(f"kind {kind} is no compression")
    if len(result) > limit:
        raise TooMuch(limit)
    if not ended:
        raise EOFError("the compressed data ends early")
    return result


def _expand_lzma(data: bytes, limit: int) -> tuple[bytes, bool]:
    """Expand zip's LZMA: two bytes of version, two of a length, that many of properties, then the raw stream."""
    (n_properties,) = struct.unpack_from("<H", data, 2)
    properties = data[4 : 4 + n_properties]
    packed, dictionary = properties[0], struct.unpack_from("<I", properties, 1)[0]
    if dictionary > 2**26:
        raise ValueError(f"LZMA dictionary of {dictionary} bytes")
    settings = {
        "id": lzma.FILTER_LZMA1,
        "dict_size": max(dictionary, 2**12),
        "lc": packed % 9,
        "lp": packed // 9 % 5,
        "pb": packed // 45,
    }
    unpack = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[settings])
    result = unpack.decompress(data[4 + n_properties :], limit + 1)
    return result, True  # without an end mark the sizes and the checksum of the member must do
