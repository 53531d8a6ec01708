"""Filters of readable pieces: each piece left out gets one reason and a sentence with value and limit.

Importable without pyarrow.
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
    """A filter on one figure: the setting `min_...` or `max_...` is its limit, and the setting's default is none.

    Args:
        column: name of the figure: a column of song shards, or one of `FEATURES`.
        unit: of the figure, in the detail.
        of_pitched: pieces of drums alone stay.
    """

    reason: RejectReason
    column: str
    setting: str
    unit: str
    of_pitched: bool = False

    def __call__(self, judged: "_Judged", config: FilterConfig) -> None:
        limit = getattr(config, self.setting)
        if limit == _UNLIMITED[self.setting]:
            return
        values, is_minimum = judged.column(self.column), self.setting.startswith("min_")
        # As the column holds the limit, so that 0.1 as float32 is not above 0.1.
        held = values.dtype.type(limit) if values.dtype.kind == "f" else limit
        failed = values < held if is_minimum else values > held
        if self.of_pitched:
            failed = failed & judged.is_pitched
        end = f"{self.unit}, at {'least' if is_minimum else 'most'} {_shown(limit)} asked"
        place = judged.setting(self.setting)
        judged.note(self.reason, failed, lambda row: f"{_shown(values[row], limit)} {end} {place}")


def apply_filters(
    config: FilterConfig, table: "pa.Table", place: str = "dataset.filters"
) -> "tuple[pa.StringArray, pa.StringArray]":
    """Judge each piece of a table with the columns `COLUMNS`, of which unused settings need none.

    Args:
        table: one row for each accepted piece; no nulls, but lists may be null for empty.
        place: how details name the config.
    Returns:
        (reason, detail), one entry for each row: the first of `REASONS` that fails, and a sentence such as
        `7 notes, at least 16 asked (dataset.filters.min_notes)`; both empty where the piece stays.
    Raises:
        ValueError: a column that a setting needs is missing.
    """
    import pyarrow as pa

    judged = _Judged(table, place)
    for judge in _FILTERS:
        judge(judged, config)
    return pa.array(judged.reason, pa.string()), pa.array(judged.detail, pa.string())


class _Judged:
    """What is known of each row so far: the first reason that was found, and its detail."""

    def __init__(self, table: "pa.Table", place: str) -> None:
        self._table, self._place = table, place
        self.reason, self.detail = np.full((2, table.num_rows), "", object)

    def column(self, name: str) -> NDArray[Any]:
        return self._of_table(name).to_numpy()

    def flat_list(self, name: str) -> "tuple[NDArray[Any], NDArray[np.int64]]":
        """Return the values of a column of lists, and the row of each."""
        import pyarrow.compute as pc

        lists: Any = self._of_table(name).combine_chunks()
        return lists.flatten().to_numpy(zero_copy_only=False), pc.list_parent_indices(lists).to_numpy()  # type: ignore[attr-defined]

    @property
    def is_pitched(self) -> NDArray[np.bool_]:
        return self.column("n_drum_notes") < self.column("n_notes")

    def note(self, reason: RejectReason, failed: NDArray[np.bool_], words: Callable[[int], str]) -> None:
        """Note the reason for the failed rows that have none yet, with the words for each."""
        rows = np.flatnonzero(failed & (self.reason == ""))
        self.reason[rows] = str(reason)
        self.detail[rows] = [words(row) for row in rows.tolist()]

    def note_entries(
        self, reason: RejectReason, rows: NDArray[np.int64], values: Sequence[Any], start: str, end: str
    ) -> None:
        """Note the reason for the rows of list entries, each with its first entry."""
        first = dict(zip(rows.tolist()[::-1], values[::-1], strict=True))
        failed = np.zeros(len(self.reason), np.bool_)
        failed[rows] = True
        self.note(reason, failed, lambda row: f"{start} {first[row]}, {end}")

    def setting(self, *names: str) -> str:
        return f"({', '.join(f'{self._place}.{name}' for name in names)})"

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
    """Return a figure with three digits after the point, and with all where three would show the limit."""
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
# In the order in which they are tried: the first that fails names the reason.
REASONS = tuple(reason for reason in RejectReason if "filter" in reason.given_by)
COLUMNS = (*dict.fromkeys(bound.column for bound in BOUNDS), "programs", "n_drum_notes", "pitch_min", "pitch_max")
COLUMNS += ("time_signature_numerator", "time_signature_denominator")
