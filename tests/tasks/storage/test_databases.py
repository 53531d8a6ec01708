"""A damaged database is named with the way out, by every command, and is not made anew over the old one."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tasks.errors import DamagedDatabase
from tasks.storage.databases import check_database
from tasks.storage.home import Home
from tasks.tracking.mlflow_tracker import Tracker
from tests.flows.conftest import orchestrion, run_flow
from tests.homes import unpack_home


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def scramble_pages(data: bytes) -> bytes:
    begin = len(data) // 3
    return data[:begin] + bytes(value ^ 0x5A for value in data[begin : begin + 20_000]) + data[begin + 20_000 :]


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "emptied": (lambda data: b"", "it is empty"),
    "cut": (cut, "malformed"),
    "cut to some bytes": (lambda data: data[:300], ""),
    "something else": (lambda data: b"hello\n" * 3000, "it is no SQLite database"),
    "a flipped bit in its first letters": (lambda data: b"R" + data[1:], "it is no SQLite database"),
    "other bytes in the middle": (scramble_pages, ""),
}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack_home("96e5a72", tmp_path_factory.mktemp("old"))[0]


@pytest.fixture
def database(packed: Path, home: Home) -> Path:
    path = home.mlflow / "mlflow.db"
    (home.mlflow / "artifacts").mkdir(parents=True)
    path.write_bytes((packed / "mlflow" / "mlflow.db").read_bytes())
    return path


@pytest.mark.slow
def test_whole_missing_and_locked_databases_are_as_they_should_be(database: Path) -> None:
    check_database(database.with_name("gone.db"), "all")
    for thorough in (False, True):
        check_database(database, "all", thorough)
    with closing(sqlite3.connect(database, timeout=0)) as other:
        other.execute("BEGIN EXCLUSIVE")
        check_database(database, "all")


def test_a_database_that_a_kill_left_empty_is_begun_anew(home: Home) -> None:
    home.mlflow.mkdir(parents=True)
    (home.mlflow / "mlflow.db").touch()
    check_database(home.mlflow / "mlflow.db", "all")


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_with_the_way_out_and_left_as_it_is(database: Path, home: Home, name: str) -> None:
    change, said = DAMAGE[name]
    damaged = change(database.read_bytes())
    database.write_bytes(damaged)
    with pytest.raises(DamagedDatabase) as error:
        _ = Tracker(home).client
    assert f"{database} is damaged: " in str(error.value)
    assert said in str(error.value)
    assert "move it away" in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert error.value.exit_code == 1
    assert database.read_bytes() == damaged


COMMANDS = {
    "rebuild": ["rebuild", "--source", "MIDI", "--name", "small", "--quiet"],
    "train": ["train", "--dataset", "small", "--set", "train.n_steps=2", "--quiet"],
    "generate": ["generate", "-n", "1", "--quiet"],
    "models": ["models"],
    "doctor": ["doctor"],
}


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("store", ["mlflow/mlflow.db", "prefect/prefect.db"])
def test_every_command_says_it_in_one_line(packed: Path, tmp_path: Path, command: str, store: str) -> None:
    if store.startswith("prefect") and command == "models":
        pytest.skip("it starts no Prefect")
    home, midi = unpack_home("96e5a72", tmp_path)
    path = home / store
    path.parent.mkdir(exist_ok=True)
    damaged = scramble_pages((home / "mlflow" / "mlflow.db").read_bytes())[:-8192]
    path.write_bytes(damaged)
    (path.parent / "artifacts").mkdir(exist_ok=True)
    arguments = [str(midi) if word == "MIDI" else word for word in COMMANDS[command]]
    run = run_flow if store.startswith("mlflow") else orchestrion  # whose Prefect is the home's own
    done = run(home, *arguments, "--home", str(home))
    assert done.returncode == 1, done.stderr
    said = done.stdout if command == "doctor" else done.stderr
    assert said.count(f"{path} is damaged") == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert path.read_bytes() == damaged
