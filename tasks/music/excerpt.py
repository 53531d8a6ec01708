"""The beginning of a piece: its first notes, bars or seconds."""

from dataclasses import dataclass

import numpy as np

from tasks.music.arrays import BoolArray
from tasks.music.bars import bar_lines
from tasks.music.score import Changes, Score, changes_where, edited, note_columns, ticks_at


@dataclass(frozen=True, slots=True)
class Extent:
    """How much of a piece: notes in the order of a score, bars as `tasks.music.bars` counts them, seconds; 0: all."""

    n_notes: int = 0
    n_bars: int = 0
    seconds: float = 0.0

    def __bool__(self) -> bool:
        return bool(self.n_notes or self.n_bars or self.seconds)

    def holds(self, score: Score) -> BoolArray:
        """Return which notes begin within the extent."""
        notes = score.notes
        is_in = np.ones(len(notes.pitch), np.bool_)
        if self.n_bars:
            lines = bar_lines(score.time_signatures, score.ticks_per_quarter)
            is_in &= lines.place(notes.onset * lines.units_per_tick)[0] < self.n_bars
        if self.seconds:
            is_in &= notes.onset_seconds < self.seconds
        if self.n_notes:
            is_in[self.n_notes :] = False
        return is_in

    def end_tick(self, score: Score) -> int | None:
        """Return where the bars or seconds end, whichever are fewer; None where there is no limit to either."""
        ends = list[int]()
        if self.n_bars:
            lines = bar_lines(score.time_signatures, score.ticks_per_quarter)
            ends.append(int(-(-lines.begin(np.array(self.n_bars)) // lines.units_per_tick)))
        if self.seconds:
            ends.append(int(ticks_at(score.tempos, score.ticks_per_quarter, np.array([self.seconds]))[0]))
        return min(ends) if ends else None

    def __str__(self) -> str:
        parts = [(self.n_notes, "notes"), (self.n_bars, "bars"), (self.seconds, "seconds")]
        return " or ".join(f"{n:g} {unit}" for n, unit in parts if n)

    def is_filled_by(self, score: Score) -> bool:
        """Return whether no note can begin in the extent after the last one of a piece."""
        if self.is_passed_by(score) or (self.n_notes and len(score.notes.pitch) >= self.n_notes):
            return True
        end = self.end_tick(score)
        return end is not None and int((score.notes.onset + score.notes.duration).max(initial=0)) >= end

    def is_passed_by(self, score: Score) -> bool:
        """Return whether a piece continues beyond the extent."""
        return bool(self) and not self.holds(score).all()


def beginning(score: Score, extent: Extent, *, cut: bool = False) -> Score:
    """Return a piece as far as `extent` reaches, all of it where it is shorter.

    Args:
        cut: end notes and pedal spans that sound beyond its last bar or second there; otherwise they keep their length.
    """
    is_in, end = extent.holds(score), extent.end_tick(score) if cut else None
    columns = note_columns(score, is_in)
    last = end if end is not None else int((columns["onset"] + columns["duration"]).max(initial=0))
    if end is not None:
        columns["duration"] = np.minimum(columns["duration"], np.maximum(end - columns["onset"], 1))
    pedals = score.pedals
    is_down = pedals.onset < last
    spans = {name: getattr(pedals, name)[is_down] for name in ("onset", "end", "track")}
    spans["end"] = np.minimum(spans["end"], last)
    return edited(
        score,
        columns,
        tempos=_before(score.tempos, last),
        time_signatures=_before(score.time_signatures, last),
        key_signatures=_before(score.key_signatures, last),
        pedals=spans,
    )


def _before(changes: Changes, end: int) -> Changes:
    """Return the changes before a tick, and one at the very beginning in any case."""
    return changes_where(changes, changes.tick < max(end, 1))
