"""The home folder: whole files, one writer, clear words when it cannot be used."""

import errno
import fcntl
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tasks.errors import BadHome, HomeError
from tasks.storage.files import json_bytes, json_text, publish_folder, storage_problem, write_atomically
from tasks.storage.home import LOCK_WAIT, Home


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
        "from tasks.storage.home import Home\nfrom tasks.errors import BadHome, HomeError\n"
        f"try:\n    with Home.at({str(home.root)!r}).locked('second'): print('got it')\n"
        "except HomeError as error: print(error)\n"
    )
    with home.locked("orchestrion train"), home.locked("nested, by the same process"):
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert f"in use by orchestrion train (process {os.getpid()}" in said
    freed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert freed == "got it\n"


def test_a_command_that_waits_says_for_whom(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "from tasks.storage.home import Home\nfrom tasks.errors import HomeError\n"
        f"try:\n    with Home.at({str(home.root)!r}).locked('second'): print('got it')\n"
        "except HomeError as error: print(error)\n"
    )

    def second(wait: str) -> tuple[str, str]:
        monkeypatch.setenv(LOCK_WAIT, wait)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return done.stdout, done.stderr

    with home.locked("orchestrion train"):
        stdout, stderr = second("0.2")
        assert f"in use by orchestrion train (process {os.getpid()}" in stderr
        assert "waiting for it, up to 0.2 s" in stderr
        assert "in use by orchestrion train" in stdout
        assert second("soon")[0] == f"{LOCK_WAIT}=soon is not a number of seconds\n"


def test_a_new_home_and_its_lock_are_for_its_user_alone_and_what_is_above_stays(tmp_path: Path) -> None:
    above = tmp_path / "above"
    above.mkdir(mode=0o755)
    home = Home.at(above / "new" / "home")
    with home.locked("a command"):
        assert stat.S_IMODE((home.root / "lock").stat().st_mode) == 0o600
    assert stat.S_IMODE(home.root.stat().st_mode) == 0o700
    assert stat.S_IMODE(above.stat().st_mode) == 0o755


def test_a_home_made_wide_by_an_earlier_version_is_narrowed(tmp_path: Path) -> None:
    home = Home.at(tmp_path / "home")
    (home.root / "datasets").mkdir(parents=True)
    (home.root / "lock").touch()
    home.root.chmod(0o755)
    (home.root / "lock").chmod(0o644)
    with home.locked("a command"):
        assert stat.S_IMODE((home.root / "lock").stat().st_mode) == 0o600
    assert stat.S_IMODE(home.root.stat().st_mode) == 0o700


def test_an_open_folder_of_other_things_is_neither_closed_nor_used(tmp_path: Path) -> None:
    folder = tmp_path / "public"
    folder.mkdir()
    (folder / "index.html").touch()
    folder.chmod(0o755)
    with pytest.raises(BadHome, match=r"holds other things than a home; .* chmod 700 "):
        Home.at(folder).prepare()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    assert [entry.name for entry in folder.iterdir()] == ["index.html"]
    folder.chmod(0o700)
    Home.at(folder).prepare()
    sticky = tmp_path / "like_tmp"
    sticky.mkdir()
    sticky.chmod(0o1777)
    with pytest.raises(BadHome, match=r"give a new folder$"):
        Home.at(sticky).prepare()
    assert stat.S_IMODE(sticky.stat().st_mode) == 0o1777


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_another_user_neither_reads_a_home_nor_holds_its_lock(tmp_path: Path) -> None:
    folder = Path(tempfile.mkdtemp(dir="/tmp"))  # pytest's own folders are closed to others already
    try:
        folder.chmod(0o755)
        home = Home.at(folder / "home")
        with home.locked("a command"):
            home.services.write_text("{}")
        home.root.chmod(0o755)  # so that the lock has to stand for itself
        tries = f"cat {home.root}/lock; flock -n {home.root}/lock true && echo held; cat {home.services}"
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", tries]
        before = subprocess.run(command, capture_output=True, text=True, check=False)
        assert before.stdout == "{}"  # it can get that far: the attack itself works
        assert before.stderr.count("Permission denied") == 2
        home.prepare()
        after = subprocess.run(command, capture_output=True, text=True, check=False)
        assert after.stdout == ""
        assert after.stderr.count("Permission denied") == 3
    finally:
        shutil.rmtree(folder)


def test_a_lock_that_holds_no_object_is_another_processs(home: Home) -> None:
    for said in ("[1]", '"x"', "{", "{}", "[" * 100_000, '{"pid": ' + "9" * 5000 + "}"):
        with (home.root / "lock").open("w+") as handle:
            handle.write(said)
            handle.flush()
            fcntl.flock(handle, fcntl.LOCK_EX)
            with pytest.raises(HomeError, match="in use by another process"), home.locked("a command"):
                pass


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("what?", "holds the character '?'"), ("s3://bucket/x", "is an address"), ("file:///tmp/x", "is an address"),
        ("a\0b", "holds a NUL"), ("a\nb", "holds the character"), (os.fsdecode(b"caf\xe9"), "is not UTF-8"),
        ("~no_such_user/x", "home directory"), ("n" * 256, "too long"), ("d/" * 300, "above 480"), ("loop", "loop"),
        ("file", "is a file"), ("file/x", "is a file"), ("/dev/null", "is a file"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_home_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(BadHome, match=said) as refused:
        Home.at(name).prepare()
    assert "\n" not in str(refused.value)
    str(refused.value).encode()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "loop"]


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


def test_json_is_strict_whatever_is_in_it(tmp_path: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    odd = {
        "nan": float("nan"),
        "list": [1.5, float("inf"), (float("-inf"), "é")],
        os.fsdecode(b"k\xe9"): "\ud800 \U0001f600",
    }
    for text in (json_text(odd), json_bytes(odd).decode(), json_text(odd, indent=2)):
        read = json.loads(text, parse_constant=refuse)
        assert read == {"nan": None, "list": [1.5, None, [None, "é"]], "k\\xe9": "\\ud800 \U0001f600"}
        text.encode()
    plain = {"b": [1, 2.5, None, True, "\\ud is text, \U0001f600 is one character"], "a": "é"}
    assert json_text(plain) == json.dumps(plain)
    assert json_bytes(plain) == (json.dumps(plain, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
