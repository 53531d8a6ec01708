import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from selenium.webdriver import Keys

from tasks.errors import ConfigError
from tasks.generation.gallery.gallery import BatchFigure, GalleryPiece, Mark, Passage, build_gallery
from tasks.music.render import audio, pianoroll
from tasks.music.render.soundfont import find_player
from tests.browser import Browser, needs_browser, serve_folder
from tests.millisecond_scores import millisecond_score

NASTY = "</script><script>alert(1)</script><b onclick='x'>\"&amp; {{ script }}{% endfor %} \u202e\ud800\x00"
VIEWER = """<!DOCTYPE html><title>viewer</title><script>
fetch("gallery.html").then((answer) => answer.text()).then((text) => {
  const frame = Object.assign(document.createElement("iframe"), {width: 1100, height: 800});
  frame.sandbox = "allow-scripts";
  frame.src = URL.createObjectURL(new Blob([text], {type: "text/html"}));
  document.body.append(frame);
});
</script>"""


class Page(HTMLParser):
    """All start tags with their attributes, and the text of each script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts[-1] += data


def silent_piece(name: str = "one", **changes) -> GalleryPiece:
    score = millisecond_score([(0, 900, 60, 90), (1000, 500, 64, 70)])
    return GalleryPiece(**{"name": name, "midi": b"MThd", "score": score, **changes})


def sounding_piece(place: int) -> GalleryPiece:
    score = millisecond_score([(300 * i, 280, 60 + place + i, 90) for i in range(10)], pedals=[(0, 1000, 0)])
    rendering = find_player().render(score)
    return GalleryPiece(
        name=f"piece {place}",
        midi=b"MThd",
        score=score,
        audio=audio.encode_audio(rendering.samples, rendering.sample_rate, "ogg" if place == 1 else "mp3"),
        audio_mime="audio/ogg" if place == 1 else "audio/mpeg",
        png=pianoroll.draw_piano_roll(score),
        statistics={
            "n_notes": 10,
            "pitch_mean": [66.0, 40.0, 90.0][place],
            "odd": float("nan") if place == 1 else place,
        },
        lineage=[f"seed {place}"],
        prompt="a chorale" if place == 0 else None,
        prompt_seconds=1.0 if place == 0 else None,
        warnings=["cut"] if place == 2 else [],
    )


def test_the_same_pieces_give_the_same_page():
    pages = [build_gallery("t", "s", [silent_piece(), silent_piece("two")], {"model": "m"}) for _ in range(2)]
    assert pages[0] == pages[1]


def worded_page(text: str) -> str:
    """A page with `text` wherever a text can stand."""
    passage = Passage(title=text, kind="source", score=millisecond_score([]), facts=[text], piece_span_seconds=(0, 1))
    piece = silent_piece(
        text, statistics={text: 1.0}, lineage=[text], warnings=[text], prompt=text, scores={text: 2.0}, flags=[text],
        marks=[Mark(label=text, onset_seconds=0, end_seconds=1)], comparisons=[passage], n_candidates=2,
        chosen_by=text, musicxml=b"PK",
    )  # fmt: skip
    figure = BatchFigure(name=text, generated=1.0, held_out=2.0, note=text)
    return build_gallery(text, text, [piece], {text: text}, batch_figures=[figure], flags=[text])


def test_no_text_leaves_its_place():
    plain, nasty = worded_page("plain"), worded_page(NASTY)
    assert [tag for tag, _ in Page(nasty).tags] == [tag for tag, _ in Page(plain).tags]
    assert [sorted(attributes) for _, attributes in Page(nasty).tags] == [
        sorted(attributes) for _, attributes in Page(plain).tags
    ]
    assert not re.search("[\u202e\ud800\x00]", nasty)
    data = next(json.loads(script) for script in Page(nasty).scripts if '"figures"' in script)
    assert data["figures"] == {f"score:{NASTY}": 2.0, f"stat:{NASTY}": 1.0}
    nasty.encode("utf-8")


def test_every_address_is_inside_the_file():
    page = Page(build_gallery("t", "s", [sounding_piece(0)], {}))
    addresses = [value for _, attributes in page.tags for name in ("src", "href") if (value := attributes.get(name))]
    assert len(addresses) == 3
    assert all(address.startswith("data:") for address in addresses)
    assert not {tag for tag, _ in page.tags} & {"link", "iframe", "object", "embed", "base"}


def test_the_policy_names_the_script_and_the_style_of_the_page():
    text = build_gallery("t", "s", [silent_piece()], {})
    page = Page(text)
    policy = next(tag["content"] for _, tag in page.tags if tag.get("http-equiv") == "Content-Security-Policy")
    for part in (page.scripts[-1], re.findall("<style>(.*?)</style>", text, re.DOTALL)[0]):
        assert base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() in (policy or "")


def test_files_come_back_from_their_links():
    page = Page(build_gallery("t", "s", [silent_piece("Prélude / 1", midi=b"MThd\x00\x01")], {}))
    link = next(attributes for tag, attributes in page.tags if tag == "a")
    assert link["download"] == "Prélude_1.mid"
    assert base64.b64decode((link["href"] or "").split(",")[1]) == b"MThd\x00\x01"


def test_numbers_that_are_not_finite_are_missing():
    text = build_gallery("t", "s", [silent_piece(statistics={"a": float("nan"), "b": float("inf"), "c": 1234.0})], {})
    assert json.loads(Page(text).scripts[0])["figures"] == {"stat:a": None, "stat:b": None, "stat:c": 1234.0}
    assert re.findall("<dd>(.*?)</dd>", text) == ["n/a", "n/a", "1,234"]


def test_a_page_without_pieces_and_a_piece_without_notes_are_pages():
    assert "0 pieces" in build_gallery("t", "s", [], {})
    empty = silent_piece(score=millisecond_score([]))
    assert "1 piece<" in build_gallery("t", "s", [empty], {})


def test_an_unknown_kind_of_audio_is_refused():
    with pytest.raises(ConfigError, match="audio type 'text/html' of 'one'"):
        silent_piece(audio=b"x", audio_mime="text/html")


@pytest.mark.parametrize("span", [(2, 1), (-1, 1), (0, float("inf")), (float("nan"), 1)])
def test_a_span_that_is_none_is_refused(span: tuple[float, float]):
    with pytest.raises(ConfigError, match="is no span"):
        Mark(label="m", onset_seconds=span[0], end_seconds=span[1])
    for name in ("span_seconds", "piece_span_seconds"):
        with pytest.raises(ConfigError, match="is no span of seconds"):
            Passage(title="p", kind="prompt", score=millisecond_score([]), **{name: span})


def test_sound_beyond_the_budget_stays_out_of_the_page():
    pieces = [silent_piece(str(i), audio=b"x" * 100) for i in range(3)]
    page = Page(build_gallery("t", "s", pieces, {}, max_audio_bytes=250))
    assert sum(tag == "audio" for tag, _ in page.tags) == 2
    assert sum(attributes.get("data-of") == "audio" for _, attributes in page.tags) == 2


def test_a_piece_says_what_is_known_of_it():
    text = build_gallery(
        "t", "s", [silent_piece(flags=["copy suspected"], n_candidates=8, chosen_by="log_probability")], {},
        batch_figures=[BatchFigure(name="copied_share", generated=0.021)], flags=["beware"],
    )  # fmt: skip
    assert '<span class="flag">copy suspected</span>' in text
    assert "best of 8 by log probability" in text
    assert '<th scope="row">copied share</th><td>0.021</td><td></td>' in text
    assert "<li>beware</li>" in text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a gallery of three pieces of 3 seconds, and a page that shows it as artifact viewers do."""
    folder = tmp_path_factory.mktemp("gallery")
    page = build_gallery("Three pieces", "for a browser", [sounding_piece(place) for place in range(3)], {"seed": "1"})
    (folder / "gallery.html").write_text(page, encoding="utf-8")
    (folder / "viewer.html").write_text(VIEWER, encoding="utf-8")
    return folder


