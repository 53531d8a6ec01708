"""Small MIDI files, folders, archives and web servers for tests of sources."""

import hashlib
import io
import os
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa

from tasks.config.source_limits import SourceLimits
from tasks.ingest.sources.read import BadRead, read_members
from tasks.ingest.sources.scan import SCAN_SCHEMA, Scan, scan_sources

LIMITS = SourceLimits(retry_wait_seconds=0, download_attempts=3, download_timeout_seconds=5)
LONG_AGO = 1_600_000_000


def midi(number: int, n_bytes: int = 60) -> bytes:
    """Return bytes that begin like MIDI and differ by `number`."""
    return (b"MThd\0\0\0\6" + number.to_bytes(8, "big") * (n_bytes // 8 + 1))[:n_bytes]


def make_old(folder: Path) -> None:
    """Set all times to long ago, so that no file is new enough to distrust its times."""
    for path in [folder, *folder.rglob("*")]:
        os.utime(path, (LONG_AGO, LONG_AGO), follow_symlinks=False)


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    """Write files, making their folders, and return the folder."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    make_old(folder)
    return folder


def write_zip(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    os.utime(path, (LONG_AGO, LONG_AGO))
    return path


def tar_bytes(files: dict[str, bytes], mode: str = "w", format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=format) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def write_tar(path: Path, files: dict[str, bytes], **options: Any) -> Path:
    """Write a tar, compressed as the suffix says."""
    data = tar_bytes(files, "w:gz" if path.name.endswith(("gz",)) else "w", **options)
    if path.name.endswith("zst"):
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(data)
        data = sink.getvalue().to_pybytes()
    path.write_bytes(data)
    os.utime(path, (LONG_AGO, LONG_AGO))
    return path


def scan(cache: Path, *texts: str | Path, limits: SourceLimits = LIMITS, **options: Any) -> Scan:
    """Scan, and check what must hold of every scan."""
    result = scan_sources([str(text) for text in texts], cache, limits, **options)
    table = result.files
    assert table.schema.equals(SCAN_SCHEMA)
    table.validate(full=True)
    paths = table["path"].to_pylist()
    assert [path.encode() for path in paths] == sorted({path.encode() for path in paths})
    for row in table.select(["reason", "detail", "content_hash"]).to_pylist():
        assert (row["content_hash"] is None) == bool(row["reason"]) == bool(row["detail"])
    for row, content in zip(table.to_pylist(), read_members(table), strict=True):
        if row["reason"]:
            assert content == BadRead(row["reason"], row["detail"])
        else:
            assert isinstance(content, bytes)
            assert len(content) == row["n_bytes"]
            assert hashlib.sha256(content).digest() == row["content_hash"]
    return result


def contents(result: Scan) -> dict[str, bytes | str]:
    """Return path -> what is in the file, or why it is not read."""
    read = (item if isinstance(item, bytes) else item.reason for item in read_members(result.files))
    return dict(zip(result.files["path"].to_pylist(), read, strict=True))


def details(result: Scan) -> dict[str, str]:
    return dict(zip(result.files["path"].to_pylist(), result.files["detail"].to_pylist(), strict=True))


class Server:
    """A web server on this machine that does as each test says."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.answer: Callable[[BaseHTTPRequestHandler], None] = lambda handler: handler.send_error(404)
        self.address = ""


@contextmanager
def serving() -> Iterator[Server]:
    """Run a server in threads of this process."""
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            server.requests.append((self.path, dict(self.headers)))
            server.answer(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    server.address = f"http://127.0.0.1:{http.server_address[1]}"
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()


def serve_file(
    data: bytes, *, etag: str = '"v1"', cut_after: int | None = None, n_cuts: int = 0
) -> Callable[[BaseHTTPRequestHandler], None]:
    """Return an answer that knows Range, If-Range and If-None-Match, and cuts its first `n_cuts` connections."""
    cuts_left = [n_cuts]

    def answer(handler: BaseHTTPRequestHandler) -> None:
        if etag and handler.headers.get("If-None-Match") == etag:
            handler.send_response(304)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        wanted = handler.headers.get("Range", "")
        begin = 0
        if wanted and handler.headers.get("If-Range") == etag:
            begin = int(wanted.removeprefix("bytes=").split("-")[0])
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        else:
            handler.send_response(200)
        handler.send_header("Content-Length", str(len(data) - begin))
        if etag:
            handler.send_header("ETag", etag)
        handler.end_headers()
        body = data[begin:]
        if cuts_left[0] > 0:
            cuts_left[0] -= 1
            handler.wfile.write(body[:cut_after])
            handler.wfile.flush()
            handler.close_connection = True
            return
        handler.wfile.write(body)

    return answer
