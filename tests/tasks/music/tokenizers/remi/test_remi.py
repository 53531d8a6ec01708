"""The `remi` tokenizer: vectors of its vocabulary and order, laws of encoding and decoding, real music where it is."""

import json
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tasks.music.midi.read_midi import read_midi
from tasks.music.midi.writer import write_midi
from tasks.music.notes import NoteBatch
from tasks.music.score import Score
from tasks.music.tokenizers.base import TokenBatch
from tasks.music.tokenizers.grammar import Grammar
from tasks.music.tokenizers.remi.tokenizer import RemiTokenizer
from tasks.music.tokenizers.remi.vocabulary import RemiConfig
from tasks.music.transforms import transpose
from tests.budget import examples
from tests.builders import DRUMS, make_score
from tests.conftest import real_data

TOKENIZER = RemiTokenizer()
FULL = RemiTokenizer(RemiConfig(tempos=True, rests=True, chords="root", n_velocities=127))
BARE = RemiTokenizer(
    RemiConfig(time_signatures=False, chords="none", n_velocities=0, drum_pitches=False, rests=True, grid=("0-6:4",),
               rest_grid=("0-2:4", "2-4:1"), pitch_min=0, pitch_max=127)
)  # fmt: skip
WIDE = RemiTokenizer(
    RemiConfig(meters=("2/2", "7/8", "6/8", "12/8", "3/4", "4/4"), grid=("0-2:12", "2-4:4", "4-10:1"), n_velocities=5)
)
ALL = [TOKENIZER, FULL, BARE, WIDE]
QUARTER = 480
PROGRAMS = (0, 40, 0, DRUMS)


def encode(*scores: Score, tokenizer: RemiTokenizer = TOKENIZER) -> TokenBatch:
    return tokenizer.encode(NoteBatch.joined([score.notes for score in scores]))


def text(score: Score, tokenizer: RemiTokenizer = TOKENIZER) -> str:
    """The tokens of a score without start and end, short: `Pitch_60` is `Pitch60`."""
    names = [tokenizer.token_name(token) for token in encode(score, tokenizer=tokenizer).ids[1:-1].tolist()]
    return " ".join(name.replace("_None", "").replace("_", "") for name in names)


def score_of(*notes: tuple[int, ...], **more: Any) -> Score:
    return make_score(notes, **{"ticks_per_quarter": QUARTER, "programs": PROGRAMS} | more)


def first_violation(grammar: Grammar, ids: list[int]) -> int | None:
    """As the grammar's own method, which copies its tables at every call; there are no slots here."""
    state = grammar.start_state
    for index, token in enumerate(ids):
        state = int(grammar.next_state_SV[state, token])
        if state < 0:
            return index
    return None


def note_set(score: Score) -> list[tuple[int, ...]]:
    """Sorted rows of onset, duration, pitch, velocity, program."""
    notes = score.notes
    program = np.where(notes.is_drum, DRUMS, notes.program.astype(int))
    columns = (notes.onset, notes.duration, notes.pitch, notes.velocity, program)
    return sorted(zip(*(values.tolist() for values in columns), strict=True))


