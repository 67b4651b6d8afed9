"""The stream doors: orders to cancel, by our id or the producer's own, before or after the task; and who pays."""

from typing import Any

import pytest

from services.scheduler.front import Front
from shared import keys
from shared.bus.client import Bus
from shared.bus.consume import Entry
from shared.config import Config
from shared.policy import Key, Live, Policy, Producer, Tenant
from shared.submit import Submitter
from tests.support import tasks


@pytest.fixture
def front(bus: Bus) -> Front:
    return Front(bus, tasks.CONFIG, Submitter(bus, tasks.CONFIG))


async def say(front: Front, *entries: dict[str, str]) -> None:
    """The entries come in one read, and each is dealt with, whatever it says."""
    come = [
        Entry(f"{number}-0".encode(), {name.encode(): value.encode() for name, value in entry.items()})
        for number, entry in enumerate(entries, 1)
    ]
    assert await front.on_entries(come) == [entry.id for entry in come]


async def states(bus: Bus) -> list[str]:
    found = await bus.commands.call("KEYS", tasks.SHARD.task("*"))
    return sorted([(await bus.commands.call("HGET", key, "state")).decode() for key in found])


async def refusals(bus: Bus) -> list[str]:
    return [fields[b"reason"].decode() for _, fields in await tasks.entries(bus, keys.REFUSED)]


async def test_a_task_is_cancelled_by_our_id(front: Front, bus: Bus) -> None:
    task = await tasks.admitted(bus)
    await say(front, {"cancel": task}, {"cancel": task})
    assert (await tasks.fields(bus, task))["state"] == "cancelled"
    assert await refusals(bus) == []


async def test_a_task_is_cancelled_by_the_producers_own_id(front: Front, bus: Bus) -> None:
    await say(front, {"input_text": "x", "task_id": "order-17"}, {"input_text": "y", "task_id": "order-18"})
    await say(front, {"cancel": "order-17"})
    assert await states(bus) == ["cancelled", "pending"]


async def test_a_cancel_that_comes_first_is_remembered(front: Front, bus: Bus) -> None:
    """Doors are read by several schedulers at once, so an entry may overtake the one before it."""
    await say(front, {"cancel": "order-17"})
    await say(front, {"input_text": "x", "task_id": "order-17", "reply_to": "orders"})
    assert await states(bus) == ["cancelled"]
    assert await tasks.entries(bus, tasks.SHARD.arrivals) == []
    assert len(await tasks.entries(bus, tasks.SHARD.outbox)) >= 1


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"cancel": ""}, "`cancel` is empty"),
        ({"cancel": "a b"}, "`cancel` is 'a b'; allowed are 1 to 128"),
        ({"cancel": f"other.0.0.0.{'0' * 26}"}, "is not the id of a task"),
        ({"cancel": "x", "tenant": "a b"}, "`tenant` is 'a b'; allowed are 1 to 128"),
        (
            {"cancel": "x", "input_text": "y"},
            "Beside `cancel` there may be no other field than `tenant`; found input_text.",
        ),
        ({"cancel": "x", "task": "{}"}, "Beside `cancel` there may be no other field than `tenant`; found task."),
    ],
)
async def test_a_faulty_cancel_is_refused_like_any_entry(
    front: Front, bus: Bus, entry: dict[str, str], reason: str
) -> None:
    await say(front, entry, {"input_text": "fine"})
    [refused] = await refusals(bus)
    assert reason in refused
    assert await states(bus) == ["pending"]


async def test_a_faulty_cancel_that_names_a_reply_stream_is_refused_there(front: Front, bus: Bus) -> None:
    await say(front, {"cancel": "x", "reply_to": "orders"})
    [(_, reply)] = await tasks.entries(bus, keys.reply("orders"))
    assert (reply[b"status"], b"found reply_to" in reply[b"reply"]) == (b"failed", True)


# -- who pays


