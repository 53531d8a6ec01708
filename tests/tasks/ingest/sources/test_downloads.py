"""Downloads from a web server that cuts, lies, moves and changes."""

import hashlib
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from tasks.config.source_limits import SourceLimits
from tasks.errors import DatasetError, NotFound
from tasks.ingest.sources import catalog, downloads
from tasks.ingest.sources import scan as scan_module
from tasks.ingest.sources.catalog import CatalogEntry
from tasks.ingest.sources.downloads import download
from tests.tasks.ingest.sources.builders import (
    LIMITS,
    Server,
    contents,
    midi,
    scan,
    serve_file,
    serving,
    tar_bytes,
    write_zip,
)

DATA = b"".join(midi(i, 1000) for i in range(500))
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def server():
    with serving() as running:
        yield running


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def ranges(server: Server) -> list[str]:
    return [headers.get("Range", "") for _, headers in server.requests]


def left_behind(cache: Path) -> list[str]:
    return sorted(path.suffix for path in (cache / "downloads").iterdir() if path.suffix in (".part", ".tmp"))


def test_a_midi_file_and_an_archive_are_fetched(server: Server, cache: Path, tmp_path: Path) -> None:
    server.answer = serve_file(midi(1))
    assert contents(scan(cache, f"{server.address}/songs/A%20b.mid?version=2")) == {"A b.mid": midi(1)}
    packed = write_zip(tmp_path / "s.zip", {"x/b.mid": midi(2), "c.txt": b""}).read_bytes()
    server.answer = serve_file(packed)
    result = scan(cache, f"{server.address}/set.zip#sha256={hashlib.sha256(packed).hexdigest()}&licence=CC0-1.0")
    assert contents(result) == {"x/b.mid": midi(2)}
    assert result.files["licence"].to_pylist() == ["CC0-1.0"]
    assert result.files["source"].to_pylist() == [f"{server.address}/set.zip"]


def test_an_archive_without_a_suffix_is_known_by_its_first_bytes(server: Server, cache: Path) -> None:
    server.answer = serve_file(tar_bytes({"a.mid": midi(1)}, "w:gz"))
    assert contents(scan(cache, f"{server.address}/archive/main")) == {"a.mid": midi(1)}
    server.answer = serve_file(b"<!DOCTYPE html><title>Sign in</title>", etag='"v2"')
    with pytest.raises(DatasetError, match=r"neither MIDI nor a known archive: it begins with b'<!DOCTYPE"):
        scan(cache, f"{server.address}/other")


def test_a_cut_connection_is_resumed_where_it_broke(server: Server, cache: Path) -> None:
    server.answer = serve_file(DATA, cut_after=120_000, n_cuts=3)
    path = download(f"{server.address}/a.zip", cache, LIMITS, SHA256)
    assert path.read_bytes() == DATA
    assert ranges(server) == ["", "bytes=120000-", "bytes=240000-", "bytes=360000-"]
    assert server.requests[1][1]["If-Range"] == '"v1"'
    assert left_behind(cache) == []


def test_a_later_run_goes_on_where_an_earlier_one_gave_up(server: Server, cache: Path) -> None:
    server.answer = serve_file(DATA, cut_after=200_000, n_cuts=1)
    honest = server.answer

    def dies(handler: BaseHTTPRequestHandler) -> None:
        honest(handler) if len(server.requests) == 1 else handler.send_error(503)

    server.answer = dies
    with pytest.raises(DatasetError, match=r"503.* 3 times in a row; 200000 bytes are kept"):
        download(f"{server.address}/a.zip", cache, LIMITS)
    assert left_behind(cache) == [".part"]
    server.answer = honest
    assert download(f"{server.address}/a.zip", cache, LIMITS).read_bytes() == DATA
    assert ranges(server)[-1] == "bytes=200000-"


def test_a_file_that_changed_between_the_pieces_is_fetched_whole(server: Server, cache: Path) -> None:
    old = serve_file(DATA[::-1], etag='"old"', cut_after=99_000, n_cuts=1)
    new = serve_file(DATA, etag='"new"')
    server.answer = lambda handler: old(handler) if len(server.requests) == 1 else new(handler)
    assert download(f"{server.address}/a.zip", cache, LIMITS).read_bytes() == DATA


