"""The program behind the sample corpus: same bytes everywhere, lawful files of many shapes, music by its own rules."""

import collections
import hashlib
import io
import lzma
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib import resources
from itertools import pairwise

import mido
import numpy as np
import pytest
import symusic

from bench.sample_corpus.dice import Dice
from bench.sample_corpus.harmony import (
    MAJOR_MOTION,
    MINOR_MOTION,
    MINOR_TONIC_NAMES,
    TONIC_NAMES,
    Key,
    build_phrase,
    chord,
    scale_for,
)
from bench.sample_corpus.midi_file import Note, Part, Piece, encode_midi, to_ticks
from bench.sample_corpus.ornaments import has_parallels
from bench.sample_corpus.voicing import VOICE_RANGES, list_voicings
from bench.sample_corpus.writer import README, build_archive, flawed_files, pieces
from tasks.errors import ConfigError
from tasks.ingest.sources.sample_corpus import sample_files

pytestmark = [pytest.mark.slow, pytest.mark.nightly]  # the program has made its files; they are shipped

N_PIECES = 200
KEYS = [Key(tonic, is_minor) for tonic in range(12) for is_minor in (False, True)]
IN_KEY = {"major": {0, 2, 4, 5, 7, 9, 11}, "minor": {0, 2, 3, 5, 7, 8, 9, 10, 11}}  # minor: natural and melodic


@dataclass
class Heard:
    """One file as mido reads it: notes (onset, end, pitch, velocity, channel) in ticks, and its other events."""

    name: str
    file: mido.MidiFile
    notes: list[tuple[int, int, int, int, int]]
    metas: list[tuple[int, int, mido.MetaMessage]]  # tick, track, message
    n_unpaired: int

    def of_type(self, kind: str) -> list[tuple[int, int, mido.MetaMessage]]:
        return [meta for meta in self.metas if meta[2].type == kind]

    @property
    def family(self) -> str:
        return self.name.split("-")[0]


def hear(name: str, data: bytes) -> Heard:
    file = mido.MidiFile(file=io.BytesIO(data))
    notes, metas, n_unpaired = [], [], 0
    for number, track in enumerate(file.tracks):
        now, sounding = 0, {}
        for message in track:
            now += message.time
            if message.is_meta:
                metas.append((now, number, message))
            elif message.type == "note_on" and message.velocity:
                n_unpaired += (message.channel, message.note) in sounding
                sounding[message.channel, message.note] = (now, message.velocity)
            elif message.type in ("note_on", "note_off"):
                onset, velocity = sounding.pop((message.channel, message.note), (None, 0))
                n_unpaired += onset is None
                if onset is not None:
                    notes.append((onset, now, message.note, velocity, message.channel))
        n_unpaired += len(sounding)
    return Heard(name, file, sorted(notes), metas, n_unpaired)


@pytest.fixture(scope="module")
def corpus() -> list[tuple[str, bytes]]:
    return list(pieces(N_PIECES))


@pytest.fixture(scope="module")
def heard(corpus: list[tuple[str, bytes]]) -> list[Heard]:
    return [hear(name, data) for name, data in corpus]


@pytest.fixture(scope="module")
def chorales(heard: list[Heard]) -> list[Heard]:
    return [piece for piece in heard if piece.family == "chorale"]


def parse_key(name: str) -> Key:
    """Return the key at the end of a name such as `g-sharp-minor`."""
    mode = name.rsplit("-", 1)[1]
    names = MINOR_TONIC_NAMES if mode == "minor" else TONIC_NAMES
    tonic = max((tonic for tonic in names if name.endswith(f"-{tonic}-{mode}")), key=len)
    return Key(names.index(tonic), mode == "minor")


def sonorities(piece: Heard) -> list[np.ndarray]:
    """Return the pitches of the four voices, bass first, after every onset at which all of them sound."""
    voices = [[note for note in piece.notes if note[4] == channel] for channel in (3, 2, 1, 0)]
    slices = []
    for tick in sorted({note[0] for note in piece.notes}):
        sounding = [[note[2] for note in voice if note[0] <= tick < note[1]] for voice in voices]
        if all(len(pitches) == 1 for pitches in sounding):
            slices.append(np.array([pitches[0] for pitches in sounding]))
    return slices


