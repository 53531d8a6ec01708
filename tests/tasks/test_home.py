"""The home folder: whole files, one writer, clear words when it cannot be used."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.errors import HomeError
from tasks.home import Home, publish_folder, storage_problem, write_atomically


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "manifest.json"
    write_atomically(target, b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(target, b"new")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_publishing_a_folder_shows_all_of_it_at_once(tmp_path: Path) -> None:
    temporary = tmp_path / ".v.tmp"
    temporary.mkdir()
    (temporary / "a").write_text("1")
    publish_folder(temporary, tmp_path / "v")
    assert [path.name for path in tmp_path.iterdir()] == ["v"]


def test_a_second_process_is_told_who_holds_the_home(home: Home) -> None:
    code = (
        "from tasks.home import Home\nfrom tasks.errors import HomeError\n"
        f"try:\n    with Home.at({str(home.root)!r}).locked('second'): print('got it')\n"
        "except HomeError as error: print(error)\n"
    )
    with home.locked("orchestrion train"), home.locked("nested, by the same process"):
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert f"in use by orchestrion train (process {os.getpid()}" in said
    freed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert freed == "got it\n"


def test_a_home_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    with pytest.raises(HomeError, match="is a file, not a folder"):
        Home.at(tmp_path / "home").prepare()


def test_a_home_without_room_is_refused(home: Home) -> None:
    with pytest.raises(HomeError, match="MiB free, below the"):
        home.prepare(min_free_bytes=2**62)


def test_a_full_disk_is_recognised_through_wrappers() -> None:
    wrapped = RuntimeError("worker failed")
    wrapped.__cause__ = OSError(errno.ENOSPC, "No space left on device", "/x/y")
    assert storage_problem(wrapped) == "the disk is full (/x/y)"
    assert storage_problem(ValueError("something else")) is None
