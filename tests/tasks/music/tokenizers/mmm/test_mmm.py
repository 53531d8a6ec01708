"""The words of `mmm`: vectors, laws of encoding and decoding, and real music where it is present."""

import importlib.util
import json
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import ConfigError
from tasks.music.midi.read_midi import read_midi
from tasks.music.midi.writer import write_midi
from tasks.music.notes import NoteBatch
from tasks.music.score import Score
from tasks.music.tokenizers import base
from tasks.music.tokenizers.base import TokenBatch
from tasks.music.tokenizers.mmm.tokenizer import MmmTokenizer, words_in
from tasks.music.tokenizers.mmm.vocabulary import MmmConfig
from tasks.music.transforms import transpose
from tasks.music.windows import cut_windows
from tests.builders import DRUMS, make_score
from tests.conftest import REPOSITORY, real_data
from tests.tasks.music.tokenizers.mmm.mmm_pieces import (
    ALL,
    CLOSED,
    FINE,
    SHUFFLED,
    TICKS,
    TIED,
    body,
    by_track,
    encode,
    grid_scores,
    score_of,
    scores,
    text,
)

# --- the vocabulary


def test_special_words_come_first_and_the_rest_is_sorted() -> None:
    config = CLOSED.config.__class__(style="JSFAKES")
    batch = score_of([(0, 4, 60), (6, 2, 58, 1)], (0, DRUMS)).notes
    learned = config.with_symbols(words_in(config, batch))
    tokenizer = MmmTokenizer(learned)
    names = [tokenizer.token_name(token) for token in range(tokenizer.vocab_size)]
    assert names[:5] == ["[UNK]", "[PAD]", "[SOS]", "[EOS]", "[TDR]"]
    assert names[5:] == sorted(names[5:]) == list(learned.vocabulary)
    assert set(names[5:]) == {
        "BAR_END", "BAR_START", "INST=0", "INST=DRUMS", "NOTE_OFF=58", "NOTE_OFF=60", "NOTE_ON=58", "NOTE_ON=60",
        "PIECE_START", "STYLE=JSFAKES", "TIME_DELTA=1", "TIME_DELTA=2", "TIME_DELTA=4", "TIME_DELTA=6", "TRACK_END",
        "TRACK_START",
    }  # fmt: skip
    assert all(tokenizer.token_id(name) == place for place, name in enumerate(names))
    assert (tokenizer.pad_id, tokenizer.start_id, tokenizer.end_id) == (1, 2, 3)
    assert tokenizer.to_json()["vocab_size"] == len(names) == len(set(names))


def test_a_vocabulary_can_be_learned_from_parts_in_any_order() -> None:
    config = MmmConfig()
    one, other = (score_of(rows).notes for rows in ([(0, 3, 60)], [(1, 9, 50), (3, 1, 99)]))
    there, back = words_in(config, one) | words_in(config, other), words_in(config, other) | words_in(config, one)
    assert config.with_symbols(sorted(there)) == config.with_symbols(sorted(back, reverse=True))
    words = set(config.with_symbols(["NOTE_ON=7"]).vocabulary)
    assert {"NOTE_OFF=7", "TIME_DELTA=1", "BAR_START"} <= words


def test_all_words_need_no_learning() -> None:
    config = CLOSED.config
    assert words_in(config, score_of([(0, 1, 60)]).notes) == set()
    assert config.with_symbols(["anything"]) == config
    assert CLOSED.vocab_size == 5 + 5 + 129 + 2 * 128 + 16
    assert {"BAR_START=3/4", "BAR_START=12/16", "TIE=0", "TIME_DELTA=48"} <= set(TIED.words.names)
    assert not {"BAR_START", "BAR_START=13/4", "BAR_START=3/32", "TIME_DELTA=49"} & set(TIED.words.names)


