"""Promotion: whether a model beats its champion by more than the noise of the held-out pieces."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.config.evaluation import EvaluateConfig
from tasks.config.old_names import current_names
from tasks.dataset.versions import DatasetVersion
from tasks.music.metrics.distances import Estimate, compare_scores
from tasks.tracking.mlflow_tracker import ModelVersion, Tracker

if TYPE_CHECKING:  # it brings torch
    from tasks.evaluation.evaluate import Evaluation


@dataclass(frozen=True, slots=True)
class Rivalry:
    """A model against the champion of its name.

    Args:
        verdict: a sentence with the reason why it has won or not.
        champion: the version it was compared with by bits per note; empty without one.
        reference, own: bits per note of both.
        difference: own - reference with its interval, where pieces were compared one by one.
    """

    is_won: bool
    verdict: str
    champion: str = ""
    reference: float = math.nan
    own: float = math.nan
    difference: Estimate | None = None

    @property
    def paragraph(self) -> str:
        line = f"\n{self.verdict}\n"
        if self.champion:
            line += f"\nChampion {self.champion}: {self.reference:.4f} bits per note; this model: {self.own:.4f}."
            if self.difference:
                line += f" The difference is {self.difference.low:+.4f} to {self.difference.high:+.4f} (95 %)."
            line += "\n"
        return line


def scored_on(dataset: DatasetVersion, config: EvaluateConfig) -> str:
    """Return the music that figures must share to be comparable."""
    return f"{dataset.reference}/{config.split}"


def scored_with(result: "Evaluation", config: EvaluateConfig) -> dict[str, int]:
    """Return the settings that change a model's figures on the same music, by name.

    For a model with latents, which reads whole blocks, these decide the draws; for others, how far a model looks back.
    """
    if has_latents(result):
        return {"seed": config.seed, "batch_size": config.batch_size}
    return {"seq_len": config.seq_len}


def has_latents(result: "Evaluation") -> bool:
    """Return whether an evaluation is of a model with latents, whose pieces have no scores of their own."""
    return "kl" in result.metrics


def champion_tags(result: "Evaluation", dataset: DatasetVersion, config: EvaluateConfig, run_id: str) -> dict[str, str]:
    """Return the tags of a registered version by which later models are compared with it."""
    return {
        "scored_on": scored_on(dataset, config),
        "scored_with": json.dumps(scored_with(result, config)),
        "bits_per_note": f"{result.metrics['bits_per_note']:.6f}",
        "scored_by": run_id,
    }


def against_champion(
    tracker: Tracker, result: "Evaluation", model: ModelVersion, dataset: DatasetVersion, config: EvaluateConfig
) -> Rivalry:
    """Compare an evaluated model with the champion of its name by bits per note; the lower is the better.

    By `promote_by="interval"` it wins only if the 95 % interval of the difference, from a bootstrap over the held-out
    pieces with both models' scores of each drawn together, is below 0. By `"figure"` the lower figure wins; so it does
    where the pieces of a model have no scores of their own (models with latents), as the verdict states. It wins
    unopposed where there is no champion, where it is the champion itself, and where that one was scored on another
    dataset version or split, or has no finite figure. It does not win where a figure of its own is not finite, where
    the champion was scored with other settings, or where the scores of pieces are lost.
    """
    if reason := _no_candidate(result):
        return Rivalry(False, reason)
    champion = tracker.champion(model.name)
    if champion is None or champion.version == model.version:
        return Rivalry(True, "It is the champion itself." if champion else f"There is no champion of {model.name} yet.")
    tags, subject = tracker.model_tags(champion), f"The champion {champion.reference}"
    if (other := tags.get("scored_on", "nothing")) != scored_on(dataset, config):
        return Rivalry(True, f"{subject} was scored on {other}, so it cannot be compared and gives way.")
    if not math.isfinite(float(tags.get("bits_per_note", "nan"))):
        return Rivalry(True, f"{subject} has no finite bits per note, so it gives way.")
    if apart := _settings_apart(tracker, tags, result, config):
        way_out = "so the two cannot be compared; evaluate both with the same settings."
        return Rivalry(False, f"{subject} was scored with {apart}, {way_out}")
    return _compare(tracker, result, champion.reference, tags, config)


def _no_candidate(result: "Evaluation") -> str:
    """Return why a model cannot be a champion of any name; empty if it can."""
    if not math.isfinite(result.metrics["bits_per_note"]):
        return "Its bits per note are no finite number, so it cannot be a champion."
    wrong = [name for name, value in result.metrics.items() if not math.isfinite(value)]
    return f"Its figures are not all finite ({', '.join(wrong[:3])}), so it cannot be a champion." if wrong else ""


def _compare(
    tracker: Tracker, result: "Evaluation", champion: str, tags: Mapping[str, str], config: EvaluateConfig
) -> Rivalry:
    """Compare a model with a champion scored on the same music with the same settings, as `tags` state."""
    own, reference = result.metrics["bits_per_note"], float(tags["bits_per_note"])

    def rivalry(is_won: bool, verdict: str, difference: Estimate | None = None) -> Rivalry:
        return Rivalry(is_won, verdict, champion, reference, own, difference)

    is_lower = own < reference
    by_figure = f"has {'fewer' if is_lower else 'no fewer'} bits per note than {champion}."
    if config.promote_by == "figure":
        return rivalry(is_lower, f"It {by_figure}")
    reference_nats = tracker.piece_scores(tags.get("scored_by", ""))
    if reference_nats is None:
        reason = f"the piece scores of {champion} cannot be read"
    else:
        for nats, whose in ((result.piece_nats, "this model"), (reference_nats, champion)):
            if not nats:
                reason = f"By the figure alone, for the pieces of {whose} have no scores of their own: it {by_figure}"
                return rivalry(is_lower, reason)
        if difference := bits_above(own, result.piece_nats, reference_nats):
            is_won, verdict = _by_interval(difference, champion)
            return rivalry(is_won, verdict, difference)
        reason = f"the scores of {len(result.piece_nats)} and {len(reference_nats)} pieces give none"
    return rivalry(
        False,
        f"No interval can be computed: {reason}. Evaluate {champion} again, or compare the figures alone by"
        " evaluate.promote_by=figure.",
    )


def _settings_apart(tracker: Tracker, tags: Mapping[str, str], result: "Evaluation", config: EvaluateConfig) -> str:
    """Return how the scoring settings of the champion and a model differ; empty where they are equal."""
    own = scored_with(result, config)
    if "scored_with" in tags:
        reference = current_names(json.loads(tags["scored_with"]))
    else:  # of a release without this tag: the run's parameters have them
        params = tracker.params(tags.get("scored_by", ""))
        reference = {name: int(params[f"evaluate.{name}"]) for name in own if f"evaluate.{name}" in params}
        if len(reference) < len(own):
            return f"unknown settings ({', '.join(sorted(own.keys() - reference.keys()))})"
    # A model with latents and one without have no such setting in common, and their figures do compare.
    apart = [name for name in own if name in reference and own[name] != reference[name]]
    return ", ".join(f"{name}={reference[name]}, this model with {own[name]}" for name in apart)


def bits_above(bits_per_note: float, nats: Sequence[float], other_nats: Sequence[float]) -> Estimate | None:
    """Return how many bits per note a model is above another one, with its interval; None where there is none.

    `nats` and `other_nats` are of both models for each piece, `bits_per_note` is of the first model.
    """
    total = sum(nats)
    if len(other_nats) != len(nats) or not total or not math.isfinite(total + sum(other_nats)):
        return None
    scale = len(nats) * bits_per_note / total  # bits per note of a nat in one piece: the mean is that of the split
    found = compare_scores([scale * n for n in nats], [scale * n for n in other_nats])
    return None if found.low is None or found.high is None else found


def _by_interval(difference: Estimate, champion: str) -> tuple[bool, str]:
    assert difference.low is not None
    assert difference.high is not None
    if difference.low <= 0 <= difference.high:
        return False, f"It does not differ from {champion}: the interval of the difference contains 0."
    is_won = difference.high < 0
    side = "better" if is_won else "worse"
    return is_won, f"It is {side} than {champion} beyond the noise of the choice of pieces."
