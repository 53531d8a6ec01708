"""The scatter picture of a dataset: onset, duration and pitch of its notes, coloured by channel.

Source: Optimus VIRTUOSO (2021), whose notebook draws its dataset so.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tasks.dataset.encode import read_notes
from tasks.music.arrays import ByteArray, FloatArray
from tasks.music.midi.modes import DRUM_CHANNEL
from tasks.music.render.figures import FAINT, INK, PAPER, PART_COLOURS, new_figure, png_of
from tasks.music.tokenizers.optimus.rows import CHANNEL_OF_PROGRAM

MOST_POINTS = 8_000
MOST_SHARDS = 16  # of songs that are read; each holds a random part of the pieces, for it is chosen by their hashes
_SEED, _COLOURS = 0, 64
_LABELS = ("piano", "guitar", "bass", "violin", "cello", "harp", "trumpet", "clarinet", "flute", "drums")
_DURATIONS = (0.01, 0.1, 1.0, 10.0, 100.0)  # marks, in seconds


class Points(NamedTuple):
    """Some notes of a dataset in random order, so that no channel is drawn above the others, and the number of all."""

    onset: FloatArray  # seconds
    duration: FloatArray  # seconds
    pitch: ByteArray
    channel: ByteArray  # as the encodings `optimus` write it: by family of programs, 9 for drums
    n_notes: int

    @property
    def words(self) -> str:
        n_shown, everything = len(self.pitch), f"{self.n_notes:,} notes"
        return everything if n_shown == self.n_notes else f"{n_shown:,} of {everything}, drawn at random"


def sample_points(shards: Sequence[Path], pieces: Sequence[str], n_notes: int) -> Points:
    """Return at most `MOST_POINTS` notes of some pieces; the same dataset gives the same notes.

    Args:
        shards: the song shards of the pieces; of many, `MOST_SHARDS` are read.
        n_notes: of all pieces.
    """
    rng = np.random.default_rng(_SEED)
    chosen = np.sort(rng.permutation(len(shards))[:MOST_SHARDS])
    parts = [read_notes(shards[place], pieces) for place in chosen.tolist()]
    onset, end, pitch, is_drum, program = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("onset_seconds", "end_seconds", "pitch", "is_drum", "program")
    )
    taken = rng.choice(len(pitch), min(len(pitch), MOST_POINTS), replace=False)
    channel = np.where(is_drum, DRUM_CHANNEL, CHANNEL_OF_PROGRAM[program])
    return Points(onset[taken], (end - onset)[taken], pitch[taken], channel[taken], n_notes)


def draw_scatter(name: str, points: Points) -> bytes:
    """Draw notes in space, and over onset and over duration, as the bytes of a PNG, 1500 x 640 pixels."""
    figure = new_figure(15, 6.4)
    figure.text(0.03, 0.965, f"{name}: {points.words}", ha="left", va="top", color=INK, fontsize=14, parse_math=False)
    onset, duration, pitch = points.onset, np.log10(np.maximum(points.duration, 1e-3)), points.pitch
    dots = {"c": np.array(PART_COLOURS)[points.channel], "s": 3, "linewidths": 0}
    space = figure.add_axes((0.0, 0.02, 0.46, 0.86), projection="3d", facecolor=PAPER)
    space.set_box_aspect(None, zoom=1.05)
    space.scatter(onset, duration, pitch, depthshade=False, **dots)
    space.set_xlabel("onset (s)", color=INK, fontsize=9)
    space.set_ylabel("duration (s)", color=INK, fontsize=9)
    space.set_zlabel("pitch", color=INK, fontsize=9)
    space.tick_params(colors=INK, labelsize=8)
    _mark_durations(space.set_yticks, duration)
    beside = figure.add_axes((0.53, 0.54, 0.45, 0.33))
    below = figure.add_axes((0.53, 0.09, 0.45, 0.33))
    for axes, across, label in ((beside, onset, "onset (s)"), (below, duration, "duration (s)")):
        axes.scatter(across, pitch, **dots)
        axes.set_facecolor(PAPER)
        axes.set_xlabel(label, color=INK, fontsize=9)
        axes.set_ylabel("pitch", color=INK, fontsize=9)
        axes.tick_params(colors=INK, labelsize=8)
        axes.grid(color=FAINT, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    _mark_durations(below.set_xticks, duration)
    _draw_legend(figure, points.channel)
    return _with_few_colours(png_of(figure, optimize=False))


def _with_few_colours(png: bytes) -> bytes:
    """Return a picture with a palette, in a quarter of the bytes."""
    from PIL import Image

    buffer = io.BytesIO()
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    # The other methods give the colours of rare channels away to the edges of letters.
    picture = picture.quantize(_COLOURS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _mark_durations(set_ticks: Any, logarithm: FloatArray) -> None:
    low, high = (logarithm.min(), logarithm.max()) if len(logarithm) else (0.0, 0.0)
    marks = [mark for mark in _DURATIONS if low - 0.5 <= np.log10(mark) <= high + 0.5]
    set_ticks(np.log10(marks), [f"{mark:g}" for mark in marks])


def _draw_legend(figure: Any, channel: ByteArray) -> None:
    from matplotlib.patches import Patch

    counts = np.bincount(channel, minlength=len(_LABELS))
    patches = [
        Patch(facecolor=PART_COLOURS[place], label=f"{place} {_LABELS[place]}") for place in np.flatnonzero(counts)
    ]
    if patches:
        figure.legend(
            handles=patches, loc="upper right", bbox_to_anchor=(0.985, 0.975), ncols=len(patches), frameon=False,
            fontsize=9, labelcolor=INK, handlelength=0.9, handletextpad=0.4, columnspacing=1.0,
        )  # fmt: skip
