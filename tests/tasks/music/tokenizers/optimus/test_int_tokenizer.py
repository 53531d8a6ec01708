"""The integers of Optimus VIRTUOSO: vectors, laws of encoding and decoding, real music where it is present."""

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.music.midi.read_midi import read_midi
from tasks.music.midi.writer import write_midi
from tasks.music.notes import NoteBatch
from tasks.music.score import Score
from tasks.music.tokenizers import base
from tasks.music.tokenizers.base import TokenBatch
from tasks.music.tokenizers.optimus.int_tokenizer import OptimusIntConfig, OptimusIntTokenizer
from tasks.music.transforms import transpose
from tests.budget import examples
from tests.builders import DRUMS, make_score, note_rows, off, on, pedal, smf, track
from tests.conftest import real_data
from tests.test_bench import script

with pytest.MonkeyPatch.context() as patch:
    plain = script("bench_optimus", patch)  # the rules as plain loops

PIANO = OptimusIntTokenizer()
BAND = OptimusIntTokenizer(OptimusIntConfig(instruments=True))
SPLIT = OptimusIntTokenizer(OptimusIntConfig(long_notes="split"))
BAND_SPLIT = OptimusIntTokenizer(OptimusIntConfig(instruments=True, long_notes="split"))
ALL = [PIANO, BAND, SPLIT, BAND_SPLIT]
EXACT_PROGRAMS = (0, 24, 32, 40, 42, 46, 56, 71, 73, DRUMS)  # those that come back as they were
FOUR_NOTES = [(0, 500, 60, 80), (500, 500, 64, 90), (1000, 500, 67, 100), (1500, 1000, 72, 110)]


def encode(*scores: Score, tokenizer: OptimusIntTokenizer = PIANO) -> TokenBatch:
    return tokenizer.encode(NoteBatch.joined([score.notes for score in scores]))


def losses(batch: TokenBatch) -> dict[str, int]:
    return {reason: int(count.sum()) for reason, count in batch.dropped.items() if count.any()}


def full_rows(score: Score, *, sounds: bool = True) -> list[tuple[int, ...]]:
    """Return the notes in one order: onset, duration, pitch and, with sounds, velocity, program, is_drum."""
    notes = score.notes
    columns = [notes.onset, notes.duration, notes.pitch]
    columns += [notes.velocity, notes.program, notes.is_drum] if sounds else []
    return sorted(zip(*(column.tolist() for column in columns), strict=True))


