"""Fourteen statistics of the events of a MIDI file: tracks, channels, programs, banks, pitches, length in ticks.

The names are those that Optimus VIRTUOSO prints for its compositions.
"""

from collections import Counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.errors import BadScore, RejectReason
from tasks.music.midi import events
from tasks.music.midi.chunks import track_chunks
from tasks.music.midi.reader import read_files, read_one
from tasks.music.midi.writer import DRUM_CHANNEL

_BANK_MSB, _BANK_LSB = 0, 32  # controllers
_GM_MODE_OF = {1: 1, 2: 0, 3: 2}  # last number of the message -> mode


def midi_statistics(data: bytes, where: str = "", read: events.EventBatch | None = None) -> dict[str, Any]:
    """Return the statistics of a MIDI file, ready for JSON; what counts things by number has the number as text.

    Channels are 0-15, of whatever port. Notes are those that are ended; tracks are the file's track chunks, a
    conductor's without notes among them. Pitch ranges leave the drums of channel 9 out, whose pitch names an
    instrument. Keys:

    - bank_select: the distinct [MSB, LSB] (controllers 0 and 32), in order, that a track has chosen for a channel when
      its program changes or the track ends; a half that was never sent is 0.
    - channels_by_track, channels_total: sorted channels that have notes, of each track and of all.
    - general_midi_mode: what system exclusive messages ask for, in order: 1 General MIDI on, 2 General MIDI 2, 0 off.
    - nticks: end of the last note. ntracks, ticks_per_quarter: as in the file.
    - num_notes_by_channel: channel -> notes.
    - patch_changes_by_track: for each track, channel -> its last program; patch_changes_total: the sorted programs of
      all program changes.
    - percussion, pitches: pitch -> notes, on channel 9 and on all others.
    - pitch_range_by_track: [lowest, highest] of each track, None without pitched notes; pitch_range_sum: the sum of
      highest - lowest.

    Args:
        where: how messages name the file.
        read: its events, where they are read already.
    Raises:
        BadScore: no MIDI file, or one too damaged for the project's own reader; a file without notes is none of that.
    """
    whole, batch = np.frombuffer(data, np.uint8), read or read_one(data)
    facts = batch.facts[0]
    if facts[events.CODE] not in (events.OK, events.NO_NOTES):
        refusal = read_files([data]).refusals[0]
        reason, detail = (
            (refusal.reason, refusal.detail) if refusal else (RejectReason.BAD_EVENT, "events that cannot be read")
        )
        raise BadScore(reason, f"{detail} ({where or 'bytes'})")
    key, track, pitch, end = _ended_notes(batch)
    channel, n_tracks = key & 15, int(facts[events.N_TRACKS])
    is_drum = channel == DRUM_CHANNEL
    ranges = [_range_of(pitch[(track == index) & ~is_drum]) for index in range(n_tracks)]
    controls = [_controls_of(whole, begin, stop) for begin, stop in track_chunks(whole).tolist()]
    return {
        "bank_select": [list(bank) for bank in dict.fromkeys(bank for c in controls for bank in c.banks)],
        "channels_by_track": [np.unique(channel[track == index]).tolist() for index in range(n_tracks)],
        "channels_total": np.unique(channel).tolist(),
        "general_midi_mode": [mode for c in controls for mode in c.modes],
        "ntracks": n_tracks,
        "nticks": int(end.max(initial=0)),
        "num_notes_by_channel": _histogram(channel),
        "patch_changes_by_track": [{str(channel): program for channel, program in c.last.items()} for c in controls],
        "patch_changes_total": sorted({program for c in controls for program in c.programs}),
        "percussion": _histogram(pitch[is_drum]),
        "pitches": _histogram(pitch[~is_drum]),
        "pitch_range_by_track": ranges,
        "pitch_range_sum": sum(high - low for low, high in filter(None, ranges)),
        "ticks_per_quarter": int(facts[events.TICKS_PER_QUARTER]),
    }


def _ended_notes(batch: events.EventBatch) -> list[NDArray[np.int64]]:
    """Return key, track, pitch and end tick of the notes that are ended."""
    is_ended = np.flatnonzero(batch.duration[: batch.offsets[1, 0]] != events.UNENDED)
    columns = (batch.key, batch.track, batch.pitch, batch.onset, batch.duration)
    key, track, pitch, onset, duration = (column[is_ended].astype(np.int64) for column in columns)
    return [key, track, pitch, onset + duration]


def _range_of(pitch: NDArray[np.int64]) -> list[int] | None:
    return [int(pitch.min()), int(pitch.max())] if len(pitch) else None


def _histogram(values: NDArray[np.int64]) -> dict[str, int]:
    return {str(value): n for value, n in sorted(Counter(values.tolist()).items())}


class _Controls(NamedTuple):
    """The events of a track other than notes."""

    banks: list[tuple[int, int]]
    modes: list[int]
    programs: list[int]
    last: dict[int, int]  # channel -> program


def _controls_of(data: NDArray[np.uint8], position: int, end: int) -> _Controls:
    controls = _Controls([], [], [], {})
    chosen: dict[int, dict[int, int]] = {}  # channel -> controller -> value, since its last program change
    running = 0
    while position < end:
        code, _, status, _, body, position = events.next_event(data, position, end, running)
        if code != events.OK:
            break
        if status < 0xF0:
            running = status
        channel, first = status & 15, min(int(data[body]), 127) if body < end else 0
        if status & 0xF0 == 0xB0 and first in (_BANK_MSB, _BANK_LSB):
            chosen.setdefault(channel, {})[first] = int(data[body + 1])
        elif status & 0xF0 == 0xC0:
            if channel in chosen:
                controls.banks.append(_bank(chosen.pop(channel)))
            controls.programs.append(first)
            controls.last[channel] = first
        elif status == 0xF0:
            message = bytes(data[body:position])
            if message[:1] == b"\x7e" and message[2:3] == b"\x09" and message[3:4] in (b"\x01", b"\x02", b"\x03"):
                controls.modes.append(_GM_MODE_OF[message[3]])
    controls.banks.extend(_bank(halves) for halves in chosen.values())
    return controls


def _bank(halves: dict[int, int]) -> tuple[int, int]:
    return halves.get(_BANK_MSB, 0), halves.get(_BANK_LSB, 0)
