"""The `remi` tokenizer against MidiTok 3.1.0: the same ids for the same notes, and the same music back.

From bytes, two readers stand between a file and its ids. Where they disagree about the file (see `reading_differences`)
ids may differ, and only there.
"""

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from tasks.errors import BadScore
from tasks.music.midi.read_midi import read_midi
from tasks.music.score import Score
from tasks.music.tokenizers.remi.tokenizer import RemiTokenizer
from tasks.music.tokenizers.remi.vocabulary import RemiConfig
from tests.budget import examples
from tests.builders import DRUMS, make_score
from tests.conftest import real_data
from tests.tasks.music.tokenizers.remi.test_remi import PROGRAMS, note_set, scores

miditok = pytest.importorskip("miditok", reason="MidiTok is needed to compare with it: pip install miditok==3.1.0")
symusic = pytest.importorskip("symusic")

SETTINGS = {
    "hourglass": RemiConfig(),
    "all_events": RemiConfig(tempos=True, rests=True, chords="root", n_velocities=32),
    "common_time": RemiConfig(
        time_signatures=False, chords="none", drum_pitches=False, n_velocities=0, tempos=True, log_tempos=True,
        n_tempos=20, repeat_tempos=True,
    ),
    "fine": RemiConfig(
        meters=("2/2", "4/2", "7/8", "6/8", "12/8", "3/16", "5/4", "3/4", "2/4", "1/4", "4/4"),
        grid=("0-2:12", "2-4:4", "4-10:1"), n_velocities=127, rests=True, rest_grid=("0-2:4", "2-8:1"), pitch_min=0,
        pitch_max=127, drum_pitch_min=0, drum_pitch_max=127, tempos=True,
    ),
    "coarse": RemiConfig(
        time_signatures=False, rests=True, n_velocities=8, grid=("0-2:4", "2-8:2"), rest_grid=("0-1:4", "1-4:1"),
    ),
}  # fmt: skip


def peer_of(config: RemiConfig) -> Any:
    """MidiTok's tokenizer with the settings of a config."""
    meters: dict[int, list[int]] = {}
    for meter in config.meters:
        numerator, denominator = map(int, meter.split("/"))
        meters.setdefault(denominator, []).append(numerator)
    return miditok.REMI(
        miditok.TokenizerConfig(
            use_programs=True,
            remove_duplicated_notes=True,
            delete_equal_successive_time_sig_changes=True,
            use_velocities=config.n_velocities > 0,
            num_velocities=config.n_velocities or 1,
            use_chords=config.chords != "none",
            chord_tokens_with_root_note=config.chords == "root",
            use_tempos=config.tempos,
            num_tempos=config.n_tempos,
            tempo_range=(config.tempo_min, config.tempo_max),
            log_tempos=config.log_tempos,
            delete_equal_successive_tempo_changes=not config.repeat_tempos,
            use_time_signatures=config.time_signatures,
            time_signature_range=meters,
            use_rests=config.rests,
            beat_res=grid_of(config.grid),
            beat_res_rest=grid_of(config.rest_grid),
            pitch_range=(config.pitch_min, config.pitch_max),
            use_pitchdrum_tokens=config.drum_pitches,
            drums_pitch_range=(config.drum_pitch_min, config.drum_pitch_max),
        )
    )


def grid_of(texts: tuple[str, ...]) -> dict[tuple[int, int], int]:
    rows = [text.replace("-", ":").split(":") for text in texts]
    return {(int(begin), int(end)): int(steps) for begin, end, steps in rows}


PEERS = {name: (RemiTokenizer(config), peer_of(config)) for name, config in SETTINGS.items()}


def to_symusic(score: Score) -> Any:
    """The same notes, tempos and time signatures, a track for each part."""
    made, notes = symusic.Score(score.ticks_per_quarter), score.notes
    for part in range(score.n_tracks):
        mine = np.flatnonzero(notes.track == part)
        if len(mine):
            track = symusic.Track(program=int(notes.program[mine[0]]), is_drum=bool(notes.is_drum[mine[0]]))
            columns = (notes.onset, notes.duration, notes.pitch, notes.velocity)
            kinds = (np.int32, np.int32, np.int8, np.int8)
            track.notes = symusic.Note.from_numpy(
                *(values[mine].astype(kind) for values, kind in zip(columns, kinds, strict=True))
            )
            made.tracks.append(track)
    tempos, meters = score.tempos, score.time_signatures
    made.tempos = symusic.Tempo.from_numpy(
        tempos.tick.astype(np.int32), tempos.microseconds_per_quarter.astype(np.int32)
    )
    for change in zip(meters.tick.tolist(), meters.numerator.tolist(), meters.denominator.tolist(), strict=True):
        made.time_signatures.append(symusic.TimeSignature(*change))
    return made


def ids_of(score: Score, tokenizer: RemiTokenizer) -> list[int]:
    return tokenizer.encode(score.notes).ids[1:-1].tolist()


def rows_of(score: Any) -> list[tuple[int, ...]]:
    """As `note_set`, of a symusic score."""
    rows = []
    for track in score.tracks:
        notes, program = track.notes.numpy(), DRUMS if track.is_drum else int(track.program)
        columns = (notes[name].tolist() for name in ("time", "duration", "pitch", "velocity"))
        rows += [(*row, program) for row in zip(*columns, strict=True)]
    return sorted(rows)