@st.composite
def scores(
    draw: st.DrawFn, grid: int = 1, longest: int = 6000, latest: int = 9000, programs: Sequence[int] = EXACT_PROGRAMS
) -> Score:
    """Scores of some parts with their times, in ms, on a grid; chords, unisons and overlaps are likely."""
    parts = draw(st.lists(st.sampled_from(programs), min_size=1, max_size=4))
    moments = st.integers(0, 12) | st.integers(0, latest // grid)
    lengths = st.integers(1, 40) | st.integers(1, longest // grid) | st.just(min(3540, longest) // grid)
    pitches = st.sampled_from([59, 60, 61, 72]) | st.integers(0, 127)
    row = st.tuples(moments, lengths, pitches, st.sampled_from([80, 81]) | st.integers(1, 127))
    rows = draw(st.lists(st.tuples(row, st.integers(0, len(parts) - 1)), max_size=30))
    return make_score([(a * grid, b * grid, pitch, v, part) for (a, b, pitch, v), part in rows], programs=parts)


# --- vectors


def test_vocabulary() -> None:
    ids = {"<start>": 0, "<separator>": 10, "value_0": 33, "value_60": 93, "value_354": 387, "<end>": 388, "<pad>": 389}
    assert {name: PIANO.token_id(name) for name in ids} == ids
    assert (PIANO.vocab_size, PIANO.start_id, PIANO.end_id, PIANO.pad_id) == (390, 0, 388, 389)
    assert [PIANO.token_id(PIANO.token_name(token)) for token in range(390)] == list(range(390))
    assert PIANO.token_name(9) == "unused_9"
    for token in (-1, 390):
        with pytest.raises(ValueError, match="outside 0-389"):
            PIANO.token_name(token)
    with pytest.raises(ValueError, match="value_355"):
        PIANO.token_id("value_355")


def test_piano_has_four_ids_a_note() -> None:
    batch = encode(make_score(FOUR_NOTES))
    expected = "0  33 83 93 10  83 83 97 10  83 83 100 10  83 133 105 10  388"
    assert batch.ids.tolist() == [int(word) for word in expected.split()]
    assert batch.ids.dtype == np.uint16
    assert (batch.n_notes.tolist(), batch.seconds.tolist(), losses(batch)) == ([4], [2.5], {})
    assert note_rows(PIANO.decode(batch.ids)) == [(onset, length, pitch, 90) for onset, length, pitch, _ in FOUR_NOTES]


def test_the_rule_of_the_original_follows_from_ours() -> None:
    """It wrote the time to the next note: so each time beside the note before, the first note twice, the last never."""
    ids = encode(make_score(FOUR_NOTES)).ids[1:-1].reshape(-1, 4)
    notes = [ids[0, 1:3], *ids[:-1, 1:3]]
    shifted = [[int(group[0]), *note.tolist(), 10] for group, note in zip(ids, notes, strict=True)]
    assert shifted == [[33, 83, 93, 10], [83, 83, 93, 10], [83, 83, 97, 10], [83, 83, 100, 10]]


def test_instruments_have_six_ids_a_note_and_a_row_of_zeros_first() -> None:
    score = make_score([(0, 500, 60, 80, 0), (20, 30, 36, 1, 1), (20, 40, 40, 127, 2)], programs=(40, DRUMS, 33))
    batch = encode(score, tokenizer=BAND)
    expected = "0 0 0 0 0 10  33 83 36 93 113 10  35 37 35 73 160 10  33 36 42 69 34 10  388"
    assert batch.ids.tolist() == [int(word) for word in expected.split()]
    assert losses(batch) == {"program_changed": 1}  # a fingered bass comes back as an acoustic one
    back = BAND.decode(batch.ids)
    assert full_rows(back) == [
        (0, 500, 60, 80, 40, False),
        (20, 30, 36, 1, 0, True),
        (20, 40, 40, 127, 32, False),
    ]
    assert back.n_tracks == 3


def groups_of(score: Score, tokenizer: OptimusIntTokenizer = PIANO) -> list[list[int]]:
    """Return the values of each group."""
    text = encode(score, tokenizer=tokenizer).ids[1:-1].tolist()
    borders = [-1, *(place for place, token in enumerate(text) if token == 10)]
    return [[token - 33 for token in text[first + 1 : last]] for first, last in pairwise(borders)]


def test_silence_before_the_first_note_is_kept() -> None:
    assert groups_of(make_score([(1000, 500, 60, 80)])) == [[100, 50, 60]]


@pytest.mark.parametrize(
    ("milliseconds", "groups"),
    [
        (3540, [[354, 1, 60]]),
        (3550, [[354], [1, 1, 60]]),
        (7080, [[354], [354, 1, 60]]),
        (10_000, [[354], [354], [292, 1, 60]]),
    ],
)
def test_long_gaps_become_rests_and_no_time_is_lost(milliseconds: int, groups: list[list[int]]) -> None:
    score = make_score([(milliseconds, 10, 60, 80)])
    assert groups_of(score) == groups
    batch = encode(score)
    assert losses(batch) == ({"long_gaps_split": 1} if len(groups) > 1 else {})
    assert PIANO.decode(batch.ids).notes.onset.tolist() == [milliseconds]


def test_order_inside_an_onset() -> None:
    chord = [(0, 10, 60, 50, 0), (0, 20, 60, 50, 0), (4, 10, 72, 50, 0), (0, 10, 60, 60, 0), (0, 10, 60, 50, 1)]
    score = make_score([*chord, (0, 10, 99, 50, 2)], programs=(0, 24, DRUMS))
    assert groups_of(score, BAND)[1:] == [
        [0, 1, 0, 72, 50],  # in the same unit, and higher than the rest
        [0, 1, 0, 60, 60],  # then the louder, the longer
        [0, 2, 0, 60, 50],
        [0, 1, 0, 60, 50],
        [0, 1, 1, 60, 50],  # then the next channel
        [0, 1, 9, 99, 50],  # drums last
    ]


def test_long_notes_are_clamped_and_counted() -> None:
    score = make_score([(0, 3540, 60, 80), (0, 3550, 59, 80), (0, 90_000, 58, 80)])
    batch = encode(score)
    assert groups_of(score) == [[0, 354, 60], [0, 354, 59], [0, 354, 58]]
    assert losses(batch) == {"long_notes_clamped": 2}
    assert batch.seconds.tolist() == [3.54]


def test_long_notes_are_split_and_come_back_whole() -> None:
    score = make_score([(0, 8000, 60, 80), (3540, 10, 60, 80), (3540, 100, 72, 80), (4000, 3540, 50, 80)])
    batch = encode(score, tokenizer=SPLIT)
    assert groups_of(score, SPLIT) == [
        [0, 354, 60],
        [354, 10, 72],
        [0, 354, 60],  # what is left of the first note stands before another one of its pitch
        [0, 1, 60],
        [46, 354, 50],
        [308, 92, 60],
        [46, 0, 50],  # just 354 units: it goes on for none
    ]
    assert losses(batch) == {"long_notes_split": 2}
    assert batch.n_notes.tolist() == [4]
    assert batch.seconds.tolist() == [8.0]
    assert full_rows(SPLIT.decode(batch.ids), sounds=False) == full_rows(score, sounds=False)


def test_a_note_of_hours_does_not_fill_a_shard() -> None:
    batch = encode(make_score([(0, 3_600_000, 60, 80)]), tokenizer=SPLIT)
    assert losses(batch) == {"long_notes_split": 1, "long_notes_clamped": 1}
    assert len(batch.ids) == 2 + 4 * 17
    assert SPLIT.decode(batch.ids).notes.duration.tolist() == [16 * 3540]


def test_programs_have_the_channel_of_their_family() -> None:
    channel_of = {
        0: 0,
        13: 0,
        19: 0,
        25: 1,
        33: 2,
        40: 3,
        41: 3,
        42: 4,
        43: 4,
        46: 5,
        47: 2,
        48: 3,
        58: 6,
        64: 7,
        74: 8,
    }
    for program, channel in channel_of.items():
        score = make_score([(0, 10, 60, 80)], programs=(program,))
        assert groups_of(score, BAND)[1][2] == channel, program
        changed = losses(encode(score, tokenizer=BAND)).get("program_changed", 0)
        assert changed == (BAND.decode(encode(score, tokenizer=BAND).ids).notes.program[0] != program)


def test_channels_in_order_of_parts() -> None:
    tokenizer = OptimusIntTokenizer(OptimusIntConfig(instruments=True, channels_by="order"))
    programs = (0, DRUMS, *(24 for _ in range(16)))
    score = make_score([(10 * part, 10, 60, 80, part) for part in range(18)], programs=programs)
    batch = encode(score, make_score([]), score, tokenizer=tokenizer)
    last_alone = make_score([(0, 10, 60, 80, 17)], programs=programs)
    assert encode(score, last_alone, tokenizer=tokenizer).dropped["channels_shared"].tolist() == [2, 0]
    channels = [group[2] for group in groups_of(score, tokenizer)[1:]]
    assert channels == [0, 9, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 15, 15, 15]
    assert batch.dropped["channels_shared"].tolist() == [2, 0, 2]
    assert batch.dropped["program_changed"].tolist() == [15, 0, 15]  # all but piano, drums and the one guitar


@pytest.mark.parametrize(
    ("drums", "mixed", "alone"), [("drop", [60], []), ("keep", [36, 60], [36]), ("if_alone", [60], [36])]
)
def test_drums(drums: Any, mixed: list[int], alone: list[int]) -> None:
    tokenizer = OptimusIntTokenizer(OptimusIntConfig(drums=drums))
    both = make_score([(0, 80, 36, 80, 1), (0, 80, 60, 80, 0)], programs=(0, DRUMS))
    only = make_score([(0, 80, 36, 80)], programs=(DRUMS,))
    batch = encode(both, only, tokenizer=tokenizer)
    pieces = np.split(batch.ids, batch.offsets[1:-1])
    assert [tokenizer.decode(piece).notes.pitch.tolist() for piece in pieces] == [mixed, alone]
    assert (batch.n_notes + batch.dropped["drums"]).tolist() == [2, 1]
    n_kept_drums = [len(mixed) - 1, len(alone)]  # they come back as a piano's
    assert batch.dropped["program_changed"].tolist() == n_kept_drums


def test_instruments_keep_drums_unless_they_are_dropped() -> None:
    both = make_score([(0, 80, 36, 80, 1), (0, 80, 60, 80, 0)], programs=(0, DRUMS))
    for drums, n_notes in (("drop", 1), ("keep", 2), ("if_alone", 2)):
        tokenizer = OptimusIntTokenizer(OptimusIntConfig(instruments=True, drums=drums))  # type: ignore[arg-type]
        assert encode(both, tokenizer=tokenizer).n_notes.tolist() == [n_notes]


def test_the_pedal_holds_notes() -> None:
    notes = [(0, pedal(127)), (10, on(60)), (90, off(60)), (100, pedal(0)), (0, on(62)), (10, off(62))]
    score = read_midi(smf(track(*notes), division=500))  # a tick is 1 ms
    assert groups_of(score) == [[1, 19, 60], [19, 1, 62]]
    assert groups_of(score, OptimusIntTokenizer(OptimusIntConfig(sustain=False)))[0] == [1, 9, 60]


def test_times_round_one_by_one_and_halves_up() -> None:
    assert groups_of(make_score([(4, 1, 60, 80), (15, 10, 60, 80), (26, 8, 60, 80)])) == [
        [0, 1, 60],
        [2, 1, 60],
        [1, 1, 60],
    ]


def test_halves_go_up_however_time_is_counted() -> None:
    score = make_score([(k, 1, 60, 80) for k in range(3000)], tempos=[(0, 450_000)], ticks_per_quarter=30)  # 15 ms each
    onsets = PIANO.decode(encode(score).ids).notes.onset
    assert np.array_equal(onsets, (15 * np.arange(3000) + 5) // 10 * 10)


def test_a_drum_kit_that_comes_back_as_another_is_counted() -> None:
    batch = make_score([(0, 10, 36, 80)], programs=(DRUMS,)).notes
    electronic = replace(batch, program=np.full_like(batch.program, 25))
    assert losses(BAND.encode(batch)) == {}
    assert losses(BAND.encode(electronic)) == {"program_changed": 1}


def test_other_units() -> None:
    tokenizer = OptimusIntTokenizer(OptimusIntConfig(unit_milliseconds=20))
    assert tokenizer.units_per_second == 50
    assert groups_of(make_score([(200, 400, 60, 80)]), tokenizer) == [[10, 20, 60]]
    assert note_rows(tokenizer.decode(encode(make_score([(200, 400, 60, 80)]), tokenizer=tokenizer).ids)) == [
        (200, 400, 60, 90)
    ]


def test_empty_pieces_stand_between_others() -> None:
    one = make_score([(0, 80, 60, 80)])
    batch = encode(make_score([]), one, make_score([]), one, make_score([]))
    assert batch.n_notes.tolist() == [0, 1, 0, 1, 0]
    assert np.diff(batch.offsets).tolist() == [2, 6, 2, 6, 2]
    assert batch.seconds.tolist() == [0, 0.08, 0, 0.08, 0]
    assert np.diff(encode(make_score([]), tokenizer=BAND).offsets).tolist() == [7]
    assert len(encode().ids) == 0


@pytest.mark.parametrize("wrong", [{"unit_milliseconds": 0}, {"unit_milliseconds": 1001}, {"velocity": 0}])
def test_impossible_settings_are_refused(wrong: dict[str, int]) -> None:
    (name, value), *_ = wrong.items()
    with pytest.raises(ValueError, match=f"{name}={value} is outside 1-"):
        OptimusIntConfig(**wrong)  # type: ignore[arg-type]


# --- laws


@examples(60)
@given(st.lists(scores(longest=80_000, programs=(0, 41, 120, DRUMS)), min_size=1, max_size=3))
def test_encoding_is_its_definition(pieces: list[Score]) -> None:
    batch = NoteBatch.joined([score.notes for score in pieces])
    for tokenizer in ALL:
        assert tokenizer.encode(batch).ids.tolist() == plain.plain_int(batch, tokenizer)


@examples(100)
@given(scores(grid=10, longest=3540))
def test_nothing_of_a_band_is_lost_on_the_grid(score: Score) -> None:
    for tokenizer in (BAND, BAND_SPLIT):
        batch = encode(score, tokenizer=tokenizer)
        assert not {"drums", "program_changed", "channels_shared", "long_notes_clamped"} & set(losses(batch))
        assert full_rows(tokenizer.decode(batch.ids)) == full_rows(score)


@examples(100)
@given(scores(grid=10, longest=16 * 3540))
def test_split_notes_come_back_whole(score: Score) -> None:
    batch = encode(score, tokenizer=BAND_SPLIT)
    assert full_rows(BAND_SPLIT.decode(batch.ids)) == full_rows(score)
    assert batch.dropped["long_notes_split"].sum() == np.count_nonzero(score.notes.duration >= 3540)


@given(scores(grid=10, longest=3540, programs=(0,)))
def test_nothing_but_velocity_is_lost_of_a_piano(score: Score) -> None:
    for tokenizer in (PIANO, SPLIT):
        batch = encode(score, tokenizer=tokenizer)
        assert full_rows(tokenizer.decode(batch.ids), sounds=False) == full_rows(score, sounds=False)


@given(scores(longest=80_000, programs=(0, 41, 120, DRUMS)))
def test_every_note_is_encoded_or_counted(score: Score) -> None:
    for tokenizer in ALL:
        batch = encode(score, tokenizer=tokenizer)
        back = tokenizer.decode(batch.ids)
        assert batch.n_notes[0] + batch.dropped["drums"][0] == len(score.notes.pitch)
        assert len(back.notes.pitch) == batch.n_notes[0]
        assert not back.dropped
        assert batch.seconds[0] == pytest.approx(back.notes.end_seconds.max(initial=0))


@given(scores(longest=80_000))
def test_decoding_then_encoding_is_the_identity(score: Score) -> None:
    for tokenizer in ALL:
        ids = encode(score, tokenizer=tokenizer).ids
        assert np.array_equal(encode(tokenizer.decode(ids), tokenizer=tokenizer).ids, ids)


@given(st.lists(scores(), min_size=1, max_size=4), st.integers(1, 40))
def test_a_piece_has_the_same_tokens_in_any_company(pieces: list[Score], block: int) -> None:
    for tokenizer in (PIANO, BAND_SPLIT):
        together = encode(*pieces, tokenizer=tokenizer)
        alone = np.concatenate([encode(piece, tokenizer=tokenizer).ids for piece in pieces])
        assert np.array_equal(together.ids, alone)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(base, "BLOCK_NOTES", block)
            in_blocks = encode(*pieces, tokenizer=tokenizer)
        assert np.array_equal(in_blocks.ids, alone)
        assert np.array_equal(in_blocks.offsets, together.offsets)
        assert np.array_equal(in_blocks.seconds, together.seconds)


@given(scores(longest=80_000, latest=20_000))
def test_the_grammar_accepts_all_that_encode_yields(score: Score) -> None:
    for tokenizer in ALL:
        ids = encode(score, tokenizer=tokenizer).ids
        assert tokenizer.grammar.first_violation([*ids.tolist(), 389, 389]) is None  # padding may follow


@given(scores(), st.integers(-80, 80))
def test_transposing_ids_is_transposing_notes(score: Score, semitones: int) -> None:
    for tokenizer in (BAND, BAND_SPLIT, OptimusIntTokenizer(OptimusIntConfig(drums="drop"))):
        batch = score.notes
        if tokenizer.config.drums == "drop":
            batch = batch.where(~batch.is_drum)
        moved, fits = transpose(batch, semitones)
        ids = tokenizer.transpose_ids(tokenizer.encode(batch).ids, semitones)
        assert (ids is not None) == fits[0]
        if ids is not None:
            assert ids.dtype == np.uint16
            assert np.array_equal(ids, tokenizer.encode(moved).ids)


@given(st.lists(st.sampled_from([0, 10, 33, 34, 42, 49, 93, 160, 161, 387]) | st.integers(0, 389), max_size=200))
def test_whatever_a_model_writes_becomes_a_score(ids: list[int]) -> None:
    for tokenizer in ALL:
        score = tokenizer.decode(ids)
        assert np.all(score.notes.duration >= 10)
        assert len(score.notes.pitch) == 0 or len(read_midi(write_midi(score)).notes.pitch) == len(score.notes.pitch)
        again = encode(score, tokenizer=tokenizer)
        assert tokenizer.grammar.first_violation(again.ids) is None
        tokenizer.transpose_ids(ids, 3)


def write_by_grammar(tokenizer: Any, n: int, seed: int) -> list[list[int]]:
    """Return texts of even chances among all ids that the sampler's own tables allow."""
    import torch  # the sampler's; the tests of the encodings alone need none of it

    from models.sampling.grammar_mask import GrammarRows, GrammarTables

    torch.manual_seed(seed)
    rows = GrammarRows(GrammarTables.from_numpy(tokenizer.grammar, max_open=100), n)
    texts = []
    for _ in range(400):
        chances = (~rows.forbidden(n)).double()
        assert bool(chances.sum(dim=1).all()), "a state without a way on"
        ids = torch.multinomial(chances, 1)[:, 0]
        rows.advance(ids)
        texts.append(ids)
    return torch.stack(texts, dim=1).tolist()


@pytest.mark.parametrize("tokenizer", ALL, ids=["piano", "band", "split", "band_split"])
def test_all_that_the_grammar_allows_is_well_formed(tokenizer: OptimusIntTokenizer) -> None:
    for ids in write_by_grammar(tokenizer, 8, seed=1):
        whole = ids if 388 in ids else ids[: len(ids) - ids[::-1].index(10)]
        back = tokenizer.decode(whole)
        assert back.dropped == {}  # no malformed group, no pitch above 127
        if tokenizer.config.long_notes == "clamp" and tokenizer.config.instruments:
            n_groups = whole.count(10) - 1 - sum(pair == (387, 10) for pair in pairwise(whole))
            assert len(back.notes.pitch) == n_groups


# --- decoding and the grammar by hand


@pytest.mark.parametrize(
    ("ids", "notes", "dropped"),
    [
        ([], [], {}),
        ([0, 388, 389], [], {}),
        ([0, 33, 34, 93, 10, 43, 34, 94], [(0, 10, 60, 90), (100, 10, 61, 90)], {}),  # the last without separator
        ([0, 33, 34, 93, 10, 43, 34], [(0, 10, 60, 90)], {"malformed_groups": 1}),
        ([33, 34, 93, 94, 10, 43, 35, 94, 10], [(100, 20, 61, 90)], {"malformed_groups": 1}),
        ([43, 34, 161, 10, 43, 34, 93, 10], [(200, 10, 60, 90)], {"impossible_notes": 1}),  # a pitch of 128
        ([34, 10, 34, 10, 34, 33, 93, 10], [(30, 10, 60, 90)], {}),  # short rests, and no duration
        ([10, 10, 5, 0, 33, 34, 93, 10, 388, 33, 34, 93, 10], [(0, 10, 60, 90)], {}),
    ],
)
def test_decoding_forgives(ids: list[int], notes: list[tuple[int, ...]], dropped: dict[str, int]) -> None:
    score = PIANO.decode(ids)
    assert note_rows(score) == notes
    assert score.dropped == dropped


def test_ties_need_the_same_voice_and_moment() -> None:
    def durations(*groups: tuple[int, int, int]) -> list[int]:
        ids = [token for group in groups for token in (*(value + 33 for value in group), 10)]
        return (SPLIT.decode(ids).notes.duration // 10).tolist()

    assert durations((0, 354, 60), (354, 5, 60)) == [359]
    assert durations((0, 354, 60), (353, 5, 60)) == [354, 5]
    assert durations((0, 354, 60), (354, 5, 61)) == [354, 5]
    assert durations((0, 353, 60), (353, 5, 60)) == [353, 5]
    assert durations((0, 354, 60), (0, 354, 60), (354, 5, 60), (0, 9, 60)) == [359, 363]


@pytest.mark.parametrize("ids", [[0, 390], [-1]])
def test_ids_outside_the_vocabulary_are_refused(ids: list[int]) -> None:
    for call in (PIANO.decode, lambda ids: PIANO.transpose_ids(ids, 1)):
        with pytest.raises(ValueError, match="outside 0-389"):
            call(ids)


@pytest.mark.parametrize(
    ("tokenizer", "ids", "place"),
    [
        (PIANO, [33], 0),
        (PIANO, [0, 0], 1),
        (PIANO, [0, 10], 1),
        (PIANO, [0, 33, 33], 2),  # no duration
        (SPLIT, [0, 33, 33, 93, 10, 388], None),
        (PIANO, [0, 33, 34, 161], 3),  # a pitch of 128
        (PIANO, [0, 33, 34, 93, 34], 4),  # no separator
        (PIANO, [0, 33, 34, 93, 388], 4),
        (PIANO, [0, 33, 10], 2),  # a rest is as long as can be
        (PIANO, [0, 387, 10, 388], 3),  # and something follows it
        (PIANO, [0, 387, 10, 33], 3),
        (PIANO, [0, 387, 10, 387, 10, 34, 387, 160, 10, 388, 389], None),
        (PIANO, [0, 388, 388], 2),
        (PIANO, [0, 389], 1),
        (BAND, [0, 0, 0, 0, 0, 10, 33, 34, 48, 93, 34, 10, 388], None),
        (BAND, [0, 33], 1),
        (BAND, [0, 0, 0, 0, 0, 10, 33, 34, 49], 8),  # a channel of 16
        (BAND, [0, 0, 0, 0, 0, 10, 33, 34, 48, 93, 33], 10),  # a velocity of 0
        (BAND, [0, 0, 0, 0, 0, 10, 33, 34, 48, 93, 161], 10),
    ],
)
def test_what_the_grammar_forbids(tokenizer: OptimusIntTokenizer, ids: list[int], place: int | None) -> None:
    assert tokenizer.grammar.first_violation(ids) == place


# --- identity of a tokenizer


def test_json_form_comes_back() -> None:
    for tokenizer in ALL:
        form = json.loads(json.dumps(tokenizer.to_json()))
        fields = {name: form[name] for name in OptimusIntConfig.__slots__}
        again = OptimusIntTokenizer(OptimusIntConfig(**fields))
        assert again.to_json() == form
        assert again.digest == tokenizer.digest
    assert len({tokenizer.digest for tokenizer in ALL}) == len(ALL)
    assert len(PIANO.digest) == 64


# --- real music


@pytest.mark.parametrize("source", ["pop909", "asap", "groove", "openmsx", "tegridy-select"])
def test_real_pieces(source: str) -> None:
    paths = sorted((real_data("dev") / source).rglob("*.mid"))[::40]
    pieces = [read_midi(path) for path in paths]
    notes = NoteBatch.joined([score.notes for score in pieces])
    for tokenizer in ALL:
        batch = tokenizer.encode(notes)
        assert batch.ids.tolist() == plain.plain_int(notes, tokenizer)
        assert np.array_equal(batch.n_notes + batch.dropped["drums"], np.diff(notes.offsets))
        for ids in np.split(batch.ids, batch.offsets[1:-1])[:3]:
            assert tokenizer.grammar.first_violation(ids) is None
            assert np.array_equal(encode(tokenizer.decode(ids), tokenizer=tokenizer).ids, ids)
