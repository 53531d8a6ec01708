"""Scores as sound: an additive synthesiser in numpy and a writer of compressed audio.

Every tone is a sum of damped sines, and sample `64 q + r` of a damped sine z is `z^(64 q) * z^r`, so a table of tones
is a matrix product of block starts and steps. Notes that share a sound, a pitch and a loudness layer share one table.
"""

import io
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tasks.errors import ConfigError
from tasks.music.notes import NoteBatch
from tasks.music.render.ogg_pages import set_serial
from tasks.music.render.timbres import DRUMS, PROGRAM_TIMBRES, TIMBRES, Timbre, struck
from tasks.music.transforms import apply_sustain

if TYPE_CHECKING:
    from tasks.music.score import Score  # for names only: playing needs no symusic

Samples = NDArray[np.float32]
Table = NDArray[np.floating]

AUDIO_MIME = {"ogg": "audio/ogg", "mp3": "audio/mpeg", "flac": "audio/flac", "wav": "audio/wav"}
SAMPLE_RATES = (16_000, 22_050, 24_000, 32_000, 44_100, 48_000)  # those that MPEG audio layer III knows, from 16 kHz

MP3_KILOBITS = 64  # a second; below, a mono frame is too small for the tag that tells players where the sound starts
# Sizes of one matrix product. OpenBLAS keeps products of up to 262144 multiplications on one thread: threads that wait
# for each other on a busy machine cost five times the work itself.
N_ROWS, N_STEPS = 16, 64
N_LAYERS = 4  # loudness layers: a louder note is also a brighter one
PARTIALS_END = 0.46  # highest partial as a share of the sample rate
LEVEL_RMS = 10 ** (-18 / 20)  # the loudest 0.4 s of every piece, so that pieces can be compared by ear
CEILING, KNEE = 0.94, 0.6  # room above the ceiling: a decoded MP3 overshoots a little
TAIL_SECONDS = 1.2  # the room after the last note
EMPTY_SECONDS = 0.5
OGG_QUALITY = 0.2  # about 55 kbit/s in stereo at 24 kHz
OGG_SERIAL = 0x4F726368
BUILT_IN = "built-in synthesiser"


@dataclass(frozen=True, slots=True, eq=False)
class Rendering:
    """Sound of a score.

    Args:
        samples: float32 [N, 2] within -0.94..0.94.
        n_notes_cut: notes that the cap cut or left out.
        made_with: what played it, in one line.
        problem: why it was not what should have played it, or empty.
    """

    samples: Samples
    sample_rate: int
    n_notes_cut: int
    score_seconds: float
    made_with: str = BUILT_IN
    problem: str = ""

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.sample_rate

    @property
    def warnings(self) -> tuple[str, ...]:
        said = (self.problem,) if self.problem else ()
        if not self.n_notes_cut:
            return said
        return (
            *said,
            f"the audio stops at {self.seconds:.0f} s of {self.score_seconds:.0f} s: "
            f"{self.n_notes_cut} notes are missing or cut",
        )


def render(score: "Score", sample_rate: int = 24_000, max_seconds: float = 600.0) -> Rendering:
    """Play `score` with the sounds of its General MIDI programs, drums and sustain pedals, in stereo.

    The same score gives the same samples. Times are the score's own, leading rests included; pieces are levelled to
    one loudness. A score without notes gives half a second of silence; a pitch whose fundamental does not fit below
    half the sample rate sounds octaves lower.

    Args:
        sample_rate: one of `SAMPLE_RATES`, in Hz.
        max_seconds: cap on the length, above 0; what falls behind it is counted in `n_notes_cut`.
    Raises:
        ConfigError: `sample_rate` or `max_seconds` is impossible.
    """
    check_settings(sample_rate, max_seconds)
    notes = apply_sustain(NoteBatch.from_scores([score]))
    if not len(notes.pitch):
        n_silent = max(1, round(min(EMPTY_SECONDS, max_seconds) * sample_rate))
        return Rendering(np.zeros((n_silent, 2), np.float32), sample_rate, 0, 0.0)
    score_seconds = float(notes.end_seconds.max())
    n_samples = max(1, round(min(score_seconds + TAIL_SECONDS, max_seconds) * sample_rate))
    mix = np.zeros((2, n_samples), np.float32)
    _play_pitched(notes, sample_rate, mix)
    _play_drums(notes, sample_rate, mix)
    _add_room(mix, sample_rate)
    level(mix, sample_rate)
    cut = notes.end_seconds > n_samples / sample_rate
    return Rendering(np.ascontiguousarray(mix.T), sample_rate, int(cut.sum()), score_seconds)


