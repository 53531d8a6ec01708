"""The Markdown summary of an evaluation, for MLflow and Prefect."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tasks.config.evaluation import EvaluateConfig
from tasks.dataset.versions import DatasetVersion
from tasks.errors import plural

if TYPE_CHECKING:  # it brings torch
    from tasks.evaluation.continuations import ContinuationTest
    from tasks.evaluation.evaluate import Evaluation


def report_markdown(evaluation: "Evaluation", model: str, dataset: DatasetVersion, config: EvaluateConfig) -> str:
    """Return the evaluation as a page of Markdown."""
    m = evaluation.metrics
    lines = [
        f"# {model} on {dataset.name}@{dataset.version}, {config.split}",
        "",
        f"{int(m['n_tokens'])} tokens of {plural(evaluation.n_held_out, 'piece')} of the split, each predicted once,"
        + (
            f" with at least {evaluation.least_context} tokens before it."
            if evaluation.least_context
            else " in blocks."
        ),
        "",
        "| figure | value |",
        "|---|---:|",
        f"| nats per token | {m['nll_per_token']:.4f} |",
        f"| perplexity | {m['perplexity']:.3f} |",
        f"| accuracy | {m['accuracy']:.4f} |",
        f"| accuracy of the most frequent token | {m['baseline/accuracy']:.4f} |",
        f"| nats per token by frequency alone | {m['baseline/nll_per_token']:.4f} |",
        f"| bits per note | {m['bits_per_note']:.3f} |",
        f"| bits per second of music | {m['bits_per_second']:.2f} |",
    ]
    if "latent/gain" in m:
        lines += [
            f"| of the nats per token: writing from the latent | {m['reconstruction']:.4f} |",
            f"| of the nats per token: divergence of the latent | {m['kl']:.4f} |",
            f"| nats per token that another block's latent costs | {m['latent/gain']:.4f} |",
            f"| active numbers of the latent | {m['latent/n_active']:.0f} of {m['latent/n_numbers']:.0f} |",
        ]
    if evaluation.n_samples:
        lines += [
            f"| grammar errors per token, sampled freely | {m['grammar_error_rate']:.5f} |",
            f"| how typical the samples are, 0 to 1 | {m['samples/typicality']:.3f} |",
            *(
                f"| longest run of notes that a sample shares with train | {m[name]:.0f} |"
                for name in ("samples/longest_copied_run",)
                if name in m
            ),
            f"| tokens sampled per second | {evaluation.tokens_per_second:,.0f} |",
            "",
            f"Means over {plural(evaluation.n_samples, 'free sample')} of at most {config.sample_tokens} tokens and"
            " over as long beginnings of pieces of the split;"
            " the overlap of their densities, 0 to 1, with its 95 % interval:",
            "",
            f"| statistic | {config.split} | samples | overlap |",
            "|---|---:|---:|---:|",
        ]
        lines += [
            f"| {name} | {real:.3f} | {ours:.3f} | {_overlap(evaluation.judgement, name)} |"
            for name, (real, ours) in evaluation.statistics.items()
        ]
    if evaluation.continuations:
        lines += ["", *_continuation_lines(evaluation.continuations, config)]
    return "\n".join(lines) + "\n"


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
    rows.append(("tokens per second", f"{test.tokens_per_second:,.0f}"))
    return [f"{what}:", "", "| figure | value |", "|---|---:|", *(f"| {name} | {value} |" for name, value in rows)]


def _overlap(judgement: Mapping[str, Any] | None, name: str) -> str:
    return with_interval(judgement["metrics"][name]["overlap"]) if judgement else ""


def with_interval(figure: Mapping[str, Any], digits: int = 2) -> str:
    """Return a figure as text, with its 95 % interval where it has one; nothing where there is no figure."""
    value, low, high = (figure.get(key) for key in ("value", "low", "high"))
    if value is None:
        return ""
    interval = "" if low is None or high is None else f" ({low:.{digits}f} to {high:.{digits}f})"
    return f"{value:.{digits}f}{interval}"
