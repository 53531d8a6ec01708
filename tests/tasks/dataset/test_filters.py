"""Filters: what each one leaves out, in which order, and what it says."""

import itertools
import subprocess
import sys
from dataclasses import fields
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tasks.config.dataset import FilterConfig
from tasks.config.serialization import field_paths, from_json, to_json
from tasks.dataset.filters import BOUNDS, COLUMNS, REASONS, Bound, apply_filters
from tasks.errors import ConfigError
from tasks.music.metrics.features import FEATURES

TYPES: dict[str, Any] = {
    "n_notes": pa.int32(),
    "seconds": pa.float64(),
    "programs": pa.list_(pa.uint8()),
    "time_signature_numerator": pa.list_(pa.int32()),
    "time_signature_denominator": pa.list_(pa.int32()),
} | {name: pa.from_numpy_dtype(feature.dtype) for name, feature in FEATURES.items()}

PIECE: dict[str, Any] = {
    "n_notes": 100,
    "seconds": 50.0,
    "programs": [0, 33],
    "time_signature_numerator": [4],
    "time_signature_denominator": [4],
    "n_pitches": 20,
    "pitch_min": 40,
    "pitch_max": 80,
    "max_polyphony": 6,
    "mean_polyphony": 2.5,
    "n_drum_notes": 10,
    "longest_note_seconds": 4.0,
    "most_common_pitch_share": 0.25,
    "notes_per_second": 2.0,
    "n_programs": 2,
}


def table_of(*changes: dict[str, Any]) -> pa.Table:
    rows = [PIECE | change for change in changes]
    return pa.table({name: pa.array([row[name] for row in rows], TYPES[name]) for name in PIECE})


def judge(config: FilterConfig, *changes: dict[str, Any]) -> list[tuple[str, str]]:
    reason, detail = apply_filters(config, table_of(*changes))
    return list(zip(reason.to_pylist(), detail.to_pylist(), strict=True))


# Each fails for the piece above; in the order of REASONS.
CASES: list[tuple[dict[str, Any], str, str]] = [
    ({"min_notes": 101}, "too_few_notes", "100 notes, at least 101 asked (dataset.filters.min_notes)"),
    ({"max_notes": 99}, "too_many_notes", "100 notes, at most 99 asked (dataset.filters.max_notes)"),
    ({"min_seconds": 60.5}, "too_short", "50 seconds, at least 60.5 asked (dataset.filters.min_seconds)"),
    ({"max_seconds": 40.0}, "too_long", "50 seconds, at most 40 asked (dataset.filters.max_seconds)"),
    (
        {"min_notes_per_second": 2.5},
        "too_sparse",
        "2 notes per second, at least 2.5 asked (dataset.filters.min_notes_per_second)",
    ),
    (
        {"max_notes_per_second": 1.5},
        "too_dense",
        "2 notes per second, at most 1.5 asked (dataset.filters.max_notes_per_second)",
    ),
    (
        {"pitch_min": 41},
        "pitch_out_of_range",
        "pitches 40-80, 41-127 asked (dataset.filters.pitch_min, dataset.filters.pitch_max)",
    ),
    (
        {"pitch_max": 79},
        "pitch_out_of_range",
        "pitches 40-80, 0-79 asked (dataset.filters.pitch_min, dataset.filters.pitch_max)",
    ),
    ({"max_polyphony": 5}, "too_polyphonic", "6 notes at once, at most 5 asked (dataset.filters.max_polyphony)"),
    (
        {"max_mean_polyphony": 2.25},
        "too_polyphonic",
        "2.5 notes at once on average, at most 2.25 asked (dataset.filters.max_mean_polyphony)",
    ),
    (
        {"programs_allowed": (0, 1)},
        "program_not_allowed",
        "program 33, only 0, 1 asked (dataset.filters.programs_allowed)",
    ),
    (
        {"programs_refused": (33,)},
        "program_not_allowed",
        "program 33, which is refused (dataset.filters.programs_refused)",
    ),
    ({"drums": "none"}, "drums", "10 of 100 notes are drums, none asked (dataset.filters.drums)"),
    ({"drums": "only"}, "not_only_drums", "10 of 100 notes are drums, all asked (dataset.filters.drums)"),
    (
        {"time_signatures": ("3/4", "6/8")},
        "time_signature_not_allowed",
        "time signature 4/4, only 3/4, 6/8 asked (dataset.filters.time_signatures)",
    ),
    (
        {"min_distinct_pitches": 21},
        "too_few_pitches",
        "20 different pitches, at least 21 asked (dataset.filters.min_distinct_pitches)",
    ),
    (
        {"max_share_of_one_pitch": 0.2},
        "monotone",
        "0.25 of the pitched notes on one pitch, at most 0.2 asked (dataset.filters.max_share_of_one_pitch)",
    ),
    (
        {"max_note_seconds": 3.0},
        "stuck_note",
        "4 seconds for one note, at most 3 asked (dataset.filters.max_note_seconds)",
    ),
]


