"""A dataset version as one HTML page and one picture: every count, with nothing outside the file.

What they look like is in `report_page/`: `page.py` writes the page, `charts.py` its charts, `overview.py` the picture.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.report_page.overview import draw_overview
from tasks.report_page.page import build_page
from tasks.reporting.markup import MAX_EXAMPLES, MAX_LISTED, MAX_MEMBERS
from tasks.storage.files import write_atomically

if TYPE_CHECKING:
    import pyarrow as pa

STATES = ("accepted", "duplicate", "rejected")  # shown in this order, others behind them

Counts = Mapping[str, int]
Ranking = Sequence[tuple[str, int]]  # path and number, largest first


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFacts:
    """Where files came from; an empty text or 0 is left out."""

    address: str
    licence: str = ""
    n_files: int = 0
    n_bytes: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class ReasonFacts:
    """One reason for a state, such as `not_midi` for `rejected`; examples are pairs of path and detail."""

    state: str
    reason: str
    n_files: int
    examples: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class DuplicateFacts:
    """Groups of two files or more; `sizes` counts groups by their number of files, `largest` names files of some."""

    n_groups: int = 0
    n_files: int = 0  # in these groups
    sizes: Mapping[int, int] = field(default_factory=dict)
    largest: Sequence[tuple[int, Sequence[str]]] = ()  # number of files, and paths of some


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitFacts:
    """One split: pieces and groups as they are, rows and tokens after augmentation and encoding."""

    name: str
    n_pieces: int
    n_groups: int
    n_notes: int
    hours: float
    n_rows: int = 0
    n_tokens: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class ChangeFacts:
    """What is new since the version `previous`; examples are pairs of `added`, `removed` or `changed` and a path."""

    previous: str
    n_added: int
    n_removed: int
    n_changed: int
    n_unchanged: int
    n_moved_pieces: int = 0  # in another split than before
    shards: Mapping[str, Counts] = field(default_factory=dict)  # of each stage: new, kept, gone
    settings: Mapping[str, Sequence[Any]] = field(default_factory=dict)  # name -> value before and now
    examples: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleFacts:
    """A piece to draw: columns of its notes and pedal spans, times in seconds."""

    split: str
    path: str
    onset_seconds: Sequence[float]
    end_seconds: Sequence[float]
    pitch: Sequence[int]
    velocity: Sequence[int]
    program: Sequence[int]
    is_drum: Sequence[bool]
    track: Sequence[int]
    pedal_onset_seconds: Sequence[float] = ()
    pedal_end_seconds: Sequence[float] = ()
    pedal_track: Sequence[int] = ()

    @classmethod
    def from_song(cls, song: Mapping[str, Any], split: str, path: str) -> "SampleFacts":
        """Take the columns of one row of a song shard."""
        names = ("onset_seconds", "pitch", "velocity", "program", "is_drum", "track")
        columns = {name: list(song[name]) for name in (*names, "pedal_onset_seconds", "pedal_track")}
        for kind in ("", "pedal_"):
            spans = zip(columns[f"{kind}onset_seconds"], song[f"{kind}duration_seconds"], strict=True)
            columns[f"{kind}end_seconds"] = [onset + duration for onset, duration in spans]
        return cls(split=split, path=path, **columns)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportFacts:
    """All that a report says; plain values, so that `dataclasses.asdict` of it goes through JSON.

    Args:
        n_files: files found, in any state.
        states: files by state; their sum should be `n_files`, and the page says so where it is not.
        n_notes_in: notes in all files that could be read; less the dropped ones they should be `n_notes_out`.
        notes_dropped: by reason.
        histograms: counts as from `music.features.histograms` and, as `tempo`, from `tempo_histogram`; those that
            are missing are not shown.
        ticks_per_quarter: pieces by resolution.
        exact: groups of files with the same content.
        near: groups of accepted pieces that are nearly the same.
        leakage: any figures by name. `headline` is a sentence, lists of mappings become tables, a false
            `within_bound` becomes a warning.
        slowest: files with the microseconds that reading them took.
        largest: files with their bytes.
        losses: what readers left out or mended in accepted files, by reason.
        n_other_files: files in the sources whose names say that they are not MIDI.
        settings: what the version was built with, by name.
        warnings: sentences shown at the top.
    """

    name: str
    version: str
    n_files: int
    states: Counts
    sources: Sequence[SourceFacts] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    reasons: Sequence[ReasonFacts] = ()
    n_notes_in: int = 0
    n_notes_out: int = 0
    notes_dropped: Counts = field(default_factory=dict)
    losses: Counts = field(default_factory=dict)
    n_other_files: int = 0
    histograms: Mapping[str, Sequence[int]] = field(default_factory=dict)
    ticks_per_quarter: Mapping[int, int] = field(default_factory=dict)
    exact: DuplicateFacts = DuplicateFacts()
    near: DuplicateFacts = DuplicateFacts()
    splits: Sequence[SplitFacts] = ()
    leakage: Mapping[str, Any] = field(default_factory=dict)
    slowest: Ranking = ()
    largest: Ranking = ()
    changes: ChangeFacts | None = None
    samples: Sequence[SampleFacts] = ()
    warnings: Sequence[str] = ()

    @property
    def hours(self) -> float:
        return sum(split.hours for split in self.splits)

    def state_counts(self) -> list[tuple[str, int]]:
        """Return the files in each state, the three known ones first."""
        others = sorted(set(self.states) - set(STATES))
        return [(state, self.states.get(state, 0)) for state in (*STATES, *others)]

    def headline(self) -> dict[str, str]:
        """Return the key figures as text."""
        figures = {"files found": self.n_files, **dict(self.state_counts()), "notes kept": self.n_notes_out}
        said = {name: f"{n:,}" for name, n in figures.items()}
        if self.splits:
            said["hours of music"] = f"{self.hours:,.1f}"
        if n_tokens := sum(split.n_tokens for split in self.splits):
            said["tokens"] = f"{n_tokens:,}"
        return said

    def problems(self) -> list[str]:
        """Return the sums that do not come out, as sentences; there should be none."""
        found = list(self.warnings)
        n_counted = sum(self.states.values())
        if n_counted != self.n_files:
            found.append(f"{self.n_files:,} files were found, but {n_counted:,} have a state.")
        n_explained = self.n_notes_out + sum(self.notes_dropped.values())
        if n_explained != self.n_notes_in:
            found.append(f"{self.n_notes_in:,} notes were found, but {n_explained:,} are kept or counted as dropped.")
        if self.leakage.get("within_bound") is False:
            found.append("Leakage between the splits is above its bound.")
        return found


def write_report(facts: ReportFacts, folder: Path) -> Path:
    """Write `report.html` and `report.png` into `folder`; the same facts give the same bytes.

    Returns:
        The path of the page, which needs nothing beside it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "report.png", draw_overview(facts))
    write_atomically(folder / "report.html", build_page(facts).encode())
    return folder / "report.html"


