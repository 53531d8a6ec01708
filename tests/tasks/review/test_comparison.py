"""The page that sets models side by side: figures, intervals, curves, sound; nothing of it from outside the file."""

import math
import re
from dataclasses import replace

import pytest

from tasks.reporting.axes import round_step
from tasks.reporting.curves import draw_curves
from tasks.review.comparison import Contestant, Heard, build_comparison, difference_of, warnings_of
from tests.studio import model_of


def contestant(version: str, nats: tuple[float, ...], **more: object) -> Contestant:
    model = replace(model_of("checkpoint", "small@0123"), version=version)  # type: ignore[arg-type]
    facts = {
        "scored_on": "0123/test",
        "metrics": {"bits_per_note": sum(nats) / 100, "accuracy": 0.75},
        "piece_nats": nats,
        "curves": {"val/loss": [(10, 2.0), (20, 1.5)]},
    } | more
    return Contestant(model, **facts)  # type: ignore[arg-type]


NATS = (100.0, 90.0, 110.0, 95.0, 105.0, 100.0)


def test_figures_and_intervals_stand_in_the_row_of_their_model() -> None:
    first, other = contestant("1", NATS), contestant("2", tuple(0.9 * nats for nats in NATS))
    page = build_comparison([first, other])
    rows = re.findall(r'<tr><th scope="row" class="path">(.*?)</th>(.*?)</tr>', page)
    cells = {name: re.findall(r"<td[^>]*>(.*?)</td>", row) for name, row in rows}
    assert cells["small-small@1"][:3] == ["6.000", "", "0.7500"]
    assert cells["small-small@2"][0] == "5.400"
    assert cells["small-small@2"][1] == difference_of(other, first)
    found = re.fullmatch(r"([-+]\d\.\d{3}) \(([-+]\d\.\d{3}) to ([-+]\d\.\d{3})\)", difference_of(other, first))
    assert found is not None
    value, low, high = map(float, found.groups())
    assert value == pytest.approx(-0.6, abs=0.001)
    assert low < value < high < 0


@pytest.mark.parametrize(
    "change",
    [{"scored_on": "4567/test"}, {"piece_nats": NATS[:-1]}, {"piece_nats": ()}, {"piece_nats": (0.0,) * 6}],
    ids=str,
)
def test_what_cannot_be_compared_has_no_interval(change: dict[str, object]) -> None:
    first, other = contestant("1", NATS), contestant("2", NATS, **change)
    assert difference_of(other, first) == ""
    page = build_comparison([first, other])
    assert ("scored on different music" in page) == ("scored_on" in change)


def test_unequal_settings_are_said_and_give_no_interval() -> None:
    settings = {"seq_len": "1024", "sample_tokens": "512"}
    first = contestant("1", NATS, settings=settings)
    wider = contestant("2", tuple(0.9 * nats for nats in NATS), settings=settings | {"seq_len": "64"})
    page = build_comparison([first, wider])
    assert difference_of(wider, first) == ""
    assert "evaluated with different seq_len, which changes figures of held-out music" in page
    assert "1024 (small-small@1), 64 (small-small@2)" in page
    longer = contestant("2", NATS, settings=settings | {"sample_tokens": "100"})
    assert difference_of(longer, first) != ""
    assert "different sample_tokens, which changes figures of samples" in build_comparison([first, longer])
    assert warnings_of([first, contestant("2", NATS, settings=settings)]) == []


def test_figures_that_are_not_finite_are_said_and_give_no_interval() -> None:
    broken = contestant("2", (math.nan, *NATS[1:]), metrics={"bits_per_note": math.nan, "accuracy": 0.1})
    assert difference_of(broken, contestant("1", NATS)) == difference_of(contestant("1", NATS), broken) == ""
    assert "small-small@2 has figures that are not finite: bits_per_note" in build_comparison(
        [contestant("1", NATS), broken]
    )


def test_a_model_that_was_never_evaluated_is_said_to_be_none() -> None:
    page = build_comparison([contestant("1", NATS), contestant("2", (), scored_on="", metrics={}, curves={})])
    assert "small-small@2 has not been evaluated" in page
    assert "No batch by this model" in page


def test_the_page_holds_all_and_fetches_nothing() -> None:
    piece = Heard("0001", b"\x89PNG", b"OggS", "audio/ogg")
    page = build_comparison([contestant("1", NATS, batch="b<i>", pieces=[piece]), contestant("2", NATS)])
    assert 'src="data:audio/ogg;base64,T2dnUw=="' in page
    assert 'src="data:image/png;base64,' in page
    assert "<script" not in page
    assert "b<i>" not in page
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)


def test_curves_lie_within_their_chart() -> None:
    chart = draw_curves("Loss", [[(0, 5.0), (50, 1.25)], [(100, 0.5), (150, float("nan"))], []])
    points = [
        tuple(map(float, point.split(","))) for line in re.findall(r'points="(.*?)"', chart) for point in line.split()
    ]
    assert len(points) == 3
    assert all(0 <= x <= 340 and 0 <= y <= 170 for x, y in points)
    assert points[0][1] < points[1][1] < points[2][1]  # the higher the loss, the higher the point
    assert draw_curves("Loss", [[], [(1, float("inf"))]]) == ""


@pytest.mark.parametrize("span", [1e-4, 0.013, 0.4, 1.0, 3.7, 5.0, 123.0])
def test_steps_are_round_and_few(span: float) -> None:
    step = round_step(span)
    assert 1 <= span / step <= 5
    assert f"{step:.0e}"[0] in "125"
