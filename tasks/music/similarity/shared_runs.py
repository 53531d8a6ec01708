"""Runs of notes that two pieces share: in any key, at any tempo, on the grid of any encoding.

A piece becomes a *line*: its pitched notes in order of (moment, pitch), a doubled note once, drums left out. Onsets
that lie much closer together than the notes around them are one *moment*, so that a chord that is spread a little, or
falls on one step of a grid, has its notes in the same order. A *run* is a stretch of consecutive notes of two lines
with one interval between all pairs of notes, and gaps that agree in proportion: exactly as far as pitch goes, loosely
as far as time goes, since onsets are rounded by encodings. Notes that lie within 0.15 seconds may change places.

The lines of many pieces are searched through *seeds*: hashes of ten successive intervals, at every fourth note of the
indexed lines and at every note of the line that is sought. A run of 14 notes or more holds ten intervals that are in
the index, so it is found for certain, unless each of them has more than 1,024 places, of which 1,024 are looked at.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tasks.music.compiled import njit
from tasks.music.similarity.fingerprint import mix_bits

if TYPE_CHECKING:
    from tasks.music.arrays import BoolArray, ByteArray, IntArray

SEED_INTERVALS = 10
SEED_STEP = 4  # notes from one indexed seed to the next
SURE_NOTES = SEED_INTERVALS + SEED_STEP  # runs of so many notes are found for certain
MOST_PLACES = 1024  # looked at for one seed

_AROUND = 8  # notes before and after, whose mean gap is the measure of a moment
_TOGETHER = 0.45  # of that gap: closer onsets are one moment
_MOST_APART = 0.04  # seconds between neighbours of one moment, however slow the music is
_SWAP_SECONDS = 0.15  # between the first and the last of notes that may change places
_MOST_SWAPPED = 6  # notes that may change places among themselves
_SLACK = 0.08  # seconds by which a gap may differ at any length: rounding, spread chords
_SLACK_SHARE = 0.25  # of the gap, in addition
_MEMORY = 0.9  # of the tempo ratio: what a gap still counts one gap later
_MOST_RATIO = 5.0  # of two tempos


@dataclass(frozen=True, slots=True, eq=False)
class Lines:
    """Lines of P pieces, N notes in all; piece i owns notes `offsets[i]:offsets[i + 1]`.

    Args:
        onset: seconds, of the moment.
        note: index of each note among the notes that the lines were made of.
    """

    offsets: "IntArray"
    onset: NDArray[np.float32]
    pitch: "ByteArray"
    note: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Runs:
    """R runs, each as long as it can be around its place, in no order that matters.

    Args:
        first: int64[R], first note in the line that was sought.
        source: int64[R], first note among the indexed notes.
        n_notes: int64[R].
    """

    first: "IntArray"
    source: "IntArray"
    n_notes: "IntArray"


def draw_lines(
    offsets: "IntArray", onset_seconds: NDArray[np.float64], pitch: "ByteArray", is_drum: "BoolArray"
) -> Lines:
    """Return the lines of P pieces.

    Args:
        offsets: int64[P + 1]; piece i owns notes `offsets[i]:offsets[i + 1]`, sorted by (onset, pitch).
    """
    n_notes = len(pitch)
    line_offsets = np.zeros(len(offsets), np.int64)
    onset, line, note = np.empty(n_notes, np.float32), np.empty(n_notes, np.uint8), np.empty(n_notes, np.int64)
    n = _draw(
        np.array(offsets, np.int64),  # copies: compiled code is made once more for arrays that cannot be written to
        np.array(onset_seconds, np.float64),
        np.array(pitch, np.uint8),
        np.array(is_drum, np.bool_),
        line_offsets,
        onset,
        line,
        note,
    )
    return Lines(line_offsets, onset[:n], line[:n], note[:n])


def seeds_between(offsets: "IntArray", pitch: "ByteArray", low: int = 0, high: int = 1 << 32) -> NDArray[np.uint64]:
    """Return the indexed seeds of P lines whose hash lies in `low` to `high` (excluded), sorted: hash << 32 | place."""
    found = np.empty(len(pitch) // SEED_STEP + len(offsets), np.uint64)
    found = found[: _fill_seeds(offsets, pitch, low, high, found)].copy()
    found.sort()
    return found


def find_runs(
    onset: NDArray[np.float32],
    pitch: "ByteArray",
    seeds: NDArray[np.uint64],
    offsets: "IntArray",
    source_onset: NDArray[np.float32],
    source_pitch: "ByteArray",
) -> Runs:
    """Return the runs that one line shares with indexed lines.

    Args:
        onset, pitch: of the line that is sought.
        seeds: of the indexed lines, from `seeds_between`, sorted.
        offsets, source_onset, source_pitch: the indexed lines.
    """
    n = len(pitch)
    hashes = _hash_all(pitch)
    if not len(hashes) or not len(seeds):
        none = np.zeros(0, np.int64)
        return Runs(none, none, none)
    first = np.searchsorted(seeds, hashes << np.uint64(32))
    last = np.searchsorted(seeds, (hashes << np.uint64(32)) | np.uint64(0xFFFFFFFF), side="right")
    hits = _hits(first, last, seeds, len(source_pitch), n)
    hits.sort()
    runs = _walk(hits, onset, pitch, offsets, source_onset, source_pitch)
    return Runs(runs[:, 0], runs[:, 1], runs[:, 2])


@njit(cache=True, nogil=True)
def _draw(
    offsets: Any, seconds: Any, pitch: Any, is_drum: Any, line_offsets: Any, onset: Any, line: Any, note: Any
) -> int:
    longest = 0
    for piece in range(len(offsets) - 1):
        longest = max(longest, offsets[piece + 1] - offsets[piece])
    pitched, times = np.empty(longest, np.int64), np.empty(longest, np.float64)
    total = 0
    for piece in range(len(offsets) - 1):
        n = 0
        for i in range(offsets[piece], offsets[piece + 1]):
            if not is_drum[i]:
                pitched[n], times[n] = i, seconds[i]
                n += 1
        start = 0
        while start < n:
            end = start + 1
            while end < n and _is_together(times, n, end):
                end += 1
            begin = total
            for k in range(start, end):
                total = _insert(pitched[k], begin, total, pitch, line, note)
            onset[begin:total] = times[start]
            start = end
        line_offsets[piece + 1] = total
    return total


@njit(cache=True, nogil=True)
def _is_together(times: Any, n: int, i: int) -> bool:
    low, high = max(0, i - _AROUND), min(n - 1, i + _AROUND - 1)
    mean = (times[high] - times[low]) / (high - low)
    return times[i] - times[i - 1] <= min(_TOGETHER * mean, _MOST_APART)


@njit(cache=True, nogil=True)
def _insert(i: int, begin: int, end: int, pitch: Any, line: Any, note: Any) -> int:
    """Put note i into its place by pitch in the moment `begin:end`, unless that pitch is there; return the new end."""
    place = end
    while place > begin and line[place - 1] > pitch[i]:
        place -= 1
    if place > begin and line[place - 1] == pitch[i]:
        return end
    for k in range(end, place, -1):
        line[k], note[k] = line[k - 1], note[k - 1]
    line[place], note[place] = pitch[i], i
    return end + 1


@njit(cache=True, nogil=True)
def _hash_seed(pitch: Any, i: Any) -> Any:
    """Return the 32-bit hash of the intervals after note i."""
    state = np.uint64(SEED_INTERVALS)
    for k in range(i, i + SEED_INTERVALS):
        step = np.uint64(np.int64(pitch[k + 1]) - np.int64(pitch[k]) + 128)
        state = state * np.uint64(0x9E3779B97F4A7C15) + step
    return mix_bits(state) >> np.uint64(32)


@njit(cache=True, nogil=True)
def _hash_all(pitch: Any) -> Any:
    hashes = np.empty(max(0, len(pitch) - SEED_INTERVALS), np.uint64)
    for i in range(len(hashes)):
        hashes[i] = _hash_seed(pitch, i)
    return hashes


@njit(cache=True, nogil=True)
def _fill_seeds(offsets: Any, pitch: Any, low: int, high: int, found: Any) -> int:
    count = 0
    for piece in range(len(offsets) - 1):
        for i in range(offsets[piece], offsets[piece + 1] - SEED_INTERVALS, SEED_STEP):
            value = _hash_seed(pitch, i)
            if low <= np.int64(value) < high:
                found[count] = value << np.uint64(32) | np.uint64(i)
                count += 1
    return count


@njit(cache=True, nogil=True)
def _hits(first: Any, last: Any, seeds: Any, n_source: int, n: int) -> Any:
    """Return one number for each pair of equal seeds, which sorts them by diagonal, then by place."""
    total = 0
    for q in range(len(first)):
        total += min(MOST_PLACES, last[q] - first[q])
    hits = np.empty(total, np.int64)
    total = 0
    for q in range(len(first)):
        n_places = last[q] - first[q]
        n_taken = min(MOST_PLACES, n_places)
        for k in range(n_taken):
            source = np.int64(seeds[first[q] + k * n_places // n_taken] & np.uint64(0xFFFFFFFF))
            if source + SEED_INTERVALS < n_source:  # otherwise the file is damaged
                hits[total] = (source - q + n) * n + q
                total += 1
    return hits[:total]


@njit(cache=True, nogil=True)
def _walk(hits: Any, onset: Any, pitch: Any, offsets: Any, source_onset: Any, source_pitch: Any) -> Any:
    """Stretch each hit as far as it goes; return rows of first note, first source note, number of notes."""
    runs = np.empty((len(hits), 3), np.int64)
    line, other, left = (onset, pitch), (source_onset, source_pitch), np.empty(2, np.int64)
    n, n_runs = len(pitch), 0
    diagonal, covered = np.int64(-1), np.int64(0)
    for hit in hits:
        q, j = hit % n, hit % n + hit // n - n
        if hit // n == diagonal and q + SEED_INTERVALS < covered:
            continue
        elapsed = np.float64(onset[q + SEED_INTERVALS]) - onset[q]  # 0 for a chord
        lasted = np.float64(source_onset[j + SEED_INTERVALS]) - source_onset[j]
        if elapsed > _MOST_RATIO * lasted or lasted > _MOST_RATIO * elapsed:
            continue
        piece = np.searchsorted(offsets, j, side="right") - 1
        left[0] = min(q, j - offsets[piece])
        left[1] = min(n, q + offsets[piece + 1] - j) - 1 - q
        for way in range(2):
            left[way] = _reach(line, other, q, j, left[way], 2 * way - 1, elapsed, lasted)
        if left[1] < SEED_INTERVALS:
            continue
        first, last = q - left[0], q + left[1]
        runs[n_runs, 0], runs[n_runs, 1], runs[n_runs, 2] = first, j - left[0], last + 1 - first
        n_runs += 1
        diagonal, covered = hit // n, last + 1
    return runs[:n_runs].copy()


@njit(cache=True, nogil=True)
def _reach(line: Any, other: Any, i: int, j: int, left: int, way: int, elapsed: Any, lasted: Any) -> int:
    """Return for how many notes, of `left`, two lines agree when they go `way` (1 or -1) from the notes i and j.

    `elapsed` and `lasted` are times that the two take for the same music; their ratio is the ratio of the tempos.
    """
    onset, pitch = line
    source_onset, source_pitch = other
    interval = np.int64(pitch[i]) - np.int64(source_pitch[j])
    done = 0
    while done < left:
        gap = way * (np.float64(onset[i + way]) - onset[i])
        source_gap = way * (np.float64(source_onset[j + way]) - source_onset[j])
        if lasted > 0:
            wanted = source_gap * elapsed / lasted
            if abs(gap - wanted) > _SLACK + _SLACK_SHARE * max(gap, wanted):
                break
        n_moved = 1
        if np.int64(pitch[i + way]) - np.int64(source_pitch[j + way]) != interval:
            n_moved = _swapped(line, other, i + way, j + way, min(left - done, _MOST_SWAPPED), way, interval)
            if n_moved == 0:
                break
        i, j, done = i + way * n_moved, j + way * n_moved, done + n_moved
        if source_gap > 0 and gap > 0:
            elapsed, lasted = _MEMORY * elapsed + gap, _MEMORY * lasted + source_gap
    return done


@njit(cache=True, nogil=True)
def _swapped(line: Any, other: Any, i: int, j: int, most: int, way: int, interval: Any) -> int:
    """Return how many notes from i and j on are the same but for their order, all close together; 0: none are."""
    onset, pitch = line
    source_onset, source_pitch = other
    for n in range(2, most + 1):
        spread = abs(onset[i + way * (n - 1)] - onset[i])
        source_spread = abs(source_onset[j + way * (n - 1)] - source_onset[j])
        if spread > _SWAP_SECONDS or source_spread > _SWAP_SECONDS:
            return 0
        taken = 0  # a bit for each note of the source that has a partner
        for k in range(n):
            for m in range(n):
                equal = np.int64(pitch[i + way * k]) - np.int64(source_pitch[j + way * m]) == interval
                if equal and not taken >> m & 1:
                    taken |= 1 << m
                    break
        if taken == (1 << n) - 1:
            return n
    return 0
