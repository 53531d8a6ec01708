"""Sections of an evaluation's page about generated music: samples, copies, continuations.

Each section takes the macros of page.html as `page`.
"""

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
from tasks.reporting.templates import path_html

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


def sample_section(page: Any, result: "Evaluation", config: EvaluateConfig) -> Markup:
    """Return distributions of statistics of samples over those of held-out pieces, and their distances."""
    if result.judgement is None or not result.values:
        return page.empty("No samples were drawn.")
    j, m = result.judgement, result.metrics
    lead = (
        f"{plural(result.n_samples, 'sample')} of at most {config.sample_tokens:,} tokens, drawn without the grammar so"
        f" that mistakes show ({m['grammar_error_rate']:.5f} a token), beside as long beginnings of"
        f" {plural(j['n_held_out'], 'piece')} of the split. Intervals are 95 %, by bootstrap over pieces."
    )
    names = ("held out", "samples")
    charts = Markup().join(_spread(name, names, result) for name in CHARTS if name in result.values)
    overlaps = _overlaps(page, result)
    shown = {"lead": lead, "distances": _distances(page, j), "charts": charts}
    return page.samples(shown | {"least": overlaps[:LEAST_ALIKE], "others": overlaps[LEAST_ALIKE:]})


def _spread(name: str, sets: Sequence[str], result: "Evaluation") -> Markup:
    assert result.judgement is not None
    figures = result.judgement["metrics"][name]
    overlap = with_interval(figures["overlap"])
    lead = f"overlap {overlap}" if overlap else "too few pieces for an overlap"
    means = (figures["held_out"], figures["generated"])
    return draw_spreads(label_of(name), lead, list(zip(sets, result.values[name], means, strict=True)))


def _distances(page: Any, judgement: Mapping[str, Any]) -> list[tuple[str, ...]]:
    fd, rows = judgement["fd_feat"], list[tuple[str, str, str, str]]()
    for colour, side, what in ((1, "generated", "samples"), (0, "held_out", "held-out pieces")):
        cells = _interval_cells(page, judgement["typicality"][side], Scale(low=0, high=1), colour)
        rows.append((f"typicality of {what}", *cells, "1 is typical"))
    if fd["value"] is not None:
        ends = [fd[key] for key in ("value", "high", "chance_high") if fd.get(key) is not None]
        scale = Scale(low=0, high=1.1 * max(ends) or 1.0, mark=fd.get("chance"))
        by_chance = "" if fd.get("chance") is None else f"{fd['chance']:.2f} by chance, at most {fd['chance_high']:.2f}"
        rows.append(("Fréchet distance of features", *_interval_cells(page, fd, scale), by_chance))
    return rows


def _interval_cells(page: Any, figure: Mapping[str, Any], scale: Scale, colour: int = 1) -> tuple[str, str]:
    value, _, ends = (with_interval(figure) or figure.get("reason", "")).partition(" (")
    return draw_interval(figure, scale, colour), page.ends(value, ends)


def _overlaps(page: Any, result: "Evaluation") -> list[tuple[str, ...]]:
    """Return rows of all statistics, the least alike first."""
    assert result.judgement is not None
    figures = result.judgement["metrics"]
    ranked = sorted(figures, key=lambda name: (figures[name]["overlap"]["value"] or 0.0, name))
    rows = []
    for name in ranked:
        held_out, samples = result.statistics[name]
        drawn, value = _interval_cells(page, figures[name]["overlap"], Scale(low=0, high=1))
        rows.append((label_of(name), drawn, value, f"{held_out:,.3f}", f"{samples:,.3f}"))
    return rows


def copying_section(page: Any, result: "Evaluation") -> Markup:
    """Return the longest run that each sample shares with train, beside what pieces by people share."""
    copying = result.copying
    if copying is None:
        return page.empty("Nothing was compared with the training split.")
    pieces, verdict, human = copying["pieces"], copying["verdict"], copying["human"]
    limits = [piece["human_limit"] for piece in pieces if piece["human_limit"] is not None]
    runs = [piece["match"]["n_notes"] if piece["match"] else 0 for piece in pieces]
    top = 1.1 * max([*runs, *limits, 1])
    rows = [_copy_row(place, piece, run, top) for place, (piece, run) in enumerate(zip(pieces, runs, strict=True))]
    return page.copying({"words": _verdict_in_words(verdict), "human": human, "rows": rows})


def _verdict_in_words(verdict: Mapping[str, Any]) -> str:
    if not verdict["n_judged"]:
        return "No sample could be judged: too few held-out pieces, or too few notes."
    n, p = verdict["n_judged"], verdict["p_value"]
    counted = f"{verdict['n_beyond']} of {plural(n, 'judged sample')} beyond the human limit (p = {p:.3g}): "
    return counted + ("more than pieces by people would be." if verdict["is_beyond"] else "no more than by chance.")


