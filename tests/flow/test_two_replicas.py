"""Two replicas of every service on one Redis, 2,000 tasks over all three doors: each completed once, spread over both."""

import asyncio
import contextlib
import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from itertools import cycle
from typing import Any

import httpx
import pytest
import redis.asyncio
import websockets

from tests.bench.client import Connection, connect
from tests.flow.test_task_life import MODEL, chat
from tests.support.deployment import Deployment
from tests.support.websocket import PushClient, Seen

EACH, AT_ONCE = 667, 16


async def post_all(urls: list[str], path: str, bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Posts all, AT_ONCE at a time, in turn to each of the replicas; the answers in the order of the bodies."""
    answers: dict[int, dict[str, Any]] = {}
    numbers, turn = iter(range(len(bodies))), cycle(urls)

    async def work() -> None:
        line = await connected(turn)
        for number in numbers:
            while number not in answers:
                try:
                    status, answer = await line.post(path, json.dumps(bodies[number]).encode())
                    assert status in (200, 202), answer
                    answers[number] = json.loads(answer)
                except (OSError, asyncio.IncompleteReadError):  # lost with its process: made again, as clients do
                    line.close()
                    line = await connected(turn)
        line.close()

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    return [answers[number] for number in range(len(bodies))]


async def connected(turn: Iterator[str]) -> Connection:
    for url in turn:
        with contextlib.suppress(OSError):
            return await connect(url)
    raise AssertionError


async def over_http(echo: Deployment, mark: str) -> Counter[str]:
    """Synchronous requests, in turn to both replicas of ingress."""
    bodies = [chat(f"{mark}-http-{number}") for number in range(EACH)]
    answers = await post_all(echo.replicas["ingress"], "/v1/chat/completions", bodies)
    return Counter(answer["choices"][0]["message"]["content"] for answer in answers)


async def over_websocket(echo: Deployment, mark: str) -> Counter[str]:
    """Submitted in the background, watched as a session."""
    watching = asyncio.create_task(watch(echo, mark))
    bodies: list[dict[str, Any]] = [
        {"body": chat(f"{mark}-ws-{number}", stream=True), "session": mark, "task_id": f"{mark}-{number}"}
        for number in range(EACH)
    ]
    ids = {answer["id"] for answer in await post_all(echo.replicas["ingress"], "/v1/tasks", bodies)}
    tasks = await watching
    assert set(tasks) == ids
    return Counter(seen.text for seen in tasks.values())


async def watch(echo: Deployment, session: str) -> dict[str, Seen]:
    """A page that follows its session, and comes back with its cursors when a replica goes."""
    tasks: dict[str, Seen] = {}
    for url in cycle(echo.sockets()):
        with contextlib.suppress(websockets.WebSocketException, OSError):
            async with PushClient(url) as page:
                page.tasks = tasks
                await page.follow_session(session)
                while sum(seen.end is not None for seen in tasks.values()) < EACH:
                    await page.receive()
                return tasks
    return tasks


async def over_stream(echo: Deployment, mark: str) -> Counter[str]:
    """Entries of another system, answers on its own stream."""
    client: Any = redis.asyncio.Redis.from_url(echo.redis, decode_responses=True, socket_timeout=60)
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
    client: Any = redis.asyncio.Redis.from_url(echo.redis, decode_responses=True, socket_timeout=60)
    found: Counter[str] = Counter()
    async for key in client.scan_iter("hr:{smol.0}:task:*", count=1000):
        found[await client.hget(key, "worker") or ""] += 1
    await client.aclose()
    return found


async def metric(url: str, name: str) -> float:
    async with httpx.AsyncClient(timeout=30) as client:
        lines = (await client.get(f"{url}/metrics")).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


async def test_two_thousand_tasks_over_three_doors_are_each_completed_once_and_spread(echo: Deployment) -> None:
    before = await workers_of(echo)
    doors = await asyncio.gather(over_http(echo, "even"), over_websocket(echo, "even"), over_stream(echo, "even"))
    assert list(doors) == [expected("even", door) for door in ("http", "ws", "door")]
    by_worker = await workers_of(echo) - before
    assert len(by_worker) == 2
    assert min(by_worker.values()) > 0.2 * by_worker.total()
    for url in echo.replicas["ingress"]:
        assert await metric(url, "hr_http_requests_total") > 0
    assert sum([await metric(url, "hr_replies_total") for url in echo.replicas["notifier"]]) >= EACH


@pytest.mark.timeout(240)
@pytest.mark.parametrize("kill", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
@pytest.mark.parametrize("service", ["ingress", "scheduler", "inference", "notifier"])
async def test_a_service_restarted_in_the_middle_loses_nothing(
    echo: Deployment, service: str, kill: signal.Signals
) -> None:
    mark = f"{service}-{kill.name}"
    victim = echo.processes()[service][0]
    work = asyncio.gather(over_http(echo, mark), over_websocket(echo, mark), over_stream(echo, mark))
    await submitted_some(echo)
    os.kill(victim, kill)
    doors = await asyncio.wait_for(work, 180)
    assert list(doors) == [expected(mark, door) for door in ("http", "ws", "door")]


async def submitted_some(echo: Deployment) -> None:
    """Return when new tasks have begun to come in."""
    client: Any = redis.asyncio.Redis.from_url(echo.redis)
    key = "hr:{smol.0}:workers"
    before = await client.dbsize()
    while await client.dbsize() < before + 100:
        await client.hlen(key)
    await client.aclose()
