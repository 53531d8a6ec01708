"""The page of one evaluation: likelihood, the champion, samples, copies, continuations, speed, origin.

The page runs no script and fetches nothing. Samples and continuations are in `music_sections.py`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from tasks.config.evaluation import EvaluateConfig
from tasks.config.serialization import to_json
from tasks.dataset.versions import DatasetVersion
from tasks.evaluation.champions import Rivalry
from tasks.evaluation.page.music_sections import continuation_section, copying_section, sample_section
from tasks.reporting.frame import assemble_page
from tasks.reporting.markup import label_of, say
from tasks.reporting.spreads import Scale, draw_interval
from tasks.reporting.templates import templates_of
from tasks.storage.project import git_commit
from tasks.tracking.mlflow_tracker import ModelVersion

if TYPE_CHECKING:  # it brings torch
    from tasks.evaluation.evaluate import Evaluation


@dataclass(frozen=True, slots=True)
class Decision:
    """The result of a model's comparison with its champion; `rivalry` is None where it is not compared."""

    rivalry: Rivalry | None
    is_promoted: bool

    def in_words(self) -> str:
        if self.rivalry is None:
            return "A score on the training split, or of ids without music, makes no champion."
        if self.is_promoted:
            follows = "It has the alias champion now."
        elif self.rivalry.is_won:
            follows = "The setting evaluate.promote is false, so the alias champion stays where it is."
        else:
            follows = "The alias champion stays where it is."
        return f"{self.rivalry.verdict} {follows}"


def evaluation_page(
    result: "Evaluation",
    model: ModelVersion,
    dataset: DatasetVersion,
    config: EvaluateConfig,
    decision: Decision,
    run_id: str,
) -> str:
    """Return the page of an evaluation as HTML text."""
    page: Any = templates_of("tasks.evaluation.page").get_template("page.html").module
    sections = [
        ("likelihood", "Held-out likelihood", page.likelihood(_likelihood(result))),
        ("champion", "Champion", page.champion(_champion(decision))),
        ("samples", "Samples beside held-out music", sample_section(page, result, config)),
        ("copying", "Copying", copying_section(page, result)),
        ("continuations", "Continuations", continuation_section(page, result.continuations, config)),
        ("speed", "Speed", page.speed(_speed(result))),
        ("origin", "Origin and settings", page.origin(_origin(result, model, dataset, config, run_id))),
    ]
    subtitle = Markup("on <code>{}</code>, {}").format(dataset.reference, config.split)
    headline = _headline(result, decision)
    return assemble_page("Evaluation", model.reference, subtitle, headline, _warnings(result, config), sections)


def _headline(result: "Evaluation", decision: Decision) -> dict[str, str]:
    m = result.metrics
    shown = {
        "bits per note": number(m.get("bits_per_note"), 3),
        "nats per token": number(m["nll_per_token"], 4),
        "accuracy": number(m["accuracy"], 4),
        "typicality of samples": number(m.get("samples/typicality"), 3),
        "copied run, notes": number(m.get("samples/longest_copied_run"), 0),
        "entropy of continuations, nats": number(m.get("continuation/mean_entropy"), 3),
    }
    figures = {name: value for name, value in shown.items() if value}
    if decision.rivalry:
        figures["became champion"] = "yes" if decision.is_promoted else "no"
    return figures


def _warnings(result: "Evaluation", config: EvaluateConfig) -> list[str]:
    m, found = result.metrics, list[str]()
    if config.split == "train":
        found.append("Scored on the training split: the figures show what was memorised.")
    if m["nll_per_token"] >= m["baseline/nll_per_token"]:
        found.append("The model predicts no better than token frequencies.")
    longest = result.about.get("sample_tokens", config.sample_tokens)
    if result.n_samples and longest < config.sample_tokens:
        found.append(
            f"Samples end at the {longest} tokens that the model reads, not at the {config.sample_tokens} requested."
        )
    if result.n_samples and result.copying is None:
        found.append("The samples could not be compared with the training split; the run's log has the reason.")
    if result.copying and result.copying["verdict"]["is_beyond"]:
        found.append("More samples share long runs of notes with the training split than pieces by people do.")
    return found


