"""discard.lua: of a task that has ended nothing is kept of what was said; one that may still run is left alone."""

import pytest

from shared.bus.client import Bus
from shared.discard import discard
from shared.errors import WrongKeyType
from tests.support import tasks
from tests.support.redis import snapshot
from tests.support.tasks import SHARD


async def test_what_was_asked_and_answered_goes_and_the_rest_expires_as_before(bus: Bus) -> None:
    hand = await tasks.ended(bus, await tasks.worker(bus), chunks=2)
    for _ in range(2):
        assert await discard(bus, hand.id) == "discarded"
    hash = await tasks.fields(bus, hand.id)
    assert {"body", "result", "finished"} & hash.keys() == set()
    assert (hash["state"], hash["used"], hash["discarded"]) == ("completed", "20", "1")
    assert await bus.commands.call("EXISTS", SHARD.log(hand.id)) == 0
    assert await tasks.ttl_ms(bus, SHARD.task(hand.id)) > 0


async def test_a_task_that_has_not_ended_stays_whole(bus: Bus) -> None:
    hand = await tasks.running(bus, await tasks.worker(bus))
    waiting = await tasks.admitted(bus)
    before = await snapshot(bus)
    assert [await discard(bus, id) for id in (hand.id, waiting)] == ["processing", "pending"]
    assert await snapshot(bus) == before


async def test_what_is_not_there_is_not_made(bus: Bus) -> None:
    id = tasks.new_id()
    assert await discard(bus, id) == "unknown"
    await bus.commands.call("HSET", SHARD.task(id), "state", "cancelled", "tombstone", 1)
    assert await discard(bus, id) == "unknown"
    assert await bus.commands.call("HLEN", SHARD.task(id)) == 2


@pytest.mark.parametrize("key", [SHARD.task, SHARD.log], ids=["task", "log"])
async def test_a_key_of_another_type_is_left_as_it_is(bus: Bus, key: object) -> None:
    hand = await tasks.ended(bus, await tasks.worker(bus), chunks=1)
    name = key(hand.id)  # type: ignore[operator]
    await bus.commands.call("SET", name, "foreign", "PX", 60_000)
    before = await snapshot(bus)
    with pytest.raises(WrongKeyType):
        await discard(bus, hand.id)
    assert await snapshot(bus) == before
