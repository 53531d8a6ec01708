"""The second MIDI reader, for files that our own refuses or doubts; the only import of symusic.

symusic can return overflowed ticks and drop notes without notice. So its result is checked here and read again by our
own reader, which counts and limits everything.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.music.midi.events import TICK_MAX
from tasks.music.midi.modes import BANK_SELECT, DRUM_BANKS


def second_reading(data: bytes, n_notes: int, max_notes: int) -> bytes | None:
    """Return the file as symusic understood it, written again, if it holds more than `n_notes` notes; otherwise None.

    Drums are those of channel 10 and those whose part begins with a bank of drums. symusic leaves out what system
    exclusive messages say, and notes that no note-off ends.
    """
    import symusic  # here, because most batches never need it

    for sanitize in (False, True):
        try:
            score: Any = symusic.Score.from_midi(data, sanitize_data=sanitize)  # its stubs do not know the methods
        except Exception:  # symusic raises bare RuntimeErrors; errors of its bindings are undocumented
            continue
        if not n_notes < score.note_num() <= max_notes or not 0 < score.ticks_per_quarter < 0x8000:
            return None
        times = [np.asarray(track.notes.numpy()[name]) for track in score.tracks for name in ("time", "duration")]
        if any(len(values) and not 0 <= values.min() <= values.max() <= TICK_MAX // 2 for values in times):
            return None
        for track in score.tracks:  # it knows channel 10 alone, and writes programs before banks
            banks = [move.value for move in track.controls if move.number == BANK_SELECT]
            track.is_drum = track.is_drum or (bool(banks) and banks[0] in DRUM_BANKS)
        return bytes(score.dumps_midi())
    return None


def second_notes(data: bytes) -> NDArray[np.int64] | None:
    """Return the notes of a file as symusic reads them, in whatever order; None if it refuses the file.

    Returns:
        int64[N, 4]: onset and duration in ticks, pitch, velocity. symusic leaves notes of zero length as they are; our
        own reader gives them 1 tick.
    """
    import symusic  # here, because most batches never need it

    try:
        score: Any = symusic.Score.from_midi(data)  # its stubs do not know the methods
    except Exception:  # symusic raises bare RuntimeErrors; errors of its bindings are undocumented
        return None
    columns = [track.notes.numpy() for track in score.tracks]
    names = ("time", "duration", "pitch", "velocity")
    rows = [np.stack([np.asarray(part[name], np.int64) for name in names], axis=1) for part in columns]
    return np.concatenate(rows) if rows else np.zeros((0, 4), np.int64)
