"""A full disk stops a training or a batch with one line; what was whole stays, and the same call goes on."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tasks.checkpoints import CheckpointFolder, load_model
from tasks.dataset.versions import DatasetVersion
from tasks.errors import HomeError
from tasks.runtime import cluster
from tasks.storage.files import storage_problem
from tasks.storage.home import Home
from tasks.training import trainer
from tasks.training.job import TrainJob, make_job
from tasks.training.metrics_log import read_points
from tasks.training.trainer import read_progress
from tasks.training.worker import run_steps
from tests.samples import short_training, small_corpus, small_dataset
from tests.studio import Setup, files_of, silent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system"),
]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Give a file system of some size, or make it larger."""
    place = tmp_path / "disk"
    place.mkdir()

    def sized(size: str) -> Path:
        remount = ["remount,"] if place.is_mount() else [""]
        options = f"{remount[0]}size={size}"
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, text=True, check=False
        )
        if mounted.returncode:
            pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
        return place

    yield sized
    if place.is_mount():
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DatasetVersion:
    folder = tmp_path_factory.mktemp("full")
    return small_dataset(Home.at(folder / "home"), small_corpus(folder / "midi"))


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.name.endswith(".tmp")]


def test_a_training_keeps_its_last_checkpoint_and_goes_on(
    dataset: DatasetVersion, tmp_path: Path, disk: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit_here(job: TrainJob, failure: list[BaseException]) -> None:
        try:
            run_steps(job)
        except BaseException as error:
            failure.append(error)

    monkeypatch.setattr(cluster, "connect", lambda: None)
    monkeypatch.setattr(trainer, "_fit_in_thread", fit_here)
    config = short_training(checkpoint_interval=2)
    whole = make_job(config, dataset, tmp_path / "whole")
    run_steps(whole)
    one = sum(path.stat().st_size for path in CheckpointFolder(whole.run_dir / "checkpoints").find("last").iterdir())  # type: ignore[union-attr]
    place = disk(f"{int(1.6 * one) // 1024}k")  # room for one checkpoint and a half
    job = make_job(config, dataset, place / "run")
    for _ in range(2):
        with pytest.raises(
            HomeError, match=r"training stopped after step \d+ of 12, which is saved: the disk is full"
        ) as said:
            trainer.fit(job, lambda _: None)
        assert "\n" not in str(said.value)
        assert HomeError.exit_code == 1
        step = read_progress(job.run_dir)["step"]
        assert 0 < step < 12
        last = CheckpointFolder(job.run_dir / "checkpoints").find("last")
        assert last is not None
        load_model(last)
        assert leftovers(job.run_dir) == []
    disk("64m")
    trainer.fit(job, lambda _: None)
    for folder in (whole.run_dir, job.run_dir):
        assert read_progress(folder)["step"] == 12
    weights = [
        (CheckpointFolder(folder / "checkpoints").find("last") / "model.safetensors").read_bytes()  # type: ignore[operator]
        for folder in (whole.run_dir, job.run_dir)
    ]
    assert weights[0] == weights[1]
    assert [p["step"] for p in read_points(job.metrics)] == [p["step"] for p in read_points(whole.metrics)]


def test_a_batch_keeps_its_pieces_and_goes_on(tmp_path: Path, setup: Setup, disk: Callable[[str], Path]) -> None:
    settings = {"n_pieces": 12, "batch_size": 4}
    expected = silent(Home.at(tmp_path / "other"), setup, **settings)
    n_bytes = sum(path.stat().st_size for path in expected.folder.rglob("*") if path.is_file())
    for share in (0.1, 0.5, 0.9):
        home = Home.at(disk(f"{max(int(share * n_bytes) // 1024, 48)}k") / f"home-{share}")
        with pytest.raises(OSError, match="No space left") as said:
            silent(home, setup, **settings)
        assert storage_problem(said.value)
        assert leftovers(home.root) == []
        assert not (home.generations / expected.name).exists()
        disk("64m")
        assert files_of(silent(home, setup, **settings).folder) == files_of(expected.folder)
        subprocess.run(["rm", "-r", str(home.root)], check=True)
