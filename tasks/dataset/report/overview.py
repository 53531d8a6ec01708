"""The overview picture of a dataset: key figures and six charts."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.music.render.figures import FAINT, INK, PAPER, new_figure, png_of
from tasks.reporting.charts import Chart, charts_of, instrument_families, step_of
from tasks.reporting.markup import UNPRINTABLE, compact, label_of, shorten

if TYPE_CHECKING:
    from tasks.dataset.report.facts import ReportFacts


def draw_overview(facts: "ReportFacts") -> bytes:
    """Draw the key figures and six charts as the bytes of a PNG, 1500 x 900 pixels."""
    figure = new_figure(15, 9)
    # A dataset's name is text, never a formula between dollar signs.
    title = UNPRINTABLE.sub("\ufffd", f"{shorten(facts.name)[:60]}  {facts.version[:24]}")
    figure.text(0.035, 0.965, title, ha="left", va="top", color=INK, fontsize=20, parse_math=False)
    for place, (name, value) in enumerate(list(facts.headline().items())[:7]):
        x = 0.035 + place * 0.137
        figure.text(x, 0.885, value, ha="left", va="top", color=INK, fontsize=17, parse_math=False)
        figure.text(x, 0.845, name, ha="left", va="top", color="#635f55", fontsize=10, parse_math=False)
    grid = figure.add_gridspec(2, 3, left=0.035, right=0.97, top=0.765, bottom=0.06, wspace=0.17, hspace=0.34)
    _draw_bars(figure.add_subplot(grid[0, 0]), "Files by state and reason", _file_rows(facts))
    charts = {chart.title: chart for chart in charts_of(facts.histograms)}
    for place, name in ((grid[0, 1], "Length"), (grid[0, 2], "Notes in a piece"), (grid[1, 0], "Pitch")):
        _draw_histogram(figure.add_subplot(place), name, charts.get(name))
    _draw_histogram(figure.add_subplot(grid[1, 1]), "Tempo", charts.get("Tempo"))
    splits = [(split["name"], split["n_notes"], PICTURE_COLOURS[3]) for split in facts.splits]
    families = instrument_families(facts.histograms["program"]) if "program" in facts.histograms else []
    families = sorted(families, key=lambda row: (-row[1], row[0]))[: max(8 - len(splits), 3)]
    rows = [*splits, *((name, n, PICTURE_COLOURS[5]) for name, n in families)]
    _draw_bars(figure.add_subplot(grid[1, 2]), "Notes by split and by instrument", rows)
    return png_of(figure)


PICTURE_COLOURS = ("#2c8f6a", "#d19a1f", "#c0392b", "#2f6fb7", "#a8479b", "#4fa3c7", "#6c7a1f", "#8a6d5a")


def _file_rows(facts: "ReportFacts") -> list[tuple[str, int, str]]:
    """Return the accepted files and the most common reasons, with their colours."""
    colours = {state: PICTURE_COLOURS[place % 8] for place, (state, _) in enumerate(facts.state_counts())}
    reasons = sorted(
        (row for row in facts.reasons if row["state"] != "accepted"), key=lambda row: (-row["n_files"], row["reason"])
    )
    rows = [("accepted", facts.states.get("accepted", 0), colours["accepted"])]
    rows += [(label_of(row["reason"]), row["n_files"], colours.get(row["state"], INK)) for row in reasons[:7]]
    if len(reasons) > 7:
        n_files = sum(row["n_files"] for row in reasons[7:])
        rows.append((f"{len(reasons) - 7} other reasons", n_files, PICTURE_COLOURS[7]))
    return rows


def _draw_bars(axes: Any, title: str, rows: Sequence[tuple[str, int, str]]) -> None:
    _dress(axes, title)
    if not rows:
        _show_nothing(axes)
        return
    places = np.arange(len(rows))
    top = max(*(n for _, n, _ in rows), 1)
    axes.barh(places, [n for _, n, _ in rows], color=[colour for _, _, colour in rows], height=0.68)
    axes.set_yticks(places, [])
    for place, (name, n, _) in enumerate(rows):
        label = UNPRINTABLE.sub("\ufffd", name)
        label = label if len(label) <= 24 else f"{label[:23]}…"
        axes.text(-0.02 * top, place, label, ha="right", va="center", color=INK, fontsize=9, parse_math=False)
        axes.text(n + 0.015 * top, place, f"{n:,}", ha="left", va="center", color=INK, fontsize=9)
    axes.set_xlim(-0.6 * top, 1.25 * top)
    axes.set_ylim(max(len(rows), 4) - 0.4, -0.6)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)


def _draw_histogram(axes: Any, title: str, chart: Chart | None) -> None:
    _dress(axes, title if chart is None else f"{title} ({chart.noun}s)")
    if chart is None:
        _show_nothing(axes)
        return
    axes.bar(np.arange(len(chart.counts)) + 0.5, chart.counts, width=0.92, color=PICTURE_COLOURS[3])
    axes.set_xlim(0, len(chart.counts))
    axes.set_xticks([place for place, _ in chart.ticks], [label for _, label in chart.ticks])
    step = step_of(max(chart.counts))
    heights = np.arange(0, max(chart.counts) + 1, step)
    axes.set_yticks(heights, [compact(int(height)) for height in heights])
    axes.grid(axis="y", color=FAINT, linewidth=0.7)


def _dress(axes: Any, title: str) -> None:
    axes.set_facecolor(PAPER)
    axes.set_title(title, loc="left", color=INK, fontsize=11.5, pad=9)
    axes.tick_params(colors=INK, labelsize=9, length=3)
    axes.tick_params(axis="y", length=0)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(INK)


def _show_nothing(axes: Any) -> None:
    axes.text(0.5, 0.5, "nothing counted", ha="center", va="center", color="#635f55", transform=axes.transAxes)
    axes.set_xticks([])
    axes.set_yticks([])
