"""The page: one section for each question about a dataset version.

It has to work from disk, over HTTP and inside frames that run no scripts, so it has none: charts are SVG, tooltips are
titles, and what folds is a `details` element. Nothing is fetched, and a policy says so.
"""

import base64
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.errors import plural
from tasks.music.metrics.features import DRUMS
from tasks.music.render.pianoroll import PROGRAM_GROUPS, draw_piano_roll
from tasks.reporting.charts import bar_table, charts_of, draw_histogram, draw_meter, draw_stack, instrument_families
from tasks.reporting.frame import assemble_page
from tasks.reporting.markup import (
    MAX_EXAMPLES,
    MAX_LISTED,
    MAX_MEMBERS,
    bullet_list,
    cell_kind,
    escape,
    figure_list,
    label_of,
    path_html,
    say,
    say_number,
    shorten,
    table,
)

if TYPE_CHECKING:
    from tasks.dataset.report.facts import ReasonFacts, ReportFacts, SampleFacts  # for names only

ROLL_SECONDS = 60.0  # of each sample


def build_page(facts: "ReportFacts") -> str:
    """Return the whole page as HTML text."""
    sections = [
        ("files", "Files", _files(facts)),
        ("notes", "Notes", _notes(facts)),
        ("music", "The music", _music(facts)),
        ("splits", "Splits", _splits(facts)),
        ("leakage", "Leakage", _leakage(facts)),
        ("duplicates", "Duplicates", _duplicates(facts)),
        ("changes", "Changes", _changes(facts)),
        ("extremes", "Slowest and largest", _extremes(facts)),
        ("samples", "Samples", _samples(facts)),
        ("origin", "Origin", _origin(facts)),
    ]
    subtitle = f"version <code>{escape(facts.version)}</code>"
    return assemble_page("Dataset report", facts.name, subtitle, facts.headline(), facts.problems(), sections)


def _files(facts: "ReportFacts") -> str:
    states = facts.state_counts()
    lead = "Every file found is in exactly one state. Each reason below opens with some of its files."
    if facts.n_other_files:
        lead += f" The sources hold {plural(facts.n_other_files, 'file')} more, whose names say that they are not MIDI."
    top = max((reason.n_files for reason in facts.reasons), default=0)
    reasons = "".join(_reason(reason, states, top) for reason in facts.reasons)
    return f'<p class="lead">{lead}</p>{draw_stack("Files by state", states, "file")}' + (
        reasons or '<p class="empty">No file was left out.</p>'
    )


def _reason(reason: "ReasonFacts", states: Sequence[tuple[str, int]], top: int) -> str:
    place = next((k for k, (state, _) in enumerate(states) if state == reason.state), 7)
    rows = [(path_html(path), escape(detail)) for path, detail in reason.examples[:MAX_EXAMPLES]]
    n_more = reason.n_files - len(rows)
    more = f'<p class="soft">and {n_more:,} more in the ledger</p>' if n_more > 0 else ""
    examples = table(("File", "Detail"), rows, kinds=("path", "path"), label=f"Files with {reason.reason}")
    return (
        f'<details class="reason p{place % 8}"><summary><span>{escape(label_of(reason.reason))}</span>'
        f'{draw_meter(reason.n_files, top)}<span class="soft">{escape(reason.state)}</span>'
        f'<span class="number">{reason.n_files:,}</span></summary>{examples}{more}</details>'
    )


def _notes(facts: "ReportFacts") -> str:
    n_dropped = sum(facts.notes_dropped.values())
    lead = "Notes in all files that could be read: each is in the dataset or counted below."
    figures = {"found": facts.n_notes_in, "dropped": n_dropped, "kept": facts.n_notes_out}
    dropped, losses = (
        bar_table(title, [(label_of(name), n) for name, n in sorted(counts.items(), key=lambda c: (-c[1], c[0])) if n])
        for title, counts in (
            ("Dropped notes by reason", facts.notes_dropped),
            ("Left out or mended by the reader, in accepted files", facts.losses),
        )
    )
    blocks = "".join(f"<div>{block}</div>" for block in (dropped, losses) if block)
    shown = figure_list({name: f"{n:,}" for name, n in figures.items()})
    return f'<p class="lead">{lead}</p>{shown}<div class="pair">{blocks}</div>'


def _music(facts: "ReportFacts") -> str:
    charts = [draw_histogram(chart) for chart in charts_of(facts.histograms)]
    tables = []
    if "program" in facts.histograms:
        families = instrument_families(facts.histograms["program"])
        tables.append(bar_table("Notes by instrument family", families) + _programs(facts))
    if facts.ticks_per_quarter:
        by_count = sorted(facts.ticks_per_quarter.items(), key=lambda item: (-item[1], item[0]))
        rows = [(f"{ticks:,}", n) for ticks, n in by_count[:MAX_LISTED]]
        if n_other := sum(n for _, n in by_count[MAX_LISTED:]):
            rows.append((f"{len(by_count) - MAX_LISTED:,} others", n_other))
        tables.append(bar_table("Pieces by ticks per quarter", rows))
    if not charts and not tables:
        return '<p class="empty">Nothing was counted.</p>'
    blocks = "".join(f"<div>{block}</div>" for block in tables)
    lead = "Of every piece that could be read, before filters. Point at a bar for its count."
    return f'<p class="lead">{lead}</p><div class="grid">{"".join(charts)}</div><div class="pair">{blocks}</div>'


