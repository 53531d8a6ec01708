"""The readable text of Optimus VIRTUOSO: vectors, laws of encoding and decoding, real music where it is present."""

import io
import itertools
import json
from pathlib import Path
from typing import Any

import mido
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
from tasks.music.tokenizers.optimus.characters import MAX_VALUE, from_code_points, to_code_points
from tasks.music.tokenizers.optimus.text_tokenizer import OptimusTxtConfig, OptimusTxtTokenizer, notes_in_header
from tasks.music.transforms import transpose
from tests.budget import examples
from tests.builders import DRUMS, make_score, note_rows
from tests.conftest import real_data
from tests.tasks.music.tokenizers.optimus.test_int_tokenizer import (
    FOUR_NOTES,
    full_rows,
    losses,
    plain,
    scores,
    write_by_grammar,
)

ANY_VALUE = [chr(code) for code in to_code_points(np.arange(6001)).tolist()]
VARIANTS: dict[str, dict[str, Any]] = {
    "3": {},
    "4": {"velocities": True},
    "4_channels": {"channels": True},
    "5": {"velocities": True, "channels": True},
    "chords": {"velocities": True, "channels": True, "chordify": True, "header": "none"},
    "melody": {"velocities": True, "channels": True, "chordify": True, "melody_conditioned": True},
}


def tokenizer_of(**given_settings: Any) -> OptimusTxtTokenizer:
    """Return a tokenizer that has a character for every value."""
    return OptimusTxtTokenizer(OptimusTxtConfig(**given_settings).with_symbols(ANY_VALUE))


ALL = {name: tokenizer_of(**variant) for name, variant in VARIANTS.items()}
FULL = ALL["5"]
every_variant = pytest.mark.parametrize("tokenizer", ALL.values(), ids=ALL)


def encode(*scores: Score, tokenizer: OptimusTxtTokenizer = FULL) -> TokenBatch:
    return tokenizer.encode(NoteBatch.joined([score.notes for score in scores]))


def learned(config: OptimusTxtConfig, *scores: Score) -> OptimusTxtTokenizer:
    return OptimusTxtTokenizer(config.with_symbols(config.symbols(NoteBatch.joined([score.notes for score in scores]))))


def text_of(score: Score, tokenizer: OptimusTxtTokenizer) -> str:
    """Return what the ids of a piece say, without <start> and <end>."""
    vocabulary = tokenizer.config.vocabulary
    return "".join(vocabulary[token - 4] for token in encode(score, tokenizer=tokenizer).ids[1:-1].tolist())


def values_of(text: str) -> list[list[int]]:
    """Return the values of each line."""
    return [[ord(symbol) - 33 for symbol in line] for line in text.split("\n")[:-1]]


# --- vectors


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, [[0, 500, 60], [500, 500, 64], [500, 500, 67], [500, 1000, 72]]),
        ({"velocities": True}, [[0, 500, 60, 80], [500, 500, 64, 90], [500, 500, 67, 100], [500, 1000, 72, 110]]),
        ({"channels": True}, [[0, 500, 60, 0], [500, 500, 64, 0], [500, 500, 67, 0], [500, 1000, 72, 0]]),
        (
            {"velocities": True, "channels": True},
            [[0, 500, 60, 80, 0], [500, 500, 64, 90, 0], [500, 500, 67, 100, 0], [500, 1000, 72, 110, 0]],
        ),
    ],
)
def test_four_notes(fields: dict[str, Any], expected: list[list[int]]) -> None:
    score = make_score(FOUR_NOTES)
    tokenizer = learned(OptimusTxtConfig(unit_milliseconds=1, **fields), score)
    header, _, lines = text_of(score, tokenizer).partition("\n")
    assert header == "SONG=Song_with_4_notes"
    assert values_of(lines) == expected
    batch = encode(score, tokenizer=tokenizer)
    assert (batch.n_notes.tolist(), batch.seconds.tolist(), losses(batch)) == ([4], [2.5], {})
    text = tokenizer.to_text(score.notes, ["a.mid"])
    assert text == f"SONG=a_with_4_notes\n{lines}"


