"""Filters of readable pieces: each piece left out gets one reason and a sentence with value and limit.

Importable without pyarrow: the config names these settings, and `--help` must answer at once.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tasks.config.dataset import FilterConfig

if TYPE_CHECKING:
    import pyarrow as pa

# In the order in which they are tried: the first that fails names the reason.
REASONS = (
    "too_few_notes",
    "too_many_notes",
    "too_short",
    "too_long",
    "too_sparse",
    "too_dense",
    "pitch_out_of_range",
    "too_polyphonic",
    "program_not_allowed",
    "drums",
    "no_drums",
    "not_only_drums",
    "time_signature_not_allowed",
    "too_few_pitches",
    "monotone",
    "stuck_note",
)
# What `apply_filters` reads; the second row is made by `music.features.piece_features`.
COLUMNS = ("n_notes", "seconds", "programs", "time_signature_numerator", "time_signature_denominator")
COLUMNS += ("n_pitches", "pitch_min", "pitch_max", "max_polyphony", "mean_polyphony", "n_drum_notes")
COLUMNS += ("longest_note_seconds", "most_common_pitch_share", "notes_per_second")


def apply_filters(
    config: FilterConfig, table: "pa.Table", place: str = "dataset.filters"
) -> "tuple[pa.StringArray, pa.StringArray]":
    """Judge each piece of a table with the columns `COLUMNS` (others do not matter, nor do those of unused settings).

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
    for name, unit, reasons in (
        ("notes", "notes", REASONS[0:2]),
        ("seconds", "seconds", REASONS[2:4]),
        ("notes_per_second", "notes per second", REASONS[4:6]),
    ):
        column = "n_notes" if name == "notes" else name
        judged.at_least(reasons[0], column, f"min_{name}", getattr(config, f"min_{name}"), unit)
        judged.at_most(reasons[1], column, f"max_{name}", getattr(config, f"max_{name}"), unit)
    _judge_pitches(judged, config)
    judged.at_most("too_polyphonic", "max_polyphony", "max_polyphony", config.max_polyphony, "notes at once")
    judged.at_most(
        "too_polyphonic", "mean_polyphony", "max_mean_polyphony", config.max_mean_polyphony, "notes at once on average"
    )
    _judge_programs(judged, config)
    _judge_drums(judged, config)
    _judge_time_signatures(judged, config)
    if config.min_distinct_pitches:
        judged.at_least(
            "too_few_pitches", "n_pitches", "min_distinct_pitches", config.min_distinct_pitches, "different pitches",
            judged.is_pitched,
        )  # fmt: skip
    if config.max_share_of_one_pitch < 1:
        judged.at_most(
            "monotone", "most_common_pitch_share", "max_share_of_one_pitch", config.max_share_of_one_pitch,
            "of the pitched notes on one pitch",
        )  # fmt: skip
    judged.at_most(
        "stuck_note", "longest_note_seconds", "max_note_seconds", config.max_note_seconds, "seconds for one note"
    )
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

    def at_least(
        self, reason: str, name: str, setting: str, limit: float, unit: str, where: NDArray[np.bool_] | bool = True
    ) -> None:
        if limit:
            values = self.column(name)
            self.fail(reason, (values < _like(values, limit)) & where, (values, unit, "at least", limit), setting)

    def at_most(
        self, reason: str, name: str, setting: str, limit: float, unit: str, where: NDArray[np.bool_] | bool = True
    ) -> None:
        if limit:
            values = self.column(name)
            self.fail(reason, (values > _like(values, limit)) & where, (values, unit, "at most", limit), setting)

    def fail(
        self, reason: str, failed: NDArray[np.bool_], said: tuple[NDArray[Any], str, str, float], setting: str
    ) -> None:
        """Note the reason for rows without one: `<value> <unit>, <at least> <limit> asked (<setting>)`."""
        values, unit, side, limit = said
        shown = _shown(values, limit)
        end = f" {unit}, {side} {str(limit).removesuffix('.0')} asked ({self._place}.{setting})"
        self.note(reason, np.flatnonzero(failed), lambda rows: _glued(shown(rows), end))

    def note(self, reason: str, rows: NDArray[np.int64], details: "Callable[[NDArray[np.int64]], Any]") -> None:
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
        "pitch_out_of_range",
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
        _note_first(judged, "program_not_allowed", row[failed], programs[failed], "program ", end)


def _judge_drums(judged: _Judged, config: FilterConfig) -> None:
    if config.drums == "any":
        return
    n_drums, n_notes = judged.column("n_drum_notes"), judged.column("n_notes")
    end = f" notes are drums, {'none' if config.drums == 'none' else 'all'} asked {judged.setting('drums')}"

    def details(rows: NDArray[np.int64]) -> Any:
        return _glued(n_drums[rows].astype(str), " of ", n_notes[rows].astype(str), end)

    if config.drums == "none":
        judged.note("drums", np.flatnonzero(n_drums > 0), details)
    else:
        judged.note("no_drums", np.flatnonzero(n_drums == 0), details)
        judged.note("not_only_drums", np.flatnonzero(n_drums < n_notes), details)


def _judge_time_signatures(judged: _Judged, config: FilterConfig) -> None:
    if not config.time_signatures:
        return
    allowed = [_signature_key(*(int(number) for number in text.split("/"))) for text in config.time_signatures]
    numerator, row = judged.flat_list("time_signature_numerator")
    denominator, _ = judged.flat_list("time_signature_denominator")
    keys = _signature_key(numerator.astype(np.int64), denominator.astype(np.int64))
    end = f", only {_listed(config.time_signatures)} asked {judged.setting('time_signatures')}"
    reason = "time_signature_not_allowed"
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
    reason: str,
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


def _like(values: NDArray[Any], limit: float) -> Any:
    """Return a limit as the column would hold it, so that 0.1 as float32 is not above 0.1."""
    return values.dtype.type(limit) if values.dtype.kind == "f" else limit


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
