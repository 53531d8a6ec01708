"""The comparison page of models: figures with intervals, curves, and pieces to listen to."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from tasks.errors import DamagedFile, NotFound
from tasks.evaluation.champions import bits_above
from tasks.evaluation.page.page import number
from tasks.generation.batch_files import check_piece, list_manifests, read_run_note
from tasks.music.render.audio import audio_of
from tasks.reporting.curves import draw_curves
from tasks.reporting.frame import assemble_page
from tasks.reporting.templates import data_address, templates_of
from tasks.storage.home import Home
from tasks.storage.integrity import warn_once
from tasks.tracking.mlflow_tracker import ModelVersion, Tracker

PIECES = 3  # of each model to listen to
MOST_MODELS = 8  # which have a colour each
CURVES = (("val/loss", "Validation loss, nats per token"), ("train/loss", "Training loss, nats per token"))
SECTIONS = (("figures", "Held-out figures"), ("curves", "Curves"), ("listen", "Listen"), ("origin", "Origin"))
FIGURES = (
    ("bits_per_note", "bits per note", 3),
    ("bits_per_second", "bits per second", 2),
    ("nll_per_token", "nats per token", 4),
    ("accuracy", "accuracy", 4),
    ("baseline/accuracy", "accuracy of the most frequent token", 4),
    ("grammar_error_rate", "grammar errors per token", 5),
    ("samples/typicality", "typicality of samples", 3),
    ("samples/fd_feat", "Fréchet distance of features", 2),
    ("samples/longest_copied_run", "longest copied run", 0),
    ("continuation/mean_entropy", "entropy of continuations, nats", 3),
    ("continuation/pitch_class_distance", "distance of continuations in pitch classes", 3),
)  # metric, label, digits

_LIKELIHOOD, _SAMPLES, _CONTINUATIONS = "figures of held-out music", "figures of samples", "figures of continuations"
CHANGED_BY = {  # setting of an evaluation -> the figures that it changes
    "seq_len": _LIKELIHOOD,
    "n_samples": _SAMPLES,
    "sample_tokens": f"{_SAMPLES} and of continuations",
    "n_continuations": _CONTINUATIONS,
    "prompt_tokens": _CONTINUATIONS,
    "seed": f"{_SAMPLES} and of continuations",
}


@dataclass(frozen=True, slots=True)
class Heard:
    """A piece to listen to."""

    name: str
    png: bytes | None
    audio: bytes | None
    mime: str


@dataclass(frozen=True, slots=True)
class Contestant:
    """One model and the facts about it.

    Args:
        scored_on: dataset version and split of its newest evaluation, or empty.
        settings: those of that evaluation which change figures, by name.
        metrics: of that evaluation, without the split's name.
        piece_nats: of each held-out piece, in the split's order.
        curves: metric -> (step, value), of its training.
        batch: its newest batch, or empty.
    """

    model: ModelVersion
    scored_on: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    piece_nats: Sequence[float] = ()
    curves: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)
    batch: str = ""
    pieces: Sequence[Heard] = ()


def gather_contestants(home: Home, tracker: Tracker, references: Sequence[str]) -> list[Contestant]:
    """Return the facts about two to eight models, each once, in the given order; NotFound where one is not there."""
    models = list(dict.fromkeys(tracker.model(reference) for reference in references))
    if not 2 <= len(models) <= MOST_MODELS:
        raise NotFound(f"{len(models)} different models to compare; 2 to {MOST_MODELS} can be")
    return [_contestant(home, tracker, model) for model in models]


def _contestant(home: Home, tracker: Tracker, model: ModelVersion) -> Contestant:
    evaluations = [run for run in tracker.evaluations(model) if _split_of(run["metrics"]) in ("test", "validation")]
    facts: dict[str, Any] = {}
    if evaluations:
        run = evaluations[0]
        split = _split_of(run["metrics"])
        version = run["tags"].get("orchestrion.dataset_version", "")
        metrics = {key.removeprefix(f"{split}/"): value for key, value in run["metrics"].items()}
        facts = {
            "scored_on": f"{version}/{split}",
            "settings": _settings_of(tracker.params(run["run_id"])),
            "metrics": metrics,
            "piece_nats": tracker.piece_scores(run["run_id"]) or (),
        }
    batch = _newest_batch(home, model.reference)
    curves = {key: tracker.curve(model.run_id, key) for key, _ in CURVES} if model.run_id else {}
    pieces = _pieces_of(home.generations / batch / "pieces") if batch else []
    return Contestant(model, curves=curves, batch=batch, pieces=pieces, **facts)


def _split_of(metrics: Mapping[str, float]) -> str:
    return next((key.partition("/")[0] for key in metrics if key.endswith("/nll_per_token")), "")


def _settings_of(params: Mapping[str, str]) -> dict[str, str]:
    return {name: params[key] for name in CHANGED_BY if (key := f"evaluate.{name}") in params}


def _newest_batch(home: Home, model: str) -> str:
    """Return a model's newest batch by the numbers of batches; older batches without a number count by their time."""
    ages = {
        folder.name: (read_run_note(folder).get("number", 0), folder.stat().st_mtime)
        for folder, manifest in list_manifests(home)
        if manifest["model_version"] == model
    }
    return max(ages, key=lambda name: ages[name], default="")