# --- the same bytes everywhere ---


def test_two_processes_write_the_same_bytes(corpus):
    script = (
        "import hashlib; from bench.sample_corpus.writer import pieces; d = hashlib.sha256()\n"
        f"for name, data in pieces({N_PIECES}): d.update(name.encode() + data)\n"
        "import sys; sys.stdout.write(d.hexdigest())"
    )
    digest = hashlib.sha256()
    for name, data in corpus:
        digest.update(name.encode() + data)
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert other.stdout == digest.hexdigest()


def test_a_piece_depends_only_on_seed_and_index(corpus):
    assert list(pieces(7)) == corpus[:7]
    others = list(pieces(7, seed=1))
    assert all(one != other for (_, one), (_, other) in zip(others, corpus, strict=False))


def test_no_two_pieces_are_alike(corpus):
    assert len({name for name, _ in corpus}) == len({data for _, data in corpus}) == N_PIECES


def test_global_random_state_is_left_alone():
    np.random.seed(3)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    list(pieces(3))
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


@pytest.mark.parametrize(
    ("arguments", "named"), [((-1, 0), "n_pieces=-1"), ((3, -5), "seed=-5"), ((3, 2**63), "seed=")]
)
def test_impossible_arguments_are_named(arguments: tuple[int, int], named: str):
    with pytest.raises(ConfigError, match=named):
        next(pieces(*arguments))


# --- the shipped archive ---


def test_the_program_makes_exactly_the_shipped_files(corpus):
    made = dict([*corpus, *((f"flawed/{name}", data) for name, data in flawed_files())])
    shipped = sample_files()
    assert shipped.pop("README.txt").decode() == README
    assert list(shipped.items()) == list(made.items())


def test_the_archive_is_the_same_bytes_each_time():
    with (resources.files("tasks.ingest.sources") / "sample_corpus.tar.xz").open("rb") as handle:
        shipped = handle.read()
    built = build_archive()
    assert built == build_archive()
    assert lzma.decompress(built) == lzma.decompress(shipped)  # another liblzma may compress the same bytes otherwise


# --- the files ---


def test_both_readers_find_the_same_notes(corpus, heard):
    for (name, data), piece in zip(corpus, heard, strict=True):
        score = symusic.Score.from_midi(data)
        found = sorted(
            (n.time, n.time + n.duration, n.pitch, n.velocity) for track in score.tracks for n in track.notes
        )
        assert found == sorted(note[:4] for note in piece.notes), name
        assert score.ticks_per_quarter == piece.file.ticks_per_beat, name


def test_every_note_on_has_one_note_off(heard):
    assert [piece.name for piece in heard if piece.n_unpaired] == []
    assert all(end > onset for piece in heard for onset, end, *_ in piece.notes)


def test_lengths_are_in_range(heard):
    for piece in heard:
        assert 120 <= len(piece.notes) <= 600, piece.name
        assert 20 <= piece.file.length <= 70, piece.name


@pytest.mark.parametrize("seed", [1, 2**40])
def test_other_seeds_keep_the_bounds(seed: int):
    for name, data in pieces(60, seed):
        piece = hear(name, data)
        assert 120 <= len(piece.notes) <= 600, name
        assert 20 <= piece.file.length <= 70, name
        assert piece.n_unpaired == 0, name


def test_families_are_balanced(heard):
    counts = collections.Counter(piece.family for piece in heard)
    assert counts == {"chorale": 80, "piano": 70, "band": 50}
    assert {piece.family for piece in heard[:3]} == set(counts), "a few pieces show every kind"


