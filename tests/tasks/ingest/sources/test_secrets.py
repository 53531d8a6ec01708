"""What is secret in an address: never stored, never said, and of no account for what a version is."""

import base64
import json
import os
import uuid
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from tasks.config.dataset import DatasetConfig
from tasks.dataset.publish import version_of
from tasks.errors import ConfigError, DatasetError, HomeError, NotFound
from tasks.ingest.sources import secrets
from tasks.ingest.sources.downloads import download
from tasks.ingest.sources.secrets import full_address, hidden, keep_queries, keep_query, public_address
from tasks.ingest.sources.spec import absolute_source, check_source, parse_source, shown_source, source_name
from tests.tasks.ingest.sources.builders import LIMITS, Server, contents, midi, scan, serve_file, serving

SECRET = "QUERYSECRET"


@pytest.fixture(autouse=True)
def _no_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())  # what is kept there ends with the test


@pytest.fixture
def server():
    with serving() as running:
        yield running


def everything_below(folder: Path) -> bytes:
    return b"".join(os.fsencode(path) + path.read_bytes() for path in folder.rglob("*") if path.is_file())


def only_with_signature(data: bytes):
    honest = serve_file(data)

    def answer(handler: BaseHTTPRequestHandler) -> None:
        honest(handler) if SECRET in handler.path else handler.send_error(403)

    return answer


@pytest.mark.parametrize(
    "address",
    [
        "http://me:PW@host/x", "https://PW@host/x.tar", "HTTP://me:PW@host:80/x?sig=PW", "s3://key:PW@bucket/x",
        "s3://bucket/x?access_key=a&secret_key=PW", "s3://bucket/x?region=b&session_token=PW", "gs://PW@bucket/x",
        "ftp://me:PW@host/x", "abfs://c@account/x?account_key=PW", "sftp://me:PW@[::1]:22/x",
    ],
)  # fmt: skip
def test_names_and_passwords_are_refused_with_the_way_out(address: str) -> None:
    for text in (address, f"{address}#licence=MIT"):
        for read in (parse_source, check_source, absolute_source):
            with pytest.raises(ConfigError) as caught:
                read(text)
            said = str(caught.value)
            assert "PW" not in said
            assert "W@" not in said
            assert "netrc" in said or "environment (" in said
            assert "\n" not in said


@pytest.mark.parametrize(
    "address",
    ["abfs://container@account.dfs.core.windows.net/x", "github://owner:repository@main/x", "sftp://me@host/x",
     "s3://bucket/x?region=us-east-1&endpoint_override=localhost:9000&scheme=http", "http://host/a@b/x.tar"],
)  # fmt: skip
def test_what_only_looks_like_it_is_taken(address: str) -> None:
    secrets.refuse_secrets(address, address.partition(":")[0])


def test_a_malformed_address_is_told_without_its_secrets() -> None:
    for text in (
        f"http://me:{SECRET}@[::1/x",
        f"http://host:70000/x?sig={SECRET}",
        f"htp://me:{SECRET}@h/x?k={SECRET}",
    ):
        with pytest.raises(ConfigError) as caught:
            check_source(text)
        assert SECRET not in str(caught.value)
    with pytest.raises(ConfigError, match="source http://host/: its port is no number"):
        check_source("http://me:P?W@host/")


