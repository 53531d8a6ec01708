"""The choice of channels: exactly their notes, counted as another reader counts them."""

import io
from collections import Counter
from pathlib import Path

import mido
import pytest

from tasks.config.dataset import DatasetConfig, ParseConfig
from tasks.config.serialization import digest, from_json, to_json
from tasks.errors import BadScore, ConfigError
from tasks.music.midi.limits import ReadLimits
from tasks.music.midi.read_midi import read_midi
from tasks.music.midi.reader import read_files
from tests.conftest import real_data
from tests.samples import small_corpus


def pitches_by_channel(data: bytes) -> dict[int, Counter[int]]:
    """Return the pitches of the ended notes of each channel, as mido reads them."""
    found: dict[int, Counter[int]] = {}
    open_notes: Counter[tuple[int, int, int]] = Counter()
    for number, track in enumerate(mido.MidiFile(file=io.BytesIO(data)).tracks):
        for message in track:
            if message.type not in ("note_on", "note_off"):
                continue
            key = (number, message.channel, message.note)
            if message.type == "note_on" and message.velocity:
                open_notes[key] += 1
            elif open_notes[key]:
                open_notes[key] -= 1
                found.setdefault(message.channel, Counter())[message.note] += 1
    return found


def wanted_pitches(data: bytes, channels: tuple[int, ...]) -> Counter[int]:
    by_channel = pitches_by_channel(data)
    wanted = [c for c in range(16) if c in channels or (-1 in channels and c != 9)]
    return sum((by_channel.get(channel, Counter()) for channel in wanted), Counter())


@pytest.mark.parametrize("channels", [(-1,), (9,), (0,), (0, 9), (1, 2, 3), tuple(range(16))])
def test_the_notes_are_those_of_the_channels(tmp_path: Path, channels: tuple[int, ...]) -> None:
    contents = [path.read_bytes() for path in sorted(small_corpus(tmp_path, 12).glob("*.mid"))]
    whole, batch = read_files(contents), read_files(contents, ReadLimits(channels=channels))
    for index, data in enumerate(contents):
        piece = batch.notes.pieces(index, index + 1)
        expected = wanted_pitches(data, channels)
        assert Counter(piece.pitch.tolist()) == expected
        n_left_out = whole.notes.pieces(index, index + 1).n_notes - expected.total()
        refusal = batch.refusals[index]
        if not expected:
            assert refusal
            assert refusal.detail == f"none of {n_left_out} notes is on a channel of parse.read.channels"
        else:
            assert batch.dropped[index] == (f'{{"other_channels": {n_left_out}}}' if n_left_out else "{}")


@pytest.mark.slow
def test_real_files_keep_the_notes_of_their_channels() -> None:
    paths = sorted(real_data("dev").rglob("*.mid"))[::200]
    contents = [path.read_bytes() for path in paths]
    whole = read_files(contents)
    for channels in ((9,), (-1,)):
        batch = read_files(contents, ReadLimits(channels=channels))
        for index, data in enumerate(contents):
            if whole.refusals[index] is None and whole.dropped[index] == "{}":
                assert batch.notes.pieces(index, index + 1).n_notes == wanted_pitches(data, channels).total(), paths[
                    index
                ]


def test_a_piece_without_a_note_there_is_refused_and_limits_hold(tmp_path: Path) -> None:
    data = sorted(small_corpus(tmp_path, 3).glob("*.mid"))[0].read_bytes()
    with pytest.raises(BadScore, match=r"none of \d+ notes is on a channel of parse\.read\.channels"):
        read_midi(data, limits=ReadLimits(channels=(15,)))
    with pytest.raises(BadScore, match="limit 3"):
        read_midi(data, limits=ReadLimits(channels=(0,), max_notes=3))
    with pytest.raises(ConfigError, match="channels: 16 is not a channel from 0 to 15"):
        from_json(DatasetConfig, {"parse": {"read": {"channels": [16]}}})


def test_a_dataset_of_all_channels_keeps_its_name() -> None:
    form = to_json(ParseConfig())
    assert form["read"].pop("channels") == []
    assert digest(form) == digest(ParseConfig())
    assert digest(ParseConfig(read=ReadLimits(channels=(0,)))) != digest(ParseConfig())