def test_the_rule_of_the_original_follows_from_ours() -> None:
    """It wrote the time to the next note: so each time beside the note before, the first note twice, the last never."""
    tokenizer = OptimusTxtTokenizer(OptimusTxtConfig(unit_milliseconds=1, velocities=True, channels=True))
    text = tokenizer.to_text(make_score(FOUR_NOTES).notes, ["a.mid"])
    rows = values_of(text.partition("\n")[2])
    notes = [row[1:] for row in [rows[0], *rows[:-1]]]
    assert [[row[0], *note] for row, note in zip(rows, notes, strict=True)] == [
        [0, 500, 60, 80, 0], [500, 500, 60, 80, 0], [500, 500, 64, 90, 0], [500, 500, 67, 100, 0],
    ]  # fmt: skip


def test_every_value_is_valid_utf_8() -> None:
    values = np.arange(200_001)
    codes = to_code_points(values)
    assert codes[[0, 60, 55_262, 55_263, 57_310]].tolist() == [33, 93, 0xD7FF, 0xE000, 0xE7FF]
    text = "".join(map(chr, codes.tolist()))
    assert text.encode("utf-8").decode("utf-8") == text
    assert np.array_equal(from_code_points([ord(symbol) for symbol in text]), values)
    assert to_code_points(MAX_VALUE) == 0x10FFFF
    assert np.all(from_code_points([-1, 10, 32, 0xD800, 0xDFFF]) < 0)


def test_a_note_is_at_most_twenty_bytes() -> None:
    """Five characters of at most four bytes, as the original says, and the end of the line."""
    config = OptimusTxtConfig(unit_milliseconds=1, max_milliseconds=1_000_000, velocities=True, channels=True)
    text = OptimusTxtTokenizer(config).to_text(make_score([(900_000, 900_000, 127, 127)]).notes, ["long"])
    assert len(text.partition("\n")[2].encode()) == 4 + 4 + 2 + 2 + 1 + 1
    ((_, score),) = OptimusTxtTokenizer(config).from_text(text)
    assert note_rows(score) == [(900_000, 900_000, 127, 127)]


def test_chords_share_a_line() -> None:
    chord = [(0, 10, 60, 80), (0, 10, 64, 80), (0, 10, 55, 80)]
    score = make_score([*chord, (50, 10, 62, 80), (90, 10, 50, 80), (90, 10, 70, 80)])
    tokenizer = tokenizer_of(chordify=True, header="none")
    assert values_of(text_of(score, tokenizer)) == [
        [0, 1, 64, 0, 1, 60, 0, 1, 55],
        [5, 1, 62],
        [4, 1, 70, 0, 1, 50],
    ]
    assert full_rows(tokenizer.decode(encode(score, tokenizer=tokenizer).ids), sounds=False) == full_rows(
        score, sounds=False
    )


def test_the_melody_has_a_channel_of_its_own() -> None:
    parts = (0, 24, 73, DRUMS, 25)  # piano, guitar, flute, drums, another guitar
    chord = [(0, 10, 60, 80, 0), (0, 10, 64, 80, 1), (0, 10, 55, 80, 2), (0, 10, 90, 80, 3)]
    low = [(50, 10, 59, 80, 1), (90, 10, 90, 80, 3)]  # below C4, and drums alone
    flute = [(120, 10, 84, 80, 2), (120, 10, 84, 80, 0)]  # of two as high, the lower channel
    score = make_score([*chord, *low, *flute, (150, 10, 70, 80, 4)], programs=parts)
    tokenizer = tokenizer_of(channels=True, melody_conditioned=True, header="none")
    lines = [(pitch, channel) for _, _, pitch, channel in values_of(text_of(score, tokenizer))]
    assert lines == [(64, 0), (60, 1), (55, 10), (90, 9), (59, 2), (90, 9), (84, 0), (84, 10), (70, 0)]
    batch = encode(score, tokenizer=tokenizer)
    assert losses(batch) == {"program_changed": 2}  # the guitars' melodies come back as a piano's
    back = tokenizer.decode(batch.ids)
    sounds = sorted(zip(back.notes.onset, back.notes.pitch, back.notes.program, back.notes.is_drum, strict=True))
    assert [tuple(int(value) for value in row) for row in sounds] == [
        (0, 55, 73, 0), (0, 60, 0, 0), (0, 64, 0, 0), (0, 90, 0, 1), (50, 59, 24, 0), (90, 90, 0, 1),
        (120, 84, 0, 0), (120, 84, 73, 0), (150, 70, 0, 0),
    ]  # fmt: skip
    assert tokenizer.transpose_ids(batch.ids, 1) is None


