"""Two replicas of every service on one Redis, 2,000 tasks over all three doors: each completed once, spread over both."""

import asyncio
import os
import signal
from collections import Counter
from itertools import cycle
from typing import Any

import httpx
import pytest
import redis.asyncio

from tests.flow.test_task_life import MODEL, chat
from tests.support.deployment import Deployment
from tests.support.websocket import PushClient

EACH = 667


async def over_http(echo: Deployment, mark: str) -> Counter[str]:
    """Synchronous requests, in turn to both replicas of ingress."""
    texts: Counter[str] = Counter()
    limits = httpx.Limits(max_connections=32)
    async with httpx.AsyncClient(timeout=60, limits=limits, transport=httpx.AsyncHTTPTransport(retries=3)) as client:
        urls = cycle(echo.replicas["ingress"])

        async def ask(number: int, url: str) -> None:
            answer = await send(client, f"{url}/v1/chat/completions", chat(f"{mark}-http-{number}"))
            texts[answer["choices"][0]["message"]["content"]] += 1

        await asyncio.gather(*(ask(number, next(urls)) for number in range(EACH)))
    return texts


async def send(client: httpx.AsyncClient, url: str, body: dict[str, Any]) -> dict[str, Any]:
    """A connection lost with its process is sent again, as every client of a restarted server does."""
    while True:
        try:
            answer = await client.post(url, json=body)
        except httpx.TransportError:
            continue
        assert answer.status_code in (200, 202), answer.text
        found: dict[str, Any] = answer.json()
        return found


async def over_websocket(echo: Deployment, mark: str) -> Counter[str]:
    """Submitted in the background, watched as a session."""
    async with httpx.AsyncClient(timeout=60) as client, PushClient(echo.replicas["notifier"][0]) as page:
        await page.follow_session(mark)

        async def submit(number: int) -> str:
            body: dict[str, Any] = {
                "body": chat(f"{mark}-ws-{number}", stream=True),
                "session": mark,
                "task_id": f"{mark}-{number}",
            }
            return str((await send(client, f"{echo.http}/v1/tasks", body))["id"])

        ids = await asyncio.gather(*(submit(number) for number in range(EACH)))
        await page.until_end(*ids)
        return Counter(page.tasks[id].text for id in ids)


async def over_stream(echo: Deployment, mark: str) -> Counter[str]:
    """Entries of another system, answers on its own stream."""
    client: Any = redis.asyncio.Redis.from_url(echo.redis, decode_responses=True)
    texts: Counter[str] = Counter()
    for number in range(EACH):
        await client.xadd("hr:requests", {"model": MODEL, "input_text": f"{mark}-door-{number}", "reply_to": mark})
    last, events = "0", set[str]()
    while len(events) < EACH:
        for _, entries in await client.xread({f"hr:reply:{mark}": last}, block=30_000):
            last = entries[-1][0]
            for _, reply in entries:
                if reply["event"] not in events:
                    events.add(reply["event"])
                    texts[reply["text"]] += 1
    await client.aclose()
    return texts


def expected(mark: str, door: str) -> Counter[str]:
    return Counter({f"{mark}-{door}-{number}": 1 for number in range(EACH)})


async def workers_of(echo: Deployment) -> Counter[str]:
    client: Any = redis.asyncio.Redis.from_url(echo.redis, decode_responses=True)
    found: Counter[str] = Counter()
    async for key in client.scan_iter("hr:{smol.0}:task:*", count=1000):
        found[await client.hget(key, "worker") or ""] += 1
    await client.aclose()
    return found


async def metric(url: str, name: str) -> float:
    async with httpx.AsyncClient() as client:
        lines = (await client.get(f"{url}/metrics")).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


async def test_two_thousand_tasks_over_three_doors_are_each_completed_once_and_spread(echo: Deployment) -> None:
    doors = await asyncio.gather(over_http(echo, "even"), over_websocket(echo, "even"), over_stream(echo, "even"))
    assert list(doors) == [expected("even", door) for door in ("http", "ws", "door")]
    by_worker = await workers_of(echo)
    assert len(by_worker) == 2
    assert min(by_worker.values()) > 0.2 * by_worker.total()
    for url in echo.replicas["ingress"]:
        assert await metric(url, "hr_http_requests_total") > 0
    assert sum([await metric(url, "hr_replies_total") for url in echo.replicas["notifier"]]) >= EACH


@pytest.mark.parametrize("kill", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
@pytest.mark.parametrize("service", ["scheduler", "inference"])
async def test_a_service_restarted_in_the_middle_loses_nothing(
    echo: Deployment, service: str, kill: signal.Signals
) -> None:
    mark = f"{service}-{kill.name}"
    victim = echo.processes()[service][0]
    work = asyncio.gather(over_http(echo, mark), over_websocket(echo, mark), over_stream(echo, mark))
    await submitted_some(echo)
    os.kill(victim, kill)
    doors = await asyncio.wait_for(work, 90)
    assert list(doors) == [expected(mark, door) for door in ("http", "ws", "door")]


async def submitted_some(echo: Deployment) -> None:
    """Return when new tasks have begun to come in."""
    client: Any = redis.asyncio.Redis.from_url(echo.redis)
    key = "hr:{smol.0}:workers"
    before = await client.dbsize()
    while await client.dbsize() < before + 100:
        await client.hlen(key)
    await client.aclose()
