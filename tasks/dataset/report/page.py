"""The page of a dataset version, one section for each question.

The page works from disk, over HTTP and inside frames that run no scripts. Charts are SVG, tooltips are titles, and
`details` elements fold. A content security policy forbids to fetch anything.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from tasks.music.metrics.features import DRUMS
from tasks.music.render.pianoroll import PROGRAM_GROUPS
from tasks.reporting.charts import charts_of, draw_histogram, instrument_families
from tasks.reporting.frame import assemble_page
from tasks.reporting.markup import MAX_LISTED, cell_kind, label_of, say, say_number
from tasks.reporting.templates import templates_of

if TYPE_CHECKING:
    from tasks.dataset.report.facts import ReportFacts

SECTIONS = (
    ("files", "Files"), ("notes", "Notes"), ("music", "The music"), ("splits", "Splits"), ("leakage", "Leakage"),
    ("duplicates", "Duplicates"), ("changes", "Changes"), ("extremes", "Slowest and largest"), ("samples", "Samples"),
    ("origin", "Origin"),
)  # fmt: skip


def build_page(facts: "ReportFacts") -> str:
    """Return the whole page as HTML text."""
    templates = templates_of("tasks.dataset.report")
    helpers = (
        charts_of, draw_histogram, _group_sizes, instrument_families, _most_first, _programs, _resolutions, _sorted_out,
        _split_table,
    )  # fmt: skip
    templates.globals |= {helper.__name__.removeprefix("_"): helper for helper in helpers}
    page = templates.get_template("page.html").module
    sections = [(label, title, getattr(page, label)(facts)) for label, title in SECTIONS]
    subtitle = Markup("version <code>{}</code>").format(facts.version)
    return assemble_page("Dataset report", facts.name, subtitle, facts.headline(), facts.problems(), sections)


def _most_first(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return [(label_of(name), n) for name, n in sorted(counts.items(), key=lambda c: (-c[1], c[0])) if n]


def _resolutions(counts: Mapping[int, int]) -> list[tuple[str, int]]:
    """Return the commonest ticks per quarter, and the others together."""
    by_count = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rows = [(f"{ticks:,}", n) for ticks, n in by_count[:MAX_LISTED]]
    if n_other := sum(n for _, n in by_count[MAX_LISTED:]):
        rows.append((f"{len(by_count) - MAX_LISTED:,} others", n_other))
    return rows


def _programs(histograms: Mapping[str, Sequence[int]]) -> list[tuple[str, str, str]]:
    notes, pieces = histograms["program"], histograms.get("program_pieces", ())
    rows = []
    for program, n in enumerate(notes):
        if n:
            name = "drums" if program >= DRUMS else f"{program} {PROGRAM_GROUPS[program // 8]}"
            rows.append((name, f"{n:,}", f"{pieces[program]:,}" if len(pieces) else "n/a"))
    return rows


def _split_table(splits: Sequence[Mapping[str, Any]]) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
    """Return a row for each split, and the row of their sums."""
    names = ("n_pieces", "n_groups", "n_notes", "hours", "n_rows", "n_tokens")
    rows = [(split["name"], *(say_number(split[name]) for name in names)) for split in splits]
    return rows, ("all", *(say_number(sum(split[name] for split in splits)) for name in names))


def _sorted_out(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return figures of any form as a headline, scalars, and blocks: mappings, or head, rows and kinds of a table."""
    figures: dict[str, str] = {}
    blocks: list[tuple[str, Any]] = []
    for name, value in values.items():
        if name == "headline":
            continue
        if isinstance(value, Mapping):
            blocks.append((label_of(name), value))
        elif isinstance(value, list | tuple) and value and all(isinstance(row, Mapping) for row in value):
            keys = list(dict.fromkeys(key for row in value for key in row))
            kinds = [cell_kind([row.get(key) for row in value]) for key in keys]
            rows = [[say(row.get(key, "")) for key in keys] for row in value[: 2 * MAX_LISTED]]
            blocks.append((label_of(name), ([label_of(key).capitalize() for key in keys], rows, kinds)))
        elif isinstance(value, list | tuple):
            figures[label_of(name)] = ", ".join(say(entry) for entry in value) or "none"
        else:
            figures[label_of(name)] = say(value)
    return {"headline": values.get("headline"), "figures": figures, "blocks": blocks}


def _group_sizes(sizes: Mapping[int, int], noun: str) -> list[tuple[str, int]]:
    rows = [(f"{size:,} {noun}", n) for size, n in sorted(sizes.items())]
    if len(rows) > MAX_LISTED:
        rows = [*rows[: MAX_LISTED - 1], ("more", sum(n for _, n in rows[MAX_LISTED - 1 :]))]
    return rows
