"""Windows of some bars cut from pieces; they overlap or follow one another, and any encoding can encode them."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tasks.music.arrays import FloatArray, IntArray, offsets_of, spread_ranges
from tasks.music.compiled import njit
from tasks.music.notes import COLUMNS, PIECE_COLUMNS, NoteBatch, seconds_of

_NEVER = 1 << 60  # end of the last window of a piece: no note is cut there
_LAST_TICK = 2**32 - 1  # above all ticks of a piece


def cut_windows(
    batch: NoteBatch, window_bars: int, hop_bars: int, units_per_quarter: int = 0
) -> tuple[NoteBatch, IntArray, IntArray]:
    """Cut each piece into windows of `window_bars` bars, one every `hop_bars`; each window is a piece that begins at 0.

    A window holds the notes that begin in it, cut where it ends, and its parts of the pedal spans; the tempo and time
    signature in force come along. The last window of a piece is its last `window_bars` bars, so that every bar is in a
    window; a piece that is no longer than that stays whole. Windows without notes are left out, but no piece is.

    Bars follow the time signatures, 4/4 before the first, which take effect at the next bar line; the last bar is the
    last in which a note sounds.

    Args:
        hop_bars: 1 to `window_bars`.
        units_per_quarter: of an encoding that rounds times, halves up. A note that is rounded up to a bar line then
            belongs to the bar after it, and to the window that begins there as its first. 0: times count as they are.

    Returns:
        the windows in order of piece and time, int64[W] the piece of each, and int64[W] the notes that each cuts.

    Raises:
        ValueError: a number outside of its range.
    """
    if not 1 <= hop_bars <= window_bars:
        raise ValueError(f"hop_bars={hop_bars} outside 1 to window_bars={window_bars}")
    if units_per_quarter < 0:
        raise ValueError(f"units_per_quarter={units_per_quarter} is below 0")
    meters = (
        batch.time_signature_offsets, batch.time_signature_tick,
        batch.time_signature_numerator, batch.time_signature_denominator,
    )  # fmt: skip
    early, late = _rounded_ticks(batch, units_per_quarter)
    piece, first, last, start, end = _find_windows(
        batch.offsets, early, late, meters, batch.ticks_per_quarter, window_bars, hop_bars
    )
    tempos = batch.tempo_offsets, batch.tempo_tick, batch.tempo_microseconds_per_quarter, batch.ticks_per_quarter
    end_seconds = seconds_of(np.minimum(end, _LAST_TICK), piece, *tempos)
    end_seconds[end == _NEVER] = np.inf
    windows = _Windows(piece, start, end, seconds_of(start, piece, *tempos), end_seconds)
    notes, n_cut = _notes_in(batch, windows, first, last, late)
    parts = {name: getattr(batch, name)[piece] for name in PIECE_COLUMNS} | notes | _pedals_in(batch, windows)
    for owner in ("tempo_", "time_signature_", "key_signature_"):
        parts |= _changes_in(batch, windows, owner)
    return _in_order(NoteBatch(**parts)), piece, n_cut


@dataclass(frozen=True, slots=True, eq=False)
class _Windows:
    piece: IntArray
    start: IntArray  # ticks
    end: IntArray
    start_seconds: FloatArray
    end_seconds: FloatArray


def _rounded_ticks(batch: NoteBatch, units_per_quarter: int) -> tuple[IntArray, IntArray]:
    """Return ticks in the bars in which notes begin, and in the bars in which they last sound."""
    end = batch.onset + batch.duration
    if not units_per_quarter:
        return batch.onset, end - 1
    ticks, scale = batch.ticks_per_quarter[batch.piece_of_note], 2 * units_per_quarter
    early = (scale * batch.onset + ticks) // scale
    return early, np.maximum((scale * end - ticks) // scale, early)


def _notes_in(
    batch: NoteBatch, windows: _Windows, first: IntArray, last: IntArray, late: IntArray
) -> tuple[dict[str, Any], IntArray]:
    """Return the columns of the notes `first` to `last` of each window, and how many of them are cut."""
    window, places = spread_ranges(first, last)
    start, stop = windows.start[window], windows.end[window]
    onset = np.maximum(batch.onset[places] - start, 0)
    end = np.minimum(batch.onset[places] + batch.duration[places], stop) - start
    onset_seconds = np.maximum(batch.onset_seconds[places] - windows.start_seconds[window], 0)
    end_seconds = np.minimum(batch.end_seconds[places], windows.end_seconds[window]) - windows.start_seconds[window]
    columns = {
        "offsets": offsets_of(last - first),
        "onset": onset,
        "duration": np.maximum(end - onset, 1),
        "onset_seconds": onset_seconds,
        "end_seconds": np.maximum(end_seconds, onset_seconds),
    }
    columns |= {name: getattr(batch, name)[places] for name in COLUMNS[""] if name not in columns}
    return columns, np.bincount(window[late[places] >= stop], minlength=len(windows.piece))


def _pedals_in(batch: NoteBatch, windows: _Windows) -> dict[str, Any]:
    piece = np.repeat(np.arange(batch.n_pieces), np.diff(batch.pedal_offsets)) << 32
    first = np.searchsorted(
        windows.piece << 32 | np.minimum(windows.end, _LAST_TICK), piece | batch.pedal_onset, "right"
    )
    last = np.searchsorted(windows.piece << 32 | windows.start, piece | batch.pedal_end)
    pedal, window = spread_ranges(first, np.maximum(first, last))
    order = np.argsort(window, kind="stable")
    pedal, window = pedal[order], window[order]
    columns: dict[str, Any] = {
        "pedal_offsets": offsets_of(np.bincount(window, minlength=len(windows.piece))),
        "pedal_track": batch.pedal_track[pedal],
    }
    for unit, starts, ends in (
        ("", windows.start, windows.end),
        ("_seconds", windows.start_seconds, windows.end_seconds),
    ):
        start, onset, end = starts[window], f"pedal_onset{unit}", f"pedal_end{unit}"
        columns[onset] = np.maximum(getattr(batch, onset)[pedal], start) - start
        columns[end] = np.minimum(getattr(batch, end)[pedal], ends[window]) - start
    return columns


def _changes_in(batch: NoteBatch, windows: _Windows, owner: str) -> dict[str, Any]:
    tick, *values = COLUMNS[owner]
    ticks = getattr(batch, tick)
    offsets, piece = getattr(batch, f"{owner}offsets"), windows.piece << 32
    change = np.repeat(np.arange(batch.n_pieces), np.diff(offsets)) << 32 | ticks
    first = np.searchsorted(change, piece | windows.start, side="right") - 1  # in force at the start
    first = np.maximum(first, offsets[windows.piece])
    last = np.searchsorted(change, piece | np.minimum(windows.end, _LAST_TICK))
    last = np.maximum(np.minimum(last, offsets[windows.piece + 1]), first)
    window, places = spread_ranges(first, last)
    columns = {
        f"{owner}offsets": offsets_of(last - first),
        tick: np.maximum(ticks[places] - windows.start[window], 0),
    }
    return columns | {name: getattr(batch, name)[places] for name in values}


def _in_order(batch: NoteBatch) -> NoteBatch:
    """Sort notes again: those that now begin or end together may be out of order."""
    piece = batch.piece_of_note
    key = (batch.onset << 7 | batch.pitch) << 16 | batch.track
    is_same = piece[1:] == piece[:-1]
    is_wrong = (key[1:] < key[:-1]) | ((key[1:] == key[:-1]) & (batch.duration[1:] < batch.duration[:-1]))
    is_unclear = (key[1:] == key[:-1]) & (batch.duration[1:] == batch.duration[:-1])
    if not np.any(is_same & (is_wrong | is_unclear)):
        return batch
    order = np.lexsort([batch.velocity, batch.duration, key, piece])
    return replace(batch, **{name: getattr(batch, name)[order] for name in COLUMNS[""]})


@njit(cache=True, nogil=True)
def _find_windows(offsets, early, late, meters, ticks_per_quarter, window_bars, hop_bars):
    """Return int64[5, W]: piece, first note, note after the last, first tick, tick of the end."""
    rows = [(0, 0, 0, 0, 0)]
    rows.clear()
    bar = np.zeros(len(early), np.int64)
    for piece in range(len(offsets) - 1):
        low, last = offsets[piece], offsets[piece + 1]
        lines = _bar_lines(piece, meters, ticks_per_quarter[piece])
        n_bars = 0
        for note in range(low, last):
            bar[note] = _bar_at(lines, early[note])
            n_bars = max(n_bars, bar[note] + 1, _bar_at(lines, late[note]) + 1)
        start, last_start = 0, max(n_bars - window_bars, 0)
        if low == last:
            rows.append((piece, low, last, 0, _NEVER))
        while low < last:
            high = low
            while high < last and bar[high] < start + window_bars:
                high += 1
            end = _tick_of(lines, start + window_bars) if start < last_start else _NEVER
            if high > low:
                rows.append((piece, low, high, _tick_of(lines, start), end))
            if start == last_start:
                break
            start += hop_bars
            if high == low:  # a silence longer than a window
                start = max(start, -((window_bars - 1 - bar[low]) // hop_bars) * hop_bars)
            start = min(start, last_start)
            while low < last and bar[low] < start:
                low += 1
    table = np.zeros((5, len(rows)), np.int64)
    for place, row in enumerate(rows):
        table[0, place], table[1, place], table[2, place], table[3, place], table[4, place] = row
    return table


@njit(cache=True, nogil=True)
def _bar_lines(piece, meters, ticks_per_quarter):
    """Return rows (tick, bar, ticks of a bar times its denominator, denominator), one where each meter takes effect."""
    offsets, ticks, numerators, denominators = meters
    lines = np.zeros((offsets[piece + 1] - offsets[piece] + 1, 4), np.int64)
    lines[0] = 0, 0, 16 * ticks_per_quarter, 4
    n_lines = 1
    for change in range(offsets[piece], offsets[piece + 1]):
        known = lines[:n_lines]
        bar = _bar_at(known, max(ticks[change], 0))
        if _tick_of(known, bar) < ticks[change]:
            bar += 1
        if bar > lines[n_lines - 1, 1]:
            lines[n_lines, 0], lines[n_lines, 1] = _tick_of(known, bar), bar
            n_lines += 1
        lines[n_lines - 1, 2] = 4 * ticks_per_quarter * numerators[change]
        lines[n_lines - 1, 3] = denominators[change]
    return lines[:n_lines]


@njit(cache=True, nogil=True)
def _bar_at(lines, tick):
    tick0, bar, length, denominator = lines[np.searchsorted(lines[:, 0], tick, side="right") - 1]
    return bar + (tick - tick0) * denominator // length


@njit(cache=True, nogil=True)
def _tick_of(lines, bar):
    """Return the first tick of a bar."""
    tick0, bar0, length, denominator = lines[np.searchsorted(lines[:, 1], bar, side="right") - 1]
    return tick0 - (-(bar - bar0) * length // denominator)
