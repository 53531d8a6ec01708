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
from tasks.music.midi.read_midi import read_midi
from tasks.music.render import synth
from tasks.music.render.ogg_pages import set_serial
from tasks.music.render.timbres import DRUMS, PROGRAM_TIMBRES, TIMBRES
from tests.conftest import real_data
from tests.millisecond_scores import millisecond_score

pytestmark = pytest.mark.slow  # seconds a test; see `make check`

RATE = 24_000
DRUM = (0, True, 0)


def loudness(samples: np.ndarray, start_seconds: float, end_seconds: float) -> float:
    part = samples[round(start_seconds * RATE) : round(end_seconds * RATE)].astype(np.float64)
    return float(np.sqrt(np.mean(part**2)))


def test_a_note_sounds_when_it_is_written():
    samples = synth.render(millisecond_score([(1000, 500, 60, 80)])).samples
    assert samples.dtype == np.float32
    assert np.abs(samples[:RATE]).max() < 1e-6
    assert loudness(samples, 1.0, 1.4) > 0.05


def test_a_note_has_its_pitch():
    tone = synth.tone_table(TIMBRES["piano"], 69, 2, RATE, RATE)  # A4, one second
    spectrum = np.abs(np.fft.rfft(tone * np.hanning(len(tone))))
    assert np.argmax(spectrum[380:500]) + 380 == pytest.approx(440, abs=2)


