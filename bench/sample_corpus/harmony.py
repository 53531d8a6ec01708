"""Keys, chords and phrases: functional harmony as a weighted walk that always arrives at its cadence."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from bench.sample_corpus.dice import Dice

MAJOR_SCALE = (0, 2, 4, 5, 7, 9, 11)
MINOR_SCALE = (0, 2, 3, 5, 7, 8, 10)
RISING_MINOR_SCALE = (0, 2, 3, 5, 7, 9, 11)  # melodic minor, on the way up to the tonic
TONIC_NAMES = ("c", "d-flat", "d", "e-flat", "e", "f", "f-sharp", "g", "a-flat", "a", "b-flat", "b")
MINOR_TONIC_NAMES = ("c", "c-sharp", "d", "e-flat", "e", "f", "f-sharp", "g", "g-sharp", "a", "b-flat", "b")


@dataclass(frozen=True, slots=True)
class Key:
    tonic: int  # pitch class 0-11
    is_minor: bool

    @property
    def name(self) -> str:
        names = MINOR_TONIC_NAMES if self.is_minor else TONIC_NAMES
        return f"{names[self.tonic]}-{'minor' if self.is_minor else 'major'}"

    @property
    def sharps(self) -> int:
        """Sharps of the key signature, flats counted as negative, -6 to 6."""
        sharps = (self.tonic + 3 * self.is_minor) * 7 % 12
        keep_six = 6 if not self.is_minor else 5  # F sharp major, but E flat minor
        return sharps if sharps <= keep_six else sharps - 12

    @property
    def scale(self) -> tuple[int, ...]:
        return MINOR_SCALE if self.is_minor else MAJOR_SCALE

    def relative(self) -> "Key":
        return Key((self.tonic + (3 if self.is_minor else 9)) % 12, not self.is_minor)

    def on_degree(self, semitones: int) -> "Key":
        """Return the key of the same mode that lies `semitones` above."""
        return Key((self.tonic + semitones) % 12, self.is_minor)


@dataclass(frozen=True, slots=True)
class Chord:
    numeral: str
    key: Key
    pitch_classes: tuple[int, ...]  # root, third, fifth and perhaps seventh
    bass: int  # pitch class
    leading_tone: int | None  # pitch class that wants to rise a semitone
    seventh: int | None  # pitch class that wants to fall a step

    @property
    def root(self) -> int:
        return self.pitch_classes[0]


@dataclass(frozen=True, slots=True)
class Span:
    """A chord and the time it lasts."""

    onset_beats: float
    duration_beats: float
    chord: Chord


# Semitones above the tonic, with the seventh last.
MAJOR_CHORDS = {
    "I": (0, 4, 7, 11), "ii": (2, 5, 9, 0), "iii": (4, 7, 11, 2), "IV": (5, 9, 0, 4), "iv": (5, 8, 0, 3),
    "V": (7, 11, 2, 5), "vi": (9, 0, 4, 7), "viio": (11, 2, 5, 9), "bVII": (10, 2, 5, 8),
}  # fmt: skip
MINOR_CHORDS = {
    "i": (0, 3, 7, 10), "I": (0, 4, 7, 10), "iio": (2, 5, 8, 0), "III": (3, 7, 10, 2), "iv": (5, 8, 0, 3),
    "v": (7, 10, 2, 5), "V": (7, 11, 2, 5), "VI": (8, 0, 3, 7), "VII": (10, 2, 5, 8), "viio": (11, 2, 5, 8),
    "N": (1, 5, 8, 0),
}  # fmt: skip
FIGURES = {"": (3, 0), "6": (3, 1), "64": (3, 2), "7": (4, 0), "65": (4, 1), "43": (4, 2), "42": (4, 3)}
NUMERAL = re.compile(r"(?P<base>b?[iIvVN]+o?)(?P<figure>64|65|43|42|6|7|)(?:/(?P<target>\w+))?")


@lru_cache(maxsize=4096)
def chord(key: Key, numeral: str) -> Chord:
    """Return the chord of a roman numeral with figured bass, such as `ii65`, `viio6` or `V65/V`, in a key."""
    parts = NUMERAL.fullmatch(numeral)
    assert parts is not None, f"numeral {numeral!r} is not in our own tables"
    table = MINOR_CHORDS if key.is_minor else MAJOR_CHORDS
    if parts["target"]:
        root = table[parts["target"]][0] + 7
        tones = (root, root + 4, root + 7, root + 10)
    else:
        tones = table[parts["base"]]
    n_tones, bass = FIGURES[parts["figure"]]
    pitch_classes = tuple((key.tonic + tone) % 12 for tone in tones[:n_tones])
    is_dominant = parts["base"] == "V"
    leading = pitch_classes[1] if is_dominant else pitch_classes[0] if parts["base"] == "viio" else None
    return Chord(numeral, key, pitch_classes, pitch_classes[bass], leading, pitch_classes[3] if n_tones == 4 else None)


# What may follow what, and how gladly.
MAJOR_MOTION = {
    "I": {"I6": 2, "IV": 3, "V": 2, "vi": 2.5, "ii6": 1.5, "ii": 1, "iii": 0.7, "V6": 2, "viio6": 1.2, "V43": 0.8,
          "V65/IV": 0.5, "V65/V": 0.3, "IV6": 0.5},
    "I6": {"IV": 3, "ii6": 2, "V": 1, "viio6": 0.6, "I": 0.7, "ii65": 1, "V43": 0.5, "V65/IV": 0.3},
    "ii": {"V": 3, "V7": 1.5, "V6": 1, "V65": 1, "viio6": 0.5},
    "ii6": {"V": 4, "V7": 1.5, "V42": 0.7},
    "ii65": {"V": 3, "V7": 1, "V42": 0.5},
    "iii": {"vi": 4, "IV": 3},
    "IV": {"V": 2.5, "I": 1.2, "I6": 2, "ii": 1.5, "ii6": 0.7, "viio6": 1, "V42": 0.8, "V65": 0.5},
    "IV6": {"V6": 2, "V65": 2, "I6": 1, "ii65": 0.5},
    "V": {"I": 4, "vi": 2, "V42": 1, "I6": 0.5, "V65/vi": 0.5},
    "V6": {"I": 4, "V65": 0.7, "vi": 0.6},
    "V65": {"I": 1},
    "V42": {"I6": 1},
    "V43": {"I": 1, "I6": 1},
    "V7": {"I": 4, "vi": 2},
    "vi": {"ii": 3, "IV": 3, "ii6": 1.5, "V": 1, "iii": 0.7, "V65/V": 0.5, "I6": 0.7, "ii65": 1, "V6": 0.6},
    "viio6": {"I": 3, "I6": 2},
    "V65/IV": {"IV": 1},
    "V65/V": {"V": 1},
    "V65/vi": {"vi": 1},
}  # fmt: skip
MINOR_MOTION = {
    "i": {"i6": 2, "iv": 2.5, "V": 2, "VI": 2, "iio6": 1.5, "V6": 2, "viio6": 1.2, "VII": 0.8, "III": 0.7, "iv6": 0.8,
          "V43": 0.8, "V65/iv": 0.4, "N6": 0.2},
    "i6": {"iv": 3, "iio6": 2, "viio6": 0.6, "i": 0.7, "V43": 0.5, "V": 1, "iio65": 1},
    "iio6": {"V": 4, "V7": 1.5, "V42": 0.7},
    "iio65": {"V": 3, "V7": 1, "V42": 0.5},
    "III": {"VI": 3, "iv": 2, "iio6": 1},
    "iv": {"V": 2.5, "i": 1, "i6": 2, "iio6": 1, "VII": 1.2, "V42": 0.8, "viio6": 0.6},
    "iv6": {"V": 3, "V65": 0.7},
    "V": {"i": 4, "VI": 2, "V42": 1, "i6": 0.5},
    "V6": {"i": 4, "V65": 0.7},
    "V65": {"i": 1},
    "V42": {"i6": 1},
    "V43": {"i": 1, "i6": 1},
    "V7": {"i": 4, "VI": 2},
    "VI": {"iio6": 2, "iv": 3, "III": 1, "V": 0.8, "VII": 0.8, "iio65": 1, "N6": 0.3},
    "VII": {"III": 4},
    "N6": {"V": 1, "V42": 0.5},
    "viio6": {"i": 3, "i6": 2},
    "V65/iv": {"iv": 1},
}  # fmt: skip

# Ways to end a phrase, with their weights.
MAJOR_CADENCES = {
    "authentic": {("ii6", "V7", "I"): 3, ("IV", "V7", "I"): 2, ("ii65", "V7", "I"): 3, ("ii6", "I64", "V7", "I"): 2,
                  ("IV", "I64", "V7", "I"): 2, ("vi", "ii65", "V", "I"): 1.5, ("V65/V", "V7", "I"): 0.7,
                  ("V7", "I"): 0.2, ("V", "I"): 0.2},
    "half": {("IV", "V"): 2, ("ii6", "V"): 3, ("V65/V", "V"): 1.5, ("vi", "ii6", "V"): 1.5, ("I6", "ii65", "V"): 1.5},
}  # fmt: skip
MINOR_CADENCES = {
    "authentic": {("iio6", "V7", "i"): 3, ("iv", "V7", "i"): 3, ("iio65", "V7", "i"): 3, ("iv", "i64", "V7", "i"): 2,
                  ("iio6", "i64", "V7", "i"): 2, ("VI", "iio65", "V", "i"): 1.5, ("N6", "V7", "i"): 0.5,
                  ("V7", "i"): 0.2, ("V", "i"): 0.2},
    "half": {("iv6", "V"): 3, ("iio6", "V"): 2, ("iv", "V"): 2, ("VI", "iio65", "V"): 1.5},
}  # fmt: skip


def build_phrase(dice: Dice, key: Key, n_chords: int, cadence: str, start: str | None = None) -> list[Chord]:
    """Return `n_chords` (3 or more) chords from `start` (the tonic when None) to a cadence, `authentic` or `half`."""
    start = start or ("i" if key.is_minor else "I")
    motion = MINOR_MOTION if key.is_minor else MAJOR_MOTION
    weights = _fitting_cadences(key, n_chords, cadence, start)
    assert weights, f"no {cadence} cadence fits {n_chords} chords from {start} in {key.name}"
    tail = dice.pick(list(weights), list(weights.values()))
    numerals = _walk(dice, motion, start, tail[0], n_chords - len(tail))
    return [chord(key, numeral) for numeral in (*numerals, *tail)]


def can_build_phrase(key: Key, n_chords: int, cadence: str, start: str) -> bool:
    """Return whether `build_phrase` finds a way with these arguments."""
    return bool(_fitting_cadences(key, n_chords, cadence, start))


def _fitting_cadences(key: Key, n_chords: int, cadence: str, start: str) -> dict[tuple[str, ...], float]:
    motion = MINOR_MOTION if key.is_minor else MAJOR_MOTION
    cadences = (MINOR_CADENCES if key.is_minor else MAJOR_CADENCES)[cadence]
    return {
        tail: weight
        for tail, weight in cadences.items()
        if n_chords > len(tail) and _reach(motion, tail[0], n_chords - len(tail)).get(start, 0) > 0
    }


def _reach(motion: dict[str, dict[str, float]], goal: str, n_steps: int) -> dict[str, float]:
    """Return for each chord the total weight of all walks of `n_steps` from it to the goal."""
    reach = {goal: 1.0}
    for _ in range(n_steps):
        reach = {
            name: sum(weight * reach.get(after, 0) for after, weight in follow.items())
            for name, follow in motion.items()
        }
    return reach


def _walk(dice: Dice, motion: dict[str, dict[str, float]], start: str, goal: str, n_steps: int) -> list[str]:
    """Return the chords before the goal of a random walk that meets it after `n_steps`."""
    names = [start]
    for left in range(n_steps - 1, 0, -1):
        reach = _reach(motion, goal, left)
        options = [(name, weight * reach.get(name, 0)) for name, weight in motion[names[-1]].items()]
        options = [(name, weight) for name, weight in options if weight > 0]
        names.append(dice.pick([name for name, _ in options], [weight for _, weight in options]))
    return names


def lay_out(chords: Sequence[Chord], durations: Sequence[float], start_beat: float = 0.0) -> list[Span]:
    """Return the chords one after the other from `start_beat`, each for its duration in quarter notes."""
    spans, now = [], start_beat
    for each, duration in zip(chords, durations, strict=True):
        spans.append(Span(now, duration, each))
        now += duration
    return spans


@lru_cache(maxsize=4096)
def scale_for(each: Chord) -> tuple[int, ...]:
    """Return the seven pitch classes, tonic first, of the key's scale bent to hold every tone of the chord."""
    tones = [(each.key.tonic + step) % 12 for step in each.key.scale]
    base = each.numeral.lstrip("b")
    for index, pitch_class in enumerate(each.pitch_classes):
        if pitch_class in tones:
            continue
        is_lowered = index == 3 or base[0] in "iN" or each.numeral[0] == "b"
        below, above = (pitch_class - 1) % 12, (pitch_class + 1) % 12
        tones[tones.index(above if is_lowered and above in tones else below)] = pitch_class
    return tuple(tones)


def passing_pitch(each: Chord, first: int, second: int) -> int | None:
    """Return the scale tone between two pitches a third apart, or None when they are no third apart."""
    if abs(second - first) not in (3, 4):
        return None
    rel = {(pitch - each.key.tonic) % 12 for pitch in (first, second)}
    steps = RISING_MINOR_SCALE if each.key.is_minor and 11 in rel else None
    tones = {(each.key.tonic + step) % 12 for step in steps} if steps else set(scale_for(each))
    between = [pitch for pitch in range(min(first, second) + 1, max(first, second)) if pitch % 12 in tones]
    return between[0] if len(between) == 1 else None


def neighbour_pitch(each: Chord, pitch: int, direction: int) -> int | None:
    """Return the scale tone next above (direction 1) or below (-1), or None where that lies more than a tone away."""
    tones = scale_for(each)
    for distance in (1, 2):
        if (pitch + direction * distance) % 12 in tones:
            return pitch + direction * distance
    return None
