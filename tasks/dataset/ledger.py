"""The ledger: the final state of every file found, computed over whole columns.

Each file ends in exactly one state: accepted, duplicate of another, or rejected for a reason. A million files take
seconds.
"""

import json
import operator
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.config.dataset import DatasetConfig, GroupConfig, LeakageConfig
from tasks.dataset.analyse import Analysis
from tasks.dataset.filters import apply_filters
from tasks.dataset.leakage import LeakageReport, exceeds, measure_leakage
from tasks.dataset.near_duplicates import Groups, group_pieces
from tasks.dataset.split import SPLITS, official_groups, split_groups
from tasks.errors import DatasetError, RejectReason
from tasks.ingest.song_shards import Contents, SongShard
from tasks.ingest.sources.read import BadRead, refuse_rows
from tasks.storage.parquet import LEDGER_SCHEMA, read_table, replace_column

STATES = ("accepted", "duplicate", "rejected")
SONG_FACTS = ["piece", "content_hash", "status", "reason", "detail", "dropped", "n_note_ons", "n_notes", "seconds"]
SONG_FACTS += ["ticks_per_quarter", "programs", "time_signature_numerator", "time_signature_denominator"]


@dataclass(frozen=True, slots=True, eq=False)
class Ledger:
    """A row for each file found, and the places of the P accepted pieces."""

    table: pa.Table  # LEDGER_SCHEMA, in the order of the scan
    pieces: pa.Table  # piece, split and group of the accepted pieces, in the order of the song shards
    shard: np.ndarray  # int64[P], song shard of each piece
    analysed: np.ndarray  # int64[P], row of each piece in the analysis
    groups: Groups  # of all readable pieces that pass the filters


def allow_licences(files: pa.Table, licences: Sequence[str]) -> pa.Table:
    """Refuse the scan rows whose source states none of `licences`; without licences all rows stay."""
    if not licences:
        return files
    refused = {
        row: BadRead(
            RejectReason.LICENCE_NOT_ALLOWED,
            f"licence {stated or 'not stated'} is not one of {', '.join(licences)} (dataset.licences)",
        )
        for row, (stated, reason) in enumerate(
            zip(*(files[name].to_pylist() for name in ("licence", "reason")), strict=True)
        )
        if not reason and stated not in licences
    }
    return refuse_rows(files, refused)


def read_song_facts(shards: Sequence[SongShard]) -> pa.Table:
    """Return the columns of the song shards without notes, a row for each content in order."""
    tables = [read_table(shard.path, SONG_FACTS) for shard in shards]
    return pa.concat_tables(tables).replace_schema_metadata(None).combine_chunks()


def find_groups(config: GroupConfig, analysis: Analysis, stays: np.ndarray) -> Groups:
    """Group the pieces of an analysis where the mask `stays` is true; a few million pieces take a gigabyte."""
    table = analysis.table.select(["piece", "n_shingles"]).filter(pa.array(stays))
    return group_pieces(
        table.column("piece").to_numpy(), analysis.signatures(stays), table.column("n_shingles").to_numpy(), config
    )


