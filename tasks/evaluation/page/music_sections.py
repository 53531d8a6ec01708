"""Sections of an evaluation's page about generated music: samples, copies, continuations."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from tasks.config.evaluation import EvaluateConfig
from tasks.errors import plural
from tasks.evaluation.card import with_interval
from tasks.reporting.curves import draw_curves
from tasks.reporting.markup import label_of
from tasks.reporting.spreads import Scale, draw_interval, draw_notes, draw_spreads
from tasks.reporting.templates import escape, figure_list, path_html, table

if TYPE_CHECKING:  # these bring torch
    from tasks.evaluation.continuations import Continuation, ContinuationTest
    from tasks.evaluation.evaluate import Evaluation

CHARTS = (
    "notes_per_second", "polyphony", "pitch_mean", "pitch_range", "pitch_class_entropy", "scale_consistency",
    "duration_mean_seconds", "onset_gap_mean_seconds", "velocity_mean",
)  # fmt: skip
LEAST_ALIKE = 8  # statistics shown at once; the others fold
ROLLS = 3  # continuations drawn as notes
TOKENS_TO_A_POINT = 16  # of the curve of entropies


def sample_section(result: "Evaluation", config: EvaluateConfig) -> str:
    """Return distributions of statistics of samples over those of held-out pieces, and their distances."""
    if result.judgement is None or not result.values:
        return '<p class="empty">No samples were drawn.</p>'
    j, m = result.judgement, result.metrics
    lead = (
        f"{plural(result.n_samples, 'sample')} of at most {config.sample_tokens:,} tokens, drawn without the grammar so"
        f" that mistakes show ({m['grammar_error_rate']:.5f} a token), beside as long beginnings of"
        f" {plural(j['n_held_out'], 'piece')} of the split. Intervals are 95 %, by bootstrap over pieces."
    )
    names = ("held out", "samples")
    legend = "".join(f'<li class="p{k}">{name}</li>' for k, name in zip((3, 1), names, strict=True))
    charts = "".join(_spread(name, names, result) for name in CHARTS if name in result.values)
    return (
        f'<p class="lead">{lead}</p>{_distances(j)}<h3 class="later">Statistics</h3><p class="lead">Shares of pieces;'
        " below each chart the means of both sets and their intervals.</p>"
        f'<ul class="legend">{legend}</ul><div class="grid">{charts}</div>'
        f'<h3 class="later">The least alike</h3>{_overlaps(result)}'
    )


def _spread(name: str, sets: Sequence[str], result: "Evaluation") -> str:
    assert result.judgement is not None
    figures = result.judgement["metrics"][name]
    overlap = with_interval(figures["overlap"])
    said = f"overlap {overlap}" if overlap else "too few pieces for an overlap"
    means = (figures["held_out"], figures["generated"])
    return draw_spreads(label_of(name), said, list(zip(sets, result.values[name], means, strict=True)))


def _distances(judgement: Mapping[str, Any]) -> str:
    fd, rows = judgement["fd_feat"], list[tuple[str, str, str, str]]()
    for colour, side, what in ((1, "generated", "samples"), (0, "held_out", "held-out pieces")):
        cells = _interval_cells(judgement["typicality"][side], Scale(low=0, high=1), colour)
        rows.append((f"typicality of {what}", *cells, "1 is typical"))
    if fd["value"] is not None:
        ends = [fd[key] for key in ("value", "high", "chance_high") if fd.get(key) is not None]
        scale = Scale(low=0, high=1.1 * max(ends) or 1.0, mark=fd.get("chance"))
        by_chance = "" if fd.get("chance") is None else f"{fd['chance']:.2f} by chance, at most {fd['chance_high']:.2f}"
        rows.append(("Fréchet distance of features", *_interval_cells(fd, scale), by_chance))
    heads, kinds = ("Distance", "", "Value (95 %)", "Beside it"), ("", "span", "number ends", "")
    return table(heads, rows, kinds, label="Distances")


def _interval_cells(figure: Mapping[str, Any], scale: Scale, colour: int = 1) -> tuple[str, str]:
    value, _, ends = (with_interval(figure) or figure.get("reason", "")).partition(" (")
    said = escape(value) + (Markup(' <span class="whole">({}</span>').format(ends) if ends else "")
    return draw_interval(figure, scale, colour), said


def _overlaps(result: "Evaluation") -> str:
    """Return tables of all statistics, the least alike first."""
    assert result.judgement is not None
    figures = result.judgement["metrics"]
    ranked = sorted(figures, key=lambda name: (figures[name]["overlap"]["value"] or 0.0, name))
    rows = []
    for name in ranked:
        held_out, samples = result.statistics[name]
        drawn, said = _interval_cells(figures[name]["overlap"], Scale(low=0, high=1))
        rows.append((escape(label_of(name)), drawn, said, f"{held_out:,.3f}", f"{samples:,.3f}"))
    heads = ("Statistic", "Overlap", "0 to 1 (95 %)", "Held out", "Samples")
    kinds = ("", "span", "number ends", "number", "number")
    least = table(heads, rows[:LEAST_ALIKE], kinds, label="The least alike")
    rest = table(heads, rows[LEAST_ALIKE:], kinds, label="The other statistics")
    if not rows[LEAST_ALIKE:]:
        return least
    return f"{least}<details><summary>The other {len(rows) - LEAST_ALIKE}</summary>{rest}</details>"


def copying_section(result: "Evaluation") -> str:
    """Return the longest run that each sample shares with train, beside what pieces by people share."""
    copying = result.copying
    if copying is None:
        return '<p class="empty">Nothing was compared with the training split.</p>'
    pieces, verdict, human = copying["pieces"], copying["verdict"], copying["human"]
    limits = [piece["human_limit"] for piece in pieces if piece["human_limit"] is not None]
    runs = [piece["match"]["n_notes"] if piece["match"] else 0 for piece in pieces]
    top = 1.1 * max([*runs, *limits, 1])
    rows = [_copy_row(place, piece, run, top) for place, (piece, run) in enumerate(zip(pieces, runs, strict=True))]
    heads = ("Sample", "Notes", "", "Longest run", "Human limit", "Of the training piece")
    shown = table(heads, rows, ("", "number", "span", "number", "number", "path"), label="Copied runs")
    return (
        f'<p>{_verdict_in_words(verdict)}</p><p class="lead">The longest run of notes that each sample shares with any'
        " training piece, in any key and at any tempo. The stroke is the human limit: 95 % of held-out pieces of that"
        f" length by people stay within it ({human['n_measured']:,} of {human['n_held_out']:,} were measured).</p>"
        f"{shown}"
    )


def _verdict_in_words(verdict: Mapping[str, Any]) -> str:
    if not verdict["n_judged"]:
        return "No sample could be judged: too few held-out pieces, or too few notes."
    n, p = verdict["n_judged"], verdict["p_value"]
    said = f"{verdict['n_beyond']} of {plural(n, 'judged sample')} beyond the human limit (p = {p:.3g}): "
    return said + ("more than pieces by people would be." if verdict["is_beyond"] else "no more than by chance.")


def _copy_row(place: int, piece: Mapping[str, Any], run: int, top: float) -> tuple[str, ...]:
    limit, match = piece["human_limit"], piece["match"]
    bar = {"low": 0, "high": run} if run else {}
    drawn = draw_interval(bar, Scale(low=0, high=top, mark=limit), 1)
    source = path_html(match["source_file"]) + f", {100 * match['share']:.0f} % of the sample" if match else ""
    flag = " beyond" if piece["is_beyond"] else ""
    numbers = (f"{run:,}{flag}", "unknown" if limit is None else f"{limit:,}")
    return f"{place:04d}", f"{piece['n_notes']:,}", drawn, *numbers, source


def continuation_section(test: "ContinuationTest | None", config: EvaluateConfig) -> str:
    """Return how the model goes on from held-out pieces, beside how they go on."""
    if test is None:
        return '<p class="empty">Off: evaluate.n_continuations is 0.</p>'
    if not test.pieces:
        return f'<p class="empty">No piece of the split has more than {config.prompt_tokens:,} tokens.</p>'
    figures = {
        "pieces": f"{len(test.pieces):,}",
        "nats of entropy per token": f"{test.metrics[f'{test.kind}/mean_entropy']:.3f}",
        "tokens drawn, mean": f"{test.metrics[f'{test.kind}/mean_length']:,.0f}",
        "ended by themselves": f"{100 * test.metrics[f'{test.kind}/ended_share']:.0f} %",
        "tokens per second": f"{test.tokens_per_second:,.0f}",
    }
    entropies = draw_curves("Entropy of the model's choice, nats", [_entropy_curve(test)], "tokens drawn before")
    return (
        f'<p class="lead">{_what_was_asked(test, config)}</p>{figure_list(figures)}'
        f'<div class="pair"><div>{_likeness(test)}</div>{entropies}</div>{_rolls(test)}{_rows(test)}'
    )


def _what_was_asked(test: "ContinuationTest", config: EvaluateConfig) -> str:
    n = len(test.pieces)
    if test.kind == "from_latents":
        return (
            "A model with latents cannot go on from a beginning: a latent stands for a whole window. It wrote the first"
            f" window of {plural(n, 'piece')} again from its likeliest latent, which is set beside the window itself."
        )
    short = f" {plural(test.n_too_short, 'piece')} of the split were too short." if test.n_too_short else ""
    return (
        f"The model went on from the first {config.prompt_tokens:,} tokens of {plural(n, 'piece')} of the split, for at"
        f" most {config.sample_tokens:,} tokens, under the grammar, as batches are written.{short} Entropies compare"
        " between models of the same encoding."
    )


def _entropy_curve(test: "ContinuationTest") -> list[tuple[int, float]]:
    """Return the mean entropy of all pieces that still go on, by tokens drawn."""
    lists = [piece.row["entropies"] for piece in test.pieces]
    curve = []
    for begin in range(0, max(map(len, lists)), TOKENS_TO_A_POINT):
        values = [value for entropies in lists for value in entropies[begin : begin + TOKENS_TO_A_POINT]]
        curve.append((begin, float(np.mean(values))))
    return curve


def _likeness(test: "ContinuationTest") -> str:
    rows = []
    labels = {"to_own": "to the piece's own music", "of_others": "between different pieces"}
    for feature, found in test.likeness.items():
        for name, label in labels.items():
            cells = _interval_cells(found[name].to_json(), Scale(low=0, high=1), 1 if name == "to_own" else 0)
            rows.append((f"{label_of(feature)}, {label}", *cells))
    heads, kinds = ("Mean distance, 0 to 1", "", "Value (95 %)"), ("", "span", "number ends")
    lead = (
        "The share of notes that would need another pitch class, or another duration, to be distributed as those that"
        " stand in the piece. Between the real music of different pieces it is the yardstick: below it, what was"
        " written belongs to its piece."
    )
    return f'<h3>Likeness</h3><p class="lead">{lead}</p>{table(heads, rows, kinds, label="Likeness")}'


def _rolls(test: "ContinuationTest") -> str:
    return f'<div class="rolls">{"".join(map(_roll, test.pieces[:ROLLS]))}</div>'


def _roll(piece: "Continuation") -> str:
    sides = (("as it stands", piece.original), ("as the model wrote it", piece.written))
    notes = [(what, piece.notes_of(score)) for what, score in sides]
    seconds = max([end for _, spans in notes for _, end, _, _ in spans] or [1.0])
    name = piece.opening.file
    drawn = ""
    for colour, (what, spans) in enumerate(notes):
        roll = draw_notes(f"{name} {what}", spans, seconds, colour)
        drawn += f'<p class="soft">{what}, {plural(len(spans), "note")}</p>{roll}'
    return f"<figure><figcaption><h3>{path_html(name)}</h3></figcaption>{drawn}</figure>"


def _rows(test: "ContinuationTest") -> str:
    rows = []
    for piece in test.pieces:
        row = piece.row
        lengths = (row["prompt_length"], row["generated_length"], row["continued_original_length"])
        entropy = "" if row["entropy"] is None else f"{row['entropy']:.3f}"
        rows.append(
            (
                path_html(row["file"]), escape(row["prompt"]), *(f"{n:,}" for n in lengths),
                "yes" if row["ended_with_eos"] else "no", entropy, f"{row['pitch_class_distance']:.2f}",
                f"{row['duration_distance']:.2f}", f"{row['generation_time']:.2f}",
            )
        )  # fmt: skip
    heads = (
        "Piece", "Row", "Given", "Drawn", "Compared with", "Ended", "Entropy", "Pitch classes", "Durations", "Seconds",
    )  # fmt: skip
    shown = table(heads, rows, ("path", "", *["number"] * 8), label="Continued pieces")
    return f'<h3 class="later">Each piece</h3><p class="lead">Lengths are in tokens, distances from 0 to 1.</p>{shown}'
