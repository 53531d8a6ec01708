"""Statistics of one piece, each a finite number for every input; those in bars are in `bar_metrics`.

Pitch statistics leave drums out, whose pitch names an instrument; times are seconds through the tempo map. Where a
statistic divides by nothing (no notes, no pitched notes, no time), it is 0.
"""

import numpy as np
from numpy.typing import NDArray

from tasks.music.arrays import ByteArray, FloatArray, IntArray
from tasks.music.metrics.bar_metrics import bar_statistics
from tasks.music.score import Score

MAJOR_SCALE = np.array([0, 2, 4, 5, 7, 9, 11])


def piece_statistics(score: Score) -> dict[str, float]:
    """Return the statistics of a piece by name, those of `bar_statistics` too.

    All are 0 for a piece without notes, but `empty_share`, `empty_bar_rate` and `empty_beat_rate`, which are 1.

    Names without a function of their own: `n_notes`; `seconds` (end of the last note); `notes_per_second`
    (n_notes / seconds); `pitch_min`, `pitch_max`, `pitch_range` (their difference in semitones), `pitch_mean` and
    `n_pitches`, `n_pitch_classes` (different ones) of pitched notes; `velocity_mean`, `velocity_std` and
    `duration_mean_seconds` of all notes; `drum_share` (of notes). Unlike in muspy (pitch_range) drums alone have the
    range 0, not -127.
    """
    notes = score.notes
    pitch = notes.pitch[~notes.is_drum]
    seconds = float(notes.end_seconds.max(initial=0.0))
    return {
        "n_notes": float(len(notes.pitch)),
        "seconds": seconds,
        "notes_per_second": _ratio(len(notes.pitch), seconds),
        "polyphony": polyphony(notes.onset_seconds, notes.end_seconds, notes.pitch),
        "polyphony_rate": polyphony_rate(notes.onset_seconds, notes.end_seconds, notes.pitch),
        "empty_share": empty_share(notes.onset_seconds, notes.end_seconds),
        "pitch_min": float(pitch.min(initial=127)) if len(pitch) else 0.0,
        "pitch_max": float(pitch.max(initial=0)),
        "pitch_range": float(np.ptp(pitch)) if len(pitch) else 0.0,
        "pitch_mean": _mean(pitch),
        "n_pitches": float(len(np.unique(pitch))),
        "n_pitch_classes": float(len(np.unique(pitch % 12))),
        "pitch_entropy": entropy(np.bincount(pitch, minlength=128)),
        "pitch_class_entropy": entropy(np.bincount(pitch % 12, minlength=12)),
        "scale_consistency": scale_consistency(pitch),
        "velocity_mean": _mean(notes.velocity),
        "velocity_std": float(notes.velocity.std()) if len(notes.velocity) else 0.0,
        "duration_mean_seconds": _mean(notes.end_seconds - notes.onset_seconds),
        "drum_share": _mean(notes.is_drum),
        "onset_gap_mean_seconds": onset_gap_mean(notes.onset_seconds),
        "melodic_interval_mean": melodic_interval_mean(notes.onset[~notes.is_drum], pitch),
        **bar_statistics(score),
    }


def entropy(counts: NDArray[np.integer]) -> float:
    """Return the entropy of a distribution given by counts: -Σ p log2 p, in bits; 0 without counts.

    On 12 pitch classes at most log2 12 = 3.585, on 128 pitches at most 7. Source: muspy, pitch_class_entropy.
    """
    total = counts.sum()
    if not total:
        return 0.0
    share = counts[counts > 0] / total
    return float(abs(-np.sum(share * np.log2(share))))  # abs: one class alone would give -0.0


def scale_consistency(pitch: ByteArray) -> float:
    """Return the largest share of notes that lie in one scale: max over keys of (notes in scale) / notes, 0-1.

    The 12 major scales hold the same pitch classes as the 12 natural minor ones, so they represent all 24 keys.
    Source: Mogren 2016; muspy, scale_consistency.
    """
    counts = np.bincount(pitch % 12, minlength=12)
    in_scale = counts[(MAJOR_SCALE + np.arange(12)[:, None]) % 12].sum(axis=1)
    return _ratio(float(in_scale.max()), float(counts.sum()))


