"""The page of one evaluation: likelihood, the champion, samples, copies, continuations, speed, origin.

Like the page of a dataset it runs no script and fetches nothing; see `page.py`. Samples and continuations are in
`music_sections.py`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasks.config.evaluation import EvaluateConfig
from tasks.config.serialization import to_json
from tasks.dataset.versions import DatasetVersion
from tasks.evaluation.champions import Rivalry
from tasks.evaluation.page.music_sections import continuation_section, copying_section, sample_section
from tasks.reporting.frame import assemble_page
from tasks.reporting.markup import label_of, say
from tasks.reporting.spreads import Scale, draw_interval
from tasks.reporting.templates import escape, figure_list, path_html, table
from tasks.storage.project import git_commit
from tasks.tracking.mlflow_tracker import ModelVersion

if TYPE_CHECKING:  # it brings torch
    from tasks.evaluation.evaluate import Evaluation


@dataclass(frozen=True, slots=True)
class Decision:
    """What came of a model's rivalry with the champion of its name; None on music that it was trained on."""

    rivalry: Rivalry | None
    is_promoted: bool

    def in_words(self) -> str:
        """Return the reason and what follows from it."""
        if self.rivalry is None:
            return "This is the music that models learn from, so it makes no champion."
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
    sections = [
        ("likelihood", "Held-out likelihood", _likelihood(result)),
        ("champion", "Champion", _champion(decision)),
        ("samples", "Samples beside held-out music", sample_section(result, config)),
        ("copying", "Copying", copying_section(result)),
        ("continuations", "Continuations", continuation_section(result.continuations, config)),
        ("speed", "Speed", _speed(result)),
        ("origin", "Origin and settings", _origin(result, model, dataset, config, run_id)),
    ]
    subtitle = f"on <code>{escape(dataset.reference)}</code>, {escape(config.split)}"
    headline = _headline(result, decision)
    return assemble_page("Evaluation", model.reference, subtitle, headline, _warnings(result, config), sections)