def build_ledger(
    config: DatasetConfig, files: pa.Table, contents: Contents, shards: Sequence[SongShard], analysis: Analysis,
    apart: Callable[..., Any] = operator.call,
) -> Ledger:  # fmt: skip
    """Decide the state of every file.

    Args:
        files: scan rows; `contents`, `shards` and `analysis` were made from them.
        apart: calls a function with arguments, here or in another process.
    Raises:
        DatasetError: no usable file, fewer groups than splits, or more rejected than `max_reject_share`.
    """
    if not len(contents):
        raise DatasetError(_unusable(files, count_values(files, "reason")))
    facts = read_song_facts(shards)
    reason, detail = _strings(facts, "reason"), _strings(facts, "detail")
    music = np.flatnonzero(_equals(facts, "status", "accepted"))  # row i of the analysis is content music[i]
    reason[music], detail[music] = _judge(config, facts, music, analysis.table)
    stays = reason[music] == ""
    kept = music[stays]
    groups: Groups = apart(find_groups, config.groups, analysis, stays)
    original = np.full(facts.num_rows, -1)  # the content that stays, for a near-duplicate that is dropped
    if config.near_duplicates == "drop":
        best = _most_notes(groups.component, facts.column("n_notes").to_numpy()[kept])
        original[kept] = np.where(best == np.arange(len(kept)), -1, kept[best])
    accepted = np.zeros(facts.num_rows, np.bool_)
    accepted[kept] = original[kept] < 0
    table = _rows(files, contents, facts, reason, detail, accepted, original)
    _refuse_unusable(config, table)
    splits = _splits(config, contents, kept, groups)
    pieces = facts.column("piece").combine_chunks()
    group, split_of = np.full(facts.num_rows, -1), np.full(facts.num_rows, -1)
    group[kept], split_of[kept] = kept[groups.representative], splits[groups.component]
    table = _with_groups(table, contents, pieces, group, np.where(accepted, split_of, -1))
    chosen = np.flatnonzero(accepted)
    del facts, reason, detail
    pa.default_memory_pool().release_unused()
    shard_of = np.repeat(np.arange(len(shards)), [shard.n_files for shard in shards])
    return Ledger(
        table=table,
        pieces=pa.table(
            {
                "piece": pieces.take(pa.array(chosen)),
                "split": pa.array(SPLITS).take(pa.array(split_of[chosen])),
                "group": pieces.take(pa.array(group[chosen])),
            }
        ),
        shard=shard_of[chosen],
        analysed=np.searchsorted(music, chosen),
        groups=groups,
    )


def _judge(
    config: DatasetConfig, facts: pa.Table, music: np.ndarray, features: pa.Table
) -> tuple[np.ndarray, np.ndarray]:
    """Return the reason and the detail of the first filter that each piece fails, empty where it stays."""
    judged = facts if len(music) == facts.num_rows else facts.take(pa.array(music))
    for name in features.column_names:
        if name not in judged.column_names:
            judged = judged.append_column(name, features.column(name))
    reason, detail = apply_filters(config.filters, judged)
    return reason.to_numpy(zero_copy_only=False), detail.to_numpy(zero_copy_only=False)


def compare_splits(config: LeakageConfig, analysis: Analysis, analysed: np.ndarray, pieces: pa.Table) -> LeakageReport:
    """Compare the splits of the accepted pieces, rows `analysed` of the analysis, with each other."""
    is_accepted = np.zeros(analysis.table.num_rows, np.bool_)
    is_accepted[analysed] = True
    offsets, grams, thinning = analysis.grams(is_accepted)
    names, splits, groups = (pieces.column(name).to_numpy() for name in ("piece", "split", "group"))
    return measure_leakage(names, offsets, grams, splits, groups, config, thinning)


def check_leakage(
    config: DatasetConfig, ledger: Ledger, analysis: Analysis, apart: Callable[..., Any] = operator.call
) -> LeakageReport:
    """Compare the splits with each other, or raise DatasetError if more leaks than `dataset.leakage` allows.

    Args:
        apart: as in `build_ledger`.
    """
    report: LeakageReport = apart(compare_splits, config.leakage, analysis, ledger.analysed, ledger.pieces)
    if exceeds(report):
        worst = max(
            (split.worst[0] for split in report.splits.values() if split.worst), key=lambda w: w.share_in_nearest
        )
        raise DatasetError(
            f"{report.leaked_share:.2%} of the held-out pieces stand in train, more than"
            f" dataset.leakage.max_leaked_share={report.max_leaked_share:.2%}; for example piece {worst.piece} shares"
            f" {worst.share_in_nearest:.0%} with {worst.nearest}. Lower dataset.groups.min_containment, so that they"
            " fall into one group, or raise the bound"
        )
    return report


