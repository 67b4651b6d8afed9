"""What leaves a shard: replies and settlements, each at least once, and an entry is done when both are."""

import logging

import msgspec
import pytest
from msgspec.structs import replace

from services.notifier import outbox as module
from services.notifier.outbox import Outbox
from shared import keys
from shared.bus.client import Bus
from shared.bus.consume import Entry, Unfinished
from shared.cancel import cancel
from shared.config import Config
from shared.errors import ConnectionLost
from shared.keys import quota
from shared.lifecycle import State
from shared.messages import Finished, Stored, Task, decode_delivery, encode
from shared.policy import Live, Policy, Tenant
from shared.quota import Quotas
from tests.support import tasks
from tests.support.redis import spoil

CONFIG = Config(pools=tasks.CONFIG.pools, live=Live(Policy(tenants={"acme": Tenant(tokens_per_min=1000)})))
ASKED = Task(route="/v1/completions", model=tasks.MODEL, tenant="acme")


@pytest.fixture
def outbox(bus: Bus) -> Outbox:
    return Outbox(bus, tasks.SHARD, Quotas(bus, CONFIG))


async def cancelled(bus: Bus, *, reply_to: str = "", metered: str = "1") -> str:
    """A task that has ended, with 100 tokens reserved."""
    task_id = await tasks.submitted(bus, tenant="acme", reply_to=reply_to, metered=metered)
    if metered:
        assert await Quotas(bus, CONFIG).take(ASKED, task_id, 100)
    assert await cancel(bus, tasks.SHARD, CONFIG.limits, [task_id]) == ["cancelled"]
    return task_id


async def carry_out(bus: Bus, outbox: Outbox) -> list[bytes]:
    """All that lies in the outbox; which entries are done."""
    found = [Entry(id, fields) for id, fields in await tasks.entries(bus, tasks.SHARD.outbox)]
    return list(await outbox.on_entries(found))


async def held(bus: Bus) -> int:
    return sum(int(count) for count in await bus.commands.call("HVALS", quota("acme", "tokens")))


async def test_a_task_that_was_metered_is_settled_with_what_it_used(bus: Bus, outbox: Outbox) -> None:
    task_id = await cancelled(bus)
    await bus.commands.call("HSET", tasks.SHARD.task(task_id), "used", 30)
    assert len(await carry_out(bus, outbox)) == 1
    assert await held(bus) == 30
    assert await bus.commands.call("EXISTS", quota("acme", "reserved")) == 0


async def test_reply_and_settlement_leave_with_one_entry(bus: Bus, outbox: Outbox) -> None:
    await cancelled(bus, reply_to="orders")
    assert len(await carry_out(bus, outbox)) == 1
    assert len(await tasks.entries(bus, keys.reply("orders"))) == 1
    assert await held(bus) == 0


async def test_a_repeat_settles_nothing_twice(bus: Bus, outbox: Outbox) -> None:
    await cancelled(bus, reply_to="orders")
    assert await Quotas(bus, CONFIG).take(ASKED, "another", 70)
    for _ in range(2):
        assert len(await carry_out(bus, outbox)) == 1
    assert await held(bus) == 70
    events = {fields[b"event"] for _, fields in await tasks.entries(bus, keys.reply("orders"))}
    assert len(events) == 1


async def test_a_task_that_was_not_metered_is_only_replied(bus: Bus, outbox: Outbox) -> None:
    await cancelled(bus, reply_to="orders", metered="")
    assert len(await carry_out(bus, outbox)) == 1
    assert len(await tasks.entries(bus, keys.reply("orders"))) == 1
    assert await bus.commands.call("KEYS", quota("acme", "*")) == []


async def test_a_quota_that_cannot_be_settled_stops_no_reply(bus: Bus, outbox: Outbox) -> None:
    await cancelled(bus, reply_to="orders")
    await spoil(bus, quota("acme", "reserved"))
    assert len(await carry_out(bus, outbox)) == 1
    assert len(await tasks.entries(bus, keys.reply("orders"))) == 1


async def test_a_reply_that_cannot_be_delivered_is_settled_and_buried_with_its_tenant(bus: Bus, outbox: Outbox) -> None:
    await cancelled(bus, reply_to="orders")
    await spoil(bus, keys.reply("orders"))
    assert len(await carry_out(bus, outbox)) == 1
    assert await held(bus) == 0
    [(_, letter)] = await tasks.entries(bus, tasks.SHARD.dead)
    assert (letter[b"code"], letter[b"tenant"]) == (b"reply_undeliverable", b"acme")


