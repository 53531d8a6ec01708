"""Scores in ticks, read from and written to MIDI files; sole import of symusic.

The bytes of a file are judged before symusic sees them, and every number is judged before anything computes with it.
symusic reads the events. It hides channels, so each track is first given marker controls (`midi_bytes.mark_channels`);
they also show notes that never end, which symusic leaves out without a word.
"""

import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.errors import BadScore, NotFound
from tasks.music import midi_bytes
from tasks.music.midi_writer import write_midi  # noqa: F401  callers find reading and writing in one place
from tasks.music.notes import BoolArray, ByteArray, FloatArray, IntArray, TrackArray

logger = logging.getLogger(__name__)

DEFAULT_TEMPO = 500_000  # microseconds per quarter where a file says nothing: 120 beats a minute
TEMPO_MIN = 1_000  # below stand only broken files: 60,000 beats a minute
TEMPO_MAX = 0xFFFFFF
TICK_MAX = 2**31 - 1


@dataclass(frozen=True, slots=True, eq=False)
class Notes:
    """N notes sorted by (onset, pitch, track, duration); times in ticks, and in seconds through the tempo map.

    Pitch and program 0-127, velocity 1-127, duration at least 1; `track` is the index of the source part.
    """

    onset: IntArray
    duration: IntArray
    pitch: ByteArray
    velocity: ByteArray
    program: ByteArray
    is_drum: BoolArray
    track: TrackArray
    onset_seconds: FloatArray
    end_seconds: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class Tempos:
    """Tempo changes at rising ticks, the first at tick 0; microseconds per quarter 1,000 to 16,777,215."""

    tick: IntArray
    microseconds_per_quarter: IntArray


@dataclass(frozen=True, slots=True, eq=False)
class TimeSignatures:
    """Time signatures at rising ticks; numerator 1-255, denominator a power of two."""

    tick: IntArray
    numerator: IntArray
    denominator: IntArray


@dataclass(frozen=True, slots=True, eq=False)
class KeySignatures:
    """Key signatures at rising ticks; key -7 (seven flats) to 7 (seven sharps)."""

    tick: IntArray
    key: IntArray
    is_minor: BoolArray


@dataclass(frozen=True, slots=True, eq=False)
class Pedals:
    """Spans of the sustain pedal (controller 64 at 64 or above), sorted by (track, onset); none overlap in a track."""

    onset: IntArray
    end: IntArray
    track: TrackArray
    onset_seconds: FloatArray
    end_seconds: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class Score:
    """One piece of music.

    Args:
        n_tracks: number of parts; a part has one program, and all its notes carry its index as `track`.
        dropped: what the reader left out or mended, by reason: `bad_tempo`, `bad_time_signature`,
            `bad_key_signature`, `unended_notes`, `unread_notes`, `missing_tracks`, `trailing_bytes`, `sanitized`.
    """

    ticks_per_quarter: int
    notes: Notes
    tempos: Tempos
    time_signatures: TimeSignatures
    key_signatures: KeySignatures
    pedals: Pedals
    n_tracks: int
    dropped: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadLimits:
    """Where reading stops: a file above any of these is a `BadScore`."""

    max_bytes: int = 64 * 2**20
    max_notes: int = 1_000_000
    max_seconds: float = 24 * 3600.0
    max_tracks: int = 0xFFFF  # as many as a header can state


def seconds_at(tempos: Tempos, ticks_per_quarter: int, ticks: NDArray[np.integer]) -> FloatArray:
    """Return the time of each tick in seconds: exact sums in integers, rounded once."""
    if len(tempos.tick) == 1:
        return ticks * tempos.microseconds_per_quarter[0] / (ticks_per_quarter * 1e6)
    change, elapsed = _elapsed(tempos)
    place = np.searchsorted(tempos.tick, ticks, side="right") - 1
    microseconds = elapsed[place] + (ticks - tempos.tick[place]) * change[place]
    return microseconds / (ticks_per_quarter * 1e6)


def ticks_at(tempos: Tempos, ticks_per_quarter: int, seconds: NDArray[np.floating]) -> IntArray:
    """Return the nearest tick to each time in seconds; the inverse of `seconds_at`."""
    change, elapsed = _elapsed(tempos)
    microseconds = np.asarray(seconds, dtype=np.float64) * (ticks_per_quarter * 1e6)
    place = np.maximum(np.searchsorted(elapsed, microseconds, side="right") - 1, 0)
    shift = (microseconds - elapsed[place]) / change[place]
    return tempos.tick[place] + np.floor(shift + 0.5).astype(np.int64)


