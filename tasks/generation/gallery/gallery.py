"""The gallery: a batch as one self-contained HTML file with sound, piano rolls, statistics and lineage.

The page itself is the template page.html with page.css, page.js and sound.js, in this folder. It has to work from disk,
over HTTP and inside a frame that may only run scripts, so everything is a data: address and nothing is fetched.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tasks.errors import ConfigError, plural
from tasks.music.render.figures import PART_COLOURS
from tasks.music.render.pianoroll import part_labels
from tasks.music.score import Score
from tasks.reporting.markup import UNPRINTABLE
from tasks.reporting.templates import data_address, digest_source, inlined, json_data, templates_of

AUDIO_SUFFIX = {"audio/mpeg": "mp3", "audio/flac": "flac", "audio/wav": "wav", "audio/ogg": "ogg"}
MAX_AUDIO_BYTES = 32 * 2**20  # of all pieces of a page, about 80 minutes: viewers read the whole file at once
SCRIPTS = ("sound.js", "page.js")  # in sequence in one element
# The page may use its own style, its own script and data inside the file.
POLICY = "default-src 'none'; img-src data:; media-src data:; base-uri 'none'; form-action 'none'"
MXL_MIME = "application/vnd.recordare.musicxml"


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """A span of a piano roll with a name, in seconds."""

    label: str
    onset_seconds: float
    end_seconds: float

    def __post_init__(self) -> None:
        _check_span(self.label, (self.onset_seconds, self.end_seconds))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Passage:
    """Other music to compare a piece with, such as the nearest training passage.

    Args:
        facts: lines of text about it: file, distance, licence.
        span_seconds: onset and end of what matches, in this passage; None: all of it.
        piece_span_seconds: onset and end of what matches in the piece; None: nothing is highlighted there.
    """

    title: str
    kind: Literal["prompt", "nearest training passage", "source"]
    score: Score
    facts: Sequence[str] = ()
    span_seconds: tuple[float, float] | None = None
    piece_span_seconds: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for span in (self.span_seconds, self.piece_span_seconds):
            if span is not None:
                _check_span(self.title, span)


def _check_span(name: str, span: tuple[float, float]) -> None:
    if not 0 <= span[0] <= span[1] < math.inf:
        raise ConfigError(f"{name!r}: {span[0]} to {span[1]} is no span of seconds")


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchFigure:
    """One row of the table at the head of the page: a figure of the batch beside the same of held-out music."""

    name: str
    generated: float
    held_out: float | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class GalleryPiece:
    """One piece of the gallery.

    Args:
        name: shown as its title; also the stem of the downloaded files.
        audio: compressed sound as from `encode_audio`; None: the page plays the notes with a sound of its own.
        png: picture for readers without scripts and for print.
        statistics, scores: number by name; pieces are sorted and filtered by each. Numbers that are not finite count as
            missing.
        prompt: name of the piece that it continues; `prompt_seconds` is where that ends.
        flags: short names such as `copy suspected`; pieces are filtered by them.
        marks: spans of the roll besides the prompt.
        comparisons: passages that the reader can open below the piece, see and hear.
        n_candidates: attempts that it was chosen from, by the score `chosen_by`.
        musicxml: a compressed score (.mxl) to download.
    """

    name: str
    midi: bytes
    score: Score
    audio: bytes | None = None
    audio_mime: str = "audio/mpeg"
    png: bytes | None = None
    statistics: Mapping[str, float] = field(default_factory=dict)
    lineage: Sequence[str] = ()
    prompt: str | None = None
    prompt_seconds: float | None = None
    warnings: Sequence[str] = ()
    scores: Mapping[str, float] = field(default_factory=dict)
    flags: Sequence[str] = ()
    marks: Sequence[Mark] = ()
    comparisons: Sequence[Passage] = ()
    n_candidates: int = 1
    chosen_by: str = ""
    musicxml: bytes | None = None

    def __post_init__(self) -> None:
        if self.audio_mime not in AUDIO_SUFFIX:
            raise ConfigError(f"audio type {self.audio_mime!r} of {self.name!r} is none of {', '.join(AUDIO_SUFFIX)}")


def build_gallery(
    title: str,
    subtitle: str,
    pieces: Sequence[GalleryPiece],
    facts: Mapping[str, str],
    *,
    batch_figures: Sequence[BatchFigure] = (),
    flags: Sequence[str] = (),
    path_rows: Sequence[Mapping[str, Any]] = (),
    max_audio_bytes: int = MAX_AUDIO_BYTES,
) -> str:
    """Return the whole page as HTML text; the same arguments give the same text.

    Args:
        pieces: in the order of the batch; each is about 0.6 MB a minute, nearly all of it sound.
        facts: shown below the subtitle, name and value.
        batch_figures: rows of the table below the facts.
        flags: lines about the batch, shown in a box.
        path_rows: rows of the table of distances along a path of latents, with a piece's name first.
        max_audio_bytes: sound that the page may hold, as files; the pieces after it are played by the page itself.
    """
    here = "tasks.generation.gallery"
    style, script = inlined(here, "page.css"), inlined(here, *SCRIPTS)
    sounding = _within_budget(pieces, max_audio_bytes)
    templates = templates_of(here)
    templates.filters |= {"label": _label, "number": _number, "clock": _clock}
    return templates.get_template("page.html").render(
        policy=f"{POLICY}; style-src {digest_source(style)}; script-src {digest_source(script)}",
        title=title,
        subtitle=subtitle,
        facts=facts,
        flags=flags,
        batch_figures=batch_figures,
        path_rows=path_rows,
        sorts=[
            (kind, label, dict.fromkeys(name for piece in pieces for name in getattr(piece, label)))
            for kind, label in (("score:", "scores"), ("stat:", "statistics"))
        ],
        piece_flags=dict.fromkeys(flag for piece in pieces for flag in piece.flags),
        count=plural(len(pieces), "piece"),
        pieces=[_shown(place, piece, place in sounding) for place, piece in enumerate(pieces)],
        style=style,
        script=script,
    )


def _within_budget(pieces: Sequence[GalleryPiece], max_audio_bytes: int) -> set[int]:
    """Return the places of the first pieces whose sound fits into the page."""
    n_bytes = np.cumsum([len(piece.audio or b"") for piece in pieces])
    fits = (n_bytes <= max_audio_bytes).tolist()
    return {place for place, piece in enumerate(pieces) if piece.audio is not None and fits[place]}


def _shown(place: int, piece: GalleryPiece, has_audio: bool) -> dict[str, Any]:
    """Return what the template shows of a piece."""
    seconds, label, names = _seconds(piece.score), f"piece-{place}", _part_names(piece.score)
    stem = re.sub(r"[^\w.-]+", "_", UNPRINTABLE.sub("_", piece.name)).strip("._") or "piece"
    return {
        "piece": piece,
        "label": label,
        "seconds": seconds,
        "stem": stem,
        "audio": data_address(piece.audio_mime, piece.audio) if has_audio and piece.audio is not None else "",
        "audio_suffix": AUDIO_SUFFIX[piece.audio_mime],
        "picture": data_address("image/png", piece.png) if piece.png is not None else "",
        "midi": data_address("audio/midi", piece.midi),
        "musicxml": data_address(MXL_MIME, piece.musicxml) if piece.musicxml is not None else "",
        "parts": [(number % len(PART_COLOURS), name) for number, name in enumerate(names)] if len(names) > 1 else [],
        "data": json_data(_data(piece, seconds)),
        "notes": json_data(_roll_data(piece.score)),
        "passages": [_shown_passage(f"{label}-passage-{i}", passage) for i, passage in enumerate(piece.comparisons)],
    }


def _shown_passage(label: str, passage: Passage) -> dict[str, Any]:
    seconds = _seconds(passage.score)
    data = {
        "title": passage.title,
        "kind": passage.kind,
        "seconds": seconds,
        "n_notes": len(passage.score.notes.pitch),
        "span": passage.span_seconds or (0.0, seconds),
        "piece_span": passage.piece_span_seconds,
    }
    return {
        "passage": passage,
        "label": label,
        "seconds": seconds,
        "data": json_data(data),
        "notes": json_data(_roll_data(passage.score)),
    }


def _data(piece: GalleryPiece, seconds: float) -> dict[str, Any]:
    """Return what is needed of every piece at once; the notes are read when the piece is first drawn or played."""
    searched = [
        piece.name, piece.prompt or "", *piece.flags, *piece.warnings, *piece.lineage, *_part_names(piece.score),
        *(passage.title for passage in piece.comparisons),
    ]  # fmt: skip
    figures = {f"score:{name}": value for name, value in piece.scores.items()}
    figures |= {f"stat:{name}": value for name, value in piece.statistics.items()}
    return {
        "seconds": seconds,
        "n_notes": len(piece.score.notes.pitch),
        "prompt_seconds": piece.prompt_seconds,
        "figures": {name: float(value) if math.isfinite(value) else None for name, value in figures.items()},
        "flags": list(piece.flags),
        "marks": [[mark.label, mark.onset_seconds, mark.end_seconds, "copied"] for mark in piece.marks],
        "search": " ".join(searched),
    }


def _part_names(score: Score) -> list[str]:
    return part_labels(score) if len(score.notes.pitch) else []


def _roll_data(score: Score) -> dict[str, Any]:
    notes, pedals = score.notes, score.pedals
    return {
        "notes": {
            "onset": _milliseconds(notes.onset_seconds),
            "end": _milliseconds(notes.end_seconds),
            "pitch": notes.pitch.tolist(),
            "velocity": notes.velocity.tolist(),
            "part": notes.track.tolist(),
            "drum": notes.is_drum.astype(int).tolist(),
        },
        "pedal": {
            "onset": _milliseconds(pedals.onset_seconds),
            "end": _milliseconds(pedals.end_seconds),
        },
    }


def _seconds(score: Score) -> float:
    ends = score.notes.end_seconds
    return max(round(float(ends.max()), 3), 0.1) if len(ends) else 1.0


def _milliseconds(seconds: NDArray[np.float64]) -> list[int]:
    return np.rint(seconds * 1000).astype(np.int64).tolist()


def _label(statistic: str) -> str:
    return statistic.removeprefix("n_").replace("_", " ")


def _number(value: Any) -> str:
    if not math.isfinite(value):
        return "n/a"
    if float(value).is_integer() or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"


def _clock(seconds: float) -> str:
    return f"{int(seconds // 60)}:{int(seconds % 60):02d}"
