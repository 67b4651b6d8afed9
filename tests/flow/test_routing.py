"""Aliases, fallbacks, shadows and templates on a whole deployment: three pools, two replicas of ingress, one file that changes."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from itertools import cycle
from typing import Any

import httpx
import pytest
import redis.asyncio

from tests.support.deployment import Deployment, deployment, rewrite
from tests.support.waiting import wait_until
from tests.support.websocket import PushClient

POOLS = """
[pools.a]
model = "model-a"
engine = "echo"

[pools.b]
model = "model-b"
engine = "echo"

[pools.narrow]
model = "model-narrow"
engine = "echo"
slots = 1
[pools.narrow.echo]
first_token_ms = 30_000

[limits]
backlog = 20

[tenants.trial]
weight = 0.1

[aliases.split]
targets = [{ model = "model-a", weight = 3 }, { model = "model-b", weight = 1, variant = "canary" }]

[aliases.overflowing]
targets = [{ model = "model-narrow" }]
fallbacks = ["model-b"]

[aliases.copied]
targets = [{ model = "model-a" }]
shadow = { model = "model-b", tenant = "trial" }

[templates.greet]
messages = [
  { role = "system", content = "Be brief." },
  { role = "user", content = "{{ input_text }} {{ context.who | upper }}" },
]
model = "model-a"
"""
MOVING = """
[aliases.moving]
targets = [{{ model = "model-{}" }}]
"""


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("routed")
    with deployment(folder, "--replicas", "ingress=2", config=POOLS + MOVING.format("a")) as running:
        yield running


@pytest.fixture
async def doors(routed: Deployment) -> AsyncIterator[list[httpx.AsyncClient]]:
    """Both replicas of ingress."""
    clients = [httpx.AsyncClient(base_url=url, timeout=30) for url in routed.replicas["ingress"]]
    yield clients
    for client in clients:
        await client.aclose()


@pytest.fixture
async def store(routed: Deployment) -> AsyncIterator[Any]:
    client: Any = redis.asyncio.Redis.from_url(routed.redis, decode_responses=True, socket_timeout=60)
    yield client
    await client.aclose()


async def ask(door: httpx.AsyncClient, model: str, text: str = "one two", **more: Any) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": text}], **more}
    answer = await door.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer


def text_of(answer: httpx.Response) -> str:
    text: str = answer.json()["choices"][0]["message"]["content"]
    return text


async def test_users_are_split_by_weight_and_keep_their_branch_at_every_replica(doors: list[httpx.AsyncClient]) -> None:
    seen: Counter[str] = Counter()
    for user in range(120):
        answers = [await ask(door, "split", user=f"user-{user}") for door in doors]
        (variant,) = {answer.headers["x-headrace-variant"] for answer in answers}
        models = {"model-a": "model-a", "canary": "model-b"}
        assert {answer.headers["x-headrace-model"] for answer in answers} == {models[variant]}
        assert {answer.json()["model"] for answer in answers} == {models[variant]}
        seen[variant] += 1
    assert 15 < seen["canary"] < 45  # a quarter; 3 standard deviations of these very users


async def test_what_the_first_pool_cannot_take_is_served_by_the_next_one(
    doors: list[httpx.AsyncClient], store: Any
) -> None:
    turn = cycle(doors)
    tasks = []
    for number in range(30):
        asked = {"model": "overflowing", "messages": [{"role": "user", "content": f"n{number}"}]}
        submitted = await next(turn).post("/v1/tasks", json={"body": asked, "lane": "interactive"})
        assert submitted.status_code == 202, submitted.text
        tasks.append(submitted.json()["id"])
    pools = Counter(task.partition(".")[0] for task in tasks)
    assert pools["narrow"] >= 20  # the whole of its backlog, which only this lane may fill
    assert pools["b"] >= 5
    for task in tasks:
        if task.startswith("b."):
            done = (await doors[0].get(f"/v1/tasks/{task}", params={"wait": "20"})).json()
            assert (done["status"], done["model"]) == ("completed", "model-b")
    served = await ask(doors[0], "overflowing", "and a call that waits for its answer")
    assert (served.headers["x-headrace-model"], text_of(served)) == ("model-b", "and a call that waits for its answer")
    for task in tasks:
        if task.startswith("narrow."):
            await doors[1].post(f"/v1/tasks/{task}/cancel")


async def test_a_shadow_is_run_and_nobody_gets_its_answer(doors: list[httpx.AsyncClient], store: Any) -> None:
    body = {"model": "copied", "messages": [{"role": "user", "content": "once and again"}]}
    asked = {"body": body, "session": "s-shadow", "reply_to": "shadowed", "task_id": "shadow-1"}
    task = (await doors[0].post("/v1/tasks", json=asked)).json()["id"]
    index = "hr:{b.0}:tenant:trial"
    await wait_until(lambda: store.zcard(index), "the copy is submitted")
    (copy,) = await store.zrange(index, 0, -1)

    async def state() -> bool:
        return bool(await store.hget(f"hr:{{b.0}}:task:{copy}", "state") == "completed")

    await wait_until(state, "the copy has been run")
    spec = json.loads(await store.hget(f"hr:{{b.0}}:task:{copy}", "spec"))
    assert (spec["shadow_of"], spec["lane"], spec["model"]) == (task, "batch", "model-b")
    assert (await doors[0].get(f"/v1/tasks/{task}", params={"wait": "20"})).json()["model"] == "model-a"
    await wait_until(lambda: store.xlen("hr:reply:shadowed"), "the answer is sent")
    replies = await store.xrange("hr:reply:shadowed")
    assert [reply["id"] for _, reply in replies] == [task]
    listed = (await doors[1].get("/v1/tasks", params={"session": "s-shadow"})).json()["data"]
    assert [each["id"] for each in listed] == [task]
    assert copy not in (await doors[1].get("/v1/tasks", params={"limit": "100"})).text
    (told,) = (await doors[1].get("/v1/tasks", headers={"x-headrace-tenant": "trial"})).json()["data"]
    assert (told["id"], told["shadow_of"]) == (copy, task)


async def test_an_alias_moves_under_load_and_every_call_is_answered(
    routed: Deployment, doors: list[httpx.AsyncClient]
) -> None:
    answered: Counter[tuple[int, str]] = Counter()
    stop = asyncio.Event()

    async def call(name: int) -> None:
        number, door = 0, name % len(doors)
        while not stop.is_set():
            number += 1
            answer = await ask(doors[door], "moving", f"{name} {number}")
            assert text_of(answer) == f"{name} {number}"
            answered[door, answer.headers["x-headrace-model"]] += 1

    def everywhere(model: str) -> bool:
        """Each replica looks at the file on its own. A call that failed is told at the end."""
        return all(answered[door, model] >= 25 for door in range(len(doors))) or any(call.done() for call in calls)

    calls = [asyncio.create_task(call(name)) for name in range(6)]
    try:
        await wait_until(lambda: everywhere("model-a"), "calls are answered")
        rewrite(routed, POOLS + MOVING.format("b"))
        await wait_until(lambda: everywhere("model-b"), "the alias moves", 30)
    finally:
        stop.set()
        await asyncio.gather(*calls)
    for door in doors:
        assert (await ask(door, "moving")).headers["x-headrace-model"] == "model-b"


async def test_a_template_is_filled_in_at_every_door(
    routed: Deployment, doors: list[httpx.AsyncClient], store: Any
) -> None:
    flat = {"input_text": "hello", "template_id": "greet", "reply_to": "greeted"}
    words: dict[str, Any] = {**flat, "context": {"who": "ann"}}
    task = (await doors[0].post("/v1/tasks", json={**words, "session": "s-greet"})).json()["id"]
    async with PushClient(routed.ws) as page:
        await page.follow(task)
        await page.until_end(task)
    assert page.tasks[task].text == "hello ANN"
    await store.xadd("hr:requests", {**flat, "context": '{"who":"bob"}', "task_id": "flat"})
    await store.xadd("hr:requests", {"task": json.dumps({**words, "task_id": "json"})})
    await store.xadd("hr:requests", {**flat, "task_id": "lacking"})
    await wait_until(lambda: has(store, "hr:reply:greeted", 4), "all are answered")
    replies = {reply.get("task_id"): reply for _, reply in await store.xrange("hr:reply:greeted")}
    assert (replies["flat"]["text"], replies["json"]["text"]) == ("hello BOB", "hello ANN")
    error = json.loads(replies["lacking"]["reply"])["error"]
    assert (error["code"], error["param"]) == ("template_failed", "context.who")
    refused = await doors[1].post("/v1/tasks", json={**flat, "template_id": "great"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "template_not_found")
    assert "did you mean `greet`?" in refused.json()["error"]["message"]


async def has(store: Any, stream: str, count: int) -> bool:
    return bool(await store.xlen(stream) >= count)
