"""Webhooks of real services, to a real receiver that fails on command: each event arrives, signed, whatever broke."""

import asyncio
import os
import signal
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from redis.asyncio import Redis

from shared import keys
from shared.messages import Delivery, decode_delivery
from tests.flow.test_batches import CHAT, line
from tests.flow.test_task_life import MODEL, chat
from tests.support.deployment import Deployment, deployment, rewrite
from tests.support.processes import holder_of_port
from tests.support.receiver import HANG, Hit, Receiver, answer, write_secret
from tests.support.waiting import wait_until

CONFIG = """
keys_required = false

[pools.smol]
model = "{model}"
engine = "echo"
[pools.smol.echo]
tokens_per_s = 50.0
faults = true
[limits]
failures = 0
[tenants.acme]
webhook_secret_file = "{secret}"
[webhooks]
allow_private = ["127.0.0.0/8", "::1/128"]
ports = [{ports}]
[webhooks.orders]
url = "{orders}"
secret_file = "{secret}"
[webhooks.dead]
url = "{dead}"
secret_file = "{secret}"
[webhooks.tls]
url = "{tls}"
secret_file = "{secret}"
"""


class World:
    """The deployment, and three receivers that its endpoints name."""

    def __init__(self, running: Deployment, receivers: dict[str, Receiver]) -> None:
        self.deployment, self.receivers = running, receivers

    def __getitem__(self, name: str) -> Receiver:
        return self.receivers[name]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the secret. It is written once: whoever reads it meanwhile would find half of it."""
    made = tmp_path_factory.mktemp("webhooks")
    write_secret(made)
    return made


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[Deployment]:
    """The endpoints lead nowhere at first: the policy follows its file."""
    (folder / "up").mkdir()
    replicas = "ingress=1,scheduler=1,inference=1,notifier=2"
    nowhere = "http://localhost:1/"
    with deployment(folder / "up", "--replicas", replicas, config=written(folder, nowhere, nowhere, nowhere)) as up:
        yield up


def written(folder: Path, orders: str, dead: str, tls: str, port: int = 1) -> str:
    return CONFIG.format(model=MODEL, secret=folder / "secret", orders=orders, dead=dead, tls=tls, ports=f"443, {port}")


@pytest.fixture
async def world(running: Deployment, folder: Path, redis: Any) -> AsyncIterator[World]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("localhost").configure_cert(context)
    async with Receiver() as orders, Receiver() as dead, Receiver(tls=context) as tls:
        rewrite(running, written(folder, orders.url, dead.url, tls.url, orders.port))
        os.kill(running.supervisor, signal.SIGHUP)
        await wait_until(lambda: takes(running), "every replica has taken the file")
        yield World(running, {"orders": orders, "dead": dead, "tls": tls})
    await wait_until(lambda: forgotten(redis), "no delivery is left for the next test", timeout_s=60)


async def forgotten(redis: Any) -> bool:
    """What was under way when the receivers went is put aside, to come again: so this is asked until nothing is."""
    await redis.delete(keys.WEBHOOKS_LATER, keys.WEBHOOKS_GONE)
    return await drained(redis) and not await redis.exists(keys.WEBHOOKS_LATER)


async def takes(running: Deployment) -> bool:
    """One that another test has killed may not be back yet."""
    urls = [*running.replicas["ingress"], *running.replicas["notifier"]]
    async with httpx.AsyncClient(timeout=30) as client:
        try:
            texts = [(await client.get(f"{base}/metrics")).text for base in urls]
        except httpx.TransportError:
            return False
    return all(taken_at(text) >= (running.folder / "headrace.toml").stat().st_ctime - 0.001 for text in texts)


def taken_at(metrics: str) -> float:
    [line] = [line for line in metrics.splitlines() if line.startswith("hr_config_taken_timestamp_seconds ")]
    return float(line.split()[1])


@pytest.fixture
async def http(running: Deployment) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=running.http, timeout=30) as client:
        yield client


@pytest.fixture
async def redis(running: Deployment) -> AsyncIterator[Any]:
    client: Any = Redis.from_url(running.redis)
    yield client
    await client.aclose()


async def submit(http: httpx.AsyncClient, text: str = "one two", **fields: Any) -> str:
    sent = await http.post("/v1/tasks", json={"body": chat(text), "webhook": "orders", **fields})
    assert sent.status_code == 202, sent.text
    return str(sent.json()["id"])


async def waiting(redis: Any) -> list[Delivery]:
    return [decode_delivery(delivery) for delivery in await redis.zrange(keys.WEBHOOKS_LATER, 0, -1)]


async def letters(http: httpx.AsyncClient) -> list[dict[str, Any]]:
    page: dict[str, Any] = (await http.get("/v1/dead")).json()
    return [letter for letter in page["data"] if letter["kind"] == "webhook"]


async def drained(redis: Any) -> bool:
    [group] = await redis.xinfo_groups(keys.WEBHOOKS)
    return not await redis.xlen(keys.WEBHOOKS) and not group["pending"]


# -- every door, every end


async def test_every_door_can_ask_for_one_and_the_public_library_verifies_it(
    world: World, http: httpx.AsyncClient, redis: Any
) -> None:
    url = world["orders"].url
    ids = {
        await submit(http, metadata={"n": 1}),
        await submit(http, tenant="acme", webhook=url + "?own"),
        str((await http.post("/v1/tasks", json={"input_text": "Hi", "webhook": "orders"})).json()["id"]),
        str(
            (
                await http.post("/v1/chat/completions", json=chat("Hi"), headers={"x-headrace-webhook": "orders"})
            ).headers["x-headrace-task"]
        ),
    }
    await redis.xadd(keys.REQUESTS, {"input_text": "Hi", "webhook": "orders", "task_id": "theirs"})
    hits = await world["orders"].got(5)
    told = {event["data"]["id"]: event["data"] for event in (hit.verified() for hit in hits)}
    assert ids < told.keys()
    assert len(told) == 5
    assert {data["status"] for data in told.values()} == {"completed"}
    assert all(data["result"]["choices"][0]["message"]["content"] for data in told.values())
    assert sum(data.get("task_id") == "theirs" for data in told.values()) == 1
    assert [data["metadata"] for data in told.values() if "metadata" in data] == [{"n": 1}]
    assert sum(hit.path == "/hook?own" for hit in hits) == 1
    await wait_until(lambda: drained(redis), "nothing is left of them")


async def test_every_end_is_told(world: World, http: httpx.AsyncClient) -> None:
    ids = {
        await submit(http): "task.completed",
        await submit(http, "!error 400"): "task.failed",
        await submit(http, "word " * 1000, expires_in=0.5): "task.expired",
    }
    cancelled = await submit(http, "word " * 1000)
    ids[cancelled] = "task.cancelled"
    await http.post(f"/v1/tasks/{cancelled}/cancel")
    hits = await world["orders"].got(len(ids))
    assert {event["data"]["id"]: event["type"] for event in (hit.verified() for hit in hits)} == ids


async def test_the_end_of_a_batch_is_told_as_its_clients_see_it(world: World, http: httpx.AsyncClient) -> None:
    """Of one that runs, one that is cancelled and one of which nothing can run; a batch without a webhook tells nothing."""
    lines = [line(n, "Hi") for n in range(3)]
    running = await batch(http, lines, webhook="orders")
    failed = await batch(http, [b"no json"], webhook="orders")
    cancelled = await batch(http, [line(n, "word " * 1000) for n in range(3)], webhook="orders")
    await http.post(f"/v1/batches/{cancelled}/cancel")
    await batch(http, lines)
    hits = await world["orders"].got(3, timeout_s=60)
    told = {hit.verified()["data"]["id"]: hit.verified() for hit in hits}
    ends = {running: "batch.completed", failed: "batch.failed", cancelled: "batch.cancelled"}
    assert {id: event["type"] for id, event in told.items()} == ends
    for id, event in told.items():
        assert event["data"] == (await http.get(f"/v1/batches/{id}")).json()
    assert told[running]["data"]["request_counts"]["completed"] == 3
    assert len({hit.id for hit in hits}) == 3


async def batch(http: httpx.AsyncClient, lines: list[bytes], **more: Any) -> str:
    form = {"file": ("in.jsonl", b"\n".join(lines))}
    file = (await http.post("/v1/files", files=form, data={"purpose": "batch"})).json()
    asked = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h", **more}
    made = await http.post("/v1/batches", json=asked)
    assert made.status_code == 200, made.text
    return str(made.json()["id"])


@pytest.mark.parametrize("webhook", ["nobody", "https://a.example/", "http://10.0.0.1:443/"])
async def test_what_may_not_be_named_is_refused_at_the_door(
    running: Deployment, http: httpx.AsyncClient, webhook: str
) -> None:
    refused = await http.post("/v1/tasks", json={"body": chat("Hi"), "webhook": webhook})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "webhook")


# -- receivers that fail


async def test_an_error_is_tried_again_under_the_same_id(world: World, http: httpx.AsyncClient) -> None:
    orders = world["orders"]
    orders.says = lambda hit: answer(500 if len(orders.hits) == 1 else 200)
    await submit(http)
    first, second = await orders.got(2)
    assert first.id == second.id
    assert first.verified() == second.verified()


async def test_who_hangs_or_has_wrong_tls_delays_nobody(world: World, http: httpx.AsyncClient, redis: Any) -> None:
    world["dead"].says = lambda hit: HANG
    for _ in range(40):
        await submit(http, webhook="dead")
    bad = await submit(http, webhook="tls")
    good = {await submit(http) for _ in range(10)}
    hits = await world["orders"].got(10)
    assert {hit.verified()["data"]["id"] for hit in hits} == good

    async def refused() -> bool:
        return [delivery.tried for delivery in await waiting(redis) if delivery.task == bad][:1] >= [1]

    await wait_until(refused, "wrong TLS is a failure, and it is tried again")
    assert world["tls"].hits == []


async def test_who_is_gone_makes_dead_letters_that_can_be_requeued(
    world: World, http: httpx.AsyncClient, redis: Any
) -> None:
    orders = world["orders"]
    orders.says = lambda hit: answer(410)
    task = await submit(http)
    await wait_until(lambda: letters(http), "there is a dead letter")
    [letter] = await letters(http)
    assert (letter["task"], letter["code"]) == (task, "webhook_gone")
    orders.says = lambda hit: answer(204)
    assert (await http.post(f"/v1/dead/{letter['id']}/requeue")).status_code == 202
    first, second = await orders.got(2)
    assert first.id == second.id
    assert second.verified()["data"]["id"] == task
    await wait_until(lambda: drained(redis), "nothing is left of it")
    assert await letters(http) == []


# -- replicas that die


async def test_a_notifier_killed_between_request_and_acknowledgement_is_followed_by_one_that_sends_the_same_id(
    world: World, http: httpx.AsyncClient, redis: Any
) -> None:
    orders = world["orders"]
    killed: list[int] = []

    def kill_the_first(hit: Hit) -> bytes:
        if not killed:
            killed.append(holder_of_port(orders.peers[-1]))
            os.kill(killed[0], signal.SIGKILL)
            return HANG
        return answer(204)

    orders.says = kill_the_first
    task = await submit(http)
    first, second = (await orders.got(2, timeout_s=60))[:2]
    assert first.id == second.id
    assert second.verified()["data"]["id"] == task
    assert killed[0] not in world.deployment.processes()["notifier"]
    await wait_until(lambda: drained(redis), "nothing is left of it")


async def test_a_burst_with_notifiers_killed_in_turn_loses_no_event(
    world: World, http: httpx.AsyncClient, redis: Any
) -> None:
    orders, burst = world["orders"], 300
    sending = asyncio.gather(*(submit(http, "Hi") for _ in range(burst)))
    for count in (30, 100):
        await orders.got(count, timeout_s=60)
        pids = world.deployment.processes()["notifier"]
        os.kill(pids[0], signal.SIGKILL)

        def replaced(gone: int = pids[0]) -> bool:
            now = world.deployment.processes()["notifier"]
            return gone not in now and len(now) == 2

        await wait_until(replaced, "it is started again", 30)
    ids = set(await sending)

    def all_told() -> bool:
        return {event["data"]["id"] for event in orders.events} >= ids

    await wait_until(all_told, "each end is told", 60)
    by_task: dict[str, set[str]] = {}
    for hit in orders.hits:
        by_task.setdefault(hit.verified()["data"]["id"], set()).add(hit.id)
    assert all(len(found) == 1 for found in by_task.values())
    await wait_until(lambda: drained(redis), "nothing is left of them", 30)