def policed(**policy: Any) -> Config:
    return Config(pools=tasks.CONFIG.pools, live=Live(Policy(**policy)))


def door_of(bus: Bus, deployed: Config, producer: str = "") -> Front:
    return Front(bus, deployed, Submitter(bus, deployed), producer)


async def tenants(bus: Bus) -> list[str]:
    found = await bus.commands.call("KEYS", tasks.SHARD.task("*"))
    return sorted([(await bus.commands.call("HGET", key, "tenant")).decode() for key in found])


SHOP = {"shop": Producer(tenant="acme")}


async def test_a_door_of_its_own_pays_for_its_tenant(bus: Bus) -> None:
    front = door_of(bus, policed(producers=SHOP), "shop")
    assert front.door == keys.door("shop")
    await say(front, {"input_text": "x"}, {"input_text": "y", "tenant": "acme"})
    assert await tenants(bus) == ["acme", "acme"]


async def test_a_door_of_its_own_speaks_for_nobody_else(bus: Bus) -> None:
    front = door_of(bus, policed(producers=SHOP), "shop")
    await say(front, {"input_text": "x", "tenant": "beta", "reply_to": "orders"})
    [(_, reply)] = await tasks.entries(bus, keys.reply("orders"))
    assert b'"tenant_not_yours"' in reply[b"reply"]
    assert await tenants(bus) == []


async def test_the_door_without_a_name_is_anybodys_or_that_of_the_default_producer(bus: Bus) -> None:
    await say(door_of(bus, policed()), {"input_text": "x"}, {"input_text": "y", "tenant": "beta"})
    assert await tenants(bus) == ["beta", "default"]
    key = Key(tenant="acme", sha256="0" * 64)
    owned = policed(keys={"web": key}, producers={"default": Producer(tenant="acme")})
    await say(door_of(bus, owned), {"input_text": "z"})
    assert await tenants(bus) == ["acme", "beta", "default"]


async def test_where_keys_are_required_the_door_without_a_name_refuses_with_the_remedy(bus: Bus) -> None:
    front = door_of(bus, policed(keys={"web": Key(tenant="acme", sha256="0" * 64)}))
    await say(front, {"input_text": "x", "reply_to": "orders"}, {"cancel": "order-17"})
    [(_, reply)] = await tasks.entries(bus, keys.reply("orders"))
    assert (reply[b"status"], b'"producer_unknown"' in reply[b"reply"]) == (b"failed", True)
    [reason] = await refusals(bus)
    assert "[producers.default]" in reason


async def test_a_producer_that_is_dropped_is_charged_as_before_until_its_door_closes(bus: Bus) -> None:
    deployed = policed(producers=SHOP)
    front = door_of(bus, deployed, "shop")
    await say(front, {"input_text": "x"})
    deployed.live.policy = Policy()
    await say(front, {"input_text": "y"})
    assert await tenants(bus) == ["acme", "acme"]


async def test_a_task_id_is_the_tenants_own(bus: Bus) -> None:
    deployed = policed(producers={**SHOP, "depot": Producer(tenant="beta")})
    shop, depot = door_of(bus, deployed, "shop"), door_of(bus, deployed, "depot")
    await say(shop, {"input_text": "x", "task_id": "order-17"})
    await say(depot, {"input_text": "y", "task_id": "order-17"})
    await say(depot, {"cancel": "order-17"})
    assert await states_by_tenant(bus) == {b"acme": b"pending", b"beta": b"cancelled"}


async def test_at_a_door_without_proof_a_cancel_names_the_tenant_that_its_task_named(bus: Bus) -> None:
    front = door_of(bus, policed())
    await say(front, {"input_text": "x", "task_id": "order-17", "tenant": "beta"})
    await say(front, {"input_text": "y", "task_id": "order-17"})
    await say(front, {"cancel": "order-17", "tenant": "beta"})
    assert await states_by_tenant(bus) == {b"beta": b"cancelled", b"default": b"pending"}
    await say(front, {"cancel": "order-17", "tenant": ""})
    assert await states_by_tenant(bus) == {b"beta": b"cancelled", b"default": b"cancelled"}
    assert await refusals(bus) == []


