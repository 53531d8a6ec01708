import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tasks.errors import ConfigError
from tasks.gallery import GalleryPiece, RollNotes, build_gallery
from tasks.music import pianoroll, synth
from tests.browser import Browser, serve_folder, skip_without_browser
from tests.millisecond_scores import millisecond_score

NASTY = "</script><script>alert(1)</script><b onclick='x'>\"&amp; @@script@@ \u202e\ud800\x00"
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
    return GalleryPiece(**{"name": name, "midi": b"MThd", "notes": RollNotes.from_score(score), **changes})


def sounding_piece(place: int) -> GalleryPiece:
    score = millisecond_score([(300 * i, 280, 60 + place + i, 90) for i in range(10)], pedals=[(0, 1000, 0)])
    rendering = synth.render(score)
    return GalleryPiece(
        name=f"piece {place}",
        midi=b"MThd",
        notes=RollNotes.from_score(score),
        audio=synth.encode_audio(rendering.samples, rendering.sample_rate),
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


def test_no_text_leaves_its_place():
    plain = build_gallery(
        "t", "s", [silent_piece(statistics={"k": 1.0}, lineage=["l"], warnings=["w"], prompt="p")], {"f": "v"}
    )
    nasty = build_gallery(
        NASTY,
        NASTY,
        [silent_piece(NASTY, statistics={NASTY: 1.0}, lineage=[NASTY], warnings=[NASTY], prompt=NASTY)],
        {NASTY: NASTY},
    )
    assert [tag for tag, _ in Page(nasty).tags] == [tag for tag, _ in Page(plain).tags]
    assert [sorted(attributes) for _, attributes in Page(nasty).tags] == [
        sorted(attributes) for _, attributes in Page(plain).tags
    ]
    assert not re.search("[\u202e\ud800\x00]", nasty)
    assert json.loads(Page(nasty).scripts[0])["statistics"] == {NASTY: 1.0}
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
    assert json.loads(Page(text).scripts[0])["statistics"] == {"a": None, "b": None, "c": 1234.0}
    assert re.findall("<dd>(.*?)</dd>", text) == ["n/a", "n/a", "1,234"]


def test_a_page_without_pieces_and_a_piece_without_notes_are_pages():
    assert "0 pieces" in build_gallery("t", "s", [], {})
    empty = silent_piece(notes=RollNotes.from_score(millisecond_score([])))
    assert "1 piece<" in build_gallery("t", "s", [empty], {})


def test_an_unknown_kind_of_audio_is_refused():
    with pytest.raises(ConfigError, match="audio type 'text/html' of 'one'"):
        silent_piece(audio=b"x", audio_mime="text/html")


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


@pytest.mark.slow
@skip_without_browser
@pytest.mark.parametrize("where", ["disk", "http", "sandbox"])
def test_a_piece_plays_and_its_cursor_moves(folder: Path, where: str):
    with serve_folder(folder) as root, Browser() as browser:
        if where == "sandbox":
            browser.open(f"{root}/viewer.html")
            browser.wait_until("document.querySelector('iframe')")
            browser.enter_frame("iframe")
        else:
            browser.open((folder / "gallery.html").as_uri() if where == "disk" else f"{root}/gallery.html")
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


@pytest.mark.slow
@skip_without_browser
def test_the_next_piece_follows_and_keys_work(folder: Path):
    with Browser() as browser:
        browser.open((folder / "gallery.html").as_uri())
        browser.press("j")
        browser.press("j")
        assert browser.run("return document.activeElement.id") == "piece-1"
        browser.press("k \ue014")  # before, play, 5 seconds on: that is the end of piece 0
        browser.wait_until("document.querySelector('#piece-1.playing')")
        browser.press(" ")
        assert browser.run(PLAYING) == []
        browser.press("?")
        assert browser.run("return document.getElementById('help').open")
        browser.press("\ue00c")
        browser.wait_until("!document.getElementById('help').open")
        browser.press("/")
        assert browser.run("return document.activeElement.id") == "filter"
        browser.press("Chorale")  # letters go into the field now
        assert browser.run(NAMES) == ["piece 0"]
        assert browser.run("return document.getElementById('count').textContent") == "1 of 3 pieces"
        browser.press("\ue00c")
        assert browser.run(NAMES) == ["piece 0", "piece 1", "piece 2"]
        assert browser.errors() == []


@pytest.mark.slow
@skip_without_browser
def test_pieces_are_sorted_while_one_plays(folder: Path):
    def sort(browser: Browser, key: str) -> list[str]:
        browser.run(
            "const list = document.getElementById('sort'); list.value = arguments[0];"
            "list.dispatchEvent(new Event('change'))",
            key,
        )
        return browser.run(NAMES)

    with Browser() as browser:
        browser.open((folder / "gallery.html").as_uri())
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


@pytest.mark.slow
@skip_without_browser
def test_the_page_follows_the_preferred_colours(folder: Path):
    paint = "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]"
    with Browser() as browser:
        browser.open((folder / "gallery.html").as_uri())
        assert browser.run(paint) > 200
        light = browser.screenshot()
        browser.prefer_colours("dark")
        browser.wait_until("matchMedia('(prefers-color-scheme: dark)').matches")
        assert browser.run(paint) < 60
        assert browser.screenshot() != light
