"""Batches as an application with the `openai` client runs them; on real services, which are killed meanwhile."""

import asyncio
import io
import os
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest
from openai.types import Batch

from tests.flow.test_task_life import MODEL
from tests.support.deployment import Deployment, deployment
from tests.support.s3 import s3_server
from tests.support.waiting import wait_until

CHAT = "/v1/chat/completions"
CONFIG = f"""
[pools.smol]
model = "{MODEL}"
engine = "echo"
slots = 16
[pools.smol.echo]
first_token_ms = 150
[limits]
lease_s = 2
batch_window = 200
"""
REPLICAS = "ingress=2,scheduler=2,inference=2,notifier=2"
OVER = ("completed", "failed", "cancelled", "expired")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployment(tmp_path_factory.mktemp("batches"), "--replicas", REPLICAS, config=CONFIG) as running:
        yield running


@pytest.fixture
async def client(running: Deployment) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{running.http}/v1", api_key="none", max_retries=10) as client:
        yield client


def line(number: int, words: str = "", **other: Any) -> bytes:
    body = {"model": MODEL, "messages": [{"role": "user", "content": words or f"say {number}"}]}
    return msgspec.json.encode({"custom_id": f"item-{number}", "method": "POST", "url": CHAT, "body": body} | other)


async def begun(client: openai.AsyncOpenAI, lines: Sequence[bytes], **more: Any) -> Batch:
    file = await client.files.create(file=("in.jsonl", io.BytesIO(b"\n".join(lines))), purpose="batch")
    return await client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        **{"metadata": {"job": "17"}, **more},
    )


async def ended(client: openai.AsyncOpenAI, batch: Batch, timeout_s: float = 90) -> Batch:
    """And on the way there the counts only grow, and never beyond the total."""
    last = batch
    done: list[int] = [0]

    async def over() -> bool:
        nonlocal last
        last = await client.batches.retrieve(batch.id)
        counts = sum_of(last)
        assert done[-1] <= counts <= total(last)
        done.append(counts)
        return last.status in OVER

    try:
        await wait_until(over, f"{batch.id} has ended", timeout_s=timeout_s)
    except AssertionError as error:
        raise AssertionError(f"{error}; it is {last}") from None
    return last


def total(batch: Batch) -> int:
    assert batch.request_counts is not None
    return batch.request_counts.total


def sum_of(batch: Batch) -> int:
    counts: Any = batch.request_counts
    return int(counts.completed + counts.failed + counts.cancelled + counts.expired)


async def lines_of(client: openai.AsyncOpenAI, file_id: str | None) -> list[dict[str, Any]]:
    if file_id is None:
        return []
    return [msgspec.json.decode(text) for text in (await client.files.content(file_id)).content.splitlines()]


async def test_batch_is_made_looked_at_listed_and_read(client: openai.AsyncOpenAI) -> None:
    lines = [line(n) for n in range(20)] + [b"oops", line(3), line(21, model="?"), line(22, body={"model": "nope"})]
    batch = await begun(client, lines)
    assert (batch.object, batch.endpoint, batch.completion_window) == ("batch", CHAT, "24h")
    assert (batch.metadata, batch.expires_at) == ({"job": "17"}, batch.created_at + 24 * 3600)
    after = await ended(client, batch)
    assert (after.status, after.errors, after.model) == ("completed", None, MODEL)
    assert after.request_counts is not None
    assert (total(after), after.request_counts.completed, after.request_counts.failed) == (24, 21, 3)
    output, errors = await lines_of(client, after.output_file_id), await lines_of(client, after.error_file_id)
    said = {one["custom_id"]: one["response"]["body"]["choices"][0]["message"]["content"] for one in output}
    assert said == {f"item-{n}": f"say {n}" for n in (*range(20), 21)}
    assert sorted((one["custom_id"] or "", one["error"]["code"]) for one in errors) == [
        ("", "invalid_json_line"),
        ("item-22", "model_not_found"),
        ("item-3", "duplicate_custom_id"),
    ]
    assert after.usage is not None
    assert after.usage.output_tokens > 0
    assert batch.id in [one.id async for one in client.batches.list(limit=1)]


async def test_file_without_a_valid_line_fails_the_batch_with_its_errors(client: openai.AsyncOpenAI) -> None:
    after = await ended(client, await begun(client, [b"{", line(1, method="GET")]))
    assert (after.status, after.output_file_id) == ("failed", None)
    assert after.errors is not None
    assert after.errors.data is not None
    assert [(error.code, error.line) for error in after.errors.data] == [
        ("invalid_json_line", 1),
        ("invalid_method", 2),
    ]


