"""Nothing of the surroundings gets in: not what lies in the working folder, not the user's proxies."""

import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import httpx
import pytest
from requests.utils import get_environ_proxies, select_proxy

from flows.services import environment
from tasks.runtime.isolation import Host
from tasks.storage.home import Home
from tests.flows.conftest import clean_environment, last_json
from tests.samples import small_corpus

DEAD = "http://127.0.0.1:9"
LOCAL = ("http://127.0.0.1:4200/api/health", "http://localhost:5000/")
REMOTE = "https://example.org/songs.zip"


@pytest.fixture
def proxies(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without proxies and without exceptions, restored afterwards."""
    for name in [*os.environ, "NO_PROXY", "no_proxy", "no_grpc_proxy"]:
        if name.lower().endswith("_proxy"):
            monkeypatch.setenv(name, "")
            monkeypatch.delenv(name)
    return monkeypatch


@pytest.fixture
def hostile_folder(tmp_path: Path) -> Path:
    """A folder of a user with modules, packages and settings of the names that we and others use."""
    folder = tmp_path / "working"
    folder.mkdir()
    bad = "raise SystemExit(f'{__file__} was imported')\n"
    for name in ("tasks", "random", "json", "types", "typing", "models", "uvicorn"):
        (folder / f"{name}.py").write_text(bad)
    for name in ("flows", "prefect"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(bad)
    for name in ("pyproject.toml", "prefect.toml"):
        (folder / name).write_text("this is [ no TOML")
    (folder / ".env").write_text("PREFECT_API_URL=http://127.0.0.1:9/api\nPREFECT_SERVER_DATABASE_CONNECTION_URL=x\n")
    return folder


@pytest.mark.parametrize(
    ("given", "remote_by_requests"),
    [
        ({"http_proxy": DEAD, "https_proxy": DEAD}, DEAD),
        ({"HTTPS_PROXY": "proxy.example:8080"}, "proxy.example:8080"),
        ({"all_proxy": "socks5://127.0.0.1:9"}, "socks5://127.0.0.1:9"),
        ({"ALL_PROXY": "socks://127.0.0.1:9", "https_proxy": DEAD}, DEAD),
        ({"https_proxy": "http://[::1"}, "http://[::1"),
        ({"https_proxy": "ftp://x:99999"}, "ftp://x:99999"),
        ({"https_proxy": DEAD, "NO_PROXY": "*"}, None),
    ],
)
def test_loopback_goes_through_no_proxy_and_the_rest_does(
    proxies: pytest.MonkeyPatch, given: dict[str, str], remote_by_requests: str | None
) -> None:
    for name, value in given.items():
        proxies.setenv(name, value)
    environment.set_defaults()
    with httpx.Client() as client:  # Prefect's; SOCKS and nonsense are refused when it is built, whatever the address
        for address in LOCAL:
            assert client._transport_for_url(httpx.URL(address)) is client._transport
    for address in LOCAL:
        assert select_proxy(address, get_environ_proxies(address)) is None
        assert urllib.request.proxy_bypass(address.split("/")[2])
    assert select_proxy(REMOTE, get_environ_proxies(REMOTE)) == remote_by_requests


def test_exceptions_of_the_user_stay(proxies: pytest.MonkeyPatch) -> None:
    for name, value in {"NO_PROXY": ".corp.example", "no_proxy": "10.0.0.0/8, a", "no_grpc_proxy": "grpc.only"}.items():
        proxies.setenv(name, value)
    environment.set_defaults()
    environment.set_defaults()
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == ".corp.example,10.0.0.0/8,a,127.0.0.1,localhost,::1"
    assert os.environ[environment.GRPC_EXCEPTIONS] == "grpc.only,127.0.0.1,localhost,::1"


def test_the_reading_process_imports_nothing_of_the_working_folder(
    hostile_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(hostile_folder)
    monkeypatch.setenv("PYTHONSAFEPATH", "")  # without the help of the environment
    host = Host()
    try:
        assert host.run("tests.tasks.runtime.hostile_work:behave", b"hello") == b"HELLO"
    finally:
        host.close()


@pytest.mark.slow
def test_prefect_is_imported_without_the_settings_of_the_working_folder(hostile_folder: Path, tmp_path: Path) -> None:
    code = (
        "import os; from flows.services import environment; from tasks.storage.home import Home\n"
        "home = Home.at('home'); home.prepare(); environment.prepare(home); environment.import_prefect(home)\n"
        "from prefect.settings import PREFECT_API_URL; print(PREFECT_API_URL.value(), os.getcwd())"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=hostile_folder, env=clean_environment(tmp_path), capture_output=True,
        text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.stdout.splitlines() == [f"None {hostile_folder}"], done.stderr


@pytest.mark.slow
def test_a_rebuild_in_a_folder_of_modules_behind_dead_proxies(hostile_folder: Path, tmp_path: Path) -> None:
    small_corpus(hostile_folder / "midi", 3)
    dead = {"http_proxy": DEAD, "https_proxy": DEAD, "all_proxy": "socks5://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "flows.cli", "rebuild", "--source", "midi", "--home", "out", "--json"],
        cwd=hostile_folder, env=clean_environment(tmp_path) | dead, capture_output=True, text=True, timeout=600,
        check=False,
    )  # fmt: skip
    result = last_json(done)
    assert result["n_accepted"] == 3
    assert Path(result["manifest"]).is_relative_to(hostile_folder / "out")
    assert Home.at(hostile_folder / "out").datasets.is_dir()
