"""Files as an application with the `openai` client keeps them; on real services and a real folder."""

import asyncio
import io
from pathlib import Path
from urllib.parse import urlsplit

import openai
import pytest

from shared import keys
from shared.bus.client import Bus
from tests.flow.test_openai_client import client as client
from tests.support.deployment import Deployment, deployment
from tests.support.s3 import s3_server
from tests.support.waiting import wait_until

LINE = b'{"custom_id": "%d", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x"}}\n'


def stored(running: Deployment) -> set[Path]:
    return {path for path in (running.folder / "data" / "objects").rglob("*") if path.is_file()}


async def test_a_file_is_made_found_read_and_deleted(client: openai.AsyncOpenAI, echo: Deployment) -> None:
    before = stored(echo)
    data = b"".join(LINE % number for number in range(1000))
    made = await client.files.create(file=("in.jsonl", data), purpose="batch")
    assert (made.object, made.bytes, made.filename, made.purpose) == ("file", len(data), "in.jsonl", "batch")
    assert (made.status, made.status_details) == ("processed", None)
    assert made.expires_at == made.created_at + 30 * 24 * 3600
    assert await client.files.wait_for_processing(made.id) == made
    assert made in [file async for file in client.files.list(purpose="batch")]
    assert (await client.files.content(made.id)).content == data
    gone = await client.files.delete(made.id)
    assert (gone.id, gone.deleted) == (made.id, True)
    with pytest.raises(openai.NotFoundError, match=made.id):
        await client.files.retrieve(made.id)
    assert stored(echo) <= before


async def test_pages_follow_one_another(client: openai.AsyncOpenAI) -> None:
    made = [await client.files.create(file=(f"{n}.txt", b"x"), purpose="user_data") for n in range(5)]
    found = [file.id async for file in client.files.list(purpose="user_data", limit=2, order="asc")]
    assert {file.id for file in made} <= set(found)
    assert len(found) == len(set(found))
    for file in made:
        await client.files.delete(file.id)


async def test_it_expires_when_the_client_says(client: openai.AsyncOpenAI) -> None:
    after: openai.types.file_create_params.ExpiresAfter = {"anchor": "created_at", "seconds": 3600}
    made = await client.files.create(file=("a", b"x"), purpose="vision", expires_after=after)
    assert made.expires_at == made.created_at + 3600
    await client.files.delete(made.id)


async def test_broken_lines_are_told_by_their_numbers(client: openai.AsyncOpenAI) -> None:
    made = await client.files.create(file=("in.jsonl", LINE % 1 + b"{\n" + LINE % 2), purpose="batch")
    assert made.status_details is not None
    assert made.status_details.startswith("1 of 3 lines will fail: line 2: ")
    await client.files.delete(made.id)


async def test_refusals_are_the_clients_own_exceptions(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="`purpose` is 'fun'"):
        await client.files.create(file=("a", b"x"), purpose="fun")  # type: ignore[arg-type]
    with pytest.raises(openai.NotFoundError):
        await client.files.content(f"file-{'0' * 32}")


class Endless(io.RawIOBase):
    """A file of so many bytes that needs none of them."""

    def __init__(self, size: int) -> None:
        self._left, self.name = size, "large.bin"

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        size = min(self._left, len(buffer))
        buffer[:size] = b"x" * size
        self._left -= size
        return size


def peak_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


async def test_a_large_file_passes_through_without_being_held(client: openai.AsyncOpenAI, echo: Deployment) -> None:
    size, doors = 96 * 1024 * 1024, echo.processes()["ingress"]
    before = {pid: peak_bytes(pid) for pid in doors}
    made = await client.files.create(file=("large.bin", io.BufferedReader(Endless(size))), purpose="batch")
    assert made.bytes == size
    async with client.files.with_streaming_response.content(made.id) as answer:
        assert sum([len(piece) async for piece in answer.iter_bytes()]) == size
    assert max(peak_bytes(pid) - before[pid] for pid in doors) < size / 3
    await client.files.delete(made.id)


async def test_an_upload_that_breaks_off_leaves_nothing(echo: Deployment) -> None:
    before = stored(echo)
    parts = urlsplit(echo.http)
    head = (
        f"POST /v1/files HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-length: 100000000\r\n"
        "content-type: multipart/form-data; boundary=b\r\n\r\n"
        '--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'
    )
    async with Bus(echo.redis, name="test") as bus:
        known = set(await bus.commands.call("ZRANGE", keys.FILES, 0, -1))

        async def begun() -> set[bytes]:
            return set(await bus.commands.call("ZRANGE", keys.FILES, 0, -1)) - known

        _, writer = await asyncio.open_connection(parts.hostname, parts.port)
        writer.write(head.encode() + b"x" * 20_000_000)
        await wait_until(begun, "the upload has begun")
        await writer.drain()
        writer.close()

        async def left() -> bool:
            return not await begun() and stored(echo) <= before

        await wait_until(left, "nothing is left of it")


async def test_a_bucket_keeps_them_as_a_folder_does(tmp_path: Path) -> None:
    with s3_server(tmp_path / "s3") as s3:
        environ = {**s3.environ, "HEADRACE_OBJECTS": s3.url}
        limits = "[limits]\nfile_bytes = 20_000_000"
        with deployment(tmp_path, "--engine", "echo", config=limits, environ=environ) as running:
            async with openai.AsyncOpenAI(base_url=f"{running.http}/v1", api_key="none", max_retries=0) as client:
                data = b"".join(LINE % number for number in range(100_000))
                made = await client.files.create(file=("in.jsonl", data), purpose="batch")
                assert s3.left() == [f"headrace/tests/files/{made.id}"]
                assert (await client.files.content(made.id)).content == data
                await client.files.delete(made.id)
                with pytest.raises(openai.APIStatusError, match=r"413.*limits\.file_bytes"):
                    await client.files.create(file=("a", b"x" * 60_000_000), purpose="batch")
                assert s3.left() == []
