"""The median pitch that pieces are moved to when they are read."""

from pathlib import Path

import numpy as np
import pytest

from tasks.config.dataset import DatasetConfig, ParseConfig
from tasks.config.serialization import digest, from_json, to_json
from tasks.errors import BadScore, ConfigError, RejectReason
from tasks.music.midi.limits import ReadLimits
from tasks.music.midi.read_midi import read_midi
from tasks.music.midi.reader import read_files
from tests.builders import off, on, smf, track
from tests.samples import small_corpus

LIMITS = ReadLimits(median_pitch=60)


def notes_of(*pitches: int, channel: int = 0) -> bytes:
    return smf(track(*(event for p in pitches for event in ((0, on(p, 80, channel)), (60, off(p, channel))))))


def test_the_median_is_the_pitch_and_the_drums_stay(tmp_path: Path) -> None:
    contents = [path.read_bytes() for path in sorted(small_corpus(tmp_path, 24).glob("*.mid"))]
    before, after = read_files(contents), read_files(contents, LIMITS)
    assert not any(after.refusals)
    for index in range(len(contents)):
        one, other = (batch.notes.pieces(index, index + 1) for batch in (before, after))
        shift = 60 - int(np.median(one.pitch[~one.is_drum]))
        assert abs(np.median(other.pitch[~other.is_drum]) - 60) <= 1
        rows = sorted(zip(one.onset, one.pitch + np.where(one.is_drum, 0, shift), one.track, strict=True))
        assert rows == list(zip(other.onset, other.pitch, other.track, strict=True))
    assert np.array_equal(before.programs, after.programs)


@pytest.mark.parametrize(("pitches", "wanted"), [((40,), [60]), ((40, 41), [60, 61]), ((70, 72, 90), [58, 60, 78])])
def test_the_median_is_rounded_down(pitches: tuple[int, ...], wanted: list[int]) -> None:
    assert read_midi(notes_of(*pitches), limits=LIMITS).notes.pitch.tolist() == wanted


def test_drums_alone_stay() -> None:
    assert read_midi(notes_of(36, 42, channel=9), limits=LIMITS).notes.pitch.tolist() == [36, 42]


def test_a_piece_that_would_leave_the_range_is_refused_and_its_neighbours_are_read() -> None:
    wide = notes_of(20, 20, 100)
    with pytest.raises(BadScore, match=r"moved by 40 semitones to parse\.read\.median_pitch=60, a note leaves 0-127"):
        read_midi(wide, limits=LIMITS)
    batch = read_files([notes_of(50), wide, notes_of(30)], LIMITS)
    assert [refusal and refusal.reason for refusal in batch.refusals] == [None, RejectReason.OUT_OF_RANGE, None]
    assert batch.notes.offsets.tolist() == [0, 1, 1, 2]
    assert batch.notes.pitch.tolist() == [60, 60]


def test_no_other_pitch_is_taken_and_earlier_datasets_keep_their_names() -> None:
    with pytest.raises(ConfigError, match="median_pitch=128 is not a pitch from 1 to 127, or 0 for none"):
        from_json(DatasetConfig, {"parse": {"read": {"median_pitch": 128}}})
    form = to_json(DatasetConfig())
    del form["parse"]["read"]["median_pitch"], form["augment"]["flip"]
    assert digest(form) == digest(DatasetConfig())
    assert digest(ParseConfig(read=LIMITS)) != digest(ParseConfig())