def _rows(
    files: pa.Table, contents: Contents, facts: pa.Table, reason: np.ndarray, detail: np.ndarray,
    accepted: np.ndarray, original: np.ndarray,
) -> pa.Table:  # fmt: skip
    """Return the ledger's rows without groups and splits."""
    n_files, has_content, first = files.num_rows, contents.place >= 0, contents.first
    at = np.maximum(contents.place, 0)
    is_first = np.zeros(n_files, np.bool_)
    is_first[first] = True
    is_copy = has_content & accepted[at] & ~is_first
    is_near = has_content & (original[at] >= 0)
    is_duplicate = is_copy | is_near
    is_accepted = has_content & accepted[at] & is_first
    why = np.where(is_near, "near_duplicate", np.where(is_copy, "same_content", reason[at]))
    why = np.where(has_content, why, _strings(files, "reason"))
    more = np.where(has_content, np.where(is_duplicate, "", detail[at]), _strings(files, "detail"))
    copied = np.where(is_near, first[np.maximum(original[at], 0)], np.where(is_copy, first[at], -1))
    paths = files.column("path").combine_chunks()
    is_music = has_content & _equals(facts, "status", "accepted")[at]

    def of_content(names: Sequence[str], known: np.ndarray) -> dict[str, Any]:
        rows = pa.array(at, mask=~known)
        return {name: facts.column(name).combine_chunks().take(rows) for name in names}

    columns: dict[str, Any] = {
        **of_content(["content_hash", "piece"], has_content),
        **of_content(["n_note_ons", "n_notes", "dropped", "seconds", "ticks_per_quarter", "programs"], is_music),
        "path": paths,
        "source": files.column("source").cast(pa.string()),
        "n_bytes": files.column("n_bytes"),
        "status": pa.array(STATES).take(pa.array(np.select([is_accepted, is_duplicate], [0, 1], 2))),
        "reason": pa.array(why, pa.string(), mask=is_accepted),
        "detail": pa.array(more, pa.string(), mask=is_accepted | (more == "")),
        "duplicate_of": paths.take(pa.array(np.maximum(copied, 0), mask=copied < 0)),
        "group": pa.nulls(n_files, pa.string()),
        "split": pa.nulls(n_files, pa.string()),
        "licence": files.column("licence").cast(pa.string()),
    }
    return pa.table({field.name: columns[field.name] for field in LEDGER_SCHEMA}).cast(LEDGER_SCHEMA)


def _with_groups(
    table: pa.Table, contents: Contents, pieces: pa.Array, group: np.ndarray, split: np.ndarray
) -> pa.Table:
    at = np.maximum(contents.place, 0)
    in_group = (contents.place >= 0) & (group[at] >= 0)
    is_accepted = _equals(table, "status", "accepted")
    names = pieces.take(pa.array(np.maximum(group[at], 0), mask=~in_group))
    splits = pa.array(np.array(SPLITS)).take(pa.array(np.maximum(split[at], 0), mask=~is_accepted))
    table = replace_column(table, "group", names.cast(pa.string()))
    return replace_column(table, "split", splits.cast(pa.string()))


def _splits(config: DatasetConfig, contents: Contents, kept: np.ndarray, groups: Groups) -> np.ndarray:
    """Return the split of each group as an index: the one that its source states, otherwise one by hash."""
    keys = contents.words()[kept, 0]  # the piece ids as numbers
    representatives = np.zeros(groups.n_groups, np.int64)
    representatives[groups.component] = groups.representative
    group_keys = keys[representatives]
    official = np.full(groups.n_groups, -1, np.int8)
    if config.split == "official":
        stated = contents.files.column("split").take(pa.array(contents.first)).cast(pa.string())
        stated = np.asarray(pc.index_in(stated, pa.array(SPLITS)).fill_null(-1))
        official = official_groups(stated.astype(np.int8)[kept], groups.component, groups.n_groups)
    return split_groups(group_keys, config.validation_share, config.test_share, config.split_seed, official)


def _most_notes(component: np.ndarray, n_notes: np.ndarray) -> np.ndarray:
    """Return for each piece the first piece of its group with most notes."""
    order = np.lexsort([np.arange(len(component)), -n_notes, component])
    best = np.zeros(int(component.max(initial=-1)) + 1, np.int64)
    best[component[order][::-1]] = order[::-1]
    return best[component]


