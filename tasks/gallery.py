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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tasks.errors import ConfigError
from tasks.music.pianoroll import PART_COLOURS, part_labels

if TYPE_CHECKING:
    from tasks.music.score import Score  # for names only: building a page reads no MIDI

MAX_PART_NAMES = 12  # listed below a piano roll
# Control characters, halves of surrogate pairs and marks that turn the direction of the text around them.
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
AUDIO_SUFFIX = {"audio/mpeg": "mp3", "audio/flac": "flac", "audio/wav": "wav", "audio/ogg": "ogg"}


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


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class GalleryPiece:
    """One piece of the gallery.

    Args:
        name: shown as its title; also the stem of the downloaded files.
        audio: compressed sound as from `synth.encode_audio`, or None where none was rendered.
        png: picture for readers without scripts and for print, or None.
        statistics: number by name; pieces can be sorted by each, and what is not finite counts as missing.
        lineage: lines of text about where the piece comes from.
        prompt: name of the piece that it continues, or None.
        prompt_seconds: end of the prompt inside the piece.
        warnings: lines of text shown in a box of their own.
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

    def __post_init__(self) -> None:
        if self.audio_mime not in AUDIO_SUFFIX:
            raise ConfigError(f"audio type {self.audio_mime!r} of {self.name!r} is none of {', '.join(AUDIO_SUFFIX)}")


def build_gallery(title: str, subtitle: str, pieces: Sequence[GalleryPiece], facts: Mapping[str, str]) -> str:
    """Return the whole page as HTML text; the same arguments give the same text.

    Args:
        pieces: in the order of the batch; each is about 0.7 MB a minute, nearly all of it sound.
        facts: shown below the subtitle, name and value.
    """
    page = resources.files("tasks") / "gallery_page"
    style = (page / "page.css").read_text(encoding="utf-8")
    script = (page / "page.js").read_text(encoding="utf-8")
    names = dict.fromkeys(name for piece in pieces for name in piece.statistics)
    parts = {
        "policy": _policy(style, script),
        "title": _text(title),
        "subtitle": _text(subtitle),
        "facts": "".join(f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>" for name, value in facts.items()),
        "sorts": "".join(f'<option value="{_text("stat:" + name)}">{_text(_label(name))}</option>' for name in names),
        "count": "1 piece" if len(pieces) == 1 else f"{len(pieces)} pieces",
        "pieces": "\n".join(_article(place, piece) for place, piece in enumerate(pieces)),
        "style": style,
        "script": script,
    }
    frame = (page / "page.html").read_text(encoding="utf-8")
    # One pass, so that nothing inside a value is taken for a marker.
    return re.sub("@@([a-z]+)@@", lambda marker: parts[marker[1]], frame)


def _policy(style: str, script: str) -> str:
    """Forbid the page everything but its own style, its own script and data inside the file."""
    return (
        "default-src 'none'; img-src data:; media-src data:; base-uri 'none'; form-action 'none'; "
        f"style-src {_digest(style)}; script-src {_digest(script)}"
    )


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _article(place: int, piece: GalleryPiece) -> str:
    name, label = _text(piece.name), f"piece-{place}"
    seconds = _seconds(piece.notes)
    prompt = f'<p class="prompt">continues {_text(piece.prompt)}</p>' if piece.prompt is not None else ""
    picture = audio = ""
    if piece.png is not None:
        picture = f'<img class="still" alt="Piano roll of {name}" src="{_address("image/png", piece.png)}">'
    if piece.audio is not None:
        audio = f'<audio controls preload="none" src="{_address(piece.audio_mime, piece.audio)}"></audio>'
    return f"""<article class="piece" id="{label}" tabindex="-1" aria-labelledby="{label}-name">
<div class="head"><button type="button" class="play" aria-label="Play {name}"></button>
<h2 id="{label}-name">{name}</h2>{prompt}<span class="time">{_clock(seconds)}</span></div>
<div class="roll"><canvas role="slider" tabindex="0" aria-label="Position in {name}" aria-valuemin="0" \
aria-valuemax="{seconds:.1f}" aria-valuenow="0"></canvas>{picture}<div class="cursor"></div></div>
{_part_list(piece.notes)}{audio}
<dl class="statistics">{_statistics(piece.statistics)}</dl>
{_lines("warnings", piece.warnings)}<div class="foot">{_downloads(piece)}{_lineage(piece.lineage)}</div>
<script type="application/json" class="data">{_data(piece, seconds)}</script>
</article>"""


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


def _statistics(statistics: Mapping[str, float]) -> str:
    return "".join(
        f'<div data-key="{_text(name)}"><dt>{_text(_label(name))}</dt><dd>{_number(value)}</dd></div>'
        for name, value in statistics.items()
    )


def _downloads(piece: GalleryPiece) -> str:
    stem = re.sub(r"[^\w.-]+", "_", UNPRINTABLE.sub("_", piece.name)).strip("._") or "piece"
    links = [f'<a href="{_address("audio/midi", piece.midi)}" download="{_text(stem)}.mid">MIDI</a>']
    # Sound and picture are in the page once; the script points these links at them.
    if piece.audio is not None:
        links.append(f'<a data-of="audio" download="{_text(stem)}.{AUDIO_SUFFIX[piece.audio_mime]}">Audio</a>')
    if piece.png is not None:
        links.append(f'<a data-of="picture" download="{_text(stem)}.png">Picture</a>')
    return "".join(links)


def _lineage(lines: Sequence[str]) -> str:
    return f"<details><summary>Lineage</summary>{_lines('lineage', lines)}</details>" if lines else ""


def _lines(kind: str, lines: Sequence[str]) -> str:
    return f'<ul class="{kind}">{"".join(f"<li>{_text(line)}</li>" for line in lines)}</ul>\n' if lines else ""


def _data(piece: GalleryPiece, seconds: float) -> str:
    notes = piece.notes
    statistics = {name: float(value) if math.isfinite(value) else None for name, value in piece.statistics.items()}
    searched = [piece.name, piece.prompt or "", *piece.warnings, *piece.lineage, *notes.part_names]
    data = {
        "seconds": seconds,
        "prompt_seconds": piece.prompt_seconds,
        "statistics": statistics,
        "search": " ".join(searched),
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
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("&", "\\u0026")  # no way out of the script element


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
