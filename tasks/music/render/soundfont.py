"""Scores played through a SoundFont by the FluidSynth program, or by the built-in synthesiser where there is none.

    player = find_player(soundfont)   # once, before anything is composed; fails if a named file is no SoundFont
    rendering = player.render(score)  # never silent: what FluidSynth cannot play, the built-in sound plays
    rendering.made_with               # one line for the sidecar

FluidSynth runs as a program of its own, so that a broken SoundFont cannot take the worker down with it.
"""

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tasks.errors import ConfigError
from tasks.music.midi.writer import PITCHED_CHANNELS, write_midi
from tasks.music.render.synth import BUILT_IN, Rendering, check_settings, level, render

if TYPE_CHECKING:
    from tasks.music.score import Score

VARIABLE = "ORCHESTRION_SOUNDFONT"  # a path; `none` asks for the built-in synthesiser
SUFFIXES = (".sf2", ".sf3")
FOLDERS = (
    "/usr/share/sounds/sf2", "/usr/share/sounds/sf3", "/usr/share/soundfonts", "/usr/local/share/soundfonts",
    "/opt/homebrew/share/soundfonts", "/usr/local/share/fluidsynth",
)  # fmt: skip
TAIL_SECONDS = 3.0  # sound after the last note that is kept
START_SECONDS, SPEED_MIN = 60.0, 4.0  # time to load a large SoundFont; slower than four times real time is hanging
SILENCE_RMS = 1e-5
GAIN = "0.5"


