"""Who may ask, and whose tasks they see: with keys, without, and with both."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from services.ingress.app import build
from services.ingress.attendance import Attendance
from services.ingress.auth import Auth
from services.ingress.settings import Settings
from shared.bus.client import Bus
from shared.bus.tail import Tails
from shared.cancel import Canceller
from shared.config import Config
from shared.errors import ConfigError
from shared.messages import Task, encode
from shared.payer import digest_of
from shared.policy import Key, Live, Policy, Tenant
from tests.support import tasks
from tests.support.tails import tailing

ACME, BETA, SLOW = "hr-acme", "hr-beta", "hr-slow"
KEYS = {
    "web": Key(tenant="acme", sha256=digest_of(ACME)),
    "other": Key(tenant="beta", sha256=digest_of(BETA)),
    "slow": Key(tenant="acme", sha256=digest_of(SLOW), requests_per_s=0.001),
}
BODY = {"input_text": "hello", "model": tasks.MODEL}
OF_ACME, OF_BETA = {"authorization": f"Bearer {ACME}"}, {"authorization": f"Bearer {BETA}"}

Door = Callable[[Policy], Any]


def config(policy: Policy) -> Config:
    return Config(pools=tasks.CONFIG.pools, live=Live(policy))


@pytest.fixture
async def door(bus: Bus) -> AsyncIterator[Door]:
    """The HTTP door with a policy of the test's own."""
    async with tailing(bus) as tail:

        @asynccontextmanager
        async def with_policy(policy: Policy) -> AsyncIterator[httpx.AsyncClient]:
            deployed = config(policy)
            app = build(bus, deployed, Settings(), Tails([tail]), Attendance(bus, Canceller(bus, deployed)))
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://ingress") as client:
                yield client

        yield with_policy


async def submit(client: httpx.AsyncClient, headers: dict[str, str], **fields: Any) -> str:
    answer = await client.post("/v1/tasks", json={**BODY, **fields}, headers=headers)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


async def tenant_of(bus: Bus, task_id: str) -> str:
    return (await tasks.fields(bus, task_id))["tenant"]


