"""Readers of sources: archives, lists of files and the answers of web servers, whatever bytes they hold."""

import atexit
import gzip
import hashlib
import json
import shutil
import socket
import tempfile
import threading
from dataclasses import asdict
from functools import cache
from pathlib import Path

import pyarrow as pa

from tasks.config.source_limits import SourceLimits
from tasks.ingest.sources.archive_members import list_members
from tasks.ingest.sources.downloads import download
from tasks.ingest.sources.walk import read_list
from tests.fuzz.harness import Target
from tests.tasks.ingest.sources.builders import midi, tar_bytes, write_tar, write_zip

LIMITS = SourceLimits(
    retry_wait_seconds=0, download_attempts=1, download_timeout_seconds=5, max_member_bytes=2**20,
    max_download_bytes=2**20, max_expanded_bytes=2**24,
)  # fmt: skip
FILES = {"b/x.mid": midi(1), "a.MIDI": midi(2, 3000), "empty.kar": b"", "readme.txt": b"x", "._b.mid": b"\0\5\x16\7"}


@cache
def folder() -> Path:
    """Return a folder of this process, which goes with it."""
    place = Path(tempfile.mkdtemp(prefix="fuzz-sources-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return place


def list_archive(data: bytes, kind: str) -> None:
    """List an archive, and see that each row has either a reason or the contents that its hash is of."""
    path, rows, pack = (folder() / name for name in ("archive", "rows", "pack"))
    path.write_bytes(data)
    order = {"path": str(path), "kind": kind, "limits": asdict(LIMITS), "wanted": "readme.txt", "rows": str(rows)}
    answer = json.loads(list_members(json.dumps(order | {"pack": str(pack) if kind == "tar.gz" else ""}).encode()))
    assert answer["n_other_files"] >= 0
    table = pa.ipc.open_stream(rows.read_bytes()).read_all()
    table.validate(full=True)
    stored = pack.read_bytes() if kind == "tar.gz" else data
    for row in table.to_pylist():
        assert (row["content_hash"] is None) == bool(row["reason"]) == bool(row["detail"]), row
        assert "\n" not in row["detail"], row
        if row["content_hash"] and row["n_bytes"] == row["stored_bytes"]:  # not deflated, as far as one can tell
            content = stored[row["offset"] : row["offset"] + row["stored_bytes"]]
            assert hashlib.sha256(content).digest() == row["content_hash"] or kind == "zip", row


def zip_seeds() -> list[bytes]:
    return [write_zip(folder() / "seed.zip", FILES, method).read_bytes() for method in (0, 8)]


def tar_seeds() -> list[bytes]:
    long = {"very/" * 40 + "long.mid": midi(3), "caf\udce9.mid": midi(4)}
    return [tar_bytes(FILES | (long if kind else {}), format=kind) for kind in (0, 1, 2)]


def gzip_seeds() -> list[bytes]:
    return [gzip.compress(data) for data in tar_seeds()]


def check_list(data: bytes) -> None:
    """Read a list of files."""
    path = folder() / "songs.lst"
    path.write_bytes(data)
    found = read_list(bytes(path))
    assert len(found.members) == len(found.times["n_bytes"])


def list_seeds() -> list[bytes]:
    write_tar(folder() / "s.tar", FILES)
    (folder() / "a.mid").write_bytes(midi(1))
    return [b"# songs\na.mid\r\n../b.mid\ns.tar\n", b"/dev/zero.mid\na.mid\n\xff\xfe.kar\n" + b"x" * 300 + b".mid"]


@cache
def server() -> tuple[str, list[bytes]]:
    """Start a server that answers each connection with the bytes in a list, and return its address and that list."""
    listening, answer = socket.create_server(("127.0.0.1", 0)), [b""]

    def serve() -> None:
        while True:
            connection, _ = listening.accept()
            with connection:
                try:
                    connection.settimeout(5)
                    connection.recv(65536)
                    connection.sendall(answer[0])
                except OSError:
                    continue

    threading.Thread(target=serve, daemon=True).start()
    return f"http://127.0.0.1:{listening.getsockname()[1]}", answer


def check_answer(data: bytes) -> None:
    """Download what a server answers, twice: the second time there may be a copy or a part of one."""
    address, answer = server()
    answer[0] = data
    place = folder() / "downloads"
    shutil.rmtree(place, ignore_errors=True)
    for _ in range(2):
        path = download(f"{address}/a.mid?sig=secret", place, LIMITS)
        assert path.stat().st_size <= LIMITS.max_download_bytes


def answer_seeds() -> list[bytes]:
    body = midi(1, 300)
    return [
        b"HTTP/1.1 200 OK\r\nContent-Length: 300\r\nETag: \"v1\"\r\nConnection: close\r\n\r\n" + body,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n12c\r\n" + body + b"\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nLast-Modified: Mon, 30 Nov 2026 08:00:00 GMT\r\n\r\n" + body,
    ]  # fmt: skip


TARGETS = (
    Target(name="zip", seeds=zip_seeds, check=lambda data: list_archive(data, "zip")),
    Target(name="tar", seeds=tar_seeds, check=lambda data: list_archive(data, "tar")),
    Target(name="tar_gz", seeds=gzip_seeds, check=lambda data: list_archive(data, "tar.gz")),
    Target(name="file_list", seeds=list_seeds, check=check_list),
    Target(name="download_answer", seeds=answer_seeds, check=check_answer),
)
