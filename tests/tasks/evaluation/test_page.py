"""The page of an evaluation: every figure, the decision in words, all text escaped, nothing from outside the file."""

import io
import json
import math
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import image

from tasks.checkpoints import load_model
from tasks.config.evaluation import EvaluateConfig
from tasks.evaluation.champions import Rivalry
from tasks.evaluation.evaluate import Evaluation, evaluate_model
from tasks.evaluation.page.page import Decision, evaluation_page
from tasks.evaluation.summary import log_evaluation, report_address
from tasks.music.metrics.distances import Estimate
from tasks.reporting.spreads import Scale, draw_interval, draw_notes, draw_spreads
from tasks.storage.home import Home
from tasks.tracking.mlflow_tracker import Tracker
from tests.browser import Browser, needs_browser, serve_folder
from tests.studio import Studio, model_of
from tests.tasks.dataset.test_report import NASTY, VIEWER, Page

CONFIG = EvaluateConfig(seq_len=64, n_samples=4, sample_tokens=60, n_continuations=3, prompt_tokens=24)
WON = Rivalry(True, "It is better.", "rivals@1", 9.5, 9.0, Estimate(-0.5, -0.75, -0.25))


@pytest.fixture(scope="module")
def result(studio: Studio) -> Evaluation:
    return evaluate_model(load_model(studio.checkpoint), studio.dataset, CONFIG)


def page_of(studio: Studio, result: Evaluation, word: str = "plain", **changes: Any) -> str:
    """Return the page; each text that comes from outside holds `word`."""
    model = replace(model_of(Path(f"runs/{word}"), studio.dataset.reference), name=f"model {word}", preset=word)
    facts = {"config": CONFIG, "decision": Decision(replace(WON, champion=f"{word}@1"), True)} | changes
    return evaluation_page(result, model, studio.dataset, run_id="abcdef0123", **facts)


def named(result: Evaluation, word: str) -> Evaluation:
    """Return an evaluation in which all names of files are `word`, and all samples copies."""
    assert result.copying is not None
    assert result.continuations is not None
    match = {"n_notes": 40, "share": 0.5, "source_file": word}
    copying = result.copying | {"pieces": [piece | {"match": match} for piece in result.copying["pieces"]]}
    pieces = tuple(
        replace(piece, opening=replace(piece.opening, file=word), row=piece.row | {"file": word})
        for piece in result.continuations.pieces
    )
    test = replace(result.continuations, pieces=pieces)
    return replace(result, copying=copying, continuations=test, about={"encoding": word})


def minimal(**metrics: float) -> Evaluation:
    names = ("nll_per_token", "accuracy", "perplexity", "bits_per_second", "bits_per_note", "n_tokens")
    figures = dict.fromkeys((*names, "baseline/accuracy", "baseline/nll_per_token"), 1.0)
    return Evaluation(figures | metrics, {}, 0, 1, 0)


def test_the_page_holds_figures_lineage_and_decision(studio: Studio, result: Evaluation) -> None:
    text = re.sub(r"\s+", " ", Page(page_of(studio, result)).text)
    m, test = result.metrics, result.continuations
    assert test is not None
    said = [
        f"{m['bits_per_note']:,.3f}", f"{m['baseline/nll_per_token']:.4f}", f"{m['grammar_error_rate']:.5f} a token",
        "It is better. It has the alias champion now.", "-0.7500 to -0.2500", "9.0000", "typicality of held-out pieces",
        "notes per second", "scale consistency", "The other", "human limit", "continued the first 24 tokens of",
        "tokens scored per second", f"{result.tokens_per_second:,.0f}", "abcdef0123", studio.dataset.reference,
        "0123456789abcdef", "oore-", "n_continuations", "decoder", *(piece.opening.file for piece in test.pieces),
    ]  # fmt: skip
    assert [words for words in said if words not in text] == []
    bits = m["bits_per_note"] * m["baseline/nll_per_token"] / m["nll_per_token"]
    assert f"{bits:,.3f}" in text


def test_every_tag_is_closed_and_every_picture_has_a_name(studio: Studio, result: Evaluation) -> None:
    for text in (page_of(studio, result), page_of(studio, minimal(), decision=Decision(None, False))):
        page = Page(text)
        assert (page.open, page.stray) == ([], [])
        for tag, attributes in page.tags:
            if tag == "svg":
                assert attributes.get("aria-label") if attributes.get("role") == "img" else attributes["aria-hidden"]
        labels = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
        assert len(labels) == len(set(labels))
        links = [str(attributes["href"]) for tag, attributes in page.tags if tag == "a"]
        assert {link.removeprefix("#") for link in links} <= set(labels)
        assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "img", "base", "form"}
        attributes = {name for _, all_of_one in page.tags for name in all_of_one}
        assert not {name for name in attributes if name.startswith("on")} | (attributes & {"style", "src"})
        assert "nan" not in text
        assert "None" not in text


