"""A dataset as text: ten lines, every accepted song with its name, and music that comes back."""

from pathlib import Path

import numpy as np
import pytest

from tasks.config.dataset import AugmentConfig, ParseConfig
from tasks.dataset.text import dataset_text
from tasks.dataset.versions import DatasetVersion
from tasks.errors import ConfigError
from tasks.music.midi.limits import ReadLimits
from tasks.music.midi.read_midi import read_midi
from tasks.music.tokenizers.optimus.characters import OptimusTxtConfig
from tasks.music.tokenizers.optimus.text_tokenizer import OptimusTxtTokenizer
from tasks.storage.home import Home
from tests.samples import small_corpus, small_dataset

FULL = OptimusTxtConfig(velocities=True, channels=True)


@pytest.fixture(scope="module")
def sourced(tmp_path_factory: pytest.TempPathFactory) -> tuple[DatasetVersion, Path]:
    folder = tmp_path_factory.mktemp("text")
    source = small_corpus(folder / "midi", 10, with_flaws=True)
    return small_dataset(Home.at(folder / "home"), source), source


def test_every_accepted_song_stands_in_the_text_with_its_name_and_notes(sourced: tuple[DatasetVersion, Path]) -> None:
    dataset, source = sourced
    text, n_songs = dataset_text(dataset, ["velocities=true", "channels=true"])
    head = [line.partition("=")[0] for line in text.splitlines()[:10]]
    assert head == [
        "DATASET", "CREATED_ON", "CHARS_ENCODING_OFFSET", "TIME_DENOMINATOR", "TRANSFORM", "PERFECT_TIMINGS",
        "MUSENET_ENCODING", "TRANSPOSED_BY", "TRANSPOSED_AND_FLIPPED", "LEGEND",
    ]  # fmt: skip
    assert text.endswith(f"TOTAL_SONGS_IN_DATASET={n_songs}")
    assert n_songs == dataset.manifest["counts"]["n_accepted"]
    songs = OptimusTxtTokenizer(FULL).from_text(text)
    assert len(songs) == n_songs
    for name, score in songs:
        (file,) = source.rglob(f"{name}.mid")
        original = read_midi(file.read_bytes())
        assert len(score.notes.pitch) == len(original.notes.pitch)
        np.testing.assert_array_equal(np.bincount(score.notes.pitch), np.bincount(original.notes.pitch))


def test_the_same_version_gives_the_same_text_and_a_split_its_own_songs(sourced: tuple[DatasetVersion, Path]) -> None:
    dataset, _ = sourced
    assert dataset_text(dataset) == dataset_text(dataset)
    counts = {split: dataset_text(dataset, split=split)[1] for split in ("train", "validation", "test")}
    assert sum(counts.values()) == dataset_text(dataset)[1]


@pytest.mark.slow
def test_centred_and_flipped_songs_stand_in_the_text_and_in_its_header(tmp_path: Path) -> None:
    dataset = small_dataset(
        Home.at(tmp_path / "home"),
        small_corpus(tmp_path / "midi", 10),
        parse=ParseConfig(read=ReadLimits(median_pitch=60)),
        augment=AugmentConfig(transpositions=(0, 2), stretches=(1.0,), flip=True),
        encoding=OptimusTxtConfig(velocities=True, channels=True),
    )
    plain, n_songs = dataset_text(dataset)
    assert "\nTRANSFORM=60\n" in plain
    assert "\nTRANSPOSED_BY=0\nTRANSPOSED_AND_FLIPPED=False\n" in plain
    for _, score in (songs := OptimusTxtTokenizer(FULL).from_text(plain)):
        pitched = score.notes.pitch[~score.notes.is_drum]
        assert abs(np.median(pitched) - 60) <= 1
    text, n_varied = dataset_text(dataset, augmented=True)
    assert "\nTRANSPOSED_BY=2\nTRANSPOSED_AND_FLIPPED=True\n" in text
    splits = dataset.manifest["splits"]
    assert n_varied == sum(facts["n_rows"] for facts in splits.values()) > n_songs == len(songs)
    varied = OptimusTxtTokenizer(FULL).from_text(text)
    (name, score), *_ = (song for song in varied if sum(name == song[0] for name, _ in varied) == 4)
    pitches = [other.notes.pitch for found, other in varied if found == name]
    moved = {tuple(np.bincount(pitch, minlength=128).tolist()) for pitch in pitches}
    drums, pitched = score.notes.pitch[score.notes.is_drum], score.notes.pitch[~score.notes.is_drum].astype(int)
    wanted = (pitched, pitched + 2, 127 - pitched, 129 - pitched)
    assert moved == {tuple(np.bincount([*notes, *drums], minlength=128).tolist()) for notes in wanted}


def test_bad_input_is_refused(sourced: tuple[DatasetVersion, Path]) -> None:
    with pytest.raises(ConfigError, match="unknown key 'speed'"):
        dataset_text(sourced[0], ["speed=true"])
    with pytest.raises(ConfigError, match="--split tests: known are train, validation, test"):
        dataset_text(sourced[0], split="tests")
