"""Statistics of one piece that count in bars and beats, each a finite number for every input.

Bars follow the meters of the score (`tasks.music.bars`); a piece without time signature counts as 4/4. Onsets and
durations are rounded to sixteenth notes, so that a played piece and its score give close values; where a piece was
played freely against a fixed tempo its bars are stretches of time and no musical bars.

Rates of emptiness look at the piece from its beginning to its last sound. Likenesses of bars look at the bars from the
first to the last in which a note begins. Where there is nothing to compare a statistic is 0; a rate of emptiness is 1.
"""

import numpy as np

from tasks.music.arrays import FloatArray, IntArray
from tasks.music.bars import CELLS_PER_BAR, GridNotes, NoteCells, count_covered, note_cells, place_notes
from tasks.music.metrics.repetition import repetition_statistics
from tasks.music.score import Score

LAGS = (1, 2, 4, 8)  # bars
_MAJOR, _MINOR = (0, 4, 7), (0, 3, 7)
# [24, 12]: the pitch classes of the major triads on C, C sharp, ... and then of the minor ones.
TRIADS = np.array([[(pc - root) % 12 in chord for pc in range(12)] for chord in (_MAJOR, _MINOR) for root in range(12)])


def bar_statistics(score: Score) -> dict[str, float]:
    """Return the statistics of a piece that count in bars, by name; see the functions of this file.

    Names without a function of their own: `n_bars` (to the last sound), `notes_per_bar` (n_notes / n_bars).
    """
    notes = place_notes(score)
    cells = note_cells(notes)
    n_bars, empty_bars = count_bars(score, notes)
    return {
        "n_bars": float(n_bars),
        "notes_per_bar": len(notes.bar) / n_bars if n_bars else 0.0,
        "empty_bar_rate": empty_bars / n_bars if n_bars else 1.0,
        "empty_beat_rate": empty_beat_rate(score),
        "groove_consistency": groove_consistency(notes),
        "grooving_similarity": grooving_similarity(notes),
        **{f"bar_similarity_{lag}": bar_similarity(cells, lag) for lag in LAGS},
        "pitch_class_entropy_1_bar": pitch_class_entropy_in_bars(notes, 1),
        "pitch_class_entropy_4_bars": pitch_class_entropy_in_bars(notes, 4),
        "chord_irregularity": chord_irregularity(notes),
        "drum_pattern_consistency": drum_pattern_consistency(score),
        **repetition_statistics(notes, cells),
    }


def count_bars(score: Score, notes: GridNotes) -> tuple[int, int]:
    """Return how many bars there are from bar 0 to the last sound, and in how many of them nothing sounds.

    Their ratio is the empty bar rate, 0-1. Unlike in muspy (empty_measure_rate) meters may change, and a note that
    ends on a bar line does not fill the bar after it: with muspy a piece that ends on one has a bar more.
    """
    if not len(score.notes.onset):
        return 0, 0
    units = notes.lines.units_per_tick
    first, _ = notes.lines.place(score.notes.onset * units)
    last, _ = notes.lines.place((score.notes.onset + score.notes.duration) * units - 1)
    n_bars = int(last.max()) + 1
    return n_bars, n_bars - count_covered(first, last)


def empty_beat_rate(score: Score) -> float:
    """Return the share of beats (quarters, from tick 0 to the last sound) in which nothing sounds, 0-1.

    Source: muspy, empty_beat_rate; there a note that ends on a beat fills the next one too.
    """
    onset, end = score.notes.onset, score.notes.onset + score.notes.duration
    if not len(onset):
        return 1.0
    first, last = onset // score.ticks_per_quarter, (end - 1) // score.ticks_per_quarter
    return 1.0 - count_covered(first, last) / (int(last.max()) + 1)


