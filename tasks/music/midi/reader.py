"""Many MIDI files as pieces; each file is read whole, or refused with a reason and a place.

Our own reader comes first. A second, independent reader gets the files that ours refuses or doubts. If it finds more
notes, its result is used and the file is marked.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tasks.errors import RejectReason
from tasks.music.arrays import offsets_of
from tasks.music.midi import events, songs
from tasks.music.midi.limits import ReadLimits
from tasks.music.midi.modes import DRUM_CHANNEL
from tasks.music.midi.second_reader import second_reading
from tasks.music.midi.songs import Songs
from tasks.music.notes import COLUMNS, NoteBatch
from tasks.music.transforms import centre


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a file cannot be used as music; the detail is a sentence with value, limit and place."""

    reason: RejectReason
    detail: str


@dataclass(frozen=True, slots=True, eq=False)
class ReadBatch:
    """F files as pieces, and for each file a refusal or None, and what was left out or repaired as JSON."""

    notes: NoteBatch  # none of a refused file
    facts: np.ndarray  # int64[F, N_FACTS], see `events`
    programs: np.ndarray  # bool[F, 128], which ones pitched notes use
    refusals: list[Refusal | None]
    dropped: list[str]  # `{}` for most


# What the reader left out or repaired in a file that it accepts: name in the ledger -> column of the facts.
LOSSES = {
    "bad_key_signature": events.BAD_KEY_SIGNATURE,
    "bad_tempo": events.BAD_TEMPO,
    "bad_time_signature": events.BAD_TIME_SIGNATURE,
    "bytes_after_end": events.BYTES_AFTER_END,
    "early_ends": events.EARLY_ENDS,
    "mended_chunks": events.MENDED_CHUNKS,
    "missing_tracks": events.MISSING_TRACKS,
    "sanitized": events.SANITIZED,
    "trailing_bytes": events.TRAILING_BYTES,
    "unended_notes": events.UNENDED_NOTES,
    "zero_length_notes": events.ZERO_LENGTH_NOTES,
}
_LOSS_COLUMNS = list(LOSSES.values())
_NO_LOSSES = "{}"

OTHER_CHANNELS, NOT_CENTRED = 104, 105  # further values of CODE

# code -> (reason, sentence); {value}, {limit} and {position} are facts of the file, {begin} its first bytes.
_REFUSALS = {
    events.EMPTY: (RejectReason.EMPTY_FILE, "0 bytes"),
    events.NOT_MIDI: (RejectReason.NOT_MIDI, "begins with {begin}, not with MThd"),
    events.RIFF_WITHOUT_DATA: (RejectReason.NOT_MIDI, "RIFF file without a data chunk"),
    events.HEADER_CUT: (RejectReason.TRUNCATED, "{value} bytes, a header alone has {limit}"),
    events.HEADER_LENGTH: (RejectReason.BAD_HEADER, "header of {value} bytes in a file of {limit}"),
    events.BAD_FORMAT: (RejectReason.BAD_HEADER, "format {value} outside 0-{limit}"),
    events.SMPTE: (RejectReason.UNSUPPORTED_DIVISION, "division {value:#06x} counts SMPTE frames, not beats"),
    events.ZERO_DIVISION: (RejectReason.OUT_OF_RANGE, "{value} ticks per quarter, at least {limit} is needed"),
    events.CHUNK_CUT: (RejectReason.TRUNCATED, "chunk states {value} bytes, {limit} are left"),
    events.BAD_CHUNK: (
        RejectReason.BAD_CHUNK,
        "no track, but {begin_of_chunk} stating {value} bytes with {limit} left",
    ),
    events.TOO_MANY_TRACKS: (RejectReason.OUT_OF_RANGE, "{value} tracks or more, limit {limit}"),
    events.NO_TRACKS: (RejectReason.NO_NOTES, "header states {value} tracks, none follows"),
    events.NO_STATUS: (RejectReason.BAD_EVENT, "data byte {value:#04x} without a status byte before it"),
    events.BAD_STATUS: (RejectReason.BAD_EVENT, "undefined status byte"),
    events.EVENT_CUT: (RejectReason.BAD_EVENT, "event goes on behind the end of its track"),
    events.BAD_LENGTH: (RejectReason.BAD_EVENT, "variable-length number of more than 4 bytes"),
    events.TICK_OVERFLOW: (RejectReason.OUT_OF_RANGE, "tick {value} above {limit}"),
    events.TOO_MANY_NOTES: (RejectReason.TOO_MANY_NOTES, "{value} notes or more, limit {limit}"),
    events.NO_NOTES: (RejectReason.NO_NOTES, "{value} tracks without a note-on"),
    events.ALL_UNENDED: (RejectReason.UNREADABLE_NOTES, "none of {value} note-ons is ever ended"),
    songs.TOO_MANY_PARTS: (RejectReason.OUT_OF_RANGE, "{value} parts, limit {limit}"),
    songs.TOO_MANY_PEDALS: (RejectReason.OUT_OF_RANGE, "{value} pedal spans or more, limit {limit}"),
    songs.TOO_LONG: (RejectReason.TOO_LONG, "{value} s of music, limit {limit}"),
    OTHER_CHANNELS: (RejectReason.NO_NOTES, "none of {value} notes is on a channel of parse.read.channels"),
    NOT_CENTRED: (
        RejectReason.OUT_OF_RANGE,
        "moved by {value} semitones to parse.read.median_pitch={limit}, a note leaves 0-127",
    ),
}
_WITHOUT_PLACE = {events.EMPTY, events.NOT_MIDI, songs.TOO_MANY_PARTS, songs.TOO_MANY_PEDALS, songs.TOO_LONG}
_WITHOUT_PLACE |= {OTHER_CHANNELS, NOT_CENTRED, events.NO_NOTES, events.ALL_UNENDED, events.TOO_MANY_NOTES}
# Refusals that the second reader gets.
_DOUBTFUL = (
    events.HEADER_LENGTH, events.CHUNK_CUT, events.BAD_CHUNK, events.NO_TRACKS, events.NO_STATUS, events.BAD_STATUS,
    events.EVENT_CUT, events.BAD_LENGTH, events.NO_NOTES, events.ALL_UNENDED,
)  # fmt: skip
_LATE = (events.TICK_OVERFLOW, songs.TOO_MANY_PARTS, songs.TOO_MANY_PEDALS, songs.TOO_LONG)
_GUESSES = (
    (b"version https://git-lfs", "a Git LFS pointer and not the file"),
    (b"<", "HTML or XML"),
    (b"\x1f\x8b", "a gzip file"),
    (b"PK\x03\x04", "a zip file"),
    (b"SMF2CLIP", "a MIDI 2.0 clip file"),
    (b"\x00\x05\x16\x07", "an AppleDouble file: what macOS keeps beside a file, without the file's contents"),
)


