"""The curves of a run as CSV and PNG."""

import csv
import io
import math
from pathlib import Path

from PIL import Image

from tasks.storage.files import write_atomically
from tasks.training.curves import curves_csv, draw_curves, write_curves
from tasks.training.metrics_log import point_line

POINTS = [
    {"step": 10, "train/loss": 2.0, "train/accuracy": 0.25, "train/learning_rate": 1e-3},
    {"step": 20, "train/loss": 1.5, "train/accuracy": 0.5, "train/learning_rate": 5e-4},
    {"step": 20, "val/loss": 1.75, "val/accuracy": 0.375},
]


def test_the_table_has_a_row_for_each_step() -> None:
    rows = list(csv.DictReader(io.StringIO(curves_csv(POINTS).decode())))
    assert [row["step"] for row in rows] == ["10", "20"]
    assert rows[0]["val/loss"] == ""
    assert {key: float(value) for key, value in rows[1].items()} == POINTS[1] | POINTS[2]


def test_the_picture_shows_each_curve_in_its_colour() -> None:
    picture = Image.open(io.BytesIO(draw_curves("a run of $x$", POINTS))).convert("RGB")
    colours = {colour for _, colour in picture.getcolors(2**20) or []}
    assert {(0x2F, 0x6F, 0xB7), (0xC0, 0x39, 0x2B)} <= colours


def test_a_run_without_points_or_with_a_loss_that_is_none_is_drawn_too() -> None:
    for points in ([], [{"step": 1, "train/loss": math.nan}]):
        assert Image.open(io.BytesIO(draw_curves("run", points))).size == (1200, 360)


def test_both_lie_in_the_folder_of_the_run(tmp_path: Path) -> None:
    write_atomically(tmp_path / "metrics.jsonl", "".join(map(point_line, POINTS)).encode())
    paths = write_curves(tmp_path)
    before = [path.read_bytes() for path in paths]
    assert [path.name for path in paths] == ["curves.csv", "curves.png"]
    assert [path.read_bytes() for path in write_curves(tmp_path)] == before