def test_a_written_file_has_500_ticks_a_quarter_and_a_program_for_each_channel() -> None:
    text = "".join(f"!{chr(33 + 50)}{chr(33 + 60)}{chr(33 + 80)}{chr(33 + channel)}\n" for channel in range(16))
    ((_, score),) = FULL.from_text(f"SONG=all_with_16_notes\n{text}")
    file = mido.MidiFile(file=io.BytesIO(write_midi(score)))
    assert file.ticks_per_beat == 500
    assert {message.tempo for track in file.tracks for message in track if message.type == "set_tempo"} == {500_000}
    programs = [(int(note), bool(drum)) for note, drum in zip(score.notes.program, score.notes.is_drum, strict=True)]
    patches = [0, 24, 32, 40, 42, 46, 56, 71, 73, 0, 0, 0, 0, 0, 0, 0]
    assert sorted(programs) == sorted((program, channel == 9) for channel, program in enumerate(patches))


def test_the_melody_leaves_fourteen_channels() -> None:
    score = make_score([(10 * part, 10, 40, 80, part) for part in range(16)], programs=(0,) * 16)
    tokenizer = tokenizer_of(channels=True, melody_conditioned=True, channels_by="order", header="none")
    channels = [row[-1] for row in values_of(text_of(score, tokenizer))]
    assert channels == [1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 15, 15, 15]
    assert encode(score, tokenizer=tokenizer).dropped["channels_shared"].tolist() == [2]


def test_long_notes_and_gaps_are_clamped_and_counted() -> None:
    score = make_score([(0, 2500, 60, 80), (2500, 3000, 61, 80), (5500, 10, 62, 80), (5500, 10, 63, 80)])
    tokenizer = tokenizer_of(max_milliseconds=2500, header="none")
    batch = encode(score, tokenizer=tokenizer)
    assert values_of(text_of(score, tokenizer)) == [[0, 250, 60], [250, 250, 61], [250, 1, 63], [0, 1, 62]]
    assert losses(batch) == {"long_notes_clamped": 1, "long_gaps_clamped": 1}
    assert batch.seconds.tolist() == [5.01]


def test_a_value_without_a_character_is_unknown_and_its_note_counted() -> None:
    tokenizer = learned(OptimusTxtConfig(), make_score(FOUR_NOTES))
    other = make_score([(0, 5000, 60, 80), (5000, 500, 127, 80), (7000, 2_000, 62, 80), (7500, 1000, 0, 80)])
    batch = encode(other, tokenizer=tokenizer)
    assert batch.dropped["unknown_characters"].tolist() == [3]
    assert batch.ids.tolist().count(3) == 4
    assert tokenizer.grammar.first_violation(batch.ids) is None
    back = tokenizer.decode(batch.ids)
    assert note_rows(back) == [(500, 1000, 0, 90)]
    assert back.dropped == {"impossible_notes": 3}


def test_empty_pieces_have_a_header_alone() -> None:
    one = make_score([(0, 80, 60, 80)])
    batch = encode(make_score([]), one, make_score([]), tokenizer=FULL)
    assert batch.n_notes.tolist() == [0, 1, 0]
    header = len("SONG=Song_with_0_notes\n")
    assert np.diff(batch.offsets).tolist() == [header + 2, header + 2 + 6, header + 2]
    assert len(encode(tokenizer=FULL).ids) == 0
    assert np.diff(encode(make_score([]), tokenizer=ALL["chords"]).offsets).tolist() == [2]


@pytest.mark.parametrize("n", [1, 9, 10, 99, 100, 1000])
def test_the_header_states_the_real_number_of_notes(n: int) -> None:
    score = make_score([(10 * i, 10, 60, 80) for i in range(n)])
    assert text_of(score, FULL).startswith(f"SONG=Song_with_{n}_notes\n")


# --- vocabulary


