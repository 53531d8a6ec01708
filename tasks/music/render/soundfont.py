"""Scores rendered with a SoundFont, by midirenderer or FluidSynth.

    player = find_player()            # once, before anything is composed; raises ConfigError
    player.problem                    # why there will be no sound, or empty
    rendering = player.render(score)
    rendering.made_with               # one line for the sidecar

The renderer runs in a process of its own, so that a broken SoundFont cannot take the worker down with it.
"""

import errno
import hashlib
import shutil
import signal
import subprocess
import sys
import tempfile
import wave
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from tasks.errors import ConfigError
from tasks.music.midi.writer import part_places, write_midi
from tasks.music.notes import NOTE_COLUMNS
from tasks.music.render.audio import Samples, level
from tasks.music.score import Score, build_score, changes_where, note_columns, ticks_at

SAMPLE_RATE = 24_000  # of the result
RENDERED_RATE = 48_000  # the only one that midirenderer has
TAIL_SECONDS = 2.0  # sound after the last note that is kept
EMPTY_SECONDS = 0.5
START_SECONDS, SPEED_MIN = 60.0, 4.0  # time to load a large SoundFont; slower than four times real time is hanging
SILENT_PEAK = 1e-4  # three steps of 16 bits: what rounding and dither leave of silence
GAIN = "0.5"  # of FluidSynth
DEFAULT_SOUNDFONT = ("pretty_midi", "TimGM6mb.sf2")  # package and file: General MIDI, 6 MB
RENDER = (
    "import sys, midirenderer; from pathlib import Path; font, midi, sound = map(Path, sys.argv[1:]);"
    " sound.write_bytes(midirenderer.render_wave_from(font.read_bytes(), midi.read_bytes()))"
)


class NoSound(Exception):
    """The renderer gave no usable sound; the message says why."""


