"""Real vLLM with the real model, from its engine to a page. That its answers are vLLM's own is for tests/conformance."""

from collections.abc import Iterator

import httpx
import pytest

from tests.support.deployment import Deployment, deployment
from tests.support.vllm_server import MODEL
from tests.support.websocket import PushClient

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

CONFIG = f"""
[pools.smol]
model = "{MODEL}"
[pools.smol.vllm]
options = {{ dtype = "float32", max-model-len = 1024, kv-cache-memory-bytes = {256 * 1024 * 1024} }}
"""
QUESTION = [{"role": "user", "content": "Name three rivers of Europe, and say one thing of each."}]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployment(tmp_path_factory.mktemp("vllm"), "--engine", "vllm", config=CONFIG) as up:
        yield up


async def test_every_token_comes_over_the_websocket_once_and_the_text_is_the_stored_result(running: Deployment) -> None:
    body = {"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": 48, "stream": True}
    async with httpx.AsyncClient(base_url=running.http, timeout=60) as client:
        task = (await client.post("/v1/tasks", json={"body": body})).json()["id"]
        async with PushClient(running.ws) as first:
            await first.follow(task)
            while first.tasks[task].n < 8:
                await first.receive()
        async with PushClient(running.ws) as second:  # the link broke; back with the cursor
            second.tasks = first.tasks
            await second.follow(task)
            await second.until_end(task)
        stored = (await client.get(f"/v1/tasks/{task}")).json()
    assert second.tasks[task].text == stored["result"]["choices"][0]["message"]["content"]
    assert second.tasks[task].n > 8


async def test_a_subscriber_may_have_the_engines_chunks_as_made(running: Deployment) -> None:
    body = {"model": MODEL, "messages": QUESTION, "max_tokens": 6, "stream": True, "logprobs": True}
    async with httpx.AsyncClient(base_url=running.http, timeout=60) as client:
        task = (await client.post("/v1/tasks", json={"body": body})).json()["id"]
        async with PushClient(running.ws) as page:
            await page.follow(task, form="chunks")
            await page.until_end(task)
    made = page.tasks[task].chunks
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in made)
    assert sum(len((chunk["choices"][0]["logprobs"] or {}).get("content") or []) for chunk in made) == 6
