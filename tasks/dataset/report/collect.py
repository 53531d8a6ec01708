"""The report of a dataset version: one self-contained HTML page and one picture.

`page.py` writes the page, `overview.py` the picture.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.dataset.ledger import paths_of
from tasks.dataset.report.facts import ChangeFacts, DuplicateFacts, ReasonFacts, ReportFacts, SourceFacts, SplitFacts
from tasks.dataset.report.overview import draw_overview
from tasks.dataset.report.page import build_page
from tasks.errors import RejectReason
from tasks.reporting.markup import MAX_EXAMPLES, MAX_LISTED, MAX_MEMBERS
from tasks.storage.files import write_atomically

if TYPE_CHECKING:
    import pyarrow as pa


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
    """Collect the facts of a published version.

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
    copies = ledger.filter(pc.equal(reason, RejectReason.SAME_CONTENT))  # type: ignore[attr-defined]
    distinct = pc.or_(pc.equal(ledger["status"], "accepted"), pc.equal(reason, RejectReason.NEAR_DUPLICATE))  # type: ignore[attr-defined]
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
    pieces = [row[key] for row in worst for key in ("piece", "nearest")]
    path_of = paths_of(ledger, pieces) if ledger is not None else {}
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


def _changes_of(changes: Mapping[str, Any]) -> ChangeFacts:
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

    given = ledger.select(["path", "status", "reason", "detail"])
    given = given.filter(pc.greater(pc.utf8_length(pc.fill_null(given["reason"], "")), 0))  # type: ignore[attr-defined]
    counted = given.group_by(["status", "reason"]).aggregate([([], "count_all")]).to_pylist()
    reasons = []
    for row in sorted(counted, key=lambda row: (row["status"], -row["count_all"], row["reason"])):
        is_own = pc.and_(pc.equal(given["status"], row["status"]), pc.equal(given["reason"], row["reason"]))  # type: ignore[attr-defined]
        first = given.filter(is_own).sort_by("path").slice(0, MAX_EXAMPLES).to_pylist()
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
