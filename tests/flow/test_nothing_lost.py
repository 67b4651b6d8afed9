"""Workers die, sleep and stop in the middle of answers; clients go, cancel and wait too long: nothing is lost, nothing twice."""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from openai import APIStatusError, AsyncOpenAI
from redis.asyncio import Redis

from tests.flow.test_task_life import MODEL, chat
from tests.support.deployment import Deployment, deployment
from tests.support.processes import alive, holder_of_port
from tests.support.waiting import wait_until
from tests.support.websocket import PushClient

LEASE_S = 3
CONFIG = f"""
[pools.smol]
model = "{MODEL}"
engine = "echo"
[pools.smol.echo]
tokens_per_s = 20
faults = true
[limits]
lease_s = {LEASE_S}
crashes = 2
failures = 1
"""
WORDS = " ".join(str(n) for n in range(60))
"""Three seconds at 20 tokens/s."""


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Two workers that take their time, with a short lease and a short drain."""
    folder = tmp_path_factory.mktemp("slow")
    environ = {"HEADRACE_DRAIN_S": "0.5"}
    with deployment(folder, "--replicas", "inference=2", config=CONFIG, environ=environ) as running:
        yield running


@pytest.fixture
async def http(slow: Deployment) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=slow.http, timeout=30) as client:
        yield client


@pytest.fixture
async def redis(slow: Deployment) -> AsyncIterator[Any]:
    client: Any = Redis.from_url(slow.redis, decode_responses=True)
    yield client
    await client.aclose()


@pytest.fixture
async def openai(slow: Deployment) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{slow.http}/v1", api_key="none", max_retries=0) as client:
        yield client


async def show(http: httpx.AsyncClient, id: str) -> dict[str, Any]:
    task: dict[str, Any] = (await http.get(f"/v1/tasks/{id}")).json()
    return task


async def submitted(http: httpx.AsyncClient, text: str = WORDS, *, stream: bool = True, **more: object) -> str:
    answer = await http.post("/v1/tasks", json={"body": chat(text, stream=stream), **more})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


async def reached(http: httpx.AsyncClient, id: str, status: str) -> dict[str, Any]:
    task: dict[str, Any] = {}

    async def has() -> bool:
        task.update(await show(http, id))
        return bool(task["status"] == status)

    try:
        await wait_until(has, f"{id} is {status}", timeout_s=60)
    except AssertionError as error:
        raise AssertionError(f"{error}; it is {task}") from None
    return task


async def worker_process(redis: Any, worker: str) -> int:
    """By its connections to Redis. The kernel's table of connections may leave one out while it changes: so look again."""
    found: list[int] = []

    async def seen() -> bool:
        for connection in await redis.client_list():
            if connection["name"].startswith(worker):
                with contextlib.suppress(LookupError):
                    found.append(holder_of_port(int(connection["addr"].rpartition(":")[2])))
        return bool(found)

    await wait_until(seen, f"the process of {worker} is found")
    return found[0]


async def both_workers_live(redis: Any, timeout_s: float = 60) -> None:
    """One that dies again and again is started after longer and longer pauses."""

    async def live() -> bool:
        announced = await redis.hvals("hr:{smol.0}:workers")
        return [said.split(" ")[1] != "0" for said in announced].count(True) >= 2

    await wait_until(live, "two workers have slots", timeout_s=timeout_s)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
async def test_an_answer_goes_on_on_another_worker_as_if_nothing_had_happened(
    slow: Deployment, http: httpx.AsyncClient, redis: Any, how: signal.Signals
) -> None:
    await both_workers_live(redis)
    id = await submitted(http)
    async with PushClient(slow.ws) as page:
        await page.follow(id)
        while page.tasks[id].n < 10:
            await page.receive()
        victim = await worker_process(redis, (await show(http, id))["worker"])
        os.kill(victim, how)
        await page.until_end(id)
    assert page.tasks[id].text == WORDS
    assert "reset" not in page.tasks[id].kinds
    task = await show(http, id)
    assert task["result"]["choices"][0]["message"]["content"] == WORDS
    assert task["attempt"] == 2
    assert [attempt["why"] for attempt in task["history"]] == ["drained" if how is signal.SIGTERM else "lost"]
    if how is signal.SIGSTOP:
        await woken_from_the_dead(http, redis, victim, id)


async def woken_from_the_dead(http: httpx.AsyncClient, redis: Any, victim: int, id: str) -> None:
    """It changes nothing, and works on."""
    before = await show(http, id)
    os.kill(victim, signal.SIGCONT)
    await both_workers_live(redis)
    ids = [await submitted(http, "one two") for _ in range(8)]
    for other in ids:
        await reached(http, other, "completed")
    assert await show(http, id) == before


async def test_an_openai_stream_does_not_notice_that_its_worker_was_killed(
    http: httpx.AsyncClient, redis: Any, openai: AsyncOpenAI
) -> None:
    await both_workers_live(redis)
    texts, ids = [], set()
    messages: Any = chat(WORDS)["messages"]
    options: Any = {"include_usage": True}
    stream = await openai.chat.completions.create(model=MODEL, messages=messages, stream=True, stream_options=options)
    async for chunk in stream:
        ids.add((chunk.id, chunk.created))
        texts += [choice.delta.content or "" for choice in chunk.choices]
        usage = chunk.usage
        if len(texts) == 10:
            worker = (await show(http, stream.response.headers["x-headrace-task"]))["worker"]
            os.kill(await worker_process(redis, worker), signal.SIGKILL)
    assert "".join(texts) == WORDS
    assert len(ids) == 1
    assert usage is not None
    assert usage.completion_tokens == 60


