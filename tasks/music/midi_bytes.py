"""Standard MIDI files as bytes: the container, a tolerant walk over events, and the writing of tracks.

Source: MIDI 1.0 Detailed Specification, Standard MIDI Files 1.0 (chunks, variable-length numbers, running status).
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from tasks.errors import BadScore
from tasks.music.notes import IntArray

END_OF_TRACK = b"\xff\x2f\x00"
EMPTY_TEXT = b"\xff\x01\x00"
DELTA_MAX = 2**28 - 1  # the longest time between two events: four bytes of seven bits
SUSTAIN_CONTROL = 64
MARKER_CONTROL = 3  # undefined in the MIDI specification, so no file means anything by it
END_MARKER = 127
_MARKED_STATUSES = [*range(0x80, 0xA0), *range(0xB0, 0xC0)]  # note-offs, note-ons and controls
_SEVEN_BITS = bytes(range(0x80))
_N_SYSTEM_BYTES = {0xF1: 1, 0xF2: 2, 0xF3: 1, 0xF6: 0} | dict.fromkeys(range(0xF8, 0xFF), 0)
_N_DATA_BYTES = {0x80: 2, 0x90: 2, 0xA0: 2, 0xB0: 2, 0xC0: 1, 0xD0: 1, 0xE0: 2}


@dataclass(frozen=True, slots=True)
class Container:
    """What a file says of itself: its format, ticks per quarter, the bytes of its tracks, and what was left over."""

    format: int
    ticks_per_quarter: int
    tracks: list[bytes]
    n_missing_tracks: int
    n_trailing_bytes: int


def read_container(data: bytes, where: str) -> Container:
    """Find the tracks of a MIDI file or of an RMID (RIFF) wrapping of one.

    Unknown chunks are skipped, as the specification asks, and every track is read however many the header states.

    Raises:
        BadScore: empty_file, not_midi, unsupported_division, out_of_range (0 ticks per quarter), parse_error.
    """
    if not data:
        raise BadScore("empty_file", f"0 bytes ({where})")
    if data[:4] == b"RIFF" and data[8:12] == b"RMID":
        data = _riff_payload(data, where)
    if data[:4] != b"MThd":
        guess = ", a Git LFS pointer and not the file" if data.startswith(b"version https://git-lfs") else ""
        raise BadScore("not_midi", f"begins with {data[:8]!r}, not with MThd{guess} ({where})")
    header_length = int.from_bytes(data[4:8])
    if len(data) < 14 or not 6 <= header_length <= len(data) - 8:
        raise BadScore("parse_error", f"header of {header_length} bytes in a file of {len(data)} ({where})")
    file_format, n_stated, division = (int.from_bytes(data[at : at + 2]) for at in (8, 10, 12))
    if division & 0x8000:
        raise BadScore("unsupported_division", f"division 0x{division:04x} counts SMPTE frames, not beats ({where})")
    if division == 0:
        raise BadScore("out_of_range", f"0 ticks per quarter, at least 1 is needed ({where})")
    if file_format > 2:
        raise BadScore("parse_error", f"format {file_format} outside 0-2 ({where})")
    tracks, n_trailing = _tracks(data, 8 + header_length, n_stated, where)
    return Container(file_format, division, tracks, max(n_stated - len(tracks), 0), n_trailing)


def walk_events(track: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield (tick, status, data) of a track, up to the first thing that is no event.

    More tolerant than a strict reader: running status survives meta and system exclusive events, and the walk goes
    on past an End of Track. For a meta event the status is 0xFF and the data begins with its type.
    """
    position, tick, running, length = 0, 0, 0, len(track)
    while position < length:
        shift, position = read_variable_length(track, position)
        tick += shift
        if shift < 0 or position >= length:
            return
        status = track[position]
        if status in (0xF0, 0xF7, 0xFF):
            start = position + (2 if status == 0xFF else 1)
            size, body = read_variable_length(track, start)
            if size < 0 or body + size > length:
                return
            yield tick, status, track[position + 1 : start] + track[body : body + size]
            position = body + size
            continue
        if status > 0xF0:  # system messages have no place in a file; they do not end running status
            position += 1 + _N_SYSTEM_BYTES.get(status, length)
            continue
        if status >= 0x80:
            running, position = status, position + 1
        n_data = _N_DATA_BYTES.get(running & 0xF0, length)
        if position + n_data > length:
            return
        yield tick, running, track[position : position + n_data]
        position += n_data


def count_note_ons(track: bytes) -> int:
    """Count the note-on messages with a velocity above 0 that a tolerant walk finds in a track."""
    return sum(1 for _, status, data in walk_events(track) if status & 0xF0 == 0x90 and data[1] > 0)


def begins_without_status(track: bytes) -> bool:
    """Tell whether the first channel message of a track relies on a status byte that was never sent."""
    position = _SIGNATURES.match(track).end()  # type: ignore[union-attr]  it matches the empty string too
    while position < len(track):
        _, position = read_variable_length(track, position)
        if position >= len(track) or track[position] not in (0xF0, 0xF7, 0xFF):
            return position < len(track) and track[position] < 0x80
        size, position = read_variable_length(track, position + (2 if track[position] == 0xFF else 1))
        if size < 0:
            return False
        position += size
    return False


