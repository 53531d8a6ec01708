"""What all tests share: real MIDI where it is, one Ray, one Prefect server, small homes."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from flows.services import environment
from tasks.storage.home import Home

# Before torch is imported: its threads wait for each other in a busy loop, ten times the work of models this small.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Before ray is imported by whichever test comes first: a Ray that began without the token cannot talk to one with it.
environment.set_defaults()

# Children import nothing from the working folder, but some tests give them functions of the tests.
_FOLDERS = [
    str(Path(__file__).resolve().parent.parent),
    *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)),
]
os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(_FOLDERS))

# How fast a machine is, or how busy, is no fault of the code: what is fast enough is for `bench/` to say.
UNTIMED: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("ci", max_examples=25, **UNTIMED)
settings.register_profile("nightly", max_examples=100, **UNTIMED)
settings.load_profile("ci")  # `--hypothesis-profile=nightly` loads the other

REPOSITORY = Path(__file__).resolve().parent.parent

# One worker runs all tests of a file, so that they share its fixtures. These files share some too.
GROUPS = {"tests/flows/test_pipeline.py": "pipeline", "tests/flows/services/test_servers.py": "pipeline"}
# The longest begin first, so that no worker is left alone with one of them at the end.
LONGEST = ("test_rebuild_faults.py", "pipeline", "test_deployments.py", "test_sweep.py", "test_train.py")
MARKED_BY = {"ray": "ray", "prefect": "servers"}  # fixture -> mark


def group_of(nodeid: str) -> str:
    file = nodeid.partition("::")[0]
    return GROUPS.get(file, file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand out tests by group. (xdist 3.8 reads no `xdist_group` mark under pytest 9.2.)"""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return Groups(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the tests by group, and mark those whose fixtures say what they start."""
    groups: dict[str, list[pytest.Item]] = {}
    for item in items:
        for fixture in MARKED_BY.keys() & set(getattr(item, "fixturenames", ())):
            item.add_marker(MARKED_BY[fixture])
        groups.setdefault(group_of(item.nodeid), []).append(item)

    def rank(group: str) -> tuple[int, int]:
        name = group.rpartition("/")[2]
        n_slow = sum(item.get_closest_marker("slow") is not None for item in groups[group])
        return LONGEST.index(name) if name in LONGEST else len(LONGEST), -n_slow

    items[:] = [item for group in sorted(groups, key=rank) for item in groups[group]]


def real_data(part: str) -> Path:
    """Return `dev` or `bad` of the folder of real MIDI, or skip: the project ships none of it."""
    root = Path(os.environ.get("ORCHESTRION_TEST_DATA") or REPOSITORY.parent / "shared" / "data")
    if not (root / part).is_dir():
        pytest.skip(f"no real MIDI at {root / part}; set ORCHESTRION_TEST_DATA to a folder that holds {part}/")
    return root / part


@pytest.fixture(scope="session")
def quiet_environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prefect, Ray and MLflow as the command line sets them up, with Prefect's files in a temporary folder."""
    folder = tmp_path_factory.mktemp("environment")
    environment.prepare(Home.at(folder))
    return folder


@pytest.fixture(scope="session")
def ray(quiet_environment: Path) -> Iterator[None]:
    """A Ray of two cores for the whole session."""
    from tasks.runtime import cluster

    cluster.connect()
    yield
    cluster.disconnect()


@pytest.fixture(scope="session")
def prefect(quiet_environment: Path) -> Iterator[None]:
    """A Prefect server of its own for the whole session, without the heartbeat that costs a second a flow."""
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    before = signal.getsignal(signal.SIGTERM)
    with (
        prefect_test_harness(server_startup_timeout=120),
        temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),
    ):
        yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """An empty home of one test."""
    where = Home.at(tmp_path / "home")
    where.prepare()
    return where
