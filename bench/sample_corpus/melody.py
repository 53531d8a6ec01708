"""Melodies from motifs: a bar has a rhythm and a gesture, and the cheapest fit to the harmony gives its pitches.

The gesture says how the line wants to move in scale steps; the fit bends it so that chord tones stand on strong beats,
other tones are reached and left by step, and the phrase follows its arch. The same motif over other chords is
therefore a sequence or a variation of itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.sample_corpus.dice import Dice
from bench.sample_corpus.harmony import Chord, Key, Span, neighbour_pitch, passing_pitch, scale_for

Meter = tuple[int, int]

# One bar of melody in quarter notes for each meter and character; a negative length is a rest.
RHYTHMS: dict[Meter, dict[str, list[tuple[float, ...]]]] = {
    (4, 4): {
        "calm": [(2, 2), (2, 1, 1), (3, 1), (1, 1, 2), (1.5, 0.5, 2)],
        "flowing": [(1, 1, 1, 1), (1.5, 0.5, 1, 1), (1, 0.5, 0.5, 1, 1), (0.5, 0.5, 1, 1, 1), (1, 1, 0.5, 0.5, 1)],
        "lively": [(0.5, 0.5, 0.5, 0.5, 1, 1), (1, 0.5, 0.5, 0.5, 0.5, 1), (-0.5, 0.5, 0.5, 0.5, 1, 1),
                   (0.75, 0.25, 0.5, 0.5, 1, 1), (0.5, 0.25, 0.25, 0.5, 0.5, 1, 1)],
        "syncopated": [(1.5, 1.5, 1), (-0.5, 0.5, 1, 0.5, 1.5), (0.5, 1, 0.5, 1, 1), (-0.5, 0.5, 0.5, 0.5, 1.5, -0.5),
                       (0.5, 0.5, 1, 1.5, -0.5), (-1, 0.5, 0.5, 0.5, 1, 0.5), (0.75, 0.75, 0.5, 1, -1)],
    },
    (3, 4): {
        "calm": [(2, 1), (3,), (1, 2), (1.5, 1.5)],
        "flowing": [(1, 1, 1), (1.5, 0.5, 1), (2, 0.5, 0.5), (1, 0.5, 0.5, 1), (1, 1, 0.5, 0.5)],
        "lively": [(0.5,) * 6, (1, 0.5, 0.5, 0.5, 0.5), (0.5, 0.5, 1, 1), (0.75, 0.25, 1, 1), (-1, 1, 0.5, 0.5)],
        "syncopated": [(1.5, 1, 0.5), (-0.5, 0.5, 1, 1), (0.5, 1, 1.5), (1, 1.5, -0.5), (-1, 0.5, 1, 0.5)],
    },
    (6, 8): {
        "calm": [(1.5, 1.5), (2.5, 0.5), (3,), (1, 0.5, 1.5)],
        "flowing": [(1, 0.5, 1, 0.5), (1.5, 1, 0.5), (1, 0.5, 0.5, 0.5, 0.5), (0.75, 0.25, 0.5, 1, 0.5)],
        "lively": [(0.5,) * 6, (0.5, 0.5, 0.5, 1, 0.5), (1, 0.5, 0.5, 0.5, 0.5), (0.75, 0.25, 0.5, 0.75, 0.25, 0.5)],
        "syncopated": [(1, 1, 1), (0.5, 1, 0.5, 1), (-0.5, 0.5, 0.5, 1.5), (1.5, -0.5, 0.5, 0.5)],
    },
    (2, 4): {
        "calm": [(2,), (1, 1), (1.5, 0.5)],
        "flowing": [(1, 0.5, 0.5), (0.5, 0.5, 1), (0.5, 0.5, 0.5, 0.5), (0.75, 0.25, 1)],
        "lively": [(0.75, 0.25, 0.5, 0.5), (0.5, 0.25, 0.25, 0.5, 0.5), (0.25, 0.25, 0.5, 0.5, 0.5),
                   (0.5, 0.5, 0.25, 0.25, 0.5)],
        "syncopated": [(0.25, 0.5, 0.25, 0.5, 0.5), (0.5, 1, 0.5), (-0.25, 0.25, 0.5, 1), (0.25, 0.5, 0.25, 1)],
    },
    (5, 4): {
        "calm": [(3, 2), (2, 1, 2), (1.5, 1.5, 2)],
        "flowing": [(1, 1, 1, 1, 1), (1.5, 0.5, 1, 1, 1), (2, 1, 1, 1), (1, 0.5, 0.5, 1, 2)],
        "lively": [(0.5, 0.5, 1, 1, 1, 1), (1.5, 1.5, 0.5, 0.5, 1), (1, 0.5, 0.5, 1, 0.5, 0.5, 1)],
        "syncopated": [(1.5, 1.5, 1, 1), (-0.5, 0.5, 1, 1, 1.5, 0.5), (1.5, 0.5, 1, 1.5, -0.5)],
    },
}  # fmt: skip

# Scale steps from note to note; a longer bar repeats the pattern.
GESTURES: tuple[tuple[int, ...], ...] = (
    (1, 1, -1, -1), (-1, -1, 1, -1), (1, 1, 1, -2), (-1, -1, -1, 2), (2, -1, -1, 1), (3, -1, -1, -1), (-2, 1, 1, -1),
    (0, 1, 0, -1), (1, -1, -1, 1), (-1, 1, 1, -1), (2, 2, -1, -1), (4, -1, -1, -1),
    (0, 1, 1, -2), (2, -1, 2, -1), (1, 2, -1, -1), (-3, 1, 1, 1),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Motif:
    """One bar: lengths in quarter notes (negative: rest) and the wished scale step to each note after the first."""

    lengths: tuple[float, ...]
    steps: tuple[int, ...]

    def invert(self) -> "Motif":
        """Return the same rhythm with every step turned around."""
        return Motif(self.lengths, tuple(-step for step in self.steps))


@dataclass(frozen=True, slots=True)
class Slot:
    """A melody note that has a place in time but no pitch yet."""

    onset_beats: float
    duration_beats: float
    chord: Chord
    step: int | None  # wished scale step from the note before; None: any small one
    weight: float  # 0 light - 1 the downbeat
    target: float  # pitch near which it should be
    goal: tuple[int, ...] = ()  # pitch classes it must have, where it ends a phrase


@dataclass(frozen=True, slots=True)
class Tone:
    """A melody note with its harmony, so that variations know what fits."""

    onset_beats: float
    duration_beats: float
    pitch: int
    chord: Chord


def draw_motif(dice: Dice, meter: Meter, character: str) -> Motif:
    """Return a one-bar motif of a character: `calm`, `flowing`, `lively` or `syncopated`."""
    lengths = dice.pick(RHYTHMS[meter][character])
    gesture = dice.pick(GESTURES)
    n_steps = sum(length > 0 for length in lengths) - 1
    return Motif(lengths, tuple(gesture[index % len(gesture)] for index in range(n_steps)))


def end_motif(dice: Dice, bar_beats: float, cadence: str) -> Motif:
    """Return the last bar of a phrase: one long note, and after a half cadence perhaps an upbeat to what follows."""
    upbeat = 0.5 if bar_beats in (3, 2) and dice.chance(0.4) else 1
    if cadence == "half" and dice.chance(0.6):
        return Motif((bar_beats - upbeat, upbeat), (dice.pick((1, -1)),))
    return Motif((bar_beats - upbeat, -upbeat), ()) if dice.chance(0.5) else Motif((bar_beats,), ())


def lay_slots(
    dice: Dice, motifs: Sequence[Motif], spans: Sequence[Span], *, bar_beats: float, center: float, cadence: str
) -> list[Slot]:
    """Return the notes of a phrase, one motif a bar, that arches about the pitch `center`."""
    slots, start = [], spans[0].onset_beats
    length, reach = len(motifs) * bar_beats, dice.between(3.0, 6.0)
    peak = dice.between(0.35, 0.7)
    for bar, motif in enumerate(motifs):
        now, steps = bar * bar_beats, [None, *motif.steps]
        for duration in motif.lengths:
            if duration > 0:
                place = now / length
                arch = place / peak if place < peak else (1 - place) / (1 - peak)
                each = chord_at(spans, start + now)
                weight = 1.0 if now % bar_beats == 0 else 0.6 if now % 1 == 0 else 0.15
                is_goal = bar == len(motifs) - 1 and now % bar_beats == 0
                goal = () if not is_goal else (each.root,) if cadence == "authentic" else each.pitch_classes[:3]
                step = steps.pop(0)
                slots.append(Slot(start + now, duration, each, step, weight, center + reach * (2 * arch - 1), goal))
            now += abs(duration)
    return slots


def chord_at(spans: Sequence[Span], beat: float) -> Chord:
    """Return the chord that sounds at a beat; the last one also for what comes after it."""
    for span in spans:
        if beat < span.onset_beats + span.duration_beats - 1e-6:
            return span.chord
    return spans[-1].chord


def fit_melody(
    dice: Dice,
    key: Key,
    slots: Sequence[Slot],
    *,
    low: int,
    high: int,
    fixed: Sequence[int] = (),
    before: int | None = None,
) -> list[Tone]:
    """Return the slots with the pitches, `low` to `high`, that fit gestures and harmony best.

    Args:
        fixed: pitches of the first notes, where a phrase begins like an earlier one.
        before: the pitch that sounded just before, to which the first note should be near.
    """
    ladder = np.stack([_degree_pitches(slot.chord, key, low, high) for slot in slots])  # [n_slots, n_degrees]
    steps = np.arange(ladder.shape[1])[None, :] - np.arange(ladder.shape[1])[:, None]
    total, back = np.zeros(0), []
    for index, slot in enumerate(slots):
        pitches = ladder[index]
        cost = _note_cost(slot, pitches) + 0.8 * dice.floats(len(pitches))
        cost = cost + 50.0 * np.maximum(0, np.maximum(low - pitches, pitches - high))
        if index < len(fixed):
            cost = cost + 1000.0 * np.abs(pitches - fixed[index])
        if index == 0 and before is not None:
            cost = cost + 0.25 * np.maximum(0, np.abs(pitches - before) - 2)
        if index:
            paths = total[:, None] + _motion_cost(slots[index - 1], slot, ladder[index - 1], pitches, steps)
            back.append(paths.argmin(axis=0))
            cost = cost + paths.min(axis=0)
        total = cost
    best = [int(total.argmin())]
    for came_from in reversed(back):
        best.append(int(came_from[best[-1]]))
    return [
        Tone(slot.onset_beats, slot.duration_beats, int(ladder[index, degree]), slot.chord)
        for index, (slot, degree) in enumerate(zip(slots, reversed(best), strict=True))
    ]


def _degree_pitches(each: Chord, key: Key, low: int, high: int) -> np.ndarray:
    """Return the pitch of every scale degree from the octave below `low` to the one above `high`."""
    offsets = np.array([(tone - key.tonic) % 12 for tone in scale_for(each)])
    first = low - (low - key.tonic) % 12
    return (first + 12 * np.arange((high - first) // 12 + 1)[:, None] + offsets).ravel()


def _note_cost(slot: Slot, pitches: np.ndarray) -> np.ndarray:
    is_foreign = ~np.isin(pitches % 12, slot.chord.pitch_classes)
    cost = is_foreign * (0.3 + 3.5 * slot.weight + 2.0 * (slot.duration_beats >= 1.5))
    cost = cost + 0.13 * np.abs(pitches - slot.target)
    return cost + 12.0 * ~np.isin(pitches % 12, slot.goal) if slot.goal else cost


def _motion_cost(before: Slot, after: Slot, old: np.ndarray, new: np.ndarray, steps: np.ndarray) -> np.ndarray:
    size, semitones = np.abs(steps), np.abs(new[None, :] - old[:, None])
    if after.step is None:
        cost = 0.35 * np.maximum(0, size - 1) + 1.6 * (size == 0)
    else:
        cost = 1.3 * np.minimum(np.abs(steps - after.step), 4) + 1.4 * (size == 0)
    foreign = ~np.isin(old % 12, before.chord.pitch_classes)[:, None] | ~np.isin(new % 12, after.chord.pitch_classes)
    cost = cost + 4.0 * (foreign & (size > 1)) + 1.0 * (foreign & (size == 0))
    cost = cost + 5.0 * ((semitones == 3) & (size == 1)) + 2.5 * (semitones == 6)
    return cost + 0.6 * np.maximum(0, semitones - 7)


def embellish(dice: Dice, tones: Sequence[Tone], share: float, shortest_beats: float = 1.0) -> list[Tone]:
    """Return a variation: some notes of `shortest_beats` or more are divided by a passing or a neighbour note."""
    varied = []
    for index, tone in enumerate(tones):
        after = tones[index + 1] if index + 1 < len(tones) else None
        added = None
        if after is not None and shortest_beats <= tone.duration_beats <= 2 and dice.chance(share):
            added = _between(dice, tone, after)
        if added is None:
            varied.append(tone)
            continue
        half = tone.duration_beats / 2
        varied.append(Tone(tone.onset_beats, half, tone.pitch, tone.chord))
        varied.append(Tone(tone.onset_beats + half, half, added, tone.chord))
    return varied


def _between(dice: Dice, tone: Tone, after: Tone) -> int | None:
    """Return a pitch that leads from a note to the next, or None where a rest or another interval lies between."""
    if after.onset_beats - tone.onset_beats - tone.duration_beats > 1e-6:
        return None
    if after.pitch == tone.pitch:
        return neighbour_pitch(tone.chord, tone.pitch, dice.pick((1, -1)))
    return passing_pitch(tone.chord, tone.pitch, after.pitch)