def _pieces_of(folder: Path) -> list[Heard]:
    heard = []
    for sidecar in sorted(folder.glob("*.json"))[:PIECES]:
        try:
            check_piece(sidecar)
        except DamagedFile as error:
            warn_once(f"{error}; the piece is not shown")
            continue
        png = sidecar.with_suffix(".png")
        heard.append(
            Heard(sidecar.stem, png.read_bytes() if png.exists() else None, *audio_of(sidecar.with_suffix("")))
        )
    return heard


def build_comparison(contestants: Sequence[Contestant]) -> str:
    """Return the page as HTML; the others are compared with the first model."""
    scored = {contestant.scored_on for contestant in contestants if contestant.scored_on}
    templates = templates_of("tasks.review")
    templates.globals |= {"charts": _charts, "data_address": data_address, "figure_rows": _figure_rows}
    page = templates.get_template("page.html").module
    sections = [(label, title, getattr(page, label)(contestants)) for label, title in SECTIONS]
    on = ", ".join(sorted(scored)) or "nothing"
    return assemble_page(
        "Comparison of models", f"{len(contestants)} models", Markup("scored on {}").format(on), {},
        warnings_of(contestants), sections,
    )  # fmt: skip


def warnings_of(contestants: Sequence[Contestant]) -> list[str]:
    """Return what a reader must know before the figures: models without any, and figures that do not compare."""
    warnings = [f"{c.model.reference} has not been evaluated" for c in contestants if not c.scored_on]
    evaluated = [contestant for contestant in contestants if contestant.scored_on]
    scored = {contestant.scored_on for contestant in evaluated}
    if len(scored) > 1:
        warnings.append(f"scored on different music, so figures do not compare: {', '.join(sorted(scored))}")
    for name, figures in CHANGED_BY.items():
        values = {c.model.reference: c.settings.get(name, "unknown") for c in evaluated}
        if len(set(values.values())) > 1:
            listed = ", ".join(f"{value} ({reference})" for reference, value in values.items())
            warnings.append(f"evaluated with different {name}, which changes {figures}: {listed}")
    for contestant in evaluated:
        wrong = [name for name, value in contestant.metrics.items() if not math.isfinite(value)]
        if wrong:
            warnings.append(f"{contestant.model.reference} has figures that are not finite: {', '.join(wrong[:3])}")
    return warnings


def difference_of(one: Contestant, first: Contestant) -> str:
    """Return how many bits per note one model is above another, with its 95 % interval; empty if it is unknown."""
    window = [side.settings.get("seq_len") for side in (one, first)]
    if one is first or one.scored_on != first.scored_on or window[0] != window[1]:
        return ""
    if "bits_per_note" not in one.metrics:  # its ids represent no notes
        return ""
    found = bits_above(one.metrics["bits_per_note"], one.piece_nats, first.piece_nats)
    return f"{found.value:+.3f} ({found.low:+.3f} to {found.high:+.3f})" if found else ""


def _figure_rows(contestants: Sequence[Contestant]) -> tuple[list[str], list[list[str]]]:
    """Return heads and rows of the table of figures."""
    shown = [figure for figure in FIGURES if any(figure[0] in contestant.metrics for contestant in contestants)]
    differences = [difference_of(contestant, contestants[0]) for contestant in contestants]
    rows = []
    for contestant, difference in zip(contestants, differences, strict=True):
        figures = [number(contestant.metrics.get(key), digits) for key, _, digits in shown]
        cells = [figures[0], difference, *figures[1:]] if any(differences) and shown else figures
        rows.append([contestant.model.reference, *cells])
    labels = [label for _, label, _ in shown]
    if any(differences):
        labels.insert(1, "bits per note above the first (95 %)")
    return ["model", *labels], rows


def _charts(contestants: Sequence[Contestant]) -> Markup:
    charts = [draw_curves(title, [list(c.curves.get(key, ())) for c in contestants]) for key, title in CURVES]
    return Markup().join(charts)