def facts_of_version(manifest: Mapping[str, Any], ledger: "pa.Table", **more: Any) -> ReportFacts:
    """Collect what a published version says of itself.

    Args:
        manifest: as in `manifest.json`.
        ledger: as in `pieces.parquet`.
        more: `ReportFacts` that stand in neither: `histograms`, `slowest`, `samples`, `warnings`.
    """
    tokens = {split: (facts["n_rows"], facts["n_tokens"]) for split, facts in manifest["splits"].items()}
    notes, changes = manifest["notes"], manifest["changes"]
    facts = facts_of_ledger(ledger, tokens) | {
        "name": manifest["name"],
        "version": manifest["version"],
        "n_notes_in": notes["found"],
        "n_notes_out": notes["kept"],
        "notes_dropped": notes["dropped"],
        "losses": manifest["counts"]["left_out_by_reader"],
        "n_other_files": manifest["counts"]["n_other_files"],
        "leakage": facts_of_leakage(manifest["leakage"], ledger),
        "changes": _changes_of(changes) if changes else None,
        "settings": _flat({"encoder": manifest["encoder"]["digest"]} | dict(manifest["config"])),
    }
    return ReportFacts(**(facts | more))


def facts_of_ledger(ledger: "pa.Table", tokens: Mapping[str, tuple[int, int]] | None = None) -> dict[str, Any]:
    """Work out what a ledger alone says, as arguments for `ReportFacts`.

    Args:
        ledger: columns path, source, licence, n_bytes, status, reason, detail, duplicate_of, group, split, n_notes,
            seconds, ticks_per_quarter.
        tokens: rows and tokens of each split.
    """
    import pyarrow.compute as pc

    accepted = ledger.filter(pc.equal(ledger["status"], "accepted"))  # type: ignore[attr-defined]
    reason = pc.fill_null(ledger["reason"], "")  # type: ignore[attr-defined]
    copies = ledger.filter(pc.equal(reason, "same_content"))  # type: ignore[attr-defined]
    distinct = pc.or_(pc.equal(ledger["status"], "accepted"), pc.equal(reason, "near_duplicate"))  # type: ignore[attr-defined]
    by_size = ledger.select(["path", "n_bytes"]).sort_by([("n_bytes", "descending"), ("path", "ascending")])
    return {
        "n_files": ledger.num_rows,
        "states": _count(ledger, "status"),
        "sources": _sources_of(ledger),
        "reasons": _reasons_of(ledger),
        "ticks_per_quarter": _count(accepted, "ticks_per_quarter"),
        "exact": _groups_of(copies, "duplicate_of", n_more=1),
        "near": _groups_of(ledger.filter(distinct), "group", n_more=0),
        "splits": _splits_of(accepted, tokens or {}),
        "largest": [tuple(row.values()) for row in by_size.slice(0, MAX_LISTED).to_pylist()],
        "n_notes_out": pc.sum(accepted["n_notes"]).as_py() or 0,  # type: ignore[attr-defined]
    }