def test_names_stand_in_the_headers_of_their_pieces() -> None:
    names = ["Lá'st dance.live.mid", "with_3_notes", "a_with_2_notes", ".mid", "x"]
    pieces = [make_score(FOUR_NOTES[:n]) for n in (4, 3, 2, 1, 0)]
    batch = NoteBatch.joined([score.notes for score in pieces])
    config = OptimusTxtConfig(header="name")
    tokenizer = OptimusTxtTokenizer(config.with_symbols(config.symbols(batch) | set("á")))
    plain = tokenizer.encode(batch)
    named = tokenizer.name_songs(plain, names)
    heads = list[str]()
    for piece, (begin, stop) in enumerate(itertools.pairwise(named.offsets.tolist())):
        ids = named.ids[begin:stop].tolist()
        assert tokenizer.grammar.first_violation(ids) is None
        text = "".join(tokenizer.config.vocabulary[token - 4] for token in ids[1:-1])
        heads.append(text.partition("\n")[0])
        assert notes_in_header(text) == batch.pieces(piece, piece + 1).n_notes
        assert note_rows(tokenizer.decode(ids)) == note_rows(
            tokenizer.decode(plain.ids[plain.offsets[piece] : plain.offsets[piece + 1]])
        )
        up = tokenizer.transpose_ids(named.ids[begin:stop], 5)
        assert up is not None
        assert (up != ids).sum() == batch.pieces(piece, piece + 1).n_notes
    assert heads == [
        "SONG=Lá-st_dance_with_4_notes", "SONG=with_3_notes_with_3_notes", "SONG=a_with_2_notes_with_2_notes",
        "SONG=Song_with_1_notes", "SONG=x_with_0_notes",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r"the vocabulary lacks 'Ω' \(U\+03A9\)"):
        tokenizer.name_songs(plain, ["Ω"] * 5)


@pytest.mark.parametrize(
    ("header", "place"),
    [
        ("a_with_1_notes", None),
        ("a_with_with_12_notes", None),
        ("a_with_1_note_with_23_notes", None),
        ("__with_0_notes", None),
        ("1_with_1_with_1_notes", None),
        ("_with_1_notes", 19),  # no name
        ("a_with__notes", 19),  # no number
        ("a_with_1_notes_", 21),
        ("a=b_with_1_notes", 7),
        ("a'b_with_1_notes", 7),
    ],
)
def test_the_grammar_allows_names_and_wants_a_number_behind_them(header: str, place: int | None) -> None:
    tokenizer = tokenizer_of(header="name")
    ids = [1, *tokenizer.ids_of_text(f"SONG={header}\n!#]\n").tolist(), 2]
    assert tokenizer.grammar.first_violation(ids) == place


def test_vocabulary_is_learned_and_part_of_the_digest() -> None:
    empty = OptimusTxtTokenizer()
    score = make_score([(0, 5000, 60, 80)])
    assert empty.vocab_size == 4
    assert [empty.token_name(token) for token in range(4)] == ["<pad>", "<start>", "<end>", "<unknown>"]
    with pytest.raises(ConfigError, match="no vocabulary yet"):
        encode(score, tokenizer=empty)
    assert empty.decode([1, 3, 3, 3, 2]).dropped == {"impossible_notes": 1}
    tokenizer = learned(empty.config, score)
    assert tokenizer.config.vocabulary == ("\n", *(chr(code) for code in range(33, 161)), chr(533))
    assert tokenizer.vocab_size == 4 + 130
    assert tokenizer.digest != empty.digest


def test_the_order_of_symbols_does_not_matter() -> None:
    config = OptimusTxtConfig()
    needed = config.symbols(make_score([(900 * i, 100 * i + 10, 60, 80) for i in range(40)]).notes)
    one, other = config.with_symbols(sorted(needed)), config.with_symbols(sorted(needed, reverse=True))
    assert one == other
    assert needed <= set(one.vocabulary)
    assert one.with_symbols(["a"]) == config.with_symbols([])  # a vocabulary learned anew


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        (("ab",), "'ab', which is not the character of a value"),
        ((" ",), "' ', which is not"),
        (("\ud800",), "which is not the character"),
        (("a",), "lacks one"),
        (tuple(reversed(FULL.config.vocabulary)), "not in rising order"),
        ((*FULL.config.vocabulary, FULL.config.vocabulary[-1]), "not in rising order"),
        (tuple(map(chr, range(0x10000, 0x20000))), "65536 characters is over 65532"),
    ],
)
def test_impossible_vocabularies_are_refused(vocabulary: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimusTxtConfig(vocabulary=vocabulary)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"unit_milliseconds": 0}, "unit_milliseconds=0 is outside 1-1000"),
        ({"velocity": 128}, "velocity=128 is outside 1-127"),
        ({"max_milliseconds": 9}, "max_milliseconds=9 are 0 units of 10 ms, outside 1-"),
        ({"max_milliseconds": 2_000_000, "unit_milliseconds": 1}, "outside 1-1112030"),
        ({"melody_conditioned": True}, "needs channels=True"),
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimusTxtConfig(**wrong)


