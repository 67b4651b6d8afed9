"""Whoever waits is told its place and when it starts, and a deadline that cannot be met is refused, at every door."""

import asyncio
import json
import statistics
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from typing import Any

import httpx
import pytest
import redis.asyncio

from services.cli.chat import ask
from shared.clock import now_ms
from tests.support.deployment import Deployment, deployment
from tests.support.websocket import PushClient

CONFIG = """
[pools.smol]
model = "echo-1"
engine = "echo"
slots = 4
[pools.smol.echo]
tokens_per_s = 10
"""
TEXT = " ".join(["word"] * 8)
"""0.8 s of the echo engine."""
TASKS = 40
"""8 s of all its slots: time to look at them twice, and to ask in vain, on a machine that does other things too."""
TENANTS = ("ann", "bob")


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployment(tmp_path_factory.mktemp("eta"), config=CONFIG) as running:
        yield running


@pytest.fixture
async def http(slow: Deployment) -> AsyncIterator[httpx.AsyncClient]:
    """Of a deployment that has run a few tasks, so it knows how long one takes."""
    async with httpx.AsyncClient(base_url=slow.http, timeout=30) as client:
        for id in await submit(client, 4):
            await ended(client, id)
        yield client


async def submit(http: httpx.AsyncClient, count: int, **more: Any) -> list[str]:
    """Of the tenants in turn. All at once: one after the other they might come as slowly as the engine ends them."""

    async def one(number: int) -> str:
        asked = {"input_text": TEXT, "tenant": TENANTS[number % 2], **more}
        answer = await http.post("/v1/tasks", json=asked)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    return await asyncio.gather(*map(one, range(count)))


async def view(http: httpx.AsyncClient, id: str) -> dict[str, Any]:
    found: dict[str, Any] = (await http.get(f"/v1/tasks/{id}")).json()
    return {**found, "seen_at_ms": now_ms()}


async def ended(http: httpx.AsyncClient, id: str) -> dict[str, Any]:
    while (found := (await http.get(f"/v1/tasks/{id}", params={"wait": "20"})).json())["status"] != "completed":
        assert found["status"] in ("pending", "processing"), found
    return dict(found)


async def test_places_fall_and_the_expected_start_is_right_within_a_factor_of_two(http: httpx.AsyncClient) -> None:
    ids = await submit(http, TASKS)
    told: dict[str, tuple[int, int]] = {}
    places: dict[str, list[int]] = {id: [] for id in ids}
    unstarted = ids
    while unstarted:
        views = await asyncio.gather(*(view(http, id) for id in unstarted))
        unstarted = [found["id"] for found in views if found["status"] == "pending"]
        for found in views:
            if "eta_ms" in found and found["waits_for"] == "slots":
                told.setdefault(found["id"], (found["seen_at_ms"], found["eta_ms"]))
                places[found["id"]].append(found["position"])
    ends = await asyncio.gather(*(ended(http, id) for id in ids))

    seen = {id: order for id, order in places.items() if len(order) > 1}
    assert len(seen) >= TASKS // 4
    for order in seen.values():
        assert_falling(order)
    right = []
    for end in ends:
        if end["id"] in told:
            at_ms, eta_ms = told[end["id"]]
            right.append(max(eta_ms, 100) / max(end["started_at_ms"] - at_ms, 100))
    assert len(right) >= TASKS // 4
    assert 0.5 <= statistics.median(right) <= 2, right


def assert_falling(order: list[int]) -> None:
    """One tenant's turn may come before that of another where it was expected behind it."""
    assert all(later <= earlier + 1 for earlier, later in pairwise(order)), order
    assert order[-1] <= order[0] + 1, order


async def test_a_deadline_that_cannot_be_met_is_refused_with_the_estimate(http: httpx.AsyncClient) -> None:
    ids = await submit(http, TASKS)
    answer = await http.post("/v1/tasks", json={"input_text": TEXT, "tenant": "ann", "expires_in": 0.5})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (429, "deadline_unmeetable", "expires_in")
    assert int(answer.headers["retry-after"]) >= 1
    assert "in about" in error["message"]
    patient = await http.post("/v1/tasks", json={"input_text": TEXT, "tenant": "ann", "expires_in": 60})
    assert patient.status_code == 202
    for id in [*ids, patient.json()["id"]]:
        await ended(http, id)


async def test_the_stream_door_replies_that_a_deadline_cannot_be_met(slow: Deployment, http: httpx.AsyncClient) -> None:
    ids = await submit(http, TASKS)
    client: Any = redis.asyncio.Redis.from_url(slow.redis, decode_responses=True)
    await client.xadd(
        "hr:requests", {"input_text": TEXT, "tenant": "ann", "expires_in": "0.5", "reply_to": "late", "task_id": "1"}
    )
    [(_, [(_, entry)])] = await client.xread({"hr:reply:late": "0"}, block=30_000)
    await client.aclose()
    reply = json.loads(entry["reply"])
    assert (reply["status"], reply["error"]["code"]) == ("failed", "deadline_unmeetable")
    for id in ids:
        await ended(http, id)


async def test_whoever_asks_sees_its_place_before_the_first_word(slow: Deployment, http: httpx.AsyncClient) -> None:
    ids = await submit(http, TASKS, tenant="default", priority="high")
    places: list[str] = []
    words: list[str] = []
    told = await ask(slow.http, None, TEXT, on_text=words.append, on_place=lambda text: places.append(text))
    assert told.text == "".join(words) == TEXT
    assert any("in line, about" in place for place in places), places
    assert places[-1] == ""
    for id in ids:
        await ended(http, id)


async def test_a_watcher_sees_its_place_until_it_starts(slow: Deployment, http: httpx.AsyncClient) -> None:
    ids = [*await submit(http, TASKS), *await submit(http, 1)]
    last = ids[-1]
    told: list[dict[str, Any]] = []
    async with PushClient(slow.ws) as page:
        await page.follow(last)
        while page.tasks[last].end is None:
            told += [message for message in await page.receive() if message["t"] == "st"]
    places = [message["info"]["pos"] for message in told if message["info"].get("pos")]
    assert len(places) >= 2
    assert_falling(places)
    assert told[-1]["status"] == "processing"
    for id in ids:
        await ended(http, id)
