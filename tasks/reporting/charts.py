"""Charts of counts as SVG and as tables, with the page's colours and names for screen readers."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from markupsafe import Markup

from tasks.errors import plural
from tasks.music.metrics.features import DRUMS, NOTES_EDGES, SECONDS_EDGES, TEMPO_EDGES
from tasks.music.render.pianoroll import PROGRAM_GROUPS
from tasks.reporting.markup import compact
from tasks.reporting.templates import escape, table

KEYS = ("C", "C♯", "D", "D♯", "E", "F", "F♯", "G", "G♯", "A", "A♯", "B")
SECONDS_MARKS = {
    0.1: "0.1 s", 1: "1 s", 10: "10 s", 60: "1 min", 600: "10 min", 3600: "1 h", 36_000: "10 h",
}  # fmt: skip
WIDTH, HEIGHT, LEFT, BELOW = 340, 170, 38, 34  # of a chart, about one pixel to a unit on a phone


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """A histogram to draw: for each bin the words for both its ends, along the axis labels at places in bins."""

    title: str
    axis: str
    noun: str  # what is counted
    counts: Sequence[int]
    ends: Sequence[tuple[str, str]]
    ticks: Sequence[tuple[float, str]]

    def name(self, place: int) -> str:
        """Return the words for one bin."""
        low, high = self.ends[place]
        return f"{low} to {high}" if low and low != high else high

    def summary(self) -> str:
        """Return how many are counted, and the bins in which the first and the third quartile lie."""
        running = np.cumsum(self.counts)
        low, high = (int(k) for k in np.searchsorted(running, [running[-1] * 0.25, running[-1] * 0.75]))
        middle = f"between {self.ends[low][0] or self.ends[low][1]} and {self.ends[high][1]}"
        return f"{plural(int(running[-1]), self.noun)}; the middle half lies " + (
            f"at {self.name(low)}" if low == high else middle
        )


def charts_of(histograms: Mapping[str, Sequence[int]]) -> list[Chart]:
    """Return a chart for each histogram that counts anything; names as in `ReportFacts.histograms`."""
    notes_marks = {10**k: f"{10**k:,}" if k < 4 else compact(10**k) for k in range(8)}
    build = {
        "seconds": lambda n: _log_chart("Length", "length", n, SECONDS_EDGES, _seconds_ends, SECONDS_MARKS),
        "notes": lambda n: _log_chart("Notes in a piece", "notes", n, NOTES_EDGES, _notes_ends, notes_marks),
        "tempo": _tempo_chart,
        "pitch": lambda n: _key_chart("Pitch", "pitch, drums apart", n, _pitch_name, range(12, 128, 24)),
        "drum_pitch": lambda n: _key_chart("Drum keys", "MIDI key", n, "key {}".format, (0, 35, 60, 81, 127)),
        "velocity": lambda n: _key_chart("Velocity", "velocity", n, "velocity {}".format, (1, 32, 64, 96, 127)),
    }
    have = {name: [int(n) for n in counts] for name, counts in histograms.items()}
    return [chart(have[name]) for name, chart in build.items() if sum(have.get(name, ()))]


def _log_chart(
    title: str,
    axis: str,
    counts: Sequence[int],
    edges: Any,
    ends: Callable[[float, float], tuple[str, str]],
    marks: Mapping[float, str],
) -> Chart:
    """Cut empty bins off both ends, and place marks along the logarithm."""
    full = np.flatnonzero(counts)
    first, last = max(int(full[0]) - 1, 0), min(int(full[-1]) + 2, len(counts))
    low, high = math.log(edges[first]), math.log(edges[last])
    places = [((math.log(at) - low) / (high - low) * (last - first), label) for at, label in marks.items()]
    words = [ends(edges[k], edges[k + 1]) for k in range(len(counts))]
    words[0] = ("", f"less than {ends(edges[1], edges[2])[0]}") if edges[0] < 1 else words[0]
    words[-1] = ("", f"{words[-1][0]} and more")
    ticks = [(place, label) for place, label in places if -1e-9 <= place <= last - first + 1e-9]
    return Chart(
        title=title, axis=axis, noun="piece", counts=counts[first:last], ends=words[first:last], ticks=ticks
    )  # fmt: skip


def _seconds_ends(low: float, high: float) -> tuple[str, str]:
    for size, unit in ((3600, "h"), (60, "min")):
        if low >= 1.5 * size:
            return f"{low / size:.2g} {unit}", f"{high / size:.2g} {unit}"
    return f"{low:.3g} s", f"{high:.3g} s"


def _notes_ends(low: float, high: float) -> tuple[str, str]:
    first, last = math.ceil(low), math.ceil(high) - 1
    return (plural(first, "note") if first == last else f"{first:,}"), plural(last, "note")


def _tempo_chart(counts: Sequence[int]) -> Chart:
    unit = "quarters a minute"
    ends = [(f"{low:.0f}", f"{high:.0f} {unit}") for low, high in pairwise(TEMPO_EDGES)]
    ends[-1] = ("", f"{TEMPO_EDGES[-2]:.0f} {unit} and more")
    ticks = [(float(k), f"{TEMPO_EDGES[k]:.0f}") for k in range(0, len(TEMPO_EDGES), 6)]
    return Chart(title="Tempo", axis=unit, noun="piece", counts=counts, ends=ends, ticks=ticks)


def _key_chart(title: str, axis: str, counts: Sequence[int], name: Callable[[int], str], marks: Iterable[int]) -> Chart:
    """Show the 128 values of a MIDI data byte, one bin each."""
    ticks = [(k + 0.5, name(k).rpartition(" (")[0] or name(k).rpartition(" ")[2]) for k in marks]
    ends = [(name(k), name(k)) for k in range(len(counts))]
    return Chart(title=title, axis=axis, noun="note", counts=counts, ends=ends, ticks=ticks)


def _pitch_name(pitch: int) -> str:
    return f"{KEYS[pitch % 12]}{pitch // 12 - 1} (pitch {pitch})"


def instrument_families(program: Sequence[int]) -> list[tuple[str, int]]:
    """Add up the notes of the 16 General MIDI families and of drums; those without notes are left out."""
    families = [(name, int(sum(program[8 * k : 8 * k + 8]))) for k, name in enumerate(PROGRAM_GROUPS)]
    families.append(("drums", int(sum(program[DRUMS:]))))
    return [(name, n) for name, n in families if n]


def draw_histogram(chart: Chart) -> Markup:
    """Return a figure: title, what the middle half is, bars with tooltips, and the same as a table that folds."""
    top = max(chart.counts)
    step = nice_step(top)
    ceiling = step * math.ceil(top / step)
    right, floor, head = WIDTH - 4, HEIGHT - BELOW, 8
    bin_width, scale = (right - LEFT) / len(chart.counts), (floor - head) / ceiling
    rules = ""
    for k in range(round(ceiling / step) + 1):
        y = floor - k * step * scale
        rules += f'<line class="{"rule" if k else "base"}" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        rules += f'<text x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{compact(k * step)}</text>'
    bars = ""
    for k, n in enumerate(chart.counts):
        if n:
            x, tall = LEFT + k * bin_width, max(n * scale, 1.0)
            wide = max(bin_width - (1.0 if bin_width > 4 else 0.2), 0.8)
            bars += (
                f"<g><title>{escape(chart.name(k))}: {plural(n, chart.noun)}</title>"
                f'<rect class="spot" x="{x:.2f}" y="{head}" width="{bin_width:.2f}" height="{floor - head}"/>'
                f'<rect class="bar" x="{x:.2f}" y="{floor - tall:.2f}" width="{wide:.2f}" height="{tall:.2f}"/></g>'
            )
    ticks = ""
    for place, label in chart.ticks:
        x = LEFT + place * bin_width
        ticks += f'<line class="base" x1="{x:.1f}" x2="{x:.1f}" y1="{floor}" y2="{floor + 4}"/>'
        ticks += f'<text x="{x:.1f}" y="{floor + 16}" text-anchor="middle">{escape(label)}</text>'
    ticks += f'<text x="{(LEFT + right) / 2:.1f}" y="{HEIGHT - 4}" text-anchor="middle">{escape(chart.axis)}</text>'
    said = chart.summary()
    name = f"{chart.title}: {said}"
    rows = [(chart.name(k), f"{n:,}") for k, n in enumerate(chart.counts) if n]
    shown = table(
        (chart.axis.capitalize(), f"{chart.noun.capitalize()}s"), rows, ("", "number"), label=chart.title, is_long=True
    )
    return Markup(
        f'<figure><figcaption><h3>{escape(chart.title)}</h3><p class="lead">{escape(said)}.</p></figcaption>'
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(name)}">'
        f"{rules}{bars}{ticks}</svg><details><summary>As a table</summary>{shown}</details></figure>"
    )


def nice_step(top: float) -> int:
    """Return a round step that needs four rules at most."""
    step = 1
    while top / step > 4:
        step = step * 2 if str(step)[0] in "15" else step * 5 // 2
    return step


def draw_stack(title: str, parts: Sequence[tuple[str, int]], noun: str, first: int = 0) -> Markup:
    """Draw shares as one bar with a legend; colours start with part `first`."""
    total = sum(n for _, n in parts)
    rects, entries, x = "", [], 0.0
    for place, (name, n) in enumerate(parts):
        share = n / total if total else 0.0
        colour = (first + place) % 8
        title_of = f"{name}: {plural(n, noun)}, {100 * share:.1f} %"
        rects += f'<rect class="p{colour}" x="{100 * x:.3f}" y="0" width="{100 * share:.3f}" height="1">'
        rects += f"<title>{escape(title_of)}</title></rect>"
        entries.append(
            f'<li class="p{colour}">{escape(name)} {n:,} <span class="soft">({100 * share:.1f} %)</span></li>'
        )
        x += share
    return Markup(
        f'<svg class="stack" viewBox="0 0 100 1" preserveAspectRatio="none" role="img" aria-label="{escape(title)}">'
        f'{rects}</svg><ul class="legend">{"".join(entries)}</ul>'
    )


def bar_table(title: str, rows: Sequence[tuple[str, int]]) -> Markup:
    """Return a table of names and counts with a bar between them; nothing for no rows."""
    if not rows:
        return Markup()
    top = max(n for _, n in rows)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{draw_meter(n, top)}</td><td class="number">{n:,}</td></tr>'
        for name, n in rows
    )
    return Markup(f'<table class="bars"><caption>{escape(title)}</caption><tbody>{body}</tbody></table>')


def draw_meter(n: int, top: int) -> Markup:
    """Return a bar that is full at `top`."""
    width = 100 * n / top if top else 0.0
    return Markup(
        '<svg class="meter" viewBox="0 0 100 1" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="bar" width="{max(width, 0.4):.2f}" height="1"/></svg>'
    )