def test_without_a_mark_of_the_version_nothing_is_pieced_together(server: Server, cache: Path) -> None:
    server.answer = serve_file(DATA, etag="", cut_after=99_000, n_cuts=2)
    assert download(f"{server.address}/a.zip", cache, LIMITS).read_bytes() == DATA
    assert ranges(server) == [""] * 3


def test_a_server_that_ignores_or_twists_the_range_is_not_believed(server: Server, cache: Path) -> None:
    cut = serve_file(DATA, cut_after=99_000, n_cuts=1)

    def twists(handler: BaseHTTPRequestHandler) -> None:
        if not handler.headers.get("Range"):
            cut(handler)
            return
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes 0-{len(DATA) - 1}/{len(DATA)}")
        handler.send_header("Content-Length", str(len(DATA)))
        handler.end_headers()
        handler.wfile.write(DATA)

    server.answer = twists
    assert download(f"{server.address}/a.zip", cache, LIMITS).read_bytes() == DATA
    assert ranges(server) == ["", "bytes=99000-", ""]


def test_a_wrong_checksum_is_one_error_and_leaves_nothing(server: Server, cache: Path) -> None:
    server.answer = serve_file(DATA)
    with pytest.raises(DatasetError, match=rf"sha256 is {SHA256}, not {'0' * 64}; the download is removed"):
        download(f"{server.address}/a.zip", cache, LIMITS, "0" * 64)
    assert left_behind(cache) == []
    assert len(server.requests) == 1
    # A partial file spoilt on this side is no reason to blame the server.
    server.answer = serve_file(DATA, cut_after=99_000, n_cuts=1)
    with pytest.raises(DatasetError):
        download(f"{server.address}/b.zip", cache, SourceLimits(download_attempts=1, retry_wait_seconds=0), "1" * 64)


def test_a_spoilt_partial_file_is_thrown_away_once(server: Server, cache: Path) -> None:
    fine, down = serve_file(DATA, cut_after=99_000, n_cuts=1), [True]
    server.answer = lambda handler: handler.send_error(503) if down[0] and len(server.requests) > 1 else fine(handler)
    with pytest.raises(DatasetError, match="99000 bytes are kept"):
        download(f"{server.address}/a.zip", cache, LIMITS, SHA256)
    (partial,) = (cache / "downloads").glob("*.part")
    partial.write_bytes(b"spoilt".ljust(99_000))
    down[0] = False
    assert download(f"{server.address}/a.zip", cache, LIMITS, SHA256).read_bytes() == DATA
    assert ranges(server)[-2:] == ["bytes=99000-", ""]


def test_what_is_here_is_asked_after_and_not_fetched_again(server: Server, cache: Path) -> None:
    address = f"{server.address}/a.zip"
    server.answer = serve_file(DATA)
    path = download(address, cache, LIMITS)
    before = path.stat()
    assert download(address, cache, LIMITS).stat().st_mtime_ns == before.st_mtime_ns
    assert server.requests[-1][1]["If-None-Match"] == '"v1"'
    download(address, cache, LIMITS, SHA256)
    assert len(server.requests) == 2  # with a checksum that fits, nobody is asked
    server.answer = serve_file(DATA[:1000], etag='"v2"')
    assert download(address, cache, LIMITS).read_bytes() == DATA[:1000]
    server.answer = lambda handler: handler.send_error(500)
    assert download(address, cache, LIMITS).read_bytes() == DATA[:1000]  # out of reach: what is here will do
    with pytest.raises(DatasetError):
        download(address, cache, LIMITS, SHA256)  # but not where it is known to be another