@pytest.mark.parametrize(("settings", "reason", "detail"), CASES, ids=[str(case[0]) for case in CASES])
def test_each_filter_and_what_it_says(settings: dict[str, Any], reason: str, detail: str) -> None:
    assert judge(FilterConfig(**settings), {}) == [(reason, detail)]


@pytest.mark.parametrize("bound", BOUNDS, ids=lambda bound: bound.setting)
def test_each_bound_takes_its_limit_and_refuses_what_is_beyond(bound: Bound) -> None:
    value, kind = PIECE[bound.column], type(getattr(FilterConfig(), bound.setting))
    beyond = value * (1.5 if bound.setting.startswith("min_") else 0.5)
    for limit, reason in ((value, ""), (beyond, bound.reason)):
        ((found, detail),) = judge(FilterConfig(**{bound.setting: kind(limit)}), {})
        assert found == reason
        assert not reason or detail.endswith(f"(dataset.filters.{bound.setting})")


def test_all_pieces_pass_the_defaults() -> None:
    extreme = {"n_notes": 0, "seconds": 0.0, "n_drum_notes": 0, "n_pitches": 0, "pitch_min": 0, "pitch_max": 0}
    assert judge(FilterConfig(), {}, extreme, {"most_common_pitch_share": 1.0}) == [("", "")] * 3


def test_every_limit_is_itself_allowed() -> None:
    config = FilterConfig(
        min_notes=100, max_notes=100, min_seconds=50.0, max_seconds=50.0, min_notes_per_second=0.1,
        max_notes_per_second=0.1, pitch_min=40, pitch_max=80, max_polyphony=6, max_mean_polyphony=0.1,
        min_distinct_pitches=20, max_share_of_one_pitch=0.3, max_note_seconds=0.1,
    )  # fmt: skip
    row = {
        "notes_per_second": 0.1,  # as float32 it is a little above 0.1
        "mean_polyphony": 0.1,
        "longest_note_seconds": 0.1,
        "most_common_pitch_share": 0.3,
    }
    assert judge(config, row) == [("", "")]


def test_the_first_reason_in_order_wins() -> None:
    tried = []
    for (first, reason, _), (later, other, _) in itertools.combinations(CASES, 2):
        try:
            config = FilterConfig(**(later | first))
        except ValueError:  # both ends of one range cannot fail at once
            continue
        assert judge(config, {})[0][0] == reason
        tried.append((reason, other))
    assert len(tried) > 140
    assert all(REASONS.index(first) <= REASONS.index(other) for first, other in tried)
    assert {case[1] for case in CASES} | {bound.reason for bound in BOUNDS} == set(REASONS) - {"no_drums"}


def test_settings_of_drums() -> None:
    rows = ({"n_drum_notes": 0}, {"n_drum_notes": 10}, {"n_drum_notes": 100})
    assert [reason for reason, _ in judge(FilterConfig(drums="none"), *rows)] == ["", "drums", "drums"]
    only = judge(FilterConfig(drums="only"), *rows)
    assert [reason for reason, _ in only] == ["no_drums", "not_only_drums", ""]
    assert only[0][1] == "0 of 100 notes are drums, all asked (dataset.filters.drums)"


def test_a_piece_of_drums_alone_has_no_pitches_to_judge() -> None:
    drums = {
        "n_drum_notes": 100, "n_pitches": 0, "pitch_min": 0, "pitch_max": 0, "most_common_pitch_share": 0.0,
        "programs": [],
    }  # fmt: skip
    config = FilterConfig(
        pitch_min=21, pitch_max=108, min_distinct_pitches=3, max_share_of_one_pitch=0.5, programs_allowed=(0,)
    )
    assert judge(config, drums, drums | {"n_drum_notes": 99})[0] == ("", "")
    assert judge(config, drums | {"n_drum_notes": 99})[0][0] == "pitch_out_of_range"


def test_time_signatures_of_one_piece() -> None:
    waltz = FilterConfig(time_signatures=("3/4",))
    common = FilterConfig(time_signatures=("4/4", "6/8"))
    stated = {"time_signature_numerator": [6, 5, 3], "time_signature_denominator": [8, 4, 2]}
    silent = {"time_signature_numerator": [], "time_signature_denominator": []}
    unknown = {"time_signature_numerator": None, "time_signature_denominator": None}
    assert judge(common, stated, silent, unknown, {}) == [
        (
            "time_signature_not_allowed",
            "time signature 5/4, only 4/4, 6/8 asked (dataset.filters.time_signatures)",
        ),
        ("", ""),
        ("", ""),
        ("", ""),
    ]
    assert judge(waltz, silent)[0] == (
        "time_signature_not_allowed",
        "no time signature, which means 4/4, only 3/4 asked (dataset.filters.time_signatures)",
    )


