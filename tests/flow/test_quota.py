"""Rates over two replicas of ingress: never exceeded, always explained, and every reservation is settled, whatever ends a task."""

import asyncio
import json
import os
import signal
from bisect import bisect_right
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from itertools import cycle, islice
from typing import Any

import httpx
import pytest
import redis.asyncio
from msgspec import Struct

from shared.clock import monotonic_s
from shared.keys import quota
from tests.flow.test_task_life import MODEL
from tests.support.deployment import Deployment, deployment
from tests.support.waiting import wait_until

SUBMITTERS, EACH = 200, 8
PER_S, PER_MIN = 40, 6000
CONFIG = f"""
keys_required = false

[pools.smol]
model = "{MODEL}"
engine = "echo"
slots = 32
[pools.smol.echo]
tokens_per_s = 200.0
[limits]
lease_s = 2.0
[tenants.brisk]
requests_per_s = {PER_S}
[tenants.frugal]
tokens_per_min = {PER_MIN}
[tenants.unlucky]
tokens_per_min = 1_000_000_000
requests_per_s = 100_000
"""


class Attempt(Struct):
    """What a client saw of one submission. Times are its own."""

    sent_s: float
    answered_s: float
    status: int
    task: str = ""
    code: str = ""
    retry_after_s: str = ""


@pytest.fixture(scope="module")
def metered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    replicas = "ingress=2,scheduler=2,inference=2,notifier=2"
    with deployment(tmp_path_factory.mktemp("metered"), "--replicas", replicas, config=CONFIG) as running:
        yield running


@pytest.fixture
async def doors(metered: Deployment) -> AsyncIterator[list[httpx.AsyncClient]]:
    """A client of each replica."""
    limits = httpx.Limits(max_connections=SUBMITTERS, max_keepalive_connections=SUBMITTERS)
    clients = [httpx.AsyncClient(base_url=url, timeout=60, limits=limits) for url in metered.replicas["ingress"]]
    yield clients
    for client in clients:
        await client.aclose()


@pytest.fixture
async def keys(metered: Deployment) -> AsyncIterator[Any]:
    client: Any = redis.asyncio.Redis.from_url(metered.redis, decode_responses=True)
    yield client
    await client.aclose()


async def submit(door: httpx.AsyncClient, tenant: str, text: str, max_tokens: int = 20, **more: Any) -> Attempt:
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": max_tokens, **more}
    sent_s = monotonic_s()
    answer = await door.post("/v1/tasks", json={"body": body, "tenant": tenant})
    made = Attempt(sent_s, monotonic_s(), answer.status_code, retry_after_s=answer.headers.get("retry-after", ""))
    said = json.loads(answer.content)
    made.task, made.code = said.get("id", ""), said.get("error", {}).get("code", "")
    return made


async def flood(doors: list[httpx.AsyncClient], tenant: str) -> list[Attempt]:
    """SUBMITTERS at once, over both replicas, each EACH times without a pause."""

    async def work(door: httpx.AsyncClient) -> list[Attempt]:
        return [await submit(door, tenant, "one two three") for _ in range(EACH)]

    made = await asyncio.gather(*(work(door) for door in islice(cycle(doors), SUBMITTERS)))
    return [attempt for attempts in made for attempt in attempts]


def most_within(attempts: list[Attempt], span_s: float, amounts: dict[str, int]) -> int:
    """The largest sum of what was surely accepted within one span: sent and answered in it."""
    largest = 0
    by_answer = sorted(attempts, key=lambda attempt: attempt.answered_s)
    ends = [attempt.answered_s for attempt in by_answer]
    for first in attempts:
        inside = by_answer[: bisect_right(ends, first.sent_s + span_s)]
        largest = max(largest, sum(amounts[one.task] for one in inside if one.sent_s >= first.sent_s))
    return largest


async def used_by(doors: list[httpx.AsyncClient], accepted: list[Attempt]) -> dict[str, int]:
    """Tokens of each task, once all have ended."""

    async def ask(door: httpx.AsyncClient, task: str) -> tuple[str, int]:
        view: dict[str, Any] = {}
        while "usage" not in view:
            view = (await door.get(f"/v1/tasks/{task}", params={"wait": "30"})).json()
            assert view["status"] in ("pending", "processing", "completed"), view
        return task, view["usage"]["total_tokens"]

    return dict(await asyncio.gather(*(ask(door, one.task) for one, door in zip(accepted, cycle(doors), strict=False))))


def assert_explained(attempts: list[Attempt], code: str) -> None:
    refused = [attempt for attempt in attempts if attempt.status != 202]
    assert {(attempt.status, attempt.code) for attempt in refused} == {(429, code)}
    assert all(1 <= int(attempt.retry_after_s) <= 61 for attempt in refused)


async def test_requests_a_second_are_never_exceeded(doors: list[httpx.AsyncClient]) -> None:
    attempts = await flood(doors, "brisk")
    accepted = [attempt for attempt in attempts if attempt.status == 202]
    assert len(accepted) >= PER_S
    assert most_within(accepted, 1.0, {attempt.task: 1 for attempt in accepted}) <= PER_S
    assert_explained(attempts, "rate_limit_requests")


async def test_tokens_a_minute_are_never_exceeded(doors: list[httpx.AsyncClient]) -> None:
    """Though what a task does not use is given back meanwhile, and taken again."""
    attempts = await flood(doors, "frugal")
    accepted = [attempt for attempt in attempts if attempt.status == 202]
    used = await used_by(doors, accepted)
    assert PER_MIN / 10 < most_within(accepted, 60.0, used) <= PER_MIN
    assert_explained(attempts, "rate_limit_tokens")


async def test_a_task_that_is_larger_than_the_limit_is_told_so(doors: list[httpx.AsyncClient]) -> None:
    made = await submit(doors[0], "frugal", "x", max_tokens=PER_MIN)
    assert (made.status, made.code, made.retry_after_s) == (400, "tokens_over_limit", "")


@pytest.mark.timeout(240)
async def test_a_thousand_ends_of_all_kinds_leave_no_reservation(
    doors: list[httpx.AsyncClient], metered: Deployment, keys: Any
) -> None:
    """Cancelled while they wait and while they run, failed by the engine, taken from a worker that was killed, completed."""
    long, kinds = " ".join(["word"] * 40), ("cancel", "fail", "run", "cancel")
    ends: dict[str, str] = {}

    async def work(door: httpx.AsyncClient, number: int) -> None:
        for kind in kinds:
            asked = {"messages": "no list"} if kind == "fail" else {}
            made = await submit(door, "unlucky", long, 100, **asked)
            assert made.status == 202, made
            ends[made.task] = kind
            if kind == "cancel":
                await door.post(f"/v1/tasks/{made.task}/cancel")
            if number == SUBMITTERS // 2 and kind == "fail":
                os.kill(metered.processes()["inference"][0], signal.SIGKILL)

    await asyncio.gather(*(work(door, number) for number, door in enumerate(islice(cycle(doors), 250))))
    assert len(ends) == 1000

    async def settled() -> bool:
        return not await keys.exists(quota("unlucky", "reserved"), quota("unlucky", "looks"))

    await wait_until(settled, "every reservation is settled", timeout_s=180)
    asked = (door.get(f"/v1/tasks/{task}") for task, door in zip(ends, cycle(doors), strict=False))
    views = [answer.json() for answer in await asyncio.gather(*asked)]
    states = Counter((ends[view["id"]], view["status"]) for view in views)
    assert states["fail", "failed"] == 250
    assert states["run", "completed"] == 250
    assert states["cancel", "cancelled"] > 0
    assert not {end for _, end in states} & {"pending", "processing"}
