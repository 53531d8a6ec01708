"""The event tokenizer: vectors of its vocabulary, laws of encoding and decoding, real music where it is present."""

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
from tasks.music.tokenizers.oore import SHIFT_MAX, OoreConfig, OoreTokenizer, to_unit
from tasks.music.tokenizers.registry import build_tokenizer, tokenizer_from_json
from tasks.music.transforms import stretch_time, transpose
from tests.budget import examples
from tests.builders import DRUMS, make_score, note_rows, off, on, pedal, smf, track
from tests.conftest import real_data

TOKENIZER = OoreTokenizer()
PLAIN = OoreTokenizer(OoreConfig(sustain=False, drums="keep"))


def encode(*scores: Score, tokenizer: OoreTokenizer = TOKENIZER) -> TokenBatch:
    return tokenizer.encode(NoteBatch.joined([score.notes for score in scores]))


def names(score: Score, tokenizer: OoreTokenizer = TOKENIZER) -> list[str]:
    return [tokenizer.token_name(token) for token in encode(score, tokenizer=tokenizer).ids.tolist()]


@st.composite
def scores(draw: st.DrawFn, overlap: bool = True) -> Score:
    """Scores of one part on a grid of 1 ms; without overlap, a pitch is struck only where it was silent for a while."""
    rows = []
    for pitch in draw(st.sets(st.integers(0, 127), max_size=4)):
        moments = sorted(draw(st.sets(st.integers(0, 3000), max_size=10)))
        if overlap:
            rows += [(moment, draw(st.integers(1, 1500)), pitch, draw(st.integers(1, 127))) for moment in moments]
        else:
            moments = [moment for moment, before in zip(moments, [-99, *moments], strict=False) if moment - before > 16]
            pairs = zip(moments[::2], moments[1::2], strict=False)
            rows += [(a, b - a, pitch, draw(st.integers(1, 127))) for a, b in pairs]
    return make_score(rows)


# --- vectors


def test_vocabulary() -> None:
    assert TOKENIZER.vocab_size == 416
    assert (TOKENIZER.pad_id, TOKENIZER.start_id, TOKENIZER.end_id) == (0, 414, 415)
    ids = {
        "<pad>": 0,
        "note_on_0": 1,
        "note_on_60": 61,
        "note_off_0": 129,
        "note_off_60": 189,
        "time_shift_0": 257,
        "time_shift_124": 381,
        "set_velocity_0": 382,
        "set_velocity_20": 402,
        "<start>": 414,
        "<end>": 415,
    }
    assert {name: TOKENIZER.token_id(name) for name in ids} == ids
    assert [TOKENIZER.token_id(TOKENIZER.token_name(token)) for token in range(416)] == list(range(416))


@pytest.mark.parametrize("token", [-1, 416])
def test_names_outside_the_vocabulary(token: int) -> None:
    with pytest.raises(ValueError, match="outside 0-415"):
        TOKENIZER.token_name(token)
    with pytest.raises(ValueError, match="note_on_128"):
        TOKENIZER.token_id("note_on_128")


