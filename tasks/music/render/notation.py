"""Scores as notation: bars, a grid of sixteenths or of their triplets in each beat, staves and voices.

A quarter has `divisions` steps, 12 or a power of two more. In each beat (quarter) of each part, onsets go to sixteenths
or to triplets of sixteenths, whichever is nearer; so do ends.
"""

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tasks.music.arrays import BoolArray, IntArray

if TYPE_CHECKING:
    from tasks.music.score import Score

MAX_BARS = 20_000
MAX_VOICES = 4  # of a staff; notation programs know no more
TRIPLET_BIAS = 0.6  # triplets have more places in a beat: they must be nearer by this factor to be believed
MIDDLE_C = 60
LOWEST_PITCH = 12  # C0: MusicXML has no octave below
LOSSES = ("notes_moved", "notes_lengthened", "notes_doubled", "notes_shortened", "notes_raised")
N_KEYBOARDS = 24  # General MIDI programs below are pianos, tuned percussion and organs: two staves


@dataclass(frozen=True, slots=True, eq=False)
class Bars:
    """M bars: start and length in divisions, meter as (numerator, denominator), and whether a change of meter cuts it.

    The last entry of `start` is the end of the last bar, so that it has M + 1 entries.
    """

    divisions: int
    start: IntArray
    meter: list[tuple[int, int]]
    is_cut: list[bool]

    def beats(self, bar: int) -> list[tuple[int, int]]:
        """Return (start, end) of the quarters of a bar; the last may be shorter."""
        start, end = int(self.start[bar]), int(self.start[bar + 1])
        return [(beat, min(beat + self.divisions, end)) for beat in range(start, end, self.divisions)]


