"""Sounds, pictures and long texts that are too large for Redis: they go through the object store, and arrive as they were."""

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import redis.asyncio

from services.scheduler.object_sweep import ObjectSweep
from shared import keys
from shared.bus.client import Bus
from shared.clock import now_ms
from shared.keys import keys_of
from shared.objects import Objects
from tests.flow.test_nothing_lost import both_workers_live, worker_process
from tests.flow.test_openai_client import client as client
from tests.flow.test_task_life import MODEL, chat
from tests.support.deployment import Deployment, deployment
from tests.support.waiting import wait_until
from tests.support.websocket import PushClient

INLINE = 256 * 1024
SMALL = 8 * 1024
"""Most that Redis may hold of a task whose body and answer are elsewhere."""
CONFIG = f"""
[pools.smol]
model = "{MODEL}"
engine = "echo"
[pools.smol.echo]
tokens_per_s = 40.0
[limits]
inline_bytes = 1024
lease_s = 3
"""


def folder_of(running: Deployment) -> Path:
    return running.folder / "data" / "objects"


def objects_of(running: Deployment, task_id: str) -> list[Path]:
    return [path for path in (folder_of(running) / "tasks" / task_id).glob("*") if path.is_file()]


async def in_redis(producer: Any, task_id: str) -> int:
    return int(await producer.execute_command("MEMORY", "USAGE", keys_of(task_id)[0].task(task_id), "SAMPLES", 0))


async def test_a_sound_of_two_megabytes_never_goes_through_redis(
    client: openai.AsyncOpenAI, echo: Deployment, producer: Any
) -> None:
    sound = bytes(range(256)) * 8192
    said = await client.audio.transcriptions.with_raw_response.create(model=MODEL, file=("a.wav", sound))
    assert said.parse().text == f"a.wav {len(sound)} bytes"
    task = said.headers["x-headrace-task"]
    assert await in_redis(producer, task) < SMALL
    (body,) = objects_of(echo, task)
    assert sound in body.read_bytes()


async def test_a_long_sound_comes_out_of_the_store_and_is_gone_with_its_task(
    client: openai.AsyncOpenAI, echo: Deployment, http: httpx.AsyncClient, producer: Any
) -> None:
    words = " ".join(f"{number}" for number in range(400))
    spoken = await client.audio.speech.create(model=MODEL, voice="alloy", input=words, response_format="wav")
    assert len(spoken.content) > INLINE
    task = spoken.response.headers["x-headrace-task"]
    assert await in_redis(producer, task) < SMALL
    url = f"/v1/tasks/{task}/result"
    place = {"content_type": "audio/wav", "bytes": len(spoken.content), "url": url}
    assert (await http.get(f"/v1/tasks/{task}")).json()["result"] == place
    assert (await http.get(url)).content == spoken.content
    (answer,) = objects_of(echo, task)
    assert answer.read_bytes() == spoken.content
    await producer.delete(keys_of(task)[0].task(task))
    await producer.zadd(keys.OBJECTS, {f"tasks/{task}/{answer.name}": 1}, xx=True)
    async with Bus(echo.redis, name="sweep") as bus:
        await ObjectSweep(bus, Objects(folder_of(echo).as_uri())).look()
    assert objects_of(echo, task) == []
    assert await producer.zscore(keys.OBJECTS, f"tasks/{task}/{answer.name}") is None


async def test_a_long_answer_in_json_is_whole_at_every_door(
    echo: Deployment, http: httpx.AsyncClient, producer: Any
) -> None:
    text = "y" * (INLINE + 1)
    answer = await http.post("/v1/chat/completions", json=chat(text))
    assert answer.json()["choices"][0]["message"]["content"] == text
    sent = (await http.post("/v1/tasks", json={"body": chat(text), "reply_to": "large"})).json()["id"]
    view = (await http.get(f"/v1/tasks/{sent}?wait=30")).json()
    place = view["result"]
    assert (place["content_type"], place["bytes"] > INLINE) == ("application/json", True)
    assert len(objects_of(echo, sent)) == 2
    assert await in_redis(producer, sent) < SMALL
    assert (await http.get(place["url"])).json()["choices"][0]["message"]["content"] == text
    ((_, [(_, fields)]),) = await producer.xread({"hr:reply:large": "0"}, block=30_000)
    assert json.loads(fields["reply"])["result"] == place
    async with PushClient(echo.ws) as page:
        await page.follow(sent)
        await page.until_end(sent)
    end = page.tasks[sent].end
    assert end is not None
    assert end["result"] == place
    await producer.delete("hr:reply:large")


# -- with a small limit, a slow engine, and faults


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployment(tmp_path_factory.mktemp("large"), "--replicas", "inference=2", config=CONFIG) as running:
        yield running


@pytest.fixture
async def door(slow: Deployment) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=slow.http, timeout=90) as client:
        yield client


@pytest.fixture
async def store(slow: Deployment) -> AsyncIterator[Any]:
    client: Any = redis.asyncio.Redis.from_url(slow.redis, decode_responses=True, socket_timeout=60)
    yield client
    await client.aclose()


