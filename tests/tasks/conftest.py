"""What several tests of batches share."""

import pytest

from tests.studio import Studio, build_studio


@pytest.fixture(scope="session")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    return build_studio(tmp_path_factory.mktemp("studio"))
