"""The auditor finds what it is for: a run in which all is well has no fault, and each planted one is named."""

from collections.abc import Awaitable, Callable

import pytest

from services.inference.scripts import Owner, retire, start
from services.scheduler.scripts import dispatch, due, reap
from shared.bus.client import Bus
from shared.keys import reply
from tests.support import audit, tasks
from tests.support.tasks import LIMITS, SHARD

pytestmark = pytest.mark.keeps_keys


async def ended(bus: Bus) -> tuple[Owner, str]:
    """A task that has ended after two attempts, and whose reply was written."""
    dying = await tasks.worker(bus, "w0")
    lost = await tasks.running(bus, dying, reply_to="orders")
    await tasks.emit_one(bus, dying, tasks.emission(lost, 1, 2))
    await bus.commands.call("ZADD", SHARD.leases, 1, lost.id)
    await bus.commands.call("HSET", SHARD.workers, "w0", "1 4 4 4 {}")
    await reap(bus, SHARD, LIMITS)
    owner = await tasks.worker(bus)
    await dispatch(bus, SHARD, tasks.CONFIG)
    (hand,) = await tasks.hands(bus, owner)
    await start(bus, owner, [hand])
    await tasks.finish_one(bus, owner, tasks.ending(hand, 3, 3, attempt=2))
    await tasks.admit_all(bus)
    await due(bus, SHARD, LIMITS)
    await bus.commands.call("DEL", SHARD.outbox)
    event = f"{hand.id}:{hand.epoch}"
    await bus.commands.call("XADD", reply("orders"), "*", "id", hand.id, "event", event, "status", "completed")
    return owner, hand.id


def faults(url: str, ids: list[str]) -> list[str]:
    content = audit.read(url, SHARD)
    found = audit.faults_of_tasks(content, ids, LIMITS) + audit.faults_of_drained(content)
    return found + audit.faults_of_replies(url, "orders", content)


async def test_a_run_in_which_all_is_well_has_no_fault(bus: Bus, redis_url: str) -> None:
    before = audit.read(redis_url, SHARD)
    owner, id = await ended(bus)
    assert faults(redis_url, [id]) == []
    assert audit.faults_of_memory(before, audit.read(redis_url, SHARD)) == []
    await retire(bus, owner, running=True)
    assert faults(redis_url, [id]) == []


Call = tuple[str | int, ...]
PLANTED: dict[str, tuple[Callable[[str], Call], str]] = {
    "lost task": (lambda id: ("DEL", SHARD.task(id)), "acknowledged, and not there"),
    "unfinished task": (lambda id: ("HSET", SHARD.task(id), "state", "processing"), "still processing"),
    "other state than told": (lambda id: ("HSET", SHARD.task(id), "state", "failed"), "its end says"),
    "other count than told": (lambda id: ("HSET", SHARD.task(id), "last", 7), "its end says"),
    "too many crashes": (lambda id: ("HSET", SHARD.task(id), "crashes", 9), "above the limits"),
    "forgotten attempt": (lambda id: ("HDEL", SHARD.task(id), "history"), "2 attempts, and its history has []"),
    "lost log": (lambda id: ("DEL", SHARD.log(id)), "its log ends with None"),
    "cut log": (lambda id: ("XTRIM", SHARD.log(id), "MAXLEN", 2), "its log has Chunks"),
    "letter without reason": (
        lambda id: ("XADD", SHARD.dead, "*", "k", "task", "t", id, "body", "{}"),
        "it has 1 dead letters",
    ),
    "held lease": (lambda id: ("ZADD", SHARD.leases, 1, id), "leases holds"),
    "waiting place": (lambda id: ("ZADD", tasks.BACKLOGS[0], 1, id), "backlog:interactive:default holds"),
    "turn of nobody": (lambda id: ("ZADD", SHARD.turns[0], 1, "lions"), "turns:interactive holds"),
    "turn that is remembered": (lambda id: ("ZADD", SHARD.rested[0], 1, "lions"), "rested:interactive holds"),
    "running place": (lambda id: ("SADD", SHARD.running("lions"), id), "running:lions holds"),
    "count of nothing": (lambda id: ("HINCRBY", SHARD.waiting, "n:lions", 1), "waiting says {'n:lions': '1'}"),
    "held slot": (lambda id: ("HINCRBY", SHARD.held, "w1 batch", 1), "held says {'w1 batch': '1'}"),
    "mean of nobody": (lambda id: ("HSET", SHARD.means, "lions", "7.0"), "means says"),
    "clock that goes on": (lambda id: ("HSET", SHARD.fair, "v:batch", "1e300"), "fair says v:batch"),
    "flight of nobody": (lambda id: ("SET", SHARD.flight("abc"), id, "PX", 10_000), "flight:abc leads nobody"),
    "follower of nobody": (lambda id: ("ZADD", SHARD.followers("abc"), 1, id), "followers:abc holds"),
    "beginning that stays": (lambda id: ("SET", SHARD.prefix("abc"), "w1"), "prefix:abc never expires"),
    "kept slot": (lambda id: ("XADD", SHARD.work("w1"), "*", "t", id, "e", 1), "work:w1 holds 1 entries"),
    "orphaned stream": (lambda id: ("HDEL", SHARD.workers, "w1"), "something is left of the worker w1"),
    "lost reply": (lambda id: ("DEL", reply("orders")), "its replies are None"),
    "other reply": (
        lambda id: ("XADD", reply("orders"), "*", "id", id, "event", f"{id}:3", "status", "failed"),
        "its replies are",
    ),
    "foreign key": (lambda id: ("SET", SHARD.base + "odd", "x"), "odd: a key of no service"),
    "foreign set": (lambda id: ("SADD", SHARD.base + "odd", "x"), "odd: a key of no service"),
    "foreign list": (lambda id: ("RPUSH", SHARD.base + "odd", "x"), "odd: a key of no service"),
}


@pytest.mark.parametrize("kind", PLANTED)
async def test_planted_fault_is_named(bus: Bus, redis_url: str, kind: str) -> None:
    _, id = await ended(bus)
    command, words = PLANTED[kind]
    await bus.commands.call(*command(id))
    assert any(words in fault for fault in faults(redis_url, [id])), faults(redis_url, [id])


async def second_end(bus: Bus, id: str) -> None:
    (_, fields) = (await tasks.entries(bus, SHARD.log(id)))[-1]
    await bus.commands.call("XADD", SHARD.log(id), "*", "e", fields[b"e"])


async def repeated_chunk(bus: Bus, id: str) -> None:
    entries = await tasks.entries(bus, SHARD.log(id))
    await bus.commands.call("DEL", SHARD.log(id))
    for _, fields in [entries[0], *entries]:
        await bus.commands.call("XADD", SHARD.log(id), "*", "e", fields[b"e"])


@pytest.mark.parametrize("spoil", [second_end, repeated_chunk])
async def test_log_that_says_something_twice_is_named(
    bus: Bus, redis_url: str, spoil: Callable[[Bus, str], Awaitable[None]]
) -> None:
    _, id = await ended(bus)
    await spoil(bus, id)
    assert any("its log has" in fault for fault in faults(redis_url, [id]))


async def test_memory_that_stays_is_named(bus: Bus, redis_url: str) -> None:
    before = audit.read(redis_url, SHARD)
    for n in range(1000):
        await bus.commands.call("HSET", SHARD.suspects, f"w{n}", "x" * 50)
    (fault,) = audit.faults_of_memory(before, audit.read(redis_url, SHARD))
    assert fault.startswith("suspects has ")
