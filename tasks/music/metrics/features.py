"""Numbers about each piece, and counts over all of them, from flat arrays of many pieces at once.

Filters decide on them and reports show them. Pitch features leave drums out, whose pitch names an instrument. Times are
seconds through the tempo map. A feature that would divide by 0 (no notes, no time) is 0.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tasks.music.arrays import FloatArray, IntArray
from tasks.music.compiled import njit

ENDED_SECONDS = 1e-6  # a note that ends so little after the next onset has ended: rounded seconds must not overlap
DRUMS = 128  # after the programs 0-127 in counts by program


@dataclass(frozen=True, slots=True)
class Feature:
    """The type, the unit and the meaning of one column."""

    dtype: DTypeLike
    unit: str
    meaning: str


FEATURES: dict[str, Feature] = {
    "n_pitches": Feature(np.uint8, "pitches", "different pitches, drums apart"),
    "pitch_min": Feature(np.uint8, "MIDI pitch", "lowest pitch, drums apart; 0 where nothing is pitched"),
    "pitch_max": Feature(np.uint8, "MIDI pitch", "highest pitch, drums apart; 0 where nothing is pitched"),
    "max_polyphony": Feature(np.int32, "notes", "most notes sounding at one moment, drums too"),
    "mean_polyphony": Feature(np.float32, "notes", "notes sounding, averaged over the time in which any does"),
    "n_drum_notes": Feature(np.int32, "notes", "notes on the drum channel"),
    "longest_note_seconds": Feature(np.float32, "seconds", "length of the longest note, drums too"),
    "most_common_pitch_share": Feature(np.float32, "share", "of pitched notes: those on the most common pitch, 0-1"),
    "notes_per_second": Feature(np.float32, "notes per second", "all notes over the end of the last one"),
    "n_programs": Feature(np.uint8, "programs", "different programs of pitched notes"),
}

# Round numbers, so that no machine's power function moves an edge. Counts of whole numbers need the wider steps.
_STEPS_OF_TENTH = (1, 1.25, 1.6, 2, 2.5, 3.2, 4, 5, 6.3, 8)
SECONDS_EDGES = np.array([*(10.0**power * step for power in range(5) for step in _STEPS_OF_TENTH), 1e5])
NOTES_EDGES = np.array([*(10.0**power * step for power in range(7) for step in (1, 1.6, 2.5, 4, 6.3)), 1e7])
TEMPO_EDGES = np.arange(0.0, 301.0, 10.0)


def piece_features(offsets: IntArray, *notes: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Return the columns of `FEATURES`, one value for each of P pieces.

    Args:
        offsets: int64[P + 1]; piece i owns notes `offsets[i]:offsets[i + 1]`, in order of onset.
        notes: onset and end in seconds, pitch, velocity, program, and whether it is a drum.
    Raises:
        ValueError: arrays of different lengths, offsets that do not fit them, or a value outside 0-127.
    """
    offsets, (onset, end, pitch, _, program, is_drum) = _checked(offsets, *notes)
    columns = {name: np.zeros(len(offsets) - 1, feature.dtype) for name, feature in FEATURES.items()}
    _measure_pieces(offsets, onset, end, pitch, program, is_drum, tuple(columns.values()))
    for piece, (first, last) in enumerate(pairwise(offsets.tolist())):
        n_ended = np.searchsorted(np.sort(end[first:last]), onset[first:last] + ENDED_SECONDS, side="right")
        columns["max_polyphony"][piece] = (np.arange(1, last - first + 1) - n_ended).max(initial=0)
    return columns


def histograms(offsets: IntArray, *notes: NDArray[Any]) -> dict[str, IntArray]:
    """Count notes by pitch, velocity and program, and pieces by length; the counts of shards may be added.

    Args:
        offsets, notes: as for `piece_features`.
    Returns:
        `pitch` [128], notes, drums apart; `drum_pitch` [128], notes; `velocity` [128], notes; `program` [129], notes,
        the last for drums; `program_pieces` [129], pieces with at least one such note; `seconds` and `notes`, pieces
        between the edges `SECONDS_EDGES` and `NOTES_EDGES` (lower one included), what lies outside in the bins at
        both ends.
    Raises:
        ValueError: as for `piece_features`.
    """
    offsets, (_, end, pitch, velocity, program, is_drum) = _checked(offsets, *notes)
    sizes = {"pitch": 128, "drum_pitch": 128, "velocity": 128, "program": DRUMS + 1, "program_pieces": DRUMS + 1}
    counts = {name: np.zeros(size, np.int64) for name, size in sizes.items()}
    seconds = np.zeros(len(offsets) - 1)
    _count_notes(offsets, end, pitch, velocity, program, is_drum, seconds, tuple(counts.values()))
    return counts | {
        "seconds": count_between(seconds, SECONDS_EDGES),
        "notes": count_between(np.diff(offsets), NOTES_EDGES),
    }


