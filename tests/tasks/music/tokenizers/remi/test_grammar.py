"""The grammar of the `remi` tokenizer: what it accepts, what it forbids, and that sampling under it goes well."""

import numpy as np
import pytest
from hypothesis import given

from models.sampling.grammar_mask import GrammarRows, GrammarTables
from tasks.music.score import Score
from tasks.music.tokenizers.remi.grammar import FINISHED
from tasks.music.tokenizers.remi.tokenizer import RemiTokenizer
from tasks.music.tokenizers.remi.vocabulary import Kind, RemiConfig
from tests.budget import examples
from tests.tasks.music.tokenizers.remi.test_remi import ALL, FULL, TOKENIZER, encode, first_violation, score_of, scores


def test_a_grammar_too_large_is_refused() -> None:
    wide = RemiConfig(meters=("4/4", *(f"{beats}/4" for beats in range(50, 60))))
    with pytest.raises(ValueError, match="states, limit 32768"):
        RemiTokenizer(wide)


@pytest.mark.parametrize("tokenizer", ALL)
@examples(60)
@given(score=scores())
def test_the_grammar_accepts_all_that_encode_yields(tokenizer: RemiTokenizer, score: Score) -> None:
    ids = encode(score, tokenizer=tokenizer).ids.tolist()
    assert first_violation(tokenizer.grammar, [*ids, tokenizer.pad_id, tokenizer.pad_id]) is None


@pytest.mark.slow
def test_the_grammar_itself_agrees() -> None:
    ids = encode(score_of((0, 480, 60, 80), (480, 60, 36, 80, 3))).ids.tolist()
    assert TOKENIZER.grammar.first_violation(ids) is None
    assert TOKENIZER.grammar.first_violation([*ids[:-1], *ids[3:]]) == first_violation(
        TOKENIZER.grammar, [*ids[:-1], *ids[3:]]
    )


@pytest.mark.parametrize(
    ("written", "place"),
    [
        ("Bar_None", 0),
        ("BOS_None EOS_None", 1),
        ("BOS_None Position_0", 1),
        ("BOS_None Bar_None Position_0", 2),
        ("BOS_None Bar_None TimeSig_4/4 TimeSig_4/4", 3),
        ("BOS_None Bar_None TimeSig_3/4 Position_24", 3),
        ("BOS_None Bar_None TimeSig_12/8 Position_95 EOS_None", 4),
        ("BOS_None Bar_None TimeSig_4/4 Position_0 Pitch_60", 4),
        ("BOS_None Bar_None TimeSig_4/4 Position_0 Program_0 PitchDrum_36", 5),
        ("BOS_None Bar_None TimeSig_4/4 Position_0 Program_-1 Pitch_60", 5),
        ("BOS_None Bar_None TimeSig_4/4 Position_0 Program_-1 Chord_maj", 5),
        ("BOS_None Bar_None TimeSig_4/4 Position_0 Program_0 Chord_maj EOS_None", 6),
        ("BOS_None Bar_None TimeSig_4/4 Position_0 Program_0 Chord_maj Program_0 Chord_maj", 7),
        ("BOS_None Bar_None TimeSig_4/4 Position_0 Program_0 Pitch_60 Duration_1.0.8", 6),
        ("BOS_None Bar_None TimeSig_4/4 Position_0 Program_0 Pitch_60 Velocity_79 EOS_None", 7),
        ("BOS_None Bar_None TimeSig_4/4 Position_9 Program_0 Pitch_60 Velocity_79 Duration_1.0.8 Position_8", 8),
        ("BOS_None Bar_None TimeSig_4/4 EOS_None Bar_None", 4),
        ("BOS_None MASK_None", 1),
    ],
)
def test_the_grammar_forbids(written: str, place: int) -> None:
    assert TOKENIZER.grammar.first_violation([TOKENIZER.token_id(name) for name in written.split()]) == place


@pytest.mark.parametrize("tokenizer", ALL)
def test_every_beginning_can_be_finished(tokenizer: RemiTokenizer) -> None:
    table = tokenizer.grammar.next_state_SV
    follows = np.zeros((len(table), len(table)), np.bool_)
    states, ids = np.nonzero(table >= 0)
    follows[states, table[states, ids]] = True
    reached, finishes = np.zeros(len(table), np.bool_), np.zeros(len(table), np.bool_)
    reached[tokenizer.grammar.start_state] = finishes[FINISHED] = True
    for _ in range(len(table)):
        before = reached.sum() + finishes.sum()
        reached |= follows[reached].any(axis=0)
        finishes |= follows[:, finishes].any(axis=1)
        if reached.sum() + finishes.sum() == before:
            break
    assert finishes[reached].all()
    used = {Kind(kind) for kind in tokenizer.vocabulary.kind_V[(table[reached] >= 0).any(axis=0)].tolist()}
    assert used == {Kind(kind) for kind in np.unique(tokenizer.vocabulary.kind_V).tolist()}


@pytest.mark.parametrize("tokenizer", ALL)
def test_what_the_mask_allows_is_well_formed(tokenizer: RemiTokenizer) -> None:
    rng = np.random.default_rng(7)
    tables = GrammarTables.from_numpy(tokenizer.grammar, max_open=round(4 * tokenizer.units_per_second))
    rows, written = GrammarRows(tables, 8), [list[int]() for _ in range(8)]
    for step in range(400):
        is_allowed = ~rows.forbidden(8).numpy()
        if step == 0:
            assert is_allowed.sum() == 8  # the start alone
        chosen = [int(rng.choice(np.flatnonzero(of_row))) for of_row in is_allowed]
        rows.advance(rows.state_B.new_tensor(chosen))
        for ids, token in zip(written, chosen, strict=True):
            ids.append(token)
    for ids in written:
        body = ids[: ids.index(tokenizer.end_id)] if tokenizer.end_id in ids else ids
        kinds = tokenizer.vocabulary.kind_V[body]
        n_notes = np.count_nonzero(kinds == Kind.DURATION)
        assert len(tokenizer.decode(ids).notes.pitch) == n_notes
        value, position = tokenizer.vocabulary.value_V[body], -1
        for kind, place in zip(kinds.tolist(), value.tolist(), strict=True):
            if kind in (Kind.BAR, Kind.REST):
                position = -1
            elif kind == Kind.POSITION:
                assert position <= place
                position = place


def test_time_of_the_grammar() -> None:
    time = FULL.grammar.time_V
    assert FULL.units_per_second == 16  # positions at 120 quarters a minute
    assert [time[FULL.token_id(name)] for name in ("Bar_None", "Rest_0.1.8", "Rest_12.0.2")] == [32, 1, 96]
    assert np.count_nonzero(time) == 1 + len(FULL.vocabulary.rests)