def facts_of_leakage(leakage: Mapping[str, Any], ledger: "pa.Table | None" = None) -> dict[str, Any]:
    """Put a leakage report (`LeakageReport.as_json`) into the words of the page; pieces get the paths of the ledger."""
    splits = {name: dict(found) for name, found in leakage["splits"].items()}
    worst = [{"split": name, **row} for name, found in splits.items() for row in found.pop("worst")]
    worst.sort(key=lambda row: (-row["share_in_nearest"], row["piece"]))
    path_of = (
        _paths_of(ledger, {row[key] for row in worst for key in ("piece", "nearest")}) if ledger is not None else {}
    )
    baseline = {name: value for name, value in leakage["baseline"].items() if name != "worst"}
    n_rated = sum(found["n_rated"] for found in splits.values())
    n_leaked = sum(found["n_leaked"] for found in splits.values())
    return {
        "headline": (
            f"{n_leaked:,} of {n_rated:,} pieces held out have more than {leakage['piece_bound']:.0%} of their n-grams"
            " in one training piece."
        ),
        "within_bound": leakage["leaked_share"] <= leakage["max_leaked_share"],
        "leaked_share": leakage["leaked_share"],
        "allowed_share": leakage["max_leaked_share"],
        "one_n-gram_compared_in": leakage["sampled"],
        "shares_of_n-grams_in_train": [
            {"pieces of": name} | found for name, found in (splits | {"train, for comparison": baseline}).items()
        ],
        "most_in_one_training_piece": [
            {key: path_of.get(value, value) if key in ("piece", "nearest") else value for key, value in row.items()}
            for row in worst[:MAX_LISTED]
        ],
    }


def _paths_of(ledger: "pa.Table", pieces: set[str]) -> dict[str, str]:
    import pyarrow as pa
    import pyarrow.compute as pc

    wanted = pc.is_in(ledger["piece"], value_set=pa.array(sorted(pieces), pa.string()))  # type: ignore[attr-defined]
    chosen = ledger.filter(pc.and_(wanted, pc.equal(ledger["status"], "accepted")))  # type: ignore[attr-defined]
    return dict(zip(chosen["piece"].to_pylist(), chosen["path"].to_pylist(), strict=True))


def _changes_of(changes: Mapping[str, Any]) -> ChangeFacts:
    """Take what `dataset_changes.compare_versions` found."""
    counts = {name: n for name, n in changes.items() if name.startswith("n_")}
    examples = [(kind, path) for kind, paths in changes["examples"].items() for path in paths]
    named = {"previous": changes["previous"], "shards": changes["shards"], "settings": changes["settings"]}
    return ChangeFacts(examples=examples, **named, **counts)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, str) else json.dumps(value)
    return flat


