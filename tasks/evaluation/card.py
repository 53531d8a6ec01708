"""The Markdown summary of an evaluation, for MLflow and Prefect."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tasks.config.evaluation import EvaluateConfig
from tasks.dataset.versions import DatasetVersion
from tasks.errors import plural
from tasks.reporting.markdown import table

if TYPE_CHECKING:  # it brings torch
    from tasks.evaluation.continuations import ContinuationTest
    from tasks.evaluation.evaluate import Evaluation


FIGURES = (
    ("nats per token", "nll_per_token", 4),
    ("perplexity", "perplexity", 3),
    ("accuracy", "accuracy", 4),
    ("accuracy of the most frequent token", "baseline/accuracy", 4),
    ("nats per token by frequency alone", "baseline/nll_per_token", 4),
    ("bits per note", "bits_per_note", 3),
    ("bits per second of music", "bits_per_second", 2),
    ("of the nats per token: writing from the latent", "reconstruction", 4),
    ("of the nats per token: divergence of the latent", "kl", 4),
    ("nats per token that another block's latent costs", "latent/gain", 4),
    ("active numbers of the latent", "latent/n_active", 0),
    ("grammar errors per token, sampled freely", "grammar_error_rate", 5),
    ("typicality of the samples, 0 to 1", "samples/typicality", 3),
    ("longest run of notes that a sample shares with train", "samples/longest_copied_run", 0),
)  # label, metric, digits


def report_markdown(evaluation: "Evaluation", model: str, dataset: DatasetVersion, config: EvaluateConfig) -> str:
    """Return the evaluation as a page of Markdown."""
    m, context = evaluation.metrics, evaluation.least_context
    rows = [(label, f"{m[name]:.{digits}f}") for label, name, digits in FIGURES if name in m]
    if evaluation.n_samples:
        rows.append(("tokens sampled per second", f"{evaluation.tokens_per_second:,.0f}"))
    lines = [
        f"# {model} on {dataset.reference}, {config.split}",
        f"{int(m['n_tokens'])} tokens of {plural(evaluation.n_held_out, 'piece')} of the split, each predicted once,"
        + (f" with at least {context} tokens before it." if context else " in blocks."),
        table(rows, ("figure", "value")),
    ]
    if evaluation.n_samples:
        statistics = [
            (name, f"{real:.3f}", f"{sampled:.3f}", _overlap(evaluation.judgement, name))
            for name, (real, sampled) in evaluation.statistics.items()
        ]
        lines += [
            f"Means over {plural(evaluation.n_samples, 'free sample')} of at most {config.sample_tokens} tokens and"
            " over as long beginnings of pieces of the split;"
            " the overlap of their densities, 0 to 1, with its 95 % interval:",
            table(statistics, ("statistic", config.split, "samples", "overlap")),
        ]
    if evaluation.continuations:
        lines += _continuation_lines(evaluation.continuations, config)
    return "\n\n".join(lines) + "\n"


def _continuation_lines(test: "ContinuationTest", config: EvaluateConfig) -> list[str]:
    if not test.pieces:
        return [f"No piece of the split has more than {config.prompt_tokens} tokens to go on from."]
    m, n = test.metrics, len(test.pieces)
    what = f"The first {config.prompt_tokens} tokens of {n} pieces of the split, continued"
    if test.kind == "from_latents":
        what = f"The first windows of {n} pieces of the split, written again from their latents"
    rows = [("nats of entropy per token", f"{m[f'{test.kind}/mean_entropy']:.3f}")]
    for feature, found in test.likeness.items():
        name = feature.replace("_", " ")
        rows.append((f"distance of {name} to the piece's own music, 0 to 1", with_interval(found["to_own"].to_json())))
        rows.append((f"the same between different pieces: {name}", with_interval(found["of_others"].to_json())))
    for measure, values in test.divergences.items():
        shown = {name: value for name, value in values.items() if value is not None}
        rows += [(f"{measure} {name}".replace("_", " "), f"{value:.3f}") for name, value in shown.items()]
    rows.append(("tokens per second", f"{test.tokens_per_second:,.0f}"))
    return [f"{what}:", table(rows, ("figure", "value"))]


def _overlap(judgement: Mapping[str, Any] | None, name: str) -> str:
    return with_interval(judgement["metrics"][name]["overlap"]) if judgement else ""


def with_interval(figure: Mapping[str, Any], digits: int = 2) -> str:
    """Return a figure as text, with its 95 % interval where it has one; nothing where there is no figure."""
    value, low, high = (figure.get(key) for key in ("value", "low", "high"))
    if value is None:
        return ""
    interval = "" if low is None or high is None else f" ({low:.{digits}f} to {high:.{digits}f})"
    return f"{value:.{digits}f}{interval}"