def test_names() -> None:
    assert [FULL.token_id(FULL.token_name(token)) for token in range(FULL.vocab_size)] == list(range(FULL.vocab_size))
    assert FULL.token_name(4) == "U+000A"
    assert FULL.token_name(FULL.token_id("]")) == "]"
    for token in (-1, FULL.vocab_size):
        with pytest.raises(ValueError, match=f"outside 0-{FULL.vocab_size - 1}"):
            FULL.token_name(token)
    for name in ("U+005D", "no", "", "\U0010ffff"):
        with pytest.raises(ValueError, match="no token is named"):
            FULL.token_id(name)


@every_variant
def test_json_form_comes_back(tokenizer: OptimusTxtTokenizer) -> None:
    form = json.loads(json.dumps(tokenizer.to_json()))
    fields: dict[str, Any] = {name: form[name] for name in OptimusTxtConfig.__slots__}
    fields["vocabulary"] = tuple(fields["vocabulary"])
    again = OptimusTxtTokenizer(OptimusTxtConfig(**fields))
    assert again.to_json() == form
    assert again.digest == tokenizer.digest


def test_variants_have_digests_of_their_own() -> None:
    assert len({tokenizer.digest for tokenizer in ALL.values()}) == len(ALL)


# --- whole texts


def test_texts_come_back(tmp_path: Path) -> None:
    pieces = [make_score(FOUR_NOTES), make_score([]), make_score([(50, 10, 100, 100)])]
    names = ["It's a=song no 1.v2.mid", "empty\n", "folder/\udcff.mid"]
    for tokenizer in ALL.values():
        path = tmp_path / "songs.txt"
        path.write_bytes(tokenizer.to_text(NoteBatch.joined([score.notes for score in pieces]), names).encode())
        songs = tokenizer.from_text(path.read_text(encoding="utf-8"))
        assert [name for name, _ in songs] == ["It-s_a_song_no_1", "empty_", "folder/_"]
        for (_, back), piece in zip(songs, pieces, strict=True):
            assert full_rows(back, sounds=False) == full_rows(piece, sounds=False)
            assert not back.dropped
    with pytest.raises(ValueError, match="1 names for 3 pieces"):
        FULL.to_text(NoteBatch.joined([score.notes for score in pieces]), ["one"])


def test_a_dataset_begins_with_ten_lines_and_ends_with_its_size() -> None:
    pieces = [make_score(FOUR_NOTES), make_score([]), make_score([(50, 10, 100, 100)])]
    written = FULL.songs(NoteBatch.joined([score.notes for score in pieces]), list("abc"))
    text = FULL.dataset_text(written, dataset="my\nset", created_on="today")
    lines = text.split("\n")
    assert [line.partition("=")[0] for line in lines[:11]] == [
        "DATASET", "CREATED_ON", "CHARS_ENCODING_OFFSET", "TIME_DENOMINATOR", "TRANSFORM", "PERFECT_TIMINGS",
        "MUSENET_ENCODING", "TRANSPOSED_BY", "TRANSPOSED_AND_FLIPPED", "LEGEND", "SONG",
    ]  # fmt: skip
    assert lines[0] == "DATASET=my set"
    assert lines[9] == "LEGEND=STA-DUR-PTC-VEL-CHA"
    assert text.endswith("\nTOTAL_SONGS_IN_DATASET=3")
    songs = [score for _, score in FULL.from_text(text)]
    assert [len(score.notes.pitch) for score in songs] == [4, 0, 1]
    assert not any(score.dropped for score in songs)
    assert "".join(f"SONG={head}" for head in text.split("SONG=")[1:]).startswith(
        FULL.to_text(NoteBatch.joined([score.notes for score in pieces]), list("abc"))
    )


