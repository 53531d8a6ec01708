"""Features against plain counts of the same notes, one at a time."""

import ast
import inspect
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tasks.music.metrics import features
from tasks.music.metrics.features import (
    DRUMS,
    FEATURES,
    NOTES_EDGES,
    SECONDS_EDGES,
    TEMPO_EDGES,
    count_between,
    histograms,
    piece_features,
    tempo_histogram,
)
from tasks.music.notes import NoteBatch
from tests.budget import examples
from tests.builders import DRUMS as DRUM_PART
from tests.builders import make_score

Note = tuple[float, float, int, int, int, bool]  # onset, end, pitch, velocity, program, is_drum


def columns_of(pieces: list[list[Note]]) -> tuple[np.ndarray, ...]:
    offsets = np.cumsum([0, *(len(piece) for piece in pieces)])
    rows = [note for piece in pieces for note in piece]
    types = (np.float64, np.float64, np.uint8, np.uint8, np.uint8, np.bool_)
    return offsets, *(np.array([row[k] for row in rows], kind) for k, kind in enumerate(types))


def batch_columns(*scores: Any) -> tuple[np.ndarray, ...]:
    batch = NoteBatch.joined([score.notes for score in scores])
    return (batch.offsets, batch.onset_seconds, batch.end_seconds, batch.pitch, batch.velocity, batch.program,
            batch.is_drum)  # fmt: skip


def count_by_hand(piece: list[Note]) -> dict[str, float]:
    """Work out every feature slowly; onsets and ends are multiples of 1/8 s, so that sums are exact."""
    pitched = [note for note in piece if not note[5]]
    pitches = Counter(note[2] for note in pitched)
    moments = sorted({note[0] for note in piece} | {note[1] for note in piece})
    spans = [(a, b, sum(n[0] <= a and n[1] >= b for n in piece)) for a, b in pairwise(moments)]
    sounding = sum(b - a for a, b, n in spans if n)
    length = max((note[1] for note in piece), default=0)
    return {
        "n_pitches": len(pitches),
        "pitch_min": min(pitches, default=0),
        "pitch_max": max(pitches, default=0),
        "max_polyphony": max((n for _, _, n in spans), default=0),
        "mean_polyphony": sum((b - a) * n for a, b, n in spans) / sounding if sounding else 0,
        "n_drum_notes": len(piece) - len(pitched),
        "longest_note_seconds": max((note[1] - note[0] for note in piece), default=0),
        "most_common_pitch_share": max(pitches.values()) / len(pitched) if pitched else 0,
        "notes_per_second": len(piece) / length if length else 0,
        "n_programs": len({note[4] for note in pitched}),
    }


NOTES = st.tuples(
    st.integers(0, 40), st.integers(1, 30), st.integers(0, 127), st.integers(1, 127), st.integers(0, 127), st.booleans()
)


def notes_of(rows: list[tuple[int, int, int, int, int, bool]]) -> list[Note]:
    rows = sorted(rows, key=lambda row: (row[0], row[2]))
    return [(on / 8, (on + length) / 8, *rest) for on, length, *rest in rows]  # type: ignore[misc]


@examples(150)
@given(st.lists(st.lists(NOTES, max_size=40), max_size=4))
@example([[], [(0, 1, 0, 1, 0, True)], []])
@example([[(k % 3, 30 - k % 7, k, 1, k, False) for k in range(100)] * 2])  # more at once than the short list holds
def test_features_are_what_slow_counting_finds(rows: list[list[Any]]) -> None:
    pieces = [notes_of(piece) for piece in rows]
    found = piece_features(*columns_of(pieces))
    for place, piece in enumerate(pieces):
        assert {name: float(found[name][place]) for name in FEATURES} == pytest.approx(count_by_hand(piece), rel=1e-6)


@examples(50)
@given(st.lists(st.lists(NOTES, max_size=20), max_size=4))
def test_counts_are_what_slow_counting_finds(rows: list[list[Any]]) -> None:
    pieces = [notes_of(piece) for piece in rows]
    found = histograms(*columns_of(pieces))
    notes = [note for piece in pieces for note in piece]
    voices = [[DRUMS if note[5] else note[4] for note in piece] for piece in pieces]
    expected = {
        "pitch": Counter(note[2] for note in notes if not note[5]),
        "drum_pitch": Counter(note[2] for note in notes if note[5]),
        "velocity": Counter(note[3] for note in notes),
        "program": Counter(voice for piece in voices for voice in piece),
        "program_pieces": Counter(voice for piece in voices for voice in set(piece)),
    }
    for name, counts in expected.items():
        assert {value: n for value, n in enumerate(found[name].tolist()) if n} == counts, name
    assert found["notes"].sum() == found["seconds"].sum() == len(pieces)


