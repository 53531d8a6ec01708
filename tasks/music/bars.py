"""Bar lines of a score, and its notes on a grid of bars and positions.

A file states meters, not bars: bars follow one another from tick 0 on in the meter in force, 4/4 where none is stated.
A time signature takes effect at the first bar line from its tick on, as in `tasks.music.windows`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.music.arrays import BoolArray, IntArray
from tasks.music.score import Score, TimeSignatures

POSITIONS_PER_QUARTER = 4  # the grid: sixteenth notes
CELLS_PER_BAR = 1 << 14  # above the positions of any bar: 255 whole notes have 4,080
DRUM_OFFSET = 128  # drum pitches come after the pitches 0-127

NoteCells = tuple[IntArray, IntArray]  # bar and kind of each different note of a bar


@dataclass(frozen=True, slots=True, eq=False)
class BarLines:
    """Runs of bars of one length each; times in units of 1 / `units_per_tick` tick, in which all lines are whole.

    Run r begins at bar `first_bar[r]`, at `start[r]`, and its bars last `length[r]` units.
    """

    units_per_tick: int
    ticks_per_quarter: int
    start: IntArray
    first_bar: IntArray
    length: IntArray
    n_off_line: int  # time signatures that no bar line meets
    n_between_ticks: int  # time signatures with a bar that is not a whole number of ticks

    @property
    def position_units(self) -> int:
        """Length of a grid position."""
        return self.ticks_per_quarter * self.units_per_tick // POSITIONS_PER_QUARTER

    def place(self, units: IntArray) -> tuple[IntArray, IntArray]:
        """Return the bar of each time, and its distance from the bar line, in units."""
        run = np.searchsorted(self.start, units, side="right") - 1
        bars, rest = np.divmod(units - self.start[run], self.length[run])
        return self.first_bar[run] + bars, rest

    def begin(self, bar: IntArray) -> IntArray:
        """Return where each bar begins, in units."""
        run = np.searchsorted(self.first_bar, bar, side="right") - 1
        return self.start[run] + (bar - self.first_bar[run]) * self.length[run]

    def n_positions(self, bar: IntArray) -> IntArray:
        """Return how many grid positions each bar has; a broken last one counts."""
        run = np.searchsorted(self.first_bar, bar, side="right") - 1
        return -(-self.length[run] // self.position_units)


def bar_lines(meters: TimeSignatures, ticks_per_quarter: int) -> BarLines:
    """Return where the bars of a piece lie; a bar lasts 4 × numerator / denominator quarters."""
    # 32 makes whole numbers of half a grid position and of the bars of all denominators a file can state, up to 128.
    units_per_tick = int(max(32, meters.denominator.max(initial=0) // 4))
    whole_note = 4 * ticks_per_quarter * units_per_tick
    starts, bars, lengths, n_off_line = [0], [0], [whole_note], 0
    for tick, numerator, denominator in zip(
        meters.tick.tolist(), meters.numerator.tolist(), meters.denominator.tolist(), strict=True
    ):
        passed = tick * units_per_tick - starts[-1]  # below 0 where the signature before still waits for its bar line
        n_bars = max(-(-passed // lengths[-1]), 0)
        n_off_line += passed != n_bars * lengths[-1]
        if n_bars:
            starts.append(starts[-1] + n_bars * lengths[-1])
            bars.append(bars[-1] + n_bars)
            lengths.append(0)
        lengths[-1] = whole_note * numerator // denominator
    return BarLines(
        units_per_tick=units_per_tick,
        ticks_per_quarter=ticks_per_quarter,
        start=np.array(starts),
        first_bar=np.array(bars),
        length=np.array(lengths),
        n_off_line=n_off_line,
        n_between_ticks=int(np.count_nonzero(4 * ticks_per_quarter * meters.numerator % meters.denominator)),
    )


@dataclass(frozen=True, slots=True, eq=False)
class GridNotes:
    """N notes on the grid, in the order of (bar, position, symbol, duration): onsets rounded, half a position up.

    `symbol` is the pitch 0-127, or 128 + pitch of a drum; durations are rounded to positions, at least 1.
    """

    lines: BarLines
    bar: IntArray
    position: IntArray  # from the bar line on
    duration: IntArray  # positions
    symbol: IntArray

    @property
    def is_drum(self) -> BoolArray:
        """Whether each note is a drum, bool[N]."""
        return self.symbol >= DRUM_OFFSET

    @property
    def bar_range(self) -> tuple[int, int]:
        """First and last bar in which a note begins; the piece must have notes."""
        return int(self.bar[0]), int(self.bar[-1])


def place_notes(score: Score) -> GridNotes:
    """Lay the notes of a score on the grid of its bars."""
    notes, lines = score.notes, bar_lines(score.time_signatures, score.ticks_per_quarter)
    unit = lines.position_units
    bar, rest = lines.place(notes.onset * lines.units_per_tick + unit // 2)
    position = rest // unit
    duration = np.maximum((notes.duration * lines.units_per_tick + unit // 2) // unit, 1)
    symbol = notes.pitch.astype(np.int64) + DRUM_OFFSET * notes.is_drum
    order = np.lexsort([duration, symbol, position, bar])
    return GridNotes(lines, bar[order], position[order], duration[order], symbol[order])


def count_covered(first: NDArray[np.integer], last: NDArray[np.integer]) -> int:
    """Return how many whole numbers lie in at least one of the ranges `first` to `last`, both included."""
    order = np.argsort(first, kind="stable")
    first, last = first[order], last[order]
    reached = np.append(first[:1] - 1, np.maximum.accumulate(last)[:-1])
    return int(np.maximum(last - np.maximum(reached, first - 1), 0).sum())


def note_cells(notes: GridNotes) -> NoteCells:
    """Return the bar and the kind of each different note of a bar, in order.

    Notes are of one kind where position, pitch (or drum) and duration are equal; kinds are numbers from 0 on.
    """
    kind = (notes.duration * CELLS_PER_BAR + notes.position) << 8 | notes.symbol
    _, kind = np.unique(kind, return_inverse=True)
    n_kinds = int(kind.max(initial=0)) + 1
    return np.divmod(np.unique(notes.bar * n_kinds + kind), n_kinds)
