"""A batch of pieces as one HTML file: sound, piano rolls, statistics and lineage, with nothing outside the file.

The page itself lives in `gallery_page/` (page.html, page.css, page.js). It has to work from disk, over HTTP and inside
a frame that may only run scripts, so everything is a data: address and nothing is fetched, stored or loaded.
"""

import base64
import hashlib
import html
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from tasks.errors import ConfigError
from tasks.music.render.pianoroll import PART_COLOURS, part_labels
from tasks.reporting.markup import UNPRINTABLE
from tasks.words import plural

if TYPE_CHECKING:
    from tasks.music.score import Score  # for names only: building a page reads no MIDI

MAX_PART_NAMES = 12  # listed below a piano roll
AUDIO_SUFFIX = {"audio/mpeg": "mp3", "audio/flac": "flac", "audio/wav": "wav", "audio/ogg": "ogg"}
MAX_AUDIO_BYTES = 32 * 2**20  # of all pieces of a page, about 80 minutes: viewers read the whole file at once
SCRIPTS = ("sound.js", "page.js")  # one after the other in one element
MXL_MIME = "application/vnd.recordare.musicxml"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RollNotes:
    """What the piano roll of one piece shows: N notes and Q pedal spans, times in seconds, parts counted from 0."""

    onset_seconds: NDArray[np.float64]
    end_seconds: NDArray[np.float64]
    pitch: NDArray[np.integer]
    velocity: NDArray[np.integer]
    part: NDArray[np.integer]
    is_drum: NDArray[np.bool_]
    part_names: Sequence[str] = ()
    pedal_onset_seconds: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    pedal_end_seconds: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    @classmethod
    def from_score(cls, score: "Score") -> "RollNotes":
        """Take notes, pedal spans and the names of the parts from a score; a part is a track."""
        notes, pedals = score.notes, score.pedals
        return cls(
            onset_seconds=notes.onset_seconds, end_seconds=notes.end_seconds, pitch=notes.pitch,
            velocity=notes.velocity, part=notes.track, is_drum=notes.is_drum, part_names=part_labels(score),
            pedal_onset_seconds=pedals.onset_seconds, pedal_end_seconds=pedals.end_seconds,
        )  # fmt: skip

    @classmethod
    def empty(cls) -> "RollNotes":
        """Return the roll of a piece without notes."""
        seconds, whole = np.zeros(0), np.zeros(0, np.int64)
        return cls(
            onset_seconds=seconds,
            end_seconds=seconds,
            pitch=whole,
            velocity=whole,
            part=whole,
            is_drum=np.zeros(0, np.bool_),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """A stretch of a piano roll with a name, in seconds; `copied` ones stand out."""

    label: str
    onset_seconds: float
    end_seconds: float
    kind: Literal["copied", "other"] = "copied"

    def __post_init__(self) -> None:
        if not 0 <= self.onset_seconds <= self.end_seconds < math.inf:
            raise ConfigError(f"mark {self.label!r} from {self.onset_seconds} to {self.end_seconds} s is no stretch")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Passage:
    """Other music to compare a piece with: its prompt, the nearest training passage, its source.

    Args:
        facts: lines of text about it: file, distance, licence.
        span_seconds: onset and end of what matches, in this passage; None: all of it.
        piece_span_seconds: onset and end of what matches in the piece; None: nothing is highlighted there.
    """

    title: str
    kind: Literal["prompt", "nearest training passage", "source"]
    notes: RollNotes
    facts: Sequence[str] = ()
    span_seconds: tuple[float, float] | None = None
    piece_span_seconds: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for span in (self.span_seconds, self.piece_span_seconds):
            if span is not None and not 0 <= span[0] <= span[1] < math.inf:
                raise ConfigError(f"span {span} of {self.title!r} is no stretch of seconds")


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
        audio: compressed sound as from `audio.encode_audio`; None: the page plays the notes with a sound of its own.
        png: picture for readers without scripts and for print, or None.
        statistics: number by name; pieces can be sorted by each, and what is not finite counts as missing.
        lineage: lines of text about where the piece comes from.
        prompt: name of the piece that it continues, or None.
        prompt_seconds: end of the prompt inside the piece.
        warnings: lines of text shown in a box of their own.
        scores: number by name, shown first; pieces are sorted and filtered by these and by the statistics.
        flags: short names such as `copy suspected`, shown beside the title; pieces are filtered by them.
        marks: stretches of the roll beside the prompt.
        comparisons: passages that the reader can open below the piece, see and hear.
        n_candidates: of how many it was chosen; 1: it was not.
        chosen_by: the score that chose it.
        musicxml: a compressed score (.mxl) to download, or None.
    """

    name: str
    midi: bytes
    notes: RollNotes
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
    max_audio_bytes: int = MAX_AUDIO_BYTES,
) -> str:
    """Return the whole page as HTML text; the same arguments give the same text.

    Args:
        pieces: in the order of the batch; each is about 0.6 MB a minute, nearly all of it sound.
        facts: shown below the subtitle, name and value.
        batch_figures: rows of the table below the facts.
        flags: lines about the batch, shown in a box.
        max_audio_bytes: sound that the page may hold, as files; the pieces behind it are played by the page itself.
    """
    page = resources.files("tasks.generation.gallery")
    style = (page / "page.css").read_text(encoding="utf-8")
    script = "\n".join((page / name).read_text(encoding="utf-8") for name in SCRIPTS)
    sounding = _within_budget(pieces, max_audio_bytes)
    parts = {
        "policy": _policy(style, script),
        "title": _text(title),
        "subtitle": _text(subtitle),
        "facts": "".join(f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>" for name, value in facts.items()),
        "flags": _lines("warnings", flags),
        "figures": _figure_table(batch_figures),
        "sorts": "".join(_options(pieces)),
        "flagnames": "".join(
            f'<option value="{_text("flag:" + flag)}">{_text(flag)}</option>'
            for flag in dict.fromkeys(flag for piece in pieces for flag in piece.flags)
        ),
        "count": plural(len(pieces), "piece"),
        "pieces": "\n".join(_article(place, piece, place in sounding) for place, piece in enumerate(pieces)),
        "style": style,
        "script": script,
    }
    frame = (page / "page.html").read_text(encoding="utf-8")
    # One pass, so that nothing inside a value is taken for a marker.
    return re.sub("@@([a-z]+)@@", lambda marker: parts[marker[1]], frame)


def _within_budget(pieces: Sequence[GalleryPiece], max_audio_bytes: int) -> set[int]:
    """Return the places of the first pieces whose sound fits into the page."""
    n_bytes = np.cumsum([len(piece.audio or b"") for piece in pieces])
    fits = (n_bytes <= max_audio_bytes).tolist()
    return {place for place, piece in enumerate(pieces) if piece.audio is not None and fits[place]}


def _options(pieces: Sequence[GalleryPiece]) -> Iterator[str]:
    """List the scores, then the statistics, as entries of a list."""
    for kind, label, of_piece in (
        ("score:", "scores", lambda piece: piece.scores),
        ("stat:", "statistics", lambda piece: piece.statistics),
    ):
        names = dict.fromkeys(name for piece in pieces for name in of_piece(piece))
        if names:
            options = (f'<option value="{_text(kind + name)}">{_text(_label(name))}</option>' for name in names)
            yield f'<optgroup label="{label}">{"".join(options)}</optgroup>'


def _figure_table(figures: Sequence[BatchFigure]) -> str:
    if not figures:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{_text(_label(figure.name))}</th><td>{_number(figure.generated)}</td>'
        f"<td>{'' if figure.held_out is None else _number(figure.held_out)}</td><td>{_text(figure.note)}</td></tr>"
        for figure in figures
    )
    return (
        '<details class="figures"><summary>Figures of the batch</summary><div class="scroll" tabindex="0" '
        'role="region" aria-label="Figures of the batch"><table><thead><tr><th scope="col">figure</th>'
        '<th scope="col">generated</th><th scope="col">held-out</th><th scope="col"></th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div></details>"
    )


def _policy(style: str, script: str) -> str:
    """Forbid the page everything but its own style, its own script and data inside the file."""
    return (
        "default-src 'none'; img-src data:; media-src data:; base-uri 'none'; form-action 'none'; "
        f"style-src {_digest(style)}; script-src {_digest(script)}"
    )


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _article(place: int, piece: GalleryPiece, has_audio: bool) -> str:
    name, label = _text(piece.name), f"piece-{place}"
    seconds = _seconds(piece.notes)
    picture = audio = ""
    if piece.png is not None:
        picture = f'<img class="still" alt="Piano roll of {name}" src="{_address("image/png", piece.png)}">'
    if has_audio:
        audio = f'<audio controls preload="none" src="{_address(piece.audio_mime, piece.audio or b"")}"></audio>'
    statistics = f'<dl class="statistics">{_numbers("stat:", piece.statistics)}</dl>'
    if piece.scores:
        statistics = (
            f'<dl class="statistics scores">{_numbers("score:", piece.scores)}</dl>'
            f'<details class="more"><summary>Statistics</summary>{statistics}</details>'
        )
    return f"""<article class="piece" id="{label}" tabindex="-1" aria-labelledby="{label}-name">
<div class="head"><button type="button" class="play" aria-label="Play {name}"></button>
<h2 id="{label}-name">{name}</h2>{_origin(piece)}<span class="time">{_clock(seconds)}</span></div>
{_roll(label, f"Position in {name}", seconds, picture)}
{_part_list(piece.notes)}{audio}
{"".join(_comparison(label, i, passage) for i, passage in enumerate(piece.comparisons))}{statistics}
{_lines("warnings", piece.warnings)}<div class="foot">{_downloads(piece, has_audio)}{_lineage(piece.lineage)}</div>
<script type="application/json" class="data">{_data(piece, seconds)}</script>
<script type="application/json" class="notes">{_json(_roll_data(piece.notes))}</script>
</article>"""


def _origin(piece: GalleryPiece) -> str:
    """Say beside the title what is known of the piece: flags, of how many it was chosen, what it continues."""
    said = [f'<span class="flag">{_text(flag)}</span>' for flag in piece.flags]
    if piece.n_candidates > 1:
        by = f" by {_text(_label(piece.chosen_by))}" if piece.chosen_by else ""
        said.append(f'<p class="prompt">best of {piece.n_candidates}{by}</p>')
    if piece.prompt is not None:
        said.append(f'<p class="prompt">continues {_text(piece.prompt)}</p>')
    return "".join(said)


def _roll(label: str, name: str, seconds: float, picture: str = "") -> str:
    return (
        f'<div class="roll" id="{label}-roll"><canvas role="slider" tabindex="0" aria-label="{name}" aria-valuemin="0" '
        f'aria-valuemax="{seconds:.1f}" aria-valuenow="0"></canvas>{picture}<div class="cursor"></div></div>'
    )


def _comparison(label: str, place: int, passage: Passage) -> str:
    """A passage, closed; the script draws it when it is opened."""
    title, seconds = _text(passage.title), _seconds(passage.notes)
    own = f"{label}-passage-{place}"
    data = {
        "title": passage.title,
        "kind": passage.kind,
        "seconds": seconds,
        "n_notes": len(passage.notes.pitch),
        "span": passage.span_seconds or (0.0, seconds),
        "piece_span": passage.piece_span_seconds,
    }
    return f"""<details class="passage" id="{own}"><summary>Compare with the {_text(passage.kind)}: {title}</summary>
<div class="head"><button type="button" class="play small" aria-label="Play {title}"></button>\
<button type="button" class="zoom" aria-pressed="false">Zoom to the match</button>\
<span class="time">{_clock(seconds)}</span></div>
{_roll(own, f"Position in {title}", seconds)}
{_lines("passage-facts", passage.facts)}<script type="application/json" class="passage-data">{_json(data)}</script>
<script type="application/json" class="passage-notes">{_json(_roll_data(passage.notes))}</script></details>
"""


def _part_list(notes: RollNotes) -> str:
    if len(notes.part_names) < 2:
        return ""
    entries = [
        f'<li class="c{part % len(PART_COLOURS)}">{_text(name)}</li>'
        for part, name in enumerate(notes.part_names[:MAX_PART_NAMES])
    ]
    n_more = len(notes.part_names) - MAX_PART_NAMES
    more = f"<li>and {n_more} more</li>" if n_more > 0 else ""
    return f'<ul class="parts">{"".join(entries)}{more}</ul>'


def _numbers(kind: str, numbers: Mapping[str, float]) -> str:
    return "".join(
        f'<div data-key="{_text(kind + name)}"><dt>{_text(_label(name))}</dt><dd>{_number(value)}</dd></div>'
        for name, value in numbers.items()
    )


def _downloads(piece: GalleryPiece, has_audio: bool) -> str:
    stem = re.sub(r"[^\w.-]+", "_", UNPRINTABLE.sub("_", piece.name)).strip("._") or "piece"
    links = [f'<a href="{_address("audio/midi", piece.midi)}" download="{_text(stem)}.mid">MIDI</a>']
    if piece.musicxml is not None:
        links.append(f'<a href="{_address(MXL_MIME, piece.musicxml)}" download="{_text(stem)}.mxl">MusicXML</a>')
    # Sound and picture are in the page once; the script points these links at them.
    if has_audio:
        links.append(f'<a data-of="audio" download="{_text(stem)}.{AUDIO_SUFFIX[piece.audio_mime]}">Audio</a>')
    if piece.png is not None:
        links.append(f'<a data-of="picture" download="{_text(stem)}.png">Picture</a>')
    return "".join(links)


def _lineage(lines: Sequence[str]) -> str:
    return f"<details><summary>Lineage</summary>{_lines('lineage', lines)}</details>" if lines else ""


def _lines(kind: str, lines: Sequence[str]) -> str:
    return f'<ul class="{kind}">{"".join(f"<li>{_text(line)}</li>" for line in lines)}</ul>\n' if lines else ""


def _data(piece: GalleryPiece, seconds: float) -> str:
    """Write what is needed of every piece at once; the notes are read when the piece is first drawn or played."""
    searched = [
        piece.name, piece.prompt or "", *piece.flags, *piece.warnings, *piece.lineage, *piece.notes.part_names,
        *(passage.title for passage in piece.comparisons),
    ]  # fmt: skip
    figures = {f"score:{name}": value for name, value in piece.scores.items()}
    figures |= {f"stat:{name}": value for name, value in piece.statistics.items()}
    return _json(
        {
            "seconds": seconds,
            "n_notes": len(piece.notes.pitch),
            "prompt_seconds": piece.prompt_seconds,
            "figures": {name: float(value) if math.isfinite(value) else None for name, value in figures.items()},
            "flags": list(piece.flags),
            "marks": [[mark.label, mark.onset_seconds, mark.end_seconds, mark.kind] for mark in piece.marks],
            "search": " ".join(searched),
        }
    )


def _roll_data(notes: RollNotes) -> dict[str, Any]:
    return {
        "notes": {
            "onset": _milliseconds(notes.onset_seconds),
            "end": _milliseconds(notes.end_seconds),
            "pitch": notes.pitch.tolist(),
            "velocity": notes.velocity.tolist(),
            "part": notes.part.tolist(),
            "drum": notes.is_drum.astype(int).tolist(),
        },
        "pedal": {
            "onset": _milliseconds(notes.pedal_onset_seconds),
            "end": _milliseconds(notes.pedal_end_seconds),
        },
    }


def _json(data: Any) -> str:
    """Write JSON that cannot leave the script element it stands in."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("&", "\\u0026")


def _seconds(notes: RollNotes) -> float:
    return max(round(float(notes.end_seconds.max()), 3), 0.1) if len(notes.end_seconds) else 1.0


def _milliseconds(seconds: NDArray[np.float64]) -> list[int]:
    return np.rint(seconds * 1000).astype(np.int64).tolist()


def _address(mime: str, data: bytes) -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def _text(value: str) -> str:
    return html.escape(UNPRINTABLE.sub("\ufffd", str(value)), quote=True)


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
