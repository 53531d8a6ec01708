"""What all tests share: real MIDI where it is, one Ray, an unchanged environment, small homes."""

import contextlib
import logging
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from flows.services import environment
from tasks.runtime import ray_node
from tasks.storage.home import Home
from tests import tracking_store

# Before torch is imported: its threads wait for each other in a busy loop, ten times the work of models this small.
os.environ.setdefault("OMP_NUM_THREADS", "1")
tracking_store.copy_new_stores()

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
# The same examples in every run, so that a run tells what a change did; `make nightly` draws new ones.
settings.register_profile("ci", max_examples=25, derandomize=True, **UNTIMED)
settings.register_profile("check", max_examples=10, derandomize=True, **UNTIMED)
settings.register_profile("nightly", max_examples=100, **UNTIMED)
settings.load_profile("ci")  # `--hypothesis-profile=nightly` loads another

REPOSITORY = Path(__file__).resolve().parent.parent

# One worker runs all tests of a file, so that they share its fixtures. These files share some too.
GROUPS = {"tests/flows/test_pipeline.py": "pipeline", "tests/flows/services/test_servers.py": "pipeline"}
# The longest begin first, so that no worker is left alone with one of them at the end.
LONGEST = (
    "pipeline", "test_rebuild_faults.py", "test_fit.py", "test_signals.py", "test_deployments.py", "test_sweep.py",
    "test_old_home.py", "test_trials.py", "test_quarantine.py", "test_attacks.py", "test_ray_node.py",
)  # fmt: skip


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
    """Order the tests by group, and mark those that use Ray."""
    groups: dict[str, list[pytest.Item]] = {}
    for item in items:
        if "ray" in getattr(item, "fixturenames", ()):
            item.add_marker("ray")
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


# Session fixtures tell clients of their servers by variables, which stay for the session.
OF_SESSION = ("PREFECT_", "MLFLOW_")
# Libraries set these when they are imported or begin to work, and pytest names the test.
OF_LIBRARIES = (
    "PYTEST_CURRENT_TEST", "RAY_", "TUNE_", "PYTHONBREAKPOINT", "TORCHINDUCTOR_", "_TORCHINDUCTOR_", "TRITON_",
    "_RJEM_MALLOC_CONF", "SYMUSIC_",
)  # fmt: skip


@contextlib.contextmanager
def same_environment(allowed: tuple[str, ...]) -> Iterator[None]:
    """Put the environment back, and fail where another variable than those with an allowed prefix was changed."""
    before = dict(os.environ)
    yield
    after = {name: os.environ.get(name) for name in {**before, **os.environ} if not name.startswith(allowed)}
    changed = sorted(name for name, value in after.items() if before.get(name) != value)
    for name in changed:
        os.environ.pop(name, None) if name not in before else os.environ.__setitem__(name, before[name])
    assert not changed, f"the environment is left changed: {', '.join(changed)}"


@pytest.fixture(autouse=True, scope="module")
def environment_of_module() -> Iterator[None]:
    """Fail a module whose fixtures leave the environment changed."""
    with same_environment((*OF_LIBRARIES, *OF_SESSION)):
        yield


@pytest.fixture(autouse=True)
def environment_of_test(environment_of_module: None) -> Iterator[None]:
    """Fail a test that leaves the environment changed: another test would depend on it."""
    with same_environment(OF_LIBRARIES):
        yield


@pytest.fixture(autouse=True)
def loggers_of_test() -> Iterator[None]:
    """Put back the loggers that the command line sets up: another test may look at what is logged."""
    loggers = [logging.getLogger(name) for name in ("flows", "tasks")]
    before = [(logger, logger.level, logger.handlers) for logger in loggers]
    yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers = handlers


@pytest.fixture(scope="session")
def quiet_environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prefect, Ray and MLflow as the command line sets them up, with Prefect's files in a temporary folder."""
    folder = tmp_path_factory.mktemp("environment")
    environment.prepare(Home.at(folder))
    return folder


@cache
def shared_ray() -> dict[str, str]:
    """Start a Ray of two cores that lives as long as this process; return the variables of its clients."""
    # Ray takes an address of loopback for this machine's outer one unless it is told to stay on loopback.
    return {"RAY_ADDRESS": ray_node.Node(2).wait(), "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


@pytest.fixture
def ray(quiet_environment: Path) -> None:
    """This process as a client of its Ray; training that is given up leaves it."""
    import ray

    if not ray.is_initialized():
        ray_node.join(shared_ray()["RAY_ADDRESS"], is_own=True)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """An empty home of one test."""
    where = Home.at(tmp_path / "home")
    where.prepare()
    return where
