"""Whether a model is better than the champion of its name, beyond what the choice of held-out pieces can make."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.config import EvaluateConfig
from tasks.datasets import DatasetVersion
from tasks.music.distances import compare_scores
from tasks.tracking import ModelVersion, Tracker

if TYPE_CHECKING:  # it brings torch
    from tasks.evaluate import Evaluation


@dataclass(frozen=True, slots=True)
class Rivalry:
    """A model against the champion of its name."""

    is_won: bool
    said: str = ""  # a paragraph about it, in Markdown


def scored_on(dataset: DatasetVersion, config: EvaluateConfig) -> str:
    """Return what figures must have in common to be compared."""
    return f"{dataset.reference}/{config.split}"


def against_champion(
    tracker: Tracker, result: "Evaluation", model: ModelVersion, dataset: DatasetVersion, config: EvaluateConfig
) -> Rivalry:
    """Compare an evaluated model with the champion of its name by bits per note; the lower is the better.

    By `promote_by="interval"` it wins only if the 95 % interval of the difference, from a bootstrap over the held-out
    pieces with both models' scores of each drawn together, is below 0. By `"figure"`, and where the pieces of either
    have no scores (models with latents), the lower figure wins. It wins unopposed where there is no champion, where it
    is the champion itself, and where that one was scored on another dataset version or split.
    """
    ours = result.metrics["bits_per_note"]
    if not math.isfinite(ours):
        return Rivalry(False)
    champion = tracker.champion(model.name)
    if champion is None or champion.version == model.version:
        return Rivalry(True)
    tags = tracker.model_tags(champion)
    if tags.get("scored_on") != scored_on(dataset, config):
        return Rivalry(True)
    theirs = float(tags["bits_per_note"])
    line = f"\nChampion {champion.reference}: {theirs:.4f} bits per note; this model: {ours:.4f}."
    their_nats = tracker.piece_scores(tags.get("scored_by", ""))
    total = sum(result.piece_nats)
    if config.promote_by == "figure" or len(their_nats) != len(result.piece_nats) or not total:
        return Rivalry(ours < theirs, line + "\n")
    bits_per_note = len(their_nats) * ours / total  # of a nat in one piece, so that the mean is that of the split
    sides = ({str(i): bits_per_note * n for i, n in enumerate(nats)} for nats in (result.piece_nats, their_nats))
    found = compare_scores(*sides)
    low, high = found.difference.low, found.difference.high
    if low is None or high is None:
        return Rivalry(ours < theirs, line + "\n")
    return Rivalry(found.is_better, f"{line} The difference is {low:+.4f} to {high:+.4f} (95 %).\n")
