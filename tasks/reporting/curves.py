"""Curves over steps, one colour for each model."""

import math
from collections.abc import Sequence

from markupsafe import Markup

from tasks.reporting.axes import Axes, round_step
from tasks.reporting.templates import chart_macros


def draw_curves(title: str, curves: Sequence[Sequence[tuple[int, float]]], axis: str = "step") -> Markup:
    """Return a figure with one line for each curve of (step, value), in its model's colour; empty without points.

    `axis` names what is counted along the bottom, from 0.
    """
    finite = [[point for point in curve if math.isfinite(point[1])] for curve in curves]
    points = [point for curve in finite for point in curve]
    if not points:
        return Markup()
    last = max(step for step, _ in points) or 1
    low, high = min(value for _, value in points), max(value for _, value in points)
    step = round_step(high - low) if high > low else 1.0
    bottom = math.floor(low / step) * step
    axes = Axes(
        title=title,
        axis=axis,
        x=(0, last),
        y=(bottom, max(math.ceil(high / step) * step, bottom + step)),
        step=step,
        words="{:.3g}".format,
        ticks=[(0, "0"), (last, f"{last:,}")],
    )
    return chart_macros().curves(axes, [(f"p{i}", curve) for i, curve in enumerate(finite) if curve])
