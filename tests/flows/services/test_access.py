"""The password of a home's servers: one for all processes, for its owner's eyes alone, and never sent to a stranger."""

import multiprocessing
import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from flows.services import access, environment, servers
from tasks.errors import ConfigError
from tasks.storage.files import write_atomically
from tasks.storage.home import Home


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_password_is_made_once_for_its_owner_alone(home: Home) -> None:
    before = os.umask(0)
    try:
        made = access.password_of(home)
    finally:
        os.umask(before)
    assert len(made) == 43
    assert access.password_of(home) == made
    assert mode_of(home.password) == 0o600
    assert [path.name for path in home.root.iterdir() if path.name.endswith(".tmp")] == []
    assert access.password_of(Home.at(home.root.parent / "another")) != made


def test_processes_that_start_at_once_agree_on_the_password(home: Home) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        made = pool.map(access.password_of, [home] * 16, chunksize=1)
    assert set(made) == {access.password_of(home)}


@pytest.mark.parametrize("spoil", ["wide", "empty", "words", "link", "folder"])
def test_what_is_no_secret_is_replaced(home: Home, spoil: str) -> None:
    old = access.password_of(home)
    if spoil == "wide":
        home.password.chmod(0o640)
    elif spoil == "folder":
        home.password.unlink()
    elif spoil == "link":
        known = home.root.parent / "known"
        known.write_text(home.password.read_text())
        known.chmod(0o600)
        home.password.unlink()
        home.password.symlink_to(known)
    else:
        home.password.write_text("" if spoil == "empty" else "let me in\n")
    new = access.password_of(home)
    assert new != old
    assert access.password_of(home) == new
    assert mode_of(home.password) == 0o600
    assert not home.password.is_symlink()


def test_a_strangers_server_on_the_port_of_one_that_ended_is_not_told_the_password(home: Home) -> None:
    """Another user's program may listen there by now: it is asked for a proof first, and has none."""
    heard = list[bytes]()

    def answer(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            heard.append(connection.recv(65536))
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ntrue")

    password = access.password_of(home)
    with servers.listen(0) as listener:
        address = servers.address_of(listener)
        write_atomically(home.services, b'{"prefect_url": "%s", "prefect_api_url": "x"}' % address.encode(), mode=0o600)
        stranger = threading.Thread(target=answer, args=(listener,))
        stranger.start()
        assert environment.running_prefect(home) is None
        stranger.join(30)
    assert len(heard) == 1
    assert password.encode() not in heard[0]
    assert access.basic(password).encode() not in heard[0]


@pytest.mark.parametrize(
    "text",
    ["", "[1]", "{", '{"prefect_url": 3}', "[" * 9999, '{"prefect_url": "http://127.0.0.1:0"}',
     '{"prefect_url": "http://127.0.0.1:x"}', '{"prefect_url": "http://10.0.0.1:80"}'],
)  # fmt: skip
def test_a_damaged_list_of_servers_names_none(home: Home, text: str) -> None:
    access.password_of(home)
    home.services.write_text(text)
    assert environment.running_services(home) == {}


def test_clients_get_the_password_beside_the_headers_a_user_has_set(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_CLIENT_CUSTOM_HEADERS", '{"X-Team": "music"}')
    variables = access.client_variables(home, "http://127.0.0.1:1/api")
    from prefect.settings import Settings

    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.client.custom_headers == {
        "X-Team": "music",
        "Authorization": access.basic(access.password_of(home)),
    }


def test_a_server_that_does_not_answer_is_told_in_one_line_without_its_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://me:secret@127.0.0.1:1/api?key=secret")
    with pytest.raises(ConfigError, match="does not answer") as caught:
        environment.check_prefect()
    assert "secret" not in str(caught.value)