def test_reading_texts_forgives() -> None:
    tokenizer = ALL["3"]
    assert tokenizer.from_text("") == []
    assert tokenizer.from_text("no song\n!!!\n") == []
    ((name, score),) = tokenizer.from_text("SONG=without count\n!#]\n!!\n!#]]\n\ud800#]\n$#a")
    assert name == "without count"
    assert note_rows(score) == [(0, 20, 60, 90), (30, 20, 64, 90)]
    assert score.dropped == {"malformed_lines": 2, "impossible_notes": 1}
    assert [name for name, _ in tokenizer.from_text("SONG=a_with_1_notes\nSONG=b_with_0_notes")] == ["a", "b"]


# --- laws


@examples(60)
@given(st.lists(scores(longest=80_000, latest=90_000, programs=(0, 41, 120, DRUMS)), min_size=1, max_size=3))
def test_encoding_is_its_definition(pieces: list[Score]) -> None:
    batch = NoteBatch.joined([score.notes for score in pieces])
    poor = learned(OptimusTxtConfig(velocities=True), make_score(FOUR_NOTES))
    for tokenizer in [*ALL.values(), poor]:
        if not tokenizer.config.melody_conditioned:
            assert tokenizer.encode(batch).ids.tolist() == plain.plain_txt(batch, tokenizer)


def test_a_thousand_pieces_of_sixteen_channels_come_back() -> None:
    config = OptimusTxtConfig(velocities=True, channels=True, channels_by="order")
    dice = np.random.default_rng(1)
    patches = [0, 24, 32, 40, 42, 46, 56, 71, 73, 0, 0, 0, 0, 0, 0, DRUMS]  # of the parts, drums last
    pieces = []
    for _ in range(1000):
        part = np.append(np.arange(16), dice.integers(0, 16, dice.integers(0, 20)))  # no part is missing
        n = len(part)
        columns = [10 * dice.integers(0, 6000, n), 10 * dice.integers(1, 6001, n), dice.integers(0, 128, n)]
        rows = np.stack([*columns, dice.integers(1, 128, n), part], axis=1)
        pieces.append(make_score([tuple(row) for row in rows.tolist()], programs=patches))
    tokenizer = learned(config, *pieces)
    batch = encode(*pieces, tokenizer=tokenizer)
    assert losses(batch) == {}
    for ids, piece in zip(np.split(batch.ids, batch.offsets[1:-1]), pieces, strict=True):
        assert full_rows(tokenizer.decode(ids)) == full_rows(piece)


@given(scores(grid=10, longest=60_000))
def test_nothing_is_lost_on_the_grid(score: Score) -> None:
    for tokenizer in ALL.values():
        config = tokenizer.config
        piece = score if config.channels else make_score(note_rows(score))  # all of it a piano's
        batch = encode(piece, tokenizer=tokenizer)
        back = tokenizer.decode(batch.ids)
        assert full_rows(back, sounds=False) == full_rows(piece, sounds=False)
        assert config.melody_conditioned or losses(batch) == {}
        if config.channels and config.velocities and not config.melody_conditioned:
            assert full_rows(back) == full_rows(piece)


@given(scores(longest=80_000, latest=70_000, programs=(0, 24, 41, 120, DRUMS)))
def test_every_note_is_encoded_or_counted(score: Score) -> None:
    for tokenizer in ALL.values():
        batch = encode(score, tokenizer=tokenizer)
        back = tokenizer.decode(batch.ids)
        assert batch.n_notes[0] + batch.dropped["drums"][0] == len(score.notes.pitch)
        assert len(back.notes.pitch) == batch.n_notes[0]
        assert not back.dropped
        assert batch.seconds[0] == pytest.approx(back.notes.end_seconds.max(initial=0))
        assert np.array_equal(encode(back, tokenizer=tokenizer).ids, batch.ids)
        if tokenizer.config.channels:
            was, now = np.bincount(score.notes.program, minlength=128), np.bincount(back.notes.program, minlength=128)
            assert np.abs(was - now).sum() <= 2 * batch.dropped["program_changed"][0]


@given(st.lists(scores(), min_size=1, max_size=4), st.integers(1, 40))
def test_a_piece_has_the_same_tokens_in_any_company(pieces: list[Score], block: int) -> None:
    for tokenizer in (FULL, ALL["melody"]):
        together = encode(*pieces, tokenizer=tokenizer)
        alone = np.concatenate([encode(piece, tokenizer=tokenizer).ids for piece in pieces])
        assert np.array_equal(together.ids, alone)
        notes = NoteBatch.joined([score.notes for score in pieces])
        text, symbols = tokenizer.to_text(notes, ["x"] * len(pieces)), tokenizer.config.symbols(notes)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(base, "BLOCK_NOTES", block)
            assert np.array_equal(encode(*pieces, tokenizer=tokenizer).ids, alone)
            assert tokenizer.to_text(notes, ["x"] * len(pieces)) == text
            assert tokenizer.config.symbols(notes) == symbols