LONG = " ".join(str(number) * 20 for number in range(200))
"""The echo engine takes 5 s for it, so that there is time to kill its worker."""


async def test_a_worker_that_is_killed_costs_neither_body_nor_answer(
    slow: Deployment, door: httpx.AsyncClient, store: Any
) -> None:
    await both_workers_live(store)
    sent = (await door.post("/v1/tasks", json={"body": chat(LONG)})).json()["id"]

    worker = ""

    async def runs() -> str:
        nonlocal worker
        view = (await door.get(f"/v1/tasks/{sent}")).json()
        worker = str(view["worker"]) if view["status"] == "processing" else ""
        return worker

    await wait_until(runs, "a worker runs it")
    os.kill(await worker_process(store, worker), signal.SIGKILL)
    view = (await door.get(f"/v1/tasks/{sent}?wait=60")).json()
    assert (view["status"], view["attempt"]) == ("completed", 2)
    answer = await door.get(view["result"]["url"])
    assert answer.json()["choices"][0]["message"]["content"] == LONG
    assert len(objects_of(slow, sent)) == 2
    assert await in_redis(store, sent) < SMALL


async def test_items_of_a_batch_are_whole_in_its_output(slow: Deployment) -> None:
    async with openai.AsyncOpenAI(base_url=f"{slow.http}/v1", api_key="none", max_retries=5) as client:
        texts = {f"item-{number}": f"{number} " + "x" * 3000 for number in range(5)}
        lines = [
            {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": chat(text)}
            for name, text in texts.items()
        ]
        data = "\n".join(map(json.dumps, lines)).encode()
        file = await client.files.create(file=("in.jsonl", io.BytesIO(data)), purpose="batch")
        batch = await client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )

        async def over() -> bool:
            return (await client.batches.retrieve(batch.id)).status == "completed"

        await wait_until(over, "the batch has ended", timeout_s=60)
        done = await client.batches.retrieve(batch.id)
        assert done.output_file_id is not None
        output = (await client.files.content(done.output_file_id)).text.splitlines()
    told = {said["custom_id"]: said["response"]["body"] for said in map(json.loads, output)}
    assert {name: body["choices"][0]["message"]["content"] for name, body in told.items()} == texts
    assert all(body["usage"]["completion_tokens"] == 2 for body in told.values())


async def test_the_command_line_brings_whole_answers(slow: Deployment, tmp_path: Path) -> None:
    tasks = tmp_path / "tasks.jsonl"
    texts = [f"{number} " + "x" * 3000 for number in range(3)]
    tasks.write_text("".join(json.dumps(chat(text)) + "\n" for text in texts))
    out = tmp_path / "out.jsonl"
    await headrace(slow, "submit", str(tasks), "-o", str(out), "--in-order")
    views = [json.loads(line) for line in out.read_text().splitlines()]
    assert [view["result"]["choices"][0]["message"]["content"] for view in views] == texts
    assert texts[0] in await headrace(slow, "tasks", views[0]["id"])
    assert texts[1] in await headrace(slow, "submit", "--body", json.dumps(chat(texts[1])))


async def headrace(running: Deployment, *words: str) -> str:
    command = [sys.executable, "-m", "services.cli", *words, "--url", running.http]
    made = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60)
    assert made.returncode == 0, made.stderr
    return made.stdout


async def test_without_the_store_large_bodies_are_refused_or_wait_and_small_ones_go_on(
    slow: Deployment, door: httpx.AsyncClient, store: Any
) -> None:
    """Last, since it takes the store away."""
    waiting = (await door.post("/v1/tasks", json={"body": chat("z" * 2000), "not_before": time_in(10)})).json()["id"]
    take_away(slow)
    refused = await door.post("/v1/chat/completions", json=chat("x" * 2000))
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unavailable")
    assert (await door.post("/v1/chat/completions", json=chat("small"))).status_code == 200
    entry = {"input_text": "w" * 2000, "reply_to": "away"}
    await store.xadd("hr:requests", entry)

    async def failed() -> bool:
        return bool((await door.get(f"/v1/tasks/{waiting}")).json().get("failures"))

    await wait_until(failed, "a worker has missed the body", timeout_s=60)
    bring_back(slow)
    ((_, [(_, fields)]),) = await store.xread({"hr:reply:away": "0"}, block=30_000)
    assert json.loads(fields["reply"])["status"] == "completed"
    view = (await door.get(f"/v1/tasks/{waiting}?wait=60")).json()
    assert (view["status"], view["failures"], view["history"][0]["why"]) == ("completed", 1, "store_unavailable")


def time_in(seconds: float) -> float:
    return now_ms() / 1000 + seconds


def take_away(running: Deployment) -> None:
    folder_of(running).rename(folder_of(running).with_name("away"))


def bring_back(running: Deployment) -> None:
    folder_of(running).with_name("away").rename(folder_of(running))