@dataclass(frozen=True, slots=True)
class Chord:
    """Notes that begin and end together in one voice, in divisions from the start of the piece."""

    onset: int
    end: int
    pitches: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One part on the grid: `voices[staff][voice]` are chords in order, `triplet_beats` starts of beats in triplets."""

    track: int
    program: int
    is_drum: bool
    voices: list[list[list[Chord]]]
    triplet_beats: frozenset[int]


def divisions_of(score: "Score") -> int:
    """Return the steps of a quarter: 12, or more where a meter counts in notes shorter than a sixteenth."""
    return 12 * max(1, int(score.time_signatures.denominator.max(initial=4)) // 16)


def bars_of(score: "Score", divisions: int) -> Bars:
    """Return the bars up to the end of the last note; 4/4 where the score names no meter.

    Raises:
        ValueError: there would be more than `MAX_BARS`.
    """
    meters = score.time_signatures
    ticks = (np.round(_at(score, meters.tick, divisions) / 3) * 3).astype(int).tolist()  # what notes can fill
    changes = dict(zip(ticks, zip(meters.numerator.tolist(), meters.denominator.tolist(), strict=True), strict=True))
    changes = {0: (4, 4)} | changes
    ends = score.notes.onset + score.notes.duration
    # A note that is lengthened to a step of the grid must still fit.
    last = int(np.ceil(_at(score, ends, divisions).max(initial=0.0) + divisions / 4))
    starts, in_force, is_cut = list[int](), list[tuple[int, int]](), list[bool]()
    edges = [*sorted(tick for tick in changes if tick < last), last]
    for place, (begin, stop) in enumerate(itertools.pairwise(edges)):
        numerator, denominator = changes[begin]
        length = numerator * 4 * divisions // denominator
        if len(starts) + (stop - begin) / length > MAX_BARS:
            raise ValueError(f"{(stop - begin) / length:.0f} bars of {numerator}/{denominator}, limit {MAX_BARS}")
        own = list(range(begin, stop, length))
        starts += own
        in_force += [(numerator, denominator)] * len(own)
        is_cut += [False] * (len(own) - 1) + [place < len(edges) - 2 and own[-1] + length > stop]
        last = max(stop, own[-1] + length)
    return Bars(divisions, np.array([*starts, last]), in_force, is_cut)


def engrave(score: "Score", bars: Bars) -> tuple[list[Part], dict[str, int]]:
    """Put every part on the grid, its notes on staves and in voices; count what that changes, by reason."""
    counts: dict[str, int] = dict.fromkeys(LOSSES, 0)
    parts = [_engrave_part(score, bars, track, counts) for track in range(max(score.n_tracks, 1))]
    return parts, {reason: n for reason, n in counts.items() if n}


def _at(score: "Score", ticks: IntArray, divisions: int) -> np.ndarray:
    return ticks * divisions / score.ticks_per_quarter


def _engrave_part(score: "Score", bars: Bars, track: int, counts: dict[str, int]) -> Part:
    notes = score.notes
    mine = notes.track == track
    onset = _at(score, notes.onset[mine], bars.divisions)
    end = _at(score, notes.onset[mine] + notes.duration[mine], bars.divisions)
    pitch = notes.pitch[mine].astype(int)
    is_drum = bool(notes.is_drum[mine].any())
    program = int(notes.program[mine][0]) if len(pitch) else 0
    if not is_drum:
        counts["notes_raised"] += int((pitch < LOWEST_PITCH).sum())
        pitch[pitch < LOWEST_PITCH] += 12
    placed, triplet_beats = _quantise(onset, end, bars, counts)
    longest: dict[tuple[int, int], int] = {}
    for start, stop, key in zip(*placed, pitch.tolist(), strict=True):
        longest[start, key] = max(longest.get((start, key), 0), stop)
    counts["notes_doubled"] += len(pitch) - len(longest)
    has_two_staves = not is_drum and program < N_KEYBOARDS and len(pitch) > 0
    chords: list[dict[tuple[int, int], list[int]]] = [{} for _ in range(1 + has_two_staves)]
    for (start, key), stop in sorted(longest.items()):
        chords[int(has_two_staves and key < MIDDLE_C)].setdefault((start, stop), []).append(key)
    voices = [_assign([Chord(*span, tuple(keys)) for span, keys in staff.items()], counts) for staff in chords]
    return Part(track, program, is_drum, voices, triplet_beats)


def _quantise(
    onset: np.ndarray, end: np.ndarray, bars: Bars, counts: dict[str, int]
) -> tuple[tuple[list[int], list[int]], frozenset[int]]:
    """Return onsets and ends in whole divisions, and the starts of the beats that are in triplets."""
    beat, beat_end = _beats_of(onset, bars)
    by_four = _nearest(onset, beat, beat_end, bars.divisions // 4)
    by_six = _nearest(onset, beat, beat_end, bars.divisions // 6)
    errors = np.where((beat_end - beat) % (bars.divisions // 2) == 0, [abs(onset - by_four), abs(onset - by_six)], 0)
    distances: dict[int, np.ndarray] = {}
    for place, error in zip(beat.tolist(), errors.T, strict=True):
        distances[place] = distances.get(place, 0) + error
    triplets = frozenset(place for place, (four, six) in distances.items() if six < TRIPLET_BIAS * four - 1e-9)

    def in_triplets(beats: IntArray) -> BoolArray:
        return np.isin(beats, np.array(sorted(triplets), dtype=np.int64))

    start = np.where(in_triplets(beat), by_six, by_four)
    last, last_end = _beats_of(np.nextafter(end, 0), bars)
    stop = np.where(
        in_triplets(last),
        _nearest(end, last, last_end, bars.divisions // 6),
        _nearest(end, last, last_end, bars.divisions // 4),
    )
    counts["notes_moved"] += int(((abs(start - onset) > 1e-9) | (abs(stop - end) > 1e-9)).sum())
    is_short = stop <= start
    counts["notes_lengthened"] += int(is_short.sum())
    home, home_end = _beats_of(start.astype(float), bars)
    step = np.where(in_triplets(home), bars.divisions // 6, bars.divisions // 4)
    stop = np.where(is_short, np.minimum(start + step, home_end), stop)
    return (start.tolist(), stop.tolist()), triplets


def _beats_of(place: np.ndarray, bars: Bars) -> tuple[IntArray, IntArray]:
    """Return start and end of the beat that each place lies in."""
    bar = np.clip(np.searchsorted(bars.start, place, side="right") - 1, 0, len(bars.start) - 2)
    start = bars.start[bar] + ((place - bars.start[bar]) // bars.divisions).astype(np.int64) * bars.divisions
    return start, np.minimum(start + bars.divisions, bars.start[bar + 1])


def _nearest(place: np.ndarray, beat: IntArray, beat_end: IntArray, step: int) -> IntArray:
    return np.minimum(beat + np.floor((place - beat) / step + 0.5).astype(np.int64) * step, beat_end)


def _assign(chords: list[Chord], counts: dict[str, int]) -> list[list[Chord]]:
    """Give each chord the first voice that is free; where all are taken, the one that is free first gives way."""
    voices: list[list[Chord]] = [[]]
    for chord in sorted(chords, key=lambda chord: (chord.onset, -chord.pitches[-1])):
        free = next((voice for voice in voices if not voice or voice[-1].end <= chord.onset), None)
        if free is None and len(voices) < MAX_VOICES:
            free = list[Chord]()
            voices.append(free)
        if free is None:
            candidates = [voice for voice in voices if voice[-1].onset < chord.onset]
            if candidates:
                free = min(candidates, key=lambda voice: voice[-1].end)
                counts["notes_shortened"] += len(free[-1].pitches)
                free[-1] = Chord(free[-1].onset, chord.onset, free[-1].pitches)
            else:  # more than four lengths at one onset: the nearest length takes it in
                nearest = min(voices, key=lambda voice: abs(voice[-1].end - chord.end))
                counts["notes_shortened"] += len(chord.pitches)
                pitches = tuple(sorted({*nearest[-1].pitches, *chord.pitches}))
                nearest[-1] = Chord(chord.onset, nearest[-1].end, pitches)
                continue
        free.append(chord)
    return voices
