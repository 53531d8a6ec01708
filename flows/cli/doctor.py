"""Environment checks, each with a fix."""

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from flows.services import environment
from tasks.errors import OrchestrionError, plural
from tasks.storage.databases import check_database
from tasks.storage.home import MIN_FREE_BYTES, Home

PACKAGES = (
    "prefect", "ray", "mlflow", "torch", "symusic", "pyarrow", "safetensors", "soundfile", "matplotlib", "midirenderer",
    "pretty_midi",
)  # fmt: skip
BOUNDS = {"fastapi": ((0, 139), (0, 151)), "sqlalchemy": ((2, 0), (2, 1))}  # from the first, below the second


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report."""

    name: str
    ok: bool
    detail: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def examine(home: Home) -> list[Check]:
    """Run every check; none of them changes anything but the home folder's existence."""
    probes: list[tuple[str, Callable[[], str]]] = [
        ("python", _python),
        *((package, lambda package=package: _package(package)) for package in PACKAGES),
        *((package, lambda package=package: _bounded(package)) for package in BOUNDS),
        ("home", lambda: _home(home)),
        ("accelerator", _accelerator),
        ("sound", _sound),
        ("ray", _ray),
        ("prefect server", lambda: _prefect(home)),
        ("prefect store", lambda: _prefect_store(home)),
        ("mlflow store", lambda: _mlflow(home)),
        ("datasets", lambda: _datasets(home)),
    ]
    return [_run(name, probe) for name, probe in probes]


def _run(name: str, probe: Callable[[], str]) -> Check:
    try:
        return Check(name, True, probe())
    except OrchestrionError as error:
        return Check(name, False, str(error))
    except Exception as error:
        return Check(name, False, f"{type(error).__name__}: {error}")


def _python() -> str:
    return sys.version.split()[0]


def _package(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        raise OrchestrionError("not installed; run `make setup`") from None


def _bounded(name: str) -> str:
    low, high = BOUNDS[name]
    found = _package(name)
    parts = tuple(int(part) for part in found.split(".")[:2])
    if not low <= parts < high:
        wanted = f"{name}>={'.'.join(map(str, low))},<{'.'.join(map(str, high))}"
        raise OrchestrionError(f"{found} does not work with this Prefect; run `pip install '{wanted}'`")
    return found


def _home(home: Home) -> str:
    home.prepare()
    free = shutil.disk_usage(home.root).free
    return f"{home.root}, {free >> 30} GiB free (a run needs {MIN_FREE_BYTES >> 20} MiB)"


def _accelerator() -> str:
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    return f"none; training runs on {len(os.sched_getaffinity(0))} CPU cores"


def _sound() -> str:
    from tasks.music.render.soundfont import find_player

    player = find_player()
    if player.problem:
        raise OrchestrionError(f"{player.problem}; run `make setup`, or set generate.audio=none")
    return player.made_with


def _ray() -> str:
    address = os.environ.get("RAY_ADDRESS")
    return f"joins {address}" if address else "starts on this machine when needed, token protected"


def _prefect(home: Home) -> str:
    if not os.environ.get("PREFECT_API_URL"):
        return "none running; commands start their own, schedules need `orchestrion deploy`"
    return environment.check_prefect()


def _prefect_store(home: Home) -> str:
    path = environment.prefect_database(home)
    if path is None:
        return "a database of PREFECT_SERVER_DATABASE_CONNECTION_URL"
    if not path.exists():
        return f"{path}, made by the first run"
    check_database(path, environment.PREFECT_KNEW, thorough=True)
    return f"{path}, whole"


def _mlflow(home: Home) -> str:
    from tasks.tracking.mlflow_tracker import Tracker

    tracker = Tracker(home)
    tracker.check_store(thorough=True)
    if tracker.uri.startswith("sqlite:///") and not (home.mlflow / "mlflow.db").exists():
        return f"{tracker.uri}, made by the first run"
    return f"{tracker.uri}, {plural(len(tracker.models()), 'model version')}"


def _datasets(home: Home) -> str:
    from tasks.dataset.versions import list_datasets

    found = list_datasets(home)
    broken = [
        f"{entry.reference} misses {plural(len(missing), 'file')}"
        for entry in found
        if (missing := entry.missing_files())
    ]
    if broken:
        raise OrchestrionError(f"{'; '.join(broken)}; run its rebuild again")
    return f"{plural(len(found), 'version')}, all files there"