# Tempos, time and key signatures: conductor tracks begin with thousands of them, too many for a loop in Python.
_SIGNATURES = re.compile(rb"(?:[\x80-\xff]{0,3}[\x00-\x7f]\xff(?:\x51\x03.{3}|\x58\x04.{4}|\x59\x02.{2}))*", re.S)


def breaks_running_status(track: bytes) -> bool:
    """Tell whether a message without a status byte follows a system exclusive event: symusic loses such messages."""
    if b"\xf0" not in track and b"\xf7" not in track:
        return False
    for match in re.finditer(rb"[\xf0\xf7]", track):
        size, body = read_variable_length(track, match.end())
        if 0 < size <= len(track) - body and track[body + size - 1] == 0xF7:
            _, position = read_variable_length(track, body + size)
            if position < len(track) and track[position] < 0x80:
                return True
    return False


def port_of(track: bytes) -> int:
    """Return the MIDI port (meta event 0x21) that a track names first, 0 where it names none."""
    place = track.find(b"\xff\x21\x01")
    return track[place + 3] & 0x7F if 0 <= place < len(track) - 3 else 0


def read_variable_length(data: bytes, position: int) -> tuple[int, int]:
    """Return the number at `position` and the place after it; the number is -1 where it is cut or over 4 bytes."""
    value = 0
    for byte in data[position : position + 4]:
        position += 1
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, position
    return -1, len(data)


@dataclass(frozen=True, slots=True)
class MarkedTrack:
    """A track with marker events, for a reader that hides channels; see `mark_channels`.

    Args:
        n_end_markers: how many parts show the end marker if the track is read to its end; 0 where none was put.
        is_doubtful: the reader may stop early or lose messages without a word.
    """

    data: bytes
    n_end_markers: int
    is_doubtful: bool


def mark_channels(track: bytes, where: str) -> MarkedTrack:
    """Add marker events to a track, by which a reader that hides channels can tell what it made of each.

    In front, every channel and program that the track may use gets a note of pitch 0, velocity 1 and no length, so
    that symusic keeps a part for it even where only a pedal moves, and controller 3 with the channel as value and
    again with the port. Behind go note-offs for every pitch of the channels with notes, one tick after the End of
    Track, and controller 3 with value 127: a note that ends there never ended in the file.

    Raises:
        BadScore: parse_error, a message without any status byte before it; behind the markers it would pass as one.
    """
    high = np.frombuffer(track.translate(None, _SEVEN_BITS), np.uint8)
    counts = np.bincount(high, minlength=256).tolist()  # of bytes above 127, most of them statuses
    statuses = {status for status in _MARKED_STATUSES if counts[status] and _appears(track, status, counts[status])}
    sounding = [channel for channel in range(16) if 0x90 | channel in statuses]
    used = sorted({status & 15 for status in statuses})
    if not used:
        return MarkedTrack(track, 0, False)
    if begins_without_status(track):
        raise BadScore("parse_error", f"a track begins with running status, before any status byte ({where})")
    port = port_of(track)
    front = [
        _front(channel, program, port)
        for channel in used
        for program in _programs(track, 0xC0 | channel, counts[0xC0 | channel])
    ]
    is_whole = track.endswith(END_OF_TRACK)
    is_doubtful = not is_whole or breaks_running_status(track)
    if not sounding or not is_whole:
        return MarkedTrack(b"".join([*front, track]), 0, is_doubtful)
    behind = [EMPTY_TEXT, b"\x01", *(_behind(channel) for channel in sounding), END_OF_TRACK]
    return MarkedTrack(b"".join([*front, track[:-3], *behind]), len(sounding), is_doubtful)


def _appears(track: bytes, status: int, count: int) -> bool:
    """Tell whether a byte may be a status: behind the last byte of a delta, before data bytes. Never wrongly no."""
    place = -1
    for _ in range(min(count, 100)):
        place = track.index(status, place + 1)
        if place and track[place - 1] < 0x80 and track[place + 1 : place + 3].isascii():
            return True
    return count > 100


def _programs(track: bytes, status: int, count: int) -> list[int]:
    """Return every byte that follows a program change, or what looks like one; last 0, with which a track begins."""
    if not count:
        return [0]
    if count > 1000:
        return list(reversed(range(128)))  # what looks like so many program changes is not searched one by one
    programs, place = {0}, -1
    for _ in range(count):
        place = track.index(status, place + 1)
        if place and track[place - 1] < 0x80:
            programs.update(value for value in track[place + 1 : place + 2] if value < 0x80)
    return sorted(programs, reverse=True)


@cache
def _front(channel: int, program: int, port: int) -> bytes:
    note = [0, 0x90 | channel, 0, 1, 0, 0, 0]  # pitch 0, velocity 1, and off again: the least of all possible notes
    markers = [0, 0xB0 | channel, MARKER_CONTROL, channel, 0, MARKER_CONTROL, port]
    return bytes([0, 0xC0 | channel, program, *note, *markers])


