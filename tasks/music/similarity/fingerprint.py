"""Signatures and n-grams of pieces, which change little when a piece is transposed, replayed, re-barred or cut.

Only the order of the pitched notes counts; tempo, velocity, tracks and resolution do not. A *peak* is a note that is
higher than its four neighbours on either side (or lower, for the bass line): a spread chord changes the order of the
notes but rarely the peak. A *shingle* is two intervals of successive peaks and the interval to the lowest (highest)
note under (over) them. Pieces for drums have shingles of successive strokes of the kit instead. The set of shingles is
kept as MinHash values (Broder 1997), two of 16 bits to a word, so that one word is one band of two rows for
locality-sensitive hashing.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tasks.music.compiled import njit

if TYPE_CHECKING:
    from tasks.music.arrays import BoolArray, ByteArray, IntArray

HashArray = NDArray[np.uint64]
WordArray = NDArray[np.uint32]

N_WORDS = 64  # of a signature
N_PERMUTATIONS = 2 * N_WORDS
MIN_SHINGLES = 8  # a piece with fewer is compared by its whole content
MIN_STROKE_SHINGLES = 12  # the same for drums, whose figures are more alike
GRAM_NOTES = 13  # of one n-gram: twelve intervals
SAMPLE = 4  # one in so many n-grams is kept, chosen by its hash, so that all pieces keep the same ones

_REACH = 4  # notes on either side that a peak rises above
_STROKES = 10  # of one shingle of drums


@dataclass(frozen=True, slots=True, eq=False)
class PieceSignatures:
    """Signatures of P pieces.

    Args:
        signature: uint32[P, 64]; each half of a word is a MinHash value.
        n_shingles: int32[P], distinct ones; 1 where the whole content stands in for too few.
    """

    signature: WordArray
    n_shingles: NDArray[np.int32]


def sign_pieces(
    offsets: "IntArray", onset: NDArray[np.integer], pitch: "ByteArray", is_drum: "BoolArray"
) -> PieceSignatures:
    """Return the signature of each of P pieces.

    Args:
        offsets: int64[P + 1]; piece i owns notes `offsets[i]:offsets[i + 1]`, sorted by (onset, pitch).
        onset: ticks of any resolution; only which notes fall together matters, and for drums how close they are.
    """
    n_pieces = len(offsets) - 1
    signature = np.empty((n_pieces, N_WORDS), np.uint32)
    n_shingles = np.empty(n_pieces, np.int32)
    _sign(*_plain(offsets, onset, pitch, is_drum), _KIT, _FACTORS, _SHIFTS, signature, n_shingles)
    return PieceSignatures(signature, n_shingles)


def gram_hashes(
    offsets: "IntArray", onset: NDArray[np.integer], pitch: "ByteArray", is_drum: "BoolArray"
) -> tuple["IntArray", HashArray]:
    """Return the sampled n-grams of each of P pieces: distinct hashes of twelve successive intervals.

    Arguments as in `sign_pieces`. A piece for drums has n-grams of strokes.

    Returns:
        int64[P + 1] offsets, uint64 hashes: piece i owns `hashes[offsets[i]:offsets[i + 1]]`.
    """
    plain = _plain(offsets, onset, pitch, is_drum)
    gram_offsets = np.zeros(len(offsets), np.int64)
    grams = np.empty(len(plain[2]) + 1, np.uint64)
    n_grams = _grams(*plain, _KIT, gram_offsets, grams)
    return gram_offsets, grams[:n_grams].copy()


def count_equal(signature: WordArray, left: "IntArray", right: "IntArray") -> NDArray[np.int32]:
    """Return how many of the 128 MinHash values agree, for each pair of rows of a signature array."""
    equal = np.empty(len(left), np.int32)
    _count_equal(signature, left, right, equal)
    return equal


def _plain(offsets: Any, onset: Any, pitch: Any, is_drum: Any) -> tuple[Any, Any, Any, Any]:
    """Return the arrays with the types for which the functions are compiled."""
    return (
        np.ascontiguousarray(offsets, np.int64),
        np.ascontiguousarray(onset, np.int64),
        np.ascontiguousarray(pitch, np.uint8),
        np.ascontiguousarray(is_drum, np.bool_),
    )


def _kit() -> "ByteArray":
    """Return the family of each key of the General MIDI kit, and of the extra hi-hat keys of electronic kits."""
    families = np.full(128, 5, np.uint8)  # hand percussion and effects
    for family, keys in enumerate(
        (
            (35, 36),  # bass drums
            (37, 38, 39, 40),  # snares, side stick, hand clap
            (41, 43, 45, 47, 48, 50, 58),  # toms
            (22, 26, 42, 44, 46, 54, 70),  # hi-hats, and what plays their part
            (49, 51, 52, 53, 55, 57, 59),  # cymbals
        )
    ):
        families[list(keys)] = family
    return families


def _splitmix(n: int) -> HashArray:
    """Return the first outputs of SplitMix64 (Steele et al. 2014) from seed 0; no library version changes them."""
    values, state, mask = [], 0, 2**64 - 1
    for _ in range(n):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        values.append(z ^ (z >> 31))
    return np.array(values, np.uint64)


_KIT = _kit()
_FACTORS = (_splitmix(2 * N_PERMUTATIONS)[:N_PERMUTATIONS] >> np.uint64(32)).astype(np.uint32) | np.uint32(1)
_SHIFTS = (_splitmix(2 * N_PERMUTATIONS)[N_PERMUTATIONS:] >> np.uint64(32)).astype(np.uint32)


@njit(cache=True, nogil=True)
def mix_bits(value: Any) -> Any:
    """Return a 64-bit number of which every bit depends on every bit: the finalizer of MurmurHash3 (Appleby)."""
    value = (value ^ (value >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    value = (value ^ (value >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return value ^ (value >> np.uint64(33))


@njit(cache=True, nogil=True)
def _add(state: Any, number: Any) -> Any:  # one more number, of any sign, into a hash
    return (state ^ np.uint64(number + 4096)) * np.uint64(0x9E3779B97F4A7C15) + (state >> np.uint64(29))


@njit(cache=True, nogil=True)
def _pitched(start: int, end: int, onset: Any, pitch: Any, is_drum: Any, line: Any) -> int:
    """Write the pitches of the notes that are not drums, a doubled note once; return their number."""
    n = 0
    last_onset, last_pitch = np.int64(-1), np.uint8(255)
    for i in range(start, end):
        line[n] = pitch[i]  # written in any case: a branch that is often mistaken costs more
        n += not is_drum[i] and (onset[i] != last_onset or pitch[i] != last_pitch)
        if not is_drum[i]:
            last_onset, last_pitch = onset[i], pitch[i]
    return n


@njit(cache=True, nogil=True)
def _strokes(start: int, end: int, onset: Any, pitch: Any, is_drum: Any, kit: Any, ticks: Any, line: Any) -> int:
    """Write one number for drums struck together, with a bit for each family of the kit; return their number.

    Hits are together within 0.45 of the mean gap between the hits around them, at any tempo.
    """
    n_hits = 0
    last_pitch = -1
    for i in range(start, end):
        if is_drum[i] and not (n_hits and ticks[n_hits - 1] == onset[i] and last_pitch == pitch[i]):
            ticks[n_hits] = onset[i]
            line[n_hits] = 1 << kit[pitch[i]]
            last_pitch = pitch[i]
            n_hits += 1
    n = 0
    first = np.int64(0)
    for i in range(n_hits):
        low, high = max(0, i - 8), min(n_hits - 1, i + 8)
        if n and (ticks[i] - first) * (high - low) * 20 <= (ticks[high] - ticks[low]) * 9:
            line[n - 1] |= line[i]
        else:
            first = ticks[i]
            line[n] = line[i]
            n += 1
    return n


@njit(cache=True, nogil=True)
def _peaks(line: Any, n: int, padded: Any, pairs: Any, fours: Any, is_peak: Any, peaks: Any) -> int:
    """Write the places of the notes above the four before and not below the four after; return their number."""
    padded[:_REACH] = -1000
    padded[_REACH : n + _REACH] = line[:n]
    padded[n + _REACH : n + 2 * _REACH] = -1000
    for i in range(n + 7):
        pairs[i] = max(padded[i], padded[i + 1])
    for i in range(n + 5):
        fours[i] = max(pairs[i], pairs[i + 2])  # the highest of four, which is _REACH
    for i in range(n):
        is_peak[i] = (padded[i + 4] > fours[i]) & (padded[i + 4] >= fours[i + 5])
    n_peaks = 0
    for i in range(n):
        peaks[n_peaks] = i
        n_peaks += is_peak[i]
    return n_peaks


@njit(cache=True, nogil=True)
def _peak_shingles(line: Any, sign: int, peaks: Any, n_peaks: int, shingles: Any, n_before: int) -> int:
    """Add the shingles of a line to `shingles`; `sign` keeps the bass, read upside down, apart from the top."""
    count = n_before
    lowest = np.int16(0)
    for i in range(n_peaks - 2):
        first, middle, last = peaks[i], peaks[i + 1], peaks[i + 2]
        here = lowest if i else line[first : middle + 1].min()
        lowest = line[middle]
        for k in range(middle + 1, last):
            lowest = min(lowest, line[k])
        one, two = np.int64(line[middle]) - line[first], np.int64(line[last]) - line[middle]
        state = _add(_add(mix_bits(np.uint64(sign + 2)), one), two)
        if one == 0 or two == 0:  # repeated notes are in all music: longer, or not at all
            if one == two or i + 3 >= n_peaks:
                continue
            state = _add(state, np.int64(line[peaks[i + 3]]) - line[last])
        state = _add(state, np.int64(line[first]) - min(here, lowest))
        shingles[count] = np.uint32(mix_bits(state) >> np.uint64(32))
        count += 1
    return count


@njit(cache=True, nogil=True)
def _stroke_shingles(line: Any, n: int, shingles: Any) -> int:
    for i in range(n - _STROKES + 1):
        state = mix_bits(np.uint64(7))
        for k in range(i, i + _STROKES):
            state = _add(state, line[k])
        shingles[i] = np.uint32(mix_bits(state) >> np.uint64(32))
    return max(0, n - _STROKES + 1)


@njit(cache=True, nogil=True)
def _distinct(shingles: Any, n: int, seen: Any) -> int:
    """Move the distinct hashes to the front, through an open hash table, and return their number."""
    size = 16
    while size < 2 * n:
        size *= 2
    seen[:size] = 0
    one = shingles.dtype.type(1)
    count = 0
    for i in range(n):
        value = max(shingles[i], one)  # 0 marks a free place
        place = np.int64(value >> one) & (size - 1)
        while seen[place] != 0 and seen[place] != value:
            place = (place + 1) & (size - 1)
        if seen[place] == 0:
            seen[place] = value
            shingles[count] = value
            count += 1
    return count


@njit(cache=True, nogil=True)
def _content(line: Any, n: int, strokes: Any, n_strokes: int) -> Any:
    """Return a hash of all intervals and strokes, for a piece with too few shingles."""
    state = mix_bits(np.uint64(n))
    for i in range(1, n):
        state = mix_bits(_add(state, np.int64(line[i]) - line[i - 1]))
    state = mix_bits(_add(state, np.int64(1000)))
    for i in range(n_strokes):
        state = mix_bits(_add(state, strokes[i]))
    return np.uint32(state >> np.uint64(32))


@njit(cache=True, nogil=True)
def _longest(offsets: Any) -> int:
    longest = 0
    for piece in range(len(offsets) - 1):
        longest = max(longest, offsets[piece + 1] - offsets[piece])
    return longest


@njit(cache=True, nogil=True)
def _sign(
    offsets: Any, onset: Any, pitch: Any, is_drum: Any, kit: Any, factors: Any, shifts: Any, signature: Any, counts: Any
) -> None:
    longest = _longest(offsets)
    line = np.empty(longest + 1, np.int16)
    padded = np.empty(longest + 2 * _REACH, np.int16)
    pairs = np.empty(longest + 2 * _REACH, np.int16)
    fours = np.empty(longest + 2 * _REACH, np.int16)
    is_peak = np.empty(longest, np.bool_)
    scratch = np.empty(longest + 1, np.int64)
    strokes = np.empty(longest, np.int16)
    shingles = np.empty(longest + 2, np.uint32)  # a line has a peak in five notes at most
    seen = np.empty(16 + 4 * longest, np.uint32)
    lowest = np.empty(len(factors), np.uint32)
    for piece in range(len(offsets) - 1):
        start, end = offsets[piece], offsets[piece + 1]
        n = _pitched(start, end, onset, pitch, is_drum, line)
        count = 0
        for sign in (1, -1):
            n_peaks = _peaks(line, n, padded, pairs, fours, is_peak, scratch)
            count = _peak_shingles(line, sign, scratch, n_peaks, shingles, count)
            for i in range(n):
                line[i] = -line[i]
        count = _distinct(shingles, count, seen)
        if count < MIN_SHINGLES:
            n_strokes = _strokes(start, end, onset, pitch, is_drum, kit, scratch, strokes)
            count = _distinct(shingles, _stroke_shingles(strokes, n_strokes, shingles), seen)
            if count < MIN_STROKE_SHINGLES:
                shingles[0] = _content(line, n, strokes, n_strokes)
                count = 1
        counts[piece] = count
        lowest[:] = np.uint32(0xFFFFFFFF)
        for i in range(count):
            value = shingles[i]
            for k in range(len(factors)):
                lowest[k] = min(lowest[k], np.uint32(factors[k] * value + shifts[k]))
        for k in range(signature.shape[1]):  # the low bits: those of a minimum that differ, the high ones hardly do
            signature[piece, k] = (lowest[2 * k] & np.uint32(0xFFFF)) << np.uint32(16) | (
                lowest[2 * k + 1] & np.uint32(0xFFFF)
            )


@njit(cache=True, nogil=True)
def _grams(offsets: Any, onset: Any, pitch: Any, is_drum: Any, kit: Any, gram_offsets: Any, grams: Any) -> int:
    longest = _longest(offsets)
    line = np.empty(longest + 1, np.int16)
    steps = np.empty(longest + 1, np.uint64)
    ticks = np.empty(longest, np.int64)
    seen = np.empty(16 + 4 * longest, np.uint64)
    base = np.uint64(0x9E3779B97F4A7C15)
    leaving = np.uint64(1)
    for _ in range(GRAM_NOTES - 1):
        leaving *= base
    total = 0
    for piece in range(len(offsets) - 1):
        start, end = offsets[piece], offsets[piece + 1]
        n = _pitched(start, end, onset, pitch, is_drum, line)
        if n < 2 * GRAM_NOTES and n < end - start:
            n = _strokes(start, end, onset, pitch, is_drum, kit, ticks, line)
            for i in range(n):
                steps[i] = line[i] + 1024
        else:
            n -= 1
            for i in range(n):
                steps[i] = np.int64(line[i + 1]) - line[i] + 512
        begin = total
        state = np.uint64(0)  # a rolling polynomial of the last twelve steps (Karp & Rabin 1987)
        for i in range(min(GRAM_NOTES - 1, n)):
            state = state * base + steps[i]
        for i in range(GRAM_NOTES - 1, n + 1):
            value = mix_bits(state)
            grams[total] = value
            total += value % np.uint64(SAMPLE) == 0
            if i < n:
                state = state * base + steps[i] - steps[i - GRAM_NOTES + 1] * leaving
        total = begin + _distinct(grams[begin:], total - begin, seen)
        gram_offsets[piece + 1] = total
    return total


@njit(cache=True, nogil=True)
def _count_equal(signature: Any, left: Any, right: Any, equal: Any) -> None:
    for pair in range(len(left)):
        one, other = signature[left[pair]], signature[right[pair]]
        count = 0
        for k in range(len(one)):
            difference = one[k] ^ other[k]
            count += (difference & np.uint32(0xFFFF)) == 0
            count += (difference >> np.uint32(16)) == 0
        equal[pair] = count