@dataclass(frozen=True, slots=True, eq=False)
class Rendering:
    """Sound of a score.

    Args:
        samples: float32 [N, 2] within -0.94..0.94.
        n_notes_cut: notes that the cap cut or left out.
        made_with: what played it, in one line.
    """

    samples: Samples
    n_notes_cut: int
    score_seconds: float
    made_with: str
    sample_rate: int = SAMPLE_RATE

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.sample_rate

    @property
    def warnings(self) -> tuple[str, ...]:
        if not self.n_notes_cut:
            return ()
        return (
            f"the audio stops at {self.seconds:.0f} s of {self.score_seconds:.0f} s: "
            f"{self.n_notes_cut} notes are missing or cut",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Player:
    """A renderer with a SoundFont; `missing` names which of the two is not there."""

    renderer: str
    version: str = ""
    program: str = ""  # of FluidSynth
    soundfont: str = ""
    sha256: str = ""
    missing: str = ""

    @property
    def made_with(self) -> str:
        return f"{self.renderer} {self.version} with {Path(self.soundfont).name} (sha256 {self.sha256[:16]})"

    @property
    def problem(self) -> str:
        """Return why this player makes no sound, or nothing; the first call plays a note."""
        return self.missing or _try_out(self)

    @property
    def identity(self) -> dict[str, str]:
        """Return what decides the samples; a place on the disk does not."""
        if self.problem:
            return {"renderer": "none"}
        return {"renderer": self.renderer, "version": self.version, "sha256": self.sha256}

    def render(self, score: Score, max_seconds: float = 600.0) -> Rendering:
        """Play `score` in stereo; the same score, SoundFont and renderer give the same samples.

        Times are the score's own, leading rests included; pieces are levelled to one loudness. A score without notes
        gives half a second of silence.

        Args:
            max_seconds: cap on the length, above 0; notes after it are counted in `n_notes_cut`.
        Raises:
            NoSound: the renderer fails, takes far too long or makes no sound.
            OSError: the disk is full, or the renderer was ended from outside.
        """
        if self.missing:
            raise NoSound(self.missing)
        ends, score_seconds = score.notes.end_seconds, float(score.notes.end_seconds.max(initial=0.0))
        if not (score.notes.onset_seconds < max_seconds).any():
            n_silent = round(min(score_seconds or EMPTY_SECONDS, max_seconds) * SAMPLE_RATE)
            return Rendering(np.zeros((n_silent, 2), np.float32), len(ends), score_seconds, self.made_with)
        n_seconds = min(score_seconds + TAIL_SECONDS, max_seconds)
        mix = np.zeros((2, max(1, round(n_seconds * SAMPLE_RATE))), np.float32)
        for part in _parts_on_sixteen_channels(score, n_seconds):
            mix += self._play(part, n_seconds)[:, : mix.shape[1]]
        if np.abs(mix).max() < SILENT_PEAK:
            raise NoSound(f"{self.renderer} makes no sound of it with {Path(self.soundfont).name}")
        level(mix, SAMPLE_RATE)
        n_cut = int((ends > mix.shape[1] / SAMPLE_RATE).sum())
        return Rendering(np.ascontiguousarray(mix.T), n_cut, score_seconds, self.made_with)

    def _play(self, score: Score, seconds: float) -> Samples:
        """Return float32 [2, N] at SAMPLE_RATE, at least `seconds` long."""
        from scipy.signal import resample_poly

        last_tick = int(ticks_at(score.tempos, score.ticks_per_quarter, np.array([seconds]))[0]) + 1
        with tempfile.TemporaryDirectory(prefix="orchestrion-sound-") as folder:
            Path(folder, "score.mid").write_bytes(write_midi(score, last_tick=last_tick))
            self._run(Path(folder), seconds)
            rendered = _read_wave(Path(folder, "sound.wav"))
        if len(rendered) < round(seconds * RENDERED_RATE):  # FluidSynth says so only in passing, and ends well
            raise OSError(
                errno.ENOSPC, f"{self.renderer} wrote {len(rendered) / RENDERED_RATE:.1f} s of {seconds:.1f} s", folder
            )
        rendered = rendered[: round((seconds + 0.1) * RENDERED_RATE)]
        return resample_poly(rendered, SAMPLE_RATE, RENDERED_RATE, axis=0).astype(np.float32).T

    def _run(self, folder: Path, seconds: float) -> None:
        """Render `score.mid` to `sound.wav` in a folder."""
        font, midi, sound = self.soundfont, "score.mid", "sound.wav"
        command = [sys.executable, "-I", "-c", RENDER, font, midi, sound]
        if self.renderer == "fluidsynth":
            (folder / "commands").write_bytes(b"")  # in place of a user's own start commands
            command = [
                self.program, "-q", "-n", "-i", "-f", "commands", "-F", sound, "-T", "wav", "-O", "s16",
                "-r", str(RENDERED_RATE), "-R", "1", "-C", "0", "-g", GAIN,
                "-o", "synth.default-soundfont=none",  # which it would play in place of one that it cannot load
                font, midi,
            ]  # fmt: skip
        try:
            done = subprocess.run(
                command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True,
                timeout=START_SECONDS + seconds / SPEED_MIN, env={"HOME": str(folder)}, check=False,
                start_new_session=True,  # Ctrl-C is for us: a piece would be kept without its sound
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise NoSound(f"{self.renderer} took more than {error.timeout:.0f} s") from None
        except OSError as error:
            raise NoSound(f"{self.renderer} does not start: {error.strerror}") from None
        if -done.returncode in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            raise OSError(f"{self.renderer} was ended by signal {-done.returncode}")
        if done.returncode or not (folder / sound).exists():
            message = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
            reason = f": {message[-1]}" if message else ""
            raise NoSound(f"{self.renderer} fails with status {done.returncode}{reason}")


def find_player(renderer: str = "midirenderer", soundfont: str = "") -> Player:
    """Return what plays scores.

    Args:
        renderer: `midirenderer` or `fluidsynth`.
        soundfont: path of an SF2 file, for FluidSynth also SF3; empty: the one of pretty_midi, TimGM6mb.sf2.
    Raises:
        ConfigError: a file that was named is missing or no SoundFont, or FluidSynth was named and is missing.
    """
    path = Path(soundfont) if soundfont else _default_soundfont()
    problem = _problem_of(path) if path else f"the package {DEFAULT_SOUNDFONT[0]} is not installed"
    if soundfont and problem:
        raise ConfigError(f"soundfont={soundfont!r} {problem}")
    program = (shutil.which("fluidsynth") or "") if renderer == "fluidsynth" else ""
    if renderer == "fluidsynth" and not program:
        raise ConfigError("renderer='fluidsynth' needs the program `fluidsynth`, which is not on PATH")
    if path is None or problem:
        return Player(renderer=renderer, missing=f"SoundFont {DEFAULT_SOUNDFONT[1]}: {problem}")
    try:
        found = _version_of(program) if renderer == "fluidsynth" else version(renderer)
    except PackageNotFoundError:
        return Player(renderer=renderer, missing=f"the package {renderer} is not installed")
    path = path.resolve()
    facts = path.stat()
    sha256 = _sha256(path, facts.st_size, facts.st_mtime_ns)
    return Player(renderer=renderer, version=found, program=program, soundfont=str(path), sha256=sha256)


@lru_cache(maxsize=8)
def _try_out(player: Player) -> str:
    """Play one note, and return what goes wrong."""
    columns: dict[str, np.ndarray] = dict(
        zip(NOTE_COLUMNS, np.array([[0], [480], [60], [90], [0], [0], [0]]), strict=True)
    )
    try:
        player.render(build_score(480, columns))
    except NoSound as error:
        return str(error)
    return ""


def _default_soundfont() -> Path | None:
    package, name = DEFAULT_SOUNDFONT
    spec = find_spec(package)  # finds the folder without importing the package
    return Path(spec.origin).with_name(name) if spec and spec.origin else None


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
        printed = subprocess.run([program, "--version"], capture_output=True, timeout=20, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    words = printed.decode(errors="replace").split()
    return next((word for word in words if word[:1].isdigit()), "unknown")


@lru_cache(maxsize=4)
def _sha256(path: Path, n_bytes: int, changed_ns: int) -> str:
    """Return the hash of a file; it is cached by size and time."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_wave(path: Path) -> Samples:
    """Return float32 [N, 2]."""
    try:
        with wave.open(str(path), "rb") as file:
            data = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise NoSound(f"the renderer wrote no WAV file: {error}") from None
    return np.frombuffer(data[: len(data) // 4 * 4], "<i2").reshape(-1, 2).astype(np.float32) / np.float32(32768)


def _parts_on_sixteen_channels(score: Score, max_seconds: float) -> list[Score]:
    """Return the parts of each MIDI port as a score; renderers know no ports.

    What begins after the cap is left out, and what sounds there is ended, so that the files are bounded.
    """
    last = int(ticks_at(score.tempos, score.ticks_per_quarter, np.array([max_seconds]))[0]) + 1
    port = np.array([place for place, _ in part_places(score)])
    notes, pedals = score.notes, score.pedals
    tempos = changes_where(score.tempos, score.tempos.tick < last)
    scores = []
    for number in np.unique(port[notes.track]):
        own = port == number
        number_of, n_tracks = np.cumsum(own) - 1, int(own.sum())
        columns = note_columns(score, own[notes.track] & (notes.onset < last))
        columns["duration"] = np.minimum(columns["duration"], last - columns["onset"])
        columns["track"] = number_of[columns["track"]]
        is_held = own[pedals.track] & (pedals.onset < last)
        spans = {
            "onset": pedals.onset[is_held],
            "end": np.minimum(pedals.end[is_held], last),
            "track": number_of[pedals.track[is_held]],
        }
        if len(columns["onset"]):
            scores.append(build_score(score.ticks_per_quarter, columns, tempos=tempos, pedals=spans, n_tracks=n_tracks))
    return scores
