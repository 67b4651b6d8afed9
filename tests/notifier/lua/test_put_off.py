"""put_off.lua: a delivery leaves its stream for `later` in one step."""

import pytest

from services.notifier.scripts import PLACES, put_off
from shared import keys
from shared.bus.client import Bus
from shared.errors import WrongKeyType
from shared.messages import encode
from shared.webhooks import announce
from tests.support.redis import assert_refused_whole, spoil
from tests.support.webhooks import DELIVERY, taken, waiting


async def test_its_entry_is_done_and_it_waits_for_its_time(bus: Bus) -> None:
    await announce(bus, DELIVERY)
    [entry] = await taken(bus)
    await put_off(bus, entry, DELIVERY, delay_ms=60_000)
    assert await bus.commands.call("XLEN", keys.WEBHOOKS) == 0
    assert (await bus.commands.call("XPENDING", keys.WEBHOOKS, keys.SENDERS))[0] == 0
    [(delivery, due_ms)] = await waiting(bus)
    assert delivery == encode(DELIVERY)
    [seconds, _] = await bus.commands.call("TIME")
    assert 55 < due_ms / 1000 - int(seconds) < 62


async def test_a_repeat_only_moves_its_time(bus: Bus) -> None:
    for delay_ms in (1000, 60_000):
        await put_off(bus, b"1-1", DELIVERY, delay_ms=delay_ms)
    assert len(await waiting(bus)) == 1


@pytest.mark.parametrize("key", PLACES)
@pytest.mark.keeps_keys
async def test_wrong_type_is_named_and_nothing_is_written(bus: Bus, key: str) -> None:
    await assert_refused_whole(bus, key, lambda: put_off(bus, b"1-1", DELIVERY, delay_ms=1))
    await spoil(bus, key)
    with pytest.raises(WrongKeyType, match=key.replace("{", "\\{")):
        await put_off(bus, b"1-1", DELIVERY, delay_ms=1)
