"""Markdown summaries of a dataset version and of the changes between two, for terminal, Prefect and MLflow."""

from collections.abc import Mapping
from typing import Any

from tasks.dataset.versions import DatasetVersion
from tasks.reporting.markdown import table


def dataset_card(dataset: DatasetVersion) -> str:
    """Return the state of the files, the splits, the leakage and the changes of a version."""
    manifest = dataset.manifest
    counts, notes, groups, leakage = (manifest[key] for key in ("counts", "notes", "groups", "leakage"))
    splits = [
        (split, n["n_pieces"], n["n_groups"], n["n_rows"], f"{n['n_tokens']:,}", f"{n['n_notes']:,}",
         f"{n['seconds'] / 3600:.2f}")
        for split, n in manifest["splits"].items()
    ]  # fmt: skip
    lines = [
        f"# {dataset.reference}",
        f"{counts['n_files']} files: {counts['n_accepted']} accepted, {counts['n_duplicate']} duplicates"
        f"{_listed(counts['duplicate_by_reason'])}, {counts['n_rejected']} rejected"
        f"{_listed(counts['rejected_by_reason'])}; {counts['n_other_files']} other files stand beside them.",
        f"{notes['found']:,} notes found, {notes['kept']:,} kept{_listed(notes['dropped'])}.",
        f"{groups['n_groups']} groups of near-duplicates, the largest of {groups['largest']};"
        f" {leakage['leaked_share']:.2%} of the held-out pieces stand in train"
        f" ({leakage['max_leaked_share']:.2%} allowed).",
        table(splits, ("split", "pieces", "groups", "rows", "tokens", "notes", "hours")),
        f"Encoding {manifest['encoder']['name']}-{manifest['encoder']['digest'][:12]}.",
        changes_card(manifest["changes"]) if manifest["changes"] else "The first version of this dataset.",
        f"Ledger: `{dataset.ledger}`" + (f"\nReport: `{dataset.report}`" if dataset.report.exists() else ""),
    ]
    return "\n\n".join(lines) + "\n"


def changes_card(changes: Mapping[str, Any]) -> str:
    """Return the changes of `compare_versions`."""
    lines = [
        f"Since {changes['previous']}: {changes['n_added']} files added, {changes['n_removed']} removed,"
        f" {changes['n_changed']} changed, {changes['n_unchanged']} as they were;"
        f" {changes['n_moved_pieces']} pieces moved to another split."
    ]
    lines += [f"- {kind}: {', '.join(f'`{path}`' for path in paths)}" for kind, paths in changes["examples"].items()]
    lines += [f"- {key}: {old} -> {new}" for key, (old, new) in changes["settings"].items()]
    shards = [(stage, n["new"], n["kept"], n["gone"]) for stage, n in changes["shards"].items()]
    return "\n".join(lines) + "\n\n" + table(shards, ("shards", "new", "kept", "gone"))


def _listed(counts: Mapping[str, int]) -> str:
    listed = ", ".join(f"{n:,} {reason}" for reason, n in counts.items())
    return f" ({listed})" if listed else ""
