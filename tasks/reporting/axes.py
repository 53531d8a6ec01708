"""The axes of a chart, in units of about a pixel on a phone."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

WIDTH, LEFT, RIGHT, HEAD, BOTTOM = 340, 38, 336, 8, 136


@dataclass(frozen=True, kw_only=True, slots=True)
class Axes:
    """The parts of a chart around its shapes.

    Args:
        title, lead: lines above the chart; together they are its words for those who cannot see it.
        axis: what is counted along the bottom.
        x, y: the values at both ends.
        step: from one horizontal rule to the next.
        words: returns the label of a rule's value.
        ticks: values along the bottom, with their words.
        below: units between the shapes and the ticks.
    """

    title: str
    lead: str = ""
    axis: str = ""
    x: tuple[float, float]
    y: tuple[float, float]
    step: float
    words: Callable[[float], str]
    ticks: Sequence[tuple[float, str]]
    below: int = 0

    @property
    def floor(self) -> int:
        return BOTTOM - self.below

    def x_of(self, value: float) -> float:
        low, high = self.x
        return LEFT + (RIGHT - LEFT) * (min(max(value, low), high) - low) / (high - low)

    def y_of(self, value: float) -> float:
        low, high = self.y
        return self.floor - (self.floor - HEAD) * (value - low) / (high - low)

    @property
    def rules(self) -> list[float]:
        return [self.y[0] + k * self.step for k in range(int((self.y[1] - self.y[0]) / self.step + 1e-9) + 1)]


def round_step(span: float, most: int = 5) -> float:
    """Return a step of 1, 2 or 5 times a power of ten that fits at most `most` times into a span."""
    power = 10.0 ** math.floor(math.log10(span / most))
    return next(k * power for k in (1, 2, 5, 10) if span / (k * power) <= most)