def read_files(
    contents: Sequence[bytes], limits: ReadLimits = ReadLimits(), read: events.EventBatch | None = None
) -> ReadBatch:
    """Read a batch of files; no content of a file raises an error.

    Args:
        read: the events of all files, where they are read already.
    """
    refusals: list[Refusal | None] = [
        Refusal(RejectReason.TOO_LONG, f"file of {len(data)} bytes, limit {limits.max_bytes}")
        if len(data) > limits.max_bytes
        else None
        for data in contents
    ]
    readable = [b"" if refusal else data for data, refusal in zip(contents, refusals, strict=True)]
    batch = _read(readable, limits, None if any(refusals) else read)
    second = _ask_second_reader(readable, batch, limits)
    while second:
        tried = _read([second.get(index, data) for index, data in enumerate(readable)], limits)
        worse = [index for index in second if tried.facts[index, events.CODE] != events.OK]
        if not worse:
            batch = tried
            break
        second = {index: data for index, data in second.items() if index not in worse}
    n_other = np.zeros(len(contents), np.int64)
    if limits.channels:
        # Only now: which reader is right is decided by all notes.
        batch, n_other = _of_channels([second.get(index, data) for index, data in enumerate(readable)], batch, limits)
    if limits.median_pitch:
        batch = _centred(batch, limits.median_pitch)
    for index in np.flatnonzero(batch.facts[:, events.CODE]).tolist():
        refusals[index] = refusals[index] or _refusal(batch.facts[index], contents[index])
    return ReadBatch(*batch, refusals, _losses(batch, second, n_other))


def read_one(data: bytes) -> events.EventBatch:
    """Read the events of one file, within the usual limits."""
    limits = ReadLimits()
    return events.read_events(
        np.frombuffer(data, np.uint8), np.array([0, len(data)]), limits.max_notes, limits.max_tracks
    )


def _read(contents: Sequence[bytes], limits: ReadLimits, read: events.EventBatch | None = None) -> Songs:
    data = np.frombuffer(b"".join(contents), np.uint8)
    offsets = offsets_of([len(content) for content in contents])
    read = read or events.read_events(data, offsets, limits.max_notes, limits.max_tracks)
    batch = songs.arrange_songs(read, limits.max_seconds, limits.max_pedals)
    late = np.flatnonzero(np.isin(batch.facts[:, events.CODE], _LATE) & (np.diff(offsets) > 0))
    if not len(late):
        return batch
    # These were refused after some of their rows had been written: read the batch again without them.
    without = _read([b"" if index in late else content for index, content in enumerate(contents)], limits)
    without.facts[late] = batch.facts[late]
    return without


