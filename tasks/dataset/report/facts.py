"""The facts of a dataset's report, collected from a version's manifest and ledger."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tasks.dataset.ledger import STATES, count_values, paths_of
from tasks.dataset.split import SPLITS
from tasks.errors import RejectReason
from tasks.reporting.markup import MAX_EXAMPLES, MAX_LISTED, MAX_MEMBERS

Counts = Mapping[str, int]
Row = Mapping[str, Any]
Ranking = Sequence[tuple[str, int]]  # path and number, largest first
NO_GROUPS: Row = {"n_groups": 0, "n_files": 0, "sizes": {}, "largest": []}


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportFacts:
    """The facts of a report as plain values, so that `dataclasses.asdict` gives JSON."""

    name: str
    version: str
    n_files: int  # found, in any state
    states: Counts  # files by state; the page names a sum other than `n_files`
    sources: Sequence[Row] = ()  # address, licence, n_files and n_bytes; an empty text or 0 is left out
    settings: Mapping[str, str] = field(default_factory=dict)
    reasons: Sequence[Row] = ()  # state, reason, n_files and examples, which are pairs of path and detail
    n_notes_in: int = 0  # in all readable files; without the dropped notes they should be `n_notes_out`
    n_notes_out: int = 0
    notes_dropped: Counts = field(default_factory=dict)
    losses: Counts = field(default_factory=dict)  # events that readers left out or repaired in accepted files
    n_other_files: int = 0  # files in the sources that are not MIDI by their names
    histograms: Mapping[str, Sequence[int]] = field(default_factory=dict)  # of `features.histograms`, and `tempo`
    ticks_per_quarter: Mapping[int, int] = field(default_factory=dict)  # pieces by resolution
    # Groups of files with the same content, and of near-duplicate pieces: `n_groups`, `n_files` in them, `sizes`
    # (groups by their number of files) and `largest` (number of files, and the paths of some).
    exact: Row = field(default_factory=lambda: NO_GROUPS)
    near: Row = field(default_factory=lambda: NO_GROUPS)
    splits: Sequence[Row] = ()  # name, n_pieces, n_groups, n_notes, hours; n_rows and n_tokens after augmentation
    # Any figures by name. `headline` is a sentence, a list of mappings becomes a table, and a false `within_bound`
    # becomes a warning.
    leakage: Row = field(default_factory=dict)
    slowest: Ranking = ()  # files with the microseconds that reading them took
    largest: Ranking = ()  # files with their bytes
    changes: Row | None = None  # the manifest's; None for a first version
    samples: Sequence[Row] = ()  # split, path and roll, the address of a picture
    scatter: Row = field(default_factory=dict)  # picture, its address, and words, the number of its notes
    warnings: Sequence[str] = ()  # sentences at the top

    def state_counts(self) -> list[tuple[str, int]]:
        """Return the files in each state, the three known ones first."""
        others = sorted(set(self.states) - set(STATES))
        return [(state, self.states.get(state, 0)) for state in (*STATES, *others)]

    def headline(self) -> dict[str, str]:
        figures = {"files found": self.n_files, **dict(self.state_counts()), "notes kept": self.n_notes_out}
        shown = {name: f"{n:,}" for name, n in figures.items()}
        if self.splits:
            shown["hours of music"] = f"{sum(split['hours'] for split in self.splits):,.1f}"
        if n_tokens := sum(split["n_tokens"] for split in self.splits):
            shown["tokens"] = f"{n_tokens:,}"
        return shown

    def problems(self) -> list[str]:
        """Return the warnings, and a sentence for each sum that does not come out."""
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


def facts_of_version(manifest: Mapping[str, Any], ledger: pa.Table, **more: Any) -> ReportFacts:
    """Collect the facts of a published version.

    Args:
        manifest: as in `manifest.json`.
        ledger: as in `pieces.parquet`.
        more: facts from other places: `histograms`, `slowest`, `samples`, `warnings`.
    """
    facts = facts_of_ledger(ledger, manifest["splits"]) | {
        "name": manifest["name"],
        "version": manifest["version"],
        "n_notes_in": manifest["notes"]["found"],
        "n_notes_out": manifest["notes"]["kept"],
        "notes_dropped": manifest["notes"]["dropped"],
        "losses": manifest["counts"]["left_out_by_reader"],
        "n_other_files": manifest["counts"]["n_other_files"],
        "leakage": _leakage(manifest["leakage"], ledger),
        "changes": manifest["changes"],
        "settings": _flat({"encoder": manifest["encoder"]["digest"]} | dict(manifest["config"])),
    }
    return ReportFacts(**(facts | more))


def facts_of_ledger(ledger: pa.Table, encoded: Mapping[str, Row] | None = None) -> dict[str, Any]:
    """Return the facts that a ledger alone holds, as arguments for `ReportFacts`.

    Args:
        ledger: columns path, source, licence, n_bytes, status, reason, detail, duplicate_of, group, split, n_notes,
            seconds, ticks_per_quarter.
        encoded: `n_rows` and `n_tokens` of each split.
    """
    is_accepted = pc.equal(ledger["status"], "accepted")
    accepted, reason = ledger.filter(is_accepted), pc.fill_null(ledger["reason"], "")
    copies = ledger.filter(pc.equal(reason, RejectReason.SAME_CONTENT))
    distinct = ledger.filter(pc.or_(is_accepted, pc.equal(reason, RejectReason.NEAR_DUPLICATE)))
    by_size = ledger.select(["path", "n_bytes"]).sort_by([("n_bytes", "descending"), ("path", "ascending")])
    return {
        "n_files": ledger.num_rows,
        "states": dict(count_values(ledger, "status")),
        "sources": _sources(ledger),
        "reasons": _reasons(ledger.select(["path", "status", "reason", "detail"]).filter(pc.not_equal(reason, ""))),
        "ticks_per_quarter": dict(count_values(accepted, "ticks_per_quarter")),
        "exact": _groups(copies, "duplicate_of", n_more=1),
        "near": _groups(distinct, "group", n_more=0),
        "splits": _splits(accepted, encoded or {}),
        "largest": [tuple(row.values()) for row in by_size.slice(0, MAX_LISTED).to_pylist()],
        "n_notes_out": pc.sum(accepted["n_notes"]).as_py() or 0,
    }


def _leakage(leakage: Mapping[str, Any], ledger: pa.Table) -> dict[str, Any]:
    """Return a leakage report in the words of the page; pieces have their paths."""
    splits = {name: dict(found) for name, found in leakage["splits"].items()}
    worst = [{"split": name, **row} for name, found in splits.items() for row in found.pop("worst")]
    worst.sort(key=lambda row: (-row["share_in_nearest"], row["piece"]))
    path_of = paths_of(ledger, [row[key] for row in worst for key in ("piece", "nearest")])
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


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, str) else json.dumps(value)
    return flat


def _sources(ledger: pa.Table) -> list[Row]:
    counted = ledger.group_by(["source", "licence"]).aggregate([("n_bytes", "sum"), ([], "count_all")])
    rows = counted.rename_columns(["address", "licence", "n_bytes", "n_files"]).to_pylist()
    rows = [{name: value or (0 if name == "n_bytes" else "") for name, value in row.items()} for row in rows]
    return sorted(rows, key=lambda row: (row["address"], row["licence"]))


def _reasons(given: pa.Table) -> list[Row]:
    counted = given.group_by(["status", "reason"]).aggregate([([], "count_all")])
    rows = counted.rename_columns(["state", "reason", "n_files"]).to_pylist()
    for row in rows:
        is_own = pc.and_(pc.equal(given["status"], row["state"]), pc.equal(given["reason"], row["reason"]))
        first = given.filter(is_own).sort_by("path").slice(0, MAX_EXAMPLES).to_pylist()
        row["examples"] = [(example["path"], example["detail"] or "") for example in first]
    return sorted(rows, key=lambda row: (row["state"], -row["n_files"], row["reason"]))


def _groups(table: pa.Table, name: str, n_more: int) -> Row:
    """Count the rows that share a value; with `n_more`, a value names one more file, which has no row here."""
    counted = table.group_by(name).aggregate([([], "count_all")])
    counted = counted.filter(pc.and_(pc.is_valid(counted[name]), pc.greater(counted["count_all"], 1 - n_more)))
    sizes = {size + n_more: n for size, n in count_values(counted, "count_all").items()}
    largest = []
    by_size = counted.sort_by([("count_all", "descending"), (name, "ascending")])
    for row in by_size.slice(0, MAX_LISTED).to_pylist():
        members = table.filter(pc.equal(table[name], row[name]))["path"].to_pylist()
        first = [row[name]] if n_more else []
        largest.append((row["count_all"] + n_more, [*first, *sorted(members)][:MAX_MEMBERS]))
    n_files = sum(size * n for size, n in sizes.items())
    return {"n_groups": counted.num_rows, "n_files": n_files, "sizes": sizes, "largest": largest}


def _splits(accepted: pa.Table, encoded: Mapping[str, Row]) -> list[Row]:
    wanted = [([], "count_all"), ("group", "count_distinct"), ("n_notes", "sum"), ("seconds", "sum")]
    counted = {row["split"]: row for row in accepted.group_by("split").aggregate(wanted).to_pylist()}
    return [
        {
            "name": name,
            "n_pieces": counted[name]["count_all"],
            "n_groups": counted[name]["group_count_distinct"],
            "n_notes": counted[name]["n_notes_sum"] or 0,
            "hours": (counted[name]["seconds_sum"] or 0.0) / 3600,
            "n_rows": encoded.get(name, {}).get("n_rows", 0),
            "n_tokens": encoded.get(name, {}).get("n_tokens", 0),
        }
        for name in SPLITS
        if name in counted
    ]
