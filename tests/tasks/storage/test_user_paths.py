"""Files that a user names: written whole, links followed, devices and pipes kept, refusals in one line."""

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tasks.errors import ConfigError
from tasks.storage.user_paths import check_output, is_regular_output, write_output


def test_a_regular_file_is_replaced_whole_and_keeps_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "song.mid"
    write_output(path, b"one")
    path.chmod(0o640)
    with path.open("rb") as before:
        write_output(path, b"two")
        assert before.read() == b"one"  # in one step: who reads the old one reads all of it
    assert path.read_bytes() == b"two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert list(path.parent.iterdir()) == [path]


def test_links_are_followed_also_to_what_is_not_there_yet(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    for name, target in (("there", tmp_path / "store" / "a"), ("dangling", Path("store") / "b")):
        link = tmp_path / name
        link.symlink_to(target)
        (tmp_path / "store" / "a").write_bytes(b"old")
        write_output(link, b"new")
        assert link.is_symlink()
        assert (tmp_path / target).read_bytes() == b"new"


def test_a_pipe_and_a_device_are_written_to(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.mid"
    os.mkfifo(pipe)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    write_output(pipe, b"x" * 300_000)  # more than a pipe holds
    reader.join()
    assert got == [b"x" * 300_000]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    link = tmp_path / "null"
    link.symlink_to("/dev/null")
    for device in (Path("/dev/null"), link):
        write_output(device, b"gone")
        assert not is_regular_output(device)
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    with pytest.raises(OSError, match="No space"):
        write_output(Path("/dev/full"), b"x")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes device files")
def test_a_disk_is_refused_also_through_a_link(tmp_path: Path) -> None:
    disk, link = tmp_path / "disk", tmp_path / "link.mid"
    os.mknod(disk, 0o600 | stat.S_IFBLK, os.makedev(240, 0))  # a number for local use, of no driver
    link.symlink_to(disk)
    for path in (disk, link):
        for refuse in (check_output, lambda path: write_output(path, b"x")):
            with pytest.raises(ConfigError, match="it is a block device; name a file"):
                refuse(path)
    assert stat.S_ISBLK(disk.stat().st_mode)


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_the_standard_output_is_written_to_and_what_follows_stands_behind_it(tmp_path: Path, name: str) -> None:
    code = (
        "import sys; from pathlib import Path; from tasks.storage.user_paths import write_output\n"
        f"print('before'); write_output(Path({name!r}), b'data\\n'); print('after')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout == b"before\ndata\nafter\n"
    with (tmp_path / "file").open("wb") as file:
        subprocess.run([sys.executable, "-c", code], stdout=file, check=True)
    assert (tmp_path / "file").read_bytes() == b"before\ndata\nafter\n"


@pytest.mark.parametrize("n_bytes", [225, 226, 254, 255])
def test_names_up_to_the_limit_can_be_written(tmp_path: Path, n_bytes: int) -> None:
    for name in ("n" * (n_bytes - 4) + ".mid", "é" * ((n_bytes - 4) // 2) + ".mid"):
        write_output(tmp_path / name, b"x")
        assert (tmp_path / name).read_bytes() == b"x"


def test_a_name_that_is_not_utf_8_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.mid")
    write_output(path, b"x")
    assert [os.fsencode(entry.name) for entry in tmp_path.iterdir()] == [b"caf\xe9.mid"]


def test_what_cannot_be_written_is_refused_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "to_folder").symlink_to("folder")
    for path, said in {
        "": "folder", ".": "folder", "..": "folder", "/": "folder", "folder": "folder", "to_folder": "folder",
        "loop": "symbolic links", "file/x.mid": "is no folder", "new/" + "n" * 252 + ".mid": "too long",
        "n" * 256: "too long", "nul\0.mid": "null", "/proc/nothing/x": "No such file",
    }.items():  # fmt: skip
        with pytest.raises(ConfigError, match=said) as refused:
            write_output(Path(path), b"x")
        assert "\n" not in str(refused.value)
        if path != "/proc/nothing/x":
            with pytest.raises(ConfigError):
                check_output(Path(path))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder", "loop", "to_folder"]
