"""A pass of housekeeping deals with all that is due, not with a page of it."""

from msgspec.structs import replace

from services.scheduler.housekeeping import Housekeeping
from services.scheduler.intake import Intake
from services.scheduler.scripts import dispatch
from shared.bus.client import Bus
from shared.bus.script import MAX_ITEMS
from shared.config import Limits
from tests.support import tasks
from tests.support.tasks import SHARD
from tests.support.waiting import wait_until

MANY = 2 * MAX_ITEMS + 10


async def test_all_tasks_of_a_silent_worker_are_taken_back_in_one_pass(bus: Bus) -> None:
    await tasks.worker(bus, slots=MANY)
    for _ in range(MANY):
        await tasks.admitted(bus)
    while (await dispatch(bus, SHARD, tasks.CONFIG)).handed_out:
        pass
    await bus.commands.call("HSET", SHARD.workers, "w1", f"1 {MANY} {MANY} {MANY} {{}}")
    short = replace(tasks.CONFIG, limits=Limits(lease_s=1))
    housekeeping = Housekeeping(bus, SHARD, short, 1, Intake(bus, SHARD, short))

    waiting: list[int] = []

    async def given_up() -> bool:
        await housekeeping.tidy()
        waiting.append(await bus.commands.call("ZCARD", tasks.BACKLOGS[1]))
        return not await bus.commands.call("EXISTS", SHARD.workers)

    await wait_until(given_up, "the worker is given up, once those that could not be heard had their time")
    assert set(waiting) == {0, MANY}
