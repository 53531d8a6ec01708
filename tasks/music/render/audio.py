"""Audio files: one loudness for all pieces, compressed so that the same samples give the same bytes."""

import contextlib
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.errors import ConfigError
from tasks.music.render.ogg_pages import set_serial

Samples = NDArray[np.float32]

AUDIO_MIME = {"ogg": "audio/ogg", "mp3": "audio/mpeg", "flac": "audio/flac", "wav": "audio/wav"}
SAMPLE_RATES = (16_000, 22_050, 24_000, 32_000, 44_100, 48_000)  # those that MPEG audio layer III knows, from 16 kHz

MP3_KILOBITS = 64  # a second; below, a mono frame is too small for the tag that tells players where the sound starts
LEVEL_RMS = 10 ** (-18 / 20)  # the loudest 0.4 s of every piece, so that pieces can be compared by ear
CEILING, KNEE = 0.94, 0.6  # room above the ceiling: a decoded MP3 overshoots a little
OGG_QUALITY = 0.2  # about 45 kbit/s in stereo at 24 kHz
OGG_SERIAL = 0x4F726368


def level(mix: Samples, sample_rate: int) -> None:
    """Bring the loudest 0.4 s of [2, N] to `LEVEL_RMS`, bend what passes the knee to the ceiling, fade out the end."""
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


def audio_of(piece: Path) -> tuple[bytes | None, str]:
    """Return the sound that lies beside a piece, whose path is given without suffix, and its MIME type."""
    for suffix, mime in AUDIO_MIME.items():
        with contextlib.suppress(FileNotFoundError):
            return piece.with_name(f"{piece.name}.{suffix}").read_bytes(), mime
    return None, AUDIO_MIME["ogg"]


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
    """Return the level of `MP3_KILOBITS`; libsndfile maps 0..1 linearly onto the bit rates of the MPEG version."""
    lowest, highest = (32, 320) if sample_rate >= 32_000 else (8, 160)
    return (highest - MP3_KILOBITS) / (highest - lowest)
