"""The feature vector, how typical a piece is, and the judgement of a batch."""

import itertools
import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.ingest.sources.sample_corpus import write_sample_corpus
from tasks.music.metrics.feature_vector import FEATURES_V1, feature_vectors
from tasks.music.metrics.judgement import judge_pieces, typicality
from tasks.music.metrics.piece_metrics import piece_statistics
from tasks.music.midi.read_midi import read_midi
from tests.builders import make_score

DICE = np.random.default_rng(7)


def batch(n_pieces: int, seed: int, low: int = 48) -> list[dict[str, float]]:
    """Return the statistics of pieces of random notes."""
    dice = np.random.default_rng(seed)
    return [
        piece_statistics(
            make_score(
                [
                    (125 * int(at), 120, low + int(pitch), int(velocity))
                    for at, pitch, velocity in zip(
                        range(40), dice.integers(0, 24, 40), dice.integers(60, 100, 40), strict=True
                    )
                ]
            )
        )
        for _ in range(n_pieces)
    ]


def test_the_first_feature_vector_never_changes() -> None:
    stated = ";".join(f"{f.name},{f.mean},{f.scale},{f.is_log}" for f in FEATURES_V1)
    assert len(FEATURES_V1) == 30
    assert zlib.crc32(stated.encode()) == 3047858432  # a change needs a new version
    assert {feature.name for feature in FEATURES_V1} <= set(piece_statistics(make_score([])))


def test_features_by_hand() -> None:
    piece = dict.fromkeys((feature.name for feature in FEATURES_V1), 0.0) | {"notes_per_second": 9, "pitch_mean": 73}
    vector = dict(zip((feature.name for feature in FEATURES_V1), feature_vectors([piece])[0].tolist(), strict=True))
    assert vector["notes_per_second"] == pytest.approx((math.log(10) - 2.4) / 0.55)
    assert vector["pitch_mean"] == pytest.approx(1)
    assert vector["velocity_mean"] == pytest.approx(-83 / 19)
    assert feature_vectors([]).shape == (0, 30)
    with pytest.raises(ValueError, match="piece 0 lacks 30 of 30 features: notes_per_second"):
        feature_vectors([{}])


def test_real_music_lies_around_the_middle_of_the_features(tmp_path: Path) -> None:
    write_sample_corpus(tmp_path, n_pieces=24)
    vectors = feature_vectors([piece_statistics(read_midi(path)) for path in sorted(tmp_path.rglob("*.mid"))])
    assert len(vectors) >= 24
    assert np.abs(np.median(vectors, axis=0)).max() < 3
    assert np.abs(vectors).max() < 12


def test_typicality_by_hand() -> None:
    held_out = [{"x": float(value), "y": 0.0} for value in range(8)]
    pieces = [{"x": x, "y": y} for x, y in ((3.5, 0), (0.5, 0), (-1, 0), (3.5, 1), (0, 0), (9, 9))]
    # x: F = 4/8, 1/8, 0, 4/8, half of one of 8, all; y: all equal is the middle, anything else outside
    expected = [1, (0.5 + 1) / 2, (0 + 1) / 2, (1 + 0) / 2, (0.25 + 1) / 2, 0]
    assert typicality(pieces, held_out, ["x", "y"]) == pytest.approx(expected)
    with pytest.raises(ValueError, match="needs held-out pieces"):
        typicality(pieces, [], ["x"])


@given(st.lists(st.integers(0, 6), min_size=1, max_size=9), st.lists(st.integers(-1, 7), min_size=1, max_size=4))
def test_typicality_is_what_counting_gives(held_out: list[int], pieces: list[int]) -> None:
    found = typicality([{"x": x} for x in pieces], [{"x": x} for x in held_out], ["x"])
    for value, x in zip(found.tolist(), pieces, strict=True):
        share = sum((y < x) + 0.5 * (y == x) for y in held_out) / len(held_out)
        assert value == pytest.approx(min(1, 4 * min(share, 1 - share)))


def test_real_pieces_are_typical_by_three_quarters() -> None:
    held_out = [{"x": x} for x in DICE.normal(0, 1, 4000)]
    assert typicality([{"x": x} for x in DICE.normal(0, 1, 4000)], held_out, ["x"]).mean() == pytest.approx(
        0.75, abs=0.02
    )


def test_a_judgement_of_pieces_of_one_kind_and_of_others() -> None:
    held_out, alike, higher = batch(30, 1), batch(20, 2), batch(20, 3, low=72)
    judged = judge_pieces(alike, held_out, n_resamples=100)
    assert (judged["n_generated"], judged["n_held_out"]) == (20, 30)
    assert set(judged["metrics"]) == set(held_out[0])
    figures = judged["metrics"]["pitch_mean"]
    mean = np.mean([piece["pitch_mean"] for piece in alike])
    assert figures["generated"]["value"] == pytest.approx(mean)
    assert figures["generated"]["low"] < mean < figures["generated"]["high"]
    assert figures["overlap"]["value"] > 0.6
    assert judged["fd_feat"]["features"] == "v1"
    assert judged["fd_feat"]["value"] < 1.5 * judged["fd_feat"]["chance_high"]
    other = judge_pieces(higher, held_out, n_resamples=100)
    assert other["metrics"]["pitch_mean"]["overlap"]["value"] < 0.01
    assert other["fd_feat"]["low"] > other["fd_feat"]["chance_high"]
    assert len(judged["typicality"]["pieces"]) == 20
    assert judged["typicality"]["generated"]["value"] > other["typicality"]["generated"]["value"]
    assert json.loads(json.dumps(judged, allow_nan=False)) == judged
    assert judge_pieces(alike, held_out, n_resamples=100) == judged


def test_resamples_of_one_set_do_not_depend_on_the_other() -> None:
    alike, held_out = batch(6, 2), batch(9, 1)
    one, two = (judge_pieces(alike, others, n_resamples=40)["metrics"]["pitch_mean"] for others in (held_out, alike))
    assert one["generated"] == two["generated"]


@pytest.mark.parametrize(("n_generated", "n_held_out"), list(itertools.product([0, 1, 2], repeat=2)))
def test_a_judgement_of_hardly_any_pieces(n_generated: int, n_held_out: int) -> None:
    pieces = batch(4, 5)
    judged = judge_pieces(pieces[:n_generated], pieces[2 : 2 + n_held_out], n_resamples=20)
    json.dumps(judged, allow_nan=False)
    has_both = min(n_generated, n_held_out) == 2
    assert (judged["fd_feat"]["value"] is not None) == has_both
    assert bool(judged["fd_feat"].get("reason")) != has_both
    if n_generated + n_held_out:
        figures = judged["metrics"]["pitch_mean"]
        assert (figures["overlap"]["value"] is not None) == has_both
        assert (figures["generated"]["value"] is not None) == (n_generated > 0)
        assert (figures["generated"]["low"] is not None) == (n_generated > 1)
    assert len(judged["typicality"]["pieces"]) == n_generated


def test_pieces_that_cannot_be_judged() -> None:
    with pytest.raises(ValueError, match="held-out piece 1 lacks 1 statistics: y"):
        judge_pieces([{"x": 1, "y": 1}], [{"x": 1, "y": 1}, {"x": 1}])
    with pytest.raises(ValueError, match="y of generated piece 0 is nan, no finite number"):
        judge_pieces([{"x": 1, "y": math.nan}], [{"x": 1, "y": 1}])
    with pytest.raises(ValueError, match="piece 0 lacks 30 of 30 features: notes_per_second"):
        judge_pieces([{"x": 1.0}, {"x": 2.0}], [{"x": 1.0}, {"x": 3.0}])