@pytest.mark.parametrize("name", TIMBRES)
@pytest.mark.parametrize("pitch", [0, 21, 60, 108, 127])
@pytest.mark.parametrize("layer", [0, synth.N_LAYERS - 1])
def test_every_sound_is_heard_at_every_pitch(name: str, pitch: int, layer: int):
    tone = synth.tone_table(TIMBRES[name], pitch, layer, RATE // 2, RATE)
    assert np.isfinite(tone).all()
    assert loudness(tone, 0, 0.4) > 0.002
    assert np.abs(tone).max() < 1.5


@pytest.mark.parametrize("rate", synth.SAMPLE_RATES)
def test_the_highest_note_is_heard_at_every_sample_rate(rate: int):
    assert np.abs(synth.render(millisecond_score([(0, 300, 127, 90)]), rate).samples).max() > 0.05


def test_every_program_has_a_sound_and_every_key_a_drum():
    assert len(PROGRAM_TIMBRES) == 128
    assert set(PROGRAM_TIMBRES) == set(TIMBRES)
    assert set(range(35, 82)) - set(DRUMS) <= {58, 71, 72, 73, 74, 78, 79}
    for key in range(128):
        hit, pan = synth.drum_hit(key, RATE)
        assert np.isfinite(hit).all()
        assert np.abs(hit).max() > 0.02
        assert -1 <= pan <= 1


def test_damped_sines_agree_with_the_formula():
    parts = np.array([[220.0, 3000.0], [0.5, 0.2], [3.0, 0.0], [0.3, 2.0]])
    t = np.arange(5000)[:, None] / RATE
    frequency, amplitude, rate, phase = parts
    expected = (amplitude * np.exp(-rate * t) * np.cos(2 * np.pi * frequency * t + phase)).sum(axis=1)
    np.testing.assert_allclose(synth.damped_sines(parts, 5000, RATE), expected, atol=2e-6)


def test_the_pedal_keeps_a_note_ringing():
    notes = [(0, 200, 60, 90), (3000, 200, 60, 90)]
    dry = synth.render(millisecond_score(notes)).samples
    held = synth.render(millisecond_score(notes, pedals=[(100, 2500, 0)])).samples
    assert loudness(held, 1.0, 1.5) > 5 * loudness(dry, 1.0, 1.5)


def test_velocity_is_loudness_inside_a_piece():
    samples = synth.render(millisecond_score([(0, 400, 60, 30), (3000, 400, 60, 110)])).samples
    assert loudness(samples, 3.0, 3.4) > 3 * loudness(samples, 0.0, 0.4)


def test_low_notes_stand_left_and_high_notes_right():
    low, high = (synth.render(millisecond_score([(0, 400, pitch, 80)])).samples for pitch in (30, 100))
    assert loudness(low[:, 0], 0, 0.4) > loudness(low[:, 1], 0, 0.4)
    assert loudness(high[:, 0], 0, 0.4) < loudness(high[:, 1], 0, 0.4)


def test_the_loudest_piece_stays_below_the_ceiling_and_the_softest_is_heard():
    cluster = [(0, 2000, pitch, 127) for pitch in range(128)] + [(0, 100, key, 127, *DRUM) for key in range(35, 82)]
    loud = synth.render(millisecond_score(cluster)).samples
    assert 0.3 < np.abs(loud).max() <= synth.CEILING
    soft = synth.render(millisecond_score([(0, 1, 60, 1)])).samples
    assert np.abs(soft).max() > 0.05


def test_what_the_cap_cuts_is_counted_and_said():
    score = millisecond_score([(0, 500, 60, 80), (1800, 500, 62, 80), (4000, 500, 64, 80)])
    rendering = synth.render(score, max_seconds=2)
    assert rendering.seconds == 2
    assert rendering.n_notes_cut == 2
    assert rendering.warnings == ("the audio stops at 2 s of 4 s: 2 notes are missing or cut",)
    assert synth.render(score).warnings == ()


def test_a_score_without_notes_is_half_a_second_of_silence():
    rendering = synth.render(millisecond_score([]))
    assert rendering.seconds == synth.EMPTY_SECONDS
    assert not rendering.samples.any()
    assert synth.encode_audio(rendering.samples, rendering.sample_rate)


@pytest.mark.parametrize(
    ("rate", "seconds"), [(8_000, 10), (24_000, 0), (24_000, float("nan")), (24_000, float("inf"))]
)
def test_impossible_settings_are_refused(rate: int, seconds: float):
    with pytest.raises(ConfigError):
        synth.render(millisecond_score([(0, 500, 60, 80)]), rate, seconds)


PROCESS = """
import hashlib
from tasks.music import synth
from tests.millisecond_scores import millisecond_score
notes = [(100 * i, 300, 40 + i, 30 + 2 * i, 8 * (i % 16), False, 0) for i in range(40)]
notes += [(200 * i, 100, 36 + i, 100, 0, True, 1) for i in range(20)]
rendering = synth.render(millisecond_score(notes, pedals=[(0, 900, 0)], n_tracks=2))
for format in synth.AUDIO_MIME:
    print(hashlib.sha256(synth.encode_audio(rendering.samples, rendering.sample_rate, format)).hexdigest())
"""


def test_two_processes_write_the_same_bytes():
    def run(threads: str) -> str:
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": threads, "PYTHONHASHSEED": threads}
        return subprocess.run(
            [sys.executable, "-c", PROCESS], env=environment, capture_output=True, text=True, check=True
        ).stdout

    assert run("1") == run("4")


@pytest.mark.parametrize("rate", synth.SAMPLE_RATES)
@pytest.mark.parametrize("is_stereo", [True, False])
@pytest.mark.parametrize("format", ["mp3", "ogg"])
def test_compressed_sound_is_small_and_gives_the_sound_back(format: str, rate: int, is_stereo: bool):
    score = millisecond_score([(400 * i, 390, 48 + 3 * i, 80) for i in range(12)])
    samples = synth.render(score, rate).samples
    samples = samples if is_stereo else samples.mean(axis=1)
    data = synth.encode_audio(samples, rate, format)
    assert len(data) < (8200 if format == "mp3" else 11_000) * len(samples) / rate + 5000
    decoded, decoded_rate = soundfile.read(io.BytesIO(data), dtype="float32")
    assert (decoded.shape, decoded_rate) == (samples.shape, rate)
    assert np.sum((decoded - samples) ** 2) < 0.1 * np.sum(samples**2)


@pytest.mark.parametrize("format", ["flac", "wav"])
def test_lossless_formats_keep_sixteen_bits(format: str):
    samples = synth.render(millisecond_score([(0, 500, 60, 80)])).samples
    decoded, _ = soundfile.read(io.BytesIO(synth.encode_audio(samples, RATE, format)), dtype="float32")
    np.testing.assert_allclose(decoded, samples, atol=1e-4)


def test_an_unknown_format_is_refused():
    with pytest.raises(ConfigError, match="'aac' is none of ogg, mp3"):
        synth.encode_audio(np.zeros(10, np.float32), RATE, "aac")


def test_a_minute_of_dense_music_is_rendered_in_a_moment():
    rng = np.random.default_rng(0)
    notes = [(int(t), 600, int(rng.integers(30, 96)), int(rng.integers(20, 120))) for t in np.linspace(0, 59_000, 1000)]
    score = millisecond_score(notes)
    samples = synth.render(score).samples
    assert hashlib.sha256(samples.tobytes()).digest() == hashlib.sha256(synth.render(score).samples.tobytes()).digest()
    assert len(samples) > 59 * RATE


def test_real_pieces_are_heard_and_never_clip():
    for path in sorted(real_data("dev").rglob("*.mid"))[::200]:
        rendering = synth.render(read_midi(path), max_seconds=30)
        assert np.isfinite(rendering.samples).all(), path
        assert np.abs(rendering.samples).max() <= synth.CEILING, path
        assert loudness(rendering.samples, 0, 30) > 0.001 or rendering.n_notes_cut, path


def test_an_ogg_file_has_one_serial_number_and_right_checksums():
    samples = synth.render(millisecond_score([(0, 3000, 60, 80)])).samples
    data = synth.encode_audio(samples, RATE, "ogg")
    assert set_serial(data, synth.OGG_SERIAL) == data
    other = set_serial(data, 1)
    assert other != data
    assert set_serial(other, synth.OGG_SERIAL) == data
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
    data = synth.encode_audio(np.zeros((RATE, 2), np.float32), RATE, "ogg")
    with pytest.raises(ValueError, match="Ogg page"):
        set_serial(data[: min(cut, len(data) - 1)], 1)


def test_a_piece_is_levelled_and_dies_away():
    """Loudness by measurement: the loudest 0.4 s, no offset, and silence soon after the last note."""
    for program in (0, 24, 40, 56, 73, 80):
        score = millisecond_score([(400 * i, 380, 48 + 3 * i, 80, program, False, 0) for i in range(12)])
        samples = synth.render(score).samples
        edges = np.arange(0, len(samples) - round(0.4 * RATE), round(0.4 * RATE))
        loudest = max(loudness(samples, edge / RATE, edge / RATE + 0.4) for edge in edges)
        assert loudest == pytest.approx(synth.LEVEL_RMS, rel=0.25), program
        assert abs(samples.mean()) < 0.001, program
        assert loudness(samples, 5.7, 5.95) < 0.05 * loudest, program