async def test_a_cancel_at_a_door_of_its_own_may_name_only_its_own_tenant(bus: Bus) -> None:
    front = door_of(bus, policed(producers=SHOP), "shop")
    await say(front, {"input_text": "x", "task_id": "order-17"}, {"input_text": "y", "task_id": "order-18"})
    await say(front, {"cancel": "order-17", "tenant": "beta"})
    assert "beta" in (await refusals(bus))[0]
    assert await states(bus) == ["pending", "pending"]
    await say(front, {"cancel": "order-17", "tenant": "acme"})
    assert await states(bus) == ["cancelled", "pending"]
    assert len(await refusals(bus)) == 1


async def test_a_cancel_by_our_id_that_names_a_tenant_reaches_only_its_tasks(front: Front, bus: Bus) -> None:
    task = await tasks.admitted(bus, tenant="beta")
    await say(front, {"cancel": task, "tenant": "acme"})
    assert "does not exist" in (await refusals(bus))[0]
    assert (await tasks.fields(bus, task))["state"] == "pending"
    await say(front, {"cancel": task, "tenant": "beta"})
    assert (await tasks.fields(bus, task))["state"] == "cancelled"


async def test_tasks_of_others_cannot_be_cancelled(bus: Bus) -> None:
    front = door_of(bus, policed(producers=SHOP), "shop")
    own, other = await tasks.admitted(bus, tenant="acme"), await tasks.admitted(bus, tenant="beta")
    await say(front, {"cancel": own}, {"cancel": other})
    assert (await tasks.fields(bus, own))["state"] == "cancelled"
    assert (await tasks.fields(bus, other))["state"] == "pending"
    assert "does not exist" in (await refusals(bus))[0]


async def test_over_a_rate_the_reply_has_the_reason_and_when_to_come_again(bus: Bus) -> None:
    front = door_of(bus, policed(producers=SHOP, tenants={"acme": Tenant(requests_per_s=0.001)}), "shop")
    await say(front, {"input_text": "x"}, {"input_text": "y", "reply_to": "orders"})
    [(_, reply)] = await tasks.entries(bus, keys.reply("orders"))
    assert b'"rate_limit_requests"' in reply[b"reply"]
    assert b"Try again in" in reply[b"reply"]
    assert await tenants(bus) == ["acme"]


async def test_a_task_that_waits_for_its_turn_is_not_refused(bus: Bus) -> None:
    front = door_of(bus, policed(producers=SHOP, tenants={"acme": Tenant(requests_per_s=0.001)}), "shop")
    await say(front, {"input_text": "x"}, {"input_text": "y", "on_limit": "wait"})
    owing = sorted([(await hash_of(bus, key)).get(b"owes", b"") for key in await task_keys(bus)])
    assert owing == [b"", b"1"]


async def test_the_same_entry_on_two_doors_is_two_tasks(bus: Bus) -> None:
    deployed = policed(producers=SHOP)
    await say(door_of(bus, deployed, "shop"), {"input_text": "x"})
    await say(door_of(bus, deployed), {"input_text": "x"})
    await say(door_of(bus, deployed), {"input_text": "x"})
    assert await tenants(bus) == ["acme", "default"]


async def task_keys(bus: Bus) -> list[bytes]:
    return list(await bus.commands.call("KEYS", tasks.SHARD.task("*")))


async def states_by_tenant(bus: Bus) -> dict[bytes, bytes]:
    return {task[b"tenant"]: task[b"state"] for task in [await hash_of(bus, key) for key in await task_keys(bus)]}


async def hash_of(bus: Bus, key: bytes) -> dict[bytes, bytes]:
    flat = await bus.commands.call("HGETALL", key)
    return dict(zip(flat[::2], flat[1::2], strict=True))