def test_a_piece_by_hand() -> None:
    score = make_score(
        [
            (0, 1000, 60, 60),  # C4, 0 to 1 s
            (500, 1000, 64, 80),  # E4, 0.5 to 1.5 s
            (1000, 500, 60, 80),  # C4, 1 to 1.5 s: the first C4 has ended
            (3000, 1000, 36, 40, 1),  # bass drum, 3 to 4 s
        ],
        programs=(7, DRUM_PART),
    )
    found = {name: float(values[0]) for name, values in piece_features(*batch_columns(score)).items()}
    assert found == pytest.approx(
        {
            "n_pitches": 2,
            "pitch_min": 60,
            "pitch_max": 64,
            "max_polyphony": 2,
            "mean_polyphony": 3.5 / 2.5,
            "n_drum_notes": 1,
            "longest_note_seconds": 1,
            "most_common_pitch_share": 2 / 3,
            "notes_per_second": 1,
            "n_programs": 1,
        }
    )


def test_the_columns_have_the_types_that_are_promised() -> None:
    found = piece_features(*columns_of([[(0, 1, 60, 80, 0, False)], []]))
    assert {name: values.dtype for name, values in found.items()} == {n: np.dtype(f.dtype) for n, f in FEATURES.items()}
    assert pa.table(found).num_rows == 2
    assert all(feature.unit and feature.meaning for feature in FEATURES.values())


def test_rounded_seconds_do_not_make_notes_overlap() -> None:
    onset, duration = 0.1, 0.2  # 0.30000000000000004 together
    found = piece_features(*columns_of([[(onset, onset + duration, 60, 80, 0, False), (0.3, 0.5, 62, 80, 0, False)]]))
    assert found["max_polyphony"].tolist() == [1]


def test_a_hundred_thousand_notes_that_never_end_take_no_quadratic_time() -> None:
    n = 100_000
    onset = np.sort(np.tile(np.arange(n // 2) / 1000.0, 2))
    end = np.where(np.arange(n) % 2, 1e4 + onset, onset + 0.0005)  # every other one is short
    byte = np.full(n, 60, np.uint8)
    found = piece_features(np.array([0, n]), onset, end, byte, byte, byte, np.zeros(n, np.bool_))
    assert found["max_polyphony"].tolist() == [n // 2 + 1]


def test_memory_that_may_not_be_written_runs_the_same_code() -> None:
    columns = columns_of([[(0, 1, 60, 80, 0, False), (0.5, 1, 62, 80, 0, True)]])
    frozen = [pa.array(values).to_numpy(zero_copy_only=False) for values in columns]
    assert not frozen[1].flags.writeable
    for one, other in (
        (piece_features(*columns), piece_features(*frozen)),
        (histograms(*columns), histograms(*frozen)),
    ):
        assert all(np.array_equal(one[name], other[name]) for name in one)


def test_parts_of_longer_arrays_and_counts_of_shards() -> None:
    pieces = [[(0, k + 1, 60 + k, 80, k, False)] * (k + 1) for k in range(5)]
    columns = columns_of(pieces)  # type: ignore[arg-type]
    whole, counts = piece_features(*columns), histograms(*columns)
    parts = [(columns[0][a : b + 1], *columns[1:]) for a, b in ((0, 2), (2, 5))]
    for name, values in whole.items():
        assert np.array_equal(np.concatenate([piece_features(*part)[name] for part in parts]), values)
    for name, values in counts.items():
        assert np.array_equal(sum(histograms(*part)[name] for part in parts), values)


def test_no_pieces() -> None:
    columns = columns_of([])
    assert all(len(values) == 0 for values in piece_features(*columns).values())
    assert all(values.sum() == 0 for values in histograms(*columns).values())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({3: np.array([131], np.uint8)}, "pitch 131 to 131 outside 0-127"),
        ({4: np.array([-1])}, "velocity -1 to -1 outside 0-127"),
        ({2: np.zeros(2)}, "1, 2, 1, 1, 1, 1 notes are not of one length"),
        ({0: np.array([0, 2])}, "do not rise within the 1 notes"),
        ({0: np.array([1, 0])}, "do not rise within the 1 notes"),
        ({0: np.array([], np.int64)}, "do not rise within the 1 notes"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change: dict[int, np.ndarray], said: str) -> None:
    columns = [change.get(k, values) for k, values in enumerate(columns_of([[(0, 1, 60, 80, 0, False)]]))]
    with pytest.raises(ValueError, match=said):
        piece_features(*columns)  # type: ignore[arg-type]


def test_edges() -> None:
    for edges in (SECONDS_EDGES, NOTES_EDGES, TEMPO_EDGES):
        assert np.all(np.diff(edges) > 0)
    assert count_between(np.array([-1, 0, 10, 299, 300, 9e9]), TEMPO_EDGES)[[0, 1, -1]].tolist() == [2, 1, 3]
    assert tempo_histogram(np.array([500_000, 500_000, 1_000]))[[12, -1]].tolist() == [2, 1]  # 120, and too fast
    for n in range(1, 400):  # every whole number has a bin, and no bin waits for one in vain
        assert count_between(np.array([n]), NOTES_EDGES).sum() == 1
    assert count_between(np.arange(1, 10**4), NOTES_EDGES)[:20].min() > 0


def test_numba_is_imported_by_the_first_use_alone() -> None:
    tree = ast.parse(inspect.getsource(features))
    assert not [
        node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom) and "numba" in ast.dump(node)
    ]
