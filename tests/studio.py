"""A model with the dataset that it was trained on, and batches of it, for tests of batches."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.config import SamplingConfig
from tasks.config.generation import GenerateConfig
from tasks.copying.human_range import HumanRange
from tasks.copying.index import copy_index, human_path
from tasks.dataset.versions import DatasetVersion
from tasks.generation.generate import Batch, generate_batch, read_request
from tasks.music.midi.read_midi import read_midi
from tasks.music.midi.writer import write_midi
from tasks.music.score import Score
from tasks.storage.home import Home
from tasks.storage.integrity import sealed_bytes
from tasks.tracking.mlflow_tracker import ModelVersion
from tests.builders import make_score
from tests.samples import small_corpus, small_dataset, small_model

SHORT = SamplingConfig(max_tokens=48)
PROMPT_NOTES = [(0, 480, 60, 64), (480, 480, 64, 72), (960, 480, 67, 80), (1440, 1500, 72, 88)]  # C4 E4 G4 C5


@dataclass(frozen=True)
class Studio:
    """A model with the dataset that it was trained on."""

    home: Home
    dataset: DatasetVersion
    checkpoint: Path

    @property
    def model(self) -> ModelVersion:
        return model_of(self.checkpoint, self.dataset.reference)

    def compose(self, **settings: Any) -> Batch:
        given = {"n_pieces": 3, "audio": "none", "sampling": SamplingConfig(max_tokens=160)} | settings
        return generate_batch(read_request(self.home, self.model, self.checkpoint, GenerateConfig(**given)))


@dataclass(frozen=True)
class Setup:
    """A trained model, and prompts that begin in different ways; batches go into homes of their own."""

    checkpoint: Path
    model: ModelVersion
    prompts: Path


def model_of(checkpoint: Path, dataset: str) -> ModelVersion:
    return ModelVersion(
        name="small-small", version="1", run_id="0123456789abcdef", checkpoint=checkpoint, dataset=dataset,
        preset="small", model_id="m-1",
    )  # fmt: skip


def train_studio(folder: Path, n_pieces: int = 12) -> Studio:
    home = Home.at(folder / "home")
    dataset = small_dataset(home, small_corpus(folder / "midi", n_pieces=n_pieces))
    return Studio(home, dataset, small_model(home, dataset))


def build_studio(folder: Path) -> Studio:
    """Return a studio of whose dataset people copy no more than 13 notes."""
    studio = train_studio(folder, n_pieces=16)
    copy_index(studio.dataset)
    human = HumanRange(40, 40, {length: {5: 40} for length in (32, 64, 128, 256, 512, 1024)})
    human_path(studio.dataset.version_folder).write_bytes(sealed_bytes(human.as_json()))
    return studio


def build_setup(folder: Path) -> Setup:
    studio, prompts = train_studio(folder), folder / "prompts"
    prompts.mkdir()
    (prompts / "a chord.mid").write_bytes(write_midi(make_score(PROMPT_NOTES)))
    (prompts / "b.mid").write_bytes(write_midi(make_score([(160 * i, 80, 50 + i, 60) for i in range(30)])))
    return Setup(studio.checkpoint, studio.model, prompts)


def config_of(**settings: Any) -> GenerateConfig:
    return GenerateConfig(**{"n_pieces": 5, "sampling": SHORT, "prompt_tokens": 24} | settings)


def compose(home: Home, setup: Setup, **settings: Any) -> Batch:
    return generate_batch(read_request(home, setup.model, setup.checkpoint, config_of(**settings)))


def silent(home: Home, setup: Setup, **settings: Any) -> Batch:
    return compose(home, setup, audio="none", **settings)


def midi_of(batch: Batch) -> list[bytes]:
    return [path.read_bytes() for path in sorted((batch.folder / "pieces").glob("*.mid"))]


def scores_of(batch: Batch) -> list[Score]:
    return [read_midi(midi) for midi in midi_of(batch)]


def files_of(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def sidecars_of(batch: Batch) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((batch.folder / "pieces").glob("*.json"))]