def reading_differences(score: Score, peer: Any) -> set[str]:
    """What the two readers see otherwise in a file."""
    found = set[str]()
    parts = [DRUMS if track.is_drum else int(track.program) for track in peer.tracks if len(track.notes)]
    first = np.unique(score.notes.track, return_index=True)[1]
    programs = np.where(score.notes.is_drum, DRUMS, score.notes.program.astype(int))[first].tolist()
    if parts != programs or len(parts) < len(peer.tracks):
        found.add("order of the parts, their programs, or parts without notes")
    # A note of no length has one tick in our reading; on the grid both get a step.
    if rows_of(peer) != note_set(score) and [
        (onset, max(duration, 1), *rest) for onset, duration, *rest in rows_of(peer)
    ] != note_set(score):
        found.add("notes")
    meters, tempos = peer.time_signatures.numpy(), peer.tempos.numpy()
    if len(meters["time"]) != len(score.time_signatures.tick):
        found.add("several time signatures at one tick")
    if len(tempos["time"]) != len(score.tempos.tick):
        found.add("several tempos at one tick, or none at the beginning")
    return found


def real_files(every: int) -> Iterator[Path]:
    suffixes = (".mid", ".midi", ".kar", ".rmi")
    files = sorted(path for path in real_data("dev").rglob("*") if path.name.lower().endswith(suffixes))
    yield from itertools.islice(files, 0, None, every)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_vocabulary_is_the_same(name: str) -> None:
    ours, peer = PEERS[name]
    assert ours.vocabulary.ids == peer.vocab


@pytest.mark.parametrize("name", SETTINGS)
@examples(60)
@given(score=scores())
def test_generated_scores_have_the_same_ids(name: str, score: Score) -> None:
    ours, peer = PEERS[name]
    assert ids_of(score, ours) == peer(to_symusic(score)).ids


@pytest.mark.parametrize("name", SETTINGS)
@examples(30)
@given(score=scores())
def test_ids_mean_the_same_music(name: str, score: Score) -> None:
    ours, peer = PEERS[name]
    ids = ids_of(score, ours)
    mine, other = ours.decode(ids), peer.decode(miditok.TokSequence(ids=ids))
    assert mine.ticks_per_quarter == other.ticks_per_quarter
    # MidiTok decodes a drum by the range of the other pitches; all of these ranges hold that of the drums.
    assert note_set(mine) == rows_of(other)
    meters = [(meter.time, meter.numerator, meter.denominator) for meter in other.time_signatures]
    own = mine.time_signatures
    assert list(zip(own.tick.tolist(), own.numerator.tolist(), own.denominator.tolist(), strict=True)) == meters


def test_chords_among_many_notes() -> None:
    """More notes at one tick than MidiTok looks at, chords that overlap, and notes a position apart."""
    rng = np.random.default_rng(3)
    for _ in range(40):
        onsets = rng.integers(0, 12, 60) * 60
        pitches = rng.choice([48, 52, 55, 57, 60, 64, 67, 70], 60)
        rows = zip(onsets.tolist(), rng.choice([60, 240, 480, 500], 60).tolist(), pitches.tolist(), strict=True)
        score = make_score(
            [(*row, 80, int(part)) for row, part in zip(rows, rng.integers(0, 3, 60), strict=True)],
            programs=PROGRAMS, ticks_per_quarter=480, time_signatures=[(0, 4, 4), (1920, 6, 8)],
        )  # fmt: skip
        for ours, peer in PEERS.values():
            assert ids_of(score, ours) == peer(to_symusic(score)).ids


def test_the_longest_duplicate_is_ours_alone() -> None:
    score = make_score([(0, 480, 60, 80), (0, 240, 60, 90)], ticks_per_quarter=480)
    ours = RemiTokenizer(replace(SETTINGS["hourglass"], duplicates="longest"))
    peer = PEERS["hourglass"][1]
    assert "Duration_0.4.8" in peer(to_symusic(score)).tokens
    assert ours.token_id("Duration_1.0.8") in ids_of(score, ours)


def compare(name: str, every: int) -> Counter[str]:
    """Compare real files; returns how many were the same, and why others are not, read by each side for itself."""
    ours, peer = PEERS[name]
    counts = Counter[str]()
    for path in real_files(every):
        try:
            score, other = read_midi(path), symusic.Score(path)
        except (BadScore, RuntimeError):
            continue
        ids = ids_of(score, ours)
        assert ids == peer(to_symusic(score)).ids, path
        is_same = ids == peer(other).ids
        assert is_same or reading_differences(score, other), path
        counts["same" if is_same else ", ".join(sorted(reading_differences(score, other)))] += 1
    return counts


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_real_files_have_the_same_ids(name: str) -> None:
    assert compare(name, every=400)["same"] >= 10


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["all_events", "common_time", "fine", "coarse"])
def test_a_tenth_of_all_real_files(name: str) -> None:
    counts = compare(name, every=10)
    assert counts["same"] >= 0.9 * counts.total(), counts


@pytest.mark.nightly
def test_a_fifth_of_all_real_files() -> None:  # all of them held too, in six minutes
    counts = compare("hourglass", every=5)
    assert counts["same"] >= 0.95 * counts.total(), counts
