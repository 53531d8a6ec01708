"""Overlaid distributions of two sets, figures with intervals, and notes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from tasks.reporting.axes import Axes, round_step
from tasks.reporting.templates import chart_macros

BINS = 14
Figure = Mapping[str, Any]  # value, low and high, each a number or None


def draw_spreads(title: str, lead: str, sets: Sequence[tuple[str, Sequence[float], Figure]]) -> Markup:
    """Return a figure with the shares of each set's values in common bins, and below it the sets' means.

    Args:
        sets: name, values and mean of each; the first is drawn as bars, others as outlines, all with their mean and
            its interval in their colour.
    """
    pooled = np.concatenate([np.asarray(values, np.float64) for _, values, _ in sets])
    low, high = float(pooled.min()), float(pooled.max())
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, BINS + 1).tolist()
    shares = [(np.histogram(values, edges)[0] / len(values)).tolist() for _, values, _ in sets]
    top, step = max(map(max, shares)), round_step(high - low)
    ticks = [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    axes = Axes(
        title=title,
        lead=lead,
        x=(low, high),
        y=(0.0, top),
        step=round_step(top),
        words=lambda share: f"{100 * share:.3g} %",
        ticks=[(value, f"{value:.4g}") for value in ticks],
        below=8 * len(sets),
    )
    outlines = []
    for place, share in enumerate(shares[1:], start=1):
        corners = [(edge, height) for k, height in enumerate(share) for edge in (edges[k], edges[k + 1])]
        outlines.append((f"s{place}", [(low, 0.0), *corners, (high, 0.0)]))
    bars = [bar for bar in zip(edges, edges[1:], shares[0], strict=False) if bar[2]]
    return chart_macros().spreads(axes, sets, bars, outlines)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """The ends of a row of intervals, and a place on it to compare with."""

    low: float
    high: float
    mark: float | None = None

    def place(self, value: float) -> float:
        """Return where a value lies, 0 to 100."""
        return 100 * (min(max(value, self.low), self.high) - self.low) / ((self.high - self.low) or 1.0)


def draw_interval(figure: Figure, scale: Scale, colour: int = 0) -> Markup:
    """Return a bar from low to high with a stroke at the value, over a track from end to end of the scale."""
    return chart_macros().interval({"value": None, "low": None, "high": None} | dict(figure), scale, colour)


def draw_notes(name: str, notes: Sequence[tuple[float, float, int, bool]], seconds: float, colour: int) -> Markup:
    """Return a small piano roll with given notes in grey.

    Args:
        name: for those who cannot see it.
        notes: start and end in seconds, pitch, and whether it was given.
    """
    pitches = [pitch for _, _, pitch, _ in notes] or [60]
    low, high = min(pitches) - 1, max(pitches) + 2
    width, height = 640, 110
    tall = height / (high - low)
    rects = [
        (
            "given" if is_given else f"s{colour}",
            width * start / seconds,
            tall * (high - 1 - pitch),
            max(width * (min(end, seconds) - start) / seconds, 1.2),
            max(tall, 1.5),
        )
        for start, end, pitch, is_given in notes
        if start < seconds
    ]
    return chart_macros().roll(name, width, height, rects)
