"""Ray's token and folder: nobody else gets at them, and what others plant there does no harm."""

import os
import stat
from pathlib import Path

import pytest

from tasks.errors import ConfigError, HomeError
from tasks.runtime import ray_files
from tasks.runtime.ray_files import MAX_ROOT, Folder, folder_root, secure_token

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file that belongs to another user")


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / ".ray"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_token_is_made_for_its_owner_alone_and_once(own_home: Path) -> None:
    secure_token()
    token = own_home / "auth_token"
    assert (mode(own_home), mode(token)) == (0o700, 0o600)
    text = token.read_text()
    assert len(text) == 64
    secure_token()
    assert token.read_text() == text
    assert [path.name for path in own_home.iterdir()] == ["auth_token"]


def test_no_token_is_made_for_a_cluster_of_others(own_home: Path) -> None:
    secure_token(is_new=False)
    assert not own_home.exists()


def test_a_wider_token_is_narrowed_with_a_warning(own_home: Path, caplog: pytest.LogCaptureFixture) -> None:
    own_home.mkdir(mode=0o755)
    token = own_home / "auth_token"
    token.write_text("known")
    token.chmod(0o644)
    secure_token()
    assert (mode(own_home), mode(token), token.read_text()) == (0o700, 0o600, "known")
    assert "others could read Ray's token" in caplog.text


@as_root
def test_a_token_of_another_user_is_refused(own_home: Path) -> None:
    own_home.mkdir(mode=0o700)
    token = own_home / "auth_token"
    token.write_text("planted")
    os.chown(token, NOBODY, NOBODY)
    with pytest.raises(HomeError, match=r"auth_token belongs to user 65534, not to you; set RAY_AUTH_TOKEN"):
        secure_token()


def test_the_users_own_token_comes_first(own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = tmp_path / "given"
    given.write_text("t")
    given.chmod(0o640)  # as a secret that Kubernetes mounts
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(given))
    secure_token()
    assert mode(given) == 0o640
    given.unlink()
    with pytest.raises(ConfigError, match=r"RAY_AUTH_TOKEN_PATH=.*given does not exist"):
        secure_token()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "t")
    secure_token()
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    secure_token()
    assert not own_home.exists()


def test_a_home_that_cannot_be_written_to_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/proc/nowhere")
    with pytest.raises(HomeError, match=r"cannot keep Ray's token in /proc/nowhere/.*; set RAY_AUTH_TOKEN, or HOME"):
        secure_token()


def test_a_folder_too_long_for_sockets_gives_way_to_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * (98 - len(str(tmp_path))))
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    assert folder_root() == Path("/tmp")
    monkeypatch.setenv("RAY_TMPDIR", "/dev/shm")
    assert folder_root() == Path("/dev/shm")
    monkeypatch.delenv("RAY_TMPDIR")
    monkeypatch.setattr(ray_files, "FALLBACK", tmp_path / "missing")
    with pytest.raises(ConfigError, match=rf"TMPDIR=.* has 99 bytes.*at most {MAX_ROOT} bytes"):
        folder_root()


def test_the_longest_folder_leaves_room_for_a_socket() -> None:
    longest = "/" + "x" * (MAX_ROOT - 1)
    path = f"{longest}/{ray_files.PREFIX}abcd1234/r/session_2026-11-30_12-00-00_000000_4194304/sockets/plasma_store.1"
    assert len(path) == ray_files.MAX_SOCKET_PATH


def test_abandoned_folders_are_removed_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_files, "folder_root", lambda: tmp_path)
    held, abandoned = Folder(), Folder()
    assert mode(held.path) == 0o700
    os.close(abandoned._handle)  # as a kill does
    (abandoned.ray / "session").mkdir()
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "r").mkdir(parents=True)
    link, foreign = tmp_path / "orchestrion-aaaaaaaa", tmp_path / "orchestrion-bbbbbbbb"
    link.symlink_to(elsewhere)
    (foreign / "r").mkdir(parents=True)
    if os.geteuid() == 0:
        os.chown(foreign, NOBODY, NOBODY)
    new = Folder()
    assert not abandoned.path.exists()
    assert held.ray.is_dir()
    assert (elsewhere / "r").is_dir()
    assert foreign.exists() == (os.geteuid() == 0)
    for folder in (held, new):
        folder.remove()
        assert not folder.path.exists()