def _elapsed(tempos: Tempos) -> tuple[IntArray, IntArray]:
    """Tempo in force from each change on, and the microseconds × ticks per quarter that have passed before it."""
    passed = np.zeros(len(tempos.tick), dtype=np.int64)
    np.cumsum(np.diff(tempos.tick) * tempos.microseconds_per_quarter[:-1], out=passed[1:])  # < 2**31 × 2**24
    return tempos.microseconds_per_quarter, passed


def build_score(
    ticks_per_quarter: int,
    notes: dict[str, NDArray[Any]],
    *,
    tempos: Tempos | None = None,
    time_signatures: TimeSignatures | None = None,
    key_signatures: KeySignatures | None = None,
    pedals: dict[str, NDArray[Any]] | None = None,
    n_tracks: int = 1,
    dropped: dict[str, int] | None = None,
) -> Score:
    """Return a score with its notes and pedal spans sorted and their seconds worked out.

    Args:
        notes: onset, duration, pitch, velocity, program, is_drum, track: arrays of one length, in any order.
        tempos: rising ticks from 0 on; 120 beats a minute by default.
        pedals: onset, end, track: arrays of one length, in any order; spans of one track must not overlap.
    """
    tempos = tempos or Tempos(np.zeros(1, np.int64), np.array([DEFAULT_TEMPO]))
    spans = pedals or {"onset": _NO_TICKS, "end": _NO_TICKS, "track": _NO_TICKS}
    order, span_order = _note_order(notes), np.lexsort([spans["onset"], spans["track"]])
    onset, duration = notes["onset"][order].astype(np.int64), notes["duration"][order].astype(np.int64)
    pedal_onset, pedal_end = spans["onset"][span_order].astype(np.int64), spans["end"][span_order].astype(np.int64)
    ticks = [onset, onset + duration, pedal_onset, pedal_end]
    seconds = seconds_at(tempos, ticks_per_quarter, np.concatenate(ticks))
    onset_seconds, end_seconds, pedal_onset_seconds, pedal_end_seconds = np.split(
        seconds, np.cumsum([len(part) for part in ticks[:-1]])
    )
    return Score(
        ticks_per_quarter=ticks_per_quarter,
        notes=Notes(
            onset=onset,
            duration=duration,
            pitch=notes["pitch"][order].astype(np.uint8),
            velocity=notes["velocity"][order].astype(np.uint8),
            program=notes["program"][order].astype(np.uint8),
            is_drum=notes["is_drum"][order].astype(np.bool_),
            track=notes["track"][order].astype(np.uint16),
            onset_seconds=onset_seconds,
            end_seconds=end_seconds,
        ),
        tempos=tempos,
        time_signatures=time_signatures or NO_TIME_SIGNATURES,
        key_signatures=key_signatures or NO_KEY_SIGNATURES,
        pedals=Pedals(
            onset=pedal_onset,
            end=pedal_end,
            track=spans["track"][span_order].astype(np.uint16),
            onset_seconds=pedal_onset_seconds,
            end_seconds=pedal_end_seconds,
        ),
        n_tracks=n_tracks,
        dropped=dropped or {},
    )


_NO_TICKS = np.zeros(0, dtype=np.int64)
NO_TIME_SIGNATURES = TimeSignatures(_NO_TICKS, _NO_TICKS, _NO_TICKS)
NO_KEY_SIGNATURES = KeySignatures(_NO_TICKS, _NO_TICKS, _NO_TICKS.astype(np.bool_))


def _note_order(notes: dict[str, NDArray[Any]]) -> IntArray:
    """Order by onset, pitch, track, duration and velocity; the first three fit into one integer and mostly decide."""
    onset, pitch, track = (notes[name].astype(np.int64) for name in ("onset", "pitch", "track"))
    keys = (onset << 7 | pitch) << 16 | track
    order = np.argsort(keys, kind="stable")
    keys_in_order = keys[order]
    if np.any(keys_in_order[1:] == keys_in_order[:-1]):
        order = np.lexsort([notes["velocity"], notes["duration"], keys])
    return order


