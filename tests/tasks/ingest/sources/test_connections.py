"""Downloads that never end or lead to one's own machines."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from tasks.errors import DatasetError, NotFound
from tasks.ingest.sources import connections
from tasks.ingest.sources.connections import REFUSE_PRIVATE, is_public
from tasks.ingest.sources.downloads import download
from tests.tasks.ingest.sources.builders import LIMITS, midi, serve_file, serving

HASTY = replace(LIMITS, download_seconds=2.0)
FUSSY = replace(LIMITS, download_timeout_seconds=0.5, download_min_bytes_per_second=1000, download_attempts=2)


@contextmanager
def speaking(say: Callable[[socket.socket], None]) -> Iterator[str]:
    """Run a server that answers each connection as it likes; yields its address."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection:
            try:
                connection.recv(65536)
                say(connection)
            except OSError:  # shut down by the other side
                return

    def accept() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()


def keep_waiting(forever: threading.Event) -> None:
    forever.wait(60)


def drip(connection: socket.socket, data: bytes) -> None:
    """Send one byte after another for ever."""
    at = 0
    while True:
        connection.sendall(data[at % len(data) :][:1])
        at += 1
        time.sleep(0.02)


SLOW: dict[str, Callable[[socket.socket], None]] = {
    "status": lambda connection: drip(connection, b"H"),
    "headers": lambda connection: (connection.sendall(b"HTTP/1.1 200 OK\r\n"), drip(connection, b"X: y\r\n"))[0],
    "body": lambda connection: (connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n"), drip(connection, b"x"))[0],
    "body with a length": lambda connection: (
        connection.sendall(b"HTTP/1.1 200 OK\r\nETag: \"a\"\r\nContent-Length: 99999\r\n\r\n"), drip(connection, b"x")
    )[0],
    "chunks": lambda connection: (
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"), drip(connection, b"1\r\nx\r\n")
    )[0],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("what", SLOW)
def test_an_answer_by_the_byte_ends_by_total_time_or_by_speed(what: str, tmp_path: Path) -> None:
    with speaking(SLOW[what]) as address:
        with pytest.raises(DatasetError, match=r"not here after download_seconds=2;"):
            download(f"{address}/a.zip", tmp_path, HASTY)
        with pytest.raises(
            DatasetError, match=r"slower than download_min_bytes_per_second=1000 over 0\.5 s, 2 times in a row"
        ):
            download(f"{address}/b.zip", tmp_path, FUSSY)
    assert not [thread for thread in threading.enumerate() if thread.name == "download-watch"]


@pytest.mark.slow
def test_a_server_that_never_answers_ends_by_total_time(tmp_path: Path) -> None:
    forever = threading.Event()
    with (
        speaking(lambda connection: keep_waiting(forever)) as address,
        pytest.raises(DatasetError, match="not here after download_seconds=2"),
    ):
        download(f"{address}/a.zip", tmp_path, replace(HASTY, download_attempts=1000))
    forever.set()


NUMBERS = ["²", "9" * 5000, "-5", "+5", "0x10", "1_0", "5, 5", "٣", "1e3", "9" * 16]


@pytest.mark.parametrize("number", NUMBERS, ids=[number[:9] for number in NUMBERS])
def test_a_length_that_is_no_number_of_bytes_is_a_refused_answer(number: str, tmp_path: Path) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        body = midi(1)
        encoded = number.encode("utf-8").decode("latin-1")
        is_resumed = "Range" in handler.headers
        handler.send_response(206 if is_resumed else 200)
        if is_resumed:
            handler.send_header("Content-Range", f"bytes {len(body) // 2}-{len(body) - 1}/{encoded}")
        handler.send_header("ETag", '"v1"')
        handler.send_header("Content-Length", encoded if handler.path == "/length.mid" else str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[: len(body) // 2])
        handler.close_connection = True

    with serving() as server:
        server.answer = answer
        for name in ("length.mid", "range.mid"):
            with pytest.raises(DatasetError) as caught:
                download(f"{server.address}/{name}", tmp_path, LIMITS)
            said = str(caught.value)
            assert said.startswith("source http://127.0.0.1")
            assert len(said) < 400
            assert "\n" not in said
            if "," not in number:
                assert "which is no number of bytes" in said


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("8.8.8.8", True), ("2001:4860:4860::8888", True), ("127.0.0.1", False), ("127.9.9.9", False),
        ("0.0.0.0", False),
        ("10.1.2.3", False), ("172.16.0.1", False), ("192.168.1.1", False), ("169.254.169.254", False), ("::1", False),
        ("::", False), ("fe80::1", False), ("fe80::1%eth0", False), ("fc00::1", False), ("100.64.0.1", False),
        ("::ffff:127.0.0.1", False), ("::ffff:8.8.8.8", True), ("64:ff9b::7f00:1", False), ("2002:7f00:1::", False),
        ("::127.0.0.1", False), ("224.0.0.1", False), ("ff02::1", False), ("255.255.255.255", False),
        ("240.0.0.1", False),
        ("192.0.2.1", False), ("198.18.0.1", False),
    ],
)  # fmt: skip
def test_addresses_that_are_public(address: str, expected: bool) -> None:
    assert is_public(address) is expected


def forms(port: int) -> list[str]:
    hosts = ["127.0.0.1", "localhost", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "0.0.0.0", "[::1]",
             "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "169.254.169.254", "10.0.0.1"]  # fmt: skip
    return [f"http://{host}:{port}/a.mid" for host in hosts]


def test_private_addresses_are_refused_in_every_form_and_behind_a_redirect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing = replace(LIMITS, refuse_private_addresses=True)
    refusal = r"which is no public address \(dataset\.source_limits\.refuse_private_addresses\)"
    with serving() as server:
        server.answer = serve_file(midi(1))
        port = int(server.address.rpartition(":")[2])
        for address in forms(port):
            with pytest.raises(DatasetError, match=refusal):
                download(address, tmp_path, refusing)
        assert server.requests == []
        monkeypatch.setenv(REFUSE_PRIVATE, "1")
        with pytest.raises(DatasetError, match=refusal):
            download(f"{server.address}/a.mid", tmp_path, LIMITS)
        monkeypatch.delenv(REFUSE_PRIVATE)
        assert server.requests == []

        def moves(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(302)
            handler.send_header("Location", f"http://[::ffff:127.0.0.1]:{port}/secret.mid")
            handler.send_header("Content-Length", "0")
            handler.end_headers()

        server.answer = moves  # the first hop counts as public here, the second does not
        honest = connections.is_public
        monkeypatch.setattr(connections, "is_public", lambda ip: ip == "127.0.0.1" or honest(ip))
        with pytest.raises(DatasetError, match=refusal):
            download(f"{server.address}/a.mid", tmp_path, refusing)
        assert [path for path, _ in server.requests] == ["/a.mid"]


def test_a_name_that_means_another_machine_when_it_is_connected_to_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "require_public", lambda *rest: None)  # as if it had been a public one just before
    with serving() as server:
        server.answer = serve_file(midi(1))
        with pytest.raises(DatasetError, match=r"localhost is 127\.0\.0\.1, which is no public address"):
            download(
                server.address.replace("127.0.0.1", "localhost") + "/a.mid", tmp_path,
                replace(LIMITS, refuse_private_addresses=True),
            )  # fmt: skip
        assert server.requests == []


def test_a_reason_of_a_server_is_one_printable_line(tmp_path: Path) -> None:
    with (
        speaking(
            lambda connection: connection.sendall(b"HTTP/1.1 404 \x1b[31mgone\x07" + b"!" * 999 + b"\r\n\r\n")
        ) as at,
        pytest.raises(NotFound) as caught,
    ):
        download(f"{at}/a.zip", tmp_path, LIMITS)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200