def check_settings(sample_rate: int, max_seconds: float) -> None:
    """Refuse a sample rate or a cap that no rendering can have.

    Raises:
        ConfigError: `sample_rate` is none of `SAMPLE_RATES`, or `max_seconds` is not above 0 and finite.
    """
    if sample_rate not in SAMPLE_RATES:
        raise ConfigError(f"sample_rate={sample_rate} is none of {', '.join(map(str, SAMPLE_RATES))}")
    if not 0 < max_seconds < math.inf:
        raise ConfigError(f"max_seconds={max_seconds} is not above 0 and finite")


def encode_audio(samples: Samples, sample_rate: int, format: str = "mp3") -> bytes:
    """Compress `samples` ([N] mono or [N, 2] stereo, -1..1): the same samples give the same bytes.

    Ogg is Vorbis: four times as fast to write as MP3 and a sixth smaller. MP3 has a constant bit rate, which keeps
    seeking exact in every player; FLAC and WAV hold 16 bits.

    Raises:
        ConfigError: unknown `format`, or a `sample_rate` that is none of `SAMPLE_RATES`.
    """
    import soundfile  # loads libsndfile: only whoever writes audio pays

    if format not in AUDIO_MIME:
        raise ConfigError(f"audio format {format!r} is none of {', '.join(AUDIO_MIME)}")
    if sample_rate not in SAMPLE_RATES:
        raise ConfigError(f"sample_rate={sample_rate} is none of {', '.join(map(str, SAMPLE_RATES))}")
    n_channels = 1 if samples.ndim == 1 else samples.shape[1]
    options: dict[str, Any] = {"subtype": "PCM_16"}
    if format == "mp3":
        compression = _mp3_compression_level(sample_rate)
        options = {"subtype": "MPEG_LAYER_III", "bitrate_mode": "CONSTANT", "compression_level": compression}
    elif format == "ogg":
        options = {"subtype": "VORBIS", "compression_level": 1 - OGG_QUALITY}
    # Rounded to 16 bits, so that a last-bit difference between two processors does not reach the file, but written as
    # floats: libsndfile 1.2.2 turns 16-bit stereo into noise on its way to MP3.
    rounded = (np.rint(np.clip(samples, -1.0, 1.0) * 32767.0) / 32767.0).astype(np.float32)
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", sample_rate, n_channels, format=format.upper(), **options) as file:
        for start in range(0, len(rounded), 16_384):  # libsndfile can crash on one long write
            file.write(rounded[start : start + 16_384])
    return set_serial(buffer.getvalue(), OGG_SERIAL) if format == "ogg" else buffer.getvalue()


def _mp3_compression_level(sample_rate: int) -> float:
    """libsndfile maps 0..1 linearly onto the bit rates of the MPEG version that the sample rate belongs to."""
    lowest, highest = (32, 320) if sample_rate >= 32_000 else (8, 160)
    return (highest - MP3_KILOBITS) / (highest - lowest)


