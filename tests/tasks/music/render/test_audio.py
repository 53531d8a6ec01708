import hashlib
import io
import itertools
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from tasks.errors import ConfigError
from tasks.music.render import audio
from tasks.music.render.ogg_pages import set_serial

RATE = 24_000


def chords(seconds: float = 5.0, rate: int = RATE) -> np.ndarray:
    """Float32 [N, 2]: tones that begin every 0.4 s and die away, another on each side."""
    t = np.arange(round(seconds * rate)) / rate
    sides = [np.sin(2 * np.pi * base * 2 ** (np.floor(t / 0.4) % 12 / 4) * t) for base in (131.0, 165.0)]
    return (0.3 * np.exp(-3 * (t % 0.4)) * np.stack(sides)).T.astype(np.float32)


def loudness(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(samples.astype(np.float64) ** 2)))


@pytest.mark.parametrize("gain", [1e-4, 0.06, 1.0, 40.0])
def test_the_loudest_moment_has_one_loudness_and_the_end_dies_away(gain: float):
    mix = np.ascontiguousarray(chords().T) * np.float32(gain)
    audio.level(mix, RATE)
    edges = np.arange(0, mix.shape[1] - round(0.4 * RATE), round(0.4 * RATE))
    loudest = max(loudness(mix[:, edge : edge + round(0.4 * RATE)]) for edge in edges)
    assert loudest == pytest.approx(audio.LEVEL_RMS, rel=0.05)
    assert not mix[:, -1].any()


def test_what_is_too_loud_bends_and_silence_stays_silent():
    mix = np.ascontiguousarray(chords().T)
    mix[:, RATE] = 3.0  # a crack in soft music
    audio.level(mix, RATE)
    assert audio.KNEE < np.abs(mix).max() <= audio.CEILING
    silence = np.zeros((2, RATE), np.float32)
    audio.level(silence, RATE)
    assert not silence.any()


PROCESS = """
import hashlib
from tasks.music.render import audio
from tests.tasks.music.render.test_audio import RATE, chords
for format in audio.AUDIO_MIME:
    print(hashlib.sha256(audio.encode_audio(chords(), RATE, format)).hexdigest())
"""


@pytest.mark.slow
def test_two_processes_write_the_same_bytes():
    def run(threads: str) -> str:
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": threads, "PYTHONHASHSEED": threads}
        return subprocess.run(
            [sys.executable, "-c", PROCESS], env=environment, capture_output=True, text=True, check=True
        ).stdout

    assert run("1") == run("4")
    assert hashlib.sha256(audio.encode_audio(chords(), RATE, "ogg")).hexdigest() in run("1")


@pytest.mark.slow
@pytest.mark.parametrize("rate", audio.SAMPLE_RATES)
@pytest.mark.parametrize("is_stereo", [True, False])
@pytest.mark.parametrize("format", ["mp3", "ogg"])
def test_compressed_sound_is_small_and_gives_the_sound_back(format: str, rate: int, is_stereo: bool):
    samples = chords(rate=rate)
    samples = samples if is_stereo else samples.mean(axis=1)
    data = audio.encode_audio(samples, rate, format)
    assert len(data) < (8200 if format == "mp3" else 11_000) * len(samples) / rate + 5000
    decoded, decoded_rate = soundfile.read(io.BytesIO(data), dtype="float32")
    assert (decoded.shape, decoded_rate) == (samples.shape, rate)
    assert np.sum((decoded - samples) ** 2) < 0.1 * np.sum(samples**2)


@pytest.mark.parametrize("format", ["flac", "wav"])
def test_lossless_formats_keep_sixteen_bits(format: str):
    samples = chords(1)
    decoded, _ = soundfile.read(io.BytesIO(audio.encode_audio(samples, RATE, format)), dtype="float32")
    np.testing.assert_allclose(decoded, samples, atol=1e-4)


def test_an_unknown_format_or_rate_is_refused():
    with pytest.raises(ConfigError, match="'aac' is none of ogg, mp3"):
        audio.encode_audio(np.zeros(10, np.float32), RATE, "aac")
    with pytest.raises(ConfigError, match="sample_rate=8000 is none of 16000"):
        audio.encode_audio(np.zeros(10, np.float32), 8000)


@pytest.mark.slow
def test_long_sound_is_written_whole():
    data = audio.encode_audio(chords(90), RATE, "ogg")  # one long write crashes libsndfile
    assert soundfile.info(io.BytesIO(data)).frames == 90 * RATE


def test_an_ogg_file_has_one_serial_number_and_right_checksums():
    samples = chords()
    data = audio.encode_audio(samples, RATE, "ogg")
    assert set_serial(data, audio.OGG_SERIAL) == data
    other = set_serial(data, 1)
    assert other != data
    assert set_serial(other, audio.OGG_SERIAL) == data
    starts = [match.start() for match in re.finditer(b"OggS\0", data)]
    assert len(starts) > 3
    for start, end in itertools.pairwise([*starts, len(data)]):
        page = bytearray(data[start:end])
        stated = int.from_bytes(page[22:26], "little")
        page[22:26] = bytes(4)
        assert crc_bit_by_bit(bytes(page[:60])) == crc_of(bytes(page[:60]))
        assert stated == crc_of(bytes(page))


def crc_bit_by_bit(data: bytes) -> int:
    """The checksum as RFC 3533 defines it: polynomial 0x04c11db7, highest bit first, from 0."""
    crc = 0
    for byte in data:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ (0x04C11DB7 if crc & 0x80000000 else 0)) & 0xFFFFFFFF
    return crc


def crc_of(data: bytes) -> int:
    """The same, a byte at a time."""
    table = [crc_bit_by_bit(bytes([byte])) for byte in range(256)]
    crc = 0
    for byte in data:
        crc = (crc << 8 & 0xFFFFFFFF) ^ table[crc >> 24 ^ byte]
    return crc


@pytest.mark.parametrize("cut", [1, 27, 30, 5000])
def test_what_is_no_ogg_file_is_refused(cut: int):
    data = audio.encode_audio(np.zeros((RATE, 2), np.float32), RATE, "ogg")
    with pytest.raises(ValueError, match="Ogg page"):
        set_serial(data[: min(cut, len(data) - 1)], 1)