def test_no_text_leaves_its_place(studio: Studio, result: Evaluation) -> None:
    pages = [page_of(studio, named(result, word), word) for word in ("plain", NASTY)]
    assert Page(pages[0]).skeleton == Page(pages[1]).skeleton
    assert not re.search("[\u202e\ud800\x00]", pages[1])
    pages[1].encode()


@pytest.mark.parametrize(
    ("rivalry", "is_promoted", "words"),
    [
        (None, False, "A score on the training split, or of ids without music, makes no champion."),
        (WON, True, "It is better. It has the alias champion now."),
        (WON, False, "It is better. The setting evaluate.promote is false"),
        (replace(WON, is_won=False, verdict="It is worse."), False, "It is worse. The alias champion stays"),
        (Rivalry(True, "There is no champion of x yet."), True, "There is no champion of x yet. It has the alias"),
    ],
)
def test_the_decision_is_said_in_words(studio: Studio, rivalry: Rivalry | None, is_promoted: bool, words: str) -> None:
    page = page_of(studio, minimal(), decision=Decision(rivalry, is_promoted))
    assert words in page
    assert ("9.5000" in page) == bool(rivalry and rivalry.champion)
    without_interval = replace(WON, difference=None)
    assert "There is no interval" in page_of(studio, minimal(), decision=Decision(without_interval, True))


def test_what_a_reviewer_must_know_is_above_all(studio: Studio, result: Evaluation) -> None:
    def notes(result: Evaluation, config: EvaluateConfig = CONFIG) -> str:
        return page_of(studio, result, config=config).partition("<main>")[0]

    assert '<ul class="note">' not in notes(minimal(nll_per_token=0.5))
    assert "no better than token frequencies" in notes(minimal())
    assert "what was memorised" in notes(minimal(), replace(CONFIG, split="train"))
    assert "could not be compared with the training split" in notes(replace(result, copying=None))
    assert result.copying is not None
    beyond = {"verdict": result.copying["verdict"] | {"is_beyond": True}}
    assert "More samples share long runs" in notes(replace(result, copying=result.copying | beyond))


def test_parts_that_were_left_out_are_said_to_be(studio: Studio) -> None:
    text = page_of(studio, minimal(bits_per_note=math.nan), decision=Decision(None, False))
    for words in ("No samples were drawn.", "Nothing was compared with", "Off: evaluate.n_continuations is 0."):
        assert words in text


def test_spreads_stay_in_their_chart_and_tell_shares() -> None:
    mean = {"value": 2.0, "low": -5.0, "high": 2.5}
    drawn = draw_spreads("Name", "said", [("a", [1.0, 1.0, 1.0, 3.0], mean), ("b", [2.0, 5.0], {"value": 3.5})])
    page = Page(drawn)
    width, height = map(float, str(next(a["viewbox"] for t, a in page.tags if t == "svg")).split()[2:])
    for tag, attributes in page.tags:
        if tag == "rect":
            x, y, wide, tall = (float(str(attributes[name])) for name in ("x", "y", "width", "height"))
            assert 0 <= x < x + wide <= width
            assert 0 <= y < y + tall <= height
        for name in ("x1", "x2", "cx"):
            assert 0 <= float(str(attributes.get(name, 0))) <= width
    assert "a: 75 % from 1 to" in page.text
    bars = [float(str(a["height"])) for t, a in page.tags if t == "rect"]
    assert max(bars) == pytest.approx(3 * min(bars), abs=0.2)
    alike = draw_spreads("Name", "said", [("a", [4.0, 4.0], {"value": 4.0}), ("b", [4.0], {"value": None})])
    assert "100 % from" in Page(alike).text


def test_an_interval_lies_where_its_scale_says() -> None:
    figure, scale = {"value": 0.5, "low": 0.25, "high": 0.75}, Scale(low=0.0, high=1.0, mark=0.0)
    rects = [(a.get("class"), a) for t, a in Page(draw_interval(figure, scale, 1)).tags if t == "rect"]
    spread = next(a for kind, a in rects if kind == "spread s1")
    assert (spread["x"], spread["width"]) == ("25.00", "50.00")
    assert next(a for kind, a in rects if kind == "s1")["x"] == "49.50"
    assert next(a for kind, a in rects if kind == "mark")["x"] == "-0.25"
    assert Scale(low=2.0, high=2.0).place(7.0) == 0.0
    assert len(Page(draw_interval({}, scale)).tags) == 3  # the track and the mark alone


