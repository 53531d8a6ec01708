"""Curves over steps as SVG, one colour for each model."""

import math
from collections.abc import Sequence

from markupsafe import Markup

from tasks.reporting.charts import BELOW, HEIGHT, LEFT, WIDTH
from tasks.reporting.templates import escape


def draw_curves(title: str, curves: Sequence[Sequence[tuple[int, float]]], axis: str = "step") -> Markup:
    """Return a figure with one line for each curve of (step, value), in its model's colour; empty without points.

    Args:
        axis: what is counted along the bottom, from 0.
    """
    points = [(step, value) for curve in curves for step, value in curve if math.isfinite(value)]
    if not points:
        return Markup()
    last = max(step for step, _ in points) or 1
    low, high = min(value for _, value in points), max(value for _, value in points)
    step = round_step(high - low) if high > low else 1.0
    floor_value = math.floor(low / step) * step
    ceiling = max(math.ceil(high / step) * step, floor_value + step)
    right, floor, head = WIDTH - 4, HEIGHT - BELOW, 8

    def place(point: tuple[int, float]) -> str:
        x = LEFT + (right - LEFT) * point[0] / last
        y = floor - (floor - head) * (point[1] - floor_value) / (ceiling - floor_value)
        return f"{x:.1f},{y:.1f}"

    rules = ""
    for k in range(round((ceiling - floor_value) / step) + 1):
        value = floor_value + k * step
        y = floor - (floor - head) * (value - floor_value) / (ceiling - floor_value)
        rules += f'<line class="{"rule" if k else "base"}" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        rules += f'<text x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>'
    lines = "".join(
        f'<polyline class="curve p{i}" points="{" ".join(place(p) for p in curve if math.isfinite(p[1]))}"/>'
        for i, curve in enumerate(curves)
        if curve
    )
    marks = f'<text x="{LEFT}" y="{floor + 16}">0</text>'
    marks += f'<text x="{right}" y="{floor + 16}" text-anchor="end">{last:,}</text>'
    marks += f'<text x="{(LEFT + right) / 2:.1f}" y="{HEIGHT - 4}" text-anchor="middle">{escape(axis)}</text>'
    return Markup(
        f'<figure><figcaption><h3>{escape(title)}</h3></figcaption><svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}"'
        f' role="img" aria-label="{escape(title)}">{rules}{lines}{marks}</svg></figure>'
    )


def round_step(span: float) -> float:
    """Return a step of 1, 2 or 5 times a power of ten that fits at most five times into a span."""
    power = 10.0 ** math.floor(math.log10(span / 5))
    return next(k * power for k in (1, 2, 5, 10) if span / (k * power) <= 5)