def test_files_have_many_shapes(corpus, heard):
    meters, shapes, programs, resolutions = (collections.Counter() for _ in range(4))
    for piece in heard:
        meters.update({(m.numerator, m.denominator) for *_, m in piece.of_type("time_signature")})
        resolutions[piece.file.ticks_per_beat] += 1
        tempos = piece.of_type("set_tempo")
        messages = [message for track in piece.file.tracks for message in track]
        programs.update({m.program for m in messages if m.type == "program_change" and m.channel != 9})
        shapes[f"type {piece.file.type}"] += 1
        shapes["many tempos"] += len(tempos) > 20
        shapes["one tempo"] += len(tempos) == 1
        shapes["tempo outside track 0"] += any(track > 0 for _, track, _ in tempos)
        shapes["pedal"] += any(m.type == "control_change" and m.control == 64 and m.value >= 64 for m in messages)
        shapes["drums"] += any(note[4] == 9 for note in piece.notes)
        shapes["key signature"] += bool(piece.of_type("key_signature"))
        shapes["no key signature"] += not piece.of_type("key_signature")
        shapes["no program"] += not any(m.type == "program_change" for m in messages)
        shapes["pickup"] += len(piece.of_type("time_signature")) > 1
        shapes["minor"] += piece.name.endswith("minor.mid")
        shapes["note-off by velocity 0"] += not any(m.type == "note_off" for m in messages)
    for meter, floor in {(4, 4): 60, (3, 4): 30, (6, 8): 15, (2, 4): 15, (5, 4): 8}.items():
        assert meters[meter] >= floor, (meter, meters)
    assert set(resolutions) == {96, 120, 220, 384, 480, 960}
    assert min(resolutions.values()) >= 15, resolutions
    assert len(programs) >= 30
    floors = {"type 0": 40, "type 1": 100, "many tempos": 60, "one tempo": 20, "tempo outside track 0": 20, "pedal": 50}
    floors |= {"drums": 50, "key signature": 100, "no key signature": 30, "no program": 20, "pickup": 20, "minor": 60}
    for shape, floor in (floors | {"note-off by velocity 0": 60}).items():
        assert shapes[shape] >= floor, (shape, shapes[shape])


def test_running_status_saves_bytes_and_changes_nothing():
    notes = [Note(beat, 0.5, 60 + beat % 12, 80) for beat in range(40)]
    texts = {}
    for midi_type in (0, 1):
        for running_status in (False, True):
            piece = Piece("x", [Part("a", 0, 5, notes), Part("b", 1, None, notes[:9])], [(0, 90.0)], [(0, 3, 4)])
            piece.midi_type, piece.running_status = midi_type, running_status
            texts[midi_type, running_status] = encode_midi(piece)
    assert len({tuple(hear("", data).notes) for data in texts.values()}) == 1
    assert all(len(texts[kind, True]) < len(texts[kind, False]) - 50 for kind in (0, 1))


def test_writer_separates_notes_that_collide():
    notes = [Note(0, 4, 60, 70), Note(1, 1, 60, 80), Note(1, 2, 60, 90), Note(9, 0.0001, 60, 200), Note(-0.5, 1, 62, 0)]
    rows = to_ticks(notes, 96)
    assert rows == [(0, 48, 62, 1), (0, 96, 60, 70), (96, 288, 60, 90), (864, 865, 60, 127)]


def test_writer_states_long_gaps_and_signatures():
    far = Note(5000.0, 1.0, 64, 90)  # 4,800,000 ticks need four bytes
    piece = Piece("far", [Part("a", 3, 19, [far])], [(0, 120.0), (7.5, 33.3)], [(0, 1, 4), (1, 6, 8)])
    piece.key_signatures, piece.ticks_per_quarter, piece.later_tempos_in_first_part = [(0, -3, True)], 960, True
    read = hear("far", encode_midi(piece))
    assert read.notes == [(4_800_000, 4_800_960, 64, 90, 3)]
    assert [(tick, track, m.tempo) for tick, track, m in read.of_type("set_tempo")] == [
        (0, 0, 500_000),
        (7200, 1, 1_801_802),
    ]
    assert [(tick, m.numerator, m.denominator) for tick, _, m in read.of_type("time_signature")] == [
        (0, 1, 4),
        (960, 6, 8),
    ]
    assert read.of_type("key_signature")[0][2].key == "Cm"