@given(st.lists(scores(longest=80_000), min_size=1, max_size=3))
def test_what_was_learned_from_is_known_and_of_equal_width(pieces: list[Score]) -> None:
    for variant in VARIANTS.values():
        config = OptimusTxtConfig(**variant)
        tokenizer = learned(config, *pieces)
        batch = encode(*pieces, tokenizer=tokenizer)
        assert not batch.dropped["unknown_characters"].any()
        for ids in np.split(batch.ids, batch.offsets[1:-1]):
            assert tokenizer.grammar.first_violation([*ids.tolist(), 0, 0]) is None
        lines = tokenizer.to_text(NoteBatch.joined([score.notes for score in pieces]), ["x"] * len(pieces)).split("\n")
        widths = {len(line) for line in lines if not line.startswith("SONG=")} - {0}
        assert widths <= {config.width} or (config.chordify and all(width % config.width == 0 for width in widths))


@given(scores(), st.integers(-80, 80))
def test_transposing_ids_is_transposing_notes(score: Score, semitones: int) -> None:
    poor = learned(OptimusTxtConfig(channels=True), make_score(FOUR_NOTES))  # with <unknown> where it knows no value
    for tokenizer in (FULL, ALL["chords"], poor, tokenizer_of(drums="drop")):
        batch = score.notes
        if not tokenizer.config.channels:
            batch = batch.where(~batch.is_drum)
        moved, fits = transpose(batch, semitones)
        ids = tokenizer.transpose_ids(tokenizer.encode(batch).ids, semitones)
        assert (ids is not None) == fits[0]
        if ids is not None:
            assert ids.dtype == np.uint16
            assert np.array_equal(ids, tokenizer.encode(moved).ids)


@given(st.lists(st.integers(0, 8) | st.integers(30, 70) | st.integers(0, FULL.vocab_size - 1), max_size=120))
def test_whatever_a_model_writes_becomes_a_score(ids: list[int]) -> None:
    for tokenizer in ALL.values():
        score = tokenizer.decode(ids)
        assert np.all(score.notes.duration >= 10)
        assert len(score.notes.pitch) == 0 or len(read_midi(write_midi(score)).notes.pitch) == len(score.notes.pitch)
        assert tokenizer.grammar.first_violation(encode(score, tokenizer=tokenizer).ids) is None
        tokenizer.transpose_ids(ids, 3)


@pytest.mark.parametrize("name", ["3", "5", "chords", "melody"])
def test_all_that_the_grammar_allows_is_well_formed(name: str) -> None:
    config = OptimusTxtConfig(**VARIANTS[name])
    tokenizer = OptimusTxtTokenizer(config.with_symbols([]))
    newline = tokenizer.token_id("U+000A")
    for ids in write_by_grammar(tokenizer, 8, seed=2):
        whole = ids if 2 in ids else ids[: len(ids) - ids[::-1].index(newline)]
        lines = "".join(tokenizer.token_name(token) if token != 3 else "?" for token in whole)
        back = tokenizer.decode(whole)
        assert set(back.dropped) <= ({"impossible_notes"} if 3 in whole else set()), lines


# --- decoding and the grammar by hand


def ids_of(text: str, tokenizer: OptimusTxtTokenizer) -> list[int]:
    """Return ids of a text in which ^ stands for <start>, $ for <end>, ? for <unknown> and _ for <pad>."""
    special = {"^": 1, "?": 3, "_": 0, "$": 2}
    return [special[c] if c in special else tokenizer.token_id("U+000A" if c == "\n" else c) for c in text]