def _likelihood(result: "Evaluation") -> dict[str, Any]:
    m = result.metrics
    worse = m["baseline/nll_per_token"] / m["nll_per_token"] if m["nll_per_token"] else math.nan
    pairs = [
        ("nats per token", m["nll_per_token"], m["baseline/nll_per_token"], 4),
        ("perplexity", m["perplexity"], math.exp(min(m["baseline/nll_per_token"], 700.0)), 3),
        *(
            (name, m[figure], m[figure] * worse, digits)
            for name, figure, digits in (
                ("bits per note", "bits_per_note", 3),
                ("bits per second of music", "bits_per_second", 2),
            )
            if figure in m
        ),
        ("accuracy", m["accuracy"], m["baseline/accuracy"], 4),
    ]
    rows = [
        (name, _beside(own, base, 1.0 if name == "accuracy" else 0.0), number(own, digits), number(base, digits))
        for name, own, base, digits in pairs
    ]
    reach = f"with at least {result.least_context} tokens before it" if result.least_context else "in blocks"
    lead = (
        f"{int(m['n_tokens']):,} tokens of {result.n_held_out:,} pieces, each predicted once, {reach}. Beside the"
        " model, as a stroke: the figure of the training split's token frequencies alone."
    )
    return {"lead": lead, "rows": rows, "latents": _latents(m)}


def _beside(own: float, base: float, top: float) -> str:
    ends = [value for value in (own, base) if math.isfinite(value)]
    if len(ends) < 2:
        return ""
    scale = Scale(low=0.0, high=top or 1.1 * max(*ends, 1e-9), mark=base)
    return draw_interval({"low": 0.0, "high": own, "value": own}, scale, 1)


def _latents(m: Mapping[str, float]) -> dict[str, str]:
    if "latent/gain" not in m:
        return {}
    return {
        "nats per token: writing from the latent": number(m["reconstruction"], 4),
        "divergence of the latent": number(m["kl"], 4),
        "cost of another block's latent": number(m["latent/gain"], 4),
        "active numbers of the latent": f"{m['latent/n_active']:.0f} of {m['latent/n_numbers']:.0f}",
    }


def _champion(decision: Decision) -> dict[str, Any]:
    rivalry = decision.rivalry
    shown: dict[str, Any] = {"words": decision.in_words(), "figures": {}, "row": ()}
    if rivalry is None or not rivalry.champion:
        return shown
    shown["figures"] = {
        "this model, bits per note": number(rivalry.own, 4),
        rivalry.champion: number(rivalry.reference, 4),
    }
    found = rivalry.difference
    if found is None or found.value is None or found.low is None or found.high is None:
        return shown
    reach = 1.15 * max(abs(found.low), abs(found.high), 1e-6)
    drawn = draw_interval(found.to_json(), Scale(low=-reach, high=reach, mark=0.0), 1)
    ends = interval(found.to_json(), 4, "+")
    return shown | {"row": (f"this model - {rivalry.champion}", drawn, f"{found.value:+.4f}", ends)}


def _speed(result: "Evaluation") -> dict[str, Any]:
    seconds, test = result.seconds, result.continuations
    scored = result.metrics["n_tokens"] / seconds["scoring"] if seconds.get("scoring") else None
    figures = {
        "tokens scored per second": number(scored, 0),
        "tokens sampled per second": number(result.tokens_per_second or None, 0),
        "tokens continued per second": number(test.tokens_per_second if test and test.pieces else None, 0),
    }
    rows = [(stage, number(spent, 2)) for stage, spent in seconds.items()]
    return {"figures": {name: value for name, value in figures.items() if value}, "rows": rows}


def _origin(
    result: "Evaluation", model: ModelVersion, dataset: DatasetVersion, config: EvaluateConfig, run_id: str
) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "model": model.reference,
        "preset": model.preset,
        "run that trained it": model.run_id,
        "checkpoint": str(model.checkpoint),
        **{label_of(name): value for name, value in result.about.items()},
        "scored on": f"{dataset.reference}, {config.split}",
        "this run": run_id,
        "code": git_commit(),
    }
    return {
        "facts": [(name, say(value)) for name, value in facts.items() if value != ""],
        "settings": [(name, say(value)) for name, value in to_json(config).items()],
    }


def number(value: float | None, digits: int) -> str:
    """Return a number with so many digits, nothing where there is none."""
    return "" if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


def interval(figure: Mapping[str, Any], digits: int, sign: str = "") -> str:
    """Return the ends of an interval as text, nothing where there is none."""
    low, high = figure.get("low"), figure.get("high")
    return "" if low is None or high is None else f"{low:{sign}.{digits}f} to {high:{sign}.{digits}f}"
