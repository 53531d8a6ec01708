"""Tokenizers and scores for the tests of `mmm`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tasks.music.notes import NoteBatch
from tasks.music.score import Score
from tasks.music.tokenizers.base import TokenBatch
from tasks.music.tokenizers.mmm.tokenizer import MmmTokenizer
from tasks.music.tokenizers.mmm.vocabulary import MmmConfig
from tests.builders import DRUMS, make_score

CLOSED = MmmTokenizer(MmmConfig(vocabulary_from="all"))
TIED = MmmTokenizer(MmmConfig(vocabulary_from="all", meters=True, across_bars="tie"))
FINE = MmmTokenizer(MmmConfig(vocabulary_from="all", units_per_quarter=12, meters=True, across_bars="tie"))
SHUFFLED = MmmTokenizer(
    MmmConfig(
        vocabulary_from="all", permute_tracks=True, density_bins=6, style="A", genre="B", piece_end=True,
        permutation_seed=3,
    )
)  # fmt: skip
ALL = [CLOSED, TIED, FINE, SHUFFLED]
TICKS = 480  # of a quarter in the scores below; a unit of CLOSED is 120
PROGRAMS = (0, 32, 32, DRUMS)
Rows = Sequence[tuple[int, ...]]


def encode(tokenizer: MmmTokenizer, *scores: Score) -> TokenBatch:
    return tokenizer.encode(NoteBatch.joined([score.notes for score in scores]))


def text(tokenizer: MmmTokenizer, ids: Any) -> str:
    return " ".join(tokenizer.token_name(token) for token in np.asarray(ids).tolist())


def body(tokenizer: MmmTokenizer, score: Score) -> str:
    """Return the text of a score without what stands before its first track and behind its last."""
    words = text(tokenizer, encode(tokenizer, score).ids)
    return words.removeprefix("[SOS] PIECE_START ").removesuffix(" [EOS]")


def score_of(rows: Rows, programs: tuple[int, ...] = (0,), meters: Rows | None = None) -> Score:
    """Return a score of (onset, duration, pitch, track) in units of a sixteenth note."""
    notes = [(onset * 120, duration * 120, pitch, 80, *track) for onset, duration, pitch, *track in rows]
    return make_score(
        notes, programs=programs, ticks_per_quarter=TICKS,
        time_signatures=[(tick * 120, over, under) for tick, over, under in meters or []],
    )  # fmt: skip


def by_track(score: Score) -> list[tuple[int, bool, list[tuple[float, float, int, int]]]]:
    """Return program, drums and notes (onset and end in quarters, pitch, velocity) of each track, sorted."""
    notes, found = score.notes, []
    for track in np.unique(notes.track):
        chosen = notes.track == track
        onset, end = notes.onset[chosen], notes.onset[chosen] + notes.duration[chosen]
        times = (values / score.ticks_per_quarter for values in (onset, end))
        columns = (*times, notes.pitch[chosen], notes.velocity[chosen])
        rows = sorted(zip(*(column.tolist() for column in columns), strict=True))
        found.append((int(notes.program[chosen][0]), bool(notes.is_drum[chosen][0]), rows))
    return sorted(found)


METERS = st.sampled_from([(4, 4), (3, 4), (6, 8), (7, 8), (1, 16), (12, 4), (13, 4), (5, 32), (255, 2)])


@st.composite
def scores(draw: st.DrawFn) -> Score:
    """Scores of up to four parts, with unisons, overlaps, notes between the units, and meters that change anywhere."""
    ticks = draw(st.sampled_from([1, 7, 96, 480]))
    times, lengths = st.integers(0, 20 * ticks), st.integers(1, 6 * ticks)
    notes = st.tuples(times, lengths, st.integers(30, 42), st.integers(1, 127), st.integers(0, 3))
    changes = draw(st.dictionaries(times, METERS, max_size=3))
    return make_score(
        draw(st.lists(notes, max_size=40)), programs=PROGRAMS, ticks_per_quarter=ticks,
        time_signatures=[(tick, *meter) for tick, meter in sorted(changes.items())],
    )  # fmt: skip


@st.composite
def grid_scores(draw: st.DrawFn) -> Score:
    """Scores on the grid: no pitch sounds twice at once on a track, and meters change at bar lines."""
    rows: list[tuple[int, ...]] = []
    for track in draw(st.sets(st.integers(0, 3), min_size=1)):
        for pitch in draw(st.sets(st.integers(0, 127), min_size=1, max_size=3)):
            moments = sorted(draw(st.sets(st.integers(0, 90), min_size=1, max_size=8)))
            ends = [*moments[1:], 100]
            rows += [(a, draw(st.integers(1, b - a)), pitch, track) for a, b in zip(moments, ends, strict=True)]
    meters, tick = [], 0
    for over, under, n_bars in draw(st.lists(st.tuples(st.integers(1, 7), st.sampled_from([4, 8]), st.integers(1, 3)))):
        meters.append((tick, over, under))
        tick += n_bars * over * 16 // under
    return score_of(rows, PROGRAMS, meters)
