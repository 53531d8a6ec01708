import hashlib
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from tasks.errors import ConfigError
from tasks.music.midi.read_midi import read_midi
from tasks.music.render import audio, soundfont
from tasks.music.render.soundfont import NoSound, Player, find_player
from tasks.music.score import Tempos, build_score
from tests.conftest import real_data
from tests.millisecond_scores import millisecond_score

RATE = soundfont.SAMPLE_RATE
NOTES = [(500 * i, 450, 60 + i, 90) for i in range(6)]
DRUM = (0, True, 0)


@pytest.fixture(scope="module", params=["midirenderer", "fluidsynth"])
def player(request: pytest.FixtureRequest) -> Player:
    if request.param == "fluidsynth" and not shutil.which("fluidsynth"):
        pytest.skip("the program `fluidsynth` is not on PATH (Debian: fluidsynth)")
    return find_player(request.param)


def loudness(samples: np.ndarray, start_seconds: float, end_seconds: float) -> float:
    part = samples[round(start_seconds * RATE) : round(end_seconds * RATE)].astype(np.float64)
    return float(np.sqrt(np.mean(part**2)))


def default_font() -> bytes:
    return Path(find_player().soundfont).read_bytes()


def broken_soundfont(folder: Path, data: bytes = b"RIFF\x04\x00\x00\x00sfbk") -> str:
    """Bytes that only look like a SoundFont from outside."""
    path = folder / "broken.sf2"
    path.write_bytes(data)
    return str(path)


# --- what is asked for ---


def test_by_default_it_is_what_pip_installs_whatever_the_machine_has(monkeypatch: pytest.MonkeyPatch):
    found = find_player()
    monkeypatch.setenv("PATH", "/gone")
    monkeypatch.setenv("ORCHESTRION_SOUNDFONT", "/gone.sf2")
    assert find_player() == found
    assert found.problem == ""
    assert found.made_with == f"midirenderer {version('midirenderer')} with TimGM6mb.sf2 (sha256 82475b91a76de15c)"
    assert found.identity == {"renderer": "midirenderer", "version": version("midirenderer"), "sha256": found.sha256}


def test_a_named_file_that_is_missing_or_no_soundfont_is_refused_at_once(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"soundfont='/no/such.sf2' cannot be read: No such file"):
        find_player(soundfont="/no/such.sf2")
    (tmp_path / "song.sf2").write_bytes(b"MThd")
    with pytest.raises(ConfigError, match=r"soundfont='.*song.sf2' is no SoundFont \(SF2 or SF3\)"):
        find_player(soundfont=str(tmp_path / "song.sf2"))


def test_fluidsynth_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "/gone")
    with pytest.raises(ConfigError, match="needs the program `fluidsynth`, which is not on PATH"):
        find_player("fluidsynth")


def test_a_soundfont_is_known_by_its_bytes(tmp_path: Path):
    copy = tmp_path / "copy.sf2"
    copy.write_bytes(default_font())
    found = find_player(soundfont=str(copy))
    assert (found.identity, found.problem) == (find_player().identity, "")
    copy.write_bytes(default_font() + b"more")
    assert find_player(soundfont=str(copy)).sha256 == hashlib.sha256(copy.read_bytes()).hexdigest() != found.sha256


# --- no sound, and why ---


