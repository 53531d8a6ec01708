"""Scores typed out in milliseconds: 500 ticks per quarter at 120 beats a minute make one tick one millisecond."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.music.score import Score, build_score

Columns = dict[str, NDArray[Any]]
PITCHED = (0, False, 0)  # program, is_drum, track of a note that says nothing about them


def millisecond_score(
    notes: Sequence[tuple[int, ...]], pedals: Sequence[tuple[int, int, int]] = (), n_tracks: int = 1
) -> Score:
    """Return a score of notes (onset, duration, pitch, velocity[, program, is_drum, track]).

    Args:
        pedals: rows of onset, end, track.
    """
    rows = [(*note, *PITCHED[len(note) - 4 :]) for note in notes]
    names = ("onset", "duration", "pitch", "velocity", "program", "is_drum", "track")
    columns: Columns = dict(zip(names, np.array(rows, np.int64).reshape(-1, 7).T, strict=True))
    spans: Columns = dict(zip(("onset", "end", "track"), np.array(pedals, np.int64).reshape(-1, 3).T, strict=True))
    return build_score(500, columns, pedals=spans if pedals else None, n_tracks=n_tracks)
