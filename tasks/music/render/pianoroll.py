"""Piano rolls as PNG: pitch over time, a colour for each part, velocity as strength, pedal and drums below."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.errors import ConfigError
from tasks.music.render.figures import FAINT, INK, PAPER, PART_COLOURS, new_figure, png_of
from tasks.music.score import Score

MAX_LEGEND = 7  # parts; the others share the last entry

PROGRAM_GROUPS = (
    "piano", "tuned percussion", "organ", "guitar", "bass", "strings", "ensemble", "brass",
    "reed", "pipe", "synth lead", "synth pad", "synth effects", "world", "percussive", "sound effects",
)  # fmt: skip


def part_labels(score: Score) -> list[str]:
    """Return one name per track, such as `2 strings`: its number from 1 and its General MIDI group, or `drums`."""
    labels = []
    for track in range(score.n_tracks):
        own = np.flatnonzero(score.notes.track == track)
        if not len(own):
            group = "no notes"
        elif score.notes.is_drum[own[0]]:
            group = "drums"
        else:
            group = PROGRAM_GROUPS[int(score.notes.program[own[0]]) // 8]
        labels.append(f"{track + 1} {group}")
    return labels


def draw_piano_roll(
    score: Score, title: str = "", width: int = 1200, height: int = 420, max_seconds: float = 600.0
) -> bytes:
    """Draw `score` and return the bytes of a PNG; the same score gives the same bytes.

    Args:
        title: shown above the picture; no room is spent on an empty one.
        width: in pixels, 200 to 8000.
        height: in pixels, 120 to 8000.
        max_seconds: what comes later is left out, and the picture says so.
    Raises:
        ConfigError: a size or a length is impossible.
    """
    if not (200 <= width <= 8000 and 120 <= height <= 8000):
        raise ConfigError(f"piano roll of {width} x {height} pixels is outside 200-8000 x 120-8000")
    if not 0 < max_seconds < math.inf:
        raise ConfigError(f"max_seconds={max_seconds} is not above 0 and finite")
    notes = score.notes
    total = float(notes.end_seconds.max()) if len(notes.pitch) else 1.0
    shown = min(total, max_seconds)
    n_later = int((notes.onset_seconds >= shown).sum())
    if n_later:
        title = f"{title}  (first {shown:.0f} s of {total:.0f} s, {n_later} notes later)".strip()
    figure = new_figure(width / 100, height / 100)
    lanes = _lanes(score)
    has_header = bool(title) or score.n_tracks > 1
    left, right = 52 / width, 1 - 12 / width
    top = 1 - (30 if has_header else 10) / height
    heights, bottom = list(lanes.values()), 42 / height
    grid = figure.add_gridspec(
        len(lanes), 1, height_ratios=heights, hspace=0.04, left=left, right=right, top=top, bottom=bottom
    )
    for row, lane in enumerate(lanes):
        axes = figure.add_subplot(grid[row])
        _dress(axes, shown, is_lowest=row == len(lanes) - 1)
        if lane == "notes":
            _draw_notes(axes, score, shown, width - 64)
        elif lane == "pedal":
            _draw_pedal(axes, score)
        else:
            _draw_drums(axes, score)
    n_shown = round((width - 90 * min(score.n_tracks, MAX_LEGEND)) / 8)  # about 8 pixels a letter, beside the legend
    title = title if len(title) <= n_shown else f"{title[: max(n_shown - 1, 0)]}…"
    # A file name is text, never a formula between dollar signs.
    figure.text(left, 1 - 9 / height, title, ha="left", va="top", color=INK, fontsize=10, parse_math=False)
    if score.n_tracks > 1:
        _draw_legend(figure, score, (right, 1 - 5 / height))
    return png_of(figure, optimize=False)


def _lanes(score: Score) -> dict[str, float]:
    """Return the lanes from top to bottom with their shares of the height."""
    lanes = {"notes": 1.0, "pedal": 0.045, "drums": 0.2}
    if not len(score.pedals.track):
        del lanes["pedal"]
    if not score.notes.is_drum.any():
        del lanes["drums"]
    elif score.notes.is_drum.all():
        del lanes["notes"]
    return lanes


def _draw_legend(figure: Any, score: Score, corner: tuple[float, float]) -> None:
    from matplotlib.patches import Patch

    labels = part_labels(score)
    if len(labels) > MAX_LEGEND:
        labels = [*labels[: MAX_LEGEND - 1], f"and {len(labels) - MAX_LEGEND + 1} more"]
    patches = [Patch(facecolor=PART_COLOURS[i % len(PART_COLOURS)], label=label) for i, label in enumerate(labels)]
    if score.n_tracks > MAX_LEGEND:
        patches[-1].set_facecolor(FAINT)
    figure.legend(
        handles=patches, loc="upper right", bbox_to_anchor=corner, ncols=len(patches), frameon=False, fontsize=8,
        labelcolor=INK, handlelength=0.9, handleheight=0.9, handletextpad=0.4, columnspacing=1.0, borderpad=0.0,
    )  # fmt: skip


def _dress(axes: Any, seconds: float, *, is_lowest: bool) -> None:
    axes.set_facecolor(PAPER)
    axes.set_xlim(0, seconds)
    axes.tick_params(colors=INK, labelsize=8, length=3, labelbottom=is_lowest, bottom=is_lowest)
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(FAINT)
    if is_lowest:
        axes.set_xlabel("seconds", color=INK, fontsize=8)


def _draw_notes(axes: Any, score: Score, seconds: float, n_pixels: int) -> None:
    notes = score.notes
    pitched = ~notes.is_drum & (notes.onset_seconds < seconds)
    pitch = notes.pitch[pitched].astype(np.float64)
    low, high = (float(pitch.min()), float(pitch.max())) if len(pitch) else (60.0, 60.0)
    spare = max(0.0, 24 - (high - low)) / 2  # two octaves at least, or a melody would fill the page
    axes.set_ylim(max(low - spare - 1.5, -1), min(high + spare + 1.5, 128))
    octaves = [c for c in range(0, 128, 12) if axes.get_ylim()[0] <= c <= axes.get_ylim()[1]]
    axes.set_yticks(octaves, [f"C{c // 12 - 1}" for c in octaves])
    axes.grid(axis="y", color=FAINT, linewidth=0.9)
    onset = notes.onset_seconds[pitched]
    end = np.maximum(notes.end_seconds[pitched], onset + 1.5 * seconds / n_pixels)  # the shortest still show
    _add_boxes(axes, (onset, end), (pitch - 0.42, pitch + 0.42), _colours(score, pitched))


def _draw_pedal(axes: Any, score: Score) -> None:
    from matplotlib.colors import to_rgba_array

    pedals = score.pedals
    axes.set_ylim(0, 1)
    axes.set_yticks([0.5], ["pedal"])
    n_tracks = max(score.n_tracks, 1)
    high = 1 - pedals.track / n_tracks
    colours = to_rgba_array([INK] * len(pedals.track), 0.45)
    times = (pedals.onset_seconds, pedals.end_seconds)
    _add_boxes(axes, times, (high - 0.8 / n_tracks, high - 0.2 / n_tracks), colours)


def _draw_drums(axes: Any, score: Score) -> None:
    notes = score.notes
    keys, row = np.unique(notes.pitch[notes.is_drum], return_inverse=True)
    axes.set_ylim(-0.6, len(keys) - 0.4)
    axes.set_yticks([(len(keys) - 1) / 2], ["drums"])
    axes.vlines(
        notes.onset_seconds[notes.is_drum], row - 0.38, row + 0.38, colors=_colours(score, notes.is_drum), lw=1.3
    )


def _add_boxes(axes: Any, times: tuple[Any, Any], heights: tuple[Any, Any], colours: NDArray[np.float64]) -> None:
    from matplotlib.collections import PolyCollection

    (left, right), (low, high) = times, heights
    corners = np.stack([np.stack([left, left, right, right], axis=1), np.stack([low, high, high, low], axis=1)], axis=2)
    axes.add_collection(PolyCollection(list(corners), facecolors=colours, linewidths=0), autolim=False)


def _colours(score: Score, chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
    from matplotlib.colors import to_rgba_array

    palette = to_rgba_array(PART_COLOURS)[:, :3]
    rgb = palette[score.notes.track[chosen] % len(palette)]
    return np.column_stack([rgb, 0.4 + 0.6 * score.notes.velocity[chosen] / 127])