def groove_consistency(notes: GridNotes) -> float:
    """Return how alike the rhythms of neighbouring bars are: 1 - mean over i of hamming(g_i, g_i+1) / R_i, 0-1.

    g_i is the onset vector of bar i (drums too) and R_i the number of positions of the longer of both bars; what the
    shorter one lacks is without onsets. 0 with fewer than two bars.

    Source: Wu and Yang 2020; muspy, groove_consistency. Unlike there meters may change; a bar has 4 positions a quarter
    and not one for each tick (in muspy most of a thousand ticks agree in silence, so the finer the file, the nearer to
    1); and no empty bar is added after the last.
    """
    if not len(notes.bar):
        return 0.0
    (first_bar, last_bar), (bar, cell) = notes.bar_range, _onset_cells(notes)
    if first_bar == last_bar:
        return 0.0
    n_here, n_next, n_before = (notes.lines.n_positions(bar + shift) for shift in (0, 1, -1))
    to_next, to_last = 1 / np.maximum(n_here, n_next), 1 / np.maximum(n_here, n_before)
    recurs = np.isin(cell + CELLS_PER_BAR, cell, assume_unique=True)
    distance = to_next[bar < last_bar].sum() + to_last[bar > first_bar].sum() - 2 * to_next[recurs].sum()
    return float(1 - distance / (last_bar - first_bar))


