"""attend.lua: the client of an attached task still waits."""

import pytest

from services.ingress.attendance import ATTEND
from services.scheduler.scripts import due
from shared.bus.client import Bus
from shared.errors import WrongKeyType
from shared.submit import ATTACHED_MS, submit
from tests.support import tasks
from tests.support.redis import snapshot, spoil
from tests.support.tasks import CONFIG, LIMITS, SHARD


async def attached(bus: Bus) -> str:
    made = tasks.item(attached=True)
    assert list(await submit(bus, SHARD, CONFIG, [made])) == ["new"]
    return made.id


async def attend(bus: Bus, *ids: str) -> int:
    return int(await bus.run(ATTEND, [SHARD.attached], [ATTACHED_MS, *ids]))


async def test_lease_that_has_lapsed_and_was_not_acted_on_is_renewed(bus: Bus) -> None:
    id = await attached(bus)
    await bus.commands.call("ZADD", SHARD.attached, 1, id)
    seconds, _ = await bus.commands.call("TIME")
    assert await attend(bus, id) == 1
    assert int(await bus.commands.call("ZSCORE", SHARD.attached, id)) >= int(seconds) * 1000 + ATTACHED_MS
    assert (await due(bus, SHARD, LIMITS)).cancelled == 0


async def test_task_that_has_ended_is_not_attached_again(bus: Bus) -> None:
    id = await attached(bus)
    await bus.commands.call("ZADD", SHARD.attached, 1, id)
    assert (await due(bus, SHARD, LIMITS)).cancelled == 1
    before = await snapshot(bus)
    assert await attend(bus, id, tasks.new_id()) == 0
    assert await snapshot(bus) == before


async def test_task_that_was_never_attached_is_left_alone(bus: Bus) -> None:
    detached, id = await tasks.submitted(bus), await attached(bus)
    assert await attend(bus, detached, id) == 1
    assert await bus.commands.call("ZRANGE", SHARD.attached, 0, -1) == [id.encode()]


@pytest.mark.keeps_keys
async def test_wrong_type_is_an_error(bus: Bus) -> None:
    await spoil(bus, SHARD.attached)
    with pytest.raises(WrongKeyType):
        await attend(bus, tasks.new_id())
