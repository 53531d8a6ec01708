"""Musical changes to batches of notes; each returns a new batch and leaves its argument as it was."""

from dataclasses import replace

import numpy as np

from tasks.music.arrays import BoolArray, IntArray, offsets_of
from tasks.music.compiled import njit
from tasks.music.notes import COLUMNS, NoteBatch

_TIME_GRID = 1e7  # steps a second when times are compared: finer than any tick that a real file has


def apply_sustain(batch: NoteBatch) -> NoteBatch:
    """Let notes ring as long as the sustain pedal holds them; drums have no dampers and stay as they are.

    A note that ends inside a pedal span of its track, after the pedal went down and before it came up, rings to the
    end of the span, or to the next onset of its pitch on that track if that comes first. No note gets shorter.
    """
    if not len(batch.pedal_track):
        return batch
    falls = np.floor(batch.pedal_onset_seconds * _TIME_GRID)  # a note that ends as the pedal falls is not held
    return replace(batch, end_seconds=_sustained_ends(*(getattr(batch, name) for name in _SUSTAIN_COLUMNS), falls))


def transpose(batch: NoteBatch, semitones: int | IntArray) -> tuple[NoteBatch, BoolArray]:
    """Move every note but the drums by `semitones`, one number or int64[P].

    Returns:
        the batch, and fits bool[P]: False for a piece with a note that would leave 0-127; its notes are unchanged.
    """
    piece = batch.piece_of_note
    moved = batch.pitch + np.where(batch.is_drum, 0, np.broadcast_to(semitones, batch.n_pieces)[piece])
    fits = np.ones(batch.n_pieces, dtype=np.bool_)
    fits[piece[(moved < 0) | (moved > 127)]] = False
    pitch = np.where(fits[piece], moved, batch.pitch).astype(np.uint8)
    return replace(batch, pitch=pitch), fits


def transpose_within(batch: NoteBatch, semitones: int) -> tuple[NoteBatch, IntArray]:
    """Move every note but the drums by `semitones`, without those that would leave 0-127.

    Returns:
        the batch, and int64[P]: the notes left out of each piece.
    """
    moved = batch.pitch.astype(np.int64) + np.where(batch.is_drum, 0, semitones)
    stays = (moved >= 0) & (moved <= 127)
    n_left_out = np.bincount(batch.piece_of_note[~stays], minlength=batch.n_pieces)
    return replace(batch, pitch=np.where(stays, moved, 0).astype(np.uint8)).where(stays), n_left_out


def flip(batch: NoteBatch) -> NoteBatch:
    """Turn every note but the drums upside down: its pitch becomes 127 - pitch."""
    return _in_order(replace(batch, pitch=np.where(batch.is_drum, batch.pitch, 127 - batch.pitch)))


def centre(batch: NoteBatch, pitch: int) -> tuple[NoteBatch, IntArray, BoolArray]:
    """Move every note but the drums so that the median of each piece, rounded down, becomes `pitch`.

    Returns:
        the batch, int64[P]: the semitones of each piece, and fits bool[P] as of `transpose`.
    """
    pitched, piece = batch.pitch[~batch.is_drum], batch.piece_of_note[~batch.is_drum]
    ordered = np.append(pitched[np.lexsort([pitched, piece])], 0).astype(np.int64)  # one more for pieces of drums
    n_notes = np.bincount(piece, minlength=batch.n_pieces)
    first = offsets_of(n_notes)[:-1]
    median = (ordered[first + np.maximum(n_notes - 1, 0) // 2] + ordered[first + n_notes // 2]) // 2
    semitones = np.where(n_notes > 0, pitch - median, 0)
    moved, fits = transpose(batch, semitones)
    return _in_order(moved), semitones, fits


def _in_order(batch: NoteBatch) -> NoteBatch:
    """Return the batch with its notes in the order that `NoteBatch` states, after pitches have changed it."""
    keys = [batch.velocity, batch.duration, batch.track, batch.pitch, batch.onset, batch.piece_of_note]
    order = np.lexsort(keys)
    return replace(batch, **{name: getattr(batch, name)[order] for name in COLUMNS[""]})


def stretch_time(batch: NoteBatch, factor: float) -> NoteBatch:
    """Play `factor` times as long: every second of notes and pedal spans is multiplied by it, and so is every tempo.

    Ticks stay, for the score is the same one, played at another speed.

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


def shift_velocity(batch: NoteBatch, steps: int) -> tuple[NoteBatch, IntArray]:
    """Play every note louder by `steps` (softer below 0); what would leave 1-127 stays at the end of that range.

    Returns:
        the batch, and int64[P]: the notes of each piece that would have left the range.
    """
    wanted = batch.velocity.astype(np.int64) + steps
    louder = np.clip(wanted, 1, 127)
    n_clipped = np.bincount(batch.piece_of_note[louder != wanted], minlength=batch.n_pieces)
    return replace(batch, velocity=louder.astype(np.uint8)), n_clipped


_SUSTAIN_COLUMNS = (
    "offsets", "onset_seconds", "end_seconds", "pitch", "is_drum", "track",
    "pedal_offsets", "pedal_end_seconds", "pedal_track",
)  # fmt: skip


@njit(cache=True, nogil=True)
def _sustained_ends(offsets, onset, end, pitch, is_drum, track, pedal_offsets, pedal_end, pedal_track, falls):
    rings_until = end.copy()
    n_voices = 0
    for note in range(len(track)):
        n_voices = max(n_voices, int(track[note]) + 1)
    next_onset = np.full(128 * n_voices, np.inf)
    first_span, n_spans = np.zeros(n_voices + 1, np.int64), np.zeros(n_voices + 1, np.int64)
    for piece in range(len(offsets) - 1):
        low, high = pedal_offsets[piece], pedal_offsets[piece + 1]
        if low == high:
            continue
        for span in range(low, high):  # spans are in the order of (track, onset)
            part = min(int(pedal_track[span]), n_voices)
            if n_spans[part] == 0:
                first_span[part] = span
            n_spans[part] += 1
        for note in range(offsets[piece + 1] - 1, offsets[piece] - 1, -1):
            part = int(track[note])
            if is_drum[note] or n_spans[part] == 0:
                continue
            voice = part << 7 | int(pitch[note])
            first = first_span[part]
            own = falls[first : first + n_spans[part]]
            span = first - 1 + np.searchsorted(own, np.floor(end[note] * _TIME_GRID))
            if span >= first and end[note] < pedal_end[span]:
                rings_until[note] = max(end[note], min(pedal_end[span], next_onset[voice]))
            next_onset[voice] = onset[note]
        for note in range(offsets[piece], offsets[piece + 1]):
            next_onset[int(track[note]) << 7 | int(pitch[note])] = np.inf
        for span in range(low, high):
            n_spans[min(int(pedal_track[span]), n_voices)] = 0
    return rings_until
