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
        end = f" {self.unit}, at {'least' if is_minimum else 'most'} {str(limit).removesuffix('.0')} asked"
        shown = _shown(values, limit)
        judged.note(
            self.reason,
            np.flatnonzero(failed),
            lambda rows: _glued(shown(rows), f"{end} {judged.setting(self.setting)}"),
        )


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
    judged = _Judged(table, place)
    for judge in _FILTERS:
        judge(judged, config)
    return judged.finish()


class _Judged:
    """What is known of each row so far: the first reason that was found, and its detail."""

    def __init__(self, table: "pa.Table", place: str) -> None:
        self._table, self._place = table, place
        self._reason = np.zeros(table.num_rows, np.int8)  # 0: none; otherwise 1 + its place in REASONS
        self._found: list[tuple[NDArray[np.int64], Any]] = []  # rows, and their details

    def column(self, name: str) -> NDArray[Any]:
        """Return a column of numbers."""
        return self._of_table(name).to_numpy()

    def flat_list(self, name: str) -> "tuple[NDArray[Any], NDArray[np.int64]]":
        """Return the values of a column of lists, and the row of each."""
        import pyarrow.compute as pc

        lists: Any = self._of_table(name).combine_chunks()
        return lists.flatten().to_numpy(zero_copy_only=False), pc.list_parent_indices(lists).to_numpy()  # type: ignore[attr-defined]

    @property
    def is_pitched(self) -> NDArray[np.bool_]:
        return self.column("n_drum_notes") < self.column("n_notes")

    def note(
        self, reason: RejectReason, rows: NDArray[np.int64], details: "Callable[[NDArray[np.int64]], Any]"
    ) -> None:
        """Note the reason for those of `rows` that have none yet; `details` words them."""
        rows = rows[self._reason[rows] == 0]
        if len(rows):
            self._reason[rows] = 1 + REASONS.index(reason)
            self._found.append((rows, details(rows)))

    def setting(self, name: str) -> str:
        return f"({self._place}.{name})"

    def finish(self) -> "tuple[pa.StringArray, pa.StringArray]":
        import pyarrow as pa

        names = pa.array(["", *REASONS])
        rows = np.concatenate([np.flatnonzero(self._reason == 0), *(rows for rows, _ in self._found)])
        kept = pa.repeat("", int(np.sum(self._reason == 0)))
        details = pa.chunked_array([kept, *(details for _, details in self._found)], pa.string()).combine_chunks()
        back = np.empty(len(rows), np.int64)
        back[rows] = np.arange(len(rows))
        return names.take(pa.array(self._reason)), details.take(pa.array(back))

    def _of_table(self, name: str) -> "pa.ChunkedArray":
        if name not in self._table.column_names:
            raise ValueError(f"column {name} is missing; it is needed by the filters, which read {', '.join(COLUMNS)}")
        return self._table.column(name)


def _judge_pitches(judged: _Judged, config: FilterConfig) -> None:
    if (config.pitch_min, config.pitch_max) == (0, 127):
        return
    low, high, is_pitched = judged.column("pitch_min"), judged.column("pitch_max"), judged.is_pitched
    failed = is_pitched & ((low < config.pitch_min) | (high > config.pitch_max))
    end = (
        f", {config.pitch_min}-{config.pitch_max} asked {judged.setting('pitch_min')[:-1]},"
        f" {judged.setting('pitch_max')[1:]}"
    )
    judged.note(
        RejectReason.PITCH_OUT_OF_RANGE,
        np.flatnonzero(failed),
        lambda rows: _glued("pitches ", low[rows].astype(str), "-", high[rows].astype(str), end),
    )


def _judge_programs(judged: _Judged, config: FilterConfig) -> None:
    for setting, numbers in (
        ("programs_allowed", config.programs_allowed),
        ("programs_refused", config.programs_refused),
    ):
        if not numbers:
            continue
        programs, row = judged.flat_list("programs")
        failed = np.isin(programs, numbers, invert=setting == "programs_allowed")
        if setting == "programs_allowed":
            end = f", only {_listed(numbers)} asked {judged.setting(setting)}"
        else:
            end = f", which is refused {judged.setting(setting)}"
        _note_first(judged, RejectReason.PROGRAM_NOT_ALLOWED, row[failed], programs[failed], "program ", end)