def count_notes(ledger: pa.Table) -> dict[str, Any]:
    """Return the notes found, kept, and dropped by reason; found = kept + all dropped."""
    noted = ledger.select(["status", "reason", "n_note_ons", "n_notes"])  # a filter copies every column
    read = noted.filter(pc.is_valid(noted.column("n_note_ons")))
    sums = read.group_by(["status", "reason"]).aggregate([("n_note_ons", "sum"), ("n_notes", "sum")]).to_pylist()
    dropped: Counter[str] = Counter()
    for row in sums:
        dropped["unended_notes"] += row["n_note_ons_sum"] - row["n_notes_sum"]
        if row["status"] != "accepted":
            dropped[row["reason"]] += row["n_notes_sum"]
    return {
        "found": sum(row["n_note_ons_sum"] for row in sums),
        "kept": sum(row["n_notes_sum"] for row in sums if row["status"] == "accepted"),
        "dropped": {reason: n for reason, n in sorted(dropped.items()) if n},
    }


def count_losses(ledger: pa.Table) -> dict[str, int]:
    """Return the counts of events that the reader left out or repaired in accepted files, by reason."""
    dropped = ledger.column("dropped").filter(pc.equal(ledger.column("status"), "accepted"))
    losses: Counter[str] = Counter()
    for entry in pc.value_counts(dropped).to_pylist():
        for reason, n in json.loads(entry["values"] or "{}").items():
            losses[reason] += n * entry["counts"]
    return dict(sorted(losses.items()))


def paths_of(ledger: pa.Table, pieces: Sequence[str]) -> dict[str, str]:
    """Return the paths of accepted pieces by their ids; the table has the columns piece, path and status."""
    wanted = pc.is_in(ledger.column("piece"), value_set=pa.array(pieces, pa.string()))
    chosen = ledger.filter(pc.and_(wanted, pc.equal(ledger.column("status"), "accepted")))
    return dict(zip(chosen.column("piece").to_pylist(), chosen.column("path").to_pylist(), strict=True))


def _refuse_unusable(config: DatasetConfig, ledger: pa.Table) -> None:
    reasons = count_reasons(ledger, "rejected")
    n_rejected = reasons.total()
    if n_rejected == ledger.num_rows:
        raise DatasetError(_unusable(ledger, reasons))
    if n_rejected / ledger.num_rows > config.max_reject_share:
        raise DatasetError(
            f"{n_rejected} of {ledger.num_rows} files rejected ({_commonest(reasons)}), more than"
            f" dataset.max_reject_share={config.max_reject_share}"
        )


def count_reasons(ledger: pa.Table, state: str) -> Counter[str]:
    """Return how many files are in a state for each reason."""
    states = ledger.select(["status", "reason"])  # a filter copies every column
    return count_values(states.filter(pc.equal(states.column("status"), state)), "reason")


def count_values(table: pa.Table, name: str) -> Counter[Any]:
    """Return how often each value of a column occurs, in the order of the values; nulls are left out."""
    counted = pc.value_counts(table.column(name).drop_null()).to_pylist()
    return Counter({row["values"]: row["counts"] for row in sorted(counted, key=lambda row: row["values"])})


def _unusable(rows: pa.Table, reasons: Counter[str]) -> str:
    message = f"none of the {rows.num_rows} files found is usable ({_commonest(reasons)})"
    if not reasons:
        return message
    rows = rows.select(["path", "reason", "detail"])
    first = rows.filter(pc.equal(rows["reason"], reasons.most_common(1)[0][0])).slice(0, 1).to_pylist()[0]
    return f"{message}; the first, {first['path']}: {first['detail']}" if first["detail"] else message


def _commonest(reasons: Counter[str]) -> str:
    return ", ".join(f"{n} {reason}" for reason, n in reasons.most_common(4))


def _strings(table: pa.Table, name: str) -> np.ndarray:
    return np.array(pc.fill_null(table.column(name).cast(pa.string()), "").to_pylist(), object)


def _equals(table: pa.Table, name: str, value: str) -> np.ndarray:
    return np.asarray(pc.equal(table.column(name), value).to_numpy(zero_copy_only=False), np.bool_)
