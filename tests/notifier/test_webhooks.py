"""Deliveries on a real Redis, to a real receiver: each arrives at least once with one id, or is a dead letter, and none waits
for another's receiver."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from msgspec import Raw
from msgspec.structs import replace

from services.notifier import webhooks
from services.notifier.outbox import Outbox
from services.notifier.receivers import FAILURES, SLOTS, TENANT_SLOTS, Receivers
from services.notifier.webhooks import PAUSES_S, Webhooks
from shared import keys
from shared.bus.client import Bus
from shared.bus.consume import Entry
from shared.clock import monotonic_s, now_ms
from shared.config import Config
from shared.messages import Delivery, Task, decode_delivery, encode
from shared.quota import Quotas
from shared.webhooks import announce
from tests.support import tasks
from tests.support.receiver import HANG, Receiver, answer
from tests.support.waiting import wait_until
from tests.support.webhooks import DELIVERY, config, taken, waiting

HELD = 64
"""Fewer than in earnest, to be full sooner."""
Start = Callable[[Config], Awaitable[Webhooks]]


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver() as receiver:
        yield receiver


@pytest.fixture
async def dead() -> AsyncIterator[list[Receiver]]:
    """They hang, with room for twice what one tenant may have under way. Named before `start`, they outlive its replicas."""
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(Receiver()) for _ in range(2 * TENANT_SLOTS // SLOTS)]
        for server in servers:
            server.says = lambda hit: HANG
        yield servers


@pytest.fixture
async def start(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Start]:
    """Replicas that run until the end of the test."""
    monkeypatch.setattr(webhooks, "STOP_S", 0.2)
    async with AsyncExitStack() as stack:
        loops, number = [], 0

        async def run(config: Config) -> Webhooks:
            nonlocal number
            number += 1
            replica = await stack.enter_async_context(Webhooks(bus, config, f"replica-{number}"))
            for loop in (replica.consumer, replica.upkeep):
                loops.append((loop, asyncio.create_task(loop.run())))
            return replica

        yield run
        for loop, task in loops:
            await loop.stop()
            await task


async def empty(bus: Bus) -> bool:
    call = bus.commands.call
    return not (await call("XLEN", keys.WEBHOOKS)) and not await call("ZCARD", keys.WEBHOOKS_LATER)


async def hurry(bus: Bus) -> None:
    """The time of all that waits has come."""
    for delivery, _ in await waiting(bus):
        await bus.commands.call("ZADD", keys.WEBHOOKS_LATER, "XX", 1, delivery)


async def letters(bus: Bus) -> list[dict[bytes, bytes]]:
    return [fields for _, fields in await tasks.entries(bus, tasks.SHARD.dead)]


async def failed(bus: Bus, tries: int) -> None:
    """Wait until so many tries of the only delivery have failed."""

    async def there() -> bool:
        return [decode_delivery(delivery).tried for delivery, _ in await waiting(bus)] == [tries]

    await wait_until(there, f"{tries} tries have failed")


# -- what arrives


async def test_an_event_arrives_signed_at_once_and_leaves_nothing(
    bus: Bus, start: Start, receiver: Receiver, tmp_path: Path
) -> None:
    await start(config(tmp_path, orders=receiver.url))
    await announce(bus, replace(DELIVERY, data=Raw(b'{"id":"batch_1"}')))
    [hit] = await receiver.got(1)
    assert hit.verified() == {
        "type": "batch.completed", "timestamp": "2023-11-14T22:13:20.000Z", "data": {"id": "batch_1"},
    }  # fmt: skip
    assert hit.id == "msg_1"
    await wait_until(lambda: empty(bus), "the delivery is done")


async def test_a_task_is_told_with_its_result_and_in_time(
    bus: Bus, start: Start, receiver: Receiver, tmp_path: Path
) -> None:
    deployed = config(tmp_path, orders=receiver.url)
    await start(deployed)
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    spec = Task(
        route="/v1/completions", model=tasks.MODEL, tenant="acme", webhook="orders", metadata=Raw(b'{"order":7}')
    )
    await bus.commands.call("HSET", tasks.SHARD.task(hand.id), "spec", encode(spec), "tells", "1")
    await tasks.finish_one(bus, owner, tasks.ending(hand, 1, 0))
    outbox = Outbox(bus, tasks.SHARD, Quotas(bus, deployed))
    entries = [Entry(id, fields) for id, fields in await tasks.entries(bus, tasks.SHARD.outbox)]
    for _ in range(2):  # a repeat after a crash tells again, and says so by its id
        assert len(await outbox.on_entries(entries)) == 1
    first, second = await receiver.got(2)
    assert first.id == second.id
    event = first.verified()
    assert event["type"] == "task.completed"
    data = event["data"]
    assert (data["object"], data["id"], data["status"]) == ("task", hand.id, "completed")
    assert data["metadata"] == {"order": 7}
    assert data["result"] == {"said": "yes"}
    assert data["links"] == {"self": f"/v1/tasks/{hand.id}"}


async def test_a_large_result_is_told_by_its_place(bus: Bus, start: Start, receiver: Receiver, tmp_path: Path) -> None:
    deployed = config(tmp_path, orders=receiver.url)
    rules = replace(deployed.policy.webhooks, base_url="https://h.example/")
    deployed.live.policy = replace(deployed.policy, webhooks=rules)
    await start(deployed)
    owner = await tasks.worker(bus)
    hand = await tasks.ended(bus, owner)
    await bus.commands.call("HSET", tasks.SHARD.task(hand.id), "result", encode("x" * 70_000))
    await announce(bus, replace(DELIVERY, task=hand.id, event="task.completed"))
    [hit] = await receiver.got(1)
    data = hit.verified()["data"]
    place = {"content_type": "application/json", "bytes": 70_002, "url": f"https://h.example/v1/tasks/{hand.id}/result"}
    assert data["result"] == place
    assert data["links"] == {"self": f"https://h.example/v1/tasks/{hand.id}"}


async def test_a_task_whose_result_has_expired_is_told_with_what_is_known(
    bus: Bus, start: Start, receiver: Receiver, tmp_path: Path
) -> None:
    await start(config(tmp_path, orders=receiver.url))
    task = tasks.new_id()
    await announce(bus, replace(DELIVERY, task=task, event="task.failed"))
    [hit] = await receiver.got(1)
    assert hit.verified()["data"] == {
        "object": "task", "id": task, "status": "failed", "tenant": "default",
        "finished_at_ms": DELIVERY.at_ms, "links": {"self": f"/v1/tasks/{task}"},
    }  # fmt: skip


async def test_entries_of_a_dead_replica_are_taken_over_under_the_same_id(
    bus: Bus, start: Start, receiver: Receiver, tmp_path: Path
) -> None:
    """It was killed between the request and the acknowledgement, or before the request: nobody can know."""
    await announce(bus, DELIVERY)
    [entry] = await taken(bus)
    await bus.commands.call("XCLAIM", keys.WEBHOOKS, keys.SENDERS, "dead-replica", 0, entry, "IDLE", 60_000, "JUSTID")
    await start(config(tmp_path, orders=receiver.url))
    [hit] = await receiver.got(1)
    assert hit.id == DELIVERY.id
    await wait_until(lambda: empty(bus), "the delivery is done")


async def test_what_is_under_way_is_claimed_so_that_no_other_replica_sends_it_too(
    bus: Bus, start: Start, receiver: Receiver, tmp_path: Path
) -> None:
    receiver.says = lambda hit: HANG
    deployed = config(tmp_path, orders=receiver.url)
    await start(deployed)
    await announce(bus, DELIVERY)
    await receiver.got(1)

    async def idle_ms() -> int:
        [[_, _, idle_ms, _]] = await bus.commands.call("XPENDING", keys.WEBHOOKS, keys.SENDERS, "-", "+", 1)
        return int(idle_ms)

    seen = 0

    async def claimed() -> bool:
        nonlocal seen
        before, seen = seen, await idle_ms()
        return seen < before

    await wait_until(claimed, "the entry was claimed again")
    assert len(receiver.hits) == 1


# -- what does not


async def test_a_failed_delivery_comes_again_under_the_same_id_until_it_arrives(
    bus: Bus, start: Start, receiver: Receiver, tmp_path: Path
) -> None:
    receiver.says = lambda hit: answer(500)
    await start(config(tmp_path, orders=receiver.url))
    began_ms = now_ms()
    await announce(bus, DELIVERY)
    await failed(bus, 1)
    [(_, due_ms)] = await waiting(bus)
    assert due_ms <= began_ms + 60_000 + PAUSES_S[0] * 1000
    receiver.says = lambda hit: answer(204)
    await hurry(bus)
    first, second = await receiver.got(2)
    assert (first.id, second.id) == (DELIVERY.id, DELIVERY.id)
    assert second.verified()
    await wait_until(lambda: empty(bus), "the delivery is done")


@pytest.mark.parametrize("status", [429, 503])
async def test_who_asks_for_time_gets_it(
    bus: Bus, start: Start, receiver: Receiver, tmp_path: Path, status: int
) -> None:
    receiver.says = lambda hit: answer(status, "retry-after: 3000")
    await start(config(tmp_path, orders=receiver.url))
    began_ms = now_ms()
    await announce(bus, DELIVERY)
    await failed(bus, 1)
    await announce(bus, replace(DELIVERY, id="msg_2"))
    await wait_until(lambda: empty_stream(bus), "the second one waits too")
    assert all(due_ms >= began_ms + 2_990_000 for _, due_ms in await waiting(bus))
    assert len(receiver.hits) == 1


async def empty_stream(bus: Bus) -> bool:
    return not await bus.commands.call("XLEN", keys.WEBHOOKS)


async def test_after_the_last_try_it_is_a_dead_letter_that_starts_over(
    bus: Bus, start: Start, receiver: Receiver, tmp_path: Path
) -> None:
    receiver.says = lambda hit: answer(404)
    await start(config(tmp_path, orders=receiver.url))
    await announce(bus, replace(DELIVERY, tried=len(PAUSES_S)))
    await wait_until(lambda: letters(bus), "there is a dead letter")
    [letter] = await letters(bus)
    assert (letter[b"k"], letter[b"code"], letter[b"tenant"]) == (b"webhook", b"webhook_undeliverable", b"default")
    assert b"after 9 tries: the endpoint orders answered 404" in letter[b"reason"]
    assert decode_delivery(letter[b"delivery"]) == DELIVERY
    await wait_until(lambda: empty(bus), "the delivery is done")


async def test_a_dead_letter_of_a_batch_names_it(bus: Bus, start: Start, receiver: Receiver, tmp_path: Path) -> None:
    receiver.says = lambda hit: answer(410)
    await start(config(tmp_path, orders=receiver.url))
    await announce(bus, replace(DELIVERY, data=Raw(b'{"object":"batch","id":"batch_1"}')))
    await wait_until(lambda: letters(bus), "there is a dead letter")
    [letter] = await letters(bus)
    assert letter[b"t"] == b"batch_1"


async def test_who_answers_410_is_sent_nothing_more(bus: Bus, start: Start, receiver: Receiver, tmp_path: Path) -> None:
    receiver.says = lambda hit: answer(410)
    await start(config(tmp_path, orders=receiver.url))
    await announce(bus, DELIVERY)
    await wait_until(lambda: letters(bus), "there is a dead letter")
    await announce(bus, replace(DELIVERY, id="msg_2"))

    async def both() -> bool:
        return [letter[b"code"] for letter in await letters(bus)] == [b"webhook_gone"] * 2

    await wait_until(both, "the second one is a dead letter too")
    assert len(receiver.hits) == 1


async def test_what_leads_inside_is_a_dead_letter_at_once(
    bus: Bus, start: Start, receiver: Receiver, tmp_path: Path
) -> None:
    await start(config(tmp_path, allow_private=False, orders=receiver.url))
    await announce(bus, DELIVERY)
    await wait_until(lambda: letters(bus), "there is a dead letter")
    [letter] = await letters(bus)
    assert letter[b"code"] == b"webhook_forbidden"
    assert b"webhooks.allow_private" in letter[b"reason"]
    assert receiver.connections == 0


async def test_what_cannot_be_signed_waits_for_the_operator(
    bus: Bus, start: Start, receiver: Receiver, tmp_path: Path
) -> None:
    deployed = config(tmp_path, orders=receiver.url)
    (tmp_path / "secret").rename(tmp_path / "aside")
    await start(deployed)
    await announce(bus, DELIVERY)
    await failed(bus, 1)
    assert receiver.hits == []
    (tmp_path / "aside").rename(tmp_path / "secret")
    await hurry(bus)
    [hit] = await receiver.got(1)
    assert hit.verified()


async def test_a_fault_of_our_own_is_charged_as_a_try(
    bus: Bus, start: Start, receiver: Receiver, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Else it would come again every few seconds, for ever."""
    caplog.set_level(logging.CRITICAL)
    await start(config(tmp_path, orders=receiver.url))
    await announce(bus, replace(DELIVERY, at_ms=10**18))  # a time that no calendar has
    await failed(bus, 1)
    assert receiver.hits == []