async def test_cancelled_batch_keeps_what_was_done(client: openai.AsyncOpenAI) -> None:
    batch = await begun(client, [line(n) for n in range(3000)])

    async def some_done() -> bool:
        return sum_of(await client.batches.retrieve(batch.id)) > 0

    await wait_until(some_done, "some items are done", timeout_s=30)
    assert (await client.batches.cancel(batch.id)).status == "cancelling"
    after = await ended(client, batch)
    assert after.status == "cancelled"
    assert sum_of(after) == total(after) == 3000
    output, errors = await lines_of(client, after.output_file_id), await lines_of(client, after.error_file_id)
    assert sorted(one["custom_id"] for one in output + errors) == sorted(f"item-{n}" for n in range(3000))
    assert {one["error"]["code"] for one in errors} == {"batch_cancelled"}
    again = await client.batches.cancel(batch.id)
    assert again.status == "cancelled"


async def test_wrong_wishes_are_refused_with_what_would_be_right(client: openai.AsyncOpenAI) -> None:
    file = await client.files.create(file=("in.jsonl", line(1)), purpose="batch")
    other = await client.files.create(file=("in.txt", b"x"), purpose="user_data")
    right: Any = {"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h"}
    for wrong, param in (
        ({"endpoint": "/v1/nope"}, "endpoint"),
        ({"completion_window": "soon"}, "completion_window"),
        ({"completion_window": "31d"}, "completion_window"),
        ({"input_file_id": other.id}, "input_file_id"),
        ({"metadata": {str(n): "x" for n in range(17)}}, "metadata"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, "output_expires_after.seconds"),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            await client.batches.create(**{**right, **wrong})
        assert refused.value.param == param
    with pytest.raises(openai.NotFoundError):
        await client.batches.create(**{**right, "input_file_id": "file-" + "0" * 32})
    with pytest.raises(openai.NotFoundError):
        await client.batches.retrieve("batch_" + "0" * 32)


async def test_same_idempotency_key_makes_one_batch(client: openai.AsyncOpenAI) -> None:
    file = await client.files.create(file=("in.jsonl", line(1)), purpose="batch")
    asked: Any = {"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h"}
    headers = {"Idempotency-Key": f"job-{file.id}"}
    first, again = [await client.batches.create(**asked, extra_headers=headers) for _ in range(2)]
    assert first.id == again.id
    with pytest.raises(openai.ConflictError):
        await client.batches.create(**{**asked, "completion_window": "48h"}, extra_headers=headers)
    await ended(client, first)


SERVICES = ("scheduler", "inference", "notifier", "ingress")


async def kill_in_turn(running: Deployment, killed: list[str]) -> None:
    """One process of each service after the other, and then the other one; the supervisor starts them again."""
    for replica in range(2):
        for service in SERVICES:
            await wait_until(partial(two, running, service), f"two of {service} run", timeout_s=30)
            os.kill(alive(running, service)[replica], signal.SIGKILL)
            killed.append(service)


def two(running: Deployment, service: str) -> bool:
    return len(alive(running, service)) == 2


def alive(running: Deployment, service: str) -> list[int]:
    return running.processes().get(service, [])


@pytest.mark.timeout(240)
async def test_output_is_whole_and_exact_although_every_process_is_killed(
    running: Deployment, client: openai.AsyncOpenAI, tmp_path: Path
) -> None:
    count = 2000
    batch = await begun(client, [line(n) for n in range(count)])
    killed: list[str] = []
    killing = asyncio.create_task(kill_in_turn(running, killed))
    after = await ended(client, batch, timeout_s=180)
    assert set(killed) == set(SERVICES)
    killing.cancel()
    await asyncio.gather(killing, return_exceptions=True)
    for service in SERVICES:
        await wait_until(partial(two, running, service), f"two of {service} run", timeout_s=30)
    assert after.status == "completed"
    assert after.request_counts is not None
    assert (total(after), after.request_counts.completed, after.error_file_id) == (count, count, None)
    output = await lines_of(client, after.output_file_id)
    said = [(one["custom_id"], one["response"]["body"]["choices"][0]["message"]["content"]) for one in output]
    assert sorted(said) == sorted((f"item-{n}", f"say {n}") for n in range(count))


async def test_bucket_serves_as_a_folder_does(tmp_path: Path) -> None:
    with s3_server(tmp_path / "s3") as s3:
        environ = {**s3.environ, "HEADRACE_OBJECTS": s3.url}
        with deployment(tmp_path, config=CONFIG, environ=environ) as running:
            async with openai.AsyncOpenAI(base_url=f"{running.http}/v1", api_key="none", max_retries=10) as client:
                after = await ended(client, await begun(client, [*(line(n) for n in range(500)), b"oops"]))
                output, errors = (
                    await lines_of(client, after.output_file_id),
                    await lines_of(client, after.error_file_id),
                )
                assert sorted(one["custom_id"] for one in output) == sorted(f"item-{n}" for n in range(500))
                assert [one["error"]["code"] for one in errors] == ["invalid_json_line"]
                assert {name.split("/")[2] for name in s3.left()} == {"files", "batches"}
