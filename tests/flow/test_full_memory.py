"""A Redis that is full refuses new tasks, and nothing else: what it holds is run, answered and delivered."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.deployment import Deployment, deployment
from tests.support.redis import find_server
from tests.support.server import Server, server
from tests.support.waiting import wait_until
from tests.support.websocket import PushClient

MODEL = "smollm2-135m-instruct"
TASKS = 40
SLOW = '[pools.smol]\nmodel = "smollm2-135m-instruct"\nengine = "echo"\nslots = 4\n[pools.smol.echo]\ntokens_per_s = 40'


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Server]:
    with server(find_server(), tmp_path / "redis", "--appendonly", "yes") as running:
        yield running


@pytest.fixture
def running(redis: Server, tmp_path: Path) -> Iterator[Deployment]:
    with deployment(tmp_path, config=SLOW, redis_url=redis.url) as running:
        yield running


async def submit(http: httpx.AsyncClient, n: int, **more: str) -> httpx.Response:
    body = {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": f"task {n} says hello to you"}]}
    return await http.post("/v1/tasks", json={"body": body, "session": "s", "reply_to": "orders", **more})


def replied(redis: Server) -> set[str]:
    """Tasks that were answered: a reply may come twice."""
    entries: Any = redis.ask("XRANGE", "hr:reply:orders", "-", "+")
    return {fields["id"] for _, fields in entries}


async def test_full_redis_drains(redis: Server, running: Deployment) -> None:
    async with httpx.AsyncClient(base_url=running.http, timeout=60) as http, PushClient(running.sockets()[0]) as socket:
        ids = [(await submit(http, n)).json()["id"] for n in range(TASKS)]
        waiting = asyncio.create_task(http.get(f"/v1/tasks/{ids[-1]}", params={"wait": "20"}))
        for n, id in enumerate(ids[: TASKS // 2]):
            await socket.follow(id, id=n + 1)
        redis.ask("CONFIG", "SET", "maxmemory", 1)
        redis.ask("CLIENT", "KILL", "TYPE", "normal")  # every loop joins its groups anew, in a full Redis

        async def is_refused() -> bool:
            answer = await submit(http, -1, task_id="late")
            return answer.status_code == 503 and answer.json()["error"]["code"] == "memory_full"

        await wait_until(is_refused, "new tasks are refused")
        refused = await submit(http, -1)
        assert int(refused.headers["retry-after"]) > 0

        await socket.until_end(*ids[: TASKS // 2])
        late = ids[TASKS // 2 :]
        for n, id in enumerate(late):  # subscribed while memory is full
            await socket.follow(id, id=100 + n)
        await socket.until_end(*late)
        await waiting  # it is answered, if only that the task still runs
        assert (await http.get(f"/v1/tasks/{ids[-1]}")).json()["status"] == "completed"
        await wait_until(lambda: replied(redis) == set(ids), "every reply was written")
        await wait_until(lambda: redis.ask("XLEN", "hr:{smol.0}:outbox") == 0, "the outbox is empty")

        redis.ask("CONFIG", "SET", "maxmemory", 0)

        async def is_accepted() -> bool:
            return (await submit(http, -2, task_id="late")).status_code == 202

        await wait_until(is_accepted, "new tasks are accepted again")
        await wait_until(lambda: len(replied(redis)) == TASKS + 1, "and run")