def test_a_value_close_to_its_limit_is_shown_in_full() -> None:
    ((_, detail),) = judge(FilterConfig(min_seconds=60.0), {"seconds": 59.99999})
    assert detail == "59.99999 seconds, at least 60 asked (dataset.filters.min_seconds)"
    ((_, detail),) = judge(FilterConfig(max_notes=1_000_000), {"n_notes": 1_000_001})
    assert detail == "1000001 notes, at most 1000000 asked (dataset.filters.max_notes)"


def test_parts_of_tables_in_many_chunks() -> None:
    rng = np.random.default_rng(0)
    rows = [
        {
            "n_notes": int(rng.integers(1, 200)),
            "programs": rng.integers(0, 4, rng.integers(0, 3)).tolist() if k % 5 else None,
            "time_signature_numerator": [int(rng.integers(2, 5))] * (k % 3),
            "time_signature_denominator": [4] * (k % 3),
        }
        for k in range(60)
    ]
    config = FilterConfig(min_notes=50, programs_refused=(3,), time_signatures=("4/4", "3/4"))
    alone = [judge(config, row)[0] for row in rows]
    table = pa.concat_tables([table_of(*rows[a:b]) for a, b in ((0, 20), (20, 21), (21, 60))])
    reason, detail = apply_filters(config, table.slice(7, 40))
    assert list(zip(reason.to_pylist(), detail.to_pylist(), strict=True)) == alone[7:47]
    assert {reason for reason, _ in alone} == {"", "too_few_notes", "program_not_allowed", "time_signature_not_allowed"}


def test_a_table_without_rows_and_one_without_a_column() -> None:
    config = FilterConfig(min_notes=1, programs_allowed=(0,), time_signatures=("3/4",), drums="none", pitch_min=3)
    assert [len(column) for column in apply_filters(config, table_of())] == [0, 0]
    bare = table_of({}).select(["n_notes"])
    assert apply_filters(FilterConfig(min_notes=1), bare)[0].to_pylist() == [""]
    with pytest.raises(ValueError, match="column seconds is missing"):
        apply_filters(FilterConfig(min_seconds=1.0), bare)
    assert set(COLUMNS) <= set(PIECE)


def test_a_hundred_thousand_rows_take_no_time_for_each() -> None:
    table = table_of(*[{"n_notes": k} for k in range(100)])
    table = pa.concat_tables([table] * 1000)
    reason, _ = apply_filters(FilterConfig(min_notes=50, time_signatures=("3/4",)), table)
    assert reason.value_counts().to_pylist() == [
        {"values": "too_few_notes", "counts": 50_000},
        {"values": "time_signature_not_allowed", "counts": 50_000},
    ]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"min_notes": 5, "max_notes": 4}, "min_notes=5 is above max_notes=4"),
        ({"min_seconds": 5, "max_seconds": 4}, "min_seconds=5.0 is above max_seconds=4.0"),
        ({"min_notes_per_second": 5, "max_notes_per_second": 4}, "min_notes_per_second=5.0 is above"),
        ({"min_notes": -1}, "dataset.filters: min_notes=-1 is below 0"),
        ({"max_note_seconds": float("inf")}, "max_note_seconds=inf is not a finite number"),
        ({"pitch_min": 61, "pitch_max": 60}, "pitch_min=61 is above pitch_max=60"),
        ({"pitch_max": 128}, "pitch_max=128 is above 127"),
        ({"max_share_of_one_pitch": 0}, "max_share_of_one_pitch=0 is not above 0"),
        ({"min_distinct_pitches": 129}, "min_distinct_pitches=129 is above 128"),
        ({"programs_allowed": [128]}, "programs_allowed: 128 is above 127"),
        ({"programs_allowed": [1, 2], "programs_refused": [2]}, "programs [2] are in programs_allowed and in"),
        ({"time_signatures": ["4/5"]}, "time_signatures: '4/5' is not like 4/4"),
        ({"time_signatures": ["256/4"]}, "time_signatures: '256/4' is not like 4/4"),
        ({"drums": "some"}, "drums"),
        ({"min_note": 5}, "unknown key 'min_note'; known here: min_notes"),
    ],
)
def test_impossible_settings_are_refused_by_name(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_json(FilterConfig, values, "dataset.filters")
    assert said in str(caught.value)


def test_the_config_goes_through_json() -> None:
    config = FilterConfig(min_notes=8, programs_allowed=(0, 1), time_signatures=("4/4",), drums="none")
    assert from_json(FilterConfig, to_json(config)) == config
    assert field_paths(FilterConfig) == [field.name for field in fields(FilterConfig)]


def test_settings_are_known_without_pyarrow() -> None:
    code = "import sys, tasks.config.dataset; print(sorted({'pyarrow', 'ray', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