def _copy_row(place: int, piece: Mapping[str, Any], run: int, top: float) -> tuple[str, ...]:
    limit, match = piece["human_limit"], piece["match"]
    bar = {"low": 0, "high": run} if run else {}
    drawn = draw_interval(bar, Scale(low=0, high=top, mark=limit), 1)
    source = path_html(match["source_file"]) + f", {100 * match['share']:.0f} % of the sample" if match else ""
    flag = " beyond" if piece["is_beyond"] else ""
    numbers = (f"{run:,}{flag}", "unknown" if limit is None else f"{limit:,}")
    return f"{place:04d}", f"{piece['n_notes']:,}", drawn, *numbers, source


def continuation_section(page: Any, test: "ContinuationTest | None", config: EvaluateConfig) -> Markup:
    """Return the section that compares the model's continuations of held-out pieces with the originals."""
    if test is None:
        return page.empty("Off: evaluate.n_continuations is 0.")
    if not test.pieces:
        return page.empty(f"No piece of the split has more than {config.prompt_tokens:,} tokens.")
    figures = {
        "pieces": f"{len(test.pieces):,}",
        "nats of entropy per token": f"{test.metrics[f'{test.kind}/mean_entropy']:.3f}",
        "tokens drawn, mean": f"{test.metrics[f'{test.kind}/mean_length']:,.0f}",
        "ended by themselves": f"{100 * test.metrics[f'{test.kind}/ended_share']:.0f} %",
        "tokens per second": f"{test.tokens_per_second:,.0f}",
    }
    entropies = draw_curves("Entropy of the model's choice, nats", [_entropy_curve(test)], "tokens drawn before")
    shown = {"lead": _what_was_asked(test, config), "figures": figures, "entropies": entropies}
    shown |= {"likeness": _likeness(page, test), "rolls": list(map(_roll, test.pieces[:ROLLS]))}
    return page.continuations(shown | {"rows": _rows(test)})


def _what_was_asked(test: "ContinuationTest", config: EvaluateConfig) -> str:
    n = len(test.pieces)
    if test.kind == "from_latents":
        return (
            "A model with latents cannot continue a beginning: a latent represents a whole window. It wrote the first"
            f" window of {plural(n, 'piece')} again from its likeliest latent, for comparison with the window itself."
        )
    short = f" {plural(test.n_too_short, 'piece')} of the split were too short." if test.n_too_short else ""
    return (
        f"The model continued the first {config.prompt_tokens:,} tokens of {plural(n, 'piece')} of the split, for at"
        f" most {config.sample_tokens:,} tokens, under the grammar, as batches are written.{short} Entropies compare"
        " between models of the same encoding."
    )


def _entropy_curve(test: "ContinuationTest") -> list[tuple[int, float]]:
    """Return the mean entropy of all pieces that have not ended, by tokens drawn."""
    lists = [piece.row["entropies"] for piece in test.pieces]
    curve = []
    for begin in range(0, max(map(len, lists)), TOKENS_TO_A_POINT):
        values = [value for entropies in lists for value in entropies[begin : begin + TOKENS_TO_A_POINT]]
        curve.append((begin, float(np.mean(values))))
    return curve


def _likeness(page: Any, test: "ContinuationTest") -> list[tuple[str, ...]]:
    rows = []
    labels = {"to_own": "to the piece's own music", "of_others": "between different pieces"}
    for feature, found in test.likeness.items():
        for name, label in labels.items():
            cells = _interval_cells(page, found[name].to_json(), Scale(low=0, high=1), 1 if name == "to_own" else 0)
            rows.append((f"{label_of(feature)}, {label}", *cells))
    return rows


def _roll(piece: "Continuation") -> tuple[str, list[tuple[str, Markup]]]:
    """Return the name of a piece, and both its rolls with their captions."""
    sides = (("as it stands", piece.original), ("as the model wrote it", piece.written))
    notes = [(what, piece.notes_of(score)) for what, score in sides]
    seconds = max([end for _, spans in notes for _, end, _, _ in spans] or [1.0])
    name = piece.opening.file
    return name, [
        (f"{what}, {plural(len(spans), 'note')}", draw_notes(f"{name} {what}", spans, seconds, colour))
        for colour, (what, spans) in enumerate(notes)
    ]


def _rows(test: "ContinuationTest") -> list[tuple[str, ...]]:
    rows = []
    for piece in test.pieces:
        row = piece.row
        lengths = (row["prompt_length"], row["generated_length"], row["continued_original_length"])
        entropy = "" if row["entropy"] is None else f"{row['entropy']:.3f}"
        rows.append(
            (
                path_html(row["file"]), row["prompt"], *(f"{n:,}" for n in lengths),
                "yes" if row["ended_with_eos"] else "no", entropy, f"{row['pitch_class_distance']:.2f}",
                f"{row['duration_distance']:.2f}", f"{row['generation_time']:.2f}",
            )
        )  # fmt: skip
    return rows
