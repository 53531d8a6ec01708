"""What the `remi` tokenizer keeps of a score: decoding an encoded one against a definition written note by note."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given

from tasks.music.score import Score
from tasks.music.tokenizers.remi.tokenizer import RemiTokenizer
from tests.budget import examples
from tests.builders import DRUMS
from tests.tasks.music.tokenizers.remi.test_remi import ALL, TOKENIZER, WIDE, encode, note_set, scores


def slow_meters(score: Score, tokenizer: RemiTokenizer) -> tuple[list[tuple[int, int, int]], float]:
    """The definition: (tick, numerator, denominator) of each change on the grid, and the grid's ticks a quarter."""
    vocabulary, found = tokenizer.vocabulary, score.time_signatures
    rows = zip(found.tick.tolist(), found.numerator.tolist(), found.denominator.tolist(), strict=True)
    known = [row for row in rows if tokenizer.config.time_signatures and row[1:] in vocabulary.meters]
    if not known or known[0][0] > 0:
        known = [(0, 4, 4), *known]
    quarter = vocabulary.steps * max(denominator for _, _, denominator in known) / 4
    kept: list[tuple[int, int, int]] = []
    for tick, *meter in known:
        if kept and kept[-1][1:] == tuple(meter):
            continue
        now = int(tick * (quarter / score.ticks_per_quarter))
        if kept:
            begin, numerator, denominator = kept[-1]
            bar = int(quarter * 4 / denominator * numerator)
            now = begin + -(-max(now - begin, 0) // bar) * bar
            if now == begin:
                kept.pop()
        if not kept or kept[-1][1:] != tuple(meter):
            kept.append((now, *meter))
    return kept, quarter


def half_up(value: float) -> int:
    return int(value) + (value - int(value) >= 0.5)


def slow_notes(score: Score, tokenizer: RemiTokenizer) -> list[tuple[int, ...]]:
    """The definition of what is kept: rows of `note_set` on the grid of decoded scores."""
    config, vocabulary = tokenizer.config, tokenizer.vocabulary
    meters, quarter = slow_meters(score, tokenizer)
    scale = quarter / score.ticks_per_quarter
    finest = max(denominator for _, denominator in vocabulary.meters)
    is_mixed = len({denominator for _, _, denominator in meters}) > 1

    def section(tick: int) -> int:
        return sum(begin <= tick for begin, _, _ in meters) - 1

    def grid_begin(index: int) -> int:
        while index and meters[index - 1][2] == meters[index][2]:
            index -= 1
        return meters[index][0]

    kept: dict[tuple[int, int, int], tuple[int, int]] = {}
    place: dict[int, tuple[int, int]] = {}  # tick of the grid -> tick of the decoded score, its ticks a beat
    for onset, duration, pitch, velocity, program in note_set(score):
        is_drum = program == DRUMS and config.drum_pitches
        low, high = (config.drum_pitch_min, config.drum_pitch_max) if is_drum else (config.pitch_min, config.pitch_max)
        if not low <= pitch <= high:
            continue
        tick = half_up(onset * scale)
        if is_mixed:
            index = section(tick)
            step = int(quarter * 4 / meters[index][2]) // vocabulary.steps
            begin = grid_begin(index)
            tick = begin + round((tick - begin) / step) * step
        denominator = meters[section(tick)][2]
        beat = int(quarter * 4 / denominator)
        lengths = [(b * s + p) * beat // s for b, p, s in vocabulary.durations]
        length = max(half_up(duration * scale), 1)
        length = min(lengths, key=lambda ticks: (abs(ticks - length), -ticks))
        played = min(vocabulary.velocities.tolist() or [100], key=lambda level: (abs(level - velocity), -level))
        kept[program, tick, pitch] = min(kept.get((program, tick, pitch), (10**9, 0)), (length, played))
        place[tick] = decoded_tick(tick, meters, quarter, vocabulary.steps, finest), beat
    rows = []
    for (program, tick, pitch), (length, velocity) in kept.items():
        onset, beat = place[tick]
        denominator = meters[section(tick)][2]
        rows.append((onset, length * (vocabulary.steps * finest // denominator) // beat, pitch, velocity, program))
    return sorted(rows)


def decoded_tick(tick: int, meters: list[tuple[int, int, int]], quarter: float, steps: int, finest: int) -> int:
    """Where a tick of the grid is in a decoded score, whose beat of the finest denominator has `steps` ticks."""
    total = 0
    for (begin, numerator, denominator), (end, *_) in pairwise([*meters, (10**12, 4, 4)]):
        beat, beat_decoded = int(quarter * 4 / denominator), steps * finest // denominator
        bars, rest = divmod(min(tick, end) - begin, beat * numerator)
        total += bars * beat_decoded * numerator
        if tick < end:
            return total + rest // (beat // steps) * (beat_decoded // steps)
    raise AssertionError(tick)


@pytest.mark.parametrize("tokenizer", ALL)
@examples(60)
@given(score=scores())
def test_decoding_gives_the_notes_on_the_grid(tokenizer: RemiTokenizer, score: Score) -> None:
    batch = encode(score, tokenizer=tokenizer)
    back = tokenizer.decode(batch.ids)
    assert note_set(back) == slow_notes(score, tokenizer)
    lost = batch.dropped["out_of_range"] + batch.dropped["duplicate"]
    assert (batch.n_notes + lost).tolist() == [len(score.notes.pitch)]
    assert len(back.notes.pitch) == batch.n_notes[0]


@pytest.mark.parametrize("tokenizer", [TOKENIZER, WIDE])  # a rest may hide the bars before a change
@examples(60)
@given(score=scores())
def test_decoding_gives_the_time_signatures_on_the_grid(tokenizer: RemiTokenizer, score: Score) -> None:
    back = tokenizer.decode(encode(score, tokenizer=tokenizer).ids).time_signatures
    meters, quarter = slow_meters(score, tokenizer)
    finest = max(denominator for _, denominator in tokenizer.vocabulary.meters)
    steps = tokenizer.vocabulary.steps
    expected = [(decoded_tick(tick, meters, quarter, steps, finest), *meter) for tick, *meter in meters]
    assert list(zip(back.tick.tolist(), back.numerator.tolist(), back.denominator.tolist(), strict=True)) == expected


@pytest.mark.parametrize("tokenizer", ALL)
@examples(60)
@given(score=scores())
def test_decoding_then_encoding_is_the_identity(tokenizer: RemiTokenizer, score: Score) -> None:
    meters, quarter = slow_meters(score, tokenizer)
    # A time signature that sets the grid and is then left out makes it finer than the positions.
    assume(max(denominator for _, _, denominator in meters) * tokenizer.vocabulary.steps / 4 == quarter)
    ids = encode(score, tokenizer=tokenizer).ids
    back = tokenizer.decode(ids)
    assert np.array_equal(encode(back, tokenizer=tokenizer).ids, ids)