async def test_a_task_that_kills_its_workers_is_quarantined_and_can_be_requeued(
    http: httpx.AsyncClient, redis: Any
) -> None:
    await both_workers_live(redis)
    id = await submitted(http, "!exit now")
    task = await reached(http, id, "failed")
    assert (task["error"]["code"], task["crashes"]) == ("task_quarantined", 2)
    letters = (await http.get("/v1/dead", params={"code": "task_quarantined"})).json()["data"]
    (letter,) = [letter for letter in letters if letter["task"] == id]
    requeued = await http.post(f"/v1/dead/{letter['id']}/requeue")
    again = await show(http, requeued.json()["id"])
    assert again["requeued_from"] == id
    await http.post(f"/v1/tasks/{again['id']}/cancel")
    await both_workers_live(redis)


async def test_a_failure_that_passes_is_tried_again_and_one_that_stays_ends_the_task(http: httpx.AsyncClient) -> None:
    passing, staying = await submitted(http, "!busy-once hello"), await submitted(http, "!busy hello")
    task = await reached(http, passing, "completed")
    assert (task["attempt"], task["failures"]) == (2, 1)
    task = await reached(http, staying, "failed")
    assert task["failures"] == 2
    assert task["error"]["code"] == 429


async def test_a_cancel_reaches_an_engine_that_says_nothing(http: httpx.AsyncClient, redis: Any) -> None:
    await both_workers_live(redis)
    streamed, whole = await submitted(http, "!hang on"), await submitted(http, "!hang on", stream=False)
    for id in (streamed, whole):
        await reached(http, id, "processing")
        assert (await http.post(f"/v1/tasks/{id}/cancel")).json()["status"] == "processing"
        task = await reached(http, id, "cancelled")
        assert task["error"]["code"] == "task_cancelled"
    again = await http.post(f"/v1/tasks/{streamed}/cancel")
    assert again.json()["status"] == "cancelled"


async def test_a_client_that_goes_cancels_its_plain_call(http: httpx.AsyncClient, slow: Deployment, redis: Any) -> None:
    await both_workers_live(redis)
    async with httpx.AsyncClient(base_url=slow.http, timeout=30) as leaving:
        async with leaving.stream("POST", "/v1/chat/completions", json=chat(WORDS, stream=True)) as answer:
            id = answer.headers["x-headrace-task"]
            async for _ in answer.aiter_lines():
                break
    await reached(http, id, "cancelled")


async def test_a_call_with_a_key_goes_on_without_its_client(http: httpx.AsyncClient, slow: Deployment) -> None:
    headers, body = {"idempotency-key": "order-9"}, chat("a b c d e f g h", stream=True)
    async with httpx.AsyncClient(base_url=slow.http, timeout=30) as leaving:
        async with leaving.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
            id = answer.headers["x-headrace-task"]
    await reached(http, id, "completed")
    again = await http.post("/v1/chat/completions", json=body, headers=headers)
    assert again.headers["x-headrace-task"] == id


async def test_a_stream_whose_pieces_are_gone_is_made_from_the_stored_answer(
    http: httpx.AsyncClient, openai: AsyncOpenAI, redis: Any
) -> None:
    messages: Any = chat("a b c")["messages"]
    asked: Any = {"model": MODEL, "messages": messages, "stream": True, "extra_headers": {"idempotency-key": "again"}}
    first = await openai.chat.completions.create(**asked)
    texts = [chunk.choices[0].delta.content or "" async for chunk in first]
    await redis.delete(f"hr:{{smol.0}}:log:{first.response.headers['x-headrace-task']}")
    again = await openai.chat.completions.create(**asked)
    chunks = [chunk async for chunk in again]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "".join(texts) == "a b c"
    assert chunks[-1].choices[0].finish_reason == "stop"


async def test_deadlines_end_waiting_and_running_tasks(http: httpx.AsyncClient, openai: AsyncOpenAI) -> None:
    id = await submitted(http, "!hang on", expires_in=0.5)
    task = await reached(http, id, "expired")
    assert task["error"]["code"] == "task_expired"
    refused = await http.post("/v1/tasks", json={"body": chat("x"), "expires_in": -1})
    assert refused.status_code == 400
    assert "expires_in" in refused.text


async def test_clients_of_the_openai_api_are_told_not_to_repeat_a_cancelled_call(
    http: httpx.AsyncClient, openai: AsyncOpenAI, redis: Any
) -> None:
    messages: Any = chat("!hang on")["messages"]
    calling = asyncio.create_task(openai.chat.completions.create(model=MODEL, messages=messages))

    async def attached() -> list[str]:
        return list(await redis.zrange("hr:{smol.0}:attached", 0, -1))

    await wait_until(attached, "the call is attached")
    (id,) = await attached()
    await http.post(f"/v1/tasks/{id}/cancel")
    with pytest.raises(APIStatusError) as raised:
        await calling
    assert raised.value.status_code == 499
    assert raised.value.response.headers["x-should-retry"] == "false"


async def test_nothing_is_left_behind(slow: Deployment, redis: Any) -> None:
    """Runs last in this file: what the tests above broke has left nothing waiting, leased or pending."""

    async def drained() -> bool:
        base = "hr:{smol.0}:"
        zsets = [f"{base}{name}" for name in ("expiry", "later", "attached", "leases", "backlog:normal")]
        depths = [await redis.xlen(key) async for key in redis.scan_iter(f"{base}work:*")]
        return not any([await redis.zcard(key) for key in zsets]) and not any(depths)

    await wait_until(drained, "every index and work stream is empty", timeout_s=60)
    assert all(alive(pid) for pids in slow.processes().values() for pid in pids)
    json.dumps(await redis.hgetall("hr:{smol.0}:workers"))
