"""Compiled loops that several encodings share: rounding to units, powers of two, and sorting."""

import numpy as np

from tasks.music.compiled import njit


@njit(cache=True, nogil=True)
def to_unit(seconds, units_per_second):
    """Round a time to units, halves up; one unit is a whole number of milliseconds."""
    # A tick on the half is stored a hair off it; a nanosecond of grace keeps 4 ms at 1 unit for every tempo.
    return np.int64(np.floor(seconds * units_per_second + (0.5 + 1e-9 * units_per_second)))


@njit(cache=True, nogil=True)
def power_of_two(number):
    """Return the exponent of a power of two, -1 for another number."""
    power = 0
    while number > 1 and number % 2 == 0:
        number, power = number // 2, power + 1
    return power if number == 1 else -1


@njit(cache=True, nogil=True)
def sort_run(keys, begin, end):
    """Sort `keys[begin:end]` by Shell's method: a chord takes one pass, and a million notes at once still not long."""
    gap = 1
    while 9 * gap < end - begin:
        gap = 3 * gap + 1
    while gap:
        for place in range(begin + gap, end):
            key, at = keys[place], place
            while at >= begin + gap and keys[at - gap] > key:
                keys[at] = keys[at - gap]
                at -= gap
            keys[at] = key
        gap //= 3
