"""The compiled loops of `features`: numbers about each piece, and counts over all of them."""

import numpy as np

from tasks.music.compiled import njit

ENDED_SECONDS = 1e-6  # a note that ends so little after the next onset has ended: rounded seconds must not overlap
SHORT_LIST = 64  # notes sounding at once that are looked through one by one


@njit(cache=True, nogil=True)
def measure_pieces(offsets, onset, end, pitch, program, is_drum, columns):  # noqa: PLR0912, PLR0915  one loop is fast
    """Fill the columns of `FEATURES`, in its order."""
    n_pitches, pitch_min, pitch_max, max_polyphony, mean_polyphony, n_drum_notes = columns[:6]
    longest_note_seconds, most_common_pitch_share, notes_per_second, n_programs = columns[6:]
    on_pitch, on_program = np.zeros(128, np.int64), np.zeros(128, np.bool_)
    longest_piece = 0
    for piece in range(len(offsets) - 1):
        longest_piece = max(longest_piece, offsets[piece + 1] - offsets[piece])
    sounding = np.empty(longest_piece + 1)  # ends of notes that may still sound, a heap with the earliest first
    for piece in range(len(offsets) - 1):
        first, last = offsets[piece], offsets[piece + 1]
        if first == last:
            continue
        on_pitch[:] = 0
        on_program[:] = False
        n_drums = n_sounding = most_sounding = 0
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
            # Notes that ended are taken out only when their number could make a new record: all at once from a short
            # list, the earliest one from a heap, which keeps a piece of a million notes that never end in bounds.
            if n_sounding == most_sounding and most_sounding <= SHORT_LIST:
                n_kept = 0
                for k in range(n_sounding):
                    sounding[n_kept] = sounding[k]
                    n_kept += sounding[k] > start + ENDED_SECONDS
                n_sounding = n_kept
                if n_sounding == SHORT_LIST:  # put in order it is a heap; np.sort would take seconds to compile
                    for k in range(1, SHORT_LIST):
                        moved, hole = sounding[k], k
                        while hole > 0 and sounding[hole - 1] > moved:
                            sounding[hole] = sounding[hole - 1]
                            hole -= 1
                        sounding[hole] = moved
            elif n_sounding == most_sounding and sounding[0] <= start + ENDED_SECONDS:
                n_sounding -= 1
                moved, hole = sounding[n_sounding], 0
                while 2 * hole + 1 < n_sounding:
                    child = 2 * hole + 1
                    if child + 1 < n_sounding and sounding[child + 1] < sounding[child]:
                        child += 1
                    if sounding[child] >= moved:
                        break
                    sounding[hole] = sounding[child]
                    hole = child
                sounding[hole] = moved
            hole = n_sounding
            if most_sounding >= SHORT_LIST:
                while hole > 0 and sounding[(hole - 1) // 2] > stop:
                    sounding[hole] = sounding[(hole - 1) // 2]
                    hole = (hole - 1) // 2
            sounding[hole] = stop
            n_sounding += 1
            most_sounding = max(most_sounding, n_sounding)
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
        max_polyphony[piece], n_drum_notes[piece] = most_sounding, n_drums
        longest_note_seconds[piece] = longest
        if sounding_time > 0:
            mean_polyphony[piece] = summed / sounding_time
        if length > 0:
            notes_per_second[piece] = n_notes / length
        if n_notes > n_drums:
            most_common_pitch_share[piece] = most_common / (n_notes - n_drums)


@njit(cache=True, nogil=True)
def count_notes(offsets, end, pitch, velocity, program, is_drum, seconds, counts):
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
