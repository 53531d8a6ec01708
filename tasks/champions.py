"""Whether a model is better than the champion of its name, beyond what the choice of held-out pieces can make."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.config import EvaluateConfig
from tasks.datasets import DatasetVersion
from tasks.music.distances import Estimate, compare_scores
from tasks.tracking import ModelVersion, Tracker

if TYPE_CHECKING:  # it brings torch
    from tasks.evaluate import Evaluation


@dataclass(frozen=True, slots=True)
class Rivalry:
    """A model against the champion of its name.

    Args:
        verdict: a sentence that says why it has won or not.
        champion: the one it was compared with by bits per note, empty where there was none to compare with.
        theirs, ours: bits per note of both.
        difference: ours - theirs with its interval, where pieces were compared one by one.
    """

    is_won: bool
    verdict: str
    champion: str = ""
    theirs: float = math.nan
    ours: float = math.nan
    difference: Estimate | None = None

    @property
    def said(self) -> str:
        """A paragraph about it, in Markdown."""
        line = f"\n{self.verdict}\n"
        if self.champion:
            line += f"\nChampion {self.champion}: {self.theirs:.4f} bits per note; this model: {self.ours:.4f}."
            if self.difference:
                line += f" The difference is {self.difference.low:+.4f} to {self.difference.high:+.4f} (95 %)."
            line += "\n"
        return line


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
        return Rivalry(False, "Its bits per note are no finite number, so it cannot be a champion.")
    champion = tracker.champion(model.name)
    if champion is None:
        return Rivalry(True, f"There is no champion of {model.name} yet.")
    if champion.version == model.version:
        return Rivalry(True, "It is the champion itself.")
    tags = tracker.model_tags(champion)
    if tags.get("scored_on") != scored_on(dataset, config):
        other = tags.get("scored_on", "nothing")
        return Rivalry(
            True, f"The champion {champion.reference} was scored on {other}, so it cannot be compared and gives way."
        )
    theirs = float(tags["bits_per_note"])
    difference = None
    if config.promote_by == "interval":
        difference = _difference(ours, result.piece_nats, tracker.piece_scores(tags.get("scored_by", "")))
    if difference:
        assert difference.high is not None
        is_won, verdict = difference.high < 0, _by_interval(difference, champion.reference)
    else:
        is_won = ours < theirs
        verdict = f"It has {'fewer' if is_won else 'no fewer'} bits per note than {champion.reference}."
    return Rivalry(is_won, verdict, champion.reference, theirs, ours, difference)


def _difference(ours: float, our_nats: tuple[float, ...], their_nats: list[float]) -> Estimate | None:
    """Return how many bits per note we are above them, with its interval; None where pieces cannot be compared."""
    total = sum(our_nats)
    if len(their_nats) != len(our_nats) or not total:
        return None
    bits_per_note = len(their_nats) * ours / total  # of a nat in one piece, so that the mean is that of the split
    sides = ({str(i): bits_per_note * n for i, n in enumerate(nats)} for nats in (our_nats, their_nats))
    found = compare_scores(*sides).difference
    return None if found.low is None or found.high is None else found


def _by_interval(difference: Estimate, champion: str) -> str:
    assert difference.low is not None
    assert difference.high is not None
    if difference.high < 0:
        return f"It is better than {champion} beyond what the choice of pieces can make."
    if difference.low > 0:
        return f"It is worse than {champion} beyond what the choice of pieces can make."
    return f"It cannot be told from {champion}: the interval of the difference holds 0."
