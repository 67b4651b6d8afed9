"""One store, two kinds: a folder, and a bucket of a real S3 server."""

import asyncio
import os
import resource
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from shared.errors import ConfigError, ObjectMissing, StoreUnavailable
from shared.objects import PART_BYTES, PIECE_BYTES, Objects
from tests.support.s3 import S3, s3_server


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with s3_server(tmp_path_factory.mktemp("s3") / "data") as running:
        yield running


@contextmanager
def environment(s3: S3, **other: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**s3.environ, **other}.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(params=["folder", "s3"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Objects]:
    if request.param == "folder":
        yield Objects((tmp_path / "objects").as_uri())
        return
    s3: S3 = request.getfixturevalue("s3")
    with environment(s3):
        yield Objects(f"{s3.url}/{tmp_path.name}")


async def pieces(*data: bytes) -> AsyncIterator[bytes]:
    for piece in data:
        yield piece


async def read(objects: Objects, key: str, start: int = 0) -> list[bytes]:
    return [piece async for piece in objects.read(key, start)]


async def keys(objects: Objects, prefix: str) -> list[str]:
    return sorted([key async for key in objects.list(prefix)])


async def test_what_was_put_is_read_listed_and_deleted(objects: Objects) -> None:
    await objects.put("a/x", b"hello")
    await objects.put("a/y/z", b"")
    await objects.put("ab", b"1")
    assert await objects.get("a/x") == b"hello"
    assert await objects.size("a/x") == 5
    assert await read(objects, "a/x", 2) == [b"llo"]
    assert await keys(objects, "a/") == ["a/x", "a/y/z"]
    await objects.delete("a/x", "a/y/z", "a/x", "never/was")
    assert await keys(objects, "a/") == []
    assert await keys(objects, "") == ["ab"]


async def test_an_object_is_replaced_whole(objects: Objects) -> None:
    await objects.put("a", b"a longer one")
    await objects.put("a", b"short")
    assert await objects.get("a") == b"short"


async def test_a_long_one_streams_in_and_out_in_pieces(objects: Objects) -> None:
    unit = bytes(range(256)) * 4096
    assert await objects.write("long", pieces(*[unit] * 12)) == 12 * len(unit) > 2 * PART_BYTES
    found = await read(objects, "long")
    assert b"".join(found) == unit * 12
    assert max(map(len, found)) <= PIECE_BYTES
    assert b"".join(await read(objects, "long", 12 * len(unit) - 1000)) == unit[-1000:]
    assert await read(objects, "long", 12 * len(unit)) == []


async def test_an_empty_stream_makes_an_empty_object(objects: Objects) -> None:
    assert await objects.write("empty", pieces()) == 0
    assert await objects.get("empty") == b""
    assert await read(objects, "empty") == []


async def test_a_source_that_breaks_off_leaves_nothing_and_its_error_is_raised(objects: Objects) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x" * (PART_BYTES + 1)
        raise ValueError("the client is gone")

    with pytest.raises(ValueError, match="the client is gone"):
        await objects.write("half", broken())
    assert await keys(objects, "") == []
    with pytest.raises(ObjectMissing):
        await objects.get("half")


async def test_a_reader_never_sees_half_an_object(objects: Objects) -> None:
    go_on = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"n" * (2 * PART_BYTES)
        await go_on.wait()
        yield b"n"

    await objects.put("k", b"old")
    writing = asyncio.create_task(objects.write("k", slow()))
    await asyncio.wait([writing], timeout=0.2)
    assert await objects.get("k") == b"old"
    go_on.set()
    assert await writing == 2 * PART_BYTES + 1
    assert await objects.size("k") == 2 * PART_BYTES + 1


async def test_what_is_not_there_is_missing(objects: Objects) -> None:
    for call in (objects.get("no/such"), objects.size("no/such"), read(objects, "no/such")):
        with pytest.raises(ObjectMissing, match="no/such"):
            await call


async def test_a_key_that_leads_out_of_the_store_is_refused(objects: Objects) -> None:
    with pytest.raises(StoreUnavailable):
        await objects.get("../x")


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0


async def test_what_goes_in_and_out_and_what_fails_is_counted(objects: Objects) -> None:
    before = {way: counted("hr_object_bytes_total", direction=way) for way in ("written", "read")}
    failed, calls = (
        counted("hr_object_failures_total", operation="get"),
        counted("hr_object_seconds_count", operation="get"),
    )
    await objects.put("a", b"12345")
    await objects.write("b", pieces(b"123", b"4567"))
    assert await objects.get("a") == b"12345"
    assert await read(objects, "b", 3) == [b"4567"]
    with pytest.raises(ObjectMissing):
        await objects.get("none")
    with pytest.raises(StoreUnavailable):
        await objects.get("../x")
    after = {way: counted("hr_object_bytes_total", direction=way) for way in ("written", "read")}
    assert {way: after[way] - before[way] for way in after} == {"written": 12, "read": 9}
    assert counted("hr_object_failures_total", operation="get") - failed == 1, "what is not there is no failure"
    assert counted("hr_object_seconds_count", operation="get") - calls == 3


# -- a folder


async def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    """The limit of the process stands for it: the write fails in the same place of the library, in mid-stream."""
    objects = Objects(tmp_path.as_uri())
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (PART_BYTES, before[1]))
    try:
        with pytest.raises(StoreUnavailable, match=f"{tmp_path}.* File too large"):
            await objects.write("a", pieces(*[b"x" * PIECE_BYTES] * 20))
        with pytest.raises(StoreUnavailable, match="File too large"):
            await objects.put("a", b"x" * PART_BYTES * 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert await keys(objects, "") == []
    await objects.put("a", b"x")


async def test_a_folder_that_is_gone_is_no_missing_object(tmp_path: Path) -> None:
    objects = Objects((tmp_path / "gone").as_uri())
    (tmp_path / "gone").rmdir()
    for call in (objects.get("a"), objects.delete("a")):
        with pytest.raises(StoreUnavailable, match="No such file"):
            await call


async def test_a_folder_that_is_gone_is_not_made_anew(tmp_path: Path) -> None:
    """As when it is unmounted: what is written beneath would be hidden by the next mount."""
    objects, folder = Objects((tmp_path / "gone").as_uri()), tmp_path / "gone"
    await objects.put("a/b", b"1")
    folder.rename(tmp_path / "aside")
    for call in (objects.put("a", b"1"), objects.write("a/b", pieces(b"1"))):
        with pytest.raises(StoreUnavailable, match="No such file"):
            await call
    assert not folder.exists()
    (tmp_path / "aside").rename(folder)
    await objects.put("a/b", b"2")
    assert await objects.get("a/b") == b"2"


async def test_a_folder_that_is_unmounted_is_not_used_until_it_is_mounted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an unmounted folder leaves: an empty one, of the file system beneath."""
    mounts = {Path("/"), tmp_path}
    monkeypatch.setattr(Path, "is_mount", lambda path: path in mounts)
    folder = tmp_path / "objects"
    objects = Objects(folder.as_uri())
    await objects.put("a", b"1")
    mounts.remove(tmp_path)
    for call in (objects.put("b", b"1"), objects.get("b"), objects.delete("b")):
        with pytest.raises(StoreUnavailable, match="another file system"):
            await call
    mounts.add(tmp_path)
    assert await keys(objects, "") == ["a"]
    await objects.put("b", b"1")
    mounts.add(folder)
    with pytest.raises(StoreUnavailable, match="another file system"):
        await objects.put("c", b"1")


async def test_what_killed_writers_left_is_hidden_and_forgotten_when_it_is_old(tmp_path: Path) -> None:
    objects = Objects(tmp_path.as_uri())
    await objects.put("files/a", b"1")
    for name in ("files/b#1", "files/c#12"):
        (tmp_path / name).write_bytes(b"half")
    os.utime(tmp_path / "files/b#1", (0, 0))
    assert await keys(objects, "files/") == ["files/a"]
    assert await objects.forget_parts(3600) == 1
    assert sorted(path.name for path in (tmp_path / "files").iterdir()) == ["a", "c#12"]


# -- a bucket


async def test_a_bucket_that_is_not_there_is_no_missing_object(s3: S3) -> None:
    with environment(s3):
        objects = Objects("s3://other-bucket/x")
        for call in (objects.get("a"), objects.size("a"), objects.put("a", b"x"), keys(objects, "")):
            with pytest.raises(StoreUnavailable, match=r"s3://other-bucket/x .*NoSuchBucket"):
                await call


async def test_a_wrong_secret_is_told(s3: S3) -> None:
    with environment(s3, AWS_SECRET_ACCESS_KEY="wrong"):
        objects = Objects(s3.url)
        for call in (objects.get("a"), objects.put("a", b"x"), objects.delete("a")):
            with pytest.raises(StoreUnavailable, match="SignatureDoesNotMatch"):
                await call


async def test_a_server_out_of_reach_is_told(s3: S3) -> None:
    with environment(s3, AWS_ENDPOINT_URL="http://127.0.0.1:9"):
        with pytest.raises(StoreUnavailable, match="error sending request"):
            await Objects(s3.url).put("a", b"x")


async def test_a_cancelled_write_to_a_bucket_makes_no_object(s3: S3) -> None:
    with environment(s3):
        objects, begun = Objects(f"{s3.url}/cancelled"), asyncio.Event()

        async def endless() -> AsyncIterator[bytes]:
            yield b"x" * PART_BYTES * 2
            begun.set()
            await asyncio.Event().wait()

        writing = asyncio.create_task(objects.write("a", endless()))
        await begun.wait()
        writing.cancel()
        await asyncio.wait([writing])
        assert await keys(objects, "") == []


# -- settings


@pytest.mark.parametrize("url", ["", "folder", "file://", "file://host/x", "s3://", "gs://bucket", "/srv/objects"])
def test_an_url_of_another_kind_is_refused_with_those_that_are_allowed(url: str) -> None:
    with pytest.raises(ConfigError, match=r"HEADRACE_OBJECTS is .*file:///folder, s3://bucket"):
        Objects(url)


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="HEADRACE_OBJECTS is"):
        Objects((tmp_path / "file" / "folder").as_uri())


def test_a_password_is_not_repeated() -> None:
    with pytest.raises(ConfigError, match=r"me:\*\*\*@host"):
        Objects("ftp://me:secret@host/x")


async def test_a_folder_with_blanks_in_its_name_is_meant_literally(tmp_path: Path) -> None:
    await Objects((tmp_path / "my objects").as_uri()).put("a", b"1")
    assert (tmp_path / "my objects" / "a").read_bytes() == b"1"