def cut_shift(milliseconds: int) -> list[int]:
    """The lengths in units of the time shifts that stand for a silence, as the original cuts it."""
    n_full, rest = divmod((milliseconds + 4) // 8, SHIFT_MAX)
    return [SHIFT_MAX] * n_full + [rest] * (rest > 0)


@pytest.mark.parametrize(
    ("milliseconds", "units"),
    [(0, []), (3, []), (4, [1]), (8, [1]), (1000, [125]), (2500, [125, 125, 63]), (2000, [125, 125]), (1004, [125, 1])],
)
def test_silences_are_cut_into_shifts(milliseconds: int, units: list[int]) -> None:
    assert cut_shift(milliseconds) == units
    silence = [f"time_shift_{length - 1}" for length in units]
    head = names(make_score([(milliseconds, 40, 60, 80)]))
    assert head[1 : len(units) + 3] == [*silence, "set_velocity_20", "note_on_60"]


@pytest.mark.parametrize(("units_per_second", "milliseconds"), [(125, 8), (250, 4), (500, 2), (1000, 1)])
def test_milliseconds_round_half_up_at_every_length(units_per_second: int, milliseconds: int) -> None:
    times = range(0, 4_000_000, 7)
    assert [to_unit(t / 1000, units_per_second) for t in times] == [(2 * t // milliseconds + 1) // 2 for t in times]


def test_example_of_the_original() -> None:
    expected = (
        "<start> set_velocity_20 note_on_60 time_shift_59 note_off_60 set_velocity_20 note_on_62 "
        "time_shift_124 time_shift_124 time_shift_62 note_off_62 <end>"
    )
    assert names(make_score([(0, 480, 60, 80), (480, 2500, 62, 81)])) == expected.split()


def test_real_time_is_within_4_ms_at_any_resolution() -> None:
    notes = [(0, on(60)), (480, off(60)), (0, on(62, 81)), (2500, on(62, 0))]
    for division in (96, 480, 32767):
        score = read_midi(smf(track(*notes), division=division))
        back = TOKENIZER.decode(encode(score).ids)
        assert np.allclose(back.notes.onset_seconds, score.notes.onset_seconds, rtol=0, atol=0.004 + 1e-9)
        assert np.allclose(back.notes.end_seconds, score.notes.end_seconds, rtol=0, atol=0.004 + 1e-9)


@pytest.mark.parametrize(
    ("case", "end"),
    [
        # a pedal lifted with nothing pending must not stay down for ever
        ([(0, pedal(127)), (10, pedal(0)), (10, on(60)), (100, off(60)), (0, on(62)), (10, off(62))], 120),
        # a pedal that is never lifted: its notes end with the music
        ([(0, on(60)), (10, pedal(127)), (90, off(60)), (0, on(62)), (100, off(62))], 200),
        # a note-on of velocity 0 under the pedal is a note-off like any other
        ([(0, pedal(127)), (10, on(60)), (90, on(60, 0)), (0, on(62)), (90, off(62)), (10, pedal(0))], 200),
    ],
)
def test_pedals_leave_no_note_hanging(case: list[tuple[int, bytes]], end: int) -> None:
    score = read_midi(smf(track(*case), division=500))  # a tick is 1 ms
    batch = encode(score)
    assert TOKENIZER.grammar.n_violations(batch.ids) == 0
    ids = batch.ids.tolist()
    assert sum(1 <= token <= 128 for token in ids) == sum(129 <= token <= 256 for token in ids) == 2
    first = TOKENIZER.decode(ids).notes
    assert first.pitch[0] == 60
    assert first.onset[0] + first.duration[0] == pytest.approx(end, abs=4)


@pytest.mark.parametrize("velocity", [1, 2, 3])
def test_soft_notes_survive(velocity: int) -> None:
    back = TOKENIZER.decode(encode(make_score([(0, 80, 60, velocity)])).ids)
    assert note_rows(back) == [(0, 80, 60, 2)]
    assert note_rows(read_midi(write_midi(back))) == [(0, 80, 60, 2)]


def test_tracks_are_merged_by_time() -> None:
    hands = [track((0, on(60)), (480, off(60))), track((240, on(48)), (480, off(48)))]
    assert names(read_midi(smf(*hands))) == names(read_midi(smf(*reversed(hands))))


def test_order_inside_a_unit() -> None:
    score = make_score([(0, 80, 72, 80), (0, 80, 60, 80), (80, 1, 64, 80), (80, 40, 62, 80), (82, 1, 50, 80)])
    expected = (
        "time_shift_9 note_off_60 note_off_72 "
        "set_velocity_20 note_on_50 set_velocity_20 note_on_62 set_velocity_20 note_on_64 "
        "note_off_50 note_off_64 time_shift_4 note_off_62 <end>"
    )
    assert names(score)[5:] == expected.split()


def test_same_pitch_in_one_unit_is_merged_and_counted() -> None:
    batch = encode(make_score([(100, 50, 60, 40), (101, 200, 60, 20), (0, 10, 72, 80)]))
    assert batch.dropped["unison_merged"].tolist() == [1]
    assert batch.dropped["restrike_shortened"].tolist() == [0]
    assert note_rows(TOKENIZER.decode(batch.ids))[1] == (104, 200, 60, 40)  # 100 and 301 ms on the grid of 8


def test_a_pitch_struck_again_ends_the_note_before() -> None:
    batch = encode(make_score([(0, 800, 60, 80), (400, 80, 60, 40)]))
    assert batch.dropped["restrike_shortened"].tolist() == [1]
    assert note_rows(TOKENIZER.decode(batch.ids)) == [(0, 400, 60, 80), (400, 80, 60, 40)]


@pytest.mark.parametrize(("drums", "expected"), [("drop", [1, 0]), ("keep", [3, 0]), ("if_alone", [1, 0])])
def test_notes_that_come_back_as_a_piano_are_counted(drums: str, expected: list[int]) -> None:
    notes = [(0, 80, 60, 80, 0), (0, 80, 64, 80, 1), (0, 80, 36, 80, 2), (80, 80, 38, 80, 2)]
    scores = [make_score(notes, programs=(0, 40, DRUMS)), make_score([(0, 80, 60, 80)])]
    batch = OoreTokenizer(OoreConfig(drums=drums)).encode(NoteBatch.joined([score.notes for score in scores]))  # type: ignore[arg-type]
    assert batch.dropped["program_changed"].tolist() == expected


@pytest.mark.parametrize(
    ("drums", "mixed", "alone"), [("drop", [60], []), ("keep", [36, 60], [36]), ("if_alone", [60], [36])]
)
def test_drums(drums: str, mixed: list[int], alone: list[int]) -> None:
    tokenizer = OoreTokenizer(OoreConfig(drums=drums))  # type: ignore[arg-type]
    both = make_score([(0, 80, 36, 80, 1), (0, 80, 60, 80, 0)], programs=(0, DRUMS))
    only = make_score([(0, 80, 36, 80)], programs=(DRUMS,))
    batch = encode(both, only, tokenizer=tokenizer)
    pieces = np.split(batch.ids, batch.offsets[1:-1])
    assert [tokenizer.decode(piece).notes.pitch.tolist() for piece in pieces] == [mixed, alone]
    assert (batch.n_notes + batch.dropped["drums"]).tolist() == [2, 1]


def test_empty_pieces_stand_between_others() -> None:
    one = make_score([(0, 80, 60, 80)])
    batch = encode(make_score([]), one, make_score([]), make_score([]), one, make_score([]))
    assert batch.n_notes.tolist() == [0, 1, 0, 0, 1, 0]
    assert np.diff(batch.offsets).tolist() == [2, 6, 2, 2, 6, 2]
    assert batch.ids[batch.offsets[:-1]].tolist() == [414] * 6
    assert batch.ids[batch.offsets[1:] - 1].tolist() == [415] * 6
    assert batch.seconds.tolist() == [0, 0.08, 0, 0, 0.08, 0]
    assert len(encode().ids) == 0


# --- laws


def slow_units(seconds: float) -> int:
    return int(seconds * 125 + 0.5 + 125e-9)  # halves up, also those that fall a nanosecond short in binary


def slow_tokens(score: Score) -> list[int]:
    """The definition of encoding without pedals, one note at a time."""
    sounding: dict[int, dict[int, list[int]]] = {}  # pitch -> onset unit -> end unit, velocity
    notes = score.notes
    for pitch, onset, end, velocity in zip(
        notes.pitch.tolist(), notes.onset_seconds, notes.end_seconds, notes.velocity.tolist(), strict=True
    ):
        merged = sounding.setdefault(pitch, {}).setdefault(slow_units(onset), [0, 0])
        merged[:] = max(merged[0], slow_units(end)), max(merged[1], velocity)
    events = []
    for pitch, strikes in sounding.items():
        onsets = sorted(strikes)
        for onset, following in zip(onsets, [*onsets[1:], 10**9], strict=True):
            end, velocity = strikes[onset]
            end = min(end, following)
            events += [(onset, 1, pitch, [382 + velocity // 4, 1 + pitch])]
            events += [(end, 2 if end == onset else 0, pitch, [129 + pitch])]
    ids, now = [414], 0
    for unit, _, _, tokens in sorted(events):
        ids += [256 + length for length in cut_shift((unit - now) * 8)] + tokens
        now = unit
    return [*ids, 415]


@examples(150)
@given(st.lists(scores(), min_size=1, max_size=3))
def test_encoding_is_its_definition(pieces: list[Score]) -> None:
    assert encode(*pieces).ids.tolist() == [token for piece in pieces for token in slow_tokens(piece)]


@given(st.lists(scores(), max_size=4))
def test_notes_in_are_notes_out_and_counted(pieces: list[Score]) -> None:
    batch = encode(*pieces)
    n_notes = [len(piece.notes.pitch) for piece in pieces]
    assert (batch.n_notes + batch.dropped["unison_merged"] + batch.dropped["drums"]).tolist() == n_notes
    for index, ids in enumerate(np.split(batch.ids, batch.offsets[1:-1]) if pieces else []):
        assert len(TOKENIZER.decode(ids).notes.pitch) == batch.n_notes[index]


@given(scores(overlap=False))
def test_every_event_is_within_4_ms(score: Score) -> None:
    batch = encode(score)
    assert not any(count.any() for count in batch.dropped.values())
    back = TOKENIZER.decode(batch.ids)

    def by_pitch(piece: Score) -> list[np.ndarray]:
        order = np.lexsort([piece.notes.onset, piece.notes.pitch])
        names = ("pitch", "onset_seconds", "end_seconds", "velocity")
        return [getattr(piece.notes, name)[order].astype(float) for name in names]

    (pitch, onset, end, velocity), (pitch_back, onset_back, end_back, velocity_back) = by_pitch(score), by_pitch(back)
    assert np.array_equal(pitch, pitch_back)
    assert np.all(np.abs(onset - onset_back) <= 0.004 + 1e-9)
    assert np.all(np.abs(end - end_back) <= 0.004 + 1e-9)
    assert np.all(np.abs(velocity - velocity_back) <= 3)


@given(scores())
def test_decoding_then_encoding_is_the_identity(score: Score) -> None:
    ids = encode(score).ids
    assert np.array_equal(encode(TOKENIZER.decode(ids)).ids, ids)
    through_file = read_midi(write_midi(TOKENIZER.decode(ids))) if len(ids) > 2 else TOKENIZER.decode(ids)
    assert np.array_equal(encode(through_file).ids, ids)


@given(st.lists(scores(), min_size=1, max_size=4), st.integers(1, 40))
def test_a_piece_has_the_same_tokens_in_any_company(pieces: list[Score], block: int) -> None:
    together = encode(*pieces)
    alone = np.concatenate([encode(piece).ids for piece in pieces])
    assert np.array_equal(together.ids, alone)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "BLOCK_NOTES", block)
        in_blocks = encode(*pieces)
    assert np.array_equal(in_blocks.ids, alone)
    assert np.array_equal(in_blocks.offsets, together.offsets)
    assert np.array_equal(in_blocks.seconds, together.seconds)


@given(scores())
def test_the_grammar_accepts_all_that_encode_yields(score: Score) -> None:
    ids = encode(score).ids
    assert TOKENIZER.grammar.first_violation(ids) is None
    assert TOKENIZER.grammar.n_violations([*ids.tolist(), 0, 0]) == 0  # padding may follow


@given(scores(), st.integers(-127, 127))
def test_transposing_ids_is_transposing_notes(score: Score, semitones: int) -> None:
    batch = score.notes
    moved, fits = transpose(batch, semitones)
    ids = TOKENIZER.transpose_ids(TOKENIZER.encode(batch).ids, semitones)
    assert (ids is not None) == fits[0]
    if ids is not None:
        assert ids.dtype == np.uint16
        assert np.array_equal(ids, TOKENIZER.encode(moved).ids)


@given(scores(overlap=False), st.sampled_from([0.95, 1.0, 1.05, 1.25]))
def test_stretching_keeps_the_notes(score: Score, factor: float) -> None:
    batch = score.notes
    stretched = TOKENIZER.encode(stretch_time(batch, factor))
    seconds = float(batch.end_seconds.max(initial=0.0)) * factor
    assert stretched.seconds[0] == pytest.approx(seconds, abs=0.0041)
    if factor == 1.0:
        assert np.array_equal(stretched.ids, TOKENIZER.encode(batch).ids)


@given(st.lists(st.integers(0, 415), max_size=200))
def test_whatever_a_model_writes_becomes_a_score(ids: list[int]) -> None:
    score = TOKENIZER.decode(ids)
    body = ids[: ids.index(415)] if 415 in ids else ids
    assert len(score.notes.pitch) == sum(1 <= token <= 128 for token in body)
    assert np.all(score.notes.duration >= 1)
    again = encode(score)
    assert TOKENIZER.grammar.n_violations(again.ids) == 0


# --- decoding by hand


def decoded(text: str) -> list[tuple[int, int, int, int]]:
    return note_rows(TOKENIZER.decode([TOKENIZER.token_id(name) for name in text.split()]))


@pytest.mark.parametrize(
    ("text", "notes"),
    [
        ("", []),
        ("<start> <end> <pad> <pad>", []),
        ("set_velocity_20 note_on_60 time_shift_9", [(0, 80, 60, 80)]),  # cut off while it sounds
        ("set_velocity_20 note_on_60", [(0, 1, 60, 80)]),  # cut off as it begins
        ("note_off_60 time_shift_0 set_velocity_1 note_on_60 time_shift_0 note_off_60", [(8, 8, 60, 4)]),
        ("note_on_60 time_shift_0 note_off_60", [(0, 8, 60, 64)]),  # no velocity was ever set
        (
            "set_velocity_9 note_on_60 time_shift_1 note_on_60 time_shift_1 note_off_60",
            [(0, 16, 60, 36), (16, 16, 60, 36)],
        ),
        ("set_velocity_9 note_on_60 <end> time_shift_9 note_off_60", [(0, 1, 60, 36)]),  # nothing counts behind <end>
        ("set_velocity_9 set_velocity_0 note_on_0 time_shift_124 time_shift_0", [(0, 1008, 0, 2)]),
    ],
)
def test_decoding_forgives(text: str, notes: list[tuple[int, int, int, int]]) -> None:
    assert decoded(text) == notes


@pytest.mark.parametrize("ids", [[414, 416], [-1]])
def test_ids_outside_the_vocabulary_are_refused(ids: list[int]) -> None:
    with pytest.raises(ValueError, match="outside 0-415"):
        TOKENIZER.decode(ids)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("note_on_60", 0),
        ("<start> note_on_60", 1),
        ("<start> set_velocity_3 time_shift_0", 2),
        ("<start> set_velocity_3 note_on_60 set_velocity_3 note_on_60", 4),
        ("<start> note_off_60", 1),
        ("<start> set_velocity_3 note_on_60 <end>", 3),
        ("<start> <pad>", 1),
        ("<start> <end> time_shift_0", 2),
        ("<start> <start>", 1),
    ],
)
def test_the_grammar_forbids(text: str, place: int) -> None:
    assert TOKENIZER.grammar.first_violation([TOKENIZER.token_id(name) for name in text.split()]) == place


# --- identity of a tokenizer


def test_json_form_comes_back() -> None:
    for config in (OoreConfig(), OoreConfig(sustain=False, drums="keep")):
        tokenizer = build_tokenizer(config)
        again = tokenizer_from_json(tokenizer.to_json())
        assert again.config == config
        assert again.digest == tokenizer.digest
    assert TOKENIZER.digest != PLAIN.digest
    assert len(TOKENIZER.digest) == 64


@pytest.mark.parametrize("change", [{"name": "morse"}, {"revision": 0}, {"vocab_size": 417}, {"more": 1}])
def test_foreign_json_forms_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        tokenizer_from_json(TOKENIZER.to_json() | change)
    with pytest.raises(ConfigError, match="lacks"):
        tokenizer_from_json({"name": "oore"})


# --- real music


@pytest.mark.parametrize("source", ["pop909", "asap", "groove", "openmsx"])
def test_real_pieces(source: str) -> None:
    paths = sorted((real_data("dev") / source).rglob("*.mid"))[::25]
    pieces = [read_midi(path) for path in paths]
    batch = encode(*pieces)
    n_notes = np.array([len(piece.notes.pitch) for piece in pieces])
    assert np.array_equal(batch.n_notes + batch.dropped["drums"] + batch.dropped["unison_merged"], n_notes)
    for ids in np.split(batch.ids, batch.offsets[1:-1])[:5]:
        assert TOKENIZER.grammar.n_violations(ids) == 0
        assert np.array_equal(encode(TOKENIZER.decode(ids)).ids, ids)