@pytest.mark.parametrize(
    ("text", "notes", "dropped"),
    [
        ("", [], {}),
        ("^SONG=", [], {}),
        ("^SONG=x\n$", [], {}),
        ("^SONG=x\n!#]\n$!#]\n", [(0, 20, 60, 90)], {}),
        ("^!#]\n&#a", [(0, 20, 60, 90), (50, 20, 64, 90)], {}),
        ("!#]\n&#\n&#a", [(0, 20, 60, 90), (50, 20, 64, 90)], {"malformed_lines": 1}),
        ("!#]\nSONG=y\n!#]\n", [(0, 20, 60, 90)], {}),  # a second song
        ("SONG=x\n!#]\nSONG=y\n!#]\n", [(0, 20, 60, 90)], {}),
        ("&#?\n&#a\n", [(100, 20, 64, 90)], {"impossible_notes": 1}),
        ("?#]\n&#a\n", [(50, 20, 64, 90)], {"impossible_notes": 1}),
        ("&!a_^\n", [(50, 10, 64, 90)], {}),  # no duration; padding and starts are nothing
    ],
)
def test_decoding_forgives(text: str, notes: list[tuple[int, ...]], dropped: dict[str, int]) -> None:
    score = ALL["3"].decode(ids_of(text, ALL["3"]))
    assert note_rows(score) == notes
    assert score.dropped == dropped


def test_ids_outside_the_vocabulary_are_refused() -> None:
    for ids in ([1, FULL.vocab_size], [-1]):
        for call in (FULL.decode, lambda ids: FULL.transpose_ids(ids, 1)):
            with pytest.raises(ValueError, match=f"outside 0-{FULL.vocab_size - 1}"):
                call(ids)


@pytest.mark.parametrize(
    ("name", "text", "place"),
    [
        ("3", "!", 0),
        ("3", "^!", 1),
        ("3", "^SONG=Song_with_notes", 16),  # no number
        ("3", "^SONG=Song_with_12_notes\n$", None),
        ("3", "^SONG=Song_with_1_notes\n!#]\n??]\n$", None),
        ("3", "^SONG=Song_with_1_notes\n!#]$", 27),  # in the middle of a line
        ("3", "^SONG=Song_with_1_notes\n!#]!", 27),
        ("3", "^SONG=Song_with_1_notes\n!!", 25),  # no duration
        ("3", "^SONG=Song_with_1_notes\n!#?", 26),  # every pitch is known
        ("chords", "^!#]q!!#]q!\n$", None),
        ("chords", '^!#]q!"', 6),  # of one onset
        ("chords", "^!#]q!\n!", 7),  # of another one
        ("chords", '^!#]q!\n"#]q!\n$', None),
        ("5", "^SONG=Song_with_1_notes\n!#]q2", 28),  # a channel of 17
        ("5", "^SONG=Song_with_1_notes\n!#]!", 27),  # a velocity of 0
        ("5", "^SONG=Song_with_1_notes\n!#]\x85!\n$", None),
    ],
)
def test_what_the_grammar_forbids(name: str, text: str, place: int | None) -> None:
    tokenizer = ALL[name]
    special = {"^": 1, "?": 3, "$": 2}
    ids = [special[c] if c in special else 4 + tokenizer.config.vocabulary.index(c) for c in text]
    assert tokenizer.grammar.first_violation(ids) == place


def test_without_a_vocabulary_nothing_can_be_written() -> None:
    assert OptimusTxtTokenizer().grammar.first_violation([1]) == 0


# --- real music


@pytest.mark.slow
@pytest.mark.parametrize("source", ["pop909", "asap", "groove", "openmsx", "tegridy-select"])
def test_real_pieces(source: str) -> None:
    paths = sorted((real_data("dev") / source).rglob("*.mid"))[::40]
    pieces = [read_midi(path) for path in paths]
    notes = NoteBatch.joined([score.notes for score in pieces])
    for name, variant in VARIANTS.items():
        tokenizer = learned(OptimusTxtConfig(**variant), *pieces)
        batch = tokenizer.encode(notes)
        assert np.array_equal(batch.n_notes + batch.dropped["drums"], np.diff(notes.offsets))
        if name != "melody":
            assert batch.ids.tolist() == plain.plain_txt(notes, tokenizer)
        songs = tokenizer.from_text(tokenizer.to_text(notes, [path.name for path in paths]))
        for ids, (_, score) in list(zip(np.split(batch.ids, batch.offsets[1:-1]), songs, strict=True))[:3]:
            assert tokenizer.grammar.first_violation(ids) is None
            back = tokenizer.decode(ids)
            assert full_rows(back) == full_rows(score)
            assert np.array_equal(encode(back, tokenizer=tokenizer).ids, ids)
