"""Histograms of counts, with words for each bin."""

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
from tasks.reporting.axes import Axes, round_step
from tasks.reporting.markup import compact
from tasks.reporting.templates import chart_macros

KEYS = ("C", "C♯", "D", "D♯", "E", "F", "F♯", "G", "G♯", "A", "A♯", "B")
SECONDS_MARKS = {
    0.1: "0.1 s", 1: "1 s", 10: "10 s", 60: "1 min", 600: "10 min", 3600: "1 h", 36_000: "10 h",
}  # fmt: skip


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
        "notes": lambda n: _log_chart("Notes in a piece", "notes", n, NOTES_EDGES, _count_ends("note"), notes_marks),
        "tokens": lambda n: _log_chart(
            "Tokens in a row", "tokens", n, NOTES_EDGES, _count_ends("token"), notes_marks, noun="row"
        ),
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
    noun: str = "piece",
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
    return Chart(title=title, axis=axis, noun=noun, counts=counts[first:last], ends=words[first:last], ticks=ticks)


def _seconds_ends(low: float, high: float) -> tuple[str, str]:
    for size, unit in ((3600, "h"), (60, "min")):
        if low >= 1.5 * size:
            return f"{low / size:.2g} {unit}", f"{high / size:.2g} {unit}"
    return f"{low:.3g} s", f"{high:.3g} s"


def _count_ends(noun: str) -> Callable[[float, float], tuple[str, str]]:
    def ends(low: float, high: float) -> tuple[str, str]:
        first, last = math.ceil(low), math.ceil(high) - 1
        return (plural(first, noun) if first == last else f"{first:,}"), plural(last, noun)

    return ends


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
    step = step_of(max(chart.counts))
    axes = Axes(
        title=chart.title,
        lead=f"{chart.summary()}.",
        axis=chart.axis,
        x=(0, len(chart.counts)),
        y=(0, step * math.ceil(max(chart.counts) / step)),
        step=step,
        words=compact,
        ticks=chart.ticks,
    )
    counts = [(chart.name(place), n) for place, n in enumerate(chart.counts)]
    return chart_macros().histogram(axes, counts, chart.noun)


def step_of(top: int) -> int:
    """Return a round step that needs four rules at most."""
    return max(1, round(round_step(top, 4)))
