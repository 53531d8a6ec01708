"""Environment checks, each with a fix."""

import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
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


def examine(home: Home) -> list[dict[str, Any]]:
    """Return `name`, `ok` and `detail` of every check; none changes anything but the home folder's existence."""
    probes: dict[str, Callable[[], str]] = {
        "python": lambda: sys.version.split()[0],
        **{package: partial(_package, package) for package in (*PACKAGES, *BOUNDS)},
        "home": partial(_home, home),
        "accelerator": _accelerator,
        "sound": _sound,
        "ray": _ray,
        "prefect server": _prefect,
        "prefect store": partial(_prefect_store, home),
        "mlflow store": partial(_mlflow, home),
        "datasets": partial(_datasets, home),
    }
    return [{"name": name} | _run(probe) for name, probe in probes.items()]


def _run(probe: Callable[[], str]) -> dict[str, Any]:
    try:
        return {"ok": True, "detail": probe()}
    except OrchestrionError as error:
        return {"ok": False, "detail": str(error)}
    except Exception as error:
        return {"ok": False, "detail": f"{type(error).__name__}: {error}"}


def _package(name: str) -> str:
    try:
        found = version(name)
    except PackageNotFoundError:
        raise OrchestrionError("not installed; run `make setup`") from None
    if name in BOUNDS:
        low, high = BOUNDS[name]
        if not low <= tuple(int(part) for part in found.split(".")[:2]) < high:
            wanted = f"{name}>={'.'.join(map(str, low))},<{'.'.join(map(str, high))}"
            raise OrchestrionError(f"{found} does not work with this Prefect; run `pip install '{wanted}'`")
    return found


def _home(home: Home) -> str:
    home.prepare()
    free = shutil.disk_usage(home.root).free
    return f"{home.root}, {free >> 30} GiB free (a run needs {MIN_FREE_BYTES >> 20} MiB)"


def _accelerator() -> str:
    from tasks.runtime.cluster import n_cpus
    from tasks.runtime.devices import words_of_torch

    return f"{words_of_torch()} on this machine, which has {plural(n_cpus(), 'core')}"


def _sound() -> str:
    from tasks.music.render.soundfont import find_player

    player = find_player()
    if player.problem:
        raise OrchestrionError(f"{player.problem}; run `make setup`, or set generate.audio=none")
    return player.made_with


def _ray() -> str:
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        return "starts on this machine when needed, token protected"
    from tasks.runtime import cluster, devices

    cluster.connect()
    try:
        return f"joins {address}: {devices.words_of_cluster()}"
    finally:
        cluster.disconnect()


def _prefect() -> str:
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
    missing = {entry.reference: len(entry.missing_files()) for entry in found}
    broken = [f"{reference} misses {plural(n, 'file')}" for reference, n in missing.items() if n]
    if broken:
        raise OrchestrionError(f"{'; '.join(broken)}; run its rebuild again")
    return f"{plural(len(found), 'version')}, all files there"
