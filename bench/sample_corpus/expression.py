"""How a piece is played: tempo that breathes with the phrases, loudness that swells, hands that are not machines."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bench.sample_corpus.dice import Dice


@dataclass(frozen=True, slots=True)
class Phrase:
    """A stretch of beats played in one breath."""

    start_beat: float
    end_beat: float
    loudness: float  # velocity in its middle
    is_section_end: bool = False

    def place(self, beat: float) -> float:
        """Return how far the beat lies inside the phrase, 0-1."""
        return min(1.0, max(0.0, (beat - self.start_beat) / (self.end_beat - self.start_beat)))


def phrase_at(phrases: Sequence[Phrase], beat: float) -> Phrase:
    """Return the phrase that holds the beat; the last one also holds what comes after it."""
    for phrase in phrases:
        if beat < phrase.end_beat - 1e-6:
            return phrase
    return phrases[-1]


def shape_tempo(
    dice: Dice, phrases: Sequence[Phrase], quarters_per_minute: float, depth: float, grid_beats: float
) -> list[tuple[float, float]]:
    """Return a tempo event for every `grid_beats`: faster inside a phrase, slower at its ends, slowest at the last.

    Args:
        depth: 0 plays in strict time, 1 freely.
    """
    tempos = []
    start, end = phrases[0].start_beat, phrases[-1].end_beat
    drift = 0.0
    for index in range(max(1, round((end - start) / grid_beats))):
        beat = start + index * grid_beats
        phrase = phrase_at(phrases, beat)
        drift = 0.7 * drift + dice.between(-0.012, 0.012)
        factor = 1 + depth * (0.09 * (math.sin(math.pi * phrase.place(beat)) - 0.55) + drift)
        left = phrase.end_beat - beat
        if phrase.is_section_end and left <= 2 * grid_beats + 1e-6:
            factor *= 1 - depth * (0.14 if left <= grid_beats + 1e-6 else 0.07)
        factor *= 1 - (0.15 + 0.2 * depth) * max(0.0, 1 - (end - beat) / (5 * grid_beats))
        tempos.append((beat if index else 0.0, round(quarters_per_minute * factor, 3)))
    return tempos


def loudness_at(phrases: Sequence[Phrase], beat: float, swell: float = 12.0) -> float:
    """Return a velocity that rises by `swell` to two thirds of the phrase and falls again."""
    phrase = phrase_at(phrases, beat)
    return phrase.loudness + swell * (math.sin(math.pi * phrase.place(beat) ** 1.3) - 0.5)