def tempo_histogram(microseconds_per_quarter: NDArray[np.integer]) -> IntArray:
    """Count tempos in beats (quarters) per minute between `TEMPO_EDGES`; what is faster is in the last bin.

    Args:
        microseconds_per_quarter: above 0; one for each piece, or for each tempo change.
    """
    return count_between(60e6 / np.asarray(microseconds_per_quarter, np.float64), TEMPO_EDGES)


def count_between(values: NDArray[Any], edges: FloatArray) -> IntArray:
    """Count values between edges, the lower one included; what lies outside goes to the first and the last bin."""
    place = np.searchsorted(edges, values, side="right") - 1
    return np.bincount(np.clip(place, 0, len(edges) - 2), minlength=len(edges) - 1).astype(np.int64)


def _checked(offsets: Any, *notes: Any) -> tuple[IntArray, list[NDArray[Any]]]:
    """Bring all arrays to the one form of the compiled loops, which look at nothing themselves.

    None may be written to, as views of Arrow memory may not: otherwise the loops are compiled once more for these.
    """
    offsets = _frozen(offsets, np.int64)
    types = (np.float64, np.float64, np.uint8, np.uint8, np.uint8, np.bool_)
    for name, values in zip(("pitch", "velocity", "program"), notes[2:5], strict=True):
        if len(values) and not (np.min(values) >= 0 and np.max(values) <= 127):
            raise ValueError(f"{name} {np.min(values)} to {np.max(values)} outside 0-127")
    arrays = [_frozen(values, dtype) for values, dtype in zip(notes, types, strict=True)]
    lengths = {len(values) for values in arrays}
    if len(lengths) != 1:
        raise ValueError(f"arrays of {', '.join(str(len(values)) for values in arrays)} notes are not of one length")
    if not len(offsets) or offsets[0] < 0 or offsets[-1] > lengths.pop() or np.any(np.diff(offsets) < 0):
        raise ValueError(f"offsets {offsets[:1]} to {offsets[-1:]} do not rise within the {len(arrays[0])} notes")
    return offsets, arrays


def _frozen(values: Any, dtype: DTypeLike) -> NDArray[Any]:
    view = np.ascontiguousarray(values, dtype).view()
    view.flags.writeable = False
    return view


@njit(cache=True, nogil=True)
def _measure_pieces(offsets, onset, end, pitch, program, is_drum, columns):  # noqa: PLR0912  one loop is fast
    """Fill the columns of `FEATURES`, in its order, without `max_polyphony`."""
    n_pitches, pitch_min, pitch_max, _, mean_polyphony, n_drum_notes = columns[:6]
    longest_note_seconds, most_common_pitch_share, notes_per_second, n_programs = columns[6:]
    on_pitch, on_program = np.zeros(128, np.int64), np.zeros(128, np.bool_)
    for piece in range(len(offsets) - 1):
        first, last = offsets[piece], offsets[piece + 1]
        if first == last:
            continue
        on_pitch[:] = 0
        on_program[:] = False
        n_drums = 0
        length = longest = summed = sounding_time = 0.0
        reach = onset[first]
        for i in range(first, last):
            start, stop = onset[i], end[i]
            duration = stop - start
            summed += duration
            longest = max(longest, duration)
            length = max(length, stop)
            if stop > reach:
                sounding_time += stop - max(start, reach)
                reach = stop
            if is_drum[i]:
                n_drums += 1
            else:
                on_pitch[pitch[i]] += 1
                on_program[program[i]] = True
        n_different = most_common = n_different_programs = 0
        for value in range(128):
            if on_program[value]:
                n_different_programs += 1
            if on_pitch[value]:
                if not n_different:
                    pitch_min[piece] = value
                pitch_max[piece] = value
                n_different += 1
                most_common = max(most_common, on_pitch[value])
        n_notes = last - first
        n_pitches[piece], n_programs[piece] = n_different, n_different_programs
        n_drum_notes[piece] = n_drums
        longest_note_seconds[piece] = longest
        if sounding_time > 0:
            mean_polyphony[piece] = summed / sounding_time
        if length > 0:
            notes_per_second[piece] = n_notes / length
        if n_notes > n_drums:
            most_common_pitch_share[piece] = most_common / (n_notes - n_drums)


@njit(cache=True, nogil=True)
def _count_notes(offsets, end, pitch, velocity, program, is_drum, seconds, counts):
    """Fill the length of each piece, and the counts that `histograms` returns; drums are the last program."""
    on_pitch, on_drum_pitch, on_velocity, on_program, program_pieces = counts
    seen_in = np.full(len(on_program), -1, np.int64)
    for piece in range(len(offsets) - 1):
        length = 0.0
        for i in range(offsets[piece], offsets[piece + 1]):
            length = max(length, end[i])
            on_velocity[velocity[i]] += 1
            if is_drum[i]:
                on_drum_pitch[pitch[i]] += 1
                voice = len(on_program) - 1
            else:
                on_pitch[pitch[i]] += 1
                voice = int(program[i])
            on_program[voice] += 1
            if seen_in[voice] != piece:
                seen_in[voice] = piece
                program_pieces[voice] += 1
        seconds[piece] = length