def test_redirects_lead_to_the_web_only_and_end_some_time(server: Server, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.mid").write_bytes(midi(1))

    def moves(handler: BaseHTTPRequestHandler) -> None:
        targets = {"/a.mid": "/b.mid", "/file.mid": f"file://{tmp_path}/secret.mid", "/loop.mid": "/loop.mid"}
        if handler.path == "/b.mid":
            serve_file(DATA)(handler)
            return
        handler.send_response(302)
        handler.send_header("Location", targets[handler.path])
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    server.answer = moves
    assert download(f"{server.address}/a.mid", cache, LIMITS).read_bytes() == DATA
    with pytest.raises(DatasetError, match="http and https only"):
        download(f"{server.address}/file.mid", cache, LIMITS)
    with pytest.raises(DatasetError, match="more than 10 redirects"):
        download(f"{server.address}/loop.mid", cache, LIMITS)


def test_errors_of_the_server_are_tried_again_and_those_of_the_request_are_not(server: Server, cache: Path) -> None:
    fine = serve_file(DATA)
    server.answer = lambda handler: handler.send_error(502) if len(server.requests) < 3 else fine(handler)
    assert download(f"{server.address}/a.zip", cache, LIMITS).read_bytes() == DATA
    server.requests.clear()
    server.answer = lambda handler: handler.send_error(404)
    with pytest.raises(NotFound, match="404"):
        download(f"{server.address}/b.zip", cache, LIMITS)
    assert len(server.requests) == 1
    with pytest.raises(DatasetError, match=r"source http://127\.0\.0\.1:9/a\.zip: .*refused.* 3 times"):
        download("http://127.0.0.1:9/a.zip", cache, LIMITS)


@pytest.mark.parametrize("says_length", [True, False])
def test_a_download_has_a_largest_size(server: Server, cache: Path, says_length: bool) -> None:
    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        if says_length:
            handler.send_header("Content-Length", str(10**12))
        handler.end_headers()
        handler.close_connection = True
        try:
            while True:
                handler.wfile.write(bytes(2**16))
        except OSError:
            pass

    server.answer = endless
    with pytest.raises(DatasetError, match="above max_download_bytes=1000000"):
        download(f"{server.address}/a.zip", cache, SourceLimits(max_download_bytes=1_000_000))
    assert left_behind(cache) == []


def test_a_name_from_an_address_stays_in_the_cache(server: Server, cache: Path) -> None:
    server.answer = serve_file(DATA)
    path = download(f"{server.address}/x/..%2F..%2Fevil.mid", cache, LIMITS)
    assert path.parent == cache / "downloads"
    server.answer = lambda handler: handler.send_error(404)
    with pytest.raises(NotFound, match="source http://127") as caught:
        download(f"{server.address}/b.mid".replace("://", "://me:secret@"), cache, LIMITS)
    assert "secret" not in str(caught.value)


def test_a_catalog_entry_brings_its_licence_and_its_split(
    server: Server, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = "\ufeffname,midi_filename,split\na,2018/a.midi,train\nb,2018/b.midi,validation\nc,2018/c.midi,test\n"
    files = {f"set/2018/{name}.midi": midi(number) for number, name in enumerate("abcd")}
    data = write_zip(tmp_path / "s.zip", files | {"set/info.csv": table.encode()}).read_bytes()
    entry = CatalogEntry(
        name="tiny", title="A tiny set", page="", licence="CC-BY-4.0", citation="",
        addresses=(f"{server.address}/gone.zip", f"{server.address}/tiny.zip"), sha256=hashlib.sha256(data).hexdigest(),
        split_table="set/info.csv", split_columns=("midi_filename", "split"),
    )  # fmt: skip
    monkeypatch.setattr(catalog, "CATALOG", (entry,))
    fine = serve_file(data)
    server.answer = lambda handler: fine(handler) if handler.path == "/tiny.zip" else handler.send_error(404)
    for _ in range(2):  # the second time from the cache
        result = scan(cache, "catalog:tiny")
        assert result.files["split"].to_pylist() == ["train", "validation", "test", None]
        assert result.files["licence"].to_pylist() == ["CC-BY-4.0"] * 4
        assert result.n_other_files == 1
    assert scan(cache, "Tiny#licence=MIT").files["licence"].to_pylist() == ["MIT"] * 4
    assert scan_module.find_entry("TINY") is entry
    assert downloads.MAX_REDIRECTS == 10