def read_midi(data: bytes | Path, where: str = "", limits: ReadLimits = ReadLimits()) -> Score:
    """Read a MIDI file, or an RMID file around one, into a score.

    Pedal spans follow the channel, as on an instrument: a pedal kept on a track without notes holds the notes that
    other tracks play on its channel. Notes of zero length get 1 tick. Sequences of a format 2 file follow one
    another. Impossible tempos and signatures are left out and counted in `dropped`.

    Args:
        data: the bytes, or a path to read them from.
        where: how messages name the file; the path by default.

    Raises:
        BadScore: with one of the reasons empty_file, not_midi, unsupported_division, parse_error, no_notes,
            unreadable_notes, out_of_range, too_long, too_many_notes.
        NotFound: the path is no file.
    """
    if isinstance(data, Path):
        where = where or str(data)
        data = _read_file(data, where, limits)
    where = where or "bytes"
    if len(data) > limits.max_bytes:
        raise BadScore("too_long", f"file of {len(data)} bytes, limit {limits.max_bytes} ({where})")
    container = midi_bytes.read_container(bytes(data), where)
    if len(container.tracks) > limits.max_tracks:
        raise BadScore("out_of_range", f"{len(container.tracks)} tracks, limit {limits.max_tracks} ({where})")
    if not container.tracks:
        reason = "parse_error" if container.n_missing_tracks else "no_notes"
        raise BadScore(reason, f"header states {container.n_missing_tracks} tracks, none follows ({where})")
    groups = [[track] for track in container.tracks] if container.format == 2 else [container.tracks]
    sequences = [_read_sequence(tracks, container.ticks_per_quarter, where) for tracks in groups]
    sequence = sequences[0] if len(sequences) == 1 else _one_after_another(sequences)
    if not len(sequence.notes["onset"]):
        _refuse_silence(container.tracks, where)
    _check_ranges(sequence, limits, where)
    dropped = sequence.dropped + Counter(
        missing_tracks=container.n_missing_tracks, trailing_bytes=container.n_trailing_bytes
    )
    tempos = _tempos(sequence.metas["tempos"], dropped)
    time_signatures = _time_signatures(sequence.metas["time_signatures"], dropped)
    key_signatures = _key_signatures(sequence.metas["key_signatures"], dropped)
    score = build_score(
        container.ticks_per_quarter,
        sequence.notes,
        tempos=tempos,
        time_signatures=time_signatures,
        key_signatures=key_signatures,
        pedals=sequence.pedals,
        n_tracks=sequence.n_tracks,
        dropped={reason: count for reason, count in sorted(dropped.items()) if count},
    )
    seconds = float(score.notes.end_seconds.max())
    if seconds > limits.max_seconds:
        raise BadScore("too_long", f"{seconds:.0f} s of music, limit {limits.max_seconds:.0f} ({where})")
    return score


def _read_file(path: Path, where: str, limits: ReadLimits) -> bytes:
    if not path.is_file():
        raise NotFound(f"no such file: {where}")
    size = path.stat().st_size
    if size > limits.max_bytes:
        raise BadScore("too_long", f"file of {size} bytes, limit {limits.max_bytes} ({where})")
    return path.read_bytes()


@dataclass(frozen=True, slots=True)
class _Sequence:
    """What was read of tracks that sound together: columns of notes and pedal spans, and rows of meta events."""

    notes: dict[str, IntArray]
    pedals: dict[str, IntArray]
    metas: dict[str, IntArray]  # rows of tick, value, value
    n_tracks: int
    length: int  # ticks to the last End of Track
    dropped: Counter[str]


_N_FRONT_MARKERS = 2  # channel and port
_META_TYPES = {"tempos": 0x51, "time_signatures": 0x58, "key_signatures": 0x59}
_META_COLUMNS = {
    "tempos": ("time", "mspq", "mspq"),
    "time_signatures": ("time", "numerator", "denominator"),
    "key_signatures": ("time", "key", "tonality"),
}