def test_a_signed_address_is_fetched_and_its_query_is_nowhere(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.answer = only_with_signature(midi(1))
    given = f"{server.address}/a.mid?sig={SECRET}&part=1#licence=MIT"
    stored = absolute_source(given)
    assert SECRET not in stored
    assert stored.endswith("#licence=MIT")
    assert absolute_source(stored) == stored
    for source in (given, stored):
        result = scan(tmp_path / "cache", source)
        assert contents(result) == {"a.mid": midi(1)}
        assert result.files["source"].to_pylist() == [stored.partition("#")[0]]
        assert result.files["licence"].to_pylist() == ["MIT"]
    assert {path for path, _ in server.requests} == {f"/a.mid?sig={SECRET}&part=1"}
    assert SECRET.encode() not in everything_below(tmp_path)
    server.answer = lambda handler: handler.send_error(403)
    with pytest.raises(NotFound) as caught:
        scan(tmp_path / "cache", stored)
    assert SECRET not in str(caught.value) + caplog.text
    with pytest.raises(DatasetError) as caught_too:
        scan(tmp_path / "cache", f"http://127.0.0.1:9/x.tar?sig={SECRET}")
    assert SECRET not in str(caught_too.value) + caplog.text


def test_an_address_signed_anew_is_the_same_source_and_the_same_version(server: Server, tmp_path: Path) -> None:
    server.answer = serve_file(midi(1))
    scans = [scan(tmp_path / "cache", f"{server.address}/a.mid?id=7&sig={number}") for number in range(2)]
    assert scans[0].files.equals(scans[1].files)
    assert server.requests[1][1]["If-None-Match"] == '"v1"'  # the copy of the first is asked after
    versions = {version_of(DatasetConfig(sources=(f"x{number}",)), found.files) for number, found in enumerate(scans)}
    assert len(versions) == 1
    other = public_address(f"{server.address}/a.mid?id=8&sig=0")
    assert other != public_address(f"{server.address}/a.mid?id=7&sig=0")


def test_a_stored_address_without_its_query_says_how_to_give_it(tmp_path: Path) -> None:
    public = public_address("http://127.0.0.1:9/a.mid?sig=1")
    with pytest.raises(NotFound, match=r"its query is not stored.*the whole address again, or set ORCHESTRION_QUERY_"):
        download(public, tmp_path, LIMITS)
    name = secrets._variable(public)
    os.environ[name] = "sig=1"
    assert full_address(public) == "http://127.0.0.1:9/a.mid?sig=1"


def test_addresses_without_anything_secret_stay_as_they_are() -> None:
    for address in (
        "http://host/x.tar",
        "http://host?",
        "https://host/a?query=0123abcd",
        "/a?b=c",
    ):
        assert public_address(address) == keep_query(address) == address


PLACES = [  # S: a secret
    "http://u:S@host/x.zip", "http://S@host/x.zip", "http://host/x.zip?S", "http://host/x.zip?sig=S&a=b",
    "http://host/x.zip?a=b&unlisted=S", "http://host/x.zip?S=1", "http://host/x.zip;p=S", "http://host/x.zip;S",
    "http://host/a;p=S/x.zip?b=c", "http://host/a%3bS/x.zip", "http://host/x.zip#access_token=S", "http://host/x.zip#S",
    "http://host/x.zip?a=b#S", "http://host/x.zip#access_token=S#licence=MIT", "http://host/x.zip#S=1&licence=MIT",
    "http://host;S/x.zip", "http:/u:S@host/x.zip", "http:u:S@host/x.zip", "HTTPS:/host/x.zip?key=S",
    "http:///u:S@host/x.zip", "http:\\\\u:S@host/x.zip", "u:S@host/x.zip", "host/x.zip?key=S", "host/x.zip#token=S",
    "host/x.zip;p=S", "file://S@host/x", "htp://S@host/x", "htp://host/x?k=S", "s3://b/x?region=S1&token=S",
    "s3://b/x?unlisted=S", "s3://b/x?S", "s3://b/x#access_token=S", "s3://b/x;token=S", "foo:/u:S@host/x?a=S",
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_a_secret_anywhere_in_an_address_is_neither_stored_nor_said(place: str) -> None:
    secret = f"S{uuid.uuid4().hex}"
    address = place.replace("S", secret).replace(f"HTTP{secret}", "HTTPS")
    told = [source_name(address), shown_source(address)]
    for read in (parse_source, absolute_source, check_source):
        try:
            read(address)
        except (ConfigError, NotFound, DatasetError) as error:
            told.append(str(error))
    if "//host" in address and "htp" not in address:
        (kept,) = keep_queries(["--source", address])[1:]
        if kept != address:
            told += [kept, parse_source(kept).label, absolute_source(kept)]
            whole = address.partition("#")[0]
            assert full_address(kept.partition("#")[0]) == whole
    shown_where_it_is_no_address = place.startswith(("u:S", "host"))
    if shown_where_it_is_no_address:
        told = [text for text in told if "source" in text]  # what is said of a file that does not exist
    assert [text for text in told if secret in text] == []


def test_addresses_that_differ_in_a_secret_are_different_sources() -> None:
    addresses = [
        "http://h/x?key=1", "http://h/x?key=2", "http://h/x?code=1", "http://h/x?token=1", "http://h/x;v=1?key=1",
        "http://h/x;v=1", "http://h/x;v=2", "http://h/y?key=1", "http://g/x?key=1", "http://h/x?exp=1", "http://h/x?exp=2",
    ]  # fmt: skip
    stored = [keep_query(address) for address in addresses]
    assert len(set(stored)) == len(addresses)
    assert [full_address(public) for public in stored] == addresses


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("?X-Amz-Date=1&X-Amz-Signature=1&versionId=3", "?X-Amz-Date=2&X-Amz-Signature=2&versionId=3"),
        ("?AWSAccessKeyId=a&Expires=1&Signature=b", "?AWSAccessKeyId=a&Expires=2&Signature=c"),
        ("?sv=1&st=1&se=1&sr=b&sp=r&sig=a", "?sv=1&st=2&se=2&sr=b&sp=r&sig=b"),
        ("?Expires=1&Signature=a&Key-Pair-Id=K", "?Expires=2&Signature=b&Key-Pair-Id=K"),
    ],
)
def test_an_address_signed_anew_stays_the_same(one: str, other: str) -> None:
    assert public_address(f"https://h/x{one}") == public_address(f"https://h/x{other}")
    assert public_address(f"https://h/x{one}") != public_address(f"https://h/x{other}&key=1")


