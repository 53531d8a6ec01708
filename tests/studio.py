"""A model with the dataset that it was trained on, for tests of batches that are judged."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.config import SamplingConfig
from tasks.config import GenerateConfig
from tasks.copying import copy_index, human_path
from tasks.datasets import DatasetVersion
from tasks.generate import Batch, generate_batch
from tasks.home import Home, json_bytes
from tasks.originality import HumanRange
from tasks.tracking import ModelVersion
from tests.samples import small_corpus, small_dataset, small_model


@dataclass(frozen=True)
class Studio:
    """A model with the dataset that it was trained on, of which people copy no more than 13 notes."""

    home: Home
    dataset: DatasetVersion
    checkpoint: Path

    def compose(self, **settings: Any) -> Batch:
        given = {"n_pieces": 3, "audio": "none", "sampling": SamplingConfig(max_tokens=160)} | settings
        model = model_of(self.checkpoint, self.dataset.reference)
        return generate_batch(self.home, model, self.checkpoint, GenerateConfig(**given))


def model_of(checkpoint: Path, dataset: str) -> ModelVersion:
    return ModelVersion(
        name="small-small", version="1", run_id="0123456789abcdef", checkpoint=checkpoint, dataset=dataset,
        preset="small", model_id="m-1",
    )  # fmt: skip


def build_studio(folder: Path) -> Studio:
    home = Home.at(folder / "home")
    dataset = small_dataset(home, small_corpus(folder / "midi", n_pieces=16))
    copy_index(dataset)
    human = HumanRange(40, 40, {length: {5: 40} for length in (32, 64, 128, 256, 512, 1024)})
    human_path(dataset.version_folder).write_bytes(json_bytes(human.as_json()))
    return Studio(home, dataset, small_model(home, dataset))


def sidecars_of(batch: Batch) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((batch.folder / "pieces").glob("*.json"))]
