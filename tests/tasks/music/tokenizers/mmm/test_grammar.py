"""The grammar of `mmm`, and scores out of whatever a model writes."""

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.music.score import Score
from tasks.music.tokenizers.mmm.tokenizer import MmmTokenizer, words_in
from tasks.music.tokenizers.mmm.vocabulary import MmmConfig
from tests.tasks.music.tokenizers.mmm.mmm_pieces import ALL, CLOSED, TIED, encode, score_of, scores, text


@given(scores(), st.sampled_from(ALL))
def test_the_grammar_accepts_all_that_encode_yields(score: Score, tokenizer: MmmTokenizer) -> None:
    ids = encode(tokenizer, score).ids
    assert tokenizer.grammar.first_violation([*ids.tolist(), 1, 1]) is None
    learned = tokenizer.config.__class__(across_bars=tokenizer.config.across_bars, meters=tokenizer.config.meters)
    learned = MmmTokenizer(learned.with_symbols(words_in(learned, score.notes)))
    assert learned.grammar.first_violation(encode(learned, score).ids) is None
    assert not encode(learned, score).dropped["unknown_words"].any()


@pytest.mark.parametrize(
    ("words", "place"),
    [
        ("PIECE_START", 0),
        ("[SOS] TRACK_START", 1),
        ("[SOS] PIECE_START BAR_START", 2),
        ("[SOS] PIECE_START TRACK_START BAR_START", 3),
        ("[SOS] PIECE_START TRACK_START INST=0 TRACK_END", 4),
        ("[SOS] PIECE_START TRACK_START INST=0 BAR_START NOTE_OFF=60", 5),
        ("[SOS] PIECE_START TRACK_START INST=0 BAR_START NOTE_ON=60 BAR_END", 6),
        ("[SOS] PIECE_START TRACK_START INST=0 BAR_START NOTE_ON=60 NOTE_ON=60", 6),
        ("[SOS] PIECE_START TRACK_START INST=0 BAR_START NOTE_ON=60 NOTE_OFF=60", 6),
        ("[SOS] PIECE_START TRACK_START INST=0 BAR_START TIME_DELTA=12 TIME_DELTA=5", 6),
        ("[SOS] PIECE_START TRACK_START INST=0 BAR_START TIME_DELTA=16 NOTE_ON=60", 6),
        ("[SOS] PIECE_START TRACK_START INST=0 BAR_START BAR_END [EOS]", 6),
        ("[SOS] PIECE_START TRACK_START INST=0 BAR_START BAR_END TRACK_END [EOS] [PAD] [EOS]", 9),
        ("[SOS] [TDR]", 1),
    ],
)
def test_the_grammar_forbids(words: str, place: int) -> None:
    assert CLOSED.grammar.first_violation([CLOSED.token_id(word) for word in words.split()]) == place


@pytest.mark.parametrize(
    ("words", "place"),
    [
        ("BAR_START=3/4 TIME_DELTA=13", 5),
        ("BAR_START=3/4 TIME_DELTA=1 TIE=60", 6),
        ("BAR_START=3/4 NOTE_ON=61 TIE=60", 6),
        ("BAR_START=3/4 TIE=60 TIE=61 BAR_END", 7),
        ("BAR_START=3/4 TIE=60 TIE=61 NOTE_ON=60", 7),
        ("BAR_START=3/4 TIE=60 TIE=61 NOTE_ON=62 TIME_DELTA=12 NOTE_OFF=60 NOTE_OFF=61 NOTE_OFF=62 BAR_END", None),
    ],
)
def test_the_grammar_of_meters_and_ties(words: str, place: int | None) -> None:
    ids = [TIED.token_id(word) for word in f"[SOS] PIECE_START TRACK_START INST=0 {words}".split()]
    assert TIED.grammar.first_violation(ids) == place


@pytest.mark.parametrize("n_tracks", [1, 2, 5])
def test_a_piece_has_just_as_many_tracks_as_are_asked_for(n_tracks: int) -> None:
    grammar = CLOSED.grammar_of_tracks(n_tracks)
    track = "TRACK_START INST=0 BAR_START NOTE_ON=60 TIME_DELTA=4 NOTE_OFF=60 BAR_END TRACK_END"
    for n in (1, 2, 3, 5, 6):
        words = " ".join(["[SOS] PIECE_START", *[track] * n, "[EOS]"]).split()
        wrong = grammar.first_violation([CLOSED.token_id(word) for word in words])
        ends = [place for place, word in enumerate(words) if word == "[EOS]"]
        starts = [place for place, word in enumerate(words) if word == "TRACK_START"]
        assert wrong == (None if n == n_tracks else ends[0] if n < n_tracks else starts[n_tracks])
    with pytest.raises(ValueError, match="n_tracks=0 outside 1-128"):
        CLOSED.grammar_of_tracks(0)


def allowed(tokenizer: MmmTokenizer, state: int, is_open: np.ndarray) -> np.ndarray:
    """Return the ids that may come next."""
    grammar = tokenizer.grammar
    opens, closes = grammar.opens_V, grammar.closes_V
    mask = grammar.next_state_SV[state] >= 0
    mask &= ~((opens >= 0) & is_open[opens]) & ~((closes >= 0) & ~is_open[closes])
    return np.flatnonzero(mask & ~(grammar.needs_all_closed_V & is_open.any()))