def test_given_notes_are_told_from_written_ones() -> None:
    notes = [(0.0, 1.0, 60, True), (1.0, 9.0, 64, False), (2.5, 3.0, 64, False)]
    rects = [a for t, a in Page(draw_notes("name", notes, 2.0, 1)).tags if t == "rect"]
    assert [a["class"] for a in rects] == ["given", "s1"]  # what begins beyond the width is not drawn
    assert [(a["x"], a["width"]) for a in rects] == [("0.0", "320.0"), ("320.0", "320.0")]
    assert float(str(rects[0]["y"])) > float(str(rects[1]["y"]))


@pytest.mark.slow
def test_a_run_in_the_tracker_has_all_of_it(
    studio: Studio, result: Evaluation, quiet_environment: Path, tmp_path: Path
) -> None:
    tracker, model = Tracker(Home.at(tmp_path)), model_of(studio.checkpoint, studio.dataset.reference)
    config = replace(CONFIG, split="train")  # which asks the registry for no champion
    with tracker.open_run("orchestrion/evaluation", "evaluate") as run:
        assert not log_evaluation(run, result, model, studio.dataset, config)
    metrics = tracker.client.get_run(run.run_id).data.metrics
    assert metrics["train/continuation/pitch_class_distance"] == pytest.approx(
        result.metrics["continuation/pitch_class_distance"]
    )
    assert metrics["train/continuation/tokens_per_second"] > 0
    import mlflow.artifacts

    def load(name: str) -> str:
        return mlflow.artifacts.load_text(f"runs:/{run.run_id}/{name}")

    page = load("evaluation.html")
    assert Path(report_address(run)).read_text() == page
    assert run.run_id in page
    assert model.reference in page
    rows = json.loads(load("continuations.json"))["pieces"]
    assert [row["piece"] for row in rows] == ["0000", "0001", "0002"][: len(rows)]
    assert json.loads(load("copying.json"))["verdict"] == (result.copying or {})["verdict"]
    files = {entry.path for entry in tracker.client.list_artifacts(run.run_id, "continuations/0000")}
    parts = ("prompt", "generated", "original", "continued_original")
    assert files == {f"continuations/0000/{part}.mid" for part in parts}
    assert metrics["train/continuation/pitch_class_kl/from_prompt"] > 0
    pictures = {entry.path for entry in tracker.client.list_artifacts(run.run_id, "continuations") if not entry.is_dir}
    assert pictures == {f"continuations/{name}.png" for name in ("pitch_classes", "durations", "distances")}


def is_shown(screenshot: bytes) -> bool:
    """Tell whether the page's own paper and the colour of its bars are in a picture of the window."""
    shown = image.imread(io.BytesIO(screenshot))[..., :3]

    def n_pixels(*colour: int) -> int:
        return int((np.abs(shown - np.array(colour) / 255).max(axis=2) < 0.01).sum())

    return n_pixels(0xF4, 0xF2, 0xED) > 10_000 and n_pixels(0xD1, 0x9A, 0x1F) > 50


@needs_browser
@pytest.mark.parametrize("where", ["disk", "http", "sandbox"])
def test_the_page_shows_itself_without_complaint(
    studio: Studio, result: Evaluation, tmp_path: Path, where: str
) -> None:
    (tmp_path / "evaluation.html").write_text(page_of(studio, named(result, NASTY), NASTY))
    (tmp_path / "viewer.html").write_text(VIEWER.replace("report.html", "evaluation.html"))
    size = (1200, 1000) if where == "sandbox" else (420, 800)
    with serve_folder(tmp_path) as root, Browser(*size, dark=where == "disk") as browser:
        if where == "sandbox":  # as artifact viewers show it; no script may look inside, so look for a colour
            browser.get(f"{root}/viewer.html")
            deadline = time.monotonic() + 30
            while not is_shown(browser.get_screenshot_as_png()) and time.monotonic() < deadline:
                time.sleep(0.5)
            assert is_shown(browser.get_screenshot_as_png())
            assert browser.errors() == []
            return
        page = tmp_path / "evaluation.html"
        browser.get(page.as_uri() if where == "disk" else f"{root}/evaluation.html")
        assert browser.run("return document.querySelectorAll('section').length") == 7
        width = browser.run("return [document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        assert width[0] <= width[1]
        paint = "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]"
        assert (browser.run(paint) < 60) == (where == "disk")
        assert browser.errors() == []
