"""A worker dies in the middle of answers that no engine goes on with: they are made anew, and a client that comes back sees it not."""

import asyncio
import os
import signal
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI
from redis.asyncio import Redis

from tests.flow.test_nothing_lost import CONFIG, WORDS, both_workers_live, show, worker_process
from tests.flow.test_task_life import MODEL
from tests.support.deployment import Deployment, deployment
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Two workers that take three seconds for an answer, with a short lease."""
    with deployment(tmp_path_factory.mktemp("lost"), "--replicas", "inference=2", config=CONFIG) as running:
        yield running


async def kill_worker_of(slow: Deployment, task: str) -> None:
    redis: Any = Redis.from_url(slow.redis, decode_responses=True)
    async with redis, httpx.AsyncClient(base_url=slow.http, timeout=30) as http:
        os.kill(await worker_process(redis, (await show(http, task))["worker"]), signal.SIGKILL)


async def ready(slow: Deployment) -> None:
    redis: Any = Redis.from_url(slow.redis, decode_responses=True)
    async with redis:
        await both_workers_live(redis)


async def test_a_stream_in_the_background_outlives_its_worker_and_its_client(slow: Deployment) -> None:
    await ready(slow)
    async with AsyncOpenAI(base_url=f"{slow.http}/v1", api_key="none", max_retries=0) as client:
        stream = await client.responses.create(model=MODEL, input=WORDS, background=True, stream=True)
        events: list[Any] = []
        async for event in stream:
            events.append(event)
            if len(events) == 12:
                break
        await stream.close()
        id = events[0].response.id
        await kill_worker_of(slow, id.removeprefix("resp_"))
        last = events[-1].sequence_number
        events += [event async for event in await client.responses.retrieve(id, stream=True, starting_after=last)]
        stored = await client.responses.retrieve(id)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == WORDS
    assert stored.output_text == events[-1].response.output_text == WORDS
    assert stored.created_at == events[0].response.created_at == events[-1].response.created_at


async def test_a_whole_message_starts_over_unseen(slow: Deployment) -> None:
    await ready(slow)
    asked = {"model": MODEL, "max_tokens": 200, "messages": [{"role": "user", "content": WORDS}]}
    async with httpx.AsyncClient(base_url=slow.http, timeout=60) as http:
        asking = asyncio.create_task(http.post("/v1/messages", json=asked))
        running: list[str] = []

        async def begun() -> bool:
            listed = (await http.get("/v1/tasks?limit=1")).json()["data"]
            running.extend(t["id"] for t in listed if t["route"] == "/v1/messages" and t["status"] == "processing")
            return bool(running)

        await wait_until(begun, "the message is being made")
        task = running[0]
        await kill_worker_of(slow, task)
        answer = await asking
        assert answer.json()["content"] == [{"type": "text", "text": WORDS}]
        assert (answer.headers["x-headrace-task"], answer.headers["x-headrace-attempt"]) == (task, "2")