def _programs(facts: "ReportFacts") -> str:
    notes, pieces = facts.histograms["program"], facts.histograms.get("program_pieces", ())
    rows = []
    for program, n in enumerate(notes):
        if n:
            name = "drums" if program >= DRUMS else f"{program} {PROGRAM_GROUPS[program // 8]}"
            rows.append((name, f"{n:,}", f"{pieces[program]:,}" if len(pieces) else "n/a"))
    heads = ("Program (from 0)", "Notes", "Pieces")
    shown = table(heads, rows, ("", "number", "number"), label="Programs", is_long=True)
    return f"<details><summary>Each program</summary>{shown}</details>"


def _splits(facts: "ReportFacts") -> str:
    if not facts.splits:
        return '<p class="empty">No splits.</p>'
    lead = "Pieces that are nearly the same form a group, and a group is never divided between splits."
    heads = ("Split", "Pieces", "Groups", "Notes", "Hours", "Rows", "Tokens")
    columns = [(s.n_pieces, s.n_groups, s.n_notes, s.hours, s.n_rows, s.n_tokens) for s in facts.splits]
    rows = [(escape(s.name), *map(say_number, numbers)) for s, numbers in zip(facts.splits, columns, strict=True)]
    foot = ("all", *(say_number(sum(column)) for column in zip(*columns, strict=True)))
    shown = table(heads, rows, ("", *["number"] * 6), label="Splits", foot=foot)
    by_notes = [(split.name, split.n_notes) for split in facts.splits]
    return f'<p class="lead">{lead}</p>{draw_stack("Notes by split", by_notes, "note", first=3)}{shown}'


def _leakage(facts: "ReportFacts") -> str:
    if not facts.leakage:
        return '<p class="empty">Nothing was measured.</p>'
    return _anything(facts.leakage)


def _anything(values: Mapping[str, Any]) -> str:
    """Show figures of any form: a headline, scalars, tables of mappings, and mappings below headings."""
    headline = values.get("headline")
    lead = f"<p>{escape(say(headline))}</p>" if headline is not None else ""
    rest = {name: value for name, value in values.items() if name != "headline"}
    figures, blocks = {}, ""
    for name, value in rest.items():
        if isinstance(value, Mapping):
            blocks += f"<div><h3>{escape(label_of(name))}</h3>{_anything(value)}</div>"
        elif isinstance(value, list | tuple) and value and all(isinstance(row, Mapping) for row in value):
            keys = list(dict.fromkeys(key for row in value for key in row))
            kinds = [cell_kind([row.get(key) for row in value]) for key in keys]
            rows = [[escape(say(row.get(key, ""))) for key in keys] for row in value[: 2 * MAX_LISTED]]
            heads, title = [label_of(key).capitalize() for key in keys], label_of(name).capitalize()
            blocks += table(heads, rows, kinds, label=title, caption=title)
        elif isinstance(value, list | tuple):
            figures[label_of(name)] = ", ".join(say(entry) for entry in value) or "none"
        else:
            figures[label_of(name)] = say(value)
    return lead + (figure_list(figures) if figures else "") + blocks


def _duplicates(facts: "ReportFacts") -> str:
    kinds = (
        ("Same content", facts.exact, "files"),
        ("Nearly the same", facts.near, "pieces"),
    )
    blocks = ""
    for title, duplicates, noun in kinds:
        if not duplicates.n_groups:
            blocks += f'<div><h3>{title}</h3><p class="empty">None were found.</p></div>'
            continue
        figures = figure_list({"groups": f"{duplicates.n_groups:,}", f"{noun} in them": f"{duplicates.n_files:,}"})
        sizes = [(f"{size:,} {noun}", n) for size, n in sorted(duplicates.sizes.items())]
        if len(sizes) > MAX_LISTED:
            sizes = [*sizes[: MAX_LISTED - 1], ("more", sum(n for _, n in sizes[MAX_LISTED - 1 :]))]
        groups = "".join(_group(n, paths, noun) for n, paths in duplicates.largest[:MAX_LISTED])
        bars = bar_table("Groups by size", sizes)
        blocks += f'<div><h3>{title}</h3>{figures}{bars}<h3 class="later">The largest</h3>{groups}</div>'
    return f'<div class="pair">{blocks}</div>'


def _group(n_files: int, paths: Sequence[str], noun: str) -> str:
    first = path_html(paths[0]) if paths else "unnamed"
    shown = [path_html(path) for path in paths[:MAX_MEMBERS]]
    if n_files > len(shown):
        shown.append(f'<span class="soft">and {n_files - len(shown):,} more</span>')
    return f"<details><summary>{n_files:,} {noun}: {first}</summary>{bullet_list(shown, 'members')}</details>"


