import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest

from tasks.errors import ConfigError
from tasks.music.render import soundfont, synth
from tasks.music.render.soundfont import VARIABLE, Player, find_player
from tests.millisecond_scores import millisecond_score

NOTES = [(500 * i, 450, 60 + i, 90) for i in range(6)]
DRUM = (0, True, 0)


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without SoundFonts in the usual places."""
    monkeypatch.setattr(soundfont, "FOLDERS", ())


@pytest.fixture(scope="module")
def player() -> Player:
    """FluidSynth with a SoundFont of this machine."""
    found = find_player()
    if not found.soundfont:
        pytest.skip(f"{found.reason}: install fluidsynth and a SoundFont (Debian: fluidsynth timgm6mb-soundfont)")
    return found


def broken_soundfont(folder: Path) -> Path:
    """Bytes that only look like a SoundFont from outside."""
    path = folder / "broken.sf2"
    path.write_bytes(b"RIFF\x04\x00\x00\x00sfbk")
    return path


@pytest.mark.usefixtures("nowhere")
def test_without_a_soundfont_the_built_in_synthesiser_plays():
    found = find_player()
    score = millisecond_score(NOTES)
    rendering = found.render(score)
    assert (found.soundfont, found.reason, found.identity) == ("", "no SoundFont found", {})
    assert rendering.made_with == found.made_with == "built-in synthesiser"
    np.testing.assert_array_equal(rendering.samples, synth.render(score).samples)
    assert np.abs(rendering.samples).max() > 0.1
    assert rendering.warnings == ()


def test_none_asks_for_the_built_in_synthesiser(monkeypatch: pytest.MonkeyPatch):
    assert find_player("none").soundfont == ""
    monkeypatch.setenv(VARIABLE, "none")
    assert find_player().reason == f"{VARIABLE}=none"


def test_a_named_file_that_is_missing_or_no_soundfont_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(ConfigError, match=r"soundfont='/no/such.sf2' cannot be read: No such file"):
        find_player("/no/such.sf2")
    (tmp_path / "song.sf2").write_bytes(b"MThd")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "song.sf2"))
    with pytest.raises(ConfigError, match=rf"{VARIABLE}='.*song.sf2' is no SoundFont \(SF2 or SF3\)"):
        find_player()


def test_a_named_file_without_fluidsynth_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="needs the program `fluidsynth`, which is not on PATH"):
        find_player(str(broken_soundfont(tmp_path)))


def test_a_soundfont_that_was_replaced_is_another_one(tmp_path: Path):
    if not shutil.which("fluidsynth"):
        pytest.skip("the program fluidsynth is not installed")
    path = broken_soundfont(tmp_path)
    first = find_player(str(path))
    path.write_bytes(path.read_bytes() + b"more")
    assert find_player(str(path)).sha256 == hashlib.sha256(path.read_bytes()).hexdigest() != first.sha256


def test_what_fluidsynth_cannot_play_is_played_all_the_same(tmp_path: Path):
    program = shutil.which("fluidsynth")
    if program is None:
        pytest.skip("the program `fluidsynth` is not on PATH")
    score = millisecond_score(NOTES)
    rendering = find_player(str(broken_soundfont(tmp_path))).render(score)
    assert rendering.made_with == "built-in synthesiser"
    assert rendering.warnings[0].startswith("played by the built-in synthesiser: FluidSynth ")
    np.testing.assert_array_equal(rendering.samples, synth.render(score).samples)


def test_a_program_that_does_not_start_is_no_silence(tmp_path: Path):
    gone = Player(soundfont=str(broken_soundfont(tmp_path)), program=str(tmp_path / "gone"), version="1", sha256="00")
    rendering = gone.render(millisecond_score(NOTES))
    assert rendering.problem == (
        "played by the built-in synthesiser: FluidSynth does not start: No such file or directory"
    )
    assert np.abs(rendering.samples).max() > 0.1


def test_more_parts_than_channels_are_played_by_the_built_in_synthesiser(tmp_path: Path):
    crowd = Player(soundfont=str(broken_soundfont(tmp_path)), program="/bin/false", version="1", sha256="00")
    score = millisecond_score([(100 * i, 90, 60, 90, i, False, i) for i in range(16)], n_tracks=16)
    assert "16 pitched parts and 0 of drums do not fit" in crowd.render(score).problem


def test_the_same_score_gives_the_same_samples(player: Player):
    score = millisecond_score([*NOTES, (0, 100, 38, 90, *DRUM[:2], 1)], pedals=[(0, 900, 0)], n_tracks=2)
    first, second = player.render(score), player.render(score)
    assert first.made_with == player.made_with
    assert player.made_with.startswith("FluidSynth ")
    np.testing.assert_array_equal(first.samples, second.samples)
    assert 0.1 < np.abs(first.samples).max() <= synth.CEILING
    assert first.seconds == pytest.approx(2.95 + soundfont.TAIL_SECONDS, abs=0.01)


def test_a_note_has_its_pitch_and_its_time(player: Player):
    samples = player.render(millisecond_score([(1000, 1000, 69, 90)])).samples.mean(axis=1)  # A4
    assert np.abs(samples[:23_000]).max() < 0.01
    spectrum = np.abs(np.fft.rfft(samples[24_000:48_000] * np.hanning(24_000)))
    assert np.argmax(spectrum[380:500]) + 380 == pytest.approx(440, abs=3)


def test_the_cap_bounds_the_sound_and_counts_what_it_cuts(player: Player):
    score = millisecond_score([(0, 500, 60, 80), (1800, 500, 62, 80), (3_000_000, 500, 64, 80)])
    rendering = player.render(score, max_seconds=2)
    assert rendering.seconds == 2
    assert rendering.n_notes_cut == 2
    assert rendering.made_with == player.made_with


def test_a_score_without_notes_is_half_a_second(player: Player):
    assert player.render(millisecond_score([])).seconds == synth.EMPTY_SECONDS


def test_a_rest_longer_than_the_cap_is_no_reason_to_fail(player: Player):
    rendering = player.render(millisecond_score([(9000, 500, 60, 80)]), max_seconds=2)
    assert (rendering.seconds, rendering.n_notes_cut) == (2, 1)