TIMES = "[...document.querySelectorAll('.piece')].map((piece) => piece.querySelector('canvas').ariaValueNow)"
NAMES = "return [...document.querySelectorAll('.piece:not([hidden]) h2')].map((title) => title.textContent)"
PLAYING = "return [...document.querySelectorAll('.playing')].map((piece) => piece.id)"


def cursor_of(browser: Browser, place: int) -> float:
    return browser.run(f"return document.querySelector('#piece-{place} .cursor').getBoundingClientRect().left")


@needs_browser
@pytest.mark.parametrize("where", ["disk", "http", "sandbox"])
def test_a_piece_plays_and_its_cursor_moves(folder: Path, where: str):
    with serve_folder(folder) as root, Browser() as browser:
        if where == "sandbox":
            browser.get(f"{root}/viewer.html")
            browser.wait_until("document.querySelector('iframe')")
            browser.enter_frame("iframe")
        else:
            browser.get((folder / "gallery.html").as_uri() if where == "disk" else f"{root}/gallery.html")
        browser.wait_until("document.querySelector('.js .play')")
        assert browser.run("return document.getElementById('no-downloads').hidden") == (where != "sandbox")
        before = cursor_of(browser, 0)
        browser.click("#piece-0 .play")
        browser.wait_until(f"{TIMES}[0] > 0.5")
        assert cursor_of(browser, 0) > before + 20
        assert browser.run(PLAYING) == ["piece-0"]

        browser.click("#piece-1 .play")  # the other one falls silent
        browser.wait_until(f"{TIMES}[1] > 0.2")
        assert browser.run(PLAYING) == ["piece-1"]
        stopped = browser.run(f"return {TIMES}[0]")
        browser.wait_until(f"{TIMES}[1] > 0.6")
        assert browser.run(f"return {TIMES}[0]") == stopped

        browser.click_at("#piece-1 canvas", 300, 0)  # seeks, and plays on from there
        browser.wait_until(f"{TIMES}[1] > 2")
        browser.click("#piece-1 .play")
        assert browser.run(PLAYING) == []
        assert browser.errors() == []
        fetched = browser.run("return performance.getEntriesByType('resource').map((entry) => entry.name)")
        assert [name for name in fetched if not name.startswith("data:")] == []


