"""Divergence of continuations from prompts and originals in pitch classes, durations and harmony.

The distances are those of the published evaluation of the Hourglass: Kullback-Leibler divergence of pitch classes and
of durations, with 1e-6 added to each share, and 1 - cosine of the pieces' mean Word2Vec vectors of Roman numerals.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.music.arrays import FloatArray
from tasks.music.metrics.harmony import harmony_distance, roman_numerals
from tasks.music.render.figures import FAINT, INK, PAPER, PART_COLOURS, new_figure, png_of
from tasks.music.score import Score
from tasks.music.tokenizers.remi.vocabulary import PITCH_CLASSES

DISTANCES = ("pitch_class_kl", "duration_kl", "harmony_distance")
# Name of a comparison -> its reference and its candidate.
COMPARISONS = {
    "from_original": ("original", "generated"),
    "from_prompt": ("prompt", "generated"),
    "from_prompt_of_originals": ("prompt", "original"),
}
EPSILON = 1e-6  # of each share
STEPS_PER_QUARTER, MAX_QUARTERS = 8, 12  # of durations, as the published encoding has them

Divergences = dict[str, dict[str, float | None]]  # distance -> comparison -> value


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """What is compared of some music.

    Args:
        pitch_classes: notes of each of the 12, drums apart.
        durations: notes of each length in eighths of a quarter, 1 to 96, drums included; longer ones are in the last.
        numerals: the harmony of each bar.
    """

    pitch_classes: FloatArray
    durations: FloatArray
    numerals: list[str]


def features_of(score: Score) -> Features:
    """Return the features of a piece or a part of one."""
    notes = score.notes
    steps = np.round(notes.duration * STEPS_PER_QUARTER / score.ticks_per_quarter).astype(np.int64)
    n_steps = STEPS_PER_QUARTER * MAX_QUARTERS
    return Features(
        np.bincount(notes.pitch[~notes.is_drum] % 12, minlength=12).astype(np.float64),
        np.bincount(np.clip(steps, 1, n_steps) - 1, minlength=n_steps).astype(np.float64),
        roman_numerals(score),
    )


def kl_divergence(reference: FloatArray, candidate: FloatArray) -> float | None:
    """Return Σ p ln(p / q) in nats of two distributions given by counts, p of the reference; None where one is empty.

    `EPSILON` is added to each share, and the shares are divided by their sum again.
    """
    if not (reference.any() and candidate.any()):
        return None
    p, q = (counts / counts.sum() + EPSILON for counts in (reference, candidate))
    p, q = p / p.sum(), q / q.sum()
    return float(np.sum(p * np.log(p / q)))


def divergences(sides: Mapping[str, Features], vectors: Mapping[str, FloatArray]) -> Divergences:
    """Return each distance for each comparison of a piece; None where one side has nothing to compare.

    Args:
        sides: `prompt`, `generated` and `original`, the latter two without the prompt.
        vectors: of numerals.
    """
    found: Divergences = {name: {} for name in DISTANCES}
    for comparison, names in COMPARISONS.items():
        reference, candidate = (sides[name] for name in names)
        values = (
            kl_divergence(reference.pitch_classes, candidate.pitch_classes),
            kl_divergence(reference.durations, candidate.durations),
            harmony_distance(reference.numerals, candidate.numerals, vectors),
        )
        for name, value in zip(DISTANCES, values, strict=True):
            found[name][comparison] = None if value is None else round(value, 6)
    return found


def mean_divergences(pieces: Sequence[Divergences]) -> Divergences:
    """Return the mean of each distance over the pieces that have it, and a p-value.

    `p_value`: of the two-sample Kolmogorov-Smirnov test that generated music and originals are equally far from their
    prompts.
    """
    means: Divergences = {}
    for name in DISTANCES:
        values = {
            comparison: [value for piece in pieces if (value := piece[name][comparison]) is not None]
            for comparison in COMPARISONS
        }
        means[name] = {comparison: float(np.mean(some)) if some else None for comparison, some in values.items()}
        means[name]["p_value"] = _p_value(values["from_prompt"], values["from_prompt_of_originals"])
    return means


def _p_value(own: Sequence[float], others: Sequence[float]) -> float | None:
    from scipy.stats import ks_2samp  # imported here: half a second

    if not own or not others:
        return None
    tested: Any = ks_2samp(own, others)
    return float(tested.pvalue)


def draw_histograms(pieces: Sequence[Mapping[str, Features]], distances: Sequence[Divergences]) -> dict[str, bytes]:
    """Return PNG files by name: the pitch classes and durations of all pieces, and their distances from the prompts."""
    shares = {"pitch_classes.png": list(PITCH_CLASSES), "durations.png": None}
    files = {name: _draw_shares(name.removesuffix(".png"), pieces, labels) for name, labels in shares.items()}
    return files | {"distances.png": _draw_distances(distances)}


def _draw_shares(feature: str, pieces: Sequence[Mapping[str, Features]], labels: list[str] | None) -> bytes:
    counts = {side: np.sum([getattr(piece[side], feature) for piece in pieces], axis=0) for side in pieces[0]}
    n_shown = len(labels) if labels else 1 + max(int(np.max(np.nonzero(n)[0], initial=0)) for n in counts.values())
    at, width = np.arange(n_shown), 0.8 / len(counts)
    if labels is None:
        at = (at + 1) / STEPS_PER_QUARTER
        width /= STEPS_PER_QUARTER
    figure, (axes,) = _figure(1)
    for place, (side, n) in enumerate(counts.items()):
        share = n[:n_shown] / max(n.sum(), 1)
        axes.bar(at + (place - 1) * width, share, width, label=side, color=PART_COLOURS[place])
    axes.set_ylabel("share of notes", color=INK)
    axes.set_xlabel("pitch class" if labels else "duration (quarters)", color=INK)
    if labels:
        axes.set_xticks(at, labels)
    axes.legend(frameon=False)
    return png_of(figure)


def _draw_distances(distances: Sequence[Divergences]) -> bytes:
    figure, panels = _figure(len(DISTANCES))
    sides = {"from_prompt": "generated", "from_prompt_of_originals": "original"}
    for axes, name in zip(panels, DISTANCES, strict=True):
        values = [[v for piece in distances if (v := piece[name][key]) is not None] for key in sides]
        bins = np.linspace(0, max([*values[0], *values[1], 1e-6]), 11)
        axes.hist(values, bins=bins.tolist(), label=list(sides.values()), color=list(PART_COLOURS[1:3]))
        axes.set_xlabel(name.replace("_", " ").replace("kl", "KL") + ", from the prompt", color=INK)
        axes.set_ylabel("pieces", color=INK)
        axes.legend(frameon=False)
    return png_of(figure)


def _figure(n_panels: int) -> tuple[Any, Sequence[Any]]:
    figure = new_figure(12, 3.6, layout="constrained")
    panels = figure.subplots(1, n_panels, squeeze=False)[0]
    for axes in panels:
        axes.set_facecolor(PAPER)
        axes.grid(color=FAINT, linewidth=0.5)
        axes.set_axisbelow(True)
    return figure, panels
