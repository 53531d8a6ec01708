"""The report of a dataset version: it says everything, escapes everything, and is the same each time."""

import base64
import dataclasses
import hashlib
import io
import itertools
import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from matplotlib import image
from PIL import Image

from tasks.config.dataset import AugmentConfig
from tasks.config.presets import build_preset
from tasks.dataset.encode import read_notes
from tasks.dataset.report.build import count_row_lengths, sample_of, write_report, write_vocabulary
from tasks.dataset.report.facts import ReportFacts, facts_of_ledger, facts_of_version
from tasks.dataset.report.overview import draw_overview
from tasks.dataset.report.page import build_page
from tasks.dataset.report.scatter import Points, draw_scatter, sample_points
from tasks.dataset.split import SPLITS
from tasks.music.metrics.features import NOTES_EDGES, count_between, histograms, tempo_histogram
from tasks.music.notes import ALL_COLUMNS, COLUMNS, NoteBatch
from tasks.reporting.charts import charts_of, draw_histogram, step_of
from tasks.reporting.templates import data_address
from tasks.storage.home import Home
from tasks.storage.parquet import read_table
from tests.browser import Browser, needs_browser, serve_folder
from tests.samples import small_corpus, small_dataset

NASTY = "</style><script>alert(1)</script><b onclick='x'>\"&amp; {{ style }}{% endfor %} $x^2$ \u202e\ud800\x00 שלום"
VOID = {"meta", "img"}
FRAME = '<iframe sandbox="" width="1100" height="800" src="report.html"></iframe>'
VIEWER = f"<!DOCTYPE html><title>viewer</title>{FRAME}"