def _headline(result: "Evaluation", decision: Decision) -> dict[str, str]:
    m = result.metrics
    shown = {
        "bits per note": number(m["bits_per_note"], 3),
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
        found.append("Scored on the training split: the figures say what was learned by heart.")
    if m["nll_per_token"] >= m["baseline/nll_per_token"]:
        found.append("The model predicts no better than how frequent each token is.")
    longest = result.about.get("sample_tokens", config.sample_tokens)
    if result.n_samples and longest < config.sample_tokens:
        found.append(
            f"Samples end at the {longest} tokens that the model reads, not at the {config.sample_tokens} asked."
        )
    if result.n_samples and result.copying is None:
        found.append("The samples could not be compared with the training split; the run's log says why.")
    if result.copying and result.copying["verdict"]["is_beyond"]:
        found.append("More samples share long runs of notes with the training split than pieces by people do.")
    return found


def _likelihood(result: "Evaluation") -> str:
    m = result.metrics
    worse = m["baseline/nll_per_token"] / m["nll_per_token"] if m["nll_per_token"] else math.nan
    pairs = [
        ("nats per token", m["nll_per_token"], m["baseline/nll_per_token"], 4),
        ("perplexity", m["perplexity"], math.exp(min(m["baseline/nll_per_token"], 700.0)), 3),
        ("bits per note", m["bits_per_note"], m["bits_per_note"] * worse, 3),
        ("bits per second of music", m["bits_per_second"], m["bits_per_second"] * worse, 2),
        ("accuracy", m["accuracy"], m["baseline/accuracy"], 4),
    ]
    rows = [
        (name, _beside(ours, theirs, 1.0 if name == "accuracy" else 0.0), number(ours, digits), number(theirs, digits))
        for name, ours, theirs, digits in pairs
    ]
    reach = f"with at least {result.least_context} tokens before it" if result.least_context else "in blocks"
    lead = (
        f"{int(m['n_tokens']):,} tokens of {result.n_held_out:,} pieces, each predicted once, {reach}. Beside the"
        " model, as a stroke: what the training split's token frequencies alone would give."
    )
    heads, kinds = ("Figure", "", "Model", "Frequencies"), ("", "span", "number", "number")
    shown = table(heads, rows, kinds, label="Held-out likelihood")
    return f'<p class="lead">{lead}</p>{shown}{_latents(m)}'


def _beside(ours: float, theirs: float, top: float) -> str:
    ends = [value for value in (ours, theirs) if math.isfinite(value)]
    if len(ends) < 2:
        return ""
    scale = Scale(low=0.0, high=top or 1.1 * max(*ends, 1e-9), mark=theirs)
    return draw_interval({"low": 0.0, "high": ours, "value": ours}, scale, 1)


def _latents(m: Mapping[str, float]) -> str:
    if "latent/gain" not in m:
        return ""
    figures = {
        "nats per token: writing from the latent": number(m["reconstruction"], 4),
        "divergence of the latent": number(m["kl"], 4),
        "cost of another block's latent": number(m["latent/gain"], 4),
        "active numbers of the latent": f"{m['latent/n_active']:.0f} of {m['latent/n_numbers']:.0f}",
    }
    lead = "The figures are bounds: the loss of writing each block from its latent, and what the latent itself costs."
    return f'<h3 class="later">Latents</h3><p class="lead">{lead}</p>{figure_list(figures)}'


def _champion(decision: Decision) -> str:
    words = f"<p>{escape(decision.in_words())}</p>"
    rivalry = decision.rivalry
    if rivalry is None or not rivalry.champion:
        return words
    figures = {"this model, bits per note": number(rivalry.ours, 4), rivalry.champion: number(rivalry.theirs, 4)}
    shown = f"{words}{figure_list(figures)}"
    found = rivalry.difference
    if found is None or found.value is None or found.low is None or found.high is None:
        return shown + '<p class="empty">There is no interval: pieces were not compared one by one.</p>'
    reach = 1.15 * max(abs(found.low), abs(found.high), 1e-6)
    drawn = draw_interval(found.to_json(), Scale(low=-reach, high=reach, mark=0.0), 1)
    row = (f"this model - {rivalry.champion}", drawn, f"{found.value:+.4f}", interval(found.to_json(), 4, "+"))
    lead = (
        "The difference over the same pieces with its 95 % interval, by bootstrap over pieces. The stroke in the middle"
        " is 0; left of it this model needs fewer bits."
    )
    heads, kinds = ("Bits per note", "", "Difference", "95 %"), ("", "span", "number", "number ends")
    return f'{shown}<p class="lead">{lead}</p>{table(heads, [row], kinds, label="Difference to the champion")}'


def _speed(result: "Evaluation") -> str:
    seconds, test = result.seconds, result.continuations
    scored = result.metrics["n_tokens"] / seconds["scoring"] if seconds.get("scoring") else None
    figures = {
        "tokens scored per second": number(scored, 0),
        "tokens sampled per second": number(result.tokens_per_second or None, 0),
        "tokens continued per second": number(test.tokens_per_second if test and test.pieces else None, 0),
    }
    shown = figure_list({name: value for name, value in figures.items() if value})
    rows = [(escape(stage), number(spent, 2)) for stage, spent in seconds.items()]
    stages = table(("Stage", "Seconds"), rows, ("", "number"), label="Seconds of each stage") if rows else ""
    lead = "As measured in this run, on its machine."
    return f'<p class="lead">{lead}</p>{shown}{stages}'


def _origin(
    result: "Evaluation", model: ModelVersion, dataset: DatasetVersion, config: EvaluateConfig, run_id: str
) -> str:
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
    rows = [(escape(name), path_html(say(value))) for name, value in facts.items() if value != ""]
    settings = [(escape(name), escape(say(value))) for name, value in to_json(config).items()]
    lead = '<p class="lead"><code>orchestrion lineage</code> leads on from here to the training files.</p>'
    blocks = "".join(
        f"<div>{table(heads, lines, ('', 'path'), label=heads[0])}</div>"
        for heads, lines in ((("Origin", ""), rows), (("Setting", "Value"), settings))
    )
    return f'{lead}<div class="pair">{blocks}</div>'


def number(value: float | None, digits: int) -> str:
    """Return a number with so many digits, nothing where there is none."""
    return "" if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


def interval(figure: Mapping[str, Any], digits: int, sign: str = "") -> str:
    """Return the ends of an interval as text, nothing where there is none."""
    low, high = figure.get("low"), figure.get("high")
    return "" if low is None or high is None else f"{low:{sign}.{digits}f} to {high:{sign}.{digits}f}"
