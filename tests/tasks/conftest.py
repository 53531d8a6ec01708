"""What several tests of stages share: a dataset, a trained model, a finished batch."""

import pytest

from tasks.dataset.versions import DatasetVersion
from tasks.storage.home import Home
from tests.samples import small_corpus, small_dataset
from tests.studio import Setup, Studio, build_setup, build_studio


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DatasetVersion:
    """A small dataset to train on, alone in its home."""
    folder = tmp_path_factory.mktemp("dataset")
    return small_dataset(Home.at(folder / "home"), small_corpus(folder / "midi"))


@pytest.fixture(scope="session")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    return build_studio(tmp_path_factory.mktemp("studio"))


@pytest.fixture(scope="session")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return build_setup(tmp_path_factory.mktemp("setup"))