class Page(HTMLParser):
    """All start tags with their attributes, all text, and what was opened but not closed, or closed but not open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.open, self.stray = "", [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()
        else:
            self.stray.append(tag)

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text += data + "\n"

    @property
    def skeleton(self) -> list[tuple[str, list[str]]]:
        return [(tag, sorted(attributes)) for tag, attributes in self.tags]


def sample(split: str, path: str = "a/b.mid", n: int = 3) -> dict[str, str]:
    columns = {
        "onset_seconds": [0.0, 0.5, 0.5][:n],
        "end_seconds": [0.5, 1.0, 0.6][:n],
        "pitch": [60, 64, 36][:n],
        "velocity": [80, 90, 100][:n],
        "program": [0, 0, 0][:n],
        "is_drum": [False, False, True][:n],
        "track": [0, 0, 1][:n],
        "pedal_onset_seconds": [0.0][:n],
        "pedal_end_seconds": [1.0][:n],
        "pedal_track": [0][:n],
    }
    columns = dict.fromkeys(ALL_COLUMNS, ()) | columns  # a roll shows seconds alone
    columns |= {f"{owner}offsets": (0, len(columns[names[-1]])) for owner, names in COLUMNS.items()}
    return sample_of(NoteBatch.of(columns | {"ticks_per_quarter": (480,), "n_tracks": (2,)}), split, path)


POINTS = Points(
    np.array([0.0, 1.5]), np.array([0.001, 30.0]), np.array([60, 36], np.uint8), np.array([0, 9], np.uint8), 5000
)


def full_facts(word: str = "plain", **changes: Any) -> ReportFacts:
    """Return facts that fill every section; each text that comes from outside holds `word`."""
    rng = np.random.default_rng(0)
    n = 300
    onset = np.sort(rng.random(n)) * 100
    byte = rng.integers(1, 128, n).astype(np.uint8)
    counts = histograms(
        np.array([0, 10, 200, n]), onset, onset + 0.5, byte, byte, byte // 9, rng.integers(0, 5, n) == 0
    )
    counts["tempo"] = tempo_histogram(np.array([500_000, 600_000, 400_000]))
    counts["tokens"] = count_between(np.array([300, 320, 336]), NOTES_EDGES)
    largest = [(3, [word, "x", "y"]), (2, ["p", "q"])]
    groups = {"n_groups": 2, "n_files": 5, "sizes": {2: 1, 3: 1}, "largest": largest}
    nine = [(f"{k} {word}", word) for k in range(9)]
    tokens = {"n_rows": 450, "n_tokens": 7_654_321}
    facts: dict[str, Any] = {
        "name": f"name {word}",
        "version": "3f9a1c0d77e2b415",
        "n_files": 1_234_570,
        "states": {"accepted": 1_234_560, "duplicate": 3, "rejected": 6, "quarantined": 1},
        "sources": [{"address": word, "licence": word, "n_files": 7, "n_bytes": 7_000_000}],
        "settings": {word: word, "Filters": "min_notes=16"},
        "reasons": [
            {"state": "duplicate", "reason": "same_content", "n_files": 3, "examples": [(word, word)]},
            {"state": "rejected", "reason": "not_midi", "n_files": 5, "examples": nine},
            {"state": "rejected", "reason": "too_few_notes", "n_files": 1, "examples": [("b.mid", "7 notes")]},
            {"state": "quarantined", "reason": "crashed", "n_files": 1, "examples": []},
        ],
        "n_notes_in": 2_000_034,
        "n_notes_out": 2_000_000,
        "notes_dropped": {"unended_notes": 30, "unread_notes": 4},
        "histograms": {name: values.tolist() for name, values in counts.items()},
        "ticks_per_quarter": {480: 100, 96: 20, **dict.fromkeys(range(1, 14), 1)},
        "exact": groups,
        "near": groups,
        "splits": [
            dict(name="train", n_pieces=90, n_groups=80, n_notes=900, hours=30.25, **tokens),
            dict(name="test", n_pieces=10, n_groups=9, n_notes=100, hours=3.5, **tokens | {"n_tokens": 1000}),
        ],
        "leakage": {
            "headline": f"0.8 % {word}",
            "p95": 0.0412,
            "within_bound": True,
            "orders": [4, 8],
            "none_at_all": [],
            "bounds": {"max": 0.5},
            "worst": [{"piece": word, "share": 0.31, "n_shared": 412}, {"piece": "z.mid", "share": None}],
        },
        "slowest": [(word, 12_345)],
        "largest": [(word, 6_789_000)],
        "changes": {
            "previous": "1d0c5b2aa9931e07",
            "n_added": 1,
            "n_removed": 2,
            "n_changed": 3,
            "n_unchanged": 4,
            "n_moved_pieces": 5,
            "shards": {"songs": {"new": 6, "kept": 7_001, "gone": 8}},
            "settings": {"split_seed": [0, word]},
            "examples": {"added": [word]},
        },
        "losses": {"early_ends": 77},
        "n_other_files": 8_888,
        "samples": [sample("train", word), sample("test")],
        "scatter": {"picture": data_address("image/png", draw_scatter("x", POINTS)), "words": POINTS.words},
        "warnings": [word],
    }  # fmt: skip
    return ReportFacts(**(facts | changes))


EMPTY = ReportFacts(name="nothing", version="0", n_files=0, states={})


@pytest.fixture(scope="module")
def full() -> Page:
    return Page(build_page(full_facts()))


def test_the_page_holds_every_state_reason_and_number(full: Page) -> None:
    said = [
        "1,234,570", "accepted 1,234,560", "duplicate 3", "rejected 6", "quarantined 1", "8,888 files more",
        "same content", "not midi", "too few notes", "crashed", "7 notes", "and 1 more in the ledger",
        "2,000,034", "unended notes", "unread notes", "2,000,000", "early ends", "77", "33.8", "7,655,321",
        "7,654,321", "Length", "Notes in a piece", "Tokens in a row", "Tempo", "Pitch", "Drum keys", "Velocity", "480",
        "5 others",
        "0.8 % plain", "within bound", "0.0412", "412", "4, 8", "none at all", "bounds", "n/a", "12.3",
        "6,789.0", "1d0c5b2aa9931e07", "added", "7,001", "split_seed", "min_notes=16", "3 files: ", "3 pieces: ",
    ]  # fmt: skip
    text = re.sub(r"\s+", " ", full.text)
    assert [words for words in said if words not in text] == []
    assert "3 plain" in text  # five examples of a reason,
    assert "6 plain" not in text  # and no more


def test_every_tag_is_closed_and_every_picture_has_a_name(full: Page) -> None:
    for page in (full, Page(build_page(EMPTY))):
        assert (page.open, page.stray) == ([], [])
        for tag, attributes in page.tags:
            if tag == "img":
                assert attributes["alt"]
            if tag == "svg":
                assert attributes.get("aria-label") if attributes.get("role") == "img" else attributes["aria-hidden"]
        labels = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
        assert len(labels) == len(set(labels))
        links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
        assert links
        assert {str(link).removeprefix("#") for link in links} <= set(labels)


def test_nothing_is_fetched_run_or_styled_from_elsewhere(full: Page) -> None:
    names = {tag for tag, _ in full.tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "base", "form"}
    attributes = {name for _, all_of_one in full.tags for name in all_of_one}
    assert not {name for name in attributes if name.startswith("on")} | (attributes & {"style"})
    assert all(str(values["src"]).startswith("data:image/png;base64,") for _, values in full.tags if "src" in values)
    text = build_page(EMPTY)
    style = re.findall("<style>(.*?)</style>", text, re.DOTALL)[0]
    assert base64.b64encode(hashlib.sha256(style.encode()).digest()).decode() in text
    assert not re.search(r"url\(|@import", style)


@pytest.mark.slow
def test_no_text_leaves_its_place(full: Page) -> None:
    text = build_page(full_facts(NASTY))
    assert Page(text).skeleton == full.skeleton
    assert not re.search("[\u202e\ud800\x00]", text)
    text.encode()
    draw_overview(full_facts(NASTY))


def test_long_names_are_cut_in_the_middle() -> None:
    name = f"{'a/' * 5000}end.mid"
    text = build_page(dataclasses.replace(EMPTY, largest=[(name, 5)]))
    assert "end.mid" in text
    assert len(text) < len(build_page(EMPTY)) + 2000


@pytest.mark.slow
def test_the_same_facts_give_the_same_bytes(tmp_path: Path) -> None:
    pages = [write_report(full_facts(), tmp_path / name / "deep") for name in ("one", "two")]
    assert [path.name for path in pages] == ["report.html"] * 2
    for name in ("report.html", "report.png"):
        one, two = (page.with_name(name).read_bytes() for page in pages)
        assert one == two
    assert one.startswith(b"\x89PNG")
    assert sorted(path.name for path in pages[0].parent.iterdir()) == ["report.html", "report.png"]


def test_the_scatter_picture_shows_each_note_in_the_colour_of_its_channel() -> None:
    picture = Image.open(io.BytesIO(draw_scatter("of $x$", POINTS))).convert("RGB")
    assert picture.size == (1500, 640)
    assert POINTS.words == "2 of 5,000 notes, drawn at random"
    colours = {colour for _, colour in picture.getcolors(2**20) or []}
    for wanted in ((0x2F, 0x6F, 0xB7), (0x8A, 0x6D, 0x5A)):  # of the legend
        assert min(max(np.abs(np.subtract(wanted, colour))) for colour in colours) < 8
    nothing = Points(POINTS.onset[:0], POINTS.duration[:0], POINTS.pitch[:0], POINTS.channel[:0], 0)
    assert Image.open(io.BytesIO(draw_scatter("empty", nothing))).size == (1500, 640)


@pytest.mark.slow
def test_the_points_are_notes_of_the_dataset_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = small_dataset(Home.at(tmp_path / "home"), small_corpus(tmp_path / "midi", 10))
    ledger = read_table(dataset.ledger, ["piece", "status"]).to_pydict()
    pieces = [piece for piece, status in zip(*ledger.values(), strict=True) if status == "accepted"]
    shards = [dataset.folder / songs for songs in dataset.manifest["songs"]]
    n_notes = dataset.manifest["counts"]["n_notes"]
    whole = sample_points(shards, pieces, n_notes)
    notes = NoteBatch.joined(read_notes(shard, pieces) for shard in shards)
    assert whole.words == f"{n_notes:,} notes"
    rows = sorted(zip(*whole[:3], whole.channel == 9, strict=True))
    given = zip(notes.onset_seconds, notes.end_seconds - notes.onset_seconds, notes.pitch, notes.is_drum, strict=True)
    assert rows == sorted(given)
    monkeypatch.setattr("tasks.dataset.report.scatter.MOST_POINTS", 100)
    few, again = (sample_points(shards, pieces, n_notes) for _ in range(2))
    assert draw_scatter("x", few) == draw_scatter("x", again)
    assert few.words == f"100 of {n_notes:,} notes, drawn at random"
    assert set(zip(*few[:4], strict=True)) <= set(zip(*whole[:4], strict=True))


def test_facts_go_through_json() -> None:
    facts = full_facts()
    again = json.loads(json.dumps(dataclasses.asdict(facts)))
    assert again["splits"][0]["n_tokens"] == 7_654_321
    assert again["histograms"] == facts.histograms


def test_a_version_without_anything_is_a_page(tmp_path: Path) -> None:
    write_report(EMPTY, tmp_path)
    page = Page(build_page(EMPTY))
    for words in ("No file was left out.", "Nothing was counted.", "No splits.", "Nothing was measured.",
                  "None were found.", "This is the first version.", "Not measured.", "None were drawn."):  # fmt: skip
        assert words in page.text
    quiet = dataclasses.replace(
        EMPTY, histograms={"pitch": [0] * 128, "program": [0] * 129}, samples=[sample("train", n=0)],
    )  # fmt: skip
    assert Page(build_page(quiet)).open == []
    draw_overview(quiet)


@pytest.mark.slow
def test_sums_that_do_not_come_out_are_said() -> None:
    assert full_facts(warnings=()).problems() == []
    wrong = full_facts(n_files=7, n_notes_in=5, leakage={"within_bound": False}, warnings=["Look here."])
    assert wrong.problems() == [
        "Look here.",
        "7 files were found, but 1,234,570 have a state.",
        "5 notes were found, but 2,000,034 are kept or counted as dropped.",
        "Leakage between the splits is above its bound.",
    ]
    assert "have a state." in build_page(wrong)


def test_a_chart_says_where_its_middle_half_lies() -> None:
    counts = [0] * 128
    counts[60], counts[64], counts[72] = 1, 2, 1
    (chart,) = charts_of({"pitch": counts, "velocity": [0] * 128})
    assert chart.summary() == "4 notes; the middle half lies between C4 (pitch 60) and E4 (pitch 64)"
    page = Page(draw_histogram(chart))
    assert sum(attributes.get("class") == "bar" for _, attributes in page.tags) == 3
    assert "E4 (pitch 64): 2 notes" in page.text
    (one,) = charts_of({"tempo": tempo_histogram(np.array([500_000])).tolist()})
    assert one.summary() == "1 piece; the middle half lies at 120 to 130 quarters a minute"
    (last,) = charts_of({"tempo": tempo_histogram(np.array([1_000])).tolist()})
    assert last.summary() == "1 piece; the middle half lies at 290 quarters a minute and more"


@pytest.mark.slow
def test_flipped_rows_do_not_count_among_the_lengths(tmp_path: Path) -> None:
    augment = AugmentConfig(transpositions=(0,), stretches=(1.0,), flip=True)
    dataset = small_dataset(Home.at(tmp_path / "home"), small_corpus(tmp_path / "midi", 8), augment=augment)
    splits = dataset.manifest["splits"]
    assert sum(facts["n_rows"] for facts in splits.values()) > sum(facts["n_pieces"] for facts in splits.values())
    assert count_row_lengths(dataset).sum() == sum(facts["n_pieces"] for facts in splits.values())


@pytest.mark.slow
def test_the_words_and_the_lengths_of_a_dataset(tmp_path: Path) -> None:
    config = build_preset("mmm_vae_tiny").dataset
    dataset = small_dataset(
        Home.at(tmp_path / "home"), small_corpus(tmp_path / "midi", 8), encoding=config.encoding, windows=config.windows
    )
    write_vocabulary(dataset)
    data = dataset.vocabulary.read_text()
    words = data.splitlines()
    assert data == "".join(f"{word}\n" for word in words)
    assert words[:5] == ["[UNK]", "[PAD]", "[SOS]", "[EOS]", "[TDR]"]
    assert words[5:] == sorted(dataset.manifest["encoder"]["settings"]["vocabulary"])
    assert len(words) == dataset.manifest["encoder"]["settings"]["vocab_size"]
    assert "" not in words
    shards = [read_table(path) for split in SPLITS for path in dataset.token_shards(split)]
    rows = [row for shard in shards for row in shard.select(["transposition", "n_tokens"]).to_pylist()]
    lengths = [row["n_tokens"] for row in rows if row["transposition"] == 0]
    assert 0 < len(lengths) < len(rows)
    counts = count_row_lengths(dataset)
    assert counts.tolist() == np.histogram(lengths, NOTES_EDGES)[0].tolist()
    (chart,) = charts_of({"tokens": counts.tolist()})
    assert chart.summary().startswith(f"{len(lengths)} rows; the middle half lies")
    assert "Tokens in a row" in draw_histogram(chart)


def test_bars_on_a_logarithm_stand_where_their_marks_say() -> None:
    byte = np.ones(1, np.uint8)
    counts = histograms(np.array([0, 1]), np.zeros(1), np.array([61.0]), byte, byte, byte, np.zeros(1, np.bool_))
    length, notes = charts_of({name: counts[name].tolist() for name in ("seconds", "notes")})
    assert length.name(length.counts.index(1)) == "50 s to 63 s"
    ((place, label),) = length.ticks
    assert label == "1 min"
    assert length.counts.index(1) < place < length.counts.index(1) + 1
    assert notes.name(notes.counts.index(1)) == "1 note"


@pytest.mark.parametrize("top", [1, 3, 4, 5, 8, 9, 20, 21, 99, 100, 12_345, 10**9])
def test_rules_are_round_and_few(top: int) -> None:
    step = step_of(top)
    assert re.fullmatch("[125]0*", str(step))
    assert top / step <= 4


def ledger_of(*rows: tuple[Any, ...]) -> pa.Table:
    """Return a ledger of rows that may end early; what is missing is null."""
    types = {
        "path": pa.string(), "n_bytes": pa.int64(), "status": pa.string(), "reason": pa.string(),
        "detail": pa.string(), "duplicate_of": pa.string(), "group": pa.string(), "split": pa.string(),
        "n_notes": pa.int32(), "seconds": pa.float64(), "ticks_per_quarter": pa.int32(), "source": pa.string(),
        "licence": pa.string(), "piece": pa.string(),
    }  # fmt: skip
    filled = [(*row, *(None,) * (len(types) - len(row))) for row in rows]
    return pa.table({name: pa.array([row[k] for row in filled], kind) for k, (name, kind) in enumerate(types.items())})


def small_ledger() -> pa.Table:
    return ledger_of(
        ("a", 10, "accepted", None, None, None, "g", "test", 5, 1800.0, 480, "/s", "CC0", "pa"),
        ("b", 30, "accepted", "", "", None, "g", "test", 6, 1800.0, 96, "/s", "CC0", "pb"),
        ("c", 20, "accepted", None, None, None, "h", "train", 7, 3600.0, 480, "/s", None, "pc"),
        ("e", 10, "duplicate", "same_content", None, "a", "g", None, 5, 1800.0, 480, "/s", "CC0", "pa"),
        ("d", 10, "duplicate", "same_content", None, "a", "g", None, 5, 1800.0, 480, "/s", "CC0", "pa"),
        ("n", 10, "duplicate", "near_duplicate", None, "c", "h", None, 7, 3600.0, 480, "/s", "CC0", "pn"),
        *((f"x{k}", k, "rejected", "not_midi", f"begins with {k}") for k in range(7)),
        ("y", 5, "rejected", "empty_file", "0 bytes"),
    )


def test_a_ledger_by_hand() -> None:
    told = facts_of_ledger(small_ledger(), {"train": {"n_rows": 3, "n_tokens": 300}})
    facts = ReportFacts(name="n", version="v", n_notes_in=18, **told)
    assert (facts.n_files, facts.states) == (14, {"accepted": 3, "duplicate": 3, "rejected": 8})
    assert [(r["state"], r["reason"], r["n_files"]) for r in facts.reasons] == [
        ("duplicate", "same_content", 2),
        ("duplicate", "near_duplicate", 1),
        ("rejected", "not_midi", 7),
        ("rejected", "empty_file", 1),
    ]
    assert facts.reasons[2]["examples"] == [(f"x{k}", f"begins with {k}") for k in range(5)]
    assert facts.exact == {"n_groups": 1, "n_files": 3, "sizes": {3: 1}, "largest": [(3, ["a", "d", "e"])]}
    assert facts.near == {"n_groups": 2, "n_files": 4, "sizes": {2: 2}, "largest": [(2, ["a", "b"]), (2, ["c", "n"])]}
    assert facts.splits == [
        {"name": "train", "n_pieces": 1, "n_groups": 1, "n_notes": 7, "hours": 1.0, "n_rows": 3, "n_tokens": 300},
        {"name": "test", "n_pieces": 2, "n_groups": 1, "n_notes": 11, "hours": 1.0, "n_rows": 0, "n_tokens": 0},
    ]
    assert list(facts.largest)[:4] == [("b", 30), ("c", 20), ("a", 10), ("d", 10)]
    assert facts.ticks_per_quarter == {96: 1, 480: 2}
    assert [(s["address"], s["licence"], s["n_files"], s["n_bytes"]) for s in facts.sources] == [
        ("", "", 8, 26),
        ("/s", "", 1, 20),
        ("/s", "CC0", 5, 70),
    ]
    assert facts.problems() == []
    build_page(facts)


def test_a_manifest_and_its_ledger() -> None:
    shared = {"piece": "pa", "n_grams": 9, "share_in_train": 0.9, "nearest": "pc", "share_in_nearest": 0.85}
    figures = {"n_pieces": 2, "n_rated": 2, "mean": 0.5, "n_leaked": 1, "leaked_share": 0.5, "worst": [shared]}
    manifest = {
        "name": "n",
        "version": "v2",
        "config": {"filters": {"min_notes": 7, "drums": "any"}, "split_seed": 3},
        "encoder": {"digest": "abc"},
        "counts": {"left_out_by_reader": {"early_ends": 2}, "n_other_files": 4},
        "notes": {"found": 36, "kept": 18, "dropped": {"same_content": 10, "unended_notes": 1, "near_duplicate": 7}},
        "leakage": {
            "piece_bound": 0.8, "max_leaked_share": 0.001, "leaked_share": 0.5, "sampled": 8,
            "splits": {"validation": {**figures, "n_leaked": 0, "worst": []}, "test": figures},
            "baseline": {**figures, "worst": []},
        },
        "splits": {"train": {"n_rows": 3, "n_tokens": 300}, "test": {"n_rows": 2, "n_tokens": 20}},
        "changes": {
            "previous": "v1", "settings": {"split_seed": [2, 3]}, "n_added": 1, "n_removed": 0, "n_changed": 0,
            "n_unchanged": 13, "n_moved_pieces": 2, "examples": {"added": ["c"]},
            "shards": {"songs": {"new": 1, "kept": 2, "gone": 0}},
        },
    }  # fmt: skip
    facts = facts_of_version(manifest, small_ledger(), slowest=[("c", 1500)])
    assert facts.settings == {
        "encoder": "abc", "filters.min_notes": "7", "filters.drums": "any", "split_seed": "3",
    }  # fmt: skip
    assert facts.problems() == ["Leakage between the splits is above its bound."]
    assert facts.leakage["headline"].startswith("1 of 4 pieces held out have more than 80% of their n-grams in one")
    assert facts.leakage["most_in_one_training_piece"] == [shared | {"split": "test", "piece": "a", "nearest": "c"}]
    assert facts.changes is not None
    assert facts.changes["examples"] == {"added": ["c"]}
    text = Page(build_page(facts)).text
    assert all(words in text for words in ("train, for comparison", "filters.min_notes", "early ends", "4 files more"))
    json.dumps(dataclasses.asdict(facts))
    first = facts_of_version(manifest | {"changes": None}, small_ledger())
    assert first.changes is None


def test_the_order_of_a_ledger_does_not_matter() -> None:
    rows = [(f"p{k}", k % 3, "rejected", f"r{k % 2}", "d") for k in range(6)]
    pages = {build_page(ReportFacts(name="n", version="v", **facts_of_ledger(ledger_of(*order))))
             for order in itertools.islice(itertools.permutations(rows), 0, 720, 97)}  # fmt: skip
    assert len(pages) == 1
    build_page(ReportFacts(name="n", version="v", **facts_of_ledger(ledger_of())))


def is_accepted_green(screenshot: bytes) -> np.ndarray:
    shown = image.imread(io.BytesIO(screenshot))[..., :3]
    return np.abs(shown - np.array((0x2C, 0x8F, 0x6A)) / 255).max(axis=2) < 0.01


@needs_browser
@pytest.mark.parametrize("where", ["disk", "http", "sandbox"])
def test_the_page_shows_itself_without_complaint(tmp_path: Path, where: str) -> None:
    write_report(full_facts(NASTY), tmp_path)
    (tmp_path / "viewer.html").write_text(VIEWER)
    size = (1200, 1000) if where == "sandbox" else (390, 800)
    with serve_folder(tmp_path) as root, Browser(*size, dark=where == "disk") as browser:
        if where == "sandbox":  # as artifact viewers show it; no script may look inside, so look for a colour
            browser.get(f"{root}/viewer.html")
            for _ in range(60):  # a frame may be painted long after its page has loaded
                if is_accepted_green(browser.get_screenshot_as_png()).sum() > 1000:
                    break
                time.sleep(0.5)
            assert is_accepted_green(browser.get_screenshot_as_png()).sum() > 1000
            assert browser.errors() == []
            return
        browser.get((tmp_path / "report.html").as_uri() if where == "disk" else f"{root}/report.html")
        assert browser.run("return document.querySelectorAll('section').length") == 10
        width = browser.run("return [document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        assert width[0] <= width[1]
        assert browser.run("return [...document.images].every((image) => image.naturalWidth > 0)")
        paint = "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]"
        assert (browser.run(paint) < 60) == (where == "disk")
        browser.run("document.querySelector('.reason').scrollIntoView({block: 'center', behavior: 'instant'})")
        browser.click(".reason summary")
        assert browser.run("return document.querySelector('.reason').open")
        assert browser.errors() == []