def _judge_drums(judged: _Judged, config: FilterConfig) -> None:
    if config.drums == "any":
        return
    n_drums, n_notes = judged.column("n_drum_notes"), judged.column("n_notes")
    end = f" notes are drums, {'none' if config.drums == 'none' else 'all'} asked {judged.setting('drums')}"

    def details(rows: NDArray[np.int64]) -> Any:
        return _glued(n_drums[rows].astype(str), " of ", n_notes[rows].astype(str), end)

    if config.drums == "none":
        judged.note(RejectReason.DRUMS, np.flatnonzero(n_drums > 0), details)
    else:
        judged.note(RejectReason.NO_DRUMS, np.flatnonzero(n_drums == 0), details)
        judged.note(RejectReason.NOT_ONLY_DRUMS, np.flatnonzero(n_drums < n_notes), details)


def _judge_time_signatures(judged: _Judged, config: FilterConfig) -> None:
    if not config.time_signatures:
        return
    allowed = [_signature_key(*(int(number) for number in text.split("/"))) for text in config.time_signatures]
    numerator, row = judged.flat_list("time_signature_numerator")
    denominator, _ = judged.flat_list("time_signature_denominator")
    keys = _signature_key(numerator.astype(np.int64), denominator.astype(np.int64))
    end = f", only {_listed(config.time_signatures)} asked {judged.setting('time_signatures')}"
    reason = RejectReason.TIME_SIGNATURE_NOT_ALLOWED
    failed = ~np.isin(keys, allowed)
    names = {key: f"{key >> 32}/{key & 0xFFFFFFFF}" for key in np.unique(keys[failed]).tolist()}
    _note_first(judged, reason, row[failed], keys[failed], "time signature ", end, names)
    if _signature_key(4, 4) not in allowed:
        n_rows = len(judged.column("n_notes"))
        silent = np.flatnonzero(np.bincount(row, minlength=n_rows) == 0)
        text = f"no time signature, which means 4/4{end}"
        judged.note(reason, silent, lambda rows: _glued(np.full(len(rows), text)))


def _note_first(
    judged: _Judged,
    reason: RejectReason,
    rows: NDArray[np.int64],
    values: NDArray[Any],
    start: str,
    end: str,
    names: dict[int, str] | None = None,
) -> None:
    """Note a reason for the rows of list entries, each with its first entry; rows rise."""
    rows, first = np.unique(rows, return_index=True)
    value_of = dict(zip(rows.tolist(), values[first].tolist(), strict=True)) if len(rows) else {}

    def details(chosen: NDArray[np.int64]) -> Any:
        shown = [value_of[row] for row in chosen.tolist()]
        return _glued(start, np.array([names[value] if names else str(value) for value in shown]), end)

    judged.note(reason, rows, details)


def _shown(values: NDArray[Any], limit: float) -> Callable[[NDArray[np.int64]], Any]:
    """Return what words the values of rows: three digits after the point, all where three would show the limit."""
    import pyarrow as pa
    import pyarrow.compute as pc

    def word(rows: NDArray[np.int64]) -> Any:
        if values.dtype.kind != "f":
            return pa.array(values[rows]).cast(pa.string())
        full = values[rows]
        exact = pa.array(full).cast(pa.string())
        rounded = np.round(full.astype(np.float64), 3)
        is_close = pa.array(rounded == round(float(limit), 3))
        return pc.if_else(is_close, exact, pa.array(rounded).cast(pa.string()))  # type: ignore[attr-defined]

    return word


def _glued(*parts: Any) -> Any:
    """Join texts and arrays of texts, row by row."""
    import pyarrow as pa
    import pyarrow.compute as pc

    arrays = [part if isinstance(part, str | pa.Array) else pa.array(part, pa.string()) for part in parts]
    return pc.binary_join_element_wise(*arrays, "")  # type: ignore[attr-defined]


def _signature_key(numerator: Any, denominator: Any) -> Any:
    return (numerator << 32) | denominator


def _listed(values: Sequence[int | str]) -> str:
    return ", ".join(str(value) for value in values)


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