def polyphony(onset: FloatArray, end: FloatArray, pitch: ByteArray) -> float:
    """Return how many pitches sound on average while any does: Σ_pitch time(pitch) / time(any pitch).

    A pitch that two notes share counts once. Source: muspy, polyphony; there by time steps, here by exact seconds.
    """
    return _ratio(_sounding_seconds(*_pitch_lanes(onset, end, pitch)), _sounding_seconds(onset, end))


def polyphony_rate(onset: FloatArray, end: FloatArray, pitch: ByteArray) -> float:
    """Return the share of sounding time in which two pitches or more sound, 0-1.

    Source: muspy, polyphony_rate; there the default threshold of 2 means three pitches or more, of all time.
    """
    lane_onset, lane_end = _merge(*_pitch_lanes(onset, end, pitch))
    lane = _lane_length(end)
    moments = np.concatenate([lane_onset % lane, lane_end % lane])
    steps = np.concatenate([np.ones(len(lane_onset)), -np.ones(len(lane_end))])
    order = np.argsort(moments, kind="stable")
    n_sounding = np.cumsum(steps[order])[:-1]
    shared = np.diff(moments[order])[n_sounding >= 2].sum() if len(moments) else 0.0
    return _ratio(float(shared), _sounding_seconds(onset, end))


def onset_gap_mean(onset: FloatArray) -> float:
    """Return the mean time from one moment in which notes begin to the next, in seconds; 0 with fewer than two moments.

    Source: Yang and Lerch 2020, average inter-onset interval; there chords have gaps of 0 between their notes.

    Args:
        onset: seconds, sorted.
    """
    n_gaps = int(np.count_nonzero(np.diff(onset) > 0))
    return float(onset[-1] - onset[0]) / n_gaps if n_gaps else 0.0


def melodic_interval_mean(onset: IntArray, pitch: ByteArray) -> float:
    """Return the mean size of the steps of the upper line, in semitones (0-127); 0 with fewer than two moments.

    The upper line is the highest note of each moment in which pitched notes begin. Source: Yang and Lerch 2020, average
    pitch interval; there between all successive notes, in whatever order the notes of a chord are.

    Args:
        onset: ticks, sorted.
    """
    if not len(onset):
        return 0.0
    first = np.flatnonzero(np.append(True, onset[1:] != onset[:-1]))
    upper = np.maximum.reduceat(pitch.astype(np.int64), first)
    return _mean(np.abs(np.diff(upper)))


def empty_share(onset: FloatArray, end: FloatArray) -> float:
    """Return the share of the piece in which nothing sounds: 1 - time(any note) / seconds, 0-1; 1 without notes."""
    return max(1.0 - _ratio(_sounding_seconds(onset, end), float(end.max(initial=0.0))), 0.0)


def _sounding_seconds(onset: FloatArray, end: FloatArray) -> float:
    merged_onset, merged_end = _merge(onset, end)
    return float(np.sum(merged_end - merged_onset))


def _merge(onset: FloatArray, end: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Join spans that overlap or touch; the results are sorted and apart."""
    if not len(onset):
        return onset, end
    order = np.argsort(onset, kind="stable")
    onset, reach = onset[order], np.maximum.accumulate(end[order])
    is_first = np.append(True, onset[1:] > reach[:-1])
    return onset[is_first], reach[np.append(is_first[1:], True)]


def _pitch_lanes(onset: FloatArray, end: FloatArray, pitch: ByteArray) -> tuple[FloatArray, FloatArray]:
    """Lay the pitches one after another in time, so that spans of different pitches never meet."""
    shift = pitch * _lane_length(end)
    return onset + shift, end + shift


def _lane_length(end: FloatArray) -> float:
    return 2.0 ** np.ceil(np.log2(end.max(initial=0.0) + 1.0))  # a power of two keeps rounding below a nanosecond


def _mean(values: NDArray[np.generic]) -> float:
    return float(values.mean()) if len(values) else 0.0  # type: ignore[attr-defined]


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
