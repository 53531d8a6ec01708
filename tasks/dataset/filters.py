"""Filters of readable pieces: each rejected piece gets one reason and a sentence with value and limit.

This file imports pyarrow only when it filters.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tasks.config.dataset import FilterConfig
from tasks.errors import RejectReason

if TYPE_CHECKING:
    import pyarrow as pa

_UNLIMITED = {field.name: field.default for field in fields(FilterConfig)}


@dataclass(frozen=True, slots=True)
class Bound:
    """A filter on one figure."""

    reason: RejectReason
    column: str  # the figure: a column of song shards, or one of `FEATURES`
    setting: str  # `min_...` or `max_...`, the limit; its default is no limit
    unit: str  # of the figure, in the detail
    of_pitched: bool = False  # drum-only pieces stay

    def __call__(self, judged: "_Judged", config: FilterConfig) -> None:
        limit = getattr(config, self.setting)
        if limit == _UNLIMITED[self.setting]:
            return
        values, is_minimum = judged.column(self.column), self.setting.startswith("min_")
        # The limit gets the column's type, because 0.1 as float32 is above 0.1.
        held = values.dtype.type(limit) if values.dtype.kind == "f" else limit
        failed = values < held if is_minimum else values > held
        if self.of_pitched:
            failed = failed & judged.is_pitched
        end = f"{self.unit}, at {'least' if is_minimum else 'most'} {_shown(limit)} asked"
        place = judged.setting(self.setting)
        judged.note(self.reason, failed, lambda row: f"{_shown(values[row], limit)} {end} {place}")


def apply_filters(config: FilterConfig, table: "pa.Table") -> "tuple[pa.StringArray, pa.StringArray]":
    """Return the reason and the detail of the first filter that each piece fails, empty for a piece that stays.

    Args:
        table: one row for each piece, with those of `COLUMNS` that the settings need; a null list is empty.
    Raises:
        ValueError: a column is missing.
    """
    import pyarrow as pa

    judged = _Judged(table)
    for judge in _FILTERS:
        judge(judged, config)
    return pa.array(judged.reason, pa.string()), pa.array(judged.detail, pa.string())


class _Judged:
    """A table with the reason and the detail found for each row so far."""

    def __init__(self, table: "pa.Table") -> None:
        self._table = table
        self.reason, self.detail = np.full((2, table.num_rows), "", object)

    def column(self, name: str) -> NDArray[Any]:
        return self._of_table(name).to_numpy()

    def flat_list(self, name: str) -> "tuple[NDArray[Any], NDArray[np.int64]]":
        """Return the values of a list column, and the row of each."""
        import pyarrow.compute as pc

        lists: Any = self._of_table(name).combine_chunks()
        return lists.flatten().to_numpy(zero_copy_only=False), pc.list_parent_indices(lists).to_numpy()

    @property
    def is_pitched(self) -> NDArray[np.bool_]:
        return self.column("n_drum_notes") < self.column("n_notes")

    def note(self, reason: RejectReason, failed: NDArray[np.bool_], words: Callable[[int], str]) -> None:
        """Record the reason for the failed rows that have none yet; `words` returns the detail of a row."""
        rows = np.flatnonzero(failed & (self.reason == ""))
        self.reason[rows] = str(reason)
        self.detail[rows] = [words(row) for row in rows.tolist()]

    def note_entries(
        self, reason: RejectReason, rows: NDArray[np.int64], values: Sequence[Any], start: str, end: str
    ) -> None:
        """Record the reason for the rows of list entries; the detail names the first entry of a row."""
        first = dict(zip(rows.tolist()[::-1], values[::-1], strict=True))
        failed = np.zeros(len(self.reason), np.bool_)
        failed[rows] = True
        self.note(reason, failed, lambda row: f"{start} {first[row]}, {end}")

    def setting(self, *names: str) -> str:
        return f"({', '.join(f'dataset.filters.{name}' for name in names)})"

    def _of_table(self, name: str) -> "pa.ChunkedArray":
        if name not in self._table.column_names:
            raise ValueError(f"column {name} is missing; it is needed by the filters, which read {', '.join(COLUMNS)}")
        return self._table.column(name)


def _judge_pitches(judged: _Judged, config: FilterConfig) -> None:
    if (config.pitch_min, config.pitch_max) == (0, 127):
        return
    low, high = judged.column("pitch_min"), judged.column("pitch_max")
    failed = judged.is_pitched & ((low < config.pitch_min) | (high > config.pitch_max))
    end = f"{config.pitch_min}-{config.pitch_max} asked {judged.setting('pitch_min', 'pitch_max')}"
    judged.note(RejectReason.PITCH_OUT_OF_RANGE, failed, lambda row: f"pitches {low[row]}-{high[row]}, {end}")


def _judge_programs(judged: _Judged, config: FilterConfig) -> None:
    only = f"only {', '.join(map(str, config.programs_allowed))} asked"
    for setting, end in (("programs_allowed", only), ("programs_refused", "which is refused")):
        if numbers := getattr(config, setting):
            programs, row = judged.flat_list("programs")
            failed = np.isin(programs, numbers, invert=setting == "programs_allowed")
            end = f"{end} {judged.setting(setting)}"  # noqa: PLW2901
            judged.note_entries(
                RejectReason.PROGRAM_NOT_ALLOWED, row[failed], programs[failed].tolist(), "program", end
            )


def _judge_drums(judged: _Judged, config: FilterConfig) -> None:
    if config.drums == "any":
        return
    n_drums, n_notes = judged.column("n_drum_notes"), judged.column("n_notes")
    end = f"notes are drums, {'none' if config.drums == 'none' else 'all'} asked {judged.setting('drums')}"

    def words(row: int) -> str:
        return f"{n_drums[row]} of {n_notes[row]} {end}"

    if config.drums == "none":
        judged.note(RejectReason.DRUMS, n_drums > 0, words)
    else:
        judged.note(RejectReason.NO_DRUMS, n_drums == 0, words)
        judged.note(RejectReason.NOT_ONLY_DRUMS, n_drums < n_notes, words)


def _judge_time_signatures(judged: _Judged, config: FilterConfig) -> None:
    if not config.time_signatures:
        return
    reason = RejectReason.TIME_SIGNATURE_NOT_ALLOWED
    numerator, row = judged.flat_list("time_signature_numerator")
    denominator, _ = judged.flat_list("time_signature_denominator")
    keys = numerator.astype(np.int64) << 32 | denominator
    allowed = [int(upper) << 32 | int(lower) for upper, _, lower in (s.partition("/") for s in config.time_signatures)]
    end = f"only {', '.join(config.time_signatures)} asked {judged.setting('time_signatures')}"
    failed = ~np.isin(keys, allowed)
    names = [f"{key >> 32}/{key & 0xFFFFFFFF}" for key in keys[failed].tolist()]
    judged.note_entries(reason, row[failed], names, "time signature", end)
    if 4 << 32 | 4 not in allowed:
        is_silent = np.bincount(row, minlength=len(judged.reason)) == 0
        judged.note(reason, is_silent, lambda _: f"no time signature, which means 4/4, {end}")


def _shown(value: Any, limit: float | None = None) -> str:
    """Return a figure with three decimals, or with all if the rounded figure equals the limit."""
    rounded = round(float(value), 3)
    exact = limit is None or rounded == round(float(limit), 3)
    return str(value if exact else rounded).removesuffix(".0")


_FILTERS: tuple[Callable[[_Judged, FilterConfig], None], ...] = (
    Bound(RejectReason.TOO_FEW_NOTES, "n_notes", "min_notes", "notes"),
    Bound(RejectReason.TOO_MANY_NOTES, "n_notes", "max_notes", "notes"),
    Bound(RejectReason.TOO_SHORT, "seconds", "min_seconds", "seconds"),
    Bound(RejectReason.TOO_LONG, "seconds", "max_seconds", "seconds"),
    Bound(RejectReason.TOO_SPARSE, "notes_per_second", "min_notes_per_second", "notes per second"),
    Bound(RejectReason.TOO_DENSE, "notes_per_second", "max_notes_per_second", "notes per second"),
    _judge_pitches,
    Bound(RejectReason.TOO_POLYPHONIC, "max_polyphony", "max_polyphony", "notes at once"),
    Bound(RejectReason.TOO_POLYPHONIC, "mean_polyphony", "max_mean_polyphony", "notes at once on average"),
    _judge_programs,
    _judge_drums,
    _judge_time_signatures,
    Bound(RejectReason.TOO_FEW_PITCHES, "n_pitches", "min_distinct_pitches", "different pitches", of_pitched=True),
    Bound(
        RejectReason.MONOTONE, "most_common_pitch_share", "max_share_of_one_pitch",
        "of the pitched notes on one pitch", of_pitched=True,
    ),
    Bound(RejectReason.STUCK_NOTE, "longest_note_seconds", "max_note_seconds", "seconds for one note"),
)  # fmt: skip
BOUNDS = tuple(judge for judge in _FILTERS if isinstance(judge, Bound))
# In the order of the filters.
REASONS = tuple(reason for reason in RejectReason if "filter" in reason.given_by)
COLUMNS = (*dict.fromkeys(bound.column for bound in BOUNDS), "programs", "n_drum_notes", "pitch_min", "pitch_max")
COLUMNS += ("time_signature_numerator", "time_signature_denominator")