# --- harmony ---


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_phrases_follow_the_tables_and_end_on_their_cadence(key: Key):
    motion = MINOR_MOTION if key.is_minor else MAJOR_MOTION
    dice = Dice(5, key.tonic)
    for n_chords in range(4, 12):
        for cadence in ("authentic", "half"):
            numerals = [each.numeral for each in build_phrase(dice, key, n_chords, cadence)]
            assert len(numerals) == n_chords
            assert numerals[0] == ("i" if key.is_minor else "I")
            assert numerals[-1] == ("V" if cadence == "half" else "i" if key.is_minor else "I")
            walked = [pair for pair in pairwise(numerals[:-3]) if pair[1] in motion]
            assert all(after in motion[before] for before, after in walked), numerals


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_key_signatures_name_the_scale(key: Key):
    sharps = [(6 + 7 * index) % 12 for index in range(7)]  # F sharp, C sharp, ... as pitch classes
    flats = [(10 + 5 * index) % 12 for index in range(7)]  # B flat, E flat, ...
    natural = {0, 2, 4, 5, 7, 9, 11}
    for index in range(key.sharps):
        natural = natural - {(sharps[index] - 1) % 12} | {sharps[index]}
    for index in range(-key.sharps):
        natural = natural - {(flats[index] + 1) % 12} | {flats[index]}
    assert {(key.tonic + step) % 12 for step in key.scale} == natural


def test_scales_hold_every_tone_of_their_chord():
    for key in KEYS:
        motion = MINOR_MOTION if key.is_minor else MAJOR_MOTION
        for numeral in {*motion, *(after for follow in motion.values() for after in follow)}:
            each = chord(key, numeral)
            assert set(each.pitch_classes) <= set(scale_for(each)), (key.name, numeral)
            assert len(set(scale_for(each))) == 7
            assert each.bass in each.pitch_classes
            assert len(list_voicings(each)[0]) >= 3, (key.name, numeral)


def test_chords_are_spelled_as_in_the_books():
    c_major, c_minor = Key(0, False), Key(0, True)
    assert chord(c_major, "V65/V").pitch_classes == (2, 6, 9, 0)  # D F# A C over F#
    assert chord(c_major, "V65/V").bass == 6
    assert chord(c_minor, "N6").pitch_classes == (1, 5, 8)  # Db F Ab over F
    assert chord(c_minor, "N6").bass == 5
    assert chord(c_minor, "viio6").leading_tone == 11
    assert chord(c_major, "V7").seventh == 5
    assert scale_for(chord(c_minor, "V")) == (0, 2, 3, 5, 7, 8, 11)
    assert scale_for(chord(c_major, "V65/IV")) == (0, 2, 4, 5, 7, 9, 10)


# --- chorales ---


def test_parallels_are_told_from_other_motion():
    fifths = np.array([48, 55, 64, 72]), np.array([50, 57, 65, 74])  # bass and tenor in fifths
    held = np.array([48, 55, 64, 72]), np.array([48, 55, 65, 69])  # the fifth stays where it is
    sixths = np.array([48, 57, 64, 73]), np.array([50, 59, 65, 72])
    assert [has_parallels(*pair) for pair in (fifths, held, sixths)] == [True, False, False]


def test_chorale_voices_stay_in_their_ranges_and_order(chorales):
    for piece in chorales:
        for voice, (low, high) in enumerate(VOICE_RANGES):
            pitches = [note[2] for note in piece.notes if note[4] == 3 - voice]
            assert low <= min(pitches) <= max(pitches) <= high, (piece.name, voice)
        for pitches in sonorities(piece):
            assert (np.diff(pitches) >= 0).all(), piece.name


def test_chorales_avoid_parallel_fifths_and_octaves(chorales):
    n_moves = n_parallels = 0
    for piece in chorales:
        for before, after in pairwise(sonorities(piece)):
            n_moves += 1
            n_parallels += has_parallels(before, after)
    assert n_moves > 4000
    assert n_parallels / n_moves < 0.01, f"{n_parallels} of {n_moves}"  # the few lie between a cadence and a new phrase