def _sources_of(ledger: "pa.Table") -> list[SourceFacts]:
    keys = ["source", "licence"]
    counted = ledger.group_by(keys).aggregate([([], "count_all"), ("n_bytes", "sum")]).to_pylist()
    rows = sorted(counted, key=lambda row: (row["source"] or "", row["licence"] or ""))
    return [
        SourceFacts(
            address=row["source"] or "", licence=row["licence"] or "", n_files=row["count_all"],
            n_bytes=row["n_bytes_sum"] or 0,
        )
        for row in rows
    ]  # fmt: skip


def _count(table: "pa.Table", name: str) -> dict[Any, int]:
    counted = table[name].value_counts().to_pylist()
    return {c["values"]: c["counts"] for c in sorted(counted, key=lambda c: c["values"]) if c["values"] is not None}


def _reasons_of(ledger: "pa.Table") -> list[ReasonFacts]:
    import pyarrow.compute as pc

    said = ledger.select(["path", "status", "reason", "detail"])
    said = said.filter(pc.greater(pc.utf8_length(pc.fill_null(said["reason"], "")), 0))  # type: ignore[attr-defined]
    counted = said.group_by(["status", "reason"]).aggregate([([], "count_all")]).to_pylist()
    reasons = []
    for row in sorted(counted, key=lambda row: (row["status"], -row["count_all"], row["reason"])):
        mine = pc.and_(pc.equal(said["status"], row["status"]), pc.equal(said["reason"], row["reason"]))  # type: ignore[attr-defined]
        first = said.filter(mine).sort_by("path").slice(0, MAX_EXAMPLES).to_pylist()
        examples = [(example["path"], example["detail"] or "") for example in first]
        state = row["status"]
        reasons.append(ReasonFacts(state=state, reason=row["reason"], n_files=row["count_all"], examples=examples))
    return reasons


def _groups_of(table: "pa.Table", name: str, n_more: int) -> DuplicateFacts:
    """Count the rows that share a value; with `n_more`, a value names one more file, which has no row here."""
    import pyarrow.compute as pc

    counted = table.group_by(name).aggregate([([], "count_all")])
    counted = counted.filter(pc.and_(pc.is_valid(counted[name]), pc.greater(counted["count_all"], 1 - n_more)))  # type: ignore[attr-defined]
    sizes = {size + n_more: n for size, n in _count(counted, "count_all").items()}
    largest = []
    by_size = counted.sort_by([("count_all", "descending"), (name, "ascending")])
    for row in by_size.slice(0, MAX_LISTED).to_pylist():
        members = table.filter(pc.equal(table[name], row[name]))["path"].to_pylist()  # type: ignore[attr-defined]
        first = [row[name]] if n_more else []
        largest.append((row["count_all"] + n_more, [*first, *sorted(members)][:MAX_MEMBERS]))
    n_files = sum(size * n for size, n in sizes.items())
    return DuplicateFacts(n_groups=counted.num_rows, n_files=n_files, sizes=sizes, largest=largest)


def _splits_of(accepted: "pa.Table", tokens: Mapping[str, tuple[int, int]]) -> list[SplitFacts]:
    wanted = [([], "count_all"), ("group", "count_distinct"), ("n_notes", "sum"), ("seconds", "sum")]
    counted = {row["split"]: row for row in accepted.group_by("split").aggregate(wanted).to_pylist()}
    order = {name: place for place, name in enumerate(("train", "validation", "test"))}
    splits = []
    for name in sorted(filter(None, counted), key=lambda name: (order.get(name, 9), name)):
        row, (n_rows, n_tokens) = counted[name], tokens.get(name, (0, 0))
        splits.append(
            SplitFacts(
                name=name,
                n_pieces=row["count_all"],
                n_groups=row["group_count_distinct"],
                n_notes=row["n_notes_sum"] or 0,
                hours=(row["seconds_sum"] or 0.0) / 3600,
                n_rows=n_rows,
                n_tokens=n_tokens,
            )
        )
    return splits
