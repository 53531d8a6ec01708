"""The page of a dataset version, one section for each question.

It has to work from disk, over HTTP and inside frames that run no scripts, so it has none: charts are SVG, tooltips are
titles, and what folds is a `details` element. Nothing is fetched, and a policy says so.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from tasks.music.metrics.features import DRUMS
from tasks.music.render.pianoroll import PROGRAM_GROUPS, draw_piano_roll
from tasks.reporting.charts import charts_of, draw_histogram, instrument_families
from tasks.reporting.frame import assemble_page
from tasks.reporting.markup import MAX_LISTED, cell_kind, label_of, say, say_number
from tasks.reporting.templates import data_address, templates_of

if TYPE_CHECKING:
    from tasks.dataset.report.facts import ReportFacts, SampleFacts, SplitFacts  # for names only

ROLL_SECONDS = 60.0  # of each sample
SECTIONS = (
    ("files", "Files"), ("notes", "Notes"), ("music", "The music"), ("splits", "Splits"), ("leakage", "Leakage"),
    ("duplicates", "Duplicates"), ("changes", "Changes"), ("extremes", "Slowest and largest"), ("samples", "Samples"),
    ("origin", "Origin"),
)  # fmt: skip


def build_page(facts: "ReportFacts") -> str:
    """Return the whole page as HTML text."""
    templates = templates_of("tasks.dataset.report")
    helpers = (
        _by_notes, charts_of, draw_histogram, _draw_sample, _group_sizes, instrument_families, _most_first, _programs,
        _resolutions, _shard_rows, _sorted_out, _split_rows, _split_sums,
    )  # fmt: skip
    templates.globals |= {helper.__name__.removeprefix("_"): helper for helper in helpers}
    templates.filters["groupby_first"] = _grouped
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


def _by_notes(splits: Sequence["SplitFacts"]) -> list[tuple[str, int]]:
    return [(split.name, split.n_notes) for split in splits]


def _split_columns(splits: Sequence["SplitFacts"]) -> list[tuple[float, ...]]:
    return [(s.n_pieces, s.n_groups, s.n_notes, s.hours, s.n_rows, s.n_tokens) for s in splits]


def _split_rows(splits: Sequence["SplitFacts"]) -> list[tuple[str, ...]]:
    return [(s.name, *map(say_number, row)) for s, row in zip(splits, _split_columns(splits), strict=True)]


def _split_sums(splits: Sequence["SplitFacts"]) -> tuple[str, ...]:
    return ("all", *(say_number(sum(column)) for column in zip(*_split_columns(splits), strict=True)))


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


def _shard_rows(shards: Mapping[str, Mapping[str, int]]) -> tuple[list[str], list[list[str]]]:
    kinds = list(dict.fromkeys(kind for counted in shards.values() for kind in counted))
    rows = [[stage, *(f"{n.get(kind, 0):,}" for kind in kinds)] for stage, n in shards.items()]
    return ["Shards", *(kind.capitalize() for kind in kinds)], rows


def _grouped(entries: Iterable[Any], name: str) -> list[tuple[Any, list[Any]]]:
    """Return entries by an attribute, in the order in which its values come first."""
    groups: dict[Any, list[Any]] = {}
    for entry in entries:
        groups.setdefault(getattr(entry, name), []).append(entry)
    return list(groups.items())


def _draw_sample(sample: "SampleFacts") -> Markup:
    """Return the piano roll of a sample as an address."""
    from tasks.music.notes import ALL_COLUMNS, COLUMNS, NoteBatch
    from tasks.music.score import Score

    columns = {name: getattr(sample, name, ()) for name in ALL_COLUMNS}  # a roll shows seconds alone
    columns |= {f"{owner}offsets": (0, len(columns[names[-1]])) for owner, names in COLUMNS.items()}
    columns |= {"ticks_per_quarter": (480,), "n_tracks": (1 + max(sample.track, default=0),)}
    piece = Score(NoteBatch.of(columns))
    return data_address("image/png", draw_piano_roll(piece, width=1080, height=280, max_seconds=ROLL_SECONDS))