def _ask_second_reader(contents: Sequence[bytes], batch: Songs, limits: ReadLimits) -> dict[int, bytes]:
    """Return index -> the file as the second reader understood it, where that holds more notes than our reading."""
    code, n_notes = batch.facts[:, events.CODE], np.diff(batch.notes.offsets)
    n_unended = batch.facts[:, events.UNENDED_NOTES]
    is_doubtful = np.isin(code, _DOUBTFUL)
    is_doubtful |= (code == events.OK) & (batch.facts[:, events.BYTES_AFTER_END] > 0)
    is_doubtful |= (code == events.OK) & (n_unended * 10 > n_notes)
    second = {}
    for index in np.flatnonzero(is_doubtful).tolist():
        reading = second_reading(contents[index], int(n_notes[index]), limits.max_notes)
        if reading is not None:
            second[index] = reading
    return second


def _of_channels(contents: Sequence[bytes], batch: Songs, limits: ReadLimits) -> tuple[Songs, NDArray[np.int64]]:
    """Return the songs with the notes of the wanted channels alone, and how many notes of others each file has."""
    wanted = set(range(16)) - {DRUM_CHANNEL} if -1 in limits.channels else set(limits.channels)
    is_read = batch.facts[:, events.CODE] == events.OK
    readable = [data if usable else b"" for data, usable in zip(contents, is_read.tolist(), strict=True)]
    data, offsets = np.frombuffer(b"".join(readable), np.uint8), offsets_of([len(content) for content in readable])
    read = events.read_events(data, offsets, limits.max_notes, limits.max_tracks)
    borders = read.offsets[:, 0]
    is_other = ~np.isin(read.key[: borders[-1]] & 15, list(wanted)) & (read.duration[: borders[-1]] != events.UNENDED)
    read.duration[: borders[-1]][is_other] = events.UNENDED  # such notes are left out
    n_other = np.diff(offsets_of(is_other)[borders])
    is_silent = is_read & (n_other == np.diff(batch.notes.offsets))
    read.facts[is_silent, events.CODE], read.facts[is_silent, events.VALUE] = OTHER_CHANNELS, n_other[is_silent]
    found = songs.arrange_songs(read, limits.max_seconds, limits.max_pedals)
    found.facts[~is_read] = batch.facts[~is_read]
    return found, n_other


def _centred(batch: Songs, pitch: int) -> Songs:
    """Return the songs with their medians on a pitch; refuse those with a note that would leave 0-127."""
    notes, semitones, fits = centre(batch.notes, pitch)
    facts, programs = batch.facts.copy(), batch.programs & fits[:, None]
    facts[~fits, events.CODE], facts[~fits, events.VALUE], facts[~fits, events.LIMIT] = (
        NOT_CENTRED,
        semitones[~fits],
        pitch,
    )
    for owner in ("", "pedal_"):
        lengths = np.diff(getattr(notes, f"{owner}offsets"))
        stays = np.repeat(fits, lengths)
        columns = {name: getattr(notes, name)[stays] for name in COLUMNS[owner]}
        notes = replace(notes, **{f"{owner}offsets": offsets_of(lengths * fits)}, **columns)
    return Songs(notes, facts, programs)


def _losses(batch: Songs, second: dict[int, bytes], n_other: NDArray[np.int64]) -> list[str]:
    losses = [_NO_LOSSES] * len(batch.facts)
    counts = np.column_stack([batch.facts[:, _LOSS_COLUMNS], n_other])
    accepted = batch.facts[:, events.CODE] == events.OK
    for index in np.flatnonzero(
        (counts.any(axis=1) | np.isin(np.arange(len(counts)), list(second))) & accepted
    ).tolist():
        found = {name: int(n) for name, n in zip([*LOSSES, "other_channels"], counts[index], strict=True) if n}
        losses[index] = json.dumps(found | ({"second_reader": 1} if index in second else {}), sort_keys=True)
    return losses


def _refusal(facts: np.ndarray, data: bytes) -> Refusal:
    code, position = int(facts[events.CODE]), int(facts[events.POSITION])
    reason, sentence = _REFUSALS[code]
    message = sentence.format(
        value=int(facts[events.VALUE]),
        limit=int(facts[events.LIMIT]),
        begin=repr(data[:8]),
        begin_of_chunk=repr(data[position : position + 4]),
    )
    if code == events.NOT_MIDI:
        guess = next((what for start, what in _GUESSES if data.lstrip()[: len(start)].lower() == start.lower()), "")
        message += f": {guess}" if guess else ""
    return Refusal(reason, message if code in _WITHOUT_PLACE else f"{message}, at byte {position}")
