"""A finished training run to compare with, and training without Ray."""

import time
from pathlib import Path

import pytest
from torch import nn

from tasks.dataset.versions import DatasetVersion
from tasks.runtime import cluster
from tasks.training import trainer
from tasks.training.job import TrainJob, make_job
from tasks.training.worker import run_steps
from tests.samples import short_training


@pytest.fixture(scope="module")
def undisturbed(dataset: DatasetVersion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of 12 steps that nothing disturbed."""
    job = make_job(short_training(), dataset, tmp_path_factory.mktemp("undisturbed"))
    run_steps(job)
    return job.run_dir


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `fit` run the steps itself, each at least 30 ms long, where it would ask Ray Train."""

    def fit_in_thread(job: TrainJob, failure: list[BaseException]) -> None:
        def wrap(model: nn.Module) -> nn.Module:
            model.register_forward_hook(lambda *_: time.sleep(0.03))
            return model

        try:
            run_steps(job, wrap=wrap)
        except BaseException as error:
            failure.append(error)

    monkeypatch.setattr(cluster, "connect", lambda: None)
    monkeypatch.setattr(trainer, "_fit_in_thread", fit_in_thread)