def _changes(facts: "ReportFacts") -> str:
    changes = facts.changes
    if changes is None:
        return '<p class="empty">This is the first version.</p>'
    counts = {
        "files added": changes.n_added,
        "removed": changes.n_removed,
        "changed": changes.n_changed,
        "unchanged": changes.n_unchanged,
        "pieces moved to another split": changes.n_moved_pieces,
    }
    blocks = figure_list({name: f"{n:,}" for name, n in counts.items()})
    if changes.examples:
        rows = [(escape(kind), path_html(path)) for kind, path in changes.examples[: 2 * MAX_LISTED]]
        blocks += table(("What", "File"), rows, ("", "path"), label="Changed files")
    if changes.shards:
        kinds = list(dict.fromkeys(kind for counted in changes.shards.values() for kind in counted))
        rows = [(escape(stage), *(f"{n.get(kind, 0):,}" for kind in kinds)) for stage, n in changes.shards.items()]
        heads = ("Shards", *(kind.capitalize() for kind in kinds))
        blocks += table(heads, rows, ("", *["number"] * len(kinds)), label="Shards")
    if changes.settings:
        rows = [(escape(name), *(escape(value) for value in pair)) for name, pair in changes.settings.items()]
        blocks += table(("Setting", "Before", "Now"), rows, ("", "path", "path"), label="Changed settings")
    return f"<p>Since version <code>{escape(changes.previous)}</code>:</p>{blocks}"


def _extremes(facts: "ReportFacts") -> str:
    blocks = ""
    for title, head, ranking, unit in (
        ("Slowest to read", "Milliseconds", facts.slowest, 1000.0),
        ("Largest", "Kilobytes", facts.largest, 1000.0),
    ):
        rows = [(path_html(path), f"{number / unit:,.1f}") for path, number in ranking[:MAX_LISTED]]
        shown = table(("File", head), rows, ("path", "number"), label=title, caption=title)
        blocks += f"<div>{shown}</div>" if rows else f'<div><h3>{title}</h3><p class="empty">Not measured.</p></div>'
    return f'<div class="pair">{blocks}</div>'


def _samples(facts: "ReportFacts") -> str:
    if not facts.samples:
        return '<p class="empty">None were drawn.</p>'
    blocks = ""
    for split in dict.fromkeys(sample.split for sample in facts.samples):
        figures = ""
        for sample in facts.samples:
            if sample.split == split:
                picture = base64.b64encode(_draw_sample(sample)).decode()
                source = f'src="data:image/png;base64,{picture}" alt="Piano roll of {escape(shorten(sample.path))}"'
                figures += f"<figure><figcaption>{path_html(sample.path)}</figcaption><img {source}></figure>"
        blocks += f'<h3 class="split">{escape(split)}</h3><div class="samples">{figures}</div>'
    return blocks


def _draw_sample(sample: "SampleFacts") -> bytes:
    from tasks.music import score

    nowhere = np.zeros(0, np.int64)
    pedal = (np.array(sample.pedal_onset_seconds, np.float64), np.array(sample.pedal_end_seconds, np.float64))
    notes = score.Notes(
        onset=nowhere,
        duration=nowhere,
        pitch=np.array(sample.pitch, np.uint8),
        velocity=np.array(sample.velocity, np.uint8),
        program=np.array(sample.program, np.uint8),
        is_drum=np.array(sample.is_drum, np.bool_),
        track=np.array(sample.track, np.uint16),
        onset_seconds=np.array(sample.onset_seconds, np.float64),
        end_seconds=np.array(sample.end_seconds, np.float64),
    )
    piece = score.Score(
        ticks_per_quarter=480,  # a roll shows seconds alone
        notes=notes,
        tempos=score.Tempos(nowhere, nowhere),
        time_signatures=score.NO_TIME_SIGNATURES,
        key_signatures=score.NO_KEY_SIGNATURES,
        pedals=score.Pedals(nowhere, nowhere, np.array(sample.pedal_track, np.uint16), *pedal),
        n_tracks=1 + max(sample.track, default=0),
    )
    return draw_piano_roll(piece, width=1080, height=280, max_seconds=ROLL_SECONDS)


def _origin(facts: "ReportFacts") -> str:
    rows = [
        (
            path_html(source.address),
            escape(source.licence) or "not stated",
            f"{source.n_files:,}" if source.n_files else "n/a",
            f"{source.n_bytes / 1e6:,.1f}" if source.n_bytes else "n/a",
        )
        for source in facts.sources
    ]
    heads, kinds = ("Source", "Licence", "Files", "Megabytes"), ("path", "", "number", "number")
    sources = table(heads, rows, kinds, label="Sources") if rows else '<p class="empty">No source is named.</p>'
    settings = [(escape(name), escape(value)) for name, value in facts.settings.items()]
    return sources + (
        table(("Setting", "Value"), settings, ("", "path"), label="Settings", is_long=True) if settings else ""
    )