def _read_sequence(tracks: Sequence[bytes], ticks_per_quarter: int, where: str) -> _Sequence:
    marked = [midi_bytes.mark_channels(track, where) for track in tracks]
    parsed, dropped = _parse(midi_bytes.build_file(ticks_per_quarter, [track.data for track in marked]), where)
    parts: list[_Part] = []
    for part in parsed.tracks:
        if len(part.notes) > 1 or len(part.controls) > _N_FRONT_MARKERS:
            parts.append(_read_part(part, parts[-1].key if parts else 0))
    n_unended = sum(part.n_unended for part in parts)
    # A track cut short by an early End of Track shows no end markers; only then is a slow second count worth its time.
    n_ends, n_ends_due = sum(part.is_complete for part in parts), sum(track.n_end_markers for track in marked)
    is_doubtful = n_ends < n_ends_due or any(track.is_doubtful for track in marked)
    if is_doubtful or n_unended:
        n_lost = sum(midi_bytes.count_note_ons(track) for track in tracks) - sum(len(part.onset) for part in parts)
        n_unended = n_unended if is_doubtful else max(n_lost, n_unended)
        dropped.update(unended_notes=n_unended, unread_notes=max(n_lost - n_unended, 0))
    sounding = [part for part in parts if len(part.onset)]
    length = max((part.end for part in parts), default=0)
    return _Sequence(
        notes=_note_columns(sounding),
        pedals=_pedal_columns(parts, sounding, length),
        metas={kind: _meta_rows(parsed, kind, tracks) for kind in _META_TYPES},
        n_tracks=len(sounding),
        length=length,
        dropped=dropped,
    )


def _parse(data: bytes, where: str) -> tuple[Any, Counter[str]]:
    """Read with symusic; data bytes over 127 are clamped in a second attempt, which is counted."""
    import symusic  # here, because configs and tokenizers know scores without ever reading a file

    try:
        return symusic.Score.from_midi(data), Counter()
    except Exception as error:  # symusic raises bare RuntimeErrors, and what its bindings raise is not written down
        first = error
    if re.match(r"Get \w+=\d+", str(first)):
        try:
            return symusic.Score.from_midi(data, sanitize_data=True), Counter(sanitized=1)
        except Exception:
            logger.debug("not even clamped data bytes can be read (%s)", where)
    message = " ".join(str(first).split()).removesuffix(": iostream error")
    raise BadScore("parse_error", f"{message} ({where})") from first


@dataclass(frozen=True, slots=True)
class _Part:
    """A part as symusic sees it: one channel and program of one track."""

    key: int  # port × 16 + channel
    program: int
    is_drum: bool
    onset: NDArray[np.integer]
    duration: NDArray[np.integer]
    pitch: NDArray[np.integer]
    velocity: NDArray[np.integer]
    sustain: NDArray[np.integer]  # rows of tick and value of controller 64
    end: int  # ticks to the end of the track, or of the last note where the track was not read to its end
    is_complete: bool
    n_unended: int


def _read_part(part: Any, key_before: int) -> _Part:
    moves, notes = part.controls.numpy(), part.notes.numpy()
    tick, number, value = moves["time"], moves["number"], moves["value"]
    # A program change in running status escapes the marking; its part stands next to another of the same channel.
    is_marked = number[:_N_FRONT_MARKERS].tolist() == [midi_bytes.MARKER_CONTROL] * _N_FRONT_MARKERS
    is_complete = number[-1:].tolist() == [midi_bytes.MARKER_CONTROL] and value[-1] == midi_bytes.END_MARKER
    first_note = 1 if is_marked else 0  # the marker note, which sorts before all others
    columns = [notes[name][first_note:] for name in ("time", "duration", "pitch", "velocity")]
    ends, n_unended = columns[0] + columns[1], 0
    if is_complete:
        is_ended = ends != tick[-1]  # the marker stands one tick after everything else in the track
        n_unended = len(ends) - int(np.count_nonzero(is_ended))
        if n_unended:
            columns = [values[is_ended] for values in columns]
    is_sustain = number == midi_bytes.SUSTAIN_CONTROL
    return _Part(
        int(value[1]) << 4 | int(value[0]) if is_marked else key_before,
        part.program,
        part.is_drum,
        *columns,
        sustain=np.stack([tick[is_sustain], value[is_sustain]], axis=1) if is_sustain.any() else _NO_MOVES,
        end=int(tick[-1]) - 1 if is_complete else int(ends.max(initial=0)),
        is_complete=is_complete,
        n_unended=n_unended,
    )


_NO_MOVES = np.zeros((0, 2), dtype=np.int32)
_NO_ROWS = np.zeros((0, 3), dtype=np.int64)


