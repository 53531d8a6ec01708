import io
import struct
import subprocess
import sys

import numpy as np
import pytest

from tasks.errors import ConfigError
from tasks.music.render.figures import PART_COLOURS
from tasks.music.render.pianoroll import draw_piano_roll, part_labels
from tests.millisecond_scores import millisecond_score

TWO_PARTS = millisecond_score(
    [(0, 900, 60, 127, 0, False, 0), (1000, 900, 67, 127, 40, False, 1), (500, 100, 36, 127, 0, True, 2)],
    pedals=[(0, 800, 0)],
    n_tracks=3,
)


def pixels(png: bytes) -> np.ndarray:
    from matplotlib.image import imread

    return imread(io.BytesIO(png), format="png")[:, :, :3]


def n_pixels_of(png: bytes, colour: str) -> int:
    rgb = np.array([int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)])
    return int((np.abs(pixels(png) - rgb) < 0.02).all(axis=2).sum())


def chunks(png: bytes) -> list[bytes]:
    found, place = [], 8
    while place < len(png):
        length, kind = struct.unpack(">I4s", png[place : place + 8])
        found.append(kind)
        place += length + 12
    return found


def test_the_picture_is_a_png_of_the_size_asked_for_without_metadata():
    png = draw_piano_roll(TWO_PARTS, width=640, height=240)
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", png[16:24]) == (640, 240)
    assert set(chunks(png)) <= {b"IHDR", b"pHYs", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
    assert len(png) < 40_000


def test_the_same_score_gives_the_same_bytes():
    assert draw_piano_roll(TWO_PARTS, "title") == draw_piano_roll(TWO_PARTS, "title")


def test_each_part_has_its_colour_and_soft_notes_are_paler():
    png = draw_piano_roll(TWO_PARTS)
    assert all(n_pixels_of(png, colour) > 20 for colour in PART_COLOURS[:3])
    soft = draw_piano_roll(millisecond_score([(0, 900, 60, 20)]))
    assert n_pixels_of(soft, PART_COLOURS[0]) == 0
    assert n_pixels_of(draw_piano_roll(millisecond_score([(0, 900, 60, 127)])), PART_COLOURS[0]) > 1000


def test_a_higher_note_stands_higher_and_a_later_one_further_right():
    picture = draw_piano_roll(millisecond_score([(0, 500, 50, 127), (1500, 500, 70, 127)]))
    blue = np.array([int(PART_COLOURS[0][start : start + 2], 16) / 255 for start in (1, 3, 5)])
    rows, columns = np.nonzero((np.abs(pixels(picture) - blue) < 0.02).all(axis=2))
    is_second = columns > columns.mean()
    assert rows[is_second].max() < rows[~is_second].min()


def test_labels_name_number_and_group_of_each_part():
    assert part_labels(TWO_PARTS) == ["1 piano", "2 strings", "3 drums"]


@pytest.mark.parametrize(
    "score",
    [
        millisecond_score([]),
        millisecond_score([(0, 1, 127, 1)]),
        millisecond_score([(0, 1, 0, 127)]),
        millisecond_score([(100 * i, 50, 35 + i, 90, 0, True, 0) for i in range(40)]),
        millisecond_score([(0, 500, 60 + i % 12, 90, i, False, i) for i in range(30)], n_tracks=30),
    ],
    ids=["no notes", "highest", "lowest", "only drums", "thirty parts"],
)
def test_unusual_scores_are_drawn(score):
    assert draw_piano_roll(score).startswith(b"\x89PNG")


@pytest.mark.parametrize("title", ["$x^2", "cost $5 or $6", "$\\frac{", "夜想曲", "a" * 500, "tab\tand\nline"])
def test_any_title_is_drawn_as_text(title: str, recwarn: pytest.WarningsRecorder):
    assert draw_piano_roll(TWO_PARTS, title).startswith(b"\x89PNG")
    assert [str(warning.message) for warning in recwarn] == []


def test_a_long_score_is_cut_in_the_open():
    score = millisecond_score([(0, 900, 60, 127), (9000, 900, 60, 127)])
    assert draw_piano_roll(score, max_seconds=5) != draw_piano_roll(score)


@pytest.mark.parametrize("size", [{"width": 10}, {"height": 9000}, {"max_seconds": 0}, {"max_seconds": float("nan")}])
def test_impossible_sizes_are_refused(size: dict):
    with pytest.raises(ConfigError):
        draw_piano_roll(TWO_PARTS, **size)


def test_importing_loads_no_matplotlib_and_drawing_no_pyplot():
    script = """
import sys
from tasks.music.render.pianoroll import draw_piano_roll
assert not any(name.startswith("matplotlib") for name in sys.modules)
from tests.millisecond_scores import millisecond_score
draw_piano_roll(millisecond_score([(0, 500, 60, 80)]))
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)
