"""The intake sees to those that wait for another task's answer, and counts what became of each."""

import pytest

from services.scheduler import metrics
from services.scheduler.intake import CACHED, Intake
from shared.bus.client import Bus
from shared.bus.consume import Entry
from shared.cancel import cancel
from tests.support import cached, tasks
from tests.support.cached import FLIGHT, FOLLOWERS
from tests.support.redis import spoil
from tests.support.tasks import CONFIG, LIMITS, SHARD


async def take_all(bus: Bus) -> None:
    """One batch, as the consumer hands it over."""
    page = await cached.entries_in(bus)
    await Intake(bus, SHARD, CONFIG).on_arrivals([Entry(id, fields) for id, fields in page])


def counts() -> dict[str, float]:
    return {outcome: metrics.CACHE.labels("smol", "0", outcome)._value.get() for outcome in CACHED}


async def test_every_outcome_is_counted(bus: Bus) -> None:
    before = counts()
    owner = await tasks.worker(bus)
    first = await cached.asked(bus)
    for _ in range(2):
        await cached.asked(bus)
    await cached.asked(bus, digest=cached.OTHER, wish="refresh")
    await tasks.submitted(bus)
    await take_all(bus)
    hand = next(hand for hand in await tasks.hands(bus, owner) if hand.id == first)
    await cached.begin(bus, owner, hand)
    await cached.end(bus, owner, hand)
    await cached.asked(bus)
    await take_all(bus)
    assert {name: value - before[name] for name, value in counts().items()} == {
        "hit": 1,
        "followed": 2,
        "miss": 1,
        "refresh": 1,
    }


async def test_followers_of_several_pages_are_answered_and_the_entry_is_cleared(bus: Bus) -> None:
    owner = await tasks.worker(bus, slots=1)
    first = await cached.take_in(bus, expect="miss")
    ids = [await cached.asked(bus) for _ in range(150)]
    await cached.arrive(bus)
    await cached.complete(bus, owner, first)
    await take_all(bus)
    assert set(await cached.states(bus, ids)) == {"completed"}
    assert await bus.commands.call("XLEN", SHARD.arrivals) == 0
    assert await bus.commands.call("EXISTS", FOLLOWERS) == 0


async def test_next_in_line_is_handed_out_when_the_leader_is_cancelled(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    first = await cached.take_in(bus, expect="miss")
    second = await cached.take_in(bus, expect="followed")
    await cancel(bus, SHARD, LIMITS, [first])
    await take_all(bus)
    await take_all(bus)
    assert [hand.id for hand in await tasks.hands(bus, owner)] == [second]


@pytest.mark.keeps_keys
async def test_spoiled_flight_stops_nobody_else(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    first = await cached.take_in(bus, expect="miss")
    await cached.take_in(bus, expect="followed")
    await cached.complete(bus, owner, first)
    await spoil(bus, FLIGHT, command="RPUSH")
    other = await tasks.submitted(bus)
    await take_all(bus)
    assert [hand.id for hand in await tasks.hands(bus, owner)] == [other]
