"""The curves of a training run as a table (CSV) and as a picture (PNG)."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from tasks.music.render.figures import FAINT, INK, PAPER, new_figure, png_of
from tasks.storage.files import write_atomically
from tasks.training.metrics_log import read_points

PANELS = (("loss (nats)", ("train/loss", "val/loss")), ("accuracy", ("train/accuracy", "val/accuracy")),
          ("learning rate", ("train/learning_rate",)))  # fmt: skip
COLOURS = {"train": "#2f6fb7", "val": "#c0392b"}

Points = Sequence[Mapping[str, float]]


def write_curves(run_dir: Path) -> list[Path]:
    """Write `curves.csv` and `curves.png` into a run's folder, from its metric points; return their paths."""
    points = read_points(run_dir / "metrics.jsonl")
    files = {run_dir / "curves.csv": curves_csv(points), run_dir / "curves.png": draw_curves(run_dir.name, points)}
    for path, data in files.items():
        write_atomically(path, data)
    return list(files)


def curves_csv(points: Points) -> bytes:
    """Return one row a step, with a column for each figure; a figure that a step lacks is empty."""
    rows: dict[int, dict[str, float]] = {}
    for point in points:
        rows.setdefault(int(point["step"]), {}).update(point)
    names = sorted({name for row in rows.values() for name in row} - {"step"})
    text = io.StringIO()
    writer = csv.DictWriter(text, ["step", *names], lineterminator="\n")
    writer.writeheader()
    for step in sorted(rows):
        writer.writerow(rows[step] | {"step": step})
    return text.getvalue().encode()


def draw_curves(name: str, points: Points) -> bytes:
    """Draw loss, accuracy and learning rate over the steps as the bytes of a PNG."""
    figure = new_figure(12, 3.6, layout="constrained")
    figure.suptitle(name, color=INK, parse_math=False)
    for axes, (label, keys) in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        axes.set_facecolor(PAPER)
        axes.grid(color=FAINT, linewidth=0.5)
        axes.set_xlabel("step", color=INK)
        axes.set_ylabel(label, color=INK)
        for key in keys:
            split = key.partition("/")[0]
            found = [(point["step"], point[key]) for point in points if key in point]
            marker = "." if len(found) < 30 else ""
            axes.plot(*zip(*found, strict=True), color=COLOURS[split], label=split, marker=marker) if found else None
        if len(keys) > 1 and axes.lines:
            axes.legend(frameon=False)
    return png_of(figure)
