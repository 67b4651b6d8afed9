"""promote.lua: what is due is tried again, once."""

import asyncio

import pytest
from msgspec.structs import replace

from services.notifier.scripts import PLACES, Promoted, promote, put_off
from shared import keys
from shared.bus.client import Bus
from shared.messages import encode
from tests.support import tasks
from tests.support.redis import assert_refused_whole
from tests.support.webhooks import DELIVERY, waiting


async def test_nothing_due_writes_nothing(bus: Bus) -> None:
    assert await promote(bus) == Promoted(0, 0)
    await put_off(bus, b"1-1", DELIVERY, delay_ms=60_000)
    assert await promote(bus) == Promoted(0, 1)
    assert await bus.commands.call("EXISTS", keys.WEBHOOKS) == 0


async def test_what_is_due_goes_back_into_the_stream_the_earliest_first(bus: Bus) -> None:
    due = [replace(DELIVERY, id=f"msg_{number}") for number in range(3)]
    for number, delivery in enumerate(due):
        await put_off(bus, b"1-1", delivery, delay_ms=-1000 * (3 - number))
    assert await promote(bus, most=2) == Promoted(2, 1)
    assert await promote(bus, most=2) == Promoted(1, 0)
    found = [fields[b"delivery"] for _, fields in await tasks.entries(bus, keys.WEBHOOKS)]
    assert found == [encode(delivery) for delivery in due]
    assert await waiting(bus) == []


async def test_replicas_that_ask_together_put_it_back_once(bus: Bus) -> None:
    await put_off(bus, b"1-1", DELIVERY, delay_ms=-1)
    promoted = await asyncio.gather(*(promote(bus) for _ in range(8)))
    assert sum(one.tried for one in promoted) == 1
    assert await bus.commands.call("XLEN", keys.WEBHOOKS) == 1


@pytest.mark.parametrize("key", PLACES)
@pytest.mark.keeps_keys
async def test_wrong_type_is_named_and_nothing_is_written(bus: Bus, key: str) -> None:
    await put_off(bus, b"1-1", DELIVERY, delay_ms=-1)
    await assert_refused_whole(bus, key, lambda: promote(bus))
