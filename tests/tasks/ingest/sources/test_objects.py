"""Object stores: fsspec's memory file system, and moto's S3 server behind pyarrow's own S3 client."""

import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from tasks.errors import ConfigError, DatasetError, NotFound
from tasks.ingest.sources import objects
from tests.tasks.ingest.sources.builders import (
    LIMITS,
    SourceLimits,
    contents,
    details,
    midi,
    scan,
    write_files,
    write_zip,
)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The names of the objects that are fetched."""
    names: list[bytes] = []
    honest = objects._Fetcher._get

    def spy(self: objects._Fetcher, item: objects.StoredObject):
        names.append(item.name)
        return honest(self, item)

    monkeypatch.setattr(objects._Fetcher, "_get", spy)
    return names


def test_a_store_is_spooled_once(memory: fsspec.AbstractFileSystem, cache: Path, fetched: list[bytes]) -> None:
    files = {"a.mid": midi(1), "sub/b.MID": midi(2, 5000), "sub/deep/c.kar": b""}
    for name, data in files.items():
        memory.pipe(f"/bucket/{name}", data)
    memory.pipe("/bucket/readme.txt", b"x")
    memory.pipe("/bucket/sub/._b.MID", b"\0\5\x16\7")
    memory.pipe("/bucket/__MACOSX/x.mid", b"")
    first = scan(cache, "memory://bucket")
    assert contents(first) == files
    assert first.n_other_files == 3
    assert scan(cache, "memory://bucket").files.equals(first.files)
    assert sorted(fetched) == [b"a.mid", b"sub/b.MID", b"sub/deep/c.kar"]
    fetched.clear()
    memory.pipe("/bucket/a.mid", midi(9))
    memory.rm("/bucket/sub/deep/c.kar")
    assert contents(scan(cache, "memory://bucket")) == {"a.mid": midi(9), "sub/b.MID": midi(2, 5000)}
    assert fetched == [b"a.mid"]
    assert len(list((cache / "packs").iterdir())) == 2
    for pack in (cache / "packs").iterdir():
        pack.unlink()
    assert contents(scan(cache, "memory://bucket")) == {"a.mid": midi(9), "sub/b.MID": midi(2, 5000)}


def test_a_companion_under_another_name_is_counted_among_the_other_objects(
    memory: fsspec.AbstractFileSystem, cache: Path
) -> None:
    memory.pipe("/bucket/a.mid", midi(1))
    memory.pipe("/bucket/b.mid", b"\0\5\x16\7 and more")
    for _ in range(2):
        result = scan(cache, "memory://bucket")
        assert (contents(result), result.n_other_files) == ({"a.mid": midi(1)}, 1)


def test_archives_in_a_store_are_read(memory: fsspec.AbstractFileSystem, cache: Path, tmp_path: Path) -> None:
    data = write_zip(tmp_path / "s.zip", {"x.mid": midi(1)}).read_bytes()
    memory.pipe("/bucket/sub/s.zip", data)
    memory.pipe("/bucket/a.mid", midi(2))
    for _ in range(2):
        assert contents(scan(cache, "memory://bucket")) == {"a.mid": midi(2), "sub/s.zip/x.mid": midi(1)}
    assert contents(scan(cache, "memory://bucket/sub/s.zip")) == {"x.mid": midi(1)}
    assert contents(scan(cache, "memory://bucket/a.mid")) == {"a.mid": midi(2)}


def test_objects_that_cannot_be_had_are_rows(
    memory: fsspec.AbstractFileSystem, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.mid", "bad.mid", "gone.mid"):
        memory.pipe(f"/bucket/{name}", midi(1))
    memory.pipe("/bucket/large.mid", bytes(5000))
    honest = type(memory).open

    def fails(self: fsspec.AbstractFileSystem, path: str, mode: str):
        if "bad" in path:
            raise TimeoutError("no answer\nfrom the store")
        if "gone" in path:
            raise FileNotFoundError(path)
        return honest(self, path, mode)

    monkeypatch.setattr(type(memory), "open", fails)
    limits = SourceLimits(max_member_bytes=1000, retry_wait_seconds=0)
    result = scan(cache, "memory://bucket", limits=limits)
    assert contents(result) == {
        "a.mid": midi(1), "bad.mid": "download_failed", "gone.mid": "vanished", "large.mid": "too_large"
    }  # fmt: skip
    assert details(result)["bad.mid"] == "no answer, 3 times (bad.mid)"


def test_stores_on_private_addresses_are_refused_if_asked_for(cache: Path) -> None:
    limits = SourceLimits(refuse_private_addresses=True)
    for address in (
        "s3://songs/set?scheme=http&endpoint_override=127.0.0.1:9000",
        "ftp://localhost/x",
        "sftp://[::1]/x",
    ):
        with pytest.raises(DatasetError, match="which is no public address"):
            scan(cache, address, limits=limits)


def test_an_empty_place_and_an_unknown_scheme(memory: fsspec.AbstractFileSystem, cache: Path) -> None:
    with pytest.raises(NotFound, match="does not exist or is empty"):
        scan(cache, "memory://nothing")
    memory.pipe("/bucket/a.txt", b"")
    with pytest.raises(DatasetError, match="1 other files"):
        scan(cache, "memory://bucket")
    with pytest.raises(ConfigError, match="unknown scheme s4; did you mean s3"):
        scan(cache, "s4://bucket")


def test_a_file_address_is_a_local_path(cache: Path, tmp_path: Path) -> None:
    tree = write_files(tmp_path / "my tree", {"a.mid": midi(1)})
    assert contents(scan(cache, tree.as_uri())) == {"a.mid": midi(1)}
    with pytest.raises(ConfigError, match="names the server elsewhere"):
        scan(cache, "file://elsewhere/tree")


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """An S3 server of moto with a bucket `songs`; yields what to write behind an address."""
    pytest.importorskip("boto3", reason="moto[s3] and boto3, which stand in for S3, are not installed")
    server = pytest.importorskip("moto.server", reason="moto[s3], which stands in for S3, is not installed")
    import boto3

    before = {name: os.environ.get(name) for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION")}
    os.environ.update(dict.fromkeys(before, "test"), AWS_REGION="us-east-1")
    running = server.ThreadedMotoServer(port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
    client.create_bucket(Bucket="songs")
    for name, data in {"set/a.mid": midi(1), "set/sub/b c.mid": midi(2, 9000), "set/x.txt": b""}.items():
        client.put_object(Bucket="songs", Key=name, Body=data)
    yield f"?scheme=http&endpoint_override={host}:{port}&region=us-east-1"
    running.stop()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


@pytest.mark.slow
def test_s3_is_spooled_once(s3: str, cache: Path, fetched: list[bytes]) -> None:
    first = scan(cache, f"s3://songs/set{s3}")
    assert contents(first) == {"a.mid": midi(1), "sub/b c.mid": midi(2, 9000)}
    assert first.n_other_files == 1
    assert scan(cache, f"s3://songs/set{s3}").files.equals(first.files)
    assert len(fetched) == 2
    assert contents(scan(cache, f"s3://songs/set/sub/b c.mid{s3}".replace(" ", "%20"))) == {"b c.mid": midi(2, 9000)}


def test_an_s3_bucket_that_is_not_there(s3: str, cache: Path) -> None:
    with pytest.raises((NotFound, DatasetError), match="source s3://nowhere"):
        scan(cache, f"s3://nowhere/set{s3}", limits=LIMITS)