@needs_browser
def test_the_next_piece_follows_and_keys_work(folder: Path):
    with Browser() as browser:
        browser.get((folder / "gallery.html").as_uri())
        browser.press("j")
        browser.press("j")
        assert browser.run("return document.activeElement.id") == "piece-1"
        browser.press(f"k {Keys.ARROW_RIGHT}")  # before, play, 5 seconds on: that is the end of piece 0
        browser.wait_until("document.querySelector('#piece-1.playing')")
        browser.press(" ")
        assert browser.run(PLAYING) == []
        browser.press("?")
        assert browser.run("return document.getElementById('help').open")
        browser.press(Keys.ESCAPE)
        browser.wait_until("!document.getElementById('help').open")
        browser.press("/")
        assert browser.run("return document.activeElement.id") == "filter"
        browser.press("Chorale")  # letters go into the field now
        assert browser.run(NAMES) == ["piece 0"]
        assert browser.run("return document.getElementById('count').textContent") == "1 of 3 pieces"
        browser.press(Keys.ESCAPE)
        assert browser.run(NAMES) == ["piece 0", "piece 1", "piece 2"]
        assert browser.errors() == []


@needs_browser
def test_pieces_are_sorted_while_one_plays(folder: Path):
    def sort(browser: Browser, key: str) -> list[str]:
        browser.run(
            "const list = document.getElementById('sort'); list.value = arguments[0];"
            "list.dispatchEvent(new Event('change'))",
            key,
        )
        return browser.run(NAMES)

    with Browser() as browser:
        browser.get((folder / "gallery.html").as_uri())
        browser.click("#piece-0 .play")
        browser.wait_until(f"{TIMES}[0] > 0.1")
        assert sort(browser, "stat:pitch_mean") == ["piece 1", "piece 0", "piece 2"]
        browser.click("#direction")
        assert browser.run(NAMES) == ["piece 2", "piece 0", "piece 1"]
        assert sort(browser, "stat:odd") == ["piece 2", "piece 0", "piece 1"]  # what lacks the number comes last
        browser.click("#direction")
        assert browser.run(NAMES) == ["piece 0", "piece 2", "piece 1"]
        assert sort(browser, "") == ["piece 0", "piece 1", "piece 2"]
        browser.wait_until(f"{TIMES}[0] > 0.8")
        assert browser.run(PLAYING) == ["piece-0"]
        hrefs = browser.run("return [...document.querySelectorAll('#piece-0 a')].map((link) => link.href.slice(0, 16))")
        assert hrefs == ["data:audio/midi;", "data:audio/mpeg;", "data:image/png;b"]
        assert browser.errors() == []


