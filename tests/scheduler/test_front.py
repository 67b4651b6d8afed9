"""The stream doors: orders to cancel, by our id or the producer's own, before or after the task; and who pays."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from services.scheduler import front as front_of_doors
from services.scheduler.front import Front
from shared import keys
from shared.bus.client import Bus
from shared.bus.consume import Entry
from shared.bus.streams import append, ensure_group
from shared.config import Config, Limits
from shared.objects import Objects
from shared.policy import Key, Live, Policy, Producer, Tenant
from shared.submit import Submitter
from tests.support import tasks
from tests.support.waiting import wait_until


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


async def test_without_the_object_store_large_entries_wait_and_small_ones_go_on(bus: Bus, tmp_path: Path) -> None:
    """They stay pending, and so come again."""
    config = Config(pools=tasks.CONFIG.pools, limits=Limits(inline_bytes=1024))
    front = Front(bus, config, Submitter(bus, config, Objects((tmp_path / "objects").as_uri())))
    (tmp_path / "objects").rename(tmp_path / "away")
    come = [
        Entry(b"1-0", {b"input_text": b"x" * 2000, b"reply_to": b"orders"}),
        Entry(b"2-0", {b"input_text": b"x"}),
    ]
    assert await front.on_entries(come) == [b"2-0"]
    assert await states(bus) == ["pending"]
    assert await tasks.entries(bus, keys.reply("orders")) == []
    (tmp_path / "away").rename(tmp_path / "objects")
    assert await front.on_entries(come[:1]) == [b"1-0"]
    assert await states(bus) == ["pending", "pending"]


class Slow(Objects):
    """Takes nothing before it is opened."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.asked, self.opened = 0, asyncio.Event()

    async def put(self, key: str, data: bytes) -> None:
        self.asked += 1
        await self.opened.wait()
        await super().put(key, data)


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slow:
    """And a door that waits for nothing."""
    monkeypatch.setattr(front_of_doors, "PATIENCE_S", 0.0)
    return Slow((tmp_path / "objects").as_uri())


async def test_an_entry_that_takes_long_holds_up_no_other_and_is_acknowledged_in_the_end(bus: Bus, slow: Slow) -> None:
    config = Config(pools=tasks.CONFIG.pools, limits=Limits(inline_bytes=1024))
    front = Front(bus, config, Submitter(bus, config, slow))
    await ensure_group(bus, front.door, keys.FRONT)
    for text in ("x" * 2000, "x"):
        await append(bus, front.door, {"input_text": text})
    ((_, read),) = await bus.commands.call("XREADGROUP", "GROUP", keys.FRONT, "x", "STREAMS", front.door, ">")
    come = [Entry(id, dict(zip(fields[::2], fields[1::2], strict=True))) for id, fields in read]
    assert await front.on_entries(come) == []

    async def left() -> tuple[int, int]:
        pending, *_ = await bus.commands.call("XPENDING", front.door, keys.FRONT)
        return pending, await bus.commands.call("XLEN", front.door)

    async def one_is_left() -> bool:
        return await left() == (1, 1)

    async def none_is_left() -> bool:
        return await left() == (0, 0)

    await wait_until(one_is_left, "the small one is done with")
    assert await front.on_entries(come[:1]) == []  # it comes again, while it is under way
    assert (await states(bus), slow.asked) == (["pending"], 1)
    slow.opened.set()
    await wait_until(none_is_left, "the large one is done with")
    assert await states(bus) == ["pending", "pending"]


async def test_a_door_reads_nothing_more_while_too_many_entries_are_late(
    bus: Bus, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a store that hangs would fill the memory of the scheduler."""
    monkeypatch.setattr(front_of_doors, "MOST_LATE", 1)
    config = Config(pools=tasks.CONFIG.pools, limits=Limits(inline_bytes=1024))
    front = Front(bus, config, Submitter(bus, config, slow))
    large = [Entry(f"{number}-0".encode(), {b"input_text": b"x" * 2000}) for number in (1, 2)]
    assert await front.on_entries(large[:1]) == []
    second = asyncio.create_task(front.on_entries(large[1:]))
    await wait_until(lambda: slow.asked == 2, "both are on their way")
    slow.opened.set()
    assert await second == [b"2-0"]
    await wait_until(lambda: not front._late, "the first one is done with")