def test_before_it_is_learned_there_is_nothing_to_encode_with() -> None:
    tokenizer = MmmTokenizer(MmmConfig())
    assert tokenizer.vocab_size == 5
    assert len(tokenizer.digest) == 64
    assert tokenizer.grammar.first_violation([2, 3, 1]) is None
    assert len(tokenizer.decode([2, 0, 4, 3]).notes.pitch) == 0
    with pytest.raises(ConfigError, match="with_symbols"):
        encode(tokenizer, score_of([(0, 1, 60)]))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"units_per_quarter": 0}, "units_per_quarter=0 outside 1-96"),
        ({"units_per_quarter": 96, "longest_bar_quarters": 64, "meters": True}, "above 2048 units"),
        ({"longest_bar_quarters": 3}, "longest_bar_quarters=3 outside 4-64"),
        ({"across_bars": "ring"}, "across_bars='ring'"),
        ({"vocabulary_from": "web"}, "vocabulary_from='web'"),
        ({"density_bins": 17}, "density_bins=17 outside 0-16"),
        ({"style": "TWO WORDS"}, "style='TWO WORDS'"),
        ({"velocity": 0}, "velocity=0 outside 1-127"),
        ({"vocabulary": ("HELLO",)}, "the word 'HELLO' is never written"),
        ({"vocabulary": ("TIE=3",)}, "the word 'TIE=3' is never written"),
        ({"vocabulary": ("NOTE_ON=3",)}, "lacks 'BAR_END'"),
        ({"vocabulary": MmmConfig().with_symbols([]).vocabulary[::-1]}, "not sorted"),
        ({"vocabulary": ("BAR_END",), "vocabulary_from": "all"}, "needs none"),
    ],
)
def test_settings_are_checked(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        MmmConfig(**changes)


def test_the_stored_form_makes_the_same_tokenizer() -> None:
    configs = [tokenizer.config for tokenizer in ALL]
    configs += [MmmConfig(), MmmConfig().with_symbols(["NOTE_ON=60", "INST=3", "TIME_DELTA=7"])]
    digests = set()
    for config in configs:
        tokenizer = MmmTokenizer(config)
        form = json.loads(json.dumps(tokenizer.to_json()))
        fields = {name: form[name] for name in MmmConfig.__slots__}
        again = MmmTokenizer(MmmConfig(**{**fields, "vocabulary": tuple(fields["vocabulary"])}))
        assert again.config == config
        assert again.digest == tokenizer.digest
        digests.add(tokenizer.digest)
    assert len(digests) == len(configs)


@pytest.mark.parametrize("token", [-1, 411])
def test_names_outside_the_vocabulary(token: int) -> None:
    with pytest.raises(ValueError, match="outside 0-410"):
        CLOSED.token_name(token)
    with pytest.raises(ValueError, match="outside 0-410"):
        CLOSED.decode([token])
    with pytest.raises(ValueError, match="NOTE_ON=128"):
        CLOSED.token_id("NOTE_ON=128")


# --- texts typed out


def test_a_piece_in_words() -> None:
    score = score_of([(0, 4, 70), (4, 4, 77), (18, 2, 48, 1)], (0, 32))
    assert text(CLOSED, encode(CLOSED, score).ids) == (
        "[SOS] PIECE_START "
        "TRACK_START INST=0 BAR_START NOTE_ON=70 TIME_DELTA=4 NOTE_OFF=70 NOTE_ON=77 TIME_DELTA=4 NOTE_OFF=77 BAR_END "
        "BAR_START BAR_END TRACK_END "
        "TRACK_START INST=32 BAR_START BAR_END "
        "BAR_START TIME_DELTA=2 NOTE_ON=48 TIME_DELTA=2 NOTE_OFF=48 BAR_END TRACK_END "
        "[EOS]"
    )


def test_header_density_and_end_of_piece() -> None:
    rows = [(place, 1, 60) for place in range(0, 16, 2)] + [(20, 1, 40, 1)]
    words = text(SHUFFLED, encode(SHUFFLED, score_of(rows, (0, DRUMS))).ids)
    assert words.startswith("[SOS] PIECE_START STYLE=A GENRE=B TRACK_START INST=")
    assert words.endswith(" TRACK_END PIECE_END [EOS]")
    assert "INST=0 DENSITY=3 BAR_START" in words  # 8 notes in 2 bars
    assert "INST=DRUMS DENSITY=0 BAR_START" in words
    dense = text(SHUFFLED, encode(SHUFFLED, score_of([(0, 1, pitch) for pitch in range(60)])).ids)
    assert "DENSITY=5" in dense


@pytest.mark.parametrize(
    ("across", "expected"),
    [
        (CLOSED, "BAR_START TIME_DELTA=12 NOTE_ON=60 TIME_DELTA=4 NOTE_OFF=60 BAR_END TRACK_END"),
        (
            TIED,
            "BAR_START=4/4 TIME_DELTA=12 NOTE_ON=60 TIME_DELTA=4 NOTE_OFF=60 BAR_END "
            "BAR_START=4/4 TIE=60 TIME_DELTA=16 NOTE_OFF=60 BAR_END "
            "BAR_START=4/4 TIE=60 TIME_DELTA=1 NOTE_OFF=60 BAR_END TRACK_END",
        ),
    ],
)
def test_notes_over_bar_lines(across: MmmTokenizer, expected: str) -> None:
    score = score_of([(12, 21, 60)])
    assert body(across, score) == f"TRACK_START INST=0 {expected}"
    assert encode(across, score).dropped["cut_at_bar_line"] == (across is CLOSED)


def test_a_tie_is_no_new_note() -> None:
    struck_again = score_of([(0, 16, 60), (16, 4, 60)])
    held = score_of([(0, 20, 60)])
    assert "TIE" not in body(TIED, struck_again)
    assert by_track(TIED.decode(encode(TIED, struck_again).ids)) == by_track(struck_again)
    assert by_track(TIED.decode(encode(TIED, held).ids)) == by_track(held)


def test_bars_follow_the_meters() -> None:
    meters = [(0, 3, 4), (12, 6, 8), (24, 1, 4), (28, 13, 4), (32, 4, 32), (40, 4, 4)]
    score = score_of([(44, 1, 60)], meters=meters)
    starts = [word for word in body(TIED, score).split() if word.startswith("BAR_START")]
    # 13/4 is too long a bar and 4/32 no meter that has a word: bars go on in 1/4
    assert starts == [f"BAR_START={meter}" for meter in ("3/4", "6/8", "1/4", "1/4", "1/4", "1/4", "4/4")]
    assert [word for word in body(CLOSED, score).split() if word.startswith("BAR_START")] == ["BAR_START"] * 3
    assert by_track(CLOSED.decode(encode(CLOSED, score).ids)) == by_track(score)


def test_a_meter_takes_hold_at_a_bar_line() -> None:
    score = score_of([(40, 1, 60)], meters=[(0, 4, 4), (20, 3, 4)])
    starts = [word for word in body(TIED, score).split() if word.startswith("BAR_START")]
    assert starts == [f"BAR_START={meter}" for meter in ("4/4", "4/4", "3/4")]


def test_times_are_rounded_half_up() -> None:
    score = make_score([(59, 60, 60, 80), (180, 119, 62, 80)], ticks_per_quarter=TICKS)
    assert "BAR_START NOTE_ON=60 TIME_DELTA=1 NOTE_OFF=60 TIME_DELTA=1 NOTE_ON=62 TIME_DELTA=1 " in body(CLOSED, score)


def test_each_loss_is_counted() -> None:
    tokenizer = MmmTokenizer(replace(CLOSED.config, max_bars=3, max_tracks=2))
    rows = [
        (0, 480, 60, 80), (0, 960, 60, 80),  # unison: the later end is kept
        (480, 30, 60, 80),  # struck again, and lengthened
        (1800, 960, 62, 80),  # over the bar line
        (3 * 1920, 480, 62, 80),  # in the fourth bar
        (0, 480, 62, 80, 1), (0, 480, 62, 80, 2),  # on the third track
    ]  # fmt: skip
    batch = encode(tokenizer, make_score(rows, programs=(0, 1, 2), ticks_per_quarter=TICKS))
    assert {reason: int(count[0]) for reason, count in batch.dropped.items()} == {
        "unison_merged": 1, "restrike_shortened": 1, "lengthened": 1, "cut_at_bar_line": 1,
        "unknown_words": 0, "beyond_max_bars": 1, "beyond_max_tracks": 1,
    }  # fmt: skip
    assert batch.n_notes[0] == 4
    assert batch.seconds[0] == pytest.approx((1800 + 960) / 960)


def test_what_the_vocabulary_lacks() -> None:
    known = score_of([(0, 4, 60)]).notes
    tokenizer = MmmTokenizer(MmmConfig().with_symbols(words_in(MmmConfig(), known)))
    score = score_of([(0, 7, 60), (0, 4, 61), (0, 4, 60, 1)], (0, 5))
    batch = encode(tokenizer, score)
    assert batch.dropped["unknown_words"][0] == 2  # a pitch, and a note of an instrument
    assert batch.n_notes[0] == 2
    assert text(tokenizer, batch.ids) == (
        "[SOS] PIECE_START TRACK_START INST=0 BAR_START NOTE_ON=60 [UNK] TIME_DELTA=4 [UNK] "
        "TIME_DELTA=1 TIME_DELTA=1 TIME_DELTA=1 NOTE_OFF=60 BAR_END TRACK_END "
        "TRACK_START [UNK] BAR_START NOTE_ON=60 TIME_DELTA=4 NOTE_OFF=60 BAR_END TRACK_END [EOS]"
    )
    assert tokenizer.grammar.first_violation(batch.ids) is None
    assert len(tokenizer.decode(batch.ids).notes.pitch) == 2
    assert tokenizer.transpose_ids(batch.ids, 0) is None
    assert tokenizer.transpose_ids(encode(tokenizer, score_of([(0, 4, 60)])).ids, 1) is None


def test_pieces_without_notes() -> None:
    batch = encode(CLOSED, score_of([]), score_of([(0, 1, 60)]), score_of([]))
    assert text(CLOSED, batch.ids[: batch.offsets[1]]) == "[SOS] PIECE_START [EOS]"
    assert batch.n_notes.tolist() == [0, 1, 0]
    assert batch.seconds.tolist() == [0.0, 0.125, 0.0]
    assert len(CLOSED.encode(NoteBatch.joined([])).ids) == 0


# --- laws


@given(grid_scores())
def test_decoding_gives_back_what_stands_on_the_grid(score: Score) -> None:
    for tokenizer in (TIED, FINE):
        batch = encode(tokenizer, score)
        assert not any(count.any() for count in batch.dropped.values())
        assert by_track(tokenizer.decode(batch.ids)) == by_track(score)


@given(scores(), st.sampled_from(ALL))
def test_all_notes_are_accounted_for(score: Score, tokenizer: MmmTokenizer) -> None:
    batch = encode(tokenizer, score)
    lost = sum(int(batch.dropped[reason][0]) for reason in ("unison_merged", "beyond_max_bars", "beyond_max_tracks"))
    assert batch.n_notes[0] + lost == len(score.notes.pitch)
    back = tokenizer.decode(batch.ids).notes
    assert len(back.pitch) == batch.n_notes[0]
    units = tokenizer.config.units_per_quarter

    def quantised(notes: Any, ticks: int) -> list[tuple[int, int]]:
        return sorted(
            {
                (int(2 * tick * units + ticks) // (2 * ticks), pitch)
                for tick, pitch in zip(notes.onset, notes.pitch, strict=True)
            }
        )

    ticks_back = tokenizer.decode(batch.ids).ticks_per_quarter
    assert quantised(back, ticks_back) == quantised(score.notes, score.ticks_per_quarter)


@given(scores(), st.sampled_from(ALL))
def test_decoding_then_encoding_is_the_identity(score: Score, tokenizer: MmmTokenizer) -> None:
    ids = encode(tokenizer, score).ids
    back = tokenizer.decode(ids)
    assert text(tokenizer, encode(tokenizer, back).ids) == text(tokenizer, ids)
    if len(back.notes.pitch):
        assert np.array_equal(encode(tokenizer, read_midi(write_midi(back))).ids, ids)


@given(st.lists(scores(), min_size=1, max_size=4), st.integers(1, 40), st.sampled_from(ALL))
def test_a_piece_has_the_same_tokens_in_any_company(pieces: list[Score], block: int, tokenizer: MmmTokenizer) -> None:
    together = encode(tokenizer, *pieces)
    alone = [encode(tokenizer, piece) for piece in pieces]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "BLOCK_NOTES", block)
        in_blocks = encode(tokenizer, *pieces)
    for other in (TokenBatch.joined(alone), in_blocks):
        assert np.array_equal(other.ids, together.ids)
        assert np.array_equal(other.offsets, together.offsets)
        assert np.array_equal(other.seconds, together.seconds)
        assert {name: count.tolist() for name, count in other.dropped.items()} == {
            name: count.tolist() for name, count in together.dropped.items()
        }


@given(st.lists(scores(), min_size=1, max_size=3), st.integers(-127, 127), st.sampled_from(ALL))
def test_transposing_ids_is_transposing_notes(pieces: list[Score], semitones: int, tokenizer: MmmTokenizer) -> None:
    batch = NoteBatch.joined([score.notes for score in pieces])
    moved, fits = transpose(batch, semitones)
    ids = tokenizer.transpose_ids(tokenizer.encode(batch).ids, semitones)
    assert (ids is not None) == fits.all()
    if ids is not None:
        assert ids.dtype == np.uint16
        assert np.array_equal(ids, tokenizer.encode(moved).ids)


def test_the_order_of_tracks_is_drawn_for_the_music_alone() -> None:
    rows = [(4 * place, 2, 50 + 7 * track + place, track) for place in range(8) for track in range(4)]
    orders = set()
    for seed in range(40):
        tokenizer = MmmTokenizer(replace(CLOSED.config, permute_tracks=True, permutation_seed=seed))
        one = text(tokenizer, encode(tokenizer, score_of(rows, (0, 10, 20, 30))).ids)
        turned = [(*row[:3], 3 - row[3]) for row in rows]
        assert one == text(tokenizer, encode(tokenizer, score_of(turned, (30, 20, 10, 0))).ids)
        orders.add(tuple(word for word in one.split() if word.startswith("INST")))
    assert len(orders) > 15  # of 24


@pytest.fixture(scope="module")
def plain() -> ModuleType:
    """The plain Python loop against which the speed is measured."""
    folder = REPOSITORY / "bench"
    spec = importlib.util.spec_from_file_location("bench_mmm", folder / "bench_mmm.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        spec.loader.exec_module(module)
    return module


@given(score=scores())
@pytest.mark.parametrize("tokenizer", [CLOSED, TIED, FINE], ids=["closed", "tied", "fine"])
def test_compiled_loops_follow_the_plain_rules(tokenizer: MmmTokenizer, plain: ModuleType, score: Score) -> None:
    expected = plain.encode_piece(plain.as_plain(score), tokenizer.config, tokenizer.ids)
    assert text(tokenizer, encode(tokenizer, score).ids) == text(tokenizer, expected)


def test_crowded_bars_are_in_order_too(plain: ModuleType) -> None:
    rows = [(place % 13, 1 + place % 5, 30 + place % 61, place % 2) for place in range(400)]
    score = score_of(rows, (0, DRUMS))
    expected = plain.encode_piece(plain.as_plain(score), TIED.config, TIED.ids)
    assert text(TIED, encode(TIED, score).ids) == text(TIED, expected)


# --- real music


@pytest.mark.parametrize("across_bars", ["cut", "tie"])
def test_four_bars_of_the_chorales(across_bars: Any) -> None:
    paths = sorted((real_data("dev") / "js-fakes").rglob("*.mid"))[::40]
    songs = NoteBatch.joined([read_midi(path).notes for path in paths])
    batch, _, _ = cut_windows(songs, window_bars=4, hop_bars=4, units_per_quarter=4)
    config = MmmConfig(style="JSFAKES", genre="JSFAKES", across_bars=across_bars)
    tokenizer = MmmTokenizer(config.with_symbols(words_in(config, batch)))
    tokens = tokenizer.encode(batch)
    assert not tokens.dropped["unknown_words"].any()
    texts = [text(tokenizer, ids) for ids in np.split(tokens.ids, tokens.offsets[1:-1])]
    n_bars = []
    for words in texts:
        tracks = words.split("TRACK_START")[1:]
        assert len(tracks) == 4
        assert all(is_balanced(bar.split()) for track in tracks for bar in track.split("BAR_START")[1:])
        n_bars += [track.count("BAR_START") for track in tracks]
    # A last bar that only holds the end of a note from before is there if notes are tied into it.
    assert (
        set(n_bars) == {4} if across_bars == "tie" else set(n_bars) <= {3, 4} and n_bars.count(4) > 20 * n_bars.count(3)
    )
    for words, ids in list(zip(texts, np.split(tokens.ids, tokens.offsets[1:-1]), strict=True))[::5]:
        back = read_midi(write_midi(tokenizer.decode(ids)))
        assert text(tokenizer, encode(tokenizer, back).ids) == words


def is_balanced(bar: list[str]) -> bool:
    """Whether the deltas of a bar add up to at most 16 and each of its notes ends in it."""
    sounding = set()
    for word in bar:
        name, _, pitch = word.partition("=")
        if name in ("NOTE_ON", "TIE"):
            sounding.add(pitch)
        elif name == "NOTE_OFF":
            sounding.remove(pitch)
    return not sounding and sum(int(word.partition("=")[2]) for word in bar if word.startswith("TIME_DELTA")) <= 16


@pytest.mark.slow
@pytest.mark.parametrize("source", ["pop909", "nottingham", "openmsx", "groove"])
def test_real_pieces(source: str) -> None:
    paths = sorted((real_data("dev") / source).rglob("*.mid"))[::40]
    pieces = [read_midi(path) for path in paths]
    for tokenizer in (CLOSED, TIED):
        batch = encode(tokenizer, *pieces)
        lost = batch.dropped["unison_merged"] + batch.dropped["beyond_max_bars"] + batch.dropped["beyond_max_tracks"]
        assert np.array_equal(batch.n_notes + lost, [len(piece.notes.pitch) for piece in pieces])
        for ids in np.split(batch.ids, batch.offsets[1:-1])[:3]:
            assert tokenizer.grammar.first_violation(ids) is None
            assert np.array_equal(encode(tokenizer, tokenizer.decode(ids)).ids, ids)
