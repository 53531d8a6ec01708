"""The pages of an Ogg file with a fixed serial number, so that the same sound gives the same bytes.

Source: RFC 3533, section 6.
"""

import struct
import zlib

HEADER = struct.Struct("<4sBBqIIIB")  # capture, version, flags, granule, serial, sequence, checksum, segments
REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def set_serial(data: bytes, serial: int) -> bytes:
    """Return an Ogg file of one stream with its serial number set and the checksums of its pages made again.

    Raises:
        ValueError: `data` is not a sequence of whole Ogg pages.
    """
    pages, start = list[bytes](), 0
    while start < len(data):
        if len(data) - start < HEADER.size or data[start : start + 4] != b"OggS":
            raise ValueError(f"no Ogg page at byte {start} of {len(data)}")
        capture, version, flags, granule, _, sequence, _, n_segments = HEADER.unpack_from(data, start)
        body = start + HEADER.size
        end = body + n_segments + sum(data[body : body + n_segments])
        if end > len(data):
            raise ValueError(f"the Ogg page at byte {start} ends at {end}, behind the {len(data)} bytes of the file")
        fields = (capture, version, flags, granule, serial, sequence)
        checksum = _checksum(HEADER.pack(*fields, 0, n_segments) + data[body:end])
        pages += [HEADER.pack(*fields, checksum, n_segments), data[body:end]]
        start = end
    return b"".join(pages)


def _checksum(page: bytes) -> int:
    """Return Ogg's CRC: that of zlib with the bits in reverse order, from 0 and without inversion."""
    mirrored = zlib.crc32(page.translate(REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{mirrored:032b}"[::-1], 2)