def test_chorales_stay_in_their_key(chorales):
    shares = []
    for piece in chorales:
        key = parse_key(piece.name.removesuffix(".mid"))
        scale = IN_KEY["minor" if key.is_minor else "major"]
        shares.append(np.mean([(note[2] - key.tonic) % 12 in scale for note in piece.notes]))
    assert np.mean(shares) > 0.95
    assert min(shares) > 0.9, chorales[int(np.argmin(shares))].name


def test_chorale_sopranos_sing_by_step(chorales):
    steps = [
        abs(after[2] - before[2])
        for piece in chorales
        for before, after in pairwise(note for note in piece.notes if note[4] == 0)
    ]
    assert np.mean(np.isin(steps, (1, 2))) > 0.55
    assert np.mean(np.array(steps) <= 4) > 0.9
    assert np.mean(np.array(steps) == 0) < 0.2
    assert max(steps) <= 12


def test_chorale_phrases_end_on_their_cadence(chorales):
    n_modulating = 0
    for piece in chorales:
        cadences = [(tick, message.text) for tick, _, message in piece.of_type("marker")]
        assert len(cadences) >= 5, piece.name
        home = parse_key(piece.name.removesuffix(".mid"))
        for tick, text in cadences:
            key = parse_key("-" + text.split()[-1])
            n_modulating += key != home
            root = (key.tonic + (7 if text.startswith("half") else 0)) % 12
            bass = next(note for note in piece.notes if note[4] == 3 and note[0] == tick)
            sounding = {note[2] % 12 for note in piece.notes if note[0] < bass[1] <= note[1]}
            assert bass[2] % 12 == root, (piece.name, text)
            assert sounding <= {root, (root + 3) % 12, (root + 4) % 12, (root + 7) % 12}, (piece.name, text)
            assert sounding & {(root + 3) % 12, (root + 4) % 12}, "a cadence has its third"
        assert cadences[-1][1] == f"authentic cadence in {home.name}"
    assert n_modulating > 60


# --- piano and band ---


def test_piano_pieces_breathe(heard):
    piano = [piece for piece in heard if piece.family == "piano"]
    for piece in piano:
        tempos = [message.tempo for *_, message in piece.of_type("set_tempo")]
        assert len(tempos) > 20, piece.name
        assert tempos[-1] > 1.12 * np.median(tempos), "the end is slower"
        velocities = [note[3] for note in piece.notes]
        assert np.std(velocities) > 5, piece.name
        last_bass = min(note[2] for note in piece.notes if note[1] >= max(note[1] for note in piece.notes) - 2)
        assert last_bass % 12 == parse_key(piece.name.removesuffix(".mid")).tonic, piece.name


def test_piano_sections_come_back(heard):
    for piece in (piece for piece in heard if piece.family == "piano"):
        letters = [message.text for *_, message in piece.of_type("marker") if len(message.text) == 1]
        assert "".join(letters) in {"ABA", "AABA", "ABACA", "AABB", "AABACA"}, piece.name


def test_bands_have_drums_bass_chords_and_lead(heard):
    with_toms, breaks = 0, 0
    for piece in (piece for piece in heard if piece.family == "band"):
        by_channel = collections.Counter(note[4] for note in piece.notes)
        assert {0, 1, 2, 9} <= set(by_channel), piece.name
        drums = {note[2] for note in piece.notes if note[4] == 9}
        assert drums <= set(range(35, 82)), "General MIDI drum keys"
        with_toms += bool(drums & {43, 47, 50})
        breaks += any(message.text == "break" for *_, message in piece.of_type("marker"))
        bass, lead = (np.mean([note[2] for note in piece.notes if note[4] == channel]) for channel in (2, 0))
        assert bass < 50, piece.name
        assert lead > 65, piece.name
    assert with_toms > 40
    assert 10 <= breaks <= 40
