"""A second opinion on files our own reader refuses or doubts; sole import of symusic.

symusic never crashed on thousands of broken files, but it can return overflowed ticks and drop notes without a word, so
its reading is checked here and read again by our own reader, which counts and bounds everything.
"""

from typing import Any

import numpy as np

from tasks.music.midi_events import TICK_MAX


def second_reading(data: bytes, n_notes: int, max_notes: int) -> bytes | None:
    """Return the file as symusic understood it, written anew, if it holds more than `n_notes` notes; else None."""
    import symusic  # here, because most batches never need it

    for sanitize in (False, True):
        try:
            score: Any = symusic.Score.from_midi(data, sanitize_data=sanitize)  # its stubs do not know the methods
        except Exception:  # symusic raises bare RuntimeErrors, and what its bindings raise is not written down
            continue
        if not n_notes < score.note_num() <= max_notes or not 0 < score.ticks_per_quarter < 0x8000:
            return None
        times = [np.asarray(track.notes.numpy()[name]) for track in score.tracks for name in ("time", "duration")]
        if any(len(values) and not 0 <= values.min() <= values.max() <= TICK_MAX // 2 for values in times):
            return None
        return bytes(score.dumps_midi())
    return None