@st.composite
def scores(draw: st.DrawFn, longest: int = 40 * QUARTER) -> Score:
    """Scores of some parts that begin anywhere, under time signatures with and without an id, and tempos."""
    ticks = st.integers(0, longest) | st.integers(0, longest // 60).map(lambda sixteenths: sixteenths * 60)
    rows = draw(
        st.lists(
            st.tuples(
                ticks,
                st.integers(1, 3000) | st.sampled_from([60, 120, 240, 480, 30_000]),
                st.integers(0, 127) | st.integers(58, 72),
                st.integers(1, 127),
                st.integers(0, len(PROGRAMS) - 1),
            ),
            max_size=30,
        )
    )
    meters = st.sampled_from([(4, 4), (3, 4), (6, 8), (12, 8), (3, 8), (5, 4), (7, 8), (2, 2)])
    changes = draw(st.dictionaries(ticks, meters, max_size=5))
    tempos = draw(st.dictionaries(ticks, st.integers(200_000, 2_000_000), max_size=5))
    return make_score(
        rows,
        ticks_per_quarter=draw(st.sampled_from([480, 96, 16, 8, 100])),
        programs=PROGRAMS,
        time_signatures=[(tick, *meter) for tick, meter in sorted(changes.items())],
        tempos=sorted(({0: 500_000} | tempos).items()),
    )


# --- vocabulary


def test_vocabulary_of_the_hourglass() -> None:
    assert TOKENIZER.vocab_size == 484
    assert (TOKENIZER.pad_id, TOKENIZER.start_id, TOKENIZER.end_id) == (0, 1, 2)
    ids = {
        "PAD_None": 0, "BOS_None": 1, "EOS_None": 2, "MASK_None": 3, "Bar_None": 4, "Pitch_21": 5, "Pitch_109": 93,
        "Velocity_7": 94, "Velocity_127": 109, "Duration_0.1.8": 110, "Duration_12.0.4": 173, "Position_0": 174,
        "Position_95": 269, "PitchDrum_27": 270, "PitchDrum_88": 331, "Chord_min": 332, "Program_0": 346,
        "Program_-1": 474, "TimeSig_3/8": 475, "TimeSig_4/4": 483,
    }  # fmt: skip
    assert {name: TOKENIZER.token_id(name) for name in ids} == ids


PUBLISHED = RemiTokenizer(RemiConfig(time_signatures=False, pitch_max=108, drum_pitches=False))


def test_the_published_settings_of_the_hourglass_have_348_ids() -> None:
    """Programs are in MidiTok 3.1's order, drums last; the published table of MidiTok 3.0 has the drums first."""
    assert PUBLISHED.vocab_size == 348
    ids = {
        "PAD_None": 0, "Bar_None": 4, "Pitch_60": 44, "Velocity_127": 108, "Duration_1.0.8": 116, "Position_0": 173,
        "Chord_maj": 206, "Program_0": 219, "Program_127": 346, "Program_-1": 347,
    }  # fmt: skip
    assert {name: PUBLISHED.token_id(name) for name in ids} == ids


def test_a_chord_a_low_drum_and_a_late_note_by_the_published_settings() -> None:
    chord = [(0, 480, pitch, 100) for pitch in (60, 64, 67)]
    score = score_of(*chord, (2400, 240, 72, 33), (0, 120, 36, 90, 3), (0, 120, 20, 90, 3))
    assert text(score, PUBLISHED) == (
        "Bar Position0 Program0 Chordmaj Program0 Pitch60 Velocity103 Duration1.0.8 "
        "Program0 Pitch64 Velocity103 Duration1.0.8 Program0 Pitch67 Velocity103 Duration1.0.8 "
        "Program-1 Pitch36 Velocity87 Duration0.2.8 Bar Position8 Program0 Pitch72 Velocity31 Duration0.4.8"
    )
    batch = encode(score, tokenizer=PUBLISHED)
    assert batch.dropped["out_of_range"].tolist() == [1]
    assert note_set(PUBLISHED.decode(batch.ids)) == [
        (0, 2, 36, 87, DRUMS), (0, 8, 60, 103, 0), (0, 8, 64, 103, 0), (0, 8, 67, 103, 0), (40, 4, 72, 31, 0),
    ]  # fmt: skip


@pytest.mark.parametrize("tokenizer", ALL)
def test_names_and_ids_are_one_to_one(tokenizer: RemiTokenizer) -> None:
    ids = range(tokenizer.vocab_size)
    assert [tokenizer.token_id(tokenizer.token_name(token)) for token in ids] == list(ids)
    for token in (-1, tokenizer.vocab_size):
        with pytest.raises(ValueError, match=f"outside 0-{tokenizer.vocab_size - 1}"):
            tokenizer.token_name(token)
    with pytest.raises(ValueError, match="Pitch_128"):
        tokenizer.token_id("Pitch_128")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_velocities": 128}, "n_velocities=128 outside 0-127"),
        ({"pitch_min": 70, "pitch_max": 60}, "pitch_min=70, pitch_max=60"),
        ({"drum_pitch_max": 128}, "drum_pitch_max=128"),
        ({"n_tempos": 0}, "n_tempos=0"),
        ({"tempo_min": 300.0}, "tempo_min=300.0"),
        ({"n_tempos": 1000, "tempo_min": 100.0, "tempo_max": 101.0}, "not all different"),
        ({"grid": ("0-4",)}, "grid: '0-4' is not like"),
        ({"grid": ("1-4:8",)}, "does not go on from beat 0"),
        ({"grid": ("0-4:8", "5-6:4")}, "does not go on from beat 4"),
        ({"grid": ("0-200:8",)}, "1600 lengths outside 1-1023"),
        ({"rests": True, "rest_grid": ("0-4:16",)}, "rest_grid: 16 steps of a beat do not divide the 8"),
        ({"grid": ("0-4:8", "4-8:3")}, "grid: 3 steps of a beat do not divide the 8"),
        ({"meters": ("3/4",)}, "lacks 4/4"),
        ({"meters": ("4/4", "3/4", "3/4")}, "names one twice"),
        ({"meters": ("4/4", "3/5")}, "'3/5'"),
        ({"meters": ("4/4", "0/4")}, "'0/4'"),
        ({"meters": ("4/4", "waltz")}, "'waltz' is not like"),
        ({"meters": ("4/4", "2/2"), "grid": ("0-4:3",)}, "grid has 3"),
        ({"meters": ("4/4", "255/4"), "grid": ("0-4:24",)}, "a bar of 6120 positions, limit 4096"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RemiConfig(**change)


# --- what stands where


def test_bars_positions_and_notes() -> None:
    score = score_of((0, 480, 60, 80), (720, 120, 62, 127), (QUARTER * 9, 60, 64, 1))
    assert text(score) == (
        "Bar TimeSig4/4 Position0 Program0 Pitch60 Velocity79 Duration1.0.8 "
        "Position12 Program0 Pitch62 Velocity127 Duration0.2.8 "
        "Bar TimeSig4/4 Bar TimeSig4/4 Position8 Program0 Pitch64 Velocity7 Duration0.1.8"
    )


def test_programs_stand_in_the_order_of_their_first_track() -> None:
    late = score_of((480, 60, 60, 80, 1), (480, 60, 50, 80, 2), (0, 60, 40, 80, 1), (480, 60, 36, 80, 3))
    # Track 0 has no notes; tracks 0 and 2 share a program, which still stands behind that of track 1.
    assert text(late).split(" Position8 ")[1] == (
        "Program40 Pitch60 Velocity79 Duration0.1.8 "
        "Program0 Pitch50 Velocity79 Duration0.1.8 "
        "Program-1 PitchDrum36 Velocity79 Duration0.1.8"
    )


def test_a_chord_stands_before_its_notes() -> None:
    triad = [(0, 480, pitch, 80) for pitch in (60, 64, 67)]
    assert text(score_of(*triad)).split()[2:6] == ["Position0", "Program0", "Chordmaj", "Program0"]
    assert "Program0 ChordC:maj Program0 Pitch60" in text(score_of(*triad), FULL)
    assert "ChordF#:7min" in text(score_of(*((0, 480, pitch, 80) for pitch in (54, 57, 61, 64))), FULL)
    assert "Chord" not in text(score_of(*((0, 480, pitch, 80, 3) for pitch in (60, 64, 67))))  # drums
    assert "Chord" not in text(score_of(*triad[:2], (0, 480, 67, 80, 1)))  # two programs
    assert "Chord" not in text(score_of(*triad[:2], (0, 1000, 67, 80)))  # ends too late
    assert "Chord" not in text(score_of(*((0, 480, pitch, 80) for pitch in (64, 67, 72))))  # inverted
    assert "Chordmaj" in text(score_of(*triad[:2], (60, 480, 67, 80)))  # a position late is still together


def test_tempos_and_rests() -> None:
    score = score_of(
        (480, 240, 60, 80), (480 * 7, 60, 60, 80), tempos=((0, 500_000), (960, 502_000), (480 * 5, 1_000_000))
    )
    assert text(score, FULL) == (
        "Bar TimeSig4/4 Position0 Tempo121.29 Rest1.0.4 Position8 Program0 Pitch60 Velocity80 Duration0.4.8 "
        "Rest3.1.2 Position8 Tempo60.32 Rest2.0.2 Position24 Program0 Pitch60 Velocity80 Duration0.1.8"
    )
    again = RemiTokenizer(replace(FULL.config, repeat_tempos=True, rests=False))
    assert text(score, again).count("Tempo121.29") == 2
    assert "Rest" not in text(score, again)


def test_a_piece_may_begin_with_a_rest() -> None:
    assert text(score_of((480, 480, 60, 80)), BARE) == "Rest1.0.4 Position4 Program0 Pitch60 Duration1.0.4"


def test_time_signatures_wait_for_the_next_bar() -> None:
    score = score_of(
        (0, 480, 60, 80), (480 * 7, 240, 62, 80), time_signatures=[(0, 3, 4), (600, 6, 8), (480 * 20, 4, 4)]
    )
    assert text(score) == (
        "Bar TimeSig3/4 Position0 Program0 Pitch60 Velocity79 Duration1.0.8 "
        "Bar TimeSig6/8 Bar TimeSig6/8 Position16 Program0 Pitch62 Velocity79 Duration1.0.8 "
        "Bar TimeSig6/8 Bar TimeSig6/8 Bar TimeSig6/8 Bar TimeSig6/8 Bar TimeSig4/4"
    )


def test_pieces_without_notes() -> None:
    one, none = score_of((0, 60, 60, 80)), score_of()
    assert text(none) == "Bar TimeSig4/4"
    assert text(none, BARE) == ""
    batch = encode(none, one, none)
    assert batch.n_notes.tolist() == [0, 1, 0]
    assert np.diff(batch.offsets).tolist() == [4, 9, 4]
    assert batch.seconds.tolist() == [0, 0.0625, 0]
    assert len(encode().ids) == 0
    assert encode(none, tokenizer=BARE).ids.tolist() == [1, 2]


def test_losses_are_counted() -> None:
    score = score_of(
        (0, 480, 20, 80), (0, 480, 110, 80), (0, 480, 26, 80, 3), (0, 480, 27, 80, 3),  # out of range, and just inside
        (0, 480, 60, 80), (0, 240, 60, 90, 2), (20, 480, 60, 80), (20, 480, 60, 80, 1),  # program 0 three times
        (960, 30_000, 72, 80),
        time_signatures=[(0, 4, 4), (950, 7, 8)],
    )  # fmt: skip
    batch = encode(score)
    counts = {reason: count.tolist() for reason, count in batch.dropped.items()}
    assert counts == {"out_of_range": [3], "duplicate": [2], "duration_clamped": [1], "other_meter": [1]}
    assert batch.n_notes.tolist() == [4]
    assert batch.seconds[0] == pytest.approx(30_960 / 960)


@pytest.mark.parametrize(("duplicates", "kept"), [("shortest", (8, 55)), ("longest", (16, 63))])
def test_which_duplicate_is_kept(duplicates: Any, kept: tuple[int, int]) -> None:
    tokenizer = RemiTokenizer(RemiConfig(duplicates=duplicates))
    doubled = score_of((0, 480, 60, 50), (0, 240, 60, 90), (0, 240, 60, 55, 2), (0, 480, 60, 63))
    back = tokenizer.decode(encode(doubled, tokenizer=tokenizer).ids)
    assert note_set(back) == [(0, kept[0], 60, kept[1], 0)]


def test_more_ticks_than_the_grid_has_are_refused() -> None:
    far = make_score([(2**31 - 10, 5, 60, 80)], ticks_per_quarter=4)
    near = make_score([(0, 5, 60, 80)], ticks_per_quarter=4)
    with pytest.raises(ValueError, match=r"tick 4294967276 of the grid above 2147483647 \(piece 1\)"):
        encode(near, far)


# --- laws


@examples(60)
@given(st.lists(st.sampled_from([0, 480, 960, 5 * 480]), unique=True), st.data())
def test_tempos_come_back_as_levels(ticks: list[int], data: st.DataObject) -> None:
    levels = np.round(60_000_000 / FULL.vocabulary.tempos).astype(int).tolist()
    drawn = [data.draw(st.sampled_from(levels)) for _ in ticks]
    tempos = sorted(({0: levels[12]} | dict(zip(ticks, drawn, strict=True))).items())
    kept = [row for row, before in zip(tempos, [(0, 0), *tempos], strict=False) if row[1] != before[1]]
    back = FULL.decode(encode(score_of((0, 60, 60, 80), tempos=tempos), tokenizer=FULL).ids)
    factor = back.ticks_per_quarter / QUARTER
    assert back.tempos.tick.tolist() == [tick * factor for tick, _ in kept]
    assert back.tempos.microseconds_per_quarter.tolist() == [tempo for _, tempo in kept]


def test_decoded_scores_survive_a_file() -> None:
    score = score_of(
        (0, 480, 60, 80), (0, 480, 48, 80, 1), (480, 60, 62, 80, 2), (480, 60, 36, 80, 3),
        time_signatures=[(0, 6, 8)], tempos=((0, 600_000),),
    )  # fmt: skip
    for tokenizer in ALL:
        ids = encode(score, tokenizer=tokenizer).ids
        through_file = read_midi(write_midi(tokenizer.decode(ids)))
        assert np.array_equal(encode(through_file, tokenizer=tokenizer).ids, ids)


@examples(50)
@given(st.lists(scores(), min_size=1, max_size=4))
def test_a_piece_has_the_same_tokens_in_any_company(pieces: list[Score]) -> None:
    together = encode(*pieces)
    alone = [encode(piece) for piece in pieces]
    assert np.array_equal(together.ids, np.concatenate([batch.ids for batch in alone]))
    assert np.diff(together.offsets).tolist() == [len(batch.ids) for batch in alone]
    for reason in together.dropped:
        assert together.dropped[reason].tolist() == [batch.dropped[reason][0] for batch in alone]


def test_columns_of_other_types_and_without_leave_to_write() -> None:
    batch = score_of((0, 480, 60, 80), (480, 60, 62, 80, 1)).notes
    other = {}
    for name in ("onset", "pitch", "track", "tempo_tick", "ticks_per_quarter"):
        other[name] = getattr(batch, name).astype(np.int32)
        other[name].flags.writeable = False
    assert np.array_equal(TOKENIZER.encode(replace(batch, **other)).ids, TOKENIZER.encode(batch).ids)


def test_chords_of_many_notes_at_one_tick() -> None:
    """More notes than are sorted one by one, and than are looked at for a chord."""
    notes = [(0, 480, pitch, 80, track) for pitch in range(60, 100) for track in (1, 0)]
    names = text(score_of(*notes)).split()
    assert [name for name in names if name.startswith("Pitch")] == [f"Pitch{pitch}" for pitch in range(60, 100)] * 2
    assert "Chord" not in " ".join(names)


@pytest.mark.parametrize("tokenizer", [TOKENIZER, RemiTokenizer(replace(BARE.config, chords="root"))])
@examples(60)
@given(score=scores(longest=4 * QUARTER), semitones=st.integers(-24, 24))
def test_transposing_ids_is_transposing_notes(tokenizer: RemiTokenizer, score: Score, semitones: int) -> None:
    batch = score.notes
    plain = tokenizer.encode(batch)
    assume(not plain.dropped["out_of_range"].any())
    pitches = score.notes.pitch[~score.notes.is_drum].astype(int) + semitones
    fits = bool(np.all((pitches >= tokenizer.config.pitch_min) & (pitches <= tokenizer.config.pitch_max)))
    ids = tokenizer.transpose_ids(plain.ids, semitones)
    assert (ids is not None) == fits
    if ids is not None:
        assert ids.dtype == np.uint16
        assert np.array_equal(ids, tokenizer.encode(transpose(batch, semitones)[0]).ids)


def test_transposing_moves_the_roots_of_chords() -> None:
    triad = encode(score_of(*((0, 480, pitch, 80) for pitch in (60, 64, 67))), tokenizer=FULL).ids
    for semitones, name in ((-1, "Chord_B:maj"), (0, "Chord_C:maj"), (14, "Chord_D:maj")):
        moved = FULL.transpose_ids(triad, semitones)
        assert moved is not None
        assert FULL.token_id(name) in moved


@pytest.mark.parametrize("tokenizer", ALL)
@examples(60)
@given(data=st.data())
def test_whatever_a_model_writes_becomes_a_score(tokenizer: RemiTokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=200))
    score = tokenizer.decode(ids)
    assert np.all(score.notes.duration >= 1)
    assert score.tempos.tick[0] == 0
    for changes in (score.tempos.tick, score.time_signatures.tick):
        assert np.all(np.diff(changes) > 0)
    assert first_violation(tokenizer.grammar, encode(score, tokenizer=tokenizer).ids.tolist()) is None


# --- decoding by hand


@pytest.mark.parametrize(
    ("written", "notes"),
    [
        ("", []),
        ("Bar_None TimeSig_4/4 EOS_None Position_0 Program_0 Pitch_60 Velocity_79 Duration_1.0.8", []),
        ("Pitch_60 Velocity_79 Duration_1.0.8", [(0, 16, 60, 79, 0)]),  # before any bar or program
        ("Bar_None Pitch_60 Velocity_79 Pitch_61 Duration_1.0.8", []),
        ("Bar_None Pitch_60 Duration_1.0.8", []),
        ("Bar_None Pitch_60 Velocity_79", []),
        ("Program_5 PitchDrum_36 Velocity_7 Duration_0.1.8", [(0, 2, 36, 7, 5)]),
        ("Program_-1 Pitch_36 Velocity_7 Duration_0.1.8", [(0, 2, 36, 7, DRUMS)]),
        ("Bar_None TimeSig_3/8 Bar_None TimeSig_3/8 Pitch_60 Velocity_7 Duration_0.1.8", [(24, 1, 60, 7, 0)]),
        ("Bar_None Bar_None Position_3 Pitch_60 Velocity_7 Duration_0.1.8", [(70, 2, 60, 7, 0)]),
        (
            "Bar_None Position_9 Pitch_60 Velocity_7 Duration_0.1.8 Position_2 Pitch_60 Velocity_7 Duration_0.1.8",
            [(4, 2, 60, 7, 0), (18, 2, 60, 7, 0)],
        ),
    ],
)
def test_decoding_forgives(written: str, notes: list[tuple[int, ...]]) -> None:
    assert note_set(TOKENIZER.decode([TOKENIZER.token_id(name) for name in written.split()])) == notes


def test_programs_that_contradict_each_other_are_numbered() -> None:
    one, other = (f"Program_{program} Pitch_60 Velocity_79 Duration_1.0.8" for program in (0, 40))
    written = f"Bar_None Position_0 {other} {one} Position_8 {one} {other}".split()
    notes = TOKENIZER.decode([TOKENIZER.token_id(name) for name in written]).notes
    assert sorted(set(zip(notes.program.tolist(), notes.track.tolist(), strict=True))) == [(0, 1), (40, 0)]


@pytest.mark.parametrize("ids", [[1, 484], [-1]])
def test_ids_outside_the_vocabulary_are_refused(ids: list[int]) -> None:
    for method in (TOKENIZER.decode, lambda tokens: TOKENIZER.transpose_ids(tokens, 1)):
        with pytest.raises(ValueError, match="outside 0-483"):
            method(ids)


# --- identity of a tokenizer


def test_json_form_comes_back() -> None:
    for tokenizer in ALL:
        form = json.loads(json.dumps(tokenizer.to_json()))
        assert form == tokenizer.to_json()
        fields: dict[str, Any] = {
            key: tuple(form[key]) if isinstance(form[key], list) else form[key] for key in asdict(tokenizer.config)
        }
        again = RemiTokenizer(RemiConfig(**fields))
        assert again.config == tokenizer.config
        assert again.digest == tokenizer.digest
    assert len({tokenizer.digest for tokenizer in ALL}) == len(ALL)


# --- real music


@pytest.mark.parametrize("source", ["pop909", "tegridy-select", "asap", "groove", "openmsx"])
def test_real_pieces(source: str) -> None:
    paths = sorted((real_data("dev") / source).rglob("*.mid"))
    pieces = [read_midi(path) for path in paths[:: max(len(paths) // 12, 1)]]
    for tokenizer in ALL:
        batch = encode(*pieces, tokenizer=tokenizer)
        n_offered = [len(piece.notes.pitch) for piece in pieces]
        lost = batch.dropped["out_of_range"] + batch.dropped["duplicate"]
        assert (batch.n_notes + lost).tolist() == n_offered
        again = encode(
            *(tokenizer.decode(ids) for ids in np.split(batch.ids, batch.offsets[1:-1])), tokenizer=tokenizer
        )
        assert np.array_equal(again.ids, batch.ids)
        for ids in np.split(batch.ids, batch.offsets[1:-1]):
            assert first_violation(tokenizer.grammar, ids.tolist()) is None