@cache
def _behind(channel: int) -> bytes:
    note_offs = b"".join(bytes([pitch, 0, 0]) for pitch in range(128))  # a pitch, velocity 0, and the next delta
    return bytes([0x80 | channel]) + note_offs + bytes([0xB0 | channel, MARKER_CONTROL, END_MARKER, 0])


def meta_events(tracks: Sequence[bytes], kind: int) -> list[tuple[int, bytes]]:
    """Return (tick, data) of every meta event of this type, by tick, and in file order where ticks are equal."""
    found = [
        (tick, data[1:])
        for track in tracks
        if bytes([0xFF, kind]) in track
        for tick, status, data in walk_events(track)
        if status == 0xFF and data[0] == kind
    ]
    return sorted(found, key=lambda event: event[0])


def build_file(ticks_per_quarter: int, tracks: Sequence[bytes]) -> bytes:
    """Return a file of format 1 with these tracks."""
    parts = [b"MThd", (6).to_bytes(4), (1).to_bytes(2), len(tracks).to_bytes(2), ticks_per_quarter.to_bytes(2)]
    for track in tracks:
        parts += [b"MTrk", len(track).to_bytes(4), track]
    return b"".join(parts)


def build_messages(ticks: IntArray, messages: NDArray[np.uint8]) -> bytes:
    """Return three-byte messages at rising ticks as track bytes: a variable-length delta before each message.

    Args:
        ticks: int64[X], in order; the first is counted from tick 0. Gaps over 2**28 - 1 are bridged by empty texts.
        messages: uint8[X, 3], the status and two data bytes of each.
    """
    deltas = np.diff(ticks, prepend=0)
    if np.any(deltas > DELTA_MAX):
        deltas, messages = _bridge_gaps(deltas, messages)
    sevens = (deltas[:, None] >> np.array([21, 14, 7, 0])) & 0x7F
    n_bytes = 1 + (deltas >= 1 << 7).astype(np.int64) + (deltas >= 1 << 14) + (deltas >= 1 << 21)
    rows = np.concatenate([sevens | np.array([0x80, 0x80, 0x80, 0]), messages], axis=1).astype(np.uint8)
    written = np.ones(rows.shape, dtype=np.bool_)
    written[:, :4] = np.arange(4) >= 4 - n_bytes[:, None]
    return rows[written].tobytes()


def _bridge_gaps(deltas: IntArray, messages: NDArray[np.uint8]) -> tuple[IntArray, NDArray[np.uint8]]:
    n_bridges = np.maximum(deltas - 1, 0) // DELTA_MAX
    places = np.repeat(np.arange(len(deltas)), n_bridges + 1)
    is_message = np.append(np.diff(places) != 0, True)
    bridged = np.where(is_message, deltas[places] - n_bridges[places] * DELTA_MAX, DELTA_MAX)
    return bridged, np.where(is_message[:, None], messages[places], np.frombuffer(EMPTY_TEXT, np.uint8))


def build_metas(events: Sequence[tuple[int, int, bytes]]) -> bytes:
    """Return meta events, given as (tick, type, data) at rising ticks, as track bytes."""
    written, last = list[bytes](), 0
    for tick, kind, data in events:
        while tick - last > DELTA_MAX:
            written += [variable_length(DELTA_MAX), EMPTY_TEXT]
            last += DELTA_MAX
        written += [variable_length(tick - last), bytes([0xFF, kind]), variable_length(len(data)), data]
        last = tick
    return b"".join(written)


def variable_length(value: int) -> bytes:
    """Return `value` (0 to 2**28 - 1) as a variable-length number."""
    sevens = [value >> shift & 0x7F for shift in (21, 14, 7, 0)]
    first = next((place for place, part in enumerate(sevens) if part), 3)
    return bytes([part | 0x80 for part in sevens[first:3]] + sevens[3:])


def _riff_payload(data: bytes, where: str) -> bytes:
    position = 12
    while position + 8 <= len(data):
        size = int.from_bytes(data[position + 4 : position + 8], "little")
        if data[position : position + 4] == b"data":
            return data[position + 8 : position + 8 + size]
        position += 8 + size + size % 2
    raise BadScore("not_midi", f"RIFF file without a data chunk ({where})")


def _tracks(data: bytes, position: int, n_stated: int, where: str) -> tuple[list[bytes], int]:
    """Return the tracks and the number of bytes behind the last chunk that could be read."""
    tracks: list[bytes] = []
    while position + 8 <= len(data) and data[position : position + 4] != b"MThd":
        size = int.from_bytes(data[position + 4 : position + 8])
        left = len(data) - position - 8
        if size > left:
            if len(tracks) >= n_stated:
                break  # junk behind the last track, not a track that was cut
            kind = data[position : position + 4]
            raise BadScore("parse_error", f"chunk {kind!r} states {size} bytes, {left} are left ({where})")
        if data[position : position + 4] == b"MTrk":
            tracks.append(data[position + 8 : position + 8 + size])
        position += 8 + size
    return tracks, len(data) - position