def test_a_digest_needs_the_key_of_its_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_key", b"")
    found = set()
    for name in ("a", "b", "a"):
        secrets.use_key(tmp_path / name / "key")
        assert (tmp_path / name / "key").stat().st_mode & 0o777 == 0o600
        found.add(public_address("http://h/x?pin=1234"))
    assert len(found) == 2
    (tmp_path / "a" / "key").write_text("damaged")
    secrets.use_key(tmp_path / "a" / "key")
    assert public_address("http://h/x?pin=1234") not in found
    with pytest.raises(HomeError, match="cannot keep the key"):
        secrets.use_key(tmp_path / "a" / "key" / "key")


def test_fragments_are_dropped_for_no_server_is_sent_them() -> None:
    assert public_address("http://host/x#part") == keep_query("http://host/x#part") == "http://host/x"


def test_arguments_of_a_command_lose_their_queries() -> None:
    given = ["rebuild", "--source", "http://h/x?sig=1", "--source=https://h/y?k=2#licence=MIT", "--name"]
    given += ["http://h/?a", "--set", 'dataset.sources=["http://h/z?sig=3", "/a?b"]', "--source"]
    given += ["http://u:p@h/x?sig=4", "--source"]
    kept = keep_queries(given)
    assert kept[0] == "rebuild"
    assert "?query=" in kept[2]
    assert kept[3].startswith("--source=https://h/y?query=")
    assert kept[3].endswith("#licence=MIT")
    assert kept[4:6] == given[4:6]
    (address, path) = json.loads(kept[7].partition("=")[2])
    assert full_address(address) == "http://h/z?sig=3"
    assert path == "/a?b"
    assert kept[8:] == given[8:]  # refused later, where it can be said why
    assert keep_queries(kept) == kept


def test_hidden_takes_secrets_out_of_other_programs_messages() -> None:
    said = f"Failed to parse: 'http://me:{SECRET}@host/x?sig={SECRET}' and https://h/?{SECRET}#a (s3://{SECRET}@b)"
    assert hidden(said) == "Failed to parse: 'http://host/x?...' and https://h/?... (s3://b)"


def test_netrc_is_the_place_for_a_password(server: Server, tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine 127.0.0.1 login me password {SECRET}\n")
    netrc.chmod(0o600)
    os.environ["NETRC"] = str(netrc)
    server.answer = serve_file(midi(1))
    download(f"{server.address}/a.mid", tmp_path / "cache", LIMITS)
    assert server.requests[0][1]["Authorization"] == "Basic " + base64.b64encode(f"me:{SECRET}".encode()).decode()
    assert SECRET.encode() not in everything_below(tmp_path / "cache")


def test_a_redirect_with_secrets_is_told_without_them(server: Server, tmp_path: Path) -> None:
    def moves(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("Location", f"ftp://me:{SECRET}@host/x?sig={SECRET}")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    server.answer = moves
    with pytest.raises(DatasetError, match="http and https only") as caught:
        download(f"{server.address}/a.mid", tmp_path, LIMITS)
    assert SECRET not in str(caught.value)