@given(st.sets(st.sampled_from([f"TIME_DELTA={units}" for units in range(1, 17)])), st.integers(0, 2**32))
def test_whoever_follows_the_grammar_never_gets_stuck(deltas: set[str], seed: int) -> None:
    config = MmmConfig(across_bars="tie", meters=True, piece_end=True)
    symbols = {*deltas, "NOTE_ON=60", "NOTE_ON=61", "INST=0", "BAR_START=3/8", "BAR_START=4/4"}
    tokenizer, draw = MmmTokenizer(config.with_symbols(symbols)), random.Random(seed)
    state, is_open, ids = 0, np.zeros(128, dtype=np.bool_), list[int]()
    for _ in range(300):
        choice = allowed(tokenizer, state, is_open)
        choice = choice[choice != 0]  # [UNK] says nothing
        assert len(choice)
        token = draw.choice(choice.tolist())
        state = int(tokenizer.grammar.next_state_SV[state, token])
        if tokenizer.grammar.opens_V[token] >= 0:
            is_open[tokenizer.grammar.opens_V[token]] = True
        if tokenizer.grammar.closes_V[token] >= 0:
            is_open[tokenizer.grammar.closes_V[token]] = False
        ids.append(token)
        if token == tokenizer.end_id:
            break
    names = text(tokenizer, ids)
    assert len(tokenizer.decode(ids).notes.pitch) >= names.count("NOTE_ON=")


@pytest.mark.slow
@given(st.sampled_from(ALL), st.data())
def test_whatever_a_model_writes_becomes_a_score(tokenizer: MmmTokenizer, data: st.DataObject) -> None:
    kinds = st.sampled_from(["BAR_START", "BAR_END", "TRACK_START", "TRACK_END", "NOTE_ON=60", "NOTE_OFF=60", "TIE=60"])
    known = kinds.filter(lambda name: name in tokenizer.ids).map(tokenizer.token_id)
    anything = st.integers(0, tokenizer.vocab_size - 1)
    ids = data.draw(st.lists(known | anything, max_size=120))
    score = tokenizer.decode(ids)
    assert np.all(score.notes.duration >= 1)
    assert score.notes.track.max(initial=0) < score.n_tracks
    assert np.all(np.diff(score.time_signatures.tick) > 0)
    assert tokenizer.grammar.first_violation(encode(tokenizer, score).ids) is None


@pytest.mark.parametrize(
    ("words", "notes"),
    [
        ("", []),
        ("NOTE_ON=60", [(0, 1, 60)]),  # before any bar
        ("BAR_START NOTE_ON=60", [(0, 16, 60)]),  # cut off: held to the end of its bar
        ("BAR_START TIME_DELTA=2 NOTE_ON=60 BAR_END", [(2, 16, 60)]),
        ("BAR_START NOTE_ON=60 TIME_DELTA=2 NOTE_ON=60 TIME_DELTA=1 NOTE_OFF=60", [(0, 2, 60), (2, 3, 60)]),
        ("BAR_START NOTE_ON=60 NOTE_OFF=60 NOTE_OFF=60", [(0, 1, 60)]),
        ("BAR_START TIME_DELTA=16 TIME_DELTA=9 NOTE_ON=60 BAR_END BAR_START NOTE_ON=61", [(16, 32, 61), (25, 26, 60)]),
        ("BAR_START NOTE_ON=60 PIECE_END NOTE_ON=61", [(0, 16, 60)]),
        ("BAR_START NOTE_ON=60 [EOS] NOTE_ON=61", [(0, 16, 60)]),
        ("BAR_START BAR_START [PAD] [UNK] NOTE_ON=60 TRACK_START BAR_START NOTE_ON=60", [(0, 16, 60), (16, 32, 60)]),
    ],
)
def test_decoding_forgives(words: str, notes: list[tuple[int, int, int]]) -> None:
    tokenizer = MmmTokenizer(replace(CLOSED.config, piece_end=True))
    found = tokenizer.decode([tokenizer.token_id(word) for word in words.split()])
    ticks = found.ticks_per_quarter // 4
    columns = found.notes.onset // ticks, (found.notes.onset + found.notes.duration) // ticks, found.notes.pitch
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == notes


def test_decoded_tracks_have_their_instruments() -> None:
    words = "PIECE_START TRACK_START INST=32 BAR_START NOTE_ON=40 BAR_END TRACK_END TRACK_START BAR_START NOTE_ON=41"
    words += " BAR_END TRACK_END TRACK_START INST=DRUMS BAR_START NOTE_ON=42 BAR_END"
    score = CLOSED.decode([CLOSED.token_id(word) for word in words.split()])
    assert score.n_tracks == 3
    assert score.notes.track.tolist() == [0, 1, 2]
    assert score.notes.program.tolist() == [32, 0, 0]
    assert score.notes.is_drum.tolist() == [False, False, True]
    assert set(score.notes.velocity.tolist()) == {80}


def test_meters_come_back() -> None:
    score = score_of([(40, 1, 60), (3, 1, 50, 1)], (0, 0), meters=[(0, 3, 4), (24, 6, 8)])
    back = TIED.decode(encode(TIED, score).ids)
    columns = back.time_signatures
    assert (columns.tick // (back.ticks_per_quarter // 4)).tolist() == [0, 24]
    assert columns.numerator.tolist() == [3, 6]
    assert columns.denominator.tolist() == [4, 8]
