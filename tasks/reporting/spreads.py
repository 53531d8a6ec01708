"""Overlaid distributions of two sets, figures with intervals, and notes, as SVG in the page's colours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from tasks.reporting.charts import BELOW, HEIGHT, LEFT, WIDTH
from tasks.reporting.curves import round_step
from tasks.reporting.templates import escape

BINS = 14
ROOM = 4  # units right of a chart's last value
Figure = Mapping[str, Any]  # value, low and high, each a number or None


def draw_spreads(title: str, said: str, sets: Sequence[tuple[str, Sequence[float], Figure]]) -> Markup:
    """Return a figure with the shares of each set's values in common bins, and below it the sets' means.

    Args:
        said: a line below the title.
        sets: name, values and mean of each; the first is drawn as bars, others as outlines, all with their mean and
            its interval in their colour.
    """
    pooled = np.concatenate([np.asarray(values, np.float64) for _, values, _ in sets])
    low, high = float(pooled.min()), float(pooled.max())
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, BINS + 1)
    shares = [np.histogram(values, edges)[0] / len(values) for _, values, _ in sets]
    top = max(float(share.max()) for share in shares)
    right, floor, head = WIDTH - ROOM, HEIGHT - BELOW - 8 * len(sets), 8
    across = (right - LEFT) / (high - low)

    def x_of(value: float) -> float:
        return LEFT + (min(max(value, low), high) - low) * across

    shapes = _share_rules(top, floor, head, right)
    for place, ((name, _, _), share) in enumerate(zip(sets, shares, strict=True)):
        heights = floor - (floor - head) * share / top
        shapes += _bars(name, edges, share, heights, x_of, floor, place) if place == 0 else ""
        shapes += _outline(edges, heights, x_of, floor, place) if place else ""
    for place, (name, _, mean) in enumerate(sets):
        shapes += _whisker(name, mean, x_of, floor + 7 + 8 * place, place)
    step = round_step(high - low)
    first = int(np.ceil(low / step - 1e-9))
    bottom = floor + 3 + 8 * len(sets)
    for k in range(first, int(np.floor(high / step + 1e-9)) + 1):
        x = x_of(k * step)
        shapes += f'<line class="rule" x1="{x:.1f}" x2="{x:.1f}" y1="{floor}" y2="{bottom}"/>'
        shapes += f'<text x="{x:.1f}" y="{bottom + 13}" text-anchor="middle">{k * step:.4g}</text>'
    return Markup(
        f'<figure><figcaption><h3>{escape(title)}</h3><p class="lead">{escape(said)}</p></figcaption>'
        f'<svg class="chart" viewBox="0 0 {WIDTH} {bottom + 18}" role="img"'
        f' aria-label="{escape(f"{title}: {said}")}">{shapes}</svg></figure>'
    )


def _share_rules(top: float, floor: float, head: float, right: float) -> str:
    step = round_step(top)
    rules = ""
    for k in range(int(top / step + 1e-9) + 1):
        y = floor - (floor - head) * k * step / top
        rules += f'<line class="{"rule" if k else "base"}" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        rules += f'<text x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{100 * k * step:.3g} %</text>'
    return rules


def _bars(name: str, edges: Any, share: Any, heights: Any, x_of: Any, floor: float, colour: int) -> str:
    bars = ""
    for k, y in enumerate(heights):
        if share[k]:
            x, wide = x_of(edges[k]), x_of(edges[k + 1]) - x_of(edges[k])
            bars += (
                f'<rect class="spread s{colour}" x="{x:.1f}" y="{y:.1f}" width="{wide - 0.6:.1f}"'
                f' height="{floor - y:.1f}"><title>{escape(name)}: {100 * share[k]:.0f} % from {edges[k]:.3g}'
                f" to {edges[k + 1]:.3g}</title></rect>"
            )
    return bars


def _outline(edges: Any, heights: Any, x_of: Any, floor: float, colour: int) -> str:
    points = [(x_of(edges[0]), floor)]
    for k, y in enumerate(heights):
        points += [(x_of(edges[k]), y), (x_of(edges[k + 1]), y)]
    points.append((x_of(edges[-1]), floor))
    return f'<polyline class="curve s{colour}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'


def _whisker(name: str, mean: Figure, x_of: Any, y: float, colour: int) -> str:
    if mean.get("value") is None:
        return ""
    value, shapes = x_of(mean["value"]), ""
    if mean.get("low") is not None:
        low, high = x_of(mean["low"]), x_of(mean["high"])
        shapes += f'<line class="whisker s{colour}" x1="{low:.1f}" x2="{high:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
    shapes += f'<circle class="mean s{colour}" cx="{value:.1f}" cy="{y:.1f}" r="3.2"/>'
    return f"<g><title>mean of {escape(name)}: {mean['value']:.4g}</title>{shapes}</g>"


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
    shapes = ""
    if scale.mark is not None:
        shapes += f'<rect class="mark" x="{scale.place(scale.mark) - 0.25:.2f}" width="0.5" height="10"/>'
    if figure.get("low") is not None and figure.get("high") is not None:
        low, high = scale.place(figure["low"]), scale.place(figure["high"])
        shapes += f'<rect class="spread s{colour}" x="{low:.2f}" y="3" width="{max(high - low, 0.4):.2f}" height="4"/>'
    if figure.get("value") is not None:
        shapes += f'<rect class="s{colour}" x="{scale.place(figure["value"]) - 0.5:.2f}" width="1" height="10"/>'
    return Markup(
        '<svg class="interval" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="track" y="4.5" width="100" height="1"/>{shapes}</svg>'
    )


def draw_notes(name: str, notes: Sequence[tuple[float, float, int, bool]], seconds: float, colour: int) -> Markup:
    """Return a small piano roll; given notes are grey.

    Args:
        name: for those who cannot see it.
        notes: start and end in seconds, pitch, and whether it was given.
        seconds: of the whole width.
    """
    pitches = [pitch for _, _, pitch, _ in notes] or [60]
    low, high = min(pitches) - 1, max(pitches) + 2
    width, height = 640, 110
    rects = ""
    for start, end, pitch, is_given in notes:
        x, wide = width * start / seconds, max(width * (min(end, seconds) - start) / seconds, 1.2)
        if start < seconds:
            y, tall = height * (high - 1 - pitch) / (high - low), max(height / (high - low), 1.5)
            kind = "given" if is_given else f"s{colour}"
            rects += f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{tall:.1f}"/>'
    return Markup(
        f'<svg class="roll" viewBox="0 0 {width} {height}" preserveAspectRatio="none" role="img"'
        f' aria-label="{escape(name)}">{rects}</svg>'
    )
