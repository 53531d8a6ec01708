"""The plot of a sweep: held-out bits per note against each swept setting."""

import io
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tasks.music.render.pianoroll import FAINT, INK, PAPER
from tasks.reporting.markup import UNPRINTABLE
from tasks.sweep.space import FINISHED, Row

POINT, BEST, MISSING = "#2f6fb7", "#c0392b", "#635f55"
_PER_LINE = 3  # panels
_MAX_PANELS = 12
_LOG_RATIO = 99.0  # values that differ by more than this are shown on a logarithmic axis


def draw_sweep(name: str, rows: Sequence[Row]) -> bytes:
    """Draw a panel for each swept setting as the bytes of a PNG.

    Args:
        rows: best first. Those without a figure stand as crosses along the upper edge.
    """
    # Imported here: half a second that only a run that draws should spend. Figures without pyplot keep no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    keys = list(rows[0]["values"])[:_MAX_PANELS]
    n_columns = min(len(keys), _PER_LINE)
    n_lines = math.ceil(len(keys) / n_columns)
    width, height = max(4.2 * n_columns, 6.3), 3.6 * n_lines + 0.9
    figure = Figure(figsize=(width, height), dpi=100, facecolor=PAPER)
    canvas = FigureCanvasAgg(figure)
    text: dict[str, Any] = {"ha": "left", "va": "top", "parse_math": False}
    figure.text(0.3 / width, 1 - 0.15 / height, UNPRINTABLE.sub("\ufffd", name)[:80], color=INK, fontsize=14, **text)
    figure.text(0.3 / width, 1 - 0.47 / height, _counts(rows), color=MISSING, fontsize=9, **text)
    grid = figure.add_gridspec(
        n_lines, n_columns, left=0.75 / width, right=1 - 0.5 / width, top=1 - 1.1 / height, bottom=0.45 / height,
        wspace=0.22, hspace=0.36,
    )  # fmt: skip
    limits = _limits(rows)
    for place, key in enumerate(keys):
        axes = figure.add_subplot(grid[place // n_columns, place % n_columns])
        _draw_panel(axes, key, rows)
        axes.set_ylim(*limits)
        if place % n_columns == 0:
            axes.set_ylabel("bits per note", color=INK, fontsize=9)
    buffer = io.BytesIO()
    canvas.print_png(buffer, metadata={"Software": None}, pil_kwargs={"optimize": True})
    return buffer.getvalue()


def _counts(rows: Sequence[Row]) -> str:
    counts = Counter(row["status"] for row in rows)
    words = ", ".join(f"{n} {status}" for status, n in counts.items())
    words += " (crosses: no figure)" if len(counts) > 1 else ""
    best = rows[0]
    if best["status"] != FINISHED:
        return words
    return f"{words}. Best (red): {best['bits_per_note']:.3f} bits per note, point {best['point']}"


def _limits(rows: Sequence[Row]) -> tuple[float, float]:
    figures = [row["bits_per_note"] for row in rows if row["status"] == FINISHED] or [0.0, 1.0]
    low, high = min(figures), max(figures)
    margin = max(0.12 * (high - low), 0.01 * abs(high), 1e-6)
    return low - margin, high + 1.5 * margin


def _draw_panel(axes: Any, key: str, rows: Sequence[Row]) -> None:
    _dress(axes, key)
    numeric = all(isinstance(row["values"][key], int | float) and not _is_flag(row["values"][key]) for row in rows)
    values = sorted({row["values"][key] for row in rows}) if numeric else _distinct([r["values"][key] for r in rows])
    if numeric and min(values) > 0 and max(values) / min(values) >= _LOG_RATIO:
        axes.set_xscale("log")
        axes.tick_params(axis="x", which="minor", labelbottom=False)
    places = {_text(value): value if numeric else place for place, value in enumerate(values)}
    finished = [(places[_text(r["values"][key])], r["bits_per_note"]) for r in rows if r["status"] == FINISHED]
    if finished:
        lowest = {x: min(y for other, y in finished if other == x) for x, _ in finished}
        if len(lowest) < len(finished):  # the lowest of each value, where others hide it
            axes.plot(sorted(lowest), [lowest[x] for x in sorted(lowest)], color=FAINT, linewidth=1.5, zorder=1)
        axes.scatter(*zip(*finished, strict=True), s=34, color=POINT, alpha=0.75, linewidths=0, zorder=2)
    if rows[0]["status"] == FINISHED:
        axes.scatter(*finished[0], s=60, color=BEST, linewidths=0, zorder=3)
    missing = [places[_text(row["values"][key])] for row in rows if row["status"] != FINISHED]
    axes.scatter(missing, [0.97] * len(missing), marker="x", s=22, color=MISSING, transform=axes.get_xaxis_transform())
    # Where a panel begins and ends is for all values, also those that only a cross represents.
    axes.scatter(list(places.values()), [rows[0]["bits_per_note"] or 0.0] * len(places), alpha=0)
    is_short = len(values) <= 6 and max(map(len, places)) <= 6
    if is_short or not numeric:
        axes.set_xticks(list(places.values()), [_shorten(text) for text in places])
        axes.minorticks_off()
    axes.margins(x=0.07 if numeric and len(values) > 1 else 0.25)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _distinct(values: Sequence[Any]) -> list[Any]:
    return sorted({_text(value): value for value in values}.values(), key=_text)


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _shorten(text: str) -> str:
    return text if len(text) <= 18 else f"{text[:17]}…"


def _dress(axes: Any, title: str) -> None:
    axes.set_facecolor(PAPER)
    axes.set_title(title, loc="left", color=INK, fontsize=10.5, pad=7, parse_math=False)
    axes.tick_params(colors=INK, labelsize=8.5, length=3)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("bottom", "left"))
        spine.set_color(INK)
