"""What several tests of batches share."""

import pytest

from tests.studio import Setup, Studio, build_setup, build_studio


@pytest.fixture(scope="session")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    return build_studio(tmp_path_factory.mktemp("studio"))


@pytest.fixture(scope="session")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return build_setup(tmp_path_factory.mktemp("setup"))
