"""Harmony of a piece as Roman numerals, one a bar, and the distance of two pieces in a space learnt from numerals.

Numerals become vectors by Word2Vec (Mikolov et al. 2013: continuous bag of words, negative sampling). A piece is the
mean of its numerals' vectors, and the distance of two pieces is 1 - cosine.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from tasks.music.arrays import FloatArray, IntArray
from tasks.music.bars import place_notes
from tasks.music.metrics.bar_metrics import bar_chords
from tasks.music.score import Score

# Numerals of the twelve degrees above the tonic; without accidental where the degree belongs to the scale.
MAJOR = ("I", "bII", "II", "bIII", "III", "IV", "#IV", "V", "bVI", "VI", "bVII", "VII")
MINOR = ("I", "bII", "II", "III", "#III", "IV", "#IV", "V", "VI", "#VI", "VII", "#VII")
# How well the twelve degrees fit a key: Krumhansl and Kessler 1982.
MAJOR_PROFILE = (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88)
MINOR_PROFILE = (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17)

VECTOR_SIZE, WINDOW, MIN_COUNT = 100, 4, 2  # as published for the Hourglass
N_NOISE, N_EPOCHS, FIRST_RATE, LAST_RATE = 5, 5, 0.025, 0.0001  # as usual for Word2Vec
BATCH = 16  # numerals learnt at once
_STEPS = np.array([*range(-WINDOW, 0), *range(1, WINDOW + 1)])


def roman_numerals(score: Score) -> list[str]:
    """Return the numeral of each bar in which pitched notes begin, relative to the key of these notes.

    A bar's chord is the major or minor triad of `bar_chords`; minor ones have small letters.
    """
    notes = place_notes(score)
    if notes.is_drum.all():
        return []
    pitched = ~notes.is_drum
    weights = np.bincount(notes.symbol[pitched] % 12, notes.duration[pitched], 12).astype(np.float64)
    tonic, is_minor_key = key_of(weights)
    degrees = MINOR if is_minor_key else MAJOR
    is_minor, root = np.divmod(bar_chords(notes), 12)
    names = [degrees[degree] for degree in ((root - tonic) % 12).tolist()]
    return [name.lower() if minor else name for name, minor in zip(names, is_minor.tolist(), strict=True)]


def key_of(weights: FloatArray) -> tuple[int, bool]:
    """Return tonic and whether the key is minor, of the time of each pitch class; of equally good keys the first.

    The key is the one whose profile correlates best (Krumhansl and Schmuckler).
    """
    profiles = np.array([MAJOR_PROFILE, MINOR_PROFILE])
    profiles = (profiles - profiles.mean(axis=1, keepdims=True)) / profiles.std(axis=1, keepdims=True)
    fits = np.array([[weights @ np.roll(profile, tonic) for tonic in range(12)] for profile in profiles])
    is_minor, tonic = divmod(int(np.argmax(fits.round(9))), 12)
    return tonic, bool(is_minor)


def train_vectors(pieces: Sequence[Sequence[str]], seed: int = 0) -> dict[str, FloatArray]:
    """Return a vector for each numeral that the pieces have `MIN_COUNT` times; the same pieces give the same bytes."""
    counts = Counter(numeral for piece in pieces for numeral in piece)
    names = sorted(name for name, n in counts.items() if n >= MIN_COUNT)
    places = {name: place for place, name in enumerate(names)}
    texts = [np.array([places[name] for name in piece if name in places], np.int64) for piece in pieces]
    texts = [text for text in texts if len(text) > 1]
    rng = np.random.default_rng(seed)
    vectors, outputs = (rng.random((len(names), VECTOR_SIZE)) - 0.5) / VECTOR_SIZE, np.zeros((len(names), VECTOR_SIZE))
    if texts:
        noise = np.array([counts[name] for name in names]) ** 0.75
        target, context = np.concatenate(texts), np.concatenate([_contexts(text) for text in texts])
        n_batches = N_EPOCHS * -(-len(target) // BATCH)
        rates = iter(np.linspace(FIRST_RATE, LAST_RATE, n_batches))
        for _ in range(N_EPOCHS):
            is_near = np.abs(_STEPS) <= rng.integers(1, WINDOW + 1, (len(target), 1))  # windows of different sizes
            shares = ((context >= 0) & is_near).astype(np.float64)
            shares /= np.maximum(shares.sum(axis=1, keepdims=True), 1)
            drawn = rng.choice(len(names), (len(target), N_NOISE), p=noise / noise.sum())
            for begin in range(0, len(target), BATCH):
                at = slice(begin, begin + BATCH)
                _learn(vectors, outputs, context[at], shares[at], target[at], drawn[at], next(rates))
    return dict(zip(names, vectors, strict=True))


def _contexts(text: IntArray) -> IntArray:
    """Return the neighbours of each place of a text, int64[N, 2 * WINDOW]; -1 beyond its ends."""
    padded = np.pad(text, WINDOW, constant_values=-1)
    return padded[np.arange(WINDOW, WINDOW + len(text))[:, None] + _STEPS]


def _learn(
    vectors: FloatArray, outputs: FloatArray, context: IntArray, shares: FloatArray, target: IntArray, drawn: IntArray,
    rate: float,
) -> None:  # fmt: skip
    """Move the vectors of contexts towards the outputs of their targets, and away from those of drawn numerals."""
    chosen = np.column_stack([target, drawn])
    is_target = np.arange(chosen.shape[1]) == 0
    hidden = np.einsum("bk,bkd->bd", shares, vectors[context])
    guess = 1 / (1 + np.exp(-np.einsum("bd,bjd->bj", hidden, outputs[chosen])))
    step = rate * (is_target - guess) * (is_target | (chosen != target[:, None]))
    back = np.einsum("bj,bjd->bd", step, outputs[chosen])
    np.add.at(outputs, chosen, step[:, :, None] * hidden[:, None])
    np.add.at(vectors, context, shares[:, :, None] * back[:, None])


def harmony_distance(numerals: Sequence[str], others: Sequence[str], vectors: Mapping[str, FloatArray]) -> float | None:
    """Return 1 - cosine of the mean vectors of two pieces, 0-2; None where one has no numeral with a vector."""
    directions = []
    for names in (numerals, others):
        found = [vectors[name] for name in names if name in vectors]
        mean = np.mean(found, axis=0) if found else np.zeros(1)
        if not mean.any():
            return None
        directions.append(mean / np.linalg.norm(mean))
    return float(0.5 * np.square(directions[0] - directions[1]).sum())  # exactly 0 for equal pieces