@pytest.mark.parametrize("missing", ["no package", "no file", "no soundfont"])
def test_a_default_soundfont_that_is_not_there_is_no_sound(
    missing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    if missing == "no package":
        monkeypatch.setattr(soundfont, "DEFAULT_SOUNDFONT", ("no_such_package", "a.sf2"))
    else:
        monkeypatch.setattr(soundfont, "_default_soundfont", lambda: tmp_path / "a.sf2")
        if missing == "no soundfont":
            (tmp_path / "a.sf2").write_bytes(b"<html>")
    found = find_player()
    said = {"no package": "is not installed", "no file": "cannot be read: No such file", "no soundfont": "is no Sound"}
    assert said[missing] in found.problem
    assert found.identity == {"renderer": "none"}
    with pytest.raises(NoSound, match=said[missing]):
        found.render(millisecond_score(NOTES))


def test_a_renderer_that_is_not_installed_is_no_sound(monkeypatch: pytest.MonkeyPatch):
    def gone(name: str) -> str:
        raise soundfont.PackageNotFoundError(name)

    monkeypatch.setattr(soundfont, "version", gone)
    assert find_player().problem == "the package midirenderer is not installed"


@pytest.mark.parametrize("damage", ["head alone", "cut", "indices of samples"])
def test_a_broken_soundfont_is_no_sound_and_one_line(damage: str, tmp_path: Path):
    font = default_font()
    data = {"head alone": font[:12], "cut": font[: len(font) // 2], "indices of samples": _with_wild_indices(font)}
    found = find_player(soundfont=broken_soundfont(tmp_path, data[damage]))
    assert found.problem.startswith("midirenderer fails with status 1: ")
    assert "\n" not in found.problem
    assert found.identity == {"renderer": "none"}
    with pytest.raises(NoSound, match="midirenderer fails with status 1: "):
        found.render(millisecond_score(NOTES))


def _with_wild_indices(font: bytes) -> bytes:
    """Spoil the index tables, on which midirenderer panics in place of an error."""
    tables = np.frombuffer(font, np.uint8).copy()
    places = np.random.default_rng(2).integers(font.rfind(b"pdta"), len(font), 400)
    tables[places] = 0xFF
    return tables.tobytes()


def test_fluidsynth_that_fails_is_no_sound(tmp_path: Path):
    font = broken_soundfont(tmp_path)
    gone = Player(renderer="fluidsynth", soundfont=font, program=str(tmp_path / "gone"), version="1", sha256="00")
    assert gone.problem == "fluidsynth does not start: No such file or directory"
    failing = Player(renderer="fluidsynth", soundfont=font, program="/bin/false", version="1", sha256="00")
    assert failing.problem == "fluidsynth fails with status 1"
    if shutil.which("fluidsynth"):
        assert find_player("fluidsynth", font).problem.startswith("fluidsynth ")


def test_a_renderer_that_was_killed_is_tried_again_later(tmp_path: Path):
    program = tmp_path / "dies"
    program.write_text("#!/bin/sh\nkill -9 $$\n")
    program.chmod(0o755)
    dying = Player(renderer="fluidsynth", soundfont="x.sf2", program=str(program), version="1", sha256="00")
    with pytest.raises(OSError, match="fluidsynth was ended by signal 9"):
        dying.render(millisecond_score(NOTES))


# --- the sound ---


def test_the_same_score_gives_the_same_samples(player: Player):
    score = millisecond_score([*NOTES, (0, 100, 38, 90, *DRUM[:2], 1)], pedals=[(0, 900, 0)], n_tracks=2)
    first, second = player.render(score), player.render(score)
    assert first.made_with == player.made_with
    assert player.made_with.startswith(f"{player.renderer} ")
    np.testing.assert_array_equal(first.samples, second.samples)
    assert first.samples.dtype == np.float32
    assert 0.1 < np.abs(first.samples).max() <= audio.CEILING
    assert first.seconds == pytest.approx(2.95 + soundfont.TAIL_SECONDS, abs=0.01)
    assert first.warnings == ()


PROCESS = """
import hashlib
from tasks.music.render.soundfont import find_player
from tests.millisecond_scores import millisecond_score
notes = [(100 * i, 300, 40 + i, 30 + 2 * i, 8 * (i % 16), False, 0) for i in range(40)]
notes += [(200 * i, 100, 36 + i, 100, 0, True, 1) for i in range(20)]
samples = find_player().render(millisecond_score(notes, pedals=[(0, 900, 0)], n_tracks=2)).samples
print(hashlib.sha256(samples.tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_two_processes_give_the_same_samples():
    def run(threads: str) -> str:
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": threads, "PYTHONHASHSEED": threads}
        return subprocess.run(
            [sys.executable, "-c", PROCESS], env=environment, capture_output=True, text=True, check=True
        ).stdout

    assert run("1") == run("4")


def test_a_note_has_its_pitch_and_its_time(player: Player):
    samples = player.render(millisecond_score([(1000, 1000, 69, 90)])).samples.mean(axis=1)  # A4
    assert np.abs(samples[:23_000]).max() < 0.01
    spectrum = np.abs(np.fft.rfft(samples[24_000:48_000] * np.hanning(24_000)))
    assert np.argmax(spectrum[380:500]) + 380 == pytest.approx(440, abs=3)


def test_the_pedal_keeps_a_note_ringing(player: Player):
    notes = [(0, 200, 60, 90), (3000, 200, 60, 90)]
    dry = player.render(millisecond_score(notes)).samples
    held = player.render(millisecond_score(notes, pedals=[(100, 2500, 0)])).samples
    assert loudness(held, 1.0, 1.5) > 5 * loudness(dry, 1.0, 1.5)


def test_velocity_is_loudness_inside_a_piece(player: Player):
    samples = player.render(millisecond_score([(0, 400, 60, 30), (3000, 400, 60, 110)])).samples
    assert loudness(samples, 3.0, 3.4) > 3 * loudness(samples, 0.0, 0.4)


def test_programs_are_instruments_and_drums_are_drums(player: Player):
    spectra = [
        np.abs(np.fft.rfft(player.render(millisecond_score([(0, 900, 60, 90, *more)])).samples[:RATE].mean(axis=1)))
        for more in ((0, False, 0), (40, False, 0), (73, False, 0), (0, True, 0))
    ]
    for i, one in enumerate(spectra):
        for other in spectra[:i]:
            assert np.dot(one, other) < 0.9 * np.linalg.norm(one) * np.linalg.norm(other)


def test_a_piece_is_levelled(player: Player):
    for program in (0, 24, 40, 56, 73, 80):
        score = millisecond_score([(400 * i, 380, 48 + 3 * i, 80, program, False, 0) for i in range(12)])
        samples = player.render(score).samples
        edges = np.arange(0, len(samples) - round(0.4 * RATE), round(0.4 * RATE))
        loudest = max(loudness(samples, edge / RATE, edge / RATE + 0.4) for edge in edges)
        assert loudest == pytest.approx(audio.LEVEL_RMS, rel=0.25), program


def test_the_loudest_piece_stays_below_the_ceiling(player: Player):
    cluster = [(0, 2000, pitch, 127) for pitch in range(128)] + [(0, 100, key, 127, *DRUM) for key in range(35, 82)]
    assert 0.3 < np.abs(player.render(millisecond_score(cluster)).samples).max() <= audio.CEILING


def test_parts_beyond_sixteen_channels_are_heard_too(player: Player):
    """The seventeenth and the second of drums go to another port, of which renderers know nothing."""
    notes = [(100 * i, 90, 60, 90, i, False, i) for i in range(16)] + [(0, 90, 38, 90, 0, True, 16)]
    notes += [(4000, 500, 72, 90, 56, False, 17), (6000, 500, 42, 90, 0, True, 18)]
    samples = player.render(millisecond_score(notes, n_tracks=19)).samples
    assert loudness(samples, 3.0, 3.9) < 0.01 < loudness(samples, 4.0, 4.4)
    assert loudness(samples, 6.0, 6.2) > 0.001
    spectrum = np.abs(np.fft.rfft(samples[4 * RATE : round(4.5 * RATE)].mean(axis=1)))
    assert (np.argmax(spectrum[200:300]) + 200) * 2 == pytest.approx(523, abs=4)  # C5, by its own program


def test_the_cap_bounds_the_sound_and_counts_what_it_cuts(player: Player):
    score = millisecond_score([(0, 500, 60, 80), (1800, 500, 62, 80), (3_000_000, 500, 64, 80)])
    rendering = player.render(score, max_seconds=2)
    assert rendering.seconds == 2
    assert rendering.n_notes_cut == 2
    assert rendering.warnings == ("the audio stops at 2 s of 3000 s: 2 notes are missing or cut",)
    assert rendering.made_with == player.made_with


def test_a_tempo_far_behind_the_cap_makes_no_longer_sound(player: Player):
    columns = {"onset": [0], "duration": [480], "pitch": [60], "velocity": [90], "program": [0], "is_drum": [0]}
    tempos = Tempos(np.array([0, 2**30]), np.array([500_000, 16_000_000]))
    notes = {name: np.array(values) for name, values in (columns | {"track": [0]}).items()}
    assert player.render(build_score(480, notes, tempos=tempos), max_seconds=2).seconds == 2


def test_a_score_without_notes_is_half_a_second_of_silence(player: Player):
    rendering = player.render(millisecond_score([]))
    assert rendering.seconds == soundfont.EMPTY_SECONDS
    assert not rendering.samples.any()
    assert audio.encode_audio(rendering.samples, rendering.sample_rate)


def test_a_rest_longer_than_the_cap_is_no_reason_to_fail(player: Player):
    rendering = player.render(millisecond_score([(9000, 500, 60, 80)]), max_seconds=2)
    assert (rendering.seconds, rendering.n_notes_cut) == (2, 1)


@pytest.mark.slow
def test_real_pieces_are_heard_and_never_clip():
    player = find_player()
    for path in sorted(real_data("dev").rglob("*.mid"))[::200]:
        rendering = player.render(read_midi(path), max_seconds=30)
        assert np.isfinite(rendering.samples).all(), path
        assert np.abs(rendering.samples).max() <= audio.CEILING, path
        assert loudness(rendering.samples, 0, 30) > 0.001 or rendering.n_notes_cut, path
