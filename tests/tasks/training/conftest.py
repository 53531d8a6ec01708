"""A finished training run that its tests compare with."""

from pathlib import Path

import pytest

from tasks.dataset.versions import DatasetVersion
from tasks.training.job import make_job
from tasks.training.worker import run_steps
from tests.samples import short_training


@pytest.fixture(scope="module")
def undisturbed(dataset: DatasetVersion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of 12 steps that nothing disturbed."""
    job = make_job(short_training(), dataset, tmp_path_factory.mktemp("undisturbed"))
    run_steps(job)
    return job.run_dir