ROUTES = [
    ("POST", "/v1/tasks"),
    ("GET", "/v1/tasks"),
    ("GET", f"/v1/tasks/smol.0.0.0.{'0' * 26}"),
    ("POST", f"/v1/tasks/smol.0.0.0.{'0' * 26}/cancel"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("GET", "/v1/dead"),
    ("POST", "/v1/dead/requeue"),
    ("POST", "/v1/dead/drop"),
    ("GET", "/v1/dead/smol.0:1-0"),
    ("DELETE", "/v1/dead/smol.0:1-0"),
    ("POST", "/v1/dead/smol.0:1-0/requeue"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_no_route_answers_without_a_key_where_one_is_required(door: Door, method: str, path: str) -> None:
    async with door(Policy(keys=KEYS)) as client:
        for headers in (
            {},
            {"authorization": "Bearer hr-wrong"},
            {"authorization": f"Basic {ACME}"},
            {"x-api-key": "x"},
        ):
            answer = await client.request(method, path, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
            assert answer.headers["www-authenticate"] == "Bearer"
            assert "Authorization: Bearer" in answer.json()["error"]["message"]


async def test_probes_need_no_key(door: Door) -> None:
    async with door(Policy(keys=KEYS)) as client:
        assert (await client.get("/healthz")).status_code == 200


@pytest.mark.parametrize("headers", [OF_ACME, {"x-api-key": ACME}, {"authorization": f"bearer  {ACME}"}])
async def test_the_tenant_is_the_keys(door: Door, bus: Bus, headers: dict[str, str]) -> None:
    async with door(Policy(keys=KEYS)) as client:
        assert await tenant_of(bus, await submit(client, headers)) == "acme"
        assert await tenant_of(bus, await submit(client, headers, tenant="acme")) == "acme"


@pytest.mark.parametrize("how", ["header", "field"])
async def test_nobody_names_another_tenant_than_the_keys(door: Door, how: str) -> None:
    async with door(Policy(keys=KEYS)) as client:
        header = {"x-headrace-tenant": "beta"} if how == "header" else {}
        field = {"tenant": "beta"} if how == "field" else {}
        answer = await client.post("/v1/tasks", json={**BODY, **field}, headers=OF_ACME | header)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "tenant_not_yours")


async def test_without_keys_whoever_asks_says_who_it_is(door: Door, bus: Bus) -> None:
    async with door(Policy()) as client:
        anything = {"authorization": "Bearer sk-none"}
        assert await tenant_of(bus, await submit(client, anything)) == "default"
        assert await tenant_of(bus, await submit(client, {"x-headrace-tenant": "acme"})) == "acme"
        assert await tenant_of(bus, await submit(client, {"x-headrace-tenant": "acme"}, tenant="beta")) == "beta"
        answer = await client.post("/v1/tasks", json=BODY, headers={"x-headrace-tenant": "a b"})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "x-headrace-tenant")


async def test_where_keys_are_not_required_one_that_is_sent_must_fit(door: Door, bus: Bus) -> None:
    async with door(Policy(keys=KEYS, keys_required=False)) as client:
        assert await tenant_of(bus, await submit(client, {})) == "default"
        assert await tenant_of(bus, await submit(client, OF_ACME)) == "acme"
        assert (await client.get("/v1/tasks", headers={"authorization": "Bearer x"})).status_code == 401


async def test_tasks_of_others_are_not_there(door: Door, bus: Bus) -> None:
    async with door(Policy(keys=KEYS)) as client:
        own, other = await submit(client, OF_ACME, session="s"), await submit(client, OF_BETA, session="s")
        for path in ("/v1/tasks", "/v1/tasks?session=s"):
            listed = (await client.get(path, headers=OF_ACME)).json()["data"]
            assert [(view["id"], view["tenant"]) for view in listed] == [(own, "acme")]
        assert (await client.get(f"/v1/tasks/{own}", headers=OF_ACME)).status_code == 200
        for method, path in (("GET", f"/v1/tasks/{other}"), ("POST", f"/v1/tasks/{other}/cancel")):
            answer = await client.request(method, path, headers=OF_ACME)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "task_not_found")
        assert (await tasks.fields(bus, other))["state"] == "pending"
        assert (await client.post(f"/v1/tasks/{own}/cancel", headers=OF_ACME)).json()["status"] == "cancelled"


async def test_without_keys_a_tenant_lists_its_own_and_finds_all(door: Door) -> None:
    async with door(Policy()) as client:
        own, other = await submit(client, {"x-headrace-tenant": "acme"}), await submit(client, {})
        listed = (await client.get("/v1/tasks", headers={"x-headrace-tenant": "acme"})).json()["data"]
        assert [view["id"] for view in listed] == [own]
        assert (await client.get(f"/v1/tasks/{other}", headers={"x-headrace-tenant": "acme"})).status_code == 200


async def bury(bus: Bus, tenant: str, *, kind: str = "task") -> str:
    """A dead letter, as the scripts and the outbox write them."""
    spec = encode(Task(route="/v1/chat/completions", model=tasks.MODEL, tenant=tenant))
    whose = ("spec", spec, "body", tasks.BODY) if kind == "task" else ("tenant", tenant)
    fields = ("k", kind, "t", tasks.new_id(), "code", "x", "reason", "y", *whose)
    return f"smol.0:{(await bus.commands.call('XADD', tasks.SHARD.dead, '*', *fields)).decode()}"


async def test_dead_letters_of_others_are_not_there(door: Door, bus: Bus) -> None:
    own = [await bury(bus, "acme"), await bury(bus, "acme", kind="reply")]
    others = [await bury(bus, "beta"), await bury(bus, "beta", kind="reply"), await bury(bus, "", kind="reply")]
    async with door(Policy(keys=KEYS)) as client:
        listed = (await client.get("/v1/dead", headers=OF_ACME)).json()["data"]
        assert sorted(view["id"] for view in listed) == sorted(own)
        for letter in others:
            for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/requeue")):
                answer = await client.request(method, f"/v1/dead/{letter}{path}", headers=OF_ACME)
                assert (answer.status_code, answer.json()["error"]["code"]) == (404, "dead_letter_not_found")
        assert (await client.get(f"/v1/dead/{own[0]}", headers=OF_ACME)).json()["task"]
        assert (await client.post("/v1/dead/drop", headers=OF_ACME)).json()["handled"] == 2
    assert await bus.commands.call("XLEN", tasks.SHARD.dead) == len(others)


async def test_a_refusal_for_a_rate_tells_when_to_come_again(door: Door) -> None:
    """Of the key first, then of its tenant."""
    async with door(Policy(keys=KEYS, tenants={"acme": Tenant(tokens_per_min=300)})) as client:
        slow = {"authorization": f"Bearer {SLOW}"}
        await submit(client, slow, max_tokens=10)
        refused = await client.post("/v1/tasks", json=BODY | {"max_tokens": 10}, headers=slow)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_requests")
        assert 900 < int(refused.headers["retry-after"]) <= 1021
        limit = (refused.headers["x-ratelimit-limit-requests"], refused.headers["x-ratelimit-remaining-requests"])
        assert limit == ("1", "0")
        refused = await client.post("/v1/tasks", json=BODY | {"max_tokens": 289}, headers=OF_ACME)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_tokens")
        assert 1 <= int(refused.headers["retry-after"]) <= 61
        never = await client.post("/v1/tasks", json=BODY | {"max_tokens": 5000}, headers=OF_ACME)
        assert (never.status_code, never.json()["error"]["code"]) == (400, "tokens_over_limit")
        assert "retry-after" not in never.headers


async def test_a_reload_holds_for_the_next_request(door: Door) -> None:
    none: Any = {"type": "http", "headers": [(b"authorization", f"Bearer {ACME}".encode())]}
    deployed = config(Policy(keys=KEYS))
    auth = Auth(deployed, "127.0.0.1")
    assert [auth.payer(none).tenant for _ in range(2)] == ["acme", "acme"]
    deployed.live.policy = Policy(keys={"web": Key(tenant="gamma", sha256=digest_of(ACME))})
    assert auth.payer(none).tenant == "gamma"


def test_a_door_that_others_reach_does_not_open_without_keys() -> None:
    with pytest.raises(ConfigError, match="headrace keys new"):
        Auth(config(Policy()), "0.0.0.0")
    Auth(config(Policy(keys=KEYS)), "0.0.0.0")
    Auth(config(Policy(keys_required=False)), "0.0.0.0")
