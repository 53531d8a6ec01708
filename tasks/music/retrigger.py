"""Notes of one pitch that overlap within a part, which no MIDI file can hold: the next one ends the one before."""

import numpy as np

from tasks.music.score import Score, build_score

_COLUMNS = ("onset", "duration", "pitch", "velocity", "program", "is_drum", "track")


def end_at_next(score: Score) -> tuple[Score, int]:
    """Return a score in which a note ends where its part strikes the same pitch again, as on a keyboard.

    Notes of one pitch that begin together stay as they are.

    Returns:
        the score, the same one where nothing overlaps, and the number of notes that are shorter than they were.
    """
    notes = score.notes
    lane = (notes.track.astype(np.int64) << 7) | notes.pitch
    order = np.lexsort([notes.onset, lane])
    place = (lane[order] << 40) | notes.onset[order]  # onsets are below 2**31
    following = np.searchsorted(place, place, side="right")
    has_next = following < len(place)
    has_next[has_next] = lane[order][following[has_next]] == lane[order][has_next]
    room = np.full(len(place), np.iinfo(np.int64).max)
    room[has_next] = notes.onset[order][following[has_next]] - notes.onset[order][has_next]
    most = np.empty_like(room)
    most[order] = room
    is_short = notes.duration > most
    if not is_short.any():
        return score, 0
    columns = {name: getattr(notes, name) for name in _COLUMNS} | {"duration": np.minimum(notes.duration, most)}
    pedals = {name: getattr(score.pedals, name) for name in ("onset", "end", "track")}
    shortened = build_score(
        score.ticks_per_quarter, columns, tempos=score.tempos, time_signatures=score.time_signatures,
        key_signatures=score.key_signatures, pedals=pedals, n_tracks=score.n_tracks, dropped=score.dropped,
    )  # fmt: skip
    return shortened, int(is_short.sum())