def _play_pitched(notes: NoteBatch, sample_rate: int, mix: Samples) -> None:
    names = sorted(TIMBRES)
    timbre_of_program = np.array([names.index(name) for name in PROGRAM_TIMBRES])
    timbre = timbre_of_program[notes.program]
    pitch = notes.pitch.astype(np.int64)
    layer = notes.velocity.astype(np.int64) * N_LAYERS // 128
    group = np.where(notes.is_drum, -1, (timbre * 128 + pitch) * N_LAYERS + layer)
    onset = np.rint(notes.onset_seconds * sample_rate).astype(np.int64)
    length = np.maximum(np.rint(notes.end_seconds * sample_rate).astype(np.int64) - onset, 1)
    ear_gains = _pan(_pan_of(notes)) * _velocity_gain(notes.velocity)
    order = np.lexsort((onset, group))
    order = order[(group[order] >= 0) & (onset[order] < mix.shape[1])]
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    for members in np.split(order, starts[1:]) if len(order) else ():
        key, group_layer = divmod(int(group[members[0]]), N_LAYERS)
        sound = TIMBRES[names[key // 128]]
        room = mix.shape[1] - onset[members]
        n_release = max(1, round(_release_seconds(sound, key % 128) * sample_rate))
        n_wanted = int(np.minimum(length[members] + n_release, room).max())
        tone = tone_table(sound, key % 128, group_layer, n_wanted, sample_rate)
        fade = np.linspace(1, 0, n_release, dtype=np.float32) ** 2
        for i in members:
            heard = tone[: min(int(length[i]) + n_release, mix.shape[1] - int(onset[i]))].copy()
            release = heard[length[i] :]
            release *= fade[: len(release)]
            span = slice(int(onset[i]), int(onset[i]) + len(heard))
            mix[0, span] += heard * ear_gains[0, i]
            mix[1, span] += heard * ear_gains[1, i]


def _play_drums(notes: NoteBatch, sample_rate: int, mix: Samples) -> None:
    onset = np.rint(notes.onset_seconds * sample_rate).astype(np.int64)
    gain = _velocity_gain(notes.velocity)
    audible = notes.is_drum & (onset < mix.shape[1])
    for key in np.unique(notes.pitch[audible]):
        hit, pan = drum_hit(int(key), sample_rate)
        stereo_hit = _pan(np.array([pan], np.float32)) * hit
        for i in np.flatnonzero(audible & (notes.pitch == key)):
            span = slice(int(onset[i]), int(onset[i]) + len(hit))
            mix[:, span] += stereo_hit[:, : mix.shape[1] - span.start] * gain[i]


def _velocity_gain(velocity: NDArray[np.uint8]) -> Samples:
    return (0.03 + 0.97 * (velocity / 127.0) ** 1.7).astype(np.float32)


def _pan_of(notes: NoteBatch) -> Samples:
    """-1 left to 1 right: low pitches to the left as a pianist hears them; several parts stand side by side."""
    by_pitch = (notes.pitch.astype(np.float32) - 62) / 64 * 0.4
    is_alone = len(np.unique(notes.track[~notes.is_drum])) < 2
    by_part = 0.0 if is_alone else (notes.track * 0.618034 % 1.0 - 0.5) * 0.7
    return np.clip(by_pitch + by_part, -0.8, 0.8).astype(np.float32)


def _pan(pan: Samples) -> Samples:
    angle = (pan + 1) * (math.pi / 4)
    return np.stack([np.cos(angle), np.sin(angle)]).astype(np.float32)


def _release_seconds(sound: Timbre, pitch: int) -> float:
    is_undamped_piano = sound is TIMBRES["piano"] and pitch >= 89  # the top strings of a piano have no dampers
    return 0.8 if is_undamped_piano else sound.release_seconds


def tone_table(sound: Timbre, pitch: int, layer: int, n_samples: int, sample_rate: int) -> Samples:
    """Return the first samples of a note that is held, float32 [T] with T <= `n_samples`: shorter once it has died.

    Args:
        layer: loudness layer, 0 (soft and dark) to `N_LAYERS` - 1 (loud and bright).
    """
    f0 = 440.0 * 2 ** ((pitch - 69) / 12)
    while f0 * min(sound.ratios) > PARTIALS_END * sample_rate:
        f0 /= 2
    k = np.array(sound.ratios, np.float64)
    stiffness = sound.stiffness * 2 ** ((pitch - 60) / 10)
    frequency = f0 * k * np.sqrt((1 + stiffness * k**2) / (1 + stiffness))
    cutoff = sound.cutoff_hz * 1.55 ** (layer - (N_LAYERS - 1) / 2) + f0  # + f0: high notes keep a second partial
    amplitude = np.array(sound.amplitudes) if sound.amplitudes else k**-sound.tilt * np.exp(-f0 * k / cutoff)
    if sound.strike:
        amplitude = amplitude * np.abs(np.sin(np.pi * k / sound.strike))
    rate = np.zeros_like(k)  # e-folds a second
    if sound.decay_seconds:
        seconds = min(sound.decay_seconds * 2 ** ((60 - pitch) / 18), 20.0)
        rate = math.log(1000) / seconds * (1 + sound.damping * (k - 1))
        n_samples = min(n_samples, round(seconds * (4 if sound.ringing else 1) * sample_rate))
    # Phases that grow with the square keep the partials from peaking together (Schroeder 1970).
    place = np.arange(len(k))
    parts = np.stack([frequency, amplitude, rate, np.pi * 0.618034 * place**2])
    parts = parts[:, (frequency < PARTIALS_END * sample_rate) & (amplitude > 1e-4 * amplitude.max())]
    parts[1] *= sound.gain * 0.2 * 2 ** ((60 - pitch) / 48) / np.linalg.norm(parts[1])
    if sound.ringing:
        parts = np.concatenate(
            [_voice(parts, 1 - sound.ringing), _voice(parts, sound.ringing, sound.detune_cents, rate=0.25)], axis=1
        )
    elif sound.detune_cents:
        parts = np.concatenate([_voice(parts, 1.0), _voice(parts, 0.4, sound.detune_cents)], axis=1)
    if sound.knock:
        thud = np.array([[83, 151, 262, 437], [1, 0.8, 0.6, 0.4], [55, 60, 70, 90], [0, 1, 2, 3]], np.float64)
        thud[1] *= sound.knock * 0.2
        parts = np.concatenate([parts, thud], axis=1)
    tone = damped_sines(parts, n_samples, sample_rate)
    attack = np.sin(np.linspace(0, np.pi / 2, max(2, round(sound.attack_seconds * sample_rate)))) ** 2
    tone[: len(attack)] *= attack[: len(tone)].astype(np.float32)
    n_fade = min(len(tone), round(0.01 * sample_rate))
    if sound.decay_seconds:
        tone[len(tone) - n_fade :] *= np.linspace(1, 0, n_fade, dtype=np.float32)
    return tone


def _voice(parts: Table, share: float, cents: float = 0.0, rate: float = 1.0) -> Table:
    """Copy the partials for one string of a tone; each is out of tune by its own amount, so that they beat apart."""
    own_cents = cents * (0.6 + 0.8 * (np.arange(parts.shape[1]) * 0.381966 % 1.0))
    return np.stack([parts[0] * 2 ** (own_cents / 1200), parts[1] * share, parts[2] * rate, parts[3] + cents])


def damped_sines(parts: Table, n_samples: int, sample_rate: int) -> Samples:
    """Sum damped sines: float32 [n_samples] from rows frequency in Hz, amplitude, decay rate in 1/s and phase."""
    frequency, amplitude, rate, phase = parts
    exponent = (2j * np.pi * frequency - rate) / sample_rate
    n_chunks = -(-n_samples // (N_ROWS * N_STEPS))
    first = amplitude * np.exp(1j * phase)
    chunk_starts = first * np.exp(np.arange(n_chunks)[:, None] * (N_ROWS * N_STEPS) * exponent)
    starts = chunk_starts[:, None] * np.exp(np.arange(N_ROWS)[:, None] * N_STEPS * exponent)
    starts[np.abs(starts) < 1e-9] = 0  # inaudible; numbers near 1e-40 would slow the product down a hundredfold
    steps = np.exp(exponent[:, None] * np.arange(N_STEPS))
    # The real part of the complex product, as one real product of twice the depth.
    left = np.concatenate([starts.real, -starts.imag], axis=2).astype(np.float32)
    right = np.concatenate([steps.real, steps.imag], axis=0).astype(np.float32)
    return (left @ right).reshape(-1)[:n_samples]


def drum_hit(key: int, sample_rate: int) -> tuple[Samples, float]:
    """Return one hit of a General MIDI percussion key, float32 [T], and its place between left (-1) and right (1)."""
    drum = DRUMS.get(key) or struck(500 * 2 ** ((key - 60) / 24), 0.1)
    n_samples = round(max(drum.tone_seconds, drum.noise_seconds) * sample_rate)
    t = np.arange(n_samples) / sample_rate
    hit = np.zeros(n_samples)
    for place, tone_hz in enumerate(drum.tone_hz):
        bend = drum.tone_seconds / 12  # the glide is over early, the rest is the drum's own pitch
        cycles = tone_hz * (t + (drum.glide - 1) * bend * (1 - np.exp(-t / bend)))
        hit += drum.tone_gain * 0.8**place * np.sin(2 * np.pi * cycles) * np.exp(-6.9 * t / drum.tone_seconds)
    if drum.noise_gain:
        noise = _noise(key, n_samples, drum.noise_hz, sample_rate)
        hit += drum.noise_gain * noise * np.exp(-6.9 * t / drum.noise_seconds)
    n_fade = min(n_samples, round(0.005 * sample_rate))
    hit[n_samples - n_fade :] *= np.linspace(1, 0, n_fade)
    return (hit * 0.35).astype(np.float32), drum.pan


def _noise(key: int, n_samples: int, band_hz: tuple[float, float], sample_rate: int) -> NDArray[np.float64]:
    """White noise of about unit loudness between two frequencies; raw generator bits, which numpy never changes."""
    white = (np.random.PCG64(key).random_raw(n_samples) >> np.uint64(11)) * 2.0**-52 - 1.0
    spectrum = np.fft.rfft(white)
    f = np.fft.rfftfreq(n_samples, 1 / sample_rate) + 1e-9
    low, high = band_hz
    spectrum /= (1 + (low / f) ** 6) * (1 + (f / high) ** 6)
    noise = np.fft.irfft(spectrum, n_samples)
    return noise * (0.5 / max(float(np.sqrt(np.mean(noise**2))), 1e-9))


def _add_room(mix: Samples, sample_rate: int) -> None:
    """Add the reverberation of a small hall by overlap-add."""
    n_step, response_spectrum = _room(sample_rate)
    n_fft = 2 * (response_spectrum.shape[1] - 1)
    dry = mix.sum(axis=0)
    n_samples = len(dry)
    for start in range(0, n_samples, n_step):
        echo = np.fft.irfft(np.fft.rfft(dry[start : start + n_step], n_fft) * response_spectrum, n_fft)
        stop = min(start + n_fft, n_samples)
        mix[:, start:stop] += echo[:, : stop - start].astype(np.float32, copy=False)


@lru_cache(maxsize=2)
def _room(sample_rate: int, wet: float = 0.22) -> tuple[int, NDArray[np.complexfloating]]:
    """The longest block for overlap-add, and the spectrum of the room [2, F]: dying noise, one per ear."""
    n_response = round(0.9 * sample_rate)
    t = np.arange(n_response) / sample_rate
    envelope = np.where(t < 0.012, 0.0, np.exp(-6.9 * t / 1.1))  # 12 ms until the first wall answers
    ears = [_noise(1000 + ear, n_response, (180, 4200), sample_rate) * envelope for ear in range(2)]
    response = np.stack([ear * (wet / np.linalg.norm(ear)) for ear in ears]).astype(np.float32)
    n_fft = 1 << (4 * n_response).bit_length()
    return n_fft - n_response + 1, np.fft.rfft(response, n_fft)


def level(mix: Samples, sample_rate: int) -> None:
    """Bring the loudest 0.4 s to `LEVEL_RMS`, bend what passes the knee towards the ceiling, fade out the end."""
    n_samples = mix.shape[1]
    edges = np.arange(0, n_samples, round(0.4 * sample_rate))
    energy = np.add.reduceat((mix * mix).sum(axis=0, dtype=np.float64), edges)
    loudest = math.sqrt(float(energy.max()) / (2 * 0.4 * sample_rate))
    mix *= LEVEL_RMS / max(loudest, 1e-9)
    over = np.abs(mix) > KNEE
    excess = mix[over]
    bent = KNEE + (CEILING - KNEE) * np.tanh((np.abs(excess) - KNEE) / (CEILING - KNEE))
    mix[over] = np.sign(excess) * bent
    n_fade = min(n_samples, round(0.03 * sample_rate))
    mix[:, n_samples - n_fade :] *= np.linspace(1, 0, n_fade, dtype=np.float32)
