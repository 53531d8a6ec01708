"""The gallery of a batch: each piece with scores, prompt, and the most similar training passage."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from models.config import SamplingConfig
from tasks.config.serialization import to_json
from tasks.errors import plural
from tasks.generation.batch_files import asked_words
from tasks.generation.candidates import read_piece
from tasks.generation.gallery.gallery import (
    MAX_AUDIO_BYTES,
    BatchFigure,
    GalleryPiece,
    Mark,
    Passage,
    build_gallery,
)
from tasks.generation.judge import COPIED, HEADLINES, Judge
from tasks.music.render.audio import audio_of
from tasks.music.score import Score

MOST_SOURCES = 200  # pieces that are shown with the passage they are most like, for each is read from the dataset


def batch_page(
    judge: Judge,
    pieces: Path,
    sidecars: Sequence[dict[str, Any]],
    manifest: Mapping[str, Any],
    scores: Mapping[str, Score],
) -> str:
    """Return the page as HTML; music that is not among `scores`, by name, is read from the files below `pieces`."""
    shown, n_bytes = [], 0
    for place, sidecar in enumerate(sidecars):
        score = scores.get(sidecar["name"]) or read_piece(pieces / f"{sidecar['name']}.mid", sidecar)
        sourced = judge if place < MOST_SOURCES else None
        shown.append(_piece(pieces, sidecar, score, sourced, n_bytes <= MAX_AUDIO_BYTES))
        n_bytes += len(shown[-1].audio or b"")
    usual = to_json(SamplingConfig())
    sampling = ", ".join(
        f"{key} {value}"
        for key, value in manifest["config"]["sampling"].items()
        if value != usual[key] or key in ("temperature", "max_tokens")
    )
    facts = {
        "model": manifest["model_version"],
        "dataset": manifest["dataset_version"],
        "run": manifest["model_run_id"],
        "code": manifest["code_commit"],
        "seed": str(manifest["config"]["seed"]),
        "sampling": sampling,
    }
    subtitle = f"{plural(manifest['n_pieces'], 'piece')}, {manifest['n_ended']} of them ended by themselves"
    if manifest["n_attempts"] > manifest["n_pieces"]:
        subtitle += f", chosen from {manifest['n_attempts']}"
    if asked := asked_words(manifest):
        subtitle += f"; {asked}"
    return build_gallery(
        manifest["batch"], subtitle, shown, facts, batch_figures=_figures(manifest["judgement"]),
        flags=manifest["flags"], path_rows=manifest.get("path", {}).get("rows", ()),
    )  # fmt: skip


def _figures(judgement: Mapping[str, Any] | None) -> list[BatchFigure]:
    """Return the rows of the table that sets the batch beside held-out music."""
    if judgement is None:
        return []
    rows = [
        BatchFigure(
            name=name.replace("_", " "),
            generated=metric["generated"]["value"],
            held_out=metric["held_out"]["value"],
            note=_interval(metric["generated"]),
        )
        for name in HEADLINES
        if (metric := judgement["metrics"].get(name)) and metric["generated"]["value"] is not None
    ]
    distance = judgement["fd_feat"]
    if distance["value"] is not None:
        note = f"{_interval(distance)}; human pieces among themselves up to {distance['chance_high']:.3g}"
        rows.append(BatchFigure(name="Fréchet distance of features", generated=distance["value"], note=note))
    return rows


def _interval(figure: Mapping[str, Any]) -> str:
    if figure.get("low") is None or figure.get("high") is None:
        return ""
    return f"95 %: {figure['low']:.3g} to {figure['high']:.3g}"


def _piece(pieces: Path, sidecar: dict[str, Any], score: Score, judge: Judge | None, with_sound: bool) -> GalleryPiece:
    def file(suffix: str) -> bytes | None:
        path = pieces / f"{sidecar['name']}.{suffix}"
        return path.read_bytes() if path.exists() else None

    audio, audio_mime = audio_of(pieces / sidecar["name"]) if with_sound else (None, "audio/ogg")
    marks, comparisons = _nearest(sidecar, judge)
    chosen, prompt = sidecar["chosen_from"], sidecar["prompt"]
    return GalleryPiece(
        name=sidecar["name"],
        midi=(pieces / f"{sidecar['name']}.mid").read_bytes(),
        score=score,
        audio=audio,
        audio_mime=audio_mime,
        png=file("png"),
        musicxml=file("mxl"),
        statistics=sidecar["statistics"],
        scores=sidecar["scores"],
        flags=sidecar["flags"],
        marks=marks,
        comparisons=comparisons,
        n_candidates=chosen["n"] if chosen else 1,
        chosen_by=chosen["by"] if chosen else "",
        lineage=[
            f"{sidecar['n_tokens']} tokens, {_ending(sidecar)}",
            f"midi sha256 {sidecar['midi_sha256']}",
        ],
        prompt=prompt["name"] if prompt else None,
        prompt_seconds=prompt["seconds"] if prompt else None,
        warnings=sidecar["warnings"],
    )


def _ending(sidecar: Mapping[str, Any]) -> str:
    ends = {"itself": "ended by itself", "limit": "ended at the limit asked for", "tokens": "cut at the most tokens"}
    return ends[sidecar["ended_by"]]


def _nearest(sidecar: Mapping[str, Any], judge: Judge | None) -> tuple[list[Mark], list[Passage]]:
    found = judge.source_of(sidecar) if judge else None
    if found is None:
        return [], []
    match, passage = found
    span = (match.start_seconds, match.end_seconds)
    label = f"{plural(match.n_notes, 'note')} as in {match.source_file}"
    facts = [
        f"{plural(match.n_notes, 'note')} in a row, {100 * match.share:.0f} % of the piece; people share up to"
        f" {sidecar['copying']['human_limit'] or 'an unknown number'}",
        f"from {match.source_start_seconds:.1f} s on, transposed by {match.transposition:+d}, {match.stretch:.2f} times"
        " as long",
    ]
    marks = [Mark(label=label, onset_seconds=span[0], end_seconds=span[1])] if COPIED in sidecar["flags"] else []
    passages = [
        Passage(
            title=match.source_file, kind="nearest training passage", score=passage, facts=facts,
            piece_span_seconds=span,
        )
    ]  # fmt: skip
    return marks, passages
