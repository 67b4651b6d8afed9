"""The OpenAI API's routes with a worker that the test plays: what is submitted, and what answers say of who made them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import msgspec
import pytest

from services.inference.scripts import Hand, Owner, Running, start
from services.ingress.app import build
from services.ingress.attendance import Attendance
from services.ingress.settings import Settings
from services.scheduler.scripts import dispatch
from shared.bus import subscription
from shared.bus.client import Bus
from shared.bus.tail import Tail, Tails
from shared.cancel import Canceller
from shared.config import Config, Limits, Pool
from shared.keys import shard_keys
from shared.lifecycle import Lane
from shared.messages import decode_task
from shared.policy import Alias, Live, Message, Policy, Shadow, Target, Template
from tests.support import tasks
from tests.support.tails import tailing
from tests.support.waiting import wait_until

POOLS = {"smol": Pool(model=tasks.MODEL, engine="echo"), "big": Pool(model="echo-2", engine="echo", adapters=["poet"])}
ALIAS = Alias(
    targets=[Target(model=tasks.MODEL, weight=3, variant="canary"), Target(model="echo-2", weight=1e-9)],
    shadow=Shadow(model="echo-2", share=0.5),
)
CHAT: dict[str, Any] = {"model": tasks.MODEL, "messages": [{"role": "user", "content": "x"}]}
ROUTE = "/v1/chat/completions"
OURS = "x-headrace-"


@pytest.fixture
def config() -> Config:
    return Config(pools=POOLS, limits=Limits(backlog=100), live=Live(Policy(aliases={"chat": ALIAS})))


@pytest.fixture
async def http(bus: Bus, config: Config) -> AsyncIterator[httpx.AsyncClient]:
    async with tailing(bus) as tail:
        big = Tail(bus, pool="big", shard=0, partitions=1, replica="r1")
        attendance = Attendance(bus, Canceller(bus, config))
        app = build(bus, config, Settings(), Tails([tail, big]), attendance)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://ingress") as client:
            yield client


Play = Callable[[], Awaitable[tuple[Owner, Hand]]]


@pytest.fixture
def play(bus: Bus) -> Play:
    """Take the one task that comes, as the scheduler and a worker do."""

    async def take() -> tuple[Owner, Hand]:
        owner = await tasks.worker(bus)
        await wait_until(lambda: bus.commands.call("XLEN", tasks.SHARD.arrivals), "the task is submitted")
        await wait_until(lambda: admitted(bus), "it is admitted")
        assert (await dispatch(bus, tasks.SHARD, tasks.CONFIG)).handed_out == 1
        (hand,) = await tasks.hands(bus, owner)
        (verdict,) = await start(bus, owner, [hand])
        assert isinstance(verdict, Running)
        return owner, hand

    return take


async def admitted(bus: Bus) -> bool:
    return "queued" in await tasks.admit_all(bus)


async def answered(bus: Bus, play: Play, asking: Awaitable[httpx.Response], chunks: int = 0) -> httpx.Response:
    request = asyncio.ensure_future(asking)
    owner, hand = await play()
    assert await tasks.finish_one(bus, owner, tasks.ending(hand, 1, chunks)) == "ok"
    return await request


def ours(answer: httpx.Response) -> dict[str, str]:
    return {name.removeprefix(OURS): value for name, value in answer.headers.items() if name.startswith(OURS)}


# -- what an answer says


async def test_a_whole_answer_says_what_served_it(http: httpx.AsyncClient, bus: Bus, play: Play) -> None:
    answer = await answered(bus, play, http.post(ROUTE, json=CHAT))
    said = ours(answer)
    assert (await tasks.fields(bus, said.pop("task")))["state"] == "completed"
    assert said == {"model": tasks.MODEL, "worker": "w1", "attempt": "1"}


async def test_a_streamed_answer_says_it_too(http: httpx.AsyncClient, bus: Bus, play: Play) -> None:
    answer = await answered(bus, play, http.post(ROUTE, json={**CHAT, "stream": True}), chunks=2)
    said = ours(answer)
    del said["task"]
    assert said == {"model": tasks.MODEL, "worker": "w1", "attempt": "1"}
    assert answer.text.startswith('data: {"n":1}\n\ndata: {"n":2}\n\n')


async def test_an_answer_by_an_alias_names_the_branch_that_served_it(
    http: httpx.AsyncClient, bus: Bus, play: Play
) -> None:
    answer = await answered(bus, play, http.post(ROUTE, json={**CHAT, "model": "chat"}))
    said = ours(answer)
    assert (said["model"], said["variant"]) == (tasks.MODEL, "canary")
    stored = await tasks.fields(bus, said["task"])
    assert msgspec.json.decode(stored["body"]) == {**CHAT, "model": tasks.MODEL}
    task = decode_task(stored["spec"].encode())
    assert (task.model, task.alias, task.variant) == (tasks.MODEL, "chat", "canary")


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_is_picked_up_by_its_key_says_the_same(
    http: httpx.AsyncClient, bus: Bus, play: Play, stream: bool
) -> None:
    asked = {**CHAT, "model": "chat", "stream": stream, "user": "u"}
    key = {"idempotency-key": "k-1"}
    first = await answered(bus, play, http.post(ROUTE, json=asked, headers=key), chunks=2 * stream)
    again = await http.post(ROUTE, json=asked, headers=key)
    assert ours(again) == ours(first)
    assert ours(first)["worker"] == "w1"


async def test_a_refusal_names_no_task(http: httpx.AsyncClient) -> None:
    answer = await http.post(ROUTE, json={**CHAT, "model": "gpt-9"})
    assert (answer.status_code, ours(answer)) == (404, {})
    assert "Served here: echo-1, echo-2, poet, chat." in answer.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_whose_task_redis_has_lost_is_told(
    http: httpx.AsyncClient, bus: Bus, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscription, "SILENT_S", 0.05)
    asking = asyncio.create_task(http.post(ROUTE, json={**CHAT, "stream": stream}))
    await wait_until(lambda: bus.commands.call("XLEN", tasks.SHARD.arrivals), "the task is submitted")
    await bus.commands.call("FLUSHALL")
    answer = await asking
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "task_not_found")


# -- headers


async def test_headers_decide_lane_deadline_and_what_a_limit_means(
    http: httpx.AsyncClient, bus: Bus, play: Play
) -> None:
    headers = {f"{OURS}lane": "batch", f"{OURS}expires-in": "60", f"{OURS}on-limit": "wait", f"{OURS}cache": "off"}
    answer = await answered(bus, play, http.post(ROUTE, json=CHAT, headers=headers))
    stored = await tasks.fields(bus, ours(answer)["task"])
    task = decode_task(stored["spec"].encode())
    assert (task.lane, task.expires_in_s, task.waits, task.cache) == ("batch", 60, True, "off")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("lane", "urgent", "`x-headrace-lane` is 'urgent'"),
        ("lanes", "batch", "The header `x-headrace-lanes` is unknown; did you mean `x-headrace-lane`?"),
        ("expires-in", "0", "`x-headrace-expires-in` is 0.0"),
    ],
)
async def test_a_wrong_header_is_refused(http: httpx.AsyncClient, name: str, value: str, message: str) -> None:
    answer = await http.post(ROUTE, json=CHAT, headers={OURS + name: value})
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


async def test_a_header_says_who_pays_where_nobody_is_known(http: httpx.AsyncClient, bus: Bus, play: Play) -> None:
    request = asyncio.ensure_future(http.post(ROUTE, json=CHAT, headers={f"{OURS}tenant": "acme"}))
    await wait_until(lambda: bus.commands.call("ZCARD", tasks.SHARD.tenant("acme")), "it is acme's")
    owner, hand = await play()
    assert await tasks.finish_one(bus, owner, tasks.ending(hand, 1, 0)) == "ok"
    assert (await request).status_code == 200


# -- what is served


async def test_models_and_aliases_are_listed_with_what_an_alias_stands_for(
    http: httpx.AsyncClient, config: Config
) -> None:
    listed = {model["id"]: model for model in (await http.get("/v1/models")).json()["data"]}
    assert list(listed) == [tasks.MODEL, "echo-2", "poet", "chat"]
    assert {model["object"] for model in listed.values()} == {"model"}
    assert not {"targets", "parent"} & set(listed["echo-2"])
    assert listed["poet"]["parent"] == "echo-2"
    assert [target["variant"] for target in listed["chat"]["targets"]] == ["canary", "echo-2"]
    assert listed["chat"]["targets"][0]["share"] == 1.0
    assert "shadow" not in listed["chat"]
    config.live.policy = Policy()
    assert [model["id"] for model in (await http.get("/v1/models")).json()["data"]] == [tasks.MODEL, "echo-2", "poet"]


async def test_one_model_is_shown_as_it_is_listed_and_an_unknown_one_is_none(http: httpx.AsyncClient) -> None:
    for name in (tasks.MODEL, "poet", "chat"):
        listed = {model["id"]: model for model in (await http.get("/v1/models")).json()["data"]}
        assert (await http.get(f"/v1/models/{name}")).json() == listed[name]
    refused = await http.get("/v1/models/some%2Fmodel")
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")
    assert "`some/model` does not exist" in refused.json()["error"]["message"]


async def test_templates_are_listed_with_what_they_need(http: httpx.AsyncClient, config: Config) -> None:
    greet = Template(
        messages=[Message(role="user", content="Say {{ input_text }} to {{ context.who }}.")],
        description="Greets",
        model="chat",
        options={"temperature": 0.1},
    )
    config.live.policy = Policy(templates={"greet": greet})
    plain, listed = (await http.get("/v1/templates")).json()["data"]
    assert (plain["id"], plain["variables"]) == ("default", ["input_text"])
    assert listed == {
        "id": "greet",
        "object": "template",
        "description": "Greets",
        "model": "chat",
        "variables": ["input_text", "context.who"],
        "messages": [{"role": "user", "content": "Say {{ input_text }} to {{ context.who }}."}],
        "options": {"temperature": 0.1},
    }


async def test_a_page_of_a_browser_may_read_what_served_it(http: httpx.AsyncClient) -> None:
    answer = await http.get("/v1/models", headers={"origin": "http://localhost:3000"})
    exposed = answer.headers["access-control-expose-headers"].split(", ")
    assert {f"{OURS}{name}" for name in ("task", "model", "variant", "worker", "attempt", "cache")} <= {*exposed}


# -- fallbacks


async def test_a_request_with_a_key_stays_with_its_pool(http: httpx.AsyncClient, bus: Bus, config: Config) -> None:
    """With a fallback, a repeat that found room by then made a second task in the first pool."""
    config.live.policy = Policy(aliases={"chat": Alias(targets=[Target(model=tasks.MODEL)], fallbacks=["echo-2"])})
    await bus.commands.call("HSET", tasks.SHARD.waiting, f"l:{Lane.NORMAL}", config.limits.backlog)
    asked: dict[str, Any] = {"json": {"body": {**CHAT, "model": "chat"}}, "headers": {"idempotency-key": "k-2"}}
    refused = await http.post("/v1/tasks", **asked)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "backlog_full")
    await bus.commands.call("DEL", tasks.SHARD.waiting)
    first = (await http.post("/v1/tasks", **asked)).json()["id"]
    assert first.startswith("smol.")
    assert (await http.post("/v1/tasks", **asked)).json()["id"] == first


# -- shadow


@pytest.fixture
def whole_shadow(config: Config) -> None:
    config.live.policy = Policy(
        aliases={"chat": Alias(targets=[Target(model=tasks.MODEL)], shadow=Shadow(model="echo-2"))}
    )


@pytest.mark.usefixtures("whole_shadow")
async def test_a_shadow_is_submitted_beside_the_task_and_nobody_is_told(
    http: httpx.AsyncClient, bus: Bus, play: Play
) -> None:
    answer = await answered(bus, play, http.post(ROUTE, json={**CHAT, "model": "chat"}))
    shard = shard_keys("big", 0)
    await wait_until(lambda: bus.commands.call("ZCARD", shard.tenant("shadow")), "the copy is submitted")
    (copy_id,) = await bus.commands.call("ZRANGE", shard.tenant("shadow"), 0, -1)
    spec, body = await bus.commands.call("HMGET", shard.task(copy_id.decode()), "spec", "body")
    task = decode_task(spec)
    assert (task.shadow_of, task.model, task.lane, task.attached) == (ours(answer)["task"], "echo-2", "batch", False)
    assert msgspec.json.decode(body) == {**CHAT, "model": "echo-2"}
    assert copy_id.decode() not in answer.text + str(answer.headers)