async def test_an_entry_of_a_task_that_is_gone_is_done(bus: Bus, outbox: Outbox) -> None:
    task_id = await cancelled(bus, reply_to="orders")
    await bus.commands.call("DEL", tasks.SHARD.task(task_id))
    assert len(await carry_out(bus, outbox)) == 1
    assert await bus.commands.call("EXISTS", keys.reply("orders")) == 0


async def test_an_entry_that_cannot_be_dealt_with_is_a_dead_letter_and_holds_up_no_other(
    bus: Bus, outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    broken, _ = await cancelled(bus, reply_to="orders"), await cancelled(bus, reply_to="orders")
    await bus.commands.call("HSET", tasks.SHARD.task(broken), "used", "many")
    assert len(await carry_out(bus, outbox)) == 2
    [(_, letter)] = await tasks.entries(bus, tasks.SHARD.dead)
    assert letter[b"t"].decode() == broken
    assert b"it cannot be dealt with: ValueError" in letter[b"reason"]
    assert len(await tasks.entries(bus, keys.reply("orders"))) == 2


async def test_an_entry_whose_reply_must_wait_comes_again_whatever_else_is_wrong_with_it(
    bus: Bus, outbox: Outbox, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lost(*_: object) -> None:
        raise ConnectionLost("lost")

    caplog.set_level(logging.CRITICAL)
    broken = await cancelled(bus, reply_to="orders")
    await bus.commands.call("HSET", tasks.SHARD.task(broken), "used", "many")
    with monkeypatch.context() as away:
        away.setattr(module, "send_reply", lost)
        with pytest.raises(Unfinished):
            await carry_out(bus, outbox)
    assert await tasks.entries(bus, tasks.SHARD.dead) == []
    assert len(await carry_out(bus, outbox)) == 1
    assert len(await tasks.entries(bus, keys.reply("orders"))) == 1


async def test_a_result_of_any_depth_is_replied(bus: Bus, outbox: Outbox) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner, reply_to="orders")
    deep = b'{"choices":[],"x":' + b"[" * 20_000 + b"]" * 20_000 + b"}"
    assert await tasks.finish_one(bus, owner, replace(tasks.ending(hand, 1, 0), result=deep)) == "ok"
    assert len(await carry_out(bus, outbox)) == 1
    ((_, fields),) = await tasks.entries(bus, keys.reply("orders"))
    assert deep in fields[b"reply"]


async def told(bus: Bus) -> str:
    """A task of acme that has ended, of which the endpoint `orders` wants to know."""
    task_id = await tasks.submitted(bus, tenant="acme", tells="1")
    await bus.commands.call("HSET", tasks.SHARD.task(task_id), "spec", encode(replace(ASKED, webhook="orders")))
    assert await cancel(bus, tasks.SHARD, CONFIG.limits, [task_id]) == ["cancelled"]
    return task_id


async def test_a_webhook_is_told_by_reference_and_with_one_id_however_often(bus: Bus, outbox: Outbox) -> None:
    task_id = await told(bus)
    for _ in range(2):
        assert len(await carry_out(bus, outbox)) == 1
    first, second = [decode_delivery(fields[b"delivery"]) for _, fields in await tasks.entries(bus, keys.WEBHOOKS)]
    assert first == second
    assert (first.event, first.to, first.tenant, first.task) == ("task.cancelled", "orders", "acme", task_id)
    assert first.at_ms > 0
    assert await bus.commands.call("EXISTS", keys.reply("orders")) == 0


async def test_a_webhook_that_cannot_be_told_is_buried(bus: Bus, outbox: Outbox) -> None:
    await told(bus)
    await spoil(bus, keys.WEBHOOKS)
    assert len(await carry_out(bus, outbox)) == 1
    [(_, letter)] = await tasks.entries(bus, tasks.SHARD.dead)
    assert letter[b"k"] == b"webhook"
    assert decode_delivery(letter[b"delivery"]).to == "orders"


async def test_a_reply_says_where_a_result_is_that_is_too_large_for_redis(bus: Bus, outbox: Outbox) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner, reply_to="orders")
    stored = Stored(name="x", bytes=5000)
    event = Finished(attempt=1, last=0, state=State.COMPLETED, status=200, stored=stored)
    ending = replace(tasks.ending(hand, 1, 0), result=b"", finished=encode(event))
    assert await tasks.finish_one(bus, owner, ending) == "ok"
    assert len(await carry_out(bus, outbox)) == 1
    ((_, fields),) = await tasks.entries(bus, keys.reply("orders"))
    reply = msgspec.json.decode(fields[b"reply"])
    url = f"/v1/tasks/{hand.id}/result"
    assert reply["result"] == {"content_type": "application/json", "bytes": 5000, "url": url}
    assert "text" not in reply
