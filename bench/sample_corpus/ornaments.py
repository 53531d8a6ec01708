"""Suspensions, passing and neighbour notes for four voices, each kept only where it breaks no rule."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from bench.sample_corpus.dice import Dice
from bench.sample_corpus.harmony import Span, neighbour_pitch, passing_pitch
from bench.sample_corpus.voicing import PAIRS, VOICE_RANGES


@dataclass(slots=True)
class Texture:
    """The chords of the whole piece in time, each split into a first and a second half that ornaments may change."""

    spans: list[Span]
    first: np.ndarray  # pitches [n_chords, 4] from bass to soprano in the first half of each chord
    second: np.ndarray  # the same in its second half
    held: np.ndarray  # bool, same shape: the first half is tied to the chord before
    line_ends: list[int]  # index of the last chord of each phrase

    def split(self, index: int) -> float:
        """Return where the second half begins, in quarter notes after the chord; 0 where it is not divided."""
        return {1.0: 0.5, 1.5: 1.0, 2.0: 1.0}.get(self.spans[index].duration_beats, 0.0)


def ornament(dice: Dice, texture: Texture) -> Texture:
    """Add suspensions, passing and neighbour notes wherever they break no rule; changes and returns `texture`."""
    busy = dice.between(0.5, 0.95)
    for index in range(1, len(texture.spans) - 1):
        if index - 1 not in texture.line_ends and texture.split(index):
            for voice in (3, 2, 1):
                if dice.chance(0.45) and _suspend(texture, index, voice):
                    break
    for index in range(len(texture.spans) - 1):
        if index in texture.line_ends or not texture.split(index):
            continue
        n_added = 0
        for voice in sorted(range(4), key=dict(enumerate(dice.floats(4))).__getitem__):
            chance = busy * (0.5 if n_added else 1.0) * (1.2 if voice in (0, 3) else 0.9)
            n_added += dice.chance(chance) and _divide(dice, texture, index, voice)
    return texture


def _suspend(texture: Texture, index: int, voice: int) -> bool:
    """Hold a voice over into a chord when that makes a prepared 4-3, 7-6 or 9-8 that falls by step."""
    held, goal = int(texture.second[index - 1, voice]), int(texture.first[index, voice])
    bass = int(texture.first[index, 0])
    others = [int(pitch) for other, pitch in enumerate(texture.first[index]) if other not in (voice, 0)]
    is_dissonance = (held - bass) % 12 in (1, 2, 5, 10, 11) and held % 12 not in texture.spans[
        index
    ].chord.pitch_classes
    if held - goal not in (1, 2) or not is_dissonance or any(other % 12 == goal % 12 for other in others):
        return False
    is_clean = _try(texture, texture.first, index=index, voice=voice, pitch=held)
    texture.held[index, voice] |= is_clean
    return is_clean


def _divide(dice: Dice, texture: Texture, index: int, voice: int) -> bool:
    """Fill the second half of a chord with a passing note to the next, or with a neighbour between two equal notes."""
    here, after = int(texture.first[index, voice]), int(texture.first[index + 1, voice])
    if texture.held[index, voice] or texture.held[index + 1, voice]:
        return False
    each = texture.spans[index].chord
    pitch = passing_pitch(each, here, after)
    if here == after and voice and dice.chance(0.35):
        pitch = neighbour_pitch(each, here, dice.pick((1, -1)))
    return pitch is not None and _try(texture, texture.second, index=index, voice=voice, pitch=pitch)


def _try(texture: Texture, half: np.ndarray, *, index: int, voice: int, pitch: int) -> bool:
    """Put a pitch into one half of a chord and keep it if ranges, order of voices and motion around it stay clean."""
    old = int(half[index, voice])
    half[index, voice] = pitch
    low, high = VOICE_RANGES[voice]
    around = [
        texture.second[index - 1],
        texture.first[index],
        texture.second[index],
        texture.first[index + 1],
    ]
    around = around[index == 0 :]
    others = np.delete(half[index], voice)
    is_clean = (
        low <= pitch <= high
        and bool((np.diff(half[index]) > 0).all())
        and not (np.abs(others - pitch) % 12 == 1).any()
        and not any(has_parallels(one, two) for one, two in pairwise(around))
    )
    if not is_clean:
        half[index, voice] = old
    return is_clean


def has_parallels(before: np.ndarray, after: np.ndarray) -> bool:
    """Return whether two voices move from one perfect fifth, octave or unison to another of the same kind."""
    for low, high in PAIRS:
        interval = (before[high] - before[low]) % 12
        is_same = interval in (0, 7) and interval == (after[high] - after[low]) % 12
        if is_same and before[low] != after[low] and before[high] != after[high]:
            return True
    return False
