"""Reading one MIDI file as a score."""

import json
from pathlib import Path

from tasks.errors import BadScore, NotFound, RejectReason
from tasks.music.midi.events import EventBatch
from tasks.music.midi.limits import ReadLimits
from tasks.music.midi.reader import read_files
from tasks.music.score import Score


def read_midi(
    data: bytes | Path, where: str = "", limits: ReadLimits = ReadLimits(), read: EventBatch | None = None
) -> Score:
    """Read a MIDI file, or an RMID file around one, into a score.

    Pedal spans follow the channel, as on an instrument: a pedal kept on a track without notes holds the notes that
    other tracks play on its channel; so do programs, unless a track sets its own. Notes of zero length get 1 tick.
    Sequences of a format 2 file are concatenated. `dropped` counts what is left out or repaired. `docs/data-format.md`
    lists the messages that end notes, lift pedals and make drums.

    Args:
        data: the bytes, or a path to read them from.
        where: how messages name the file; the path by default.
        read: the events of the bytes, where they are read already.

    Raises:
        BadScore: with one of the reasons empty_file, not_midi, truncated, bad_header, bad_chunk, bad_event,
            unsupported_division, no_notes, unreadable_notes, out_of_range, too_long, too_many_notes.
        NotFound: the path is not a file.
    """
    if isinstance(data, Path):
        where = where or str(data)
        data = _read_file(data, where, limits)
    batch = read_files([bytes(data)], limits, read)
    refusal = batch.refusals[0]
    if refusal:
        raise BadScore(refusal.reason, f"{refusal.detail} ({where or 'bytes'})")
    return Score(batch.notes, json.loads(batch.dropped[0]))


def _read_file(path: Path, where: str, limits: ReadLimits) -> bytes:
    if not path.is_file():
        raise NotFound(f"no such file: {where}")
    size = path.stat().st_size
    if size > limits.max_bytes:
        raise BadScore(RejectReason.TOO_LONG, f"file of {size} bytes, limit {limits.max_bytes} ({where})")
    return path.read_bytes()
