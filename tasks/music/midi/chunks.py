"""Chunks of MIDI files, in compiled code: their tags and sizes, and where the tracks of a file are."""

import numpy as np

from tasks.music.compiled import njit


@njit(cache=True, nogil=True)
def is_tag(data, position, a, b, c, d):
    """Return whether four bytes are at `position`, which must be inside the file."""
    return data[position] == a and data[position + 1] == b and data[position + 2] == c and data[position + 3] == d


@njit(cache=True, nogil=True)
def read_big(data, position, n_bytes):
    """Return the number in some bytes, the most significant first."""
    value = 0
    for place in range(position, position + n_bytes):
        value = value << 8 | int(data[place])
    return value


@njit(cache=True, nogil=True)
def is_chunk_type(data, position):
    """Return whether four visible characters are at `position`."""
    for place in range(position, position + 4):
        if not 0x20 <= data[place] < 0x7F:
            return False
    return True


@njit(cache=True, nogil=True)
def unwrap_riff(data, begin, end):
    """Return (begin, end) of the MIDI file inside an RMID file, or (-1, -1)."""
    position = begin + 12
    while position + 8 <= end:
        size = int(data[position + 4]) | int(data[position + 5]) << 8
        size |= int(data[position + 6]) << 16 | int(data[position + 7]) << 24
        if is_tag(data, position, 100, 97, 116, 97):  # data
            return position + 8, min(position + 8 + size, end)
        position += 8 + size + size % 2
    return -1, -1


@njit(cache=True, nogil=True)
def track_chunks(data):
    """Return int64[T, 2], where the events of each track of a file begin and end; the file has a header."""
    begin, end = 0, len(data)
    if is_tag(data, 0, 82, 73, 70, 70):  # RIFF
        begin, end = unwrap_riff(data, 0, end)
    position = begin + 8 + read_big(data, begin + 4, 4)
    tracks = np.empty((len(data) // 8 + 1, 2), np.int64)
    n_tracks = 0
    while position + 8 <= end and not is_tag(data, position, 77, 84, 104, 100):  # MThd
        stop = min(position + 8 + read_big(data, position + 4, 4), end)
        if is_tag(data, position, 77, 84, 114, 107):  # MTrk
            tracks[n_tracks, 0], tracks[n_tracks, 1] = position + 8, stop
            n_tracks += 1
        position = stop
    return tracks[:n_tracks]