@pytest.mark.parametrize(
    "fields",
    [
        ("x", "y"),
        ("delivery", "{"),
        ("delivery", b"\xff"),
        ("delivery", encode(replace(DELIVERY, task="nonsense", event="task.completed"))),
        ("delivery", encode(replace(DELIVERY, task=tasks.new_id(), event="task.nonsense"))),
    ],
)  # fmt: skip
async def test_what_is_no_delivery_stops_no_other(
    bus: Bus, start: Start, receiver: Receiver, tmp_path: Path, fields: tuple[str, str]
) -> None:
    await bus.commands.call("XADD", keys.WEBHOOKS, "*", *fields)
    await announce(bus, DELIVERY)
    await start(config(tmp_path, orders=receiver.url))
    await receiver.got(1)
    await wait_until(lambda: empty(bus), "both are done")


# -- who delays whom


async def test_an_endpoint_that_hangs_delays_no_other_and_is_given_no_more_than_its_room(
    bus: Bus, start: Start, receiver: Receiver, tmp_path: Path
) -> None:
    async with Receiver() as dead:
        dead.says = lambda hit: HANG
        replica = await start(config(tmp_path, dead=dead.url, orders=receiver.url))
        replica._receivers = Receivers(monotonic_s, most_held=HELD)
        for number in range(HELD + 60):
            await announce(bus, replace(DELIVERY, id=f"msg_{number}", to="dead"))

        async def stuffed() -> bool:
            return len(dead.hits) == SLOTS and len(await waiting(bus)) == 60

        await wait_until(stuffed, "it has all that it may have, and the rest waits")
        assert all(made.waited and not made.tried for made in map(decode_delivery, dict(await waiting(bus))))
        for number in range(20):
            await announce(bus, replace(DELIVERY, id=f"ok_{number}"))
        await receiver.got(20)
        assert len(dead.hits) == SLOTS
        assert len(replica._held) <= HELD + 20


