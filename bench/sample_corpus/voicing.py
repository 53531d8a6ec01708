"""Four voices from a row of chords: every legal voicing of each chord, and the cheapest path through them.

The costs are the rules of strict part-writing: ranges, spacing, doubling, no parallel fifths or octaves, leading
tones that rise, sevenths that fall, small steps. Voices are counted from the bass: 0 bass, 1 tenor, 2 alto, 3 soprano.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from bench.sample_corpus.dice import Dice
from bench.sample_corpus.harmony import Chord

VOICE_NAMES = ("bass", "tenor", "alto", "soprano")
VOICE_RANGES = ((40, 60), (48, 67), (55, 74), (60, 79))  # E2-C4, C3-G4, G3-D5, C4-G5, both ends included
PAIRS = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))
FORBIDDEN = 60.0

# Cost of a melodic step by its size in semitones, 0 to 12 and above.
SOPRANO_STEP = np.array([3.2, 0, 0, 0.6, 0.7, 1.9, 9, 3.5, 8, 9, 12, 14, 10, 20])
INNER_STEP = np.array([0.4, 0.1, 0.1, 0.5, 0.7, 1.8, 9, 4, 9, 9, 12, 14, 14, 20])
BASS_STEP = np.array([1.2, 0, 0, 0.4, 0.5, 0.4, 5, 0.6, 3, 4, 9, 9, 1.5, 20])
STEP_COSTS = (BASS_STEP, INNER_STEP, INNER_STEP, SOPRANO_STEP)


@lru_cache(maxsize=1024)
def list_voicings(each: Chord) -> tuple[np.ndarray, np.ndarray]:
    """Return all legal voicings, int [n, 4] from bass to soprano, and the cost of each by itself, float [n]."""
    choices = [
        [pitch for pitch in range(low, high + 1) if pitch % 12 in each.pitch_classes] for low, high in VOICE_RANGES
    ]
    choices[0] = [pitch for pitch in choices[0] if pitch % 12 == each.bass]
    grid = np.stack(np.meshgrid(*choices, indexing="ij"), axis=-1).reshape(-1, 4)
    gaps = np.diff(grid, axis=1)
    counts = np.stack([(grid % 12 == pitch_class).sum(axis=1) for pitch_class in each.pitch_classes], axis=1)
    legal = (gaps >= 0).all(axis=1) & (gaps[:, 0] <= 19) & (gaps[:, 1:] <= 12).all(axis=1)
    legal &= (counts[:, 0] >= 1) & (counts[:, 1] >= 1)
    if each.bass != each.root or len(each.pitch_classes) == 4:
        legal &= (counts[:, 2] >= 1) | (len(each.pitch_classes) == 4 and each.bass == each.root)
    for alone in (each.leading_tone, each.seventh):
        if alone is not None:
            legal &= counts[:, each.pitch_classes.index(alone)] == 1
    grid, gaps, counts = grid[legal], gaps[legal], counts[legal]
    doubled_third = counts[:, 1] > 1
    cost = 1.2 * doubled_third * ("o" not in each.numeral) + 0.9 * (counts[:, 2] == 0) + 0.9 * (counts[:, 0] > 2)
    if each.numeral.endswith("64"):
        cost = cost + 4.0 * (counts[:, 2] < 2)
    cost = cost + 0.9 * (gaps == 0).sum(axis=1) + 0.3 * (gaps[:, 0] > 14) + 0.25 * np.maximum(gaps[:, 1:] - 8, 0).sum(1)
    return grid, cost


@lru_cache(maxsize=512)
def _transition_cost(before: Chord, after: Chord) -> np.ndarray:
    """Return the cost of moving from each voicing of `before` to each of `after`, float [n_before, n_after]."""
    old, new = list_voicings(before)[0][:, None, :], list_voicings(after)[0][None, :, :]
    step = new - old
    cost = np.zeros(step.shape[:2])
    for voice, by_size in enumerate(STEP_COSTS):
        cost += by_size[np.minimum(np.abs(step[..., voice]), 13)]
    for low, high in PAIRS:
        interval = (old[..., high] - old[..., low]) % 12
        is_same = interval == (new[..., high] - new[..., low]) % 12
        cost += FORBIDDEN * (is_same & np.isin(interval, (0, 7)) & (step[..., low] != 0) & (step[..., high] != 0))
    outer = (new[..., 3] - new[..., 0]) % 12
    is_hidden = np.isin(outer, (0, 7)) & (step[..., 0] * step[..., 3] > 0) & (np.abs(step[..., 3]) > 2)
    cost += 5.0 * is_hidden
    cost += 4.0 * ((new[..., :-1] > old[..., 1:]) | (new[..., 1:] < old[..., :-1])).sum(axis=-1)  # voices overlap
    if before.pitch_classes != after.pitch_classes:
        cost += _tendency_cost(before, old, step)
    if before.key.is_minor:  # the augmented second between the flat sixth and the raised seventh
        flat_sixth, raised = (before.key.tonic + 8) % 12, (before.key.tonic + 11) % 12
        ends = (old % 12 == flat_sixth) & (new % 12 == raised) | (old % 12 == raised) & (new % 12 == flat_sixth)
        cost += 12.0 * (ends & (np.abs(step) == 3)).sum(axis=-1)
    return cost


def _tendency_cost(before: Chord, old: np.ndarray, step: np.ndarray) -> np.ndarray:
    cost = np.zeros(step.shape[:2])
    if before.leading_tone is not None:
        is_stuck = (old % 12 == before.leading_tone) & ~np.isin(step, (0, 1))
        cost += (is_stuck * np.array([8.0, 2.5, 2.5, 9.0])).sum(axis=-1)
    if before.seventh is not None:
        cost += 9.0 * ((old % 12 == before.seventh) & ~np.isin(step, (0, -1, -2))).sum(axis=-1)
    return cost


def voice_chords(
    dice: Dice, chords: Sequence[Chord], soprano_targets: Sequence[float], cadences: Sequence[int]
) -> np.ndarray:
    """Return the cheapest voicing of each chord, int [n_chords, 4] from bass to soprano.

    Args:
        soprano_targets: pitch near which the top voice should be, one for each chord.
        cadences: indices of the chords that end a phrase; on a tonic the soprano prefers the root or third there.
    """
    total, back = np.zeros(0), []
    for index, each in enumerate(chords):
        grid, cost = list_voicings(each)
        cost = cost + 1.2 * dice.floats(len(grid)) + 0.32 * np.abs(grid[:, 3] - soprano_targets[index])
        if index in cadences and each.numeral in ("I", "i"):
            cost = cost + 4.0 * (grid[:, 3] % 12 != each.root) + 3.0 * (grid[:, 3] % 12 == each.pitch_classes[2])
        if index:
            paths = total[:, None] + _transition_cost(chords[index - 1], each)
            back.append(paths.argmin(axis=0))
            cost = cost + paths.min(axis=0)
        total = cost
    best = [int(total.argmin())]
    for came_from in reversed(back):
        best.append(int(came_from[best[-1]]))
    return np.stack([list_voicings(each)[0][choice] for each, choice in zip(chords, reversed(best), strict=True)])