@dataclass(frozen=True, kw_only=True, slots=True)
class Player:
    """What plays scores: FluidSynth with a SoundFont, or the built-in synthesiser where `soundfont` is empty."""

    soundfont: str = ""
    sha256: str = ""
    program: str = ""
    version: str = ""
    reason: str = ""  # why it is the built-in synthesiser

    @property
    def made_with(self) -> str:
        if not self.soundfont:
            return BUILT_IN
        return f"FluidSynth {self.version} with {Path(self.soundfont).name} (sha256 {self.sha256[:16]})"

    @property
    def identity(self) -> dict[str, str]:
        """Return what decides the samples; a place on the disk does not."""
        return {"version": self.version, "sha256": self.sha256} if self.soundfont else {}

    def render(self, score: "Score", sample_rate: int = 24_000, max_seconds: float = 600.0) -> Rendering:
        """Play `score` in stereo; the same score, SoundFont and FluidSynth give the same samples.

        What FluidSynth cannot play (more than 15 pitched parts or one of drums, a crash, silence) is played by the
        built-in synthesiser, and `problem` says why.

        Raises:
            ConfigError: `sample_rate` or `max_seconds` is impossible.
        """
        check_settings(sample_rate, max_seconds)
        if not self.soundfont or not (score.notes.onset_seconds < max_seconds).any():
            return render(score, sample_rate, max_seconds)
        problem = _refusal(score)
        if not problem:
            try:
                return self._render(score, sample_rate, max_seconds)
            except _CannotPlay as error:
                problem = str(error)
        return replace(render(score, sample_rate, max_seconds), problem=f"played by the {BUILT_IN}: {problem}")

    def _render(self, score: "Score", sample_rate: int, max_seconds: float) -> Rendering:
        score_seconds = float(score.notes.end_seconds.max())
        heard = _cut(score, max_seconds)
        with tempfile.TemporaryDirectory(prefix="fluidsynth-") as folder:
            raw = self._run(write_midi(heard), Path(folder), sample_rate, min(score_seconds, max_seconds))
        n_samples = max(1, round(min(score_seconds + TAIL_SECONDS, max_seconds) * sample_rate))
        mix = np.ascontiguousarray(raw[:n_samples].T)
        n_first = round(float(heard.notes.onset_seconds.min()) * sample_rate)
        if not np.isfinite(mix).all() or np.sqrt(np.mean(mix[:, n_first:] ** 2)) < SILENCE_RMS:
            raise _CannotPlay(f"FluidSynth makes no sound of it with {Path(self.soundfont).name}")
        level(mix, sample_rate)
        cut = int((score.notes.end_seconds > n_samples / sample_rate).sum())
        return Rendering(np.ascontiguousarray(mix.T), sample_rate, cut, score_seconds, self.made_with)

    def _run(self, midi: bytes, folder: Path, sample_rate: int, seconds: float) -> np.ndarray:
        """Return float32 [N, 2] at least as long as the music."""
        (folder / "score.mid").write_bytes(midi)
        (folder / "commands").write_bytes(b"")  # in place of a user's own start commands
        command = [
            self.program, "-q", "-n", "-i", "-f", "commands", "-F", "sound.raw", "-T", "raw", "-O", "float",
            "-E", "little", "-r", str(sample_rate), "-R", "1", "-C", "0", "-g", GAIN,
            "-o", "synth.default-soundfont=none",  # which it would play in place of one that it cannot load
            str(Path(self.soundfont).resolve()), "score.mid",
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True,
                timeout=START_SECONDS + seconds / SPEED_MIN, env={"HOME": str(folder)}, check=False,
                start_new_session=True,  # Ctrl-C is for us: a piece would get another sound, and keep it
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise _CannotPlay(f"FluidSynth took more than {error.timeout:.0f} s") from None
        except OSError as error:
            raise _CannotPlay(f"FluidSynth does not start: {error.strerror}") from None
        if -done.returncode in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            raise OSError(f"FluidSynth was ended by signal {-done.returncode}")
        sound = folder / "sound.raw"
        n_bytes = sound.stat().st_size // 8 * 8 if sound.exists() else 0
        if done.returncode or n_bytes < 8:
            said = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
            raise _CannotPlay(f"FluidSynth fails with status {done.returncode}{': ' + said[-1] if said else ''}")
        if n_bytes // 8 < round(seconds * sample_rate):  # it says so only in passing, and ends well
            raise OSError(
                errno.ENOSPC, f"FluidSynth wrote {n_bytes} bytes of sound, less than the music lasts", str(folder)
            )
        n_wanted = round((seconds + TAIL_SECONDS) * sample_rate)
        return np.fromfile(sound, "<f4", min(n_bytes // 8, n_wanted) * 2).reshape(-1, 2)


class _CannotPlay(Exception):
    """FluidSynth gave no usable sound; the message says why."""


def find_player(soundfont: str = "") -> Player:
    """Return what plays scores on this machine.

    Args:
        soundfont: path of an SF2 or SF3 file; `none` for the built-in synthesiser; empty: the file that the variable
            ORCHESTRION_SOUNDFONT names, or else the first one in the usual places, if FluidSynth is there to play it.
    Raises:
        ConfigError: a file that was named is missing or no SoundFont, or it was named and FluidSynth is missing.
    """
    named, source = (soundfont, "soundfont") if soundfont else (os.environ.get(VARIABLE, ""), VARIABLE)
    if named == "none":
        return Player(reason=f"{source}=none")
    program = shutil.which("fluidsynth") or ""
    if named:
        path = Path(named)
        if problem := _problem_of(path):
            raise ConfigError(f"{source}={named!r} {problem}")
        if not program:
            raise ConfigError(f"{source}={named!r} needs the program `fluidsynth`, which is not on PATH")
    else:
        found = _find_soundfont()
        if not program or found is None:
            return Player(reason="no SoundFont found" if found is None else "the program `fluidsynth` is not on PATH")
        path = found
    version = _version_of(program)
    path = path.resolve()
    facts = path.stat()
    sha256 = _sha256(path, facts.st_size, facts.st_mtime_ns)
    return Player(soundfont=str(path), sha256=sha256, program=program, version=version)


def _find_soundfont() -> Path | None:
    for folder in map(Path, FOLDERS):
        files = sorted(file for file in folder.glob("*") if file.suffix.lower() in SUFFIXES)
        files.sort(key=lambda file: not file.name.startswith("default"))  # the one that the system prefers
        for file in files:
            if not _problem_of(file):
                return file
    return None


def _problem_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return "" if head[:4] == b"RIFF" and head[8:] == b"sfbk" else "is no SoundFont (SF2 or SF3)"


@lru_cache(maxsize=4)
def _version_of(program: str) -> str:
    try:
        said = subprocess.run([program, "--version"], capture_output=True, timeout=20, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    words = said.decode(errors="replace").split()
    return next((word for word in words if word[:1].isdigit()), "unknown")


@lru_cache(maxsize=4)
def _sha256(path: Path, n_bytes: int, changed_ns: int) -> str:
    """Return the hash of a file; size and time tell whether it is still the one that was read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _refusal(score: "Score") -> str:
    """FluidSynth knows 16 channels and no ports."""
    n_drums = len(np.unique(score.notes.track[score.notes.is_drum]))
    n_pitched = score.n_tracks - n_drums
    if n_pitched > len(PITCHED_CHANNELS) or n_drums > 1:
        return f"{n_pitched} pitched parts and {n_drums} of drums do not fit on the 16 channels of FluidSynth"
    return ""


def _cut(score: "Score", max_seconds: float) -> "Score":
    """Leave out what begins behind the cap and end what sounds there, so that the file written is bounded."""
    if score.notes.end_seconds.max() <= max_seconds and not np.any(score.pedals.end_seconds > max_seconds):
        return score
    from tasks.music.score import build_score, ticks_at

    last = int(ticks_at(score.tempos, score.ticks_per_quarter, np.array([max_seconds]))[0]) + 1
    notes, pedals = score.notes, score.pedals
    names = ("onset", "duration", "pitch", "velocity", "program", "is_drum", "track")
    kept = {name: getattr(notes, name)[notes.onset < last] for name in names}
    kept["duration"] = np.minimum(kept["duration"], last - kept["onset"])
    spans = {name: getattr(pedals, name)[pedals.onset < last] for name in ("onset", "end", "track")}
    spans["end"] = np.minimum(spans["end"], last)
    return build_score(score.ticks_per_quarter, kept, tempos=score.tempos, pedals=spans, n_tracks=score.n_tracks)
