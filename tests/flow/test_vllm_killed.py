"""Workers with real vLLM are killed in the middle of an answer: the client reads the very text of an undisturbed run."""

import os
import signal
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from redis.asyncio import Redis

from tests.flow.test_nothing_lost import both_workers_live, worker_process
from tests.flow.test_vllm import CONFIG, QUESTION
from tests.support.deployment import Deployment, deployment
from tests.support.vllm_server import MODEL

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

CUTS = (1, 2, 3, 5, 8, 13, 21, 30, 34, 38)
"""Chunks that the client has read when the worker is killed."""
ASKED: dict[str, Any] = {
    "model": MODEL,
    "messages": QUESTION,
    "temperature": 0,
    "max_tokens": 40,
    "logprobs": True,
    "stream": True,
    "stream_options": {"include_usage": True},
}


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Three, so that two are there while the one that was killed starts."""
    config = f"{CONFIG}\n[limits]\nlease_s = 2\n"
    with deployment(tmp_path_factory.mktemp("killed"), "--replicas", "inference=3", config=config) as up:
        yield up


STRUCTURED = {
    "type": "json_schema",
    "json_schema": {
        "name": "river",
        "schema": {
            "type": "object",
            "properties": {"name": {"enum": ["Rhine", "Seine"]}, "country": {"enum": ["France", "Germany"]}},
            "required": ["name", "country"],
        },
    },
}
"""What no engine can go on with: a grammar starts anew. The answer is made anew, and is the same."""


async def told(client: openai.AsyncOpenAI, redis: Any, kill_at: int | None = None, **more: Any) -> dict[str, Any]:
    """What a client of a stream has read: text, logprobs, usage, ids."""
    texts: list[str] = []
    logprobs: list[float] = []
    ids, usage = set(), None
    stream = await client.chat.completions.create(**ASKED, **more)
    async for chunk in stream:
        ids.add((chunk.id, chunk.created))
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts.append(choice.delta.content or "")
            if choice.logprobs is not None:
                logprobs += [token.logprob for token in choice.logprobs.content or []]
        if len(texts) == kill_at:
            task = stream.response.headers["x-headrace-task"]
            worker = await redis.hget(f"hr:{{smol.0}}:task:{task}", "worker")
            os.kill(await worker_process(redis, worker), signal.SIGKILL)
    assert len(ids) == 1, "one answer has one id and one time"
    assert usage is not None
    return {"text": "".join(texts), "logprobs": logprobs, "usage": usage.to_dict()}


async def test_the_text_is_that_of_an_undisturbed_run_wherever_the_worker_is_killed(workers: Deployment) -> None:
    redis: Any = Redis.from_url(workers.redis, decode_responses=True)
    async with openai.AsyncOpenAI(base_url=f"{workers.http}/v1", api_key="none", max_retries=0, timeout=120) as client:
        await both_workers_live(redis, timeout_s=120)
        undisturbed = await told(client, redis)
        assert len(undisturbed["logprobs"]) == 40
        for cut in CUTS:
            await both_workers_live(redis, timeout_s=120)
            disturbed = await told(client, redis, kill_at=cut)
            assert disturbed["text"] == undisturbed["text"], f"killed at chunk {cut}"
            assert disturbed["logprobs"] == pytest.approx(undisturbed["logprobs"], abs=1e-4)
            assert disturbed["usage"] == undisturbed["usage"]
        structured = await told(client, redis, response_format=STRUCTURED)
        await both_workers_live(redis, timeout_s=120)
        disturbed = await told(client, redis, kill_at=5, response_format=STRUCTURED)
        assert disturbed["text"] == structured["text"]
    await redis.aclose()