def _note_columns(parts: Sequence[_Part]) -> dict[str, IntArray]:
    lengths = [len(part.onset) for part in parts]
    columns = {
        name: np.concatenate([_NO_TICKS, *(getattr(part, name) for part in parts)], dtype=np.int64)
        for name in ("onset", "duration", "pitch", "velocity")
    }
    of_part = {"program": [part.program for part in parts], "is_drum": [part.is_drum for part in parts]}
    columns |= {name: np.repeat(np.array(values, dtype=np.int64), lengths) for name, values in of_part.items()}
    return columns | {"track": np.repeat(np.arange(len(parts)), lengths)}


def _pedal_columns(parts: Sequence[_Part], sounding: Sequence[_Part], length: int) -> dict[str, IntArray]:
    """Give every part that sounds the pedal spans of its channel, whichever tracks the pedal stands on."""
    columns: dict[str, list[IntArray]] = {"onset": [_NO_TICKS], "end": [_NO_TICKS], "track": [_NO_TICKS]}
    spans_of_key: dict[int, tuple[IntArray, IntArray]] = {}
    for key in {part.key for part in parts if len(part.sustain)}:
        moves = np.concatenate([part.sustain for part in parts if part.key == key], dtype=np.int64)
        spans_of_key[key] = _spans(moves[np.argsort(moves[:, 0], kind="stable")], length)
    for track, part in enumerate(sounding):
        if part.key in spans_of_key:
            onset, end = spans_of_key[part.key]
            columns["onset"].append(onset)
            columns["end"].append(end)
            columns["track"].append(np.full(len(onset), track))
    return {name: np.concatenate(values) for name, values in columns.items()}


def _spans(moves: IntArray, length: int) -> tuple[IntArray, IntArray]:
    """Return onsets and ends of the pedal being down; a pedal that is never lifted is down to the end of the music."""
    is_down = moves[:, 1] >= 64
    changes = np.flatnonzero(np.diff(is_down, prepend=False))
    ticks = moves[changes, 0]
    onset, end = ticks[0::2], ticks[1::2]
    if len(end) < len(onset):
        end = np.append(end, length)
    return onset[onset < end], end[onset < end]


def _meta_rows(parsed: Any, kind: str, tracks: Sequence[bytes]) -> IntArray:
    """Return rows of (tick, value, value), by tick, and in file order where ticks are equal."""
    columns = getattr(parsed, kind).numpy()
    names = {"tempos": ("mspq", "mspq"), "time_signatures": ("numerator", "denominator")}
    rows = np.stack(
        [columns[name].astype(np.int64) for name in ("time", *names.get(kind, ("key", "tonality")))], axis=1
    )
    # symusic sorts long lists unstably: where two events of one tick differ, only the bytes tell which came last.
    is_tie = np.diff(rows[:, 0]) == 0
    if len(rows) > 16 and np.any(is_tie & np.any(np.diff(rows, axis=0) != 0, axis=1)):
        rows = np.array(
            [_meta_row(kind, tick, data) for tick, data in midi_bytes.meta_events(tracks, _META_TYPES[kind])]
        )
    return rows.reshape(-1, 3)


def _meta_row(kind: str, tick: int, data: bytes) -> tuple[int, int, int]:
    data = data.ljust(3, b"\0")
    if kind == "tempos":
        return tick, int.from_bytes(data[:3]), 0
    if kind == "time_signatures":
        return tick, data[0], 1 << data[1] if data[1] < 8 else 0
    return tick, int.from_bytes(data[:1], signed=True), data[1]


def _one_after_another(sequences: Sequence[_Sequence]) -> _Sequence:
    """Lay the independent sequences of a format 2 file end to end; each begins with the default tempo."""
    offsets = np.cumsum([0, *(sequence.length for sequence in sequences)])
    tracks = np.cumsum([0, *(sequence.n_tracks for sequence in sequences)])
    shifts = [{"onset": offset, "end": offset, "track": track} for offset, track in zip(offsets, tracks, strict=True)]

    def join(columns: Sequence[dict[str, IntArray]]) -> dict[str, IntArray]:
        parts = list(zip(columns, shifts, strict=False))
        return {
            name: np.concatenate([column[name] + shift.get(name, 0) for column, shift in parts]) for name in columns[0]
        }

    metas: dict[str, list[IntArray]] = {kind: [] for kind in _META_TYPES}
    for sequence, offset in zip(sequences, offsets, strict=False):
        metas["tempos"].append(np.array([[offset, DEFAULT_TEMPO, 0]]))
        for kind, rows in sequence.metas.items():
            metas[kind].append(rows + np.array([offset, 0, 0]))
    return _Sequence(
        notes=join([sequence.notes for sequence in sequences]),
        pedals=join([sequence.pedals for sequence in sequences]),
        metas={kind: np.concatenate(rows) for kind, rows in metas.items()},
        n_tracks=int(tracks[-1]),
        length=int(offsets[-1]),
        dropped=sum((sequence.dropped for sequence in sequences), Counter[str]()),
    )