def grooving_similarity(notes: GridNotes) -> float:
    """Return how alike the rhythms of all pairs of bars are: 1 - mean over i < j of hamming(g_i, g_j) / R_ij, 0-1.

    As `groove_consistency`, but over all pairs, none of them sampled. Source: Wu and Yang 2020, GS; MusDr draws 1,000
    pairs at random without a seed, on 64 positions a bar.
    """
    if not len(notes.bar):
        return 0.0
    (first_bar, last_bar), (bar, cell) = notes.bar_range, _onset_cells(notes)
    n_all = last_bar - first_bar + 1
    if n_all < 2:
        return 0.0
    size, group_of_run = np.unique(-(-notes.lines.length // notes.lines.position_units), return_inverse=True)
    borders = np.clip(np.append(notes.lines.first_bar, last_bar + 1), first_bar, last_bar + 1)
    n_bars = np.bincount(group_of_run, np.diff(borders), len(size))
    group, position = np.searchsorted(size, notes.lines.n_positions(bar)), cell % CELLS_PER_BAR
    n_onsets = np.bincount(group * size[-1] + position, minlength=len(size) * size[-1]).reshape(len(size), -1)
    per_group, both = n_onsets.sum(axis=1), (n_onsets.astype(np.float64) @ n_onsets.T)
    distance = per_group[:, None] * n_bars + n_bars[:, None] * per_group - 2 * both  # of ordered pairs of bars
    return float(1 - (distance / np.maximum(size[:, None], size)).sum() / (n_all * (n_all - 1)))


def bar_similarity(cells: NoteCells, lag: int) -> float:
    """Return how much of a bar comes again `lag` bars later: mean over i of |A_i ∩ A_i+lag| / |A_i ∪ A_i+lag|, 0-1.

    A_i is the set of notes of bar i, equal where position, pitch (or drum) and duration are; pairs of bars without
    notes are left out. 0 where the piece has no such pair. Source: Yu et al. 2022, Museformer.
    """
    bar, kind = cells
    if not len(bar):
        return 0.0
    n_kinds = int(kind.max()) + 1
    recurs = np.isin((bar + lag) * n_kinds + kind, bar * n_kinds + kind, assume_unique=True)
    filled, size = np.unique(bar, return_counts=True)
    starts = np.unique(np.concatenate([filled, filled - lag]))
    starts = starts[(starts >= bar[0]) & (starts <= bar[-1] - lag)]
    if not len(starts):
        return 0.0
    common = _look_up(starts, filled, np.bincount(np.searchsorted(filled, bar[recurs]), minlength=len(filled)))
    both = _look_up(starts, filled, size) + _look_up(starts + lag, filled, size)
    return float(np.mean(common / (both - common)))


def pitch_class_entropy_in_bars(notes: GridNotes, n_bars: int) -> float:
    """Return the entropy of pitch classes in a window of `n_bars` bars, in bits (0-3.585), averaged over all windows.

    Windows move on by one bar; those without pitched notes are left out, and a shorter piece is one window. Notes
    belong to the bar in which they begin. Source: Wu and Yang 2020, H; MusDr, pitch_class_entropy.
    """
    bar, pitch_class = notes.bar[~notes.is_drum], notes.symbol[~notes.is_drum] % 12
    if not len(bar):
        return 0.0
    first_bar, last_bar = notes.bar_range
    filled, row = np.unique(bar, return_inverse=True)
    counts = np.bincount(row * 12 + pitch_class, minlength=len(filled) * 12).reshape(-1, 12)
    starts = np.unique((filled[:, None] - np.arange(n_bars)).clip(first_bar, max(last_bar - n_bars + 1, first_bar)))
    window = sum(_look_up(starts + shift, filled, counts) for shift in range(n_bars))
    assert not isinstance(window, int)
    window = window[window.any(axis=1)]
    share = window / window.sum(axis=1, keepdims=True)
    return float(abs(np.mean(-np.sum(share * np.log2(np.where(share > 0, share, 1.0)), axis=1))))


def chord_irregularity(notes: GridNotes) -> float:
    """Return how rarely chord progressions come again: different trigrams / trigrams of chords, 0-1 (CPI).

    Each bar in which pitched notes begin has the major or minor triad whose pitch classes hold most of their time
    inside the bar; of equal ones the first of `TRIADS`. 0 with fewer than three chords.

    Source: Wu and Yang 2020, CPI, on the chord symbols of a lead sheet; MusDr leaves the last trigram out and gives 1
    for a short piece.
    """
    chords = bar_chords(notes)
    if len(chords) < 3:
        return 0.0
    trigrams = (chords[:-2] * len(TRIADS) + chords[1:-1]) * len(TRIADS) + chords[2:]
    return len(np.unique(trigrams)) / len(trigrams)


def bar_chords(notes: GridNotes) -> IntArray:
    """Return the row of `TRIADS` for each bar in which pitched notes begin; see `chord_irregularity`."""
    is_pitched = ~notes.is_drum
    bar, position = notes.bar[is_pitched], notes.position[is_pitched]
    lasting = np.minimum(notes.duration[is_pitched], notes.lines.n_positions(bar) - position)
    filled, row = np.unique(bar, return_inverse=True)
    weights = np.bincount(row * 12 + notes.symbol[is_pitched] % 12, lasting, len(filled) * 12).reshape(-1, 12)
    return np.argmax(weights @ TRIADS.T, axis=1)


def drum_pattern_consistency(score: Score) -> float:
    """Return the larger share of drum notes on a grid: on quarters of a beat, or on its thirds; 0-1, 0 without drums.

    A beat is a quarter note; on the grid is what lies at most a 24th of a beat away, half the gap between both grids.
    Source: muspy, drum_pattern_consistency; there to the tick, so that played drums are nearly never in the pattern,
    and only where the ticks of a quarter can be divided by 4 and 3.
    """
    onset, quarter = score.notes.onset[score.notes.is_drum], score.ticks_per_quarter
    if not len(onset):
        return 0.0
    shares = []
    for n_parts in (4, 3):
        rest = onset * n_parts % quarter
        shares.append(np.mean(np.minimum(rest, quarter - rest) * 24 <= quarter * n_parts))
    return float(max(shares))


def _onset_cells(notes: GridNotes) -> tuple[IntArray, IntArray]:
    """Return the bar, and the bar and position in one number, of each place in which notes begin, in order."""
    cell = notes.bar * CELLS_PER_BAR + notes.position
    is_first = np.append(True, cell[1:] != cell[:-1])
    return notes.bar[is_first], cell[is_first]


def _look_up(wanted: IntArray, known: IntArray, values: IntArray) -> FloatArray:
    """Return the value of each wanted bar, 0 where it is not among the known ones, which are sorted."""
    place = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    found = (known[place] == wanted).reshape(-1, *[1] * (values.ndim - 1))
    return np.where(found, values[place], 0).astype(np.float64)
