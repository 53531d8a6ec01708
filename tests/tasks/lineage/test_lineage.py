"""From a generated file back to the training files, and from a dataset to what was made of it."""

import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from models.config import SamplingConfig
from tasks.dataset.versions import DatasetVersion
from tasks.errors import NotFound
from tasks.generation.generate import Batch
from tasks.lineage.lineage import Lineage, lineage_rows
from tasks.storage.home import Home
from tests.studio import train_studio


@dataclass(frozen=True)
class Made:
    """A batch, and the dataset behind it."""

    home: Home
    dataset: DatasetVersion
    batch: Batch

    def ask(self, target: Any) -> dict[str, Any]:
        return Lineage(self.home, None).of(str(target))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    studio = train_studio(tmp_path_factory.mktemp("lineage"))
    batch = studio.compose(n_pieces=2, seed=3, sampling=SamplingConfig(max_tokens=60))
    return Made(studio.home, studio.dataset, batch)


def check_dataset(made: Made, facts: dict[str, Any]) -> None:
    ledger = pq.read_table(made.dataset.ledger).to_pylist()
    train = [row for row in ledger if (row["status"], row["split"]) == ("accepted", "train")]
    assert facts["dataset_version"] == made.dataset.reference
    assert facts["ledger"] == str(made.dataset.ledger)
    assert facts["n_training_files"] == len(train) > 0
    assert facts["training_files"] == sorted(row["path"] for row in train)[:5]
    assert facts["licences"] == Counter(row["licence"] or "not stated" for row in train)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["mid", "json"])
def test_a_generated_file_leads_to_its_training_files(made: Made, suffix: str) -> None:
    facts = made.ask(made.batch.folder / "pieces" / f"0001.{suffix}")
    assert facts["kind"] == "piece"
    assert facts["piece"]["name"] == "0001"
    assert facts["piece"]["seed"] == 3
    assert facts["batch"]["name"] == made.batch.name
    assert facts["model"]["model_version"] == "small-small@1"
    check_dataset(made, facts["dataset"])
    assert ("dataset ledger", str(made.dataset.ledger)) in lineage_rows(facts)


def test_a_copy_under_another_name_is_known_by_its_contents(made: Made, tmp_path: Path) -> None:
    copy = tmp_path / "my song.mid"
    shutil.copy(made.batch.folder / "pieces" / "0000.mid", copy)
    assert made.ask(copy)["piece"]["name"] == "0000"
    copy.write_bytes(copy.read_bytes() + b"\0")
    with pytest.raises(NotFound, match=r"no batch of .* holds my song\.mid \(sha256 [0-9a-f]{16}\)"):
        made.ask(copy)


def test_a_batch_is_known_by_name_and_folder(made: Made) -> None:
    by_name, by_folder = made.ask(made.batch.name), made.ask(made.batch.folder)
    assert by_name["batch"] == by_folder["batch"]
    assert by_name["batch"]["n_pieces"] == 2
    check_dataset(made, by_name["dataset"])


@pytest.mark.parametrize("length", [4, 16])
def test_a_dataset_version_is_known_by_a_part_of_its_digest(made: Made, length: int) -> None:
    facts = made.ask(f"{made.dataset.name}@{made.dataset.version[:length]}")
    assert facts["kind"] == "dataset"
    assert facts["models"] == facts["batches"] == []  # of no registered model
    check_dataset(made, facts["dataset"])


@pytest.mark.parametrize("target", ["", "nonesuch", "deadbeef", "small@ffff", "/nowhere/x.mid"])
def test_what_is_nowhere_is_told_in_one_line(made: Made, target: str) -> None:
    with pytest.raises(NotFound, match="is no file of a batch, no batch, no dataset version, no run") as error:
        made.ask(target)
    assert "\n" not in str(error.value)


def test_a_dataset_that_is_gone_is_said_to_be(made: Made) -> None:
    moved = made.dataset.folder.with_name("moved")
    made.dataset.folder.rename(moved)
    try:
        facts = made.ask(made.batch.folder / "pieces" / "0000.mid")
    finally:
        moved.rename(made.dataset.folder)
    assert facts["dataset"] == {"dataset_version": made.dataset.reference, "is_there": False}
    assert facts["batch"]["name"] == made.batch.name