def _refuse_silence(tracks: Sequence[bytes], where: str) -> None:
    n_note_ons = sum(midi_bytes.count_note_ons(track) for track in tracks)
    if n_note_ons:
        raise BadScore("unreadable_notes", f"0 notes read, {n_note_ons} note-ons stand in the bytes ({where})")
    raise BadScore("no_notes", f"{len(tracks)} tracks without a note-on ({where})")


def _check_ranges(sequence: _Sequence, limits: ReadLimits, where: str) -> None:
    """Refuse overflowed ticks and values out of range, before anything computes with them."""
    columns, n_notes = sequence.notes, len(sequence.notes["onset"])
    if sequence.n_tracks > 0xFFFF:
        raise BadScore("out_of_range", f"{sequence.n_tracks} parts, limit {0xFFFF} ({where})")
    if n_notes > limits.max_notes:
        raise BadScore("too_many_notes", f"{n_notes} notes, limit {limits.max_notes} ({where})")
    checks = [(f"note {name}", columns[name], low, high) for name, (low, high) in _NOTE_RANGES.items()]
    checks += [("end of note", columns["onset"] + columns["duration"], 0, TICK_MAX)]
    checks += [(f"pedal {name}", sequence.pedals[name], 0, TICK_MAX) for name in ("onset", "end")]
    checks += [(f"tick of {kind}", rows[:, 0], 0, TICK_MAX) for kind, rows in sequence.metas.items()]
    for name, values, low, high in checks:
        if len(values) and not low <= values.min() <= values.max() <= high:
            worst = values.min() if values.min() < low else values.max()
            raise BadScore("out_of_range", f"{name} {worst} outside {low}-{high} ({where})")
    np.maximum(columns["duration"], 1, out=columns["duration"])


_NOTE_RANGES = {
    "onset": (0, TICK_MAX - 1),
    "duration": (0, TICK_MAX),
    "pitch": (0, 127),
    "velocity": (1, 127),
    "program": (0, 127),
}


def _last_of_tick(rows: IntArray) -> IntArray:
    if len(rows) < 2:
        return rows
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    return rows[np.append(rows[1:, 0] != rows[:-1, 0], True)]


def _tempos(rows: IntArray, dropped: Counter[str]) -> Tempos:
    is_good = (rows[:, 1] >= TEMPO_MIN) & (rows[:, 1] <= TEMPO_MAX)
    dropped["bad_tempo"] += int(np.sum(~is_good))
    rows = _last_of_tick(np.concatenate([[[0, DEFAULT_TEMPO, 0]], rows[is_good]]))
    return Tempos(rows[:, 0], rows[:, 1])


def _time_signatures(rows: IntArray, dropped: Counter[str]) -> TimeSignatures:
    if not len(rows):
        return NO_TIME_SIGNATURES
    is_good = (rows[:, 1] > 0) & (rows[:, 2] > 0)
    dropped["bad_time_signature"] += int(np.sum(~is_good))
    rows = _last_of_tick(rows[is_good])
    return TimeSignatures(rows[:, 0], rows[:, 1], rows[:, 2])


def _key_signatures(rows: IntArray, dropped: Counter[str]) -> KeySignatures:
    if not len(rows):
        return NO_KEY_SIGNATURES
    is_good = (np.abs(rows[:, 1]) <= 7) & (rows[:, 2] >= 0) & (rows[:, 2] <= 1)
    dropped["bad_key_signature"] += int(np.sum(~is_good))
    rows = _last_of_tick(rows[is_good])
    return KeySignatures(rows[:, 0], rows[:, 1], rows[:, 2].astype(np.bool_))
