"""The plot of a sweep: held-out bits per note against each swept setting."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tasks.music.render.figures import FAINT, INK, PAPER, new_figure, png_of
from tasks.reporting.markup import UNPRINTABLE
from tasks.sweep.space import FINISHED, Row

POINT, BEST, MISSING = "#2f6fb7", "#c0392b", "#635f55"
_PER_LINE = 3  # panels
_MAX_PANELS = 12
_MAX_TICKS = 6  # values of which each has a tick
_LOG_RATIO = 99.0  # values that differ by more than this are shown on a logarithmic axis


def draw_sweep(name: str, rows: Sequence[Row]) -> bytes:
    """Return a PNG with a panel for each swept setting; rows without a figure are crosses along the upper edge."""
    keys = list(rows[0]["values"])[:_MAX_PANELS]
    n_columns = min(len(keys), _PER_LINE)
    n_lines = math.ceil(len(keys) / n_columns)
    size = max(4.2 * n_columns, 6.3), 3.6 * n_lines + 0.9
    figure = new_figure(*size, layout="constrained")
    title = f"{UNPRINTABLE.sub('�', name)[:80]}\n{_counts(rows)}"
    figure.suptitle(title, x=0.02, ha="left", color=INK, fontsize=11, parse_math=False)
    panels = list(figure.subplots(n_lines, n_columns, sharey=True, squeeze=False).flat)
    for axes, key in zip(panels, keys, strict=False):
        _draw_panel(axes, key, rows)
    for axes in panels[len(keys) :]:
        axes.set_visible(False)
    figure.supylabel("bits per note", color=INK, fontsize=9)
    return png_of(figure)


def _counts(rows: Sequence[Row]) -> str:
    counts = Counter(row["status"] for row in rows)
    words = ", ".join(f"{n} {status}" for status, n in counts.items())
    words += " (crosses: no figure)" if len(counts) > 1 else ""
    best = rows[0]
    if best["status"] != FINISHED:
        return words
    return f"{words}. Best (red): {best['bits_per_note']:.3f} bits per note, point {best['point']}"


def _draw_panel(axes: Any, key: str, rows: Sequence[Row]) -> None:
    axes.set_facecolor(PAPER)
    axes.set_title(key, loc="left", color=INK, fontsize=10, parse_math=False)
    axes.tick_params(colors=INK, labelsize=8.5)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    values = [row["values"][key] for row in rows]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        places = values
        if min(values) > 0 and max(values) / min(values) >= _LOG_RATIO:
            axes.set_xscale("log")
        if len(set(values)) <= _MAX_TICKS:
            axes.set_xticks(sorted(set(values)), [f"{value:g}" for value in sorted(set(values))])
            axes.minorticks_off()
    else:
        texts = sorted(set(map(str, values)))
        places = [texts.index(str(value)) for value in values]
        axes.set_xticks(range(len(texts)), [text if len(text) <= 18 else f"{text[:17]}…" for text in texts])
    axes.margins(x=0.15, y=0.15)
    axes.update_datalim([(place, 0) for place in places], updatey=False)  # crosses alone would leave the axis as it is
    finished = [(place, row["bits_per_note"]) for place, row in zip(places, rows, strict=True) if _is_finished(row)]
    missing = [place for place, row in zip(places, rows, strict=True) if not _is_finished(row)]
    if finished:
        axes.scatter(*zip(*finished, strict=True), s=34, color=POINT, alpha=0.75, linewidths=0, zorder=2)
        axes.scatter(*finished[0], s=60, color=BEST, linewidths=0, zorder=3)
    axes.scatter(missing, [0.97] * len(missing), marker="x", s=22, color=MISSING, transform=axes.get_xaxis_transform())


def _is_finished(row: Row) -> bool:
    return row["status"] == FINISHED