@needs_browser
def test_the_page_follows_the_preferred_colours(folder: Path):
    paint = "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]"
    with Browser() as browser:
        browser.get((folder / "gallery.html").as_uri())
        assert browser.run(paint) > 200
        light = browser.get_screenshot_as_png()
        browser.prefer_colours("dark")
        browser.wait_until("matchMedia('(prefers-color-scheme: dark)').matches")
        assert browser.run(paint) < 60
        assert browser.get_screenshot_as_png() != light


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a page of three pieces without files of sound; the first has a passage to compare with."""
    passage = Passage(
        title="a training piece", kind="nearest training passage", span_seconds=(1.0, 2.0),
        piece_span_seconds=(0.5, 1.5), facts=["distance 0.1"],
        score=millisecond_score([(500 * i, 400, 60 + i, 90) for i in range(8)]),
    )  # fmt: skip
    notes = [(300 * i, 280, 60 + i, 90) for i in range(10)] + [(0, 100, 36, 90, 0, True, 1)]
    score = millisecond_score(notes, n_tracks=2)
    pieces = [
        GalleryPiece(
            name=f"piece {place}", midi=b"MThd", score=score, scores={"novelty": [0.2, 0.9, float("nan")][place]},
            statistics={"n_notes": 11}, flags=["copy suspected"] if place == 0 else [],
            comparisons=[passage] if place == 0 else [],
            marks=[Mark(label="copied run", onset_seconds=0.5, end_seconds=1.5)] if place == 0 else [],
        )
        for place in range(3)
    ]  # fmt: skip
    path = tmp_path_factory.mktemp("compared") / "gallery.html"
    path.write_text(build_gallery("Compared", "s", pieces, {}), encoding="utf-8")
    return path.as_uri()


def choose(browser: Browser, name: str, value: str) -> None:
    """Set a control as a user does."""
    browser.run(
        "const control = document.getElementById(arguments[0]); control.value = arguments[1];"
        "for (const kind of ['input', 'change']) control.dispatchEvent(new Event(kind))",
        name,
        value,
    )


@needs_browser
def test_the_page_plays_notes_at_their_pitch_without_a_file(compared: str):
    with Browser() as browser:
        browser.get(compared)
        notes = {"onset": [1000], "end": [2000], "pitch": [69], "velocity": [90], "part": [0], "drum": [0]}
        samples = np.array(
            browser.run(
                "return [...orchestrionSound.render({notes: arguments[0], pedal: {onset: [], end: []}}, 2)]", notes
            )
        )
        assert len(samples) == 2.6 * 24_000
        assert np.abs(samples[:24_000]).max() == 0
        assert np.abs(samples).max() == pytest.approx(0.8, abs=0.01)
        spectrum = np.abs(np.fft.rfft(samples[24_000:48_000] * np.hanning(24_000)))
        assert np.argmax(spectrum[100:2000]) + 100 == pytest.approx(440, abs=2)  # A4
        for key in range(27, 88):
            drum = {"notes": {**notes, "pitch": [key], "drum": [1]}, "pedal": {"onset": [], "end": []}}
            loudest = browser.run("return Math.max(...orchestrionSound.render(arguments[0], 2))", drum)
            assert 0.1 < loudest <= 0.81
        browser.click("#piece-1 .play")
        browser.wait_until(f"{TIMES}[1] > 0.5")
        browser.press(Keys.ARROW_RIGHT)  # five seconds on is the end, and the next piece begins
        browser.wait_until("document.querySelector('#piece-2.playing')")
        browser.run("document.querySelector('#piece-2').focus()")
        browser.press(" ")
        assert browser.run(PLAYING) == []
        assert browser.errors() == []


@needs_browser
def test_a_passage_is_opened_zoomed_and_heard_by_keys(compared: str):
    with Browser() as browser:
        browser.get(compared)
        browser.press("jcz")
        assert browser.run("return document.querySelector('#piece-0-passage-0').open")
        assert browser.run("return document.querySelector('.zoom').ariaPressed") == "true"
        browser.press("v")  # the passage from its match on
        browser.wait_until("document.querySelector('#piece-0-passage-0.playing')")
        assert browser.run("return Number(document.querySelector('.passage canvas').ariaValueNow)") >= 1
        lefts = "return [...document.querySelectorAll('#piece-0 .cursor')].map((c) => c.getBoundingClientRect().left)"
        browser.press("v")  # the piece from its match on
        browser.wait_until("document.querySelector('#piece-0.playing')")
        browser.press(" ")
        browser.run(
            "for (const canvas of document.querySelectorAll('#piece-0 canvas')) canvas.dispatchEvent(new PointerEvent("
            "'pointerdown', {button: 0, pointerType: 'touch', clientX: canvas.getBoundingClientRect().left + 400}))"
        )
        first, second = browser.run(lefts)
        assert first == pytest.approx(second, abs=1)  # the same place in both rolls ...
        now = browser.run("return [...document.querySelectorAll('#piece-0 canvas')].map((c) => Number(c.ariaValueNow))")
        assert now[1] - now[0] == pytest.approx(0.5, abs=0.11)  # ... is the same distance from both matches
        browser.press("c")
        browser.wait_until("document.querySelector('.zoom').ariaPressed === 'false'")
        assert browser.errors() == []


@needs_browser
def test_pieces_are_filtered_by_figures_flags_and_words(compared: str):
    with Browser() as browser:
        browser.get(compared)
        choose(browser, "figure", "score:novelty")
        choose(browser, "figure-min", "0.5")
        assert browser.run(NAMES) == ["piece 1"]
        choose(browser, "figure-min", "")
        choose(browser, "figure-max", "0.5")
        assert browser.run(NAMES) == ["piece 0"]  # what lacks the figure is in no range
        choose(browser, "figure", "")
        assert browser.run(NAMES) == ["piece 0", "piece 1", "piece 2"]
        for flag, names in (
            ("none", ["piece 1", "piece 2"]),
            ("flag:copy suspected", ["piece 0"]),
            ("some", ["piece 0"]),
        ):
            choose(browser, "flag", flag)
            assert browser.run(NAMES) == names
        choose(browser, "flag", "")
        browser.press("s")
        assert browser.run("return document.activeElement.id") == "sort"
        choose(browser, "sort", "score:novelty")
        assert browser.run(NAMES) == ["piece 0", "piece 1", "piece 2"]
        browser.click("#direction")
        assert browser.run(NAMES) == ["piece 1", "piece 0", "piece 2"]
        assert browser.run("return document.querySelector('#piece-1 .sort-value').textContent") == "novelty: 0.90"
        assert browser.errors() == []


@needs_browser
def test_the_colours_are_switched(compared: str):
    paint = "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]"
    with Browser(dark=True) as browser:
        browser.get(compared)
        assert browser.run(paint) < 60
        browser.click("#theme")
        assert browser.run(paint) > 200
        browser.click("#theme")
        assert browser.run(paint) < 60
        assert browser.run("return document.getElementById('theme').textContent") == "Colours: dark"
        browser.click("#theme")
        browser.prefer_colours("light")
        browser.wait_until("matchMedia('(prefers-color-scheme: light)').matches")
        assert browser.run(paint) > 200
        assert browser.errors() == []