async def test_servers_that_a_tenant_names_have_no_more_than_its_room_together(
    bus: Bus, dead: list[Receiver], start: Start, receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them has room for all that is sent to it."""
    monkeypatch.setattr(webhooks, "TENANT_HELD", HELD)
    replica = await start(config(tmp_path, orders=receiver.url))
    for number in range(HELD + 16):
        to = dead[number % len(dead)].url
        await announce(bus, replace(DELIVERY, id=f"msg_{number}", to=to, tenant="acme"))

    async def stuffed() -> bool:
        return len(await waiting(bus)) == 16 and sum(len(server.hits) for server in dead) >= TENANT_SLOTS

    await wait_until(stuffed, "the tenant has all that it may have, and the rest waits")
    await announce(bus, replace(DELIVERY, id="ok"))
    await receiver.got(1)
    assert sum(len(server.hits) for server in dead) == TENANT_SLOTS
    assert len(replica._held) <= HELD + 1


async def test_an_endpoint_that_fails_is_left_in_peace(
    bus: Bus, start: Start, receiver: Receiver, tmp_path: Path
) -> None:
    receiver.says = lambda hit: answer(500)
    await start(config(tmp_path, orders=receiver.url))
    for number in range(60):
        await announce(bus, replace(DELIVERY, id=f"msg_{number}"))
    await wait_until(lambda: empty_stream(bus), "all of them wait")
    assert FAILURES <= len(receiver.hits) < FAILURES + SLOTS + 5


async def test_two_replicas_share_the_work(bus: Bus, start: Start, receiver: Receiver, tmp_path: Path) -> None:
    deployed = config(tmp_path, orders=receiver.url)
    for _ in range(2):
        await start(deployed)
    made = [replace(DELIVERY, id=f"msg_{number}") for number in range(50)]
    for delivery in made:
        await announce(bus, delivery)

    async def all_arrived() -> bool:
        return {hit.id for hit in receiver.hits} == {delivery.id for delivery in made} and await empty(bus)

    await wait_until(all_arrived, "each has arrived")
    assert len(receiver.hits) == len(made)


def test_the_tries_span_about_a_day() -> None:
    assert 24 * 3600 < sum(PAUSES_S) / 2 < 30 * 3600


def test_a_delivery_names_no_secret() -> None:
    assert not any("secret" in field for field in Delivery.__struct_fields__)
