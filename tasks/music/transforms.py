"""Musical changes to batches of notes; each returns a new batch and leaves its argument as it was."""

from dataclasses import replace

import numpy as np

from tasks.music.notes import BoolArray, FloatArray, IntArray, NoteBatch, TrackArray, order_by_voice

_TIME_GRID = 1e7  # steps a second when times are compared: finer than any tick that a real file has


def apply_sustain(batch: NoteBatch) -> NoteBatch:
    """Let notes ring as long as the sustain pedal holds them; drums have no dampers and stay as they are.

    A note that ends inside a pedal span of its track, after the pedal went down and before it came up, rings to the
    end of the span, or to the next onset of its pitch on that track if that comes first. No note gets shorter.
    """
    if not len(batch.pedal_track):
        return batch
    span_group = _group(batch.piece_of_pedal, batch.pedal_track)
    groups, span_group = np.unique(span_group, return_inverse=True)
    note_group = _group(batch.piece_of_note, batch.track)
    place = np.minimum(np.searchsorted(groups, note_group), len(groups) - 1)
    held = np.flatnonzero((groups[place] == note_group) & ~batch.is_drum)
    if not len(held):
        return batch
    group, end = place[held], batch.end_seconds[held]
    span_order = np.lexsort([batch.pedal_onset_seconds, span_group])
    span_end = _end_of_span(batch, group, end, span_group, span_order)
    ring_until = np.minimum(span_end, _next_onset(batch, held, group))
    end_seconds = batch.end_seconds.copy()
    end_seconds[held] = np.maximum(end, ring_until)
    return replace(batch, end_seconds=end_seconds)


def transpose(batch: NoteBatch, semitones: int) -> tuple[NoteBatch, BoolArray]:
    """Move every note but the drums by `semitones`.

    Returns:
        the batch, and fits bool[P]: False for a piece with a note that would leave 0-127; its notes are unchanged.
    """
    moved = batch.pitch.astype(np.int64) + np.where(batch.is_drum, 0, semitones)
    piece = batch.piece_of_note
    fits = np.ones(batch.n_pieces, dtype=np.bool_)
    fits[piece[(moved < 0) | (moved > 127)]] = False
    pitch = np.where(fits[piece], moved, batch.pitch).astype(np.uint8)
    return replace(batch, pitch=pitch), fits


def stretch_time(batch: NoteBatch, factor: float) -> NoteBatch:
    """Play `factor` times as long: every second of notes and pedal spans is multiplied by it, and so is every tempo.

    Ticks stay, for the score is the same one played at another speed.

    Args:
        factor: ratio of new to old length, above 0 and finite.

    Raises:
        ValueError: another factor.

    Source: Oore et al. 2018, section on data augmentation.
    """
    if not 0 < factor < float("inf"):
        raise ValueError(f"stretch factor {factor} is not a finite number above 0")
    return replace(
        batch,
        onset_seconds=batch.onset_seconds * factor,
        end_seconds=batch.end_seconds * factor,
        pedal_onset_seconds=batch.pedal_onset_seconds * factor,
        pedal_end_seconds=batch.pedal_end_seconds * factor,
        tempo_microseconds_per_quarter=batch.tempo_microseconds_per_quarter * factor,
    )


def _group(piece: IntArray, track: TrackArray) -> IntArray:
    return piece << 16 | track.astype(np.int64)


def _end_of_span(
    batch: NoteBatch, group: IntArray, end: FloatArray, span_group: IntArray, span_order: IntArray
) -> FloatArray:
    """End of the span that each note ends in, or 0 where it ends in none."""
    onset, span_end = batch.pedal_onset_seconds[span_order], batch.pedal_end_seconds[span_order]
    longest = max(float(end.max()), float(span_end.max())) + 1
    grid = min(_TIME_GRID, 2.0**62 / (longest * (int(span_group.max()) + 1)))
    stride = int(longest * grid) + 1  # one key orders (group, time), so that one search serves all groups
    keys = span_group[span_order] * stride + (onset * grid).astype(np.int64)
    # The last span of the group that begins before the note ends; a note that ends as the pedal falls is not held.
    place = np.searchsorted(keys, group * stride + (end * grid).astype(np.int64), side="left") - 1
    is_inside = (place >= 0) & (span_group[span_order][place] == group) & (end < span_end[place])
    return np.where(is_inside, span_end[place], 0.0)


def _next_onset(batch: NoteBatch, held: IntArray, group: IntArray) -> FloatArray:
    """Onset of the next note of the same pitch in the same group, or infinity."""
    onset, voice = batch.onset_seconds[held], group << 7 | batch.pitch[held]
    order = order_by_voice(voice, onset)
    following = np.full(len(held), np.inf)
    is_same = np.diff(voice[order]) == 0
    following[order[:-1][is_same]] = onset[order[1:][is_same]]
    return following
